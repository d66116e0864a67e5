//! A durable interpreter of the part of the Amazon States Language that rehost's state machines use.
//!
//! - [`asl`] reads a definition and refuses whatever is outside that part;
//! - `transition` is the language's semantics as pure functions: a record of an execution, and what it becomes;
//! - `journal` keeps records and history in the database, one transaction for each transition;
//! - [`engine`] runs executions: it wakes them, runs their tasks, and commits what became of them.
//!
//! An execution is what its record says, so a process killed at any point goes on where it was: a task that was running is
//! run again (steps are idempotent), a wait keeps its deadline, a retrier its count. A running execution keeps the
//! definition that it was started with.

pub mod asl;
pub mod engine;
mod errors;
mod journal;
pub mod path;
mod transition;

pub use engine::{Engine, EngineOptions, TaskHandler, random_jitter};
pub use errors::TaskError;
pub use journal::HistoryEntry;
