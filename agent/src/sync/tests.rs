//! The engines of both sides, talking over loopback within one process.

mod bed;
mod faults;
mod forwarder;
mod path;
