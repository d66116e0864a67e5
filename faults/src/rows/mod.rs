//! The rows: which faults are injected, and the bugs that each row must catch.

mod freezer;
mod kills;
mod network;
mod storage;

use std::time::Duration;

use crate::bed::Bed;
use crate::failure::{Kind, Outcome};
use crate::network::Quality;
use crate::plan::{Figures, Setting};
use crate::source::Work;

/// A kind of fault.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(Setting<'_>) -> Outcome<Figures>,
    pub(crate) planted: &'static [Planted],
}

/// A bug that is built in on demand, and how a row must fail by it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planted {
    pub(crate) name: &'static str,
    pub(crate) kinds: &'static [Kind],
}

const fn wrong(name: &'static str) -> Planted {
    Planted { name, kinds: &[Kind::Differs, Kind::Torn, Kind::Lost] }
}

const fn not_thawed(name: &'static str) -> Planted {
    Planted { name, kinds: &[Kind::NotThawed] }
}

/// Every row.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "kill-agent",
        about: "kill -9 of the agent under writes",
        run: kills::agent,
        planted: &[wrong("read-before-clear"), wrong("skip-last-pass"), wrong("forget-pending-after-restart")],
    },
    Row {
        name: "kill-replicator",
        about: "kill -9 of the replicator under writes, its power cut, and another data key when it comes back",
        run: kills::replicator,
        planted: &[
            wrong("ack-before-journal-sync"),
            wrong("apply-before-commit"),
            wrong("sidecar-before-flush"),
            wrong("skip-replay"),
            wrong("reuse-partial-after-key-change"),
        ],
    },
    Row {
        name: "kill-both",
        about: "kill -9 of both, in any order",
        run: kills::both,
        planted: &[wrong("settle-on-send"), wrong("forget-pending-after-restart"), wrong("skip-replay")],
    },
    Row {
        name: "network",
        about: "connections cut, refused or half-open; a slow link whose bytes come late and in other pieces",
        run: network::trouble,
        planted: &[wrong("settle-on-send"), Planted { name: "copy-again", kinds: &[Kind::FullSync] }],
    },
    Row {
        name: "stream",
        about: "the stream cut or a bit of it flipped at a random byte, on the wire and in the journal",
        run: network::stream,
        planted: &[wrong("no-crc-check")],
    },
    Row {
        name: "storage",
        about: "disk full and I/O errors on volume, journal and sidecar; a small journal; the agent's pinned state lost",
        run: storage::trouble,
        planted: &[wrong("cover-without-compare")],
    },
    Row {
        name: "kill-freezer",
        about: "kill -9 or stop of the agent, its watchdog or both while a filesystem is frozen",
        run: freezer::trouble,
        planted: &[not_thawed("no-watchdog"), not_thawed("thaw-late"), not_thawed("send-while-frozen")],
    },
];

/// A bug of the conductor itself: it stops the watchdog, as if there were none.
const NO_WATCHDOG: &str = "no-watchdog";

/// Slow enough that a fault falls into what is under way, fast enough for what is written.
fn narrow(bed: &mut Bed<'_>) {
    let least = if bed.work() == Work::Files { 6 << 20 } else { 3 << 20 };
    let (rate, delay) = (least + bed.random.below(8 << 20), Duration::from_micros(bed.random.below(1000)));
    bed.network.set_quality(Quality { rate: Some(rate), delay, ..Quality::default() });
}
