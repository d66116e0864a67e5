//! Processes that are killed, and power that is cut.

use std::time::Duration;

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
    match bed.random.below(7) {
        0 => bed.checkpoint_and_hold()?,
        1 | 2 => bed.storage_moment()?,
        3 | 4 => bed.journal_moment()?,
        _ => bed.random_moment()?,
    }
    bed.stop_replicator_somehow()
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
