//! What the daemon says, and when.
//!
//! Its output goes to the system's journal, and the journal may lie on the disk that is replicated: whatever is written while a
//! pass compares digests makes the pass find a difference. Therefore one line for each change of state, and none during a pass:
//! those lines wait until it is over. On a terminal a bar shows the progress instead.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};
use rehost_model::Epoch;
use rehost_model::link::{AgentPhase, ReportedError};
use rehost_model::replication::ReplicatedDisk;

use crate::sync::Progress;
use crate::text;

/// Lines that wait for the end of a pass, at most.
const MAX_HELD: usize = 32;

/// The first copy is reported each time another tenth of it is done.
const TENTHS: u64 = 10;

/// The daemon's output.
pub(super) struct Journal {
    bar: Option<ProgressBar>,
    quiet: bool,
    held: Vec<String>,
    phase: AgentPhase,
    tenth: u64,
    reached: Epoch,
    error: Option<String>,
}

impl Journal {
    /// On standard error.
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self::with(bar)
    }

    fn with(bar: Option<ProgressBar>) -> Self {
        let phase = AgentPhase::Waiting;
        Self { bar, quiet: false, held: Vec::new(), phase, tenth: 0, reached: Epoch(0), error: None }
    }

    /// Says a line, now or when the pass is over.
    pub(super) fn say(&mut self, line: impl Into<String>) {
        let line = line.into();
        if !self.quiet {
            self.print(&line);
        } else if self.held.len() < MAX_HELD {
            self.held.push(line);
        }
    }

    /// Notes how far replication is, and says what changed.
    pub(super) fn note(&mut self, progress: &Progress, error: Option<&ReportedError>) {
        self.quiet = progress.phase == AgentPhase::Rescan;
        if !self.quiet {
            for line in std::mem::take(&mut self.held) {
                self.print(&line);
            }
        }
        self.note_error(error);
        self.note_first_copy(progress);
        if progress.reached > self.reached {
            self.reached = progress.reached;
            self.say(format!("checkpoint {} is on the replication server", self.reached));
        }
        self.phase = progress.phase;
        self.draw(progress);
    }

    fn note_error(&mut self, error: Option<&ReportedError>) {
        let code = error.map(|e| e.code.clone());
        if code != self.error {
            match error {
                Some(error) => self.say(format!("{}: {}; trying again", error.code, error.message)),
                None => self.say("replication goes on"),
            }
            self.error = code;
        }
    }

    fn note_first_copy(&mut self, progress: &Progress) {
        if progress.phase != AgentPhase::InitialSync {
            return;
        }
        let (done, total) = totals(&progress.disks, |d| d.replicated_storage_bytes);
        let tenth = done.saturating_mul(TENTHS) / total.max(1);
        if self.phase != AgentPhase::InitialSync || tenth != self.tenth {
            self.tenth = tenth;
            self.say(format!("first copy: {}{}", text::percent(done, total), pace(progress, done, total)));
        }
    }

    fn draw(&self, progress: &Progress) {
        let Some(bar) = &self.bar else { return };
        let rescan = progress.phase == AgentPhase::Rescan;
        let (done, total) =
            totals(&progress.disks, |d| if rescan { d.rescanned_storage_bytes } else { d.replicated_storage_bytes });
        // Each of these may draw: the words first, so that no old word stands beside a new number.
        bar.set_message(format!("{}{}", text::phase(progress.phase), pace(progress, done, total)));
        bar.set_length(total);
        bar.set_position(done.min(total));
    }

    fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.quiet = false;
        for line in std::mem::take(&mut self.held) {
            self.print(&line);
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn totals(disks: &[ReplicatedDisk], done: impl Fn(&ReplicatedDisk) -> u64) -> (u64, u64) {
    (disks.iter().map(&done).sum(), disks.iter().map(|d| d.total_storage_bytes).sum())
}

fn pace(progress: &Progress, done: u64, total: u64) -> String {
    match total.saturating_sub(done).checked_div(progress.rate_bytes_per_second) {
        Some(seconds) if seconds > 0 => {
            format!(", {}/s, {} left", text::bytes(progress.rate_bytes_per_second), text::duration(seconds))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(phase: AgentPhase, replicated: u64, reached: u64) -> Progress {
        let disk = ReplicatedDisk {
            total_storage_bytes: 100,
            replicated_storage_bytes: replicated,
            ..ReplicatedDisk::default()
        };
        let (disks, reached) = (vec![disk], Epoch(reached));
        Progress { phase, disks, rate_bytes_per_second: 10, reached, ..Progress::default() }
    }

    #[test]
    fn nothing_is_said_during_a_pass_and_nothing_is_lost() {
        let mut journal = Journal::with(None);
        journal.note(&progress(AgentPhase::InitialSync, 50, 0), None);
        assert!(journal.held.is_empty());
        journal.note(&progress(AgentPhase::Rescan, 100, 0), None);
        journal.say("the control plane cannot be reached");
        assert_eq!(journal.held, ["the control plane cannot be reached"]);
        for _ in 0..100 {
            journal.say("again");
        }
        assert_eq!(journal.held.len(), MAX_HELD);
        journal.note(&progress(AgentPhase::Idle, 100, 1), None);
        assert!(journal.held.is_empty());
        assert_eq!(journal.reached, Epoch(1));
    }

    #[test]
    fn errors_are_said_once_until_they_change() {
        let mut journal = Journal::with(None);
        let quiet = progress(AgentPhase::Rescan, 0, 0);
        journal.note(&quiet, None);
        let error = |code: &str| ReportedError { code: code.to_owned(), message: "m".to_owned() };
        for code in ["A", "A", "B"] {
            journal.note(&quiet, Some(&error(code)));
        }
        journal.note(&quiet, None);
        assert_eq!(journal.held, ["A: m; trying again", "B: m; trying again", "replication goes on"]);
    }

    #[test]
    fn the_pace_says_how_long_it_takes() {
        let progress = progress(AgentPhase::InitialSync, 0, 0);
        assert_eq!(pace(&progress, 50, 100), ", 10 B/s, 5 s left");
        assert_eq!(pace(&progress, 100, 100), "");
    }
}
