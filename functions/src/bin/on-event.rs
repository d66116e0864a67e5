//! Starts what an event of EventBridge starts.

use rehost_functions::{Error, Function, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(Function::OnEvent).await
}
