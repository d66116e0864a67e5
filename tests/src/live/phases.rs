//! How long the parts of a long test took.

use std::fmt::Display;
use std::time::Instant;

use crate::error::Result;

/// Says what happens, with the time since the start and the duration of each part.
#[derive(Debug)]
pub struct Phases {
    started: Instant,
    done: Vec<(String, u64)>,
}

impl Default for Phases {
    fn default() -> Self {
        Self { started: Instant::now(), done: Vec::new() }
    }
}

impl Phases {
    /// Runs one part and shows how it went.
    ///
    /// # Errors
    /// Those of the part.
    pub fn run<T>(&mut self, name: &str, part: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("[{:>4} s] {name}: begins", self.started.elapsed().as_secs());
        let begin = Instant::now();
        let result = part();
        let seconds = begin.elapsed().as_secs();
        let outcome = if result.is_ok() { "done" } else { "FAILED" };
        println!("[{:>4} s] {name}: {outcome} after {seconds} s", self.started.elapsed().as_secs());
        self.done.push((name.to_owned(), seconds));
        result
    }

    /// Shows something that was measured.
    pub fn note(&self, what: impl Display) {
        println!("[{:>4} s]   {what}", self.started.elapsed().as_secs());
    }

    /// One line with all parts.
    #[must_use]
    pub fn summary(&self) -> String {
        let parts = self.done.iter().map(|(name, seconds)| format!("{name} {seconds} s"));
        format!("{} s in all: {}", self.started.elapsed().as_secs(), parts.collect::<Vec<_>>().join(", "))
    }
}
