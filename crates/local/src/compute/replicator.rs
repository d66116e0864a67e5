//! Replication servers: `rehost-replicator run` as a process of its own, which outlives `rehost serve` and is started again,
//! with the same configuration, whenever it has died.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rehost_control::PortError;
use rehost_control::ports::{ClientToken, PortResult, ReplicationServerSpec};
use rehost_model::{InstanceId, ReplicatorId};
use serde::{Deserialize, Serialize};

use super::machine::{Life, Machine, MachineKind};
use super::process;
use super::tokens::Made;
use super::volumes::only;
use super::{Engine, files, now};

/// Names in a replicator's folder.
pub(super) const CONFIG: &str = "config.json";
pub(super) const LOG: &str = "replicator.log";
const STATE: &str = "state";

/// The first and the longest wait before a replicator that died is started again.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// One that ran this long is sound: its next death is not counted with earlier ones.
const SOUND_AFTER: Duration = Duration::from_secs(60);

/// So many ports after the first are tried before any other.
const NEIGHBOURS: u16 = 64;

/// What `rehost-replicator run --config` reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReplicatorConfig {
    #[serde(rename = "replicatorID")]
    replicator_id: ReplicatorId,
    /// A secret.
    enrol_token: String,
    control_endpoint: String,
    ca_fingerprint: String,
    listen: SocketAddr,
    state_dir: String,
    hold_timeout_seconds: u64,
}

/// When a replicator was started again and when it may be the next time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Restart {
    wait: Duration,
    started: Instant,
}

/// The restarts of replicators that died; of no use after a restart of `rehost serve` itself.
pub(super) type Restarts = HashMap<InstanceId, Restart>;

impl Engine {
    /// See [`rehost_control::ports::Compute::launch_replication_server`].
    pub(super) fn launch_replication_server(
        &self,
        spec: &ReplicationServerSpec,
        token: &ClientToken,
    ) -> PortResult<InstanceId> {
        let _token = self.locks.lock(token.as_str());
        let reserved = self.tokens.reserve(token, Made::ReplicationServer, 1, InstanceId::generate)?;
        let id = only(reserved.ids)?;
        if reserved.completed {
            return Ok(id);
        }
        let machine = match self.machine(&id)? {
            Some(machine) => machine,
            None => self.register_replicator(&id, spec)?,
        };
        if !machine.terminating {
            self.configure(&machine, spec)?;
            self.start_or_forget(&machine)?;
        }
        self.tokens.complete(token)?;
        Ok(id)
    }

    fn register_replicator(&self, id: &InstanceId, spec: &ReplicationServerSpec) -> PortResult<Machine> {
        let _choosing = self.locks.lock("ports of replicators");
        let listen = self.free_address()?;
        let machine = Machine {
            id: id.clone(),
            kind: MachineKind::Replication { replicator: spec.id.clone(), listen },
            volumes: Vec::new(),
            tags: spec.tags.clone(),
            created: now(),
            terminating: false,
        };
        self.record(&machine)?;
        Ok(machine)
    }

    /// The first port if it is free, else one near it, else any. It is kept for good: agents know it.
    fn free_address(&self) -> PortResult<SocketAddr> {
        let taken: Vec<SocketAddr> = self.machines()?.iter().filter_map(listen_address).collect();
        let (host, first) = (self.config.replication_listen, self.config.replication_port_first);
        let near = (first..=first.saturating_add(NEIGHBOURS)).map(|port| SocketAddr::new(host, port));
        let is_free = |address: &SocketAddr| !taken.contains(address) && TcpListener::bind(address).is_ok();
        if let Some(address) = near.into_iter().find(is_free) {
            return Ok(address);
        }
        let any = TcpListener::bind((host, 0)).and_then(|listener| listener.local_addr());
        any.map_err(|e| PortError::unavailable(format!("no port on {host} is free for a replication server: {e}")))
    }

    fn configure(&self, machine: &Machine, spec: &ReplicationServerSpec) -> PortResult<()> {
        let MachineKind::Replication { replicator, listen } = &machine.kind else { return Ok(()) };
        let folder = self.layout.replicator(replicator);
        let state = folder.join(STATE);
        files::make_directory(&state)?;
        let config = ReplicatorConfig {
            replicator_id: replicator.clone(),
            enrol_token: spec.enrol_token.clone(),
            control_endpoint: self.config.control_endpoint.clone(),
            ca_fingerprint: self.config.ca_fingerprint.clone(),
            listen: *listen,
            state_dir: state.display().to_string(),
            hold_timeout_seconds: self.config.hold_timeout_seconds,
        };
        files::write_json(&folder.join(CONFIG), &config)
    }

    pub(super) fn start_replicator(&self, machine: &Machine) -> PortResult<()> {
        let MachineKind::Replication { replicator, .. } = &machine.kind else {
            return Err(PortError::invalid(format!("{} is no replication server", machine.id)));
        };
        let folder = self.layout.replicator(replicator);
        let log = folder.join(LOG);
        let failed = |e| files::io_error("write", &log, &e);
        let output = OpenOptions::new().create(true).append(true).open(&log).map_err(failed)?;
        let errors = output.try_clone().map_err(failed)?;
        files::remove_file(&self.process_file(&machine.id))?;
        let program = &self.config.replicator_binary;
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(folder.join(CONFIG)).current_dir(&folder);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let process = process::spawn_detached(&mut command).map_err(|e| {
            let program = program.display();
            PortError::invalid(format!(
                "{program} cannot be started: {e}; put rehost-replicator beside the program rehost"
            ))
        })?;
        self.adopt(&machine.id, &process)
    }

    /// Starts a replicator again that has died, unless it did so just now.
    pub(super) fn keep_running(&self, machine: &Machine) -> PortResult<()> {
        if matches!(self.life(machine)?, Life::Running(_)) {
            return Ok(());
        }
        let _instance = self.locks.lock(machine.id.as_str());
        // It may have been terminated, or started, while this waited.
        let Some(machine) = self.machine(&machine.id)?.filter(|machine| !machine.terminating) else { return Ok(()) };
        if matches!(self.life(&machine)?, Life::Running(_)) || !self.may_restart(&machine.id) {
            return Ok(());
        }
        tracing::warn!(instance = %machine.id, "the replication server has died and is started again");
        self.start_replicator(&machine)
    }

    fn may_restart(&self, id: &InstanceId) -> bool {
        let mut restarts = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = match restarts.get(id) {
            None => FIRST_WAIT,
            Some(last) if last.started.elapsed() > SOUND_AFTER.max(last.wait) => FIRST_WAIT,
            Some(last) if last.started.elapsed() < last.wait => return false,
            Some(last) => (last.wait * 2).min(LONGEST_WAIT),
        };
        restarts.insert(id.clone(), Restart { wait, started: Instant::now() });
        true
    }
}

fn listen_address(machine: &Machine) -> Option<SocketAddr> {
    match &machine.kind {
        MachineKind::Replication { listen, .. } => Some(*listen),
        MachineKind::Copy { .. } | MachineKind::Conversion { .. } => None,
    }
}
