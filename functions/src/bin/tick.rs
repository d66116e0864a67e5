//! Looks after everything that nobody reports, every minute.

use rehost_functions::{Error, Function, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(Function::Tick).await
}
