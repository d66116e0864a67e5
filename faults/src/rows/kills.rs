//! Processes that are killed, and power that is cut.

use std::time::{Duration, Instant};

use super::narrow;
use crate::bed::Bed;
use crate::failure::Outcome;
use crate::interrupt::pause;
use crate::plan::{Figures, Plan, Setting};

pub(super) fn agent(setting: Setting<'_>) -> Outcome<Figures> {
    let mut bed = Bed::start(setting, Plan::any(setting.seed))?;
    narrow(&mut bed);
    for _ in 0..=bed.random.below(2) {
        bed.random_moment()?;
        bed.kill_agent()?;
        if bed.chance(2) {
            bed.part_and_verify()?;
        }
        bed.start_agent()?;
    }
    bed.checkpoint()?;
    bed.settle()
}

pub(super) fn replicator(setting: Setting<'_>) -> Outcome<Figures> {
    let mut bed = Bed::start(setting, Plan::any(setting.seed))?;
    narrow(&mut bed);
    for _ in 0..=bed.random.below(2) {
        if bed.chance(3) {
            bed.journal_moment()?;
            bed.stop_replicator_somehow()?;
            bed.try_another_key()?;
        } else {
            stop_at_some_moment(&mut bed)?;
            bed.start_replicator_alone()?;
            bed.verify_reopened()?;
            bed.connect()?;
        }
    }
    bed.checkpoint()?;
    bed.settle()
}

/// As soon as a checkpoint was acknowledged and the volumes are held, while something is made durable, or at any moment.
fn stop_at_some_moment(bed: &mut Bed<'_>) -> Outcome {
    match bed.random.below(9) {
        0 => bed.checkpoint_and_hold()?,
        1 | 2 => bed.storage_moment()?,
        3 => bed.journal_moment()?,
        4 => bed.random_moment()?,
        _ => stop_before_a_write(bed)?,
    }
    bed.stop_replicator_somehow()
}

/// Starts the replicator anew, such that it stops by itself just before it writes or flushes something.
fn stop_before_a_write(bed: &mut Bed<'_>) -> Outcome {
    bed.kill_replicator();
    let (place, most) = match bed.random.below(3) {
        0 => ("sidecar", 8),
        1 => ("journal", 24),
        _ => ("volume", 40),
    };
    bed.bad_storage = Some(format!("{place}:stop:{}", 1 + bed.random.below(most)));
    bed.start_replicator()?;
    bed.bad_storage = None;
    bed.request();
    let started = Instant::now();
    bed.wait("a stop before a write", |bed| {
        (bed.replicator_stands_still() || started.elapsed() > Duration::from_millis(2500)).then_some(())
    })
}

pub(super) fn both(setting: Setting<'_>) -> Outcome<Figures> {
    let mut bed = Bed::start(setting, Plan::any(setting.seed))?;
    narrow(&mut bed);
    for _ in 0..=bed.random.below(2) {
        if bed.chance(3) {
            bed.storage_moment()?;
        } else {
            bed.random_moment()?;
        }
        let (agent_first, between) = (bed.chance(2), Duration::from_millis(bed.random.below(30)));
        if agent_first {
            bed.kill_agent()?;
            pause(between)?;
        }
        bed.stop_replicator_somehow()?;
        if !agent_first {
            pause(between)?;
            bed.kill_agent()?;
        }
        restart_both(&mut bed)?;
    }
    bed.checkpoint()?;
    bed.settle()
}

fn restart_both(bed: &mut Bed<'_>) -> Outcome {
    let agent_first = bed.chance(2);
    if agent_first {
        bed.start_agent()?;
    }
    bed.start_replicator_alone()?;
    bed.verify_reopened()?;
    bed.connect()?;
    if !agent_first {
        bed.start_agent()?;
    }
    Ok(())
}
