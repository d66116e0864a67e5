//! Our two sides: the engines of the agent and of the replicator, each in a process of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rehost_agent::sync::{DiskSource, Machine, Progress, SyncConfig, SyncControl, SyncEnd, SyncError, SyncSession};
use rehost_agent::tracker::TrackerOptions;
use rehost_control::authority::{Authority, Subject};
use rehost_link::transport::{ClientTls, ServerTls, Timeouts, TlsIdentity};
use rehost_model::link::{AgentPhase, CheckpointSettings, DataKey};
use rehost_model::region::REPLICATOR_ROLE;
use rehost_model::replication::{ReplicatedDisk, TrackerKind};
use rehost_model::replicator::Assignment;
use rehost_model::{Epoch, ReplicatorId, ServerId, Timestamp, VolumeId};
use rehost_protocol::DiskIndex;
use rehost_replicator::engine::{Engine, EngineConfig};

use crate::image::IMAGE_BYTES;
use crate::measure::{Measured, Timed};

const LIMIT: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(5);
/// The same where the looking would be seen in the figures: an agent looks once a second.
const LOOK_SELDOM: Duration = Duration::from_millis(25);

/// Syncs `image` once; `folder` is made and holds everything.
pub(crate) fn measure(image: &Path, folder: &Path) -> Result<Measured> {
    prepare(image, folder)?;
    let this = std::env::current_exe()?;
    let text = folder.to_str().context("a folder with a plain name")?;
    let receiver = Timed::start(&folder.join("receive.time"), &this, &["receive", text])?;
    wait_for(&folder.join("port"))?;
    let started = Instant::now();
    let sender = Timed::start(&folder.join("send.time"), &this, &["send", text])?;
    let sent = sender.finish(false)?;
    let wall_seconds = started.elapsed().as_secs_f64();
    let received = receiver.finish(false)?;
    let wire: f64 = fs::read_to_string(folder.join("sent"))?.trim().parse()?;
    compare(image, &folder.join("target.img"))?;
    fs::remove_file(folder.join("target.img"))?;
    Ok(Measured {
        cpu_seconds: sent.cpu_seconds + received.cpu_seconds,
        wall_seconds,
        sender_peak_mib: sent.peak_mib,
        receiver_peak_mib: received.peak_mib,
        wire_mb: Some(wire / 1e6),
    })
}

/// Ids, certificates and an empty target.
pub(crate) fn prepare(image: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    std::os::unix::fs::symlink(image, folder.join("source.img"))?;
    File::create(folder.join("target.img"))?.set_len(IMAGE_BYTES)?;
    let authority = Authority::generate()?;
    let (server, volume) = (ServerId::generate(), VolumeId::generate());
    fs::write(folder.join("ids"), format!("{server} {volume}"))?;
    fs::write(folder.join("ca.pem"), authority.certificate_pem())?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let since = Timestamp::from_unix_ms(i64::try_from(now.as_millis())? - 60_000);
    for (name, subject) in [
        ("agent", Subject::Agent { server, volumes: vec![volume] }),
        ("replicator", Subject::Replicator { id: ReplicatorId::generate() }),
    ] {
        let (issued, key) = authority.issue_with_key(&subject, since, 1)?;
        fs::write(folder.join(format!("{name}.pem")), issued.certificate_pem)?;
        let key = rcgen::KeyPair::try_from(key.as_slice())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

fn identity(folder: &Path, name: &str) -> Result<TlsIdentity> {
    let read = |file: String| fs::read_to_string(folder.join(&file)).with_context(|| format!("read {file}"));
    let identity = TlsIdentity::from_pem(
        &read(format!("{name}.pem"))?,
        &read(format!("{name}.key"))?,
        &read("ca.pem".to_owned())?,
    )?;
    Ok(identity)
}

fn ids(folder: &Path) -> Result<(ServerId, VolumeId)> {
    let text = fs::read_to_string(folder.join("ids"))?;
    let (server, volume) = text.split_once(' ').context("two ids")?;
    Ok((server.parse()?, volume.parse()?))
}

/// Starts the replicator's engine, with the journal that it has in earnest.
fn serve(folder: &Path) -> Result<Engine> {
    let (server, volume) = ids(folder)?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let engine = Engine::new(EngineConfig::new(listen, ServerTls::new(identity(folder, "replicator")?)?))?;
    let location = folder.join("target.img").display().to_string();
    let assignment =
        Assignment { server: server.clone(), volume, size_bytes: IMAGE_BYTES, location, initialized: false };
    engine.set_data_keys(BTreeMap::from([(server, DataKey([7; 32]))]));
    engine.set_assignments(vec![assignment])?;
    fs::write(folder.join("port.new"), engine.address().port().to_string())?;
    fs::rename(folder.join("port.new"), folder.join("port"))?;
    Ok(engine)
}

/// The replicator's side: serves until the whole first copy is durable.
pub(crate) fn receive(folder: &Path) -> Result<()> {
    let (server, _) = ids(folder)?;
    let engine = serve(folder)?;
    let started = Instant::now();
    let complete = || {
        let mut reports = engine.report().into_iter().filter(|report| report.server == server);
        reports.any(|report| report.volumes.iter().all(|volume| volume.synced_bytes == IMAGE_BYTES))
    };
    while !complete() {
        ensure!(started.elapsed() < LIMIT, "the first copy was not complete within {LIMIT:?}");
        thread::sleep(LOOK);
    }
    // The sender ends the session when it has heard of it.
    while engine.report().iter().any(|report| report.connected) && started.elapsed() < LIMIT {
        thread::sleep(LOOK);
    }
    Ok(())
}

/// The agent's side: sends until everything is acknowledged.
pub(crate) fn send(folder: &Path) -> Result<()> {
    let (control, engine) = start(folder, Machine::untracked())?;
    // Idle means that everything was handed over; it counts when it is acknowledged, durable.
    let acknowledged = |disk: &ReplicatedDisk| disk.replicated_storage_bytes == disk.total_storage_bytes;
    let complete = |progress: &Progress| progress.phase == AgentPhase::Idle && progress.disks.iter().all(acknowledged);
    while !complete(&control.progress()) && !engine.is_finished() {
        thread::sleep(LOOK);
    }
    fs::write(folder.join("sent"), control.progress().sent_bytes.to_string())?;
    control.stop();
    engine.join().map_err(|_| anyhow!("the engine panicked"))??;
    Ok(())
}

pub(crate) fn wait_for(file: &Path) -> Result<()> {
    let started = Instant::now();
    while !file.exists() {
        ensure!(started.elapsed() < LIMIT, "{} did not appear", file.display());
        thread::sleep(LOOK);
    }
    Ok(())
}

type Running = thread::JoinHandle<Result<SyncEnd, SyncError>>;

/// Starts the agent's engine.
fn start(folder: &Path, machine: Arc<Machine>) -> Result<(Arc<SyncControl>, Running)> {
    let (server, volume) = ids(folder)?;
    let port: u16 = fs::read_to_string(folder.join("port"))?.trim().parse()?;
    let path = fs::canonicalize(folder.join("source.img"))?;
    let config = SyncConfig {
        addresses: vec![format!("127.0.0.1:{port}")],
        tls: ClientTls::new(identity(folder, "agent")?, REPLICATOR_ROLE)?,
        server,
        disks: vec![DiskSource { index: DiskIndex(0), path, volume, size_bytes: IMAGE_BYTES }],
        timeouts: Timeouts::default(),
        machine,
    };
    let control = Arc::new(SyncControl::new());
    // Only what is asked for.
    control.set_checkpoints(CheckpointSettings { interval_ms: u64::from(u32::MAX), ..CheckpointSettings::default() });
    let shared = control.clone();
    Ok((control, thread::spawn(move || SyncSession::run(&config, &shared))))
}

/// The replicator's side of a delta: serves until it is ended, and releases every hold.
pub(crate) fn receive_delta(folder: &Path) -> Result<()> {
    let (server, _) = ids(folder)?;
    let engine = serve(folder)?;
    loop {
        for held in engine.report().into_iter().filter_map(|report| report.held) {
            engine.release_hold(&server, held);
        }
        thread::sleep(LOOK_SELDOM);
    }
}

/// The checkpoints that deltas end with; the one before them ends the first copy.
pub(crate) const DELTA_EPOCHS: std::ops::RangeInclusive<u64> = 2..=4;

/// The agent's side of deltas: a checkpoint after the first copy, and the others when it is told.
pub(crate) fn send_delta(folder: &Path) -> Result<()> {
    let (server, _) = ids(folder)?;
    let bpffs = folder.join("bpf");
    fs::create_dir_all(&bpffs)?;
    let options = TrackerOptions { server, bpffs, map_bytes: 8 << 20 };
    let (control, engine) = start(folder, Machine::tracked(Box::new(options.clone())))?;
    for epoch in std::iter::once(1).chain(DELTA_EPOCHS) {
        if DELTA_EPOCHS.contains(&epoch) {
            wait_for(&folder.join(format!("go-{epoch}")))?;
        }
        control.request_checkpoint(Epoch(epoch));
        while control.progress().reached < Epoch(epoch) && !engine.is_finished() {
            thread::sleep(LOOK_SELDOM);
        }
        ensure!(control.progress().tracker != Some(TrackerKind::Rescan), "{:?}", control.progress().trackers);
        let new = folder.join("reached.new");
        fs::write(&new, control.progress().sent_bytes.to_string())?;
        fs::rename(&new, folder.join(format!("reached-{epoch}")))?;
    }
    wait_for(&folder.join("done"))?;
    control.stop();
    engine.join().map_err(|_| anyhow!("the engine panicked"))??;
    Ok(rehost_agent::tracker::forget(&options)?)
}

/// A benchmark of something that copies wrongly is worth nothing.
pub(crate) fn compare(source: &Path, target: &Path) -> Result<()> {
    let status = std::process::Command::new("cmp").arg(source).arg(target).status()?;
    ensure!(status.success(), "{} differs from {}", target.display(), source.display());
    Ok(())
}
