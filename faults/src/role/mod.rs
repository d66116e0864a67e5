//! The two sides and the freezer, each in a process of its own so that it can be killed.

pub(crate) mod agent;
pub(crate) mod replicator;

use std::io::{BufRead, Write};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::Result;
use serde::Serialize;

/// Lines of the input, as they come; it ends when the conductor ends.
pub(crate) fn orders() -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Says something, unless it was the last thing that was said.
pub(crate) struct Speaker {
    last: String,
}

impl Speaker {
    pub(crate) fn new() -> Self {
        Self { last: String::new() }
    }

    pub(crate) fn say(&mut self, status: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(status)?;
        if text != self.last {
            let mut output = std::io::stdout().lock();
            writeln!(output, "{text}")?;
            output.flush()?;
            self.last = text;
        }
        Ok(())
    }
}

/// Warnings of the engines go to the role's log.
pub(crate) fn log_warnings() {
    // Fails only if there is a subscriber already.
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .try_init();
}
