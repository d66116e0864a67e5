//! Whoever froze a filesystem is killed or stopped while it is frozen.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rehost_model::replication::Consistency;
use rustix::process::{Pid, Signal, kill_process};

use super::NO_WATCHDOG;
use crate::bed::Bed;
use crate::failure::{Failure, Kind, Outcome};
use crate::interrupt::pause;
use crate::plan::{Figures, Plan, Setting};

/// Every freeze lasts this much longer, before and after its work, so that a kill falls into it.
const STAY: Duration = Duration::from_millis(120);
/// A freeze may last this long.
const LIMIT: Duration = Duration::from_millis(1000);
/// With this the watchdog ends every freeze, however fast the machine is.
const TOO_LONG: Duration = Duration::from_millis(600);
/// What a busy machine may add until something is seen that does not wait for anybody.
const SLACK: Duration = Duration::from_secs(12);
/// A standing network is noticed only after that.
const SILENCE: Duration = Duration::from_secs(20);

pub(super) fn trouble(setting: Setting<'_>) -> Outcome<Figures> {
    let mut bed = Bed::start(setting, Plan { freeze: LIMIT, silence: SILENCE, ..Plan::files() })?;
    for _ in 0..=bed.random.below(2) {
        bed.figures.faults += 1;
        match bed.random.below(9) {
            0 | 1 => kill_agent(&mut bed)?,
            2 => stop_agent(&mut bed)?,
            3 => kill_watchdog(&mut bed)?,
            4 => kill_both(&mut bed)?,
            5 | 6 => thaw_too_early(&mut bed)?,
            _ => stand_still(&mut bed)?,
        }
    }
    bed.checkpoint()?;
    bed.settle()
}

/// The watchdog thaws as soon as the agent is gone.
fn kill_agent(bed: &mut Bed<'_>) -> Outcome {
    let watchdog = frozen(bed)?;
    let stopped = (bed.setting.planted == Some(NO_WATCHDOG)).then(|| Stopped::now(watchdog)).transpose()?;
    bed.kill_agent()?;
    thaws(bed)?;
    drop(stopped);
    bed.start_agent()
}

/// The watchdog thaws when the time is over: the agent hangs.
fn stop_agent(bed: &mut Bed<'_>) -> Outcome {
    let watchdog = frozen(bed)?;
    let stopped = (bed.setting.planted == Some(NO_WATCHDOG)).then(|| Stopped::now(watchdog)).transpose()?;
    let agent = bed.agent.as_ref().map_or(0, |agent| agent.pid());
    let agent = Stopped::now(agent)?;
    thaws(bed)?;
    drop(stopped);
    drop(agent);
    bed.stay(Duration::ZERO);
    Ok(())
}

/// The agent thaws by itself, and has another watchdog before it freezes again.
fn kill_watchdog(bed: &mut Bed<'_>) -> Outcome {
    let watchdog = frozen(bed)?;
    kill(watchdog, Signal::KILL)?;
    thaws(bed)?;
    bed.wait("a freeze with another watchdog", |bed| {
        bed.agent_status().filter(|status| status.watchdog != watchdog && status.frozen)
    })?;
    bed.stay(Duration::ZERO);
    Ok(())
}

/// Nobody is left to thaw but the next agent, which has a note of it.
fn kill_both(bed: &mut Bed<'_>) -> Outcome {
    let watchdog = frozen(bed)?;
    kill(watchdog, Signal::KILL)?;
    bed.kill_agent()?;
    pause(Duration::from_millis(bed.random.below(50)))?;
    bed.start_agent()?;
    thaws(bed)
}

/// The watchdog ends every freeze before the agent does: none of them may count.
fn thaw_too_early(bed: &mut Bed<'_>) -> Outcome {
    bed.stay(TOO_LONG);
    bed.wait("the end of a freeze", |bed| bed.agent_status().filter(|status| !status.frozen))?;
    bed.checkpoint_and_hold()?;
    let found = bed.report().map(|report| report.consistency);
    bed.stay(Duration::ZERO);
    bed.release();
    match found {
        Some(Consistency::Frozen) => {
            Err(Failure::new(Kind::NotThawed, "a freeze that the watchdog had to end counts as one"))
        }
        _ => Ok(()),
    }
}

/// Nothing passes on the network: a freeze must not wait for that.
fn stand_still(bed: &mut Bed<'_>) -> Outcome {
    just_frozen(bed)?;
    bed.network.stand_still(true);
    let thawed = thaws(bed).and_then(|()| ends(bed));
    bed.network.stand_still(false);
    bed.stay(Duration::ZERO);
    thawed
}

/// The agent is done with its freeze by itself.
fn ends(bed: &mut Bed<'_>) -> Outcome {
    let started = Instant::now();
    while bed.agent_status().is_none_or(|status| status.frozen) {
        if started.elapsed() > SLACK {
            let text =
                format!("after {:?} the agent is not done with a freeze while nothing passes", started.elapsed());
            return Err(Failure::new(Kind::NotThawed, text));
        }
        pause(Duration::from_millis(2))?;
    }
    Ok(())
}

/// Waits until the filesystem is frozen, and for some moments more; the watchdog's process.
fn frozen(bed: &mut Bed<'_>) -> Outcome<u32> {
    let watchdog = just_frozen(bed)?;
    pause(Duration::from_millis(bed.random.below(3 * STAY.as_millis().try_into().unwrap_or(0)) / 2))?;
    Ok(watchdog)
}

fn just_frozen(bed: &mut Bed<'_>) -> Outcome<u32> {
    bed.stay(STAY);
    // Not one that began before it was told to stay.
    bed.wait("the end of a freeze", |bed| bed.agent_status().filter(|status| !status.frozen))?;
    bed.wait("a freeze", |bed| bed.agent_status().filter(|status| status.frozen)).map(|status| status.watchdog)
}

/// A write gets through before the time-out is over.
fn thaws(bed: &mut Bed<'_>) -> Outcome {
    let Some(writer) = bed.source.file_writer() else { return Ok(()) };
    let (probe, started): (JoinHandle<_>, _) = (writer.probe(), Instant::now());
    while !probe.is_finished() {
        if started.elapsed() > LIMIT + SLACK {
            return Err(Failure::new(Kind::NotThawed, format!("a write was blocked for {:?}", started.elapsed())));
        }
        pause(Duration::from_millis(2))?;
    }
    match probe.join() {
        Ok(written) => Ok(written?),
        Err(_) => Err(Failure::new(Kind::Harness, "the probe panicked")),
    }
}

/// A process that stands still until this is dropped.
struct Stopped(u32);

impl Stopped {
    fn now(process: u32) -> Outcome<Self> {
        kill(process, Signal::STOP)?;
        Ok(Self(process))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::CONT);
    }
}

fn kill(process: u32, signal: Signal) -> Outcome {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    let process = process.ok_or_else(|| Failure::new(Kind::Harness, "there is no such process"))?;
    match kill_process(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}
