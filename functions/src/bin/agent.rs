//! The calls of agents and replicators, behind the HTTP API.

use rehost_functions::{Error, Part, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    serve(Part::Agent).await
}
