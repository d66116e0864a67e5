//! The engines of both sides, talking over loopback within one process.

mod bed;
mod fake;
mod faults;
mod forwarder;
mod path;
mod tracked;
