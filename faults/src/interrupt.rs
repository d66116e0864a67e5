//! Ctrl-C and SIGTERM: noted, so that every wait ends and the guards clean up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::failure::{Failure, Kind, Outcome};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// How often a wait looks.
const LOOK: Duration = Duration::from_millis(2);

/// Catches the signals from now on.
pub(crate) fn catch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut terminate = {
        let _inside = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        });
        INTERRUPTED.store(true, Ordering::SeqCst);
    });
    Ok(())
}

/// Whether the user wants it to end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Looks until there is something to see.
///
/// # Errors
/// What `look` finds wrong; [`Kind::Stuck`] with what `seen` says when `patience` is over; [`Kind::Harness`] on an interrupt.
pub(crate) fn wait<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Outcome<Option<T>>,
    seen: impl FnOnce() -> String,
) -> Outcome<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if interrupted() {
            return Err(Failure::new(Kind::Harness, "interrupted"));
        }
        if started.elapsed() > patience {
            return Err(Failure::new(Kind::Stuck, format!("{what} did not happen within {patience:?}: {}", seen())));
        }
        thread::sleep(LOOK);
    }
}

/// Sleeps; shorter when interrupted.
///
/// # Errors
/// [`Kind::Harness`] on an interrupt.
pub(crate) fn pause(duration: Duration) -> Outcome {
    let until = Instant::now() + duration;
    while Instant::now() < until {
        if interrupted() {
            return Err(Failure::new(Kind::Harness, "interrupted"));
        }
        thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
    }
    Ok(())
}
