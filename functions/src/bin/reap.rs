//! Removes what nobody needs any more, every hour.

use rehost_functions::{Error, Function, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(Function::Reap).await
}
