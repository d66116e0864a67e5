//! Enrolment of source servers, behind the HTTP API.

use rehost_functions::{Error, Part, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    serve(Part::Enrol).await
}
