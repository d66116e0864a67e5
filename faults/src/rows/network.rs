//! The network between the two, and bytes that are not what was sent.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::narrow;
use crate::bed::Bed;
use crate::failure::Outcome;
use crate::interrupt::pause;
use crate::network::{Quality, Way};
use crate::plan::{Figures, Plan, Setting};
use crate::storage::JournalFile;

pub(super) fn trouble(setting: Setting<'_>) -> Outcome<Figures> {
    let mut bed = Bed::start(setting, Plan::any(setting.seed))?;
    narrow(&mut bed);
    for _ in 0..=bed.random.below(2) {
        bed.random_moment()?;
        bed.figures.faults += 1;
        match bed.random.below(5) {
            0 => bed.network.cut(),
            1 => bed.network.go_silent(),
            2 => refuse(&mut bed)?,
            3 => bad_link(&mut bed, Duration::from_millis(12), 300_000, 65_536)?,
            _ => bad_link(&mut bed, Duration::from_micros(300), 4 << 20, 1200)?,
        }
        if bed.chance(3) {
            bed.part_and_verify()?;
        }
    }
    bed.checkpoint()?;
    bed.settle()
}

/// The port answers nobody for a while.
fn refuse(bed: &mut Bed<'_>) -> Outcome {
    bed.network.set_target(None);
    bed.network.cut();
    pause(Duration::from_millis(bed.random.below(400)))?;
    bed.connect()
}

/// A link that is slow, or whose bytes come in other pieces than they were sent in; cut in the end, or not.
fn bad_link(bed: &mut Bed<'_>, delay: Duration, rate: u64, piece: usize) -> Outcome {
    bed.network.set_quality(Quality { delay, rate: Some(rate), piece });
    pause(Duration::from_millis(100 + bed.random.below(500)))?;
    if bed.chance(2) {
        bed.network.cut();
    }
    narrow(bed);
    Ok(())
}

pub(super) fn stream(setting: Setting<'_>) -> Outcome<Figures> {
    let mut bed = Bed::start(setting, Plan::any(setting.seed))?;
    narrow(&mut bed);
    bed.compares = true;
    for _ in 0..=bed.random.below(2) {
        match bed.random.below(2) {
            0 => damage_journal(&mut bed)?,
            _ => trap(&mut bed)?,
        }
    }
    bed.checkpoint()?;
    bed.settle()
}

/// Cuts, or flips a bit, at a byte that is still to come.
fn trap(bed: &mut Bed<'_>) -> Outcome {
    let (way, at) = if bed.chance(3) { (Way::Down, 4000) } else { (Way::Up, 400_000) };
    let at = bed.random.below(at);
    if bed.chance(2) {
        bed.network.cut_after(way, at);
    } else {
        bed.network.flip_after(way, at);
    }
    bed.request();
    let started = Instant::now();
    bed.wait("a trap on the wire", |bed| {
        (bed.network.sprung(way) || started.elapsed() > Duration::from_millis(800)).then_some(())
    })?;
    bed.figures.faults += 1;
    Ok(())
}

/// The journal is cut short or has a wrong bit when the replicator opens it again: mostly in what was acknowledged.
fn damage_journal(bed: &mut Bed<'_>) -> Outcome {
    bed.journal_moment()?;
    bed.kill_replicator();
    for journal in bed.home.journals() {
        let length = fs::metadata(&journal.0)?.len();
        let records = JournalFile::RECORDS..JournalFile::RECORDS + journal.durable();
        let within = match bed.random.below(6) {
            0 => 0..JournalFile::HEADER,
            1 => 0..length,
            _ => records,
        };
        if !within.is_empty() {
            let at = within.start + bed.random.below(within.end - within.start);
            damage(&journal, at, bed.chance(4))?;
        }
    }
    bed.start_replicator_alone()?;
    bed.verify_reopened()?;
    bed.connect()
}

/// Cuts a journal at a byte, or changes a bit of it.
fn damage(journal: &JournalFile, at: u64, cut: bool) -> Outcome {
    let file = File::options().read(true).write(true).open(&journal.0)?;
    if cut {
        file.set_len(at)?;
    } else {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 0x10], at)?;
    }
    Ok(file.sync_all()?)
}
