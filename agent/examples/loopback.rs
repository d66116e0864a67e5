//! Measures both sides of an initial sync, a digest pass and a checkpoint over loopback, within one process.
//!
//! `cargo run --release -p rehost-agent --example loopback -- SOURCE TARGET`
//! Prints one line of JSON for each phase: wall seconds, CPU seconds of both sides, payload bytes, peak memory.

use std::{
    error::Error,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rehost_agent::sync::{DiskSource, Machine, SyncConfig, SyncControl, SyncLoop};
use rehost_link::transport::{ClientTls, ServerTls, Timeouts, TlsIdentity};
use rehost_model::{
    Epoch, ServerId, VolumeId,
    link::ServerReport,
    region::{REPLICATOR_ROLE, SERVER_URI, VOLUME_URI},
    replicator::Assignment,
};
use rehost_protocol::DiskIndex;
use rehost_replicator::engine::{Engine, EngineConfig};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(source), Some(target)) = (arguments.next(), arguments.next()) else {
        return Err("usage: loopback SOURCE TARGET".into());
    };
    let size_bytes = std::fs::metadata(&source)?.len();
    File::create(&target)?.set_len(size_bytes)?;
    let (server, volume) = (ServerId::generate(), VolumeId::generate());
    let (client, served) = certificates(&server, &volume)?;
    let engine = Engine::new(EngineConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), served))?;
    let location = target.display().to_string();
    let assignment =
        Assignment { server: server.clone(), volume: volume.clone(), size_bytes, location, initialized: false };
    engine.set_assignments(vec![assignment])?;
    let config = SyncConfig {
        addresses: vec![engine.address().to_string()],
        tls: client,
        server: server.clone(),
        disks: vec![DiskSource { index: DiskIndex(0), path: source.clone(), volume, size_bytes }],
        timeouts: Timeouts::default(),
        machine: Machine::untracked(),
    };
    measure(&engine, &config, size_bytes)?;
    engine.shutdown();
    let same = same_bytes(&source, &target)?;
    println!("{{\"identical\":{same}}}");
    if same { Ok(()) } else { Err("the copy differs".into()) }
}

fn measure(engine: &Engine, config: &SyncConfig, size: u64) -> Outcome<()> {
    let control = Arc::new(SyncControl::new());
    let (agent_config, agent_control) = (config.clone(), control.clone());
    let start = Sample::take()?;
    let agent = thread::spawn(move || SyncLoop::run(&agent_config, &agent_control));
    wait_for(engine, |report| report.volumes.iter().all(|volume| volume.synced_bytes == size));
    let synced = Sample::take()?;
    synced.print("initial sync", &start, control.progress().sent_bytes);
    control.request_checkpoint(Epoch(1));
    wait_for(engine, |report| report.checkpoint == Epoch(1));
    Sample::take()?.print("digest pass", &synced, control.progress().sent_bytes);
    control.stop();
    agent.join().map_err(|_| "the agent's thread failed")?;
    Ok(())
}

fn wait_for(engine: &Engine, done: impl Fn(&ServerReport) -> bool) {
    while !engine.report().iter().all(&done) {
        thread::sleep(Duration::from_millis(2));
    }
}

/// What the process has used so far.
struct Sample {
    at: Instant,
    cpu_seconds: f64,
    peak_kib: u64,
}

impl Sample {
    fn take() -> Outcome<Self> {
        // Fields 14 and 15 of /proc/self/stat, counted after the name: user and system time in ticks of 10 ms.
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
        let status = std::fs::read_to_string("/proc/self/status")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok());
        let cpu_seconds = (ticks(11) + ticks(12)) / 100.0;
        Ok(Self { at: Instant::now(), cpu_seconds, peak_kib: peak.unwrap_or(0) })
    }

    fn print(&self, phase: &str, since: &Self, sent_bytes: u64) {
        let wall = self.at.duration_since(since.at).as_secs_f64();
        let cpu = self.cpu_seconds - since.cpu_seconds;
        let peak = self.peak_kib;
        println!(
            "{{\"phase\":\"{phase}\",\"wall_s\":{wall:.3},\"cpu_s\":{cpu:.2},\"sent_bytes\":{sent_bytes},\"peak_kib\":{peak}}}"
        );
    }
}

fn certificates(server: &ServerId, volume: &VolumeId) -> Outcome<(ClientTls, ServerTls)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let issue = |names: Vec<SanType>| -> Outcome<TlsIdentity> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &ca)?;
        Ok(TlsIdentity::from_pem(&certificate.pem(), &key.serialize_pem(), &ca.pem())?)
    };
    let uri = |text: String| -> Outcome<SanType> { Ok(SanType::URI(text.as_str().try_into()?)) };
    let client = issue(vec![uri(format!("{SERVER_URI}{server}"))?, uri(format!("{VOLUME_URI}{volume}"))?])?;
    let served = issue(vec![SanType::DnsName(REPLICATOR_ROLE.try_into()?)])?;
    Ok((ClientTls::new(client, REPLICATOR_ROLE)?, ServerTls::new(served)?))
}

/// Compares in pieces: an image need not fit into memory.
fn same_bytes(one: &Path, other: &Path) -> Outcome<bool> {
    use std::io::Read;
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        let part = right.get_mut(..count).unwrap_or_default();
        other.read_exact(part)?;
        if left.get(..count) != Some(part) {
            return Ok(false);
        }
    }
}
