//! Storage that is full or fails, and state that is gone.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

use super::narrow;
use crate::bed::Bed;
use crate::failure::Outcome;
use crate::plan::{Figures, Plan, Setting};

/// A journal that holds a part of what is written between two checkpoints.
const SMALL_JOURNAL: u64 = 160 << 10;

pub(super) fn trouble(setting: Setting<'_>) -> Outcome<Figures> {
    let mut plan = Plan::any(setting.seed);
    if setting.seed.is_multiple_of(4) {
        plan.journal_bytes = SMALL_JOURNAL;
    }
    let mut bed = Bed::start(setting, plan)?;
    narrow(&mut bed);
    bed.compares = true;
    for _ in 0..=bed.random.below(2) {
        bed.note_comparison()?;
        match bed.random.below(4) {
            0 => fill(&mut bed)?,
            1 => lose_agent_state(&mut bed)?,
            _ => bad_storage(&mut bed)?,
        }
    }
    bed.checkpoint()?;
    bed.settle()
}

/// Nothing is left where volumes, journal and sidecars are, for some moments.
fn fill(bed: &mut Bed<'_>) -> Outcome {
    bed.random_moment()?;
    bed.figures.faults += 1;
    let path = bed.home.filler();
    let file = File::create(&path)?;
    let room = fstatvfs(&file).map_err(std::io::Error::from)?;
    let mut bytes = room.f_bavail * room.f_frsize;
    // The last blocks may be needed for the extents of the file itself.
    while bytes > 0 && fallocate(&file, FallocateFlags::empty(), 0, bytes).is_err() {
        bytes = bytes.saturating_sub(1 << 16);
    }
    trouble_shows(bed)?;
    if bed.chance(3) {
        bed.part_and_verify()?;
    }
    drop(file);
    Ok(std::fs::remove_file(&path)?)
}

/// The replicator's writes fail: once, or from some write on until it is started anew.
fn bad_storage(bed: &mut Bed<'_>) -> Outcome {
    let place = ["volume", "journal", "sidecar"][usize::try_from(bed.random.below(3)).unwrap_or(0)];
    let error = if bed.chance(2) { "eio" } else { "enospc" };
    let (nth, lasting) = (1 + bed.random.below(12), bed.chance(2));
    bed.bad_storage = Some(format!("{place}:{error}:{nth}{}", if lasting { "+" } else { "" }));
    bed.random_moment()?;
    bed.stop_replicator_somehow()?;
    bed.start_replicator_alone()?;
    bed.connect()?;
    bed.request();
    trouble_shows(bed)?;
    bed.bad_storage = None;
    if lasting || bed.chance(2) {
        bed.stop_replicator_somehow()?;
        bed.start_replicator_alone()?;
        bed.verify_reopened()?;
        bed.connect()?;
    }
    Ok(())
}

/// Until the replicator tells of it, or some time has passed without.
fn trouble_shows(bed: &mut Bed<'_>) -> Outcome {
    let (started, most) = (Instant::now(), Duration::from_millis(300 + bed.random.below(500)));
    bed.wait("trouble with the storage", |bed| {
        let told = bed.report().is_some_and(|report| report.error.is_some());
        (told || started.elapsed() > most).then_some(())
    })
}

/// What the agent kept in the kernel is gone when it comes back, and the source was written meanwhile.
fn lose_agent_state(bed: &mut Bed<'_>) -> Outcome {
    bed.random_moment()?;
    bed.kill_agent()?;
    bed.lose_pins()?;
    bed.some_writes()?;
    bed.start_agent()
}
