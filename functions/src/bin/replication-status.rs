//! The step `replication-status` of the state machines.

use rehost_functions::{Error, Function, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(Function::Step("replication-status")).await
}
