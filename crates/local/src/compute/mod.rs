//! `Compute` on one machine: volumes and snapshots are sparse files, instances are QEMU machines, replication servers are
//! processes; all of them outlive `rehost serve` and are found again by it.
//!
//! Everything blocks (files, processes), so it lives in [`Engine`], which is synchronous; [`LocalCompute`] moves each call to a thread
//! for blocking work. A caller that goes away does not cut a call off: it is finished, and the same client token finds its result.

mod accel;
mod assets;
mod conversion;
mod copy;
mod files;
mod layout;
mod locks;
mod machine;
mod probe;
mod process;
mod qemu;
mod qmp;
mod replicator;
mod start;
mod supervise;
mod tokens;
mod volumes;

#[cfg(test)]
mod contract_tests;
#[cfg(test)]
mod qemu_tests;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rehost_control::PortError;
use rehost_control::ports::{
    ClientToken, Compute, ConversionProgress, ConversionSpec, Instance, InstanceSpec, PortResult,
    ReplicationServerSpec, SnapshotState, TaggedResource, Tags, VolumeSpec,
};
use rehost_model::launch::{Probe, ProbeOutcome};
use rehost_model::ledger::{ResourceKind, SERVER_TAG};
use rehost_model::region::REPLICATION_PORT;
use rehost_model::{InstanceId, ServerId, SnapshotId, Timestamp, VolumeId};

pub use accel::Accelerator;
pub use assets::{ConversionAssets, default_cache, prepare};

/// How often instances are looked after.
const LOOK_AFTER_EVERY: Duration = Duration::from_millis(500);

/// After so many rounds, what nobody will ask for any more is forgotten: about an hour.
const ROUNDS_PER_SWEEP: u64 = 7200;

/// What the local region's compute needs to know.
#[derive(Debug, Clone)]
pub struct LocalComputeConfig {
    /// The region's home.
    pub home: PathBuf,
    /// `rehost-replicator`.
    pub replicator_binary: PathBuf,
    /// `rehost-converter`, static.
    pub converter_binary: PathBuf,
    /// URL under which replicators reach the control plane, such as `https://127.0.0.1:8443`.
    pub control_endpoint: String,
    /// `sha256:HEX` of the region's CA certificate.
    pub ca_fingerprint: String,
    /// Where replicators listen.
    pub replication_listen: IpAddr,
    /// The first replicator's port; others get free ones.
    pub replication_port_first: u16,
    /// How long a replicator holds volumes still for a snapshot.
    pub hold_timeout_seconds: u64,
    /// Where the kernel of conversion machines is kept.
    pub conversion_cache: PathBuf,
    /// `None`: KVM where a probe boot works, else emulation.
    pub accelerator: Option<Accelerator>,
}

impl LocalComputeConfig {
    /// The usual configuration: replicators on the loopback interface from port 1500 on, holds of 10 minutes.
    #[must_use]
    pub fn new(
        home: PathBuf,
        replicator_binary: PathBuf,
        converter_binary: PathBuf,
        control_endpoint: String,
        ca_fingerprint: String,
    ) -> Self {
        Self {
            home,
            replicator_binary,
            converter_binary,
            control_endpoint,
            ca_fingerprint,
            replication_listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            replication_port_first: REPLICATION_PORT,
            hold_timeout_seconds: 600,
            conversion_cache: default_cache(),
            accelerator: None,
        }
    }
}

/// `Compute` of the local region. Clones share everything; one process at a time may open a home.
#[derive(Debug, Clone)]
pub struct LocalCompute {
    engine: Arc<Engine>,
}

/// Does the work, on the calling thread.
#[derive(Debug)]
struct Engine {
    config: LocalComputeConfig,
    layout: layout::Layout,
    tokens: tokens::Tokens,
    locks: locks::NamedLocks,
    restarts: Mutex<replicator::Restarts>,
}

impl LocalCompute {
    /// Opens the compute part of a region's home: makes its directories, removes what an interrupted run left half-done and
    /// finishes the terminations it had begun. Running instances are left as they are.
    ///
    /// # Errors
    /// When the home cannot be written, or its path is not UTF-8.
    pub fn open(config: LocalComputeConfig) -> PortResult<Self> {
        let engine = Engine::open(config)?;
        Ok(Self { engine: Arc::new(engine) })
    }

    /// Looks after the instances for ever: starts replication servers again that died, ends conversions that hang, bounds consoles.
    /// To be run beside the server; it may be dropped at any time.
    pub async fn supervise(&self) {
        let mut round: u64 = 0;
        loop {
            let sweep = round.is_multiple_of(ROUNDS_PER_SWEEP);
            let done = self.blocking(move |engine| {
                engine.look_after_instances();
                if sweep { engine.sweep() } else { Ok(()) }
            });
            if let Err(error) = done.await {
                tracing::warn!(%error, "supervision of the local region's instances");
            }
            round += 1;
            tokio::time::sleep(LOOK_AFTER_EVERY).await;
        }
    }

    /// Fetches what conversion machines are made of, if it is not there yet. The first conversion does so by itself.
    ///
    /// # Errors
    /// Says what this host lacks and how to get it.
    pub async fn prepare_conversion_assets(&self) -> PortResult<ConversionAssets> {
        self.blocking(|engine| engine.prepare_assets()).await
    }

    /// How machines are run here; found out by a probe boot the first time.
    ///
    /// # Errors
    /// When the decision cannot be written down.
    pub async fn accelerator(&self) -> PortResult<Accelerator> {
        self.blocking(|engine| engine.accelerator()).await
    }

    async fn blocking<T, F>(&self, work: F) -> PortResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Engine) -> PortResult<T> + Send + 'static,
    {
        let engine = Arc::clone(&self.engine);
        let done = tokio::task::spawn_blocking(move || work(&engine)).await;
        done.map_err(|e| PortError::unavailable(format!("the local region's compute was interrupted: {e}")))?
    }
}

impl Engine {
    fn open(mut config: LocalComputeConfig) -> PortResult<Self> {
        files::make_directory(&config.home)?;
        let home = config.home.canonicalize().map_err(|e| files::io_error("open", &config.home, &e))?;
        if home.to_str().is_none() {
            return Err(PortError::invalid(format!(
                "the path {} is not UTF-8: move the region's home",
                home.display()
            )));
        }
        config.home.clone_from(&home);
        let layout = layout::Layout::create(&home)?;
        let tokens = tokens::Tokens::new(layout.tokens());
        let engine = Self { config, layout, tokens, locks: locks::NamedLocks::default(), restarts: Mutex::default() };
        engine.clean_up()?;
        Ok(engine)
    }

    fn clean_up(&self) -> PortResult<()> {
        for directory in
            [self.layout.volumes(), self.layout.snapshots(), self.layout.tokens(), self.layout.terminated()]
        {
            files::remove_partial(&directory)?;
        }
        self.remove_empty_instances()?;
        self.finish_terminations()
    }

    fn tagged_resources(&self, server: Option<&ServerId>) -> PortResult<Vec<TaggedResource>> {
        let volumes = self.volumes()?.into_iter().map(|v| (ResourceKind::Volume, v.id.to_string(), v.tags));
        let snapshots = self.snapshots()?.into_iter().map(|s| (ResourceKind::Snapshot, s.id.to_string(), s.tags));
        let machines = self.machines()?.into_iter().map(|m| (ResourceKind::Instance, m.id.to_string(), m.tags));
        let wanted = |tags: &Tags| match (tags.get(SERVER_TAG), server) {
            (Some(tag), Some(server)) => tag == server.as_str(),
            (tag, None) => tag.is_some(),
            (None, Some(_)) => false,
        };
        let all = volumes.chain(snapshots).chain(machines).filter(|(_, _, tags)| wanted(tags));
        Ok(all.map(|(kind, id, tags)| TaggedResource { kind, id, tags }).collect())
    }
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

#[async_trait]
impl Compute for LocalCompute {
    async fn launch_replication_server(
        &self,
        spec: &ReplicationServerSpec,
        token: &ClientToken,
    ) -> PortResult<InstanceId> {
        let (spec, token) = (spec.clone(), token.clone());
        self.blocking(move |engine| engine.launch_replication_server(&spec, &token)).await
    }

    async fn create_volume(&self, spec: &VolumeSpec, token: &ClientToken) -> PortResult<VolumeId> {
        let (spec, token) = (spec.clone(), token.clone());
        self.blocking(move |engine| engine.create_volume(&spec, &token)).await
    }

    async fn delete_volume(&self, volume: &VolumeId) -> PortResult<()> {
        let volume = volume.clone();
        self.blocking(move |engine| engine.delete_volume(&volume)).await
    }

    async fn modify_volume(&self, volume: &VolumeId, size_bytes: u64) -> PortResult<()> {
        let volume = volume.clone();
        self.blocking(move |engine| engine.modify_volume(&volume, size_bytes)).await
    }

    async fn attach_volume(&self, volume: &VolumeId, replication_server: &InstanceId) -> PortResult<String> {
        let (volume, instance) = (volume.clone(), replication_server.clone());
        self.blocking(move |engine| engine.attach_volume(&volume, &instance)).await
    }

    async fn detach_volume(&self, volume: &VolumeId, replication_server: &InstanceId) -> PortResult<()> {
        let (volume, instance) = (volume.clone(), replication_server.clone());
        self.blocking(move |engine| engine.detach_volume(&volume, &instance)).await
    }

    async fn create_snapshots(
        &self,
        volumes: &[VolumeId],
        tags: &Tags,
        token: &ClientToken,
    ) -> PortResult<Vec<SnapshotId>> {
        let (volumes, tags, token) = (volumes.to_vec(), tags.clone(), token.clone());
        self.blocking(move |engine| engine.create_snapshots(&volumes, &tags, &token)).await
    }

    async fn snapshot_state(&self, snapshot: &SnapshotId) -> PortResult<SnapshotState> {
        let snapshot = snapshot.clone();
        self.blocking(move |engine| engine.snapshot_state(&snapshot)).await
    }

    async fn read_snapshot(&self, snapshot: &SnapshotId, offset: u64, length: usize) -> PortResult<Vec<u8>> {
        let snapshot = snapshot.clone();
        self.blocking(move |engine| engine.read_snapshot(&snapshot, offset, length)).await
    }

    async fn delete_snapshot(&self, snapshot: &SnapshotId) -> PortResult<()> {
        let snapshot = snapshot.clone();
        self.blocking(move |engine| engine.delete_snapshot(&snapshot)).await
    }

    async fn start_conversion(&self, spec: &ConversionSpec, token: &ClientToken) -> PortResult<InstanceId> {
        let (spec, token) = (spec.clone(), token.clone());
        self.blocking(move |engine| engine.start_conversion(&spec, &token)).await
    }

    async fn conversion_progress(&self, conversion_server: &InstanceId) -> PortResult<ConversionProgress> {
        let id = conversion_server.clone();
        self.blocking(move |engine| engine.conversion_progress(&id)).await
    }

    async fn run_instance(&self, spec: &InstanceSpec, token: &ClientToken) -> PortResult<InstanceId> {
        let (spec, token) = (spec.clone(), token.clone());
        self.blocking(move |engine| engine.run_instance(&spec, &token)).await
    }

    async fn instance(&self, id: &InstanceId) -> PortResult<Option<Instance>> {
        let id = id.clone();
        self.blocking(move |engine| engine.instance(&id)).await
    }

    async fn console_output(&self, id: &InstanceId) -> PortResult<String> {
        let id = id.clone();
        self.blocking(move |engine| engine.console_output(&id)).await
    }

    async fn probe(&self, id: &InstanceId, probe: &Probe) -> PortResult<ProbeOutcome> {
        let (id, wanted) = (id.clone(), probe.clone());
        let target = self.blocking(move |engine| engine.probe_target(&id, &wanted)).await?;
        Ok(probe::attempt(target, probe).await)
    }

    async fn terminate_instance(&self, id: &InstanceId) -> PortResult<()> {
        let id = id.clone();
        self.blocking(move |engine| engine.terminate_instance(&id)).await
    }

    async fn tagged_resources(&self, server: Option<&ServerId>) -> PortResult<Vec<TaggedResource>> {
        let server = server.cloned();
        self.blocking(move |engine| engine.tagged_resources(server.as_ref())).await
    }
}
