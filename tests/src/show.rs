//! What a demo tells while it runs.

use std::fmt::Display;
use std::process::ExitCode;
use std::time::Instant;

use crate::error::Result;

/// Says what happens, with the time since the start.
#[derive(Debug)]
pub struct Show {
    started: Instant,
}

impl Show {
    /// Runs a demo, and says in its last line how it ended.
    #[must_use]
    pub fn of(name: &str, demo: impl FnOnce(&Self) -> Result<String>) -> ExitCode {
        let show = Self { started: Instant::now() };
        let outcome = demo(&show);
        let seconds = show.started.elapsed().as_secs();
        match outcome {
            Ok(facts) => {
                println!("{name}: OK {facts} seconds={seconds}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{name}: FAILED after {seconds} s: {error}");
                ExitCode::FAILURE
            }
        }
    }

    /// Something is done.
    pub fn step(&self, what: impl Display) {
        let seconds = self.started.elapsed().as_secs();
        println!("[{:02}:{:02}] {what}", seconds / 60, seconds % 60);
    }

    /// Something cannot be done here; what is done in its place.
    pub fn instead(&self, what: impl Display) {
        println!("        emulated otherwise: {what}");
    }
}
