//! The rows: which faults are injected, and the bugs that each row must catch.

use std::time::Duration;

use crate::bed::{Bed, Figures, Plan, Setting};
use crate::failure::{Kind, Outcome};
use crate::network::Quality;

/// A kind of fault.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(Setting<'_>) -> Outcome<Figures>,
    pub(crate) planted: &'static [Planted],
}

/// A bug that is built in on demand, and how a row must fail by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planted {
    pub(crate) name: &'static str,
    pub(crate) kinds: &'static [Kind],
}

const WRONG: &[Kind] = &[Kind::Differs, Kind::Torn, Kind::Lost];

/// Every row.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "kill-agent",
        about: "kill -9 of the agent under writes",
        run: kill_agent,
        planted: &[Planted { name: "forget-pending-after-restart", kinds: WRONG }],
    },
    Row {
        name: "kill-replicator",
        about: "kill -9 of the replicator, and power cuts, under writes",
        run: kill_replicator,
        planted: &[Planted { name: "skip-replay", kinds: WRONG }],
    },
];

/// Slow enough that a fault falls into what is under way.
fn narrow(bed: &mut Bed<'_>) {
    let rate = Some((2 << 20) + bed.random.below(8 << 20));
    bed.network.set_quality(Quality { rate, delay: Duration::from_micros(bed.random.below(3000)), ..Quality::default() });
}

fn kill_agent(setting: Setting<'_>) -> Outcome<Figures> {
    let mut bed = Bed::start(setting, Plan::any(setting.seed))?;
    narrow(&mut bed);
    for _ in 0..=bed.random.below(2) {
        bed.random_moment()?;
        bed.kill_agent();
        bed.start_agent()?;
    }
    bed.checkpoint()?;
    bed.settle()
}

fn kill_replicator(setting: Setting<'_>) -> Outcome<Figures> {
    let mut bed = Bed::start(setting, Plan::any(setting.seed))?;
    narrow(&mut bed);
    for _ in 0..=bed.random.below(2) {
        bed.random_moment()?;
        if bed.chance(2) {
            bed.kill_replicator();
        } else {
            bed.cut_power()?;
        }
        bed.start_replicator_alone()?;
        bed.connect();
    }
    bed.checkpoint()?;
    bed.settle()
}
