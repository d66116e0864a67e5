//! MGN's operations and rehost's own, behind the HTTP API.

use rehost_functions::{Error, Part, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    serve(Part::Api).await
}
