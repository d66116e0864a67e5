//! The agent's side: the sync loop over the run's disks.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rehost_agent::sync::{DiskSource, SyncConfig, SyncControl, SyncLoop};
use rehost_link::transport::{ClientTls, Timeouts};
use rehost_model::Epoch;
use rehost_model::link::{AgentPhase, ReportedError};
use rehost_model::region::REPLICATOR_ROLE;
use rehost_protocol::DiskIndex;
use serde::{Deserialize, Serialize};

use super::replicator::SILENCE;
use super::{Speaker, log_warnings, orders};
use crate::spec::{Spec, identity};

const LOOK: Duration = Duration::from_millis(3);

/// What it says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) phase: AgentPhase,
    pub(crate) reached: Epoch,
    pub(crate) error: Option<ReportedError>,
}

/// Replicates until its input ends.
pub(crate) fn run(folder: &Path) -> Result<()> {
    log_warnings();
    let spec = Spec::load(folder)?;
    let config = config(folder, &spec)?;
    let control = Arc::new(SyncControl::new());
    let engine = {
        let control = control.clone();
        thread::spawn(move || SyncLoop::run(&config, &control))
    };
    let (orders, mut speaker) = (orders(), Speaker::new());
    loop {
        speaker.say(&status(&control))?;
        match orders.recv_timeout(LOOK) {
            Ok(order) => obey(&control, &order)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    control.stop();
    engine.join().map_err(|_| anyhow!("the engine panicked"))?;
    Ok(())
}

fn config(folder: &Path, spec: &Spec) -> Result<SyncConfig> {
    let disk = |(index, disk): (usize, &crate::spec::DiskSpec)| {
        Ok::<_, anyhow::Error>(DiskSource {
            index: DiskIndex(u8::try_from(index)?),
            path: disk.source.clone(),
            volume: disk.volume.clone(),
            size_bytes: disk.size_bytes,
        })
    };
    Ok(SyncConfig {
        addresses: vec![format!("127.0.0.1:{}", spec.port)],
        tls: ClientTls::new(identity(folder, "agent")?, REPLICATOR_ROLE)?,
        server: spec.server.clone(),
        disks: spec.disks.iter().enumerate().map(disk).collect::<Result<_>>()?,
        timeouts: Timeouts { connect: SILENCE, handshake: 2 * SILENCE, idle: SILENCE, write: Some(4 * SILENCE) },
    })
}

fn status(control: &SyncControl) -> Status {
    let progress = control.progress();
    Status { phase: progress.phase, reached: progress.reached, error: control.error() }
}

fn obey(control: &SyncControl, order: &str) -> Result<()> {
    match order.split_once(' ') {
        Some(("checkpoint", epoch)) => {
            control.request_checkpoint(Epoch(epoch.parse().context("an epoch")?));
            Ok(())
        }
        _ => bail!("no such order: {order}"),
    }
}
