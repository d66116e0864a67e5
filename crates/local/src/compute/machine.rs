//! Instances of every kind: their records, what became of their processes, and their end.
//!
//! An instance is a folder with a record (written first) and, once it was started, its process's identity. Whether it runs is never
//! written down but looked up, so that a restart of `rehost serve` finds every instance as it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rehost_control::PortError;
use rehost_control::ports::{Instance, InstanceState, PortResult, Tags};
use rehost_model::conversion::ConversionReport;
use rehost_model::link::BootFirmware;
use rehost_model::region::REPLICATION_PORT;
use rehost_model::{InstanceId, ReplicatorId, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};

use super::process::{self, ProcessIdentity};
use super::{Engine, conversion, files, now, qemu, replicator};

/// How long a machine may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// How long it is still answered that an instance is terminated; ms. EC2 does so for about an hour.
const TERMINATED_KEPT_MS: u64 = 3_600_000;

/// At most this much of a console is shown; bytes.
const CONSOLE_SHOWN: usize = 64 << 10;

/// An instance's record, `machine.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Machine {
    pub(super) id: InstanceId,
    pub(super) kind: MachineKind,
    /// In the order of the source's disks.
    pub(super) volumes: Vec<VolumeId>,
    pub(super) tags: Tags,
    pub(super) created: Timestamp,
    /// It is being terminated: nothing starts it any more.
    pub(super) terminating: bool,
}

/// What an instance is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum MachineKind {
    Copy {
        firmware: BootFirmware,
        cpus: u64,
        memory_mib: u64,
        mac: String,
        /// Port of the guest → port of this host's loopback; the latter is 0 until the machine is started.
        ports: BTreeMap<u16, u16>,
        start: bool,
    },
    Conversion {
        /// The request, as an argument of the kernel.
        request: String,
    },
    Replication {
        replicator: ReplicatorId,
        listen: SocketAddr,
    },
}

/// What is kept of an instance for a while after its end.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Terminated {
    at: Timestamp,
    /// Of a conversion server: a step that was cut off asks for it again.
    pub(super) report: Option<ConversionReport>,
}

/// What became of an instance's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Life {
    NotStarted,
    Running(ProcessIdentity),
    Ended,
}

impl Engine {
    /// See [`rehost_control::ports::Compute::instance`].
    pub(super) fn instance(&self, id: &InstanceId) -> PortResult<Option<Instance>> {
        let Some(machine) = self.machine(id)? else {
            let state = InstanceState::Terminated;
            let terminated = self.terminated(id)?;
            return Ok(terminated.map(|_| described(id, state, BTreeMap::new(), Some("it was terminated".to_owned()))));
        };
        let life = self.life(&machine)?;
        let (state, reason) = match (&machine.kind, &life) {
            _ if machine.terminating => (InstanceState::ShuttingDown, None),
            (_, Life::Running(_)) => (InstanceState::Running, None),
            (MachineKind::Copy { start: false, .. }, Life::NotStarted) => (InstanceState::Stopped, None),
            (_, Life::NotStarted) => (InstanceState::Pending, None),
            // Supervision starts it again.
            (MachineKind::Replication { .. }, Life::Ended) => (InstanceState::Pending, Some(self.last_words(&machine))),
            (_, Life::Ended) => (InstanceState::Stopped, Some(self.last_words(&machine))),
        };
        Ok(Some(described(id, state, endpoints(&machine), reason)))
    }

    /// The record; `None` when there is no such instance (any more).
    pub(super) fn machine(&self, id: &InstanceId) -> PortResult<Option<Machine>> {
        files::read_json(&self.machine_file(id))
    }

    /// All instances that are not terminated.
    pub(super) fn machines(&self) -> PortResult<Vec<Machine>> {
        let names = files::names(&self.layout.instances())?;
        let ids: Vec<InstanceId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        ids.iter().filter_map(|id| self.machine(id).transpose()).collect()
    }

    /// [`Self::machines`] for work that must go on for the others when one record is damaged.
    pub(super) fn readable_machines(&self) -> Vec<Machine> {
        let names = files::names(&self.layout.instances()).unwrap_or_default();
        let ids = names.iter().filter_map(|name| name.parse::<InstanceId>().ok());
        ids.filter_map(|id| {
            self.machine(&id).unwrap_or_else(|error| {
                tracing::warn!(%error, instance = %id, "an instance is passed over");
                None
            })
        })
        .collect()
    }

    /// Writes the record (and its folder, at first).
    pub(super) fn record(&self, machine: &Machine) -> PortResult<()> {
        files::make_directory(&self.layout.instance(&machine.id))?;
        files::write_json(&self.machine_file(&machine.id), machine)
    }

    /// What became of the instance's process. One that was started by a `rehost serve` that was killed before it could write
    /// that down is found by its arguments.
    pub(super) fn life(&self, machine: &Machine) -> PortResult<Life> {
        match files::read_json::<ProcessIdentity>(&self.process_file(&machine.id))? {
            Some(process) if process.is_alive() => Ok(Life::Running(process)),
            Some(_) => Ok(Life::Ended),
            None => match self.find_process(machine) {
                Some(process) => self.adopt(&machine.id, &process).map(|()| Life::Running(process)),
                None => Ok(Life::NotStarted),
            },
        }
    }

    /// Notes that this process is the instance's.
    pub(super) fn adopt(&self, id: &InstanceId, process: &ProcessIdentity) -> PortResult<()> {
        files::write_json(&self.process_file(id), process)
    }

    /// Whether nobody else may write to or delete the volume because of this instance.
    pub(super) fn holds_volume(&self, machine: &Machine, volume: &VolumeId) -> bool {
        let ended = || matches!(self.life(machine), Ok(Life::Ended));
        let done = matches!(machine.kind, MachineKind::Conversion { .. }) && ended();
        machine.volumes.contains(volume) && !done
    }

    /// See [`rehost_control::ports::Compute::terminate_instance`].
    pub(super) fn terminate_instance(&self, id: &InstanceId) -> PortResult<()> {
        let _instance = self.locks.lock(id.as_str());
        let Some(machine) = self.machine(id)? else { return Ok(()) };
        let machine = Machine { terminating: true, ..machine };
        self.record(&machine)?;
        if let Life::Running(process) = self.life(&machine)?
            && !process.terminate(GRACE)
        {
            let message = format!("the process of {id} does not end, not even when killed: {process:?}");
            return Err(PortError::unavailable(message));
        }
        self.bury(&machine)
    }

    /// Removes what is left of an instance whose process has ended, and keeps for a while what may still be asked.
    fn bury(&self, machine: &Machine) -> PortResult<()> {
        let report = match &machine.kind {
            MachineKind::Conversion { .. } => conversion::report(&self.layout.instance(&machine.id)).ok(),
            MachineKind::Copy { .. } | MachineKind::Replication { .. } => None,
        };
        self.sync_volumes(&machine.volumes)?;
        files::write_json(&self.terminated_file(&machine.id), &Terminated { at: now(), report })?;
        self.detach_all(&machine.id)?;
        self.remove_folders(machine)
    }

    /// Removes everything of an instance but its volumes; the record last.
    pub(super) fn remove_folders(&self, machine: &Machine) -> PortResult<()> {
        if let MachineKind::Replication { replicator, .. } = &machine.kind {
            files::remove_tree(&self.layout.replicator(replicator))?;
        }
        files::remove_tree(&self.layout.instance(&machine.id))
    }

    fn detach_all(&self, id: &InstanceId) -> PortResult<()> {
        self.volumes()?.iter().try_for_each(|volume| self.detach_volume(&volume.id, id))
    }

    /// Removes folders whose record was never written.
    pub(super) fn remove_empty_instances(&self) -> PortResult<()> {
        let ids = files::names(&self.layout.instances())?;
        let ids = ids.iter().filter_map(|name| name.parse::<InstanceId>().ok());
        let unrecorded = ids.filter(|id| !self.machine_file(id).exists());
        unrecorded.map(|id| self.layout.instance(&id)).try_for_each(|folder| files::remove_tree(&folder))
    }

    /// Carries out the terminations that an earlier run began.
    pub(super) fn finish_terminations(&self) -> PortResult<()> {
        let began = self.readable_machines().into_iter().filter(|machine| machine.terminating);
        began.into_iter().try_for_each(|machine| self.terminate_instance(&machine.id))
    }

    /// What is kept of a terminated instance.
    pub(super) fn terminated(&self, id: &InstanceId) -> PortResult<Option<Terminated>> {
        files::read_json(&self.terminated_file(id))
    }

    /// Forgets instances that were terminated long ago.
    pub(super) fn sweep_terminated(&self) -> PortResult<()> {
        let directory = self.layout.terminated();
        for name in files::names_with_suffix(&directory, ".json")? {
            let path = directory.join(format!("{name}.json"));
            let terminated = files::read_json::<Terminated>(&path)?;
            if terminated.is_some_and(|t| now().ms_since(t.at) > TERMINATED_KEPT_MS) {
                files::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// See [`rehost_control::ports::Compute::console_output`].
    pub(super) fn console_output(&self, id: &InstanceId) -> PortResult<String> {
        let machine = self.machine(id)?.ok_or_else(|| no_instance(id))?;
        let path = match &machine.kind {
            MachineKind::Replication { replicator, .. } => self.layout.replicator(replicator).join(replicator::LOG),
            MachineKind::Copy { .. } | MachineKind::Conversion { .. } => self.layout.instance(id).join(qemu::CONSOLE),
        };
        tail(&path, CONSOLE_SHOWN)
    }

    /// Why the instance's process ended, as far as it is known.
    fn last_words(&self, machine: &Machine) -> String {
        let log = match &machine.kind {
            MachineKind::Replication { replicator, .. } => self.layout.replicator(replicator).join(replicator::LOG),
            MachineKind::Copy { .. } | MachineKind::Conversion { .. } => self.qemu_log(&machine.id),
        };
        let log = tail(&log, 1024).unwrap_or_default();
        match log.trim().lines().last() {
            Some(line) => format!("its process ended; the last it said: {line}"),
            None => "its process ended without a word: it powered itself off, or it was killed".to_owned(),
        }
    }

    /// A process of the instance that nobody wrote down.
    fn find_process(&self, machine: &Machine) -> Option<ProcessIdentity> {
        match &machine.kind {
            MachineKind::Replication { replicator, .. } => {
                let program = self.config.replicator_binary.file_name()?.to_str()?;
                let config = self.layout.replicator(replicator).join(replicator::CONFIG);
                process::find_by_argument(program, config.to_str()?)
            }
            MachineKind::Copy { .. } | MachineKind::Conversion { .. } => {
                process::find_by_argument(qemu::PROGRAM, &qemu::name_argument(machine.id.as_str()))
            }
        }
    }

    pub(super) fn qemu_log(&self, id: &InstanceId) -> PathBuf {
        self.layout.instance(id).join("qemu.log")
    }

    pub(super) fn process_file(&self, id: &InstanceId) -> PathBuf {
        self.layout.instance(id).join("process.json")
    }

    fn machine_file(&self, id: &InstanceId) -> PathBuf {
        self.layout.instance(id).join("machine.json")
    }

    fn terminated_file(&self, id: &InstanceId) -> PathBuf {
        self.layout.terminated().join(format!("{id}.json"))
    }
}

fn described(
    id: &InstanceId,
    state: InstanceState,
    endpoints: BTreeMap<u16, SocketAddr>,
    state_reason: Option<String>,
) -> Instance {
    Instance { id: id.clone(), state, endpoints, private_ip: None, public_ip: None, state_reason }
}

/// Where the instance's ports can be reached from this host.
pub(super) fn endpoints(machine: &Machine) -> BTreeMap<u16, SocketAddr> {
    let loopback = |port: u16| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    match &machine.kind {
        MachineKind::Copy { ports, .. } => {
            ports.iter().filter(|(_, host)| **host != 0).map(|(guest, host)| (*guest, loopback(*host))).collect()
        }
        MachineKind::Replication { listen, .. } => BTreeMap::from([(REPLICATION_PORT, *listen)]),
        MachineKind::Conversion { .. } => BTreeMap::new(),
    }
}

pub(super) fn no_instance(id: &InstanceId) -> PortError {
    PortError::not_found(format!("the instance {id} does not exist (any more)"))
}

/// The end of a text file; empty when there is none.
pub(super) fn tail(path: &Path, at_most: usize) -> PortResult<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) => return Err(files::io_error("read", path, &e)),
    };
    let mut bytes = Vec::new();
    let length = file.metadata().map(|m| m.len()).unwrap_or(0);
    let start = length.saturating_sub(at_most as u64);
    let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.take(at_most as u64).read_to_end(&mut bytes));
    read.map_err(|e| files::io_error("read", path, &e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
