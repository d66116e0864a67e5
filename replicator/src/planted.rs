//! Faults that are planted on purpose, so that a harness can show that it would find them. Not in a normal build.
//!
//! `REHOST_PLANTED` names one fault:
//! - `ack-before-journal-sync`: a barrier is acknowledged while its records are still in memory.
//! - `apply-before-commit`: changes reach the volumes at a barrier, before their checkpoint counts.
//! - `sidecar-before-flush`: a checkpoint is recorded before the volumes are it, and without a commit record.
//! - `skip-replay`: a journal that is opened counts as empty.
//! - `reuse-partial-after-key-change`: a journal under another key counts as empty, and the volumes as if it had been applied.
//! - `no-crc-check`: a record whose tag does not fit is taken as it is, and a torn end as a barrier.
//!
//! `REHOST_PLANTED_IO` is `PLACE:ERROR:N` (`journal`, `volume` or `sidecar`; `eio` or
//! `enospc`): the Nth write of that place fails, and with `N+` every later one, too. With `stop` as the error it does not fail:
//! before it the whole process is stopped, for whoever wants to end it there.

#[cfg(feature = "planted")]
mod on {
    use std::{
        io,
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    static FAULT: LazyLock<String> = LazyLock::new(|| std::env::var("REHOST_PLANTED").unwrap_or_default());
    static PLAN: LazyLock<Option<Plan>> = LazyLock::new(|| Plan::parse(&std::env::var("REHOST_PLANTED_IO").ok()?));

    struct Plan {
        place: String,
        /// None stops the process.
        kind: Option<io::ErrorKind>,
        nth: u64,
        lasting: bool,
        seen: AtomicU64,
    }

    impl Plan {
        fn parse(text: &str) -> Option<Self> {
            let mut parts = text.split(':');
            let place = parts.next()?.to_owned();
            let kind = match parts.next()? {
                "enospc" => Some(io::ErrorKind::StorageFull),
                "stop" => None,
                _ => Some(io::ErrorKind::Other),
            };
            let count = parts.next()?;
            let nth = count.trim_end_matches('+').parse().ok()?;
            Some(Self { place, kind, nth, lasting: count.ends_with('+'), seen: AtomicU64::new(0) })
        }
    }

    pub(crate) fn is(fault: &str) -> bool {
        *FAULT == fault
    }

    pub(crate) fn io(place: &str) -> io::Result<()> {
        let Some(plan) = PLAN.as_ref().filter(|plan| plan.place == place) else { return Ok(()) };
        let seen = plan.seen.fetch_add(1, Ordering::AcqRel) + 1;
        match (seen == plan.nth || (plan.lasting && seen > plan.nth), plan.kind) {
            (true, Some(kind)) => Err(io::Error::new(kind, "a planted error")),
            (true, None) => stop(),
            (false, _) => Ok(()),
        }
    }

    fn stop() -> io::Result<()> {
        use rustix::process::{Signal, getpid, kill_process};
        Ok(kill_process(getpid(), Signal::STOP)?)
    }
}

#[cfg(not(feature = "planted"))]
mod off {
    /// No fault is planted.
    #[inline(always)]
    pub(crate) const fn is(_fault: &str) -> bool {
        false
    }

    /// No error is planted.
    #[inline(always)]
    pub(crate) const fn io(_place: &str) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(not(feature = "planted"))]
pub(crate) use off::{io, is};
#[cfg(feature = "planted")]
pub(crate) use on::{io, is};
