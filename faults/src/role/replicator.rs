//! The replicator's side: the engine over the run's volumes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rehost_link::transport::ServerTls;
use rehost_model::Epoch;
use rehost_model::link::{DataKey, ServerReport};
use rehost_model::replicator::Assignment;
use rehost_protocol::ByteCount;
use rehost_replicator::engine::{Engine, EngineConfig};
use serde::{Deserialize, Serialize};

use super::{Speaker, log_warnings, orders};
use crate::spec::{Spec, identity};

/// What a session may have under way unacknowledged.
pub(crate) const WINDOW_BYTES: u64 = 128 << 10;
const KEEP_ALIVE: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(3);

/// What it says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) port: u16,
    pub(crate) report: Option<ServerReport>,
}

/// Serves until its input ends. `key` is the number of the data key in use.
pub(crate) fn run(folder: &Path, key: u8) -> Result<()> {
    log_warnings();
    let spec = Spec::load(folder)?;
    let engine = Engine::new(config(folder, &spec)?)?;
    engine.set_data_keys(BTreeMap::from([(spec.server.clone(), DataKey([key; 32]))]));
    engine.set_assignments(assignments(&spec))?;
    let (orders, mut speaker) = (orders(), Speaker::new());
    loop {
        let report = engine.report().into_iter().find(|report| report.server == spec.server);
        speaker.say(&Status { port: engine.address().port(), report })?;
        match orders.recv_timeout(LOOK) {
            Ok(order) => obey(&engine, &spec, &order)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn config(folder: &Path, spec: &Spec) -> Result<EngineConfig> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = EngineConfig::new(listen, ServerTls::new(identity(folder, "replicator")?)?);
    config.state_dir = Some(folder.join("home"));
    config.keep_alive = KEEP_ALIVE;
    config.window = ByteCount(WINDOW_BYTES);
    config.journal_bytes = spec.journal_bytes;
    config.timeouts.idle = spec.silence();
    config.timeouts.handshake = 2 * spec.silence();
    config.timeouts.write = Some(spec.silence());
    Ok(config)
}

fn assignments(spec: &Spec) -> Vec<Assignment> {
    let assign = |disk: &crate::spec::DiskSpec| Assignment {
        server: spec.server.clone(),
        volume: disk.volume.clone(),
        size_bytes: disk.size_bytes,
        location: disk.target.display().to_string(),
        initialized: false,
    };
    spec.disks.iter().map(assign).collect()
}

fn obey(engine: &Engine, spec: &Spec, order: &str) -> Result<()> {
    match order.split_once(' ') {
        Some(("release", epoch)) => {
            let epoch = Epoch(epoch.parse().context("an epoch")?);
            engine.release_hold(&spec.server, epoch);
            Ok(())
        }
        _ => bail!("no such order: {order}"),
    }
}
