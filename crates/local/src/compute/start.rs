//! Starting QEMU machines: copies and conversion servers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rehost_control::ports::{ClientToken, InstanceSpec, PortResult};
use rehost_control::{PortError, PortErrorKind};
use rehost_model::link::BootFirmware;
use rehost_model::{InstanceId, VolumeId};
use serde_json::json;

use super::machine::{Life, Machine, MachineKind};
use super::process::{self, ProcessIdentity};
use super::tokens::Made;
use super::volumes::{USAGE, no_volume, only};
use super::{Engine, accel, assets, files, now, qemu, qmp};

/// QEMU answers its monitor within half a second on an idle host.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a machine that did not start is waited for.
const GRACE: Duration = Duration::from_secs(2);

/// Another process may take a port between its choice and its use.
const PORT_ATTEMPTS: usize = 4;

const MIB: u64 = 1 << 20;

/// A machine of the q35 kind has room for this many devices.
const MAX_DISKS: usize = 24;

/// Debian's, Fedora's, SUSE's and Arch's UEFI firmware: the code, and the variables that every machine gets a copy of.
const UEFI_FIRMWARE: [(&str, &str); 5] = [
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

impl Engine {
    /// See [`rehost_control::ports::Compute::run_instance`].
    pub(super) fn run_instance(&self, spec: &InstanceSpec, token: &ClientToken) -> PortResult<InstanceId> {
        let _token = self.locks.lock(token.as_str());
        let reserved = self.tokens.reserve(token, Made::Copy, 1, InstanceId::generate)?;
        let id = only(reserved.ids)?;
        if reserved.completed {
            return Ok(id);
        }
        let machine = match self.machine(&id)? {
            Some(machine) => machine,
            None => self.register(id.clone(), copy_kind(spec), &spec.volumes, &spec.tags)?,
        };
        if spec.start && !machine.terminating {
            self.start_or_forget(&machine)?;
        }
        self.tokens.complete(token)?;
        Ok(id)
    }

    /// Writes the record of a machine; from then on its volumes are in use.
    pub(super) fn register(
        &self,
        id: InstanceId,
        kind: MachineKind,
        volumes: &[VolumeId],
        tags: &rehost_control::ports::Tags,
    ) -> PortResult<Machine> {
        let _usage = self.locks.lock(USAGE);
        if volumes.is_empty() || volumes.len() > MAX_DISKS {
            let message = format!("a machine has 1 to {MAX_DISKS} disks, not {}", volumes.len());
            return Err(PortError::invalid(message));
        }
        for volume in volumes {
            self.volume_record(volume)?.ok_or_else(|| no_volume(volume))?;
            if let Some(user) = self.user_of_volume(volume)? {
                let message = format!("the volume {volume} is in use by {user}: terminate or detach it there first");
                return Err(PortError::conflict(message));
            }
        }
        let (volumes, tags) = (volumes.to_vec(), tags.clone());
        let machine = Machine { id, kind, volumes, tags, created: now(), terminating: false };
        self.record(&machine)?;
        Ok(machine)
    }

    /// Starts a machine; when that fails, nothing of the machine is left.
    pub(super) fn start_or_forget(&self, machine: &Machine) -> PortResult<()> {
        let _instance = self.locks.lock(machine.id.as_str());
        if self.life(machine)? != Life::NotStarted {
            return Ok(());
        }
        let started = match &machine.kind {
            MachineKind::Copy { .. } => self.start_copy(machine),
            MachineKind::Conversion { request } => self.start_conversion_machine(machine, request),
            MachineKind::Replication { .. } => self.start_replicator(machine),
        };
        started.inspect_err(|_| {
            if let Err(error) = self.remove_folders(machine) {
                tracing::warn!(%error, instance = %machine.id, "what is left of a failed start could not be removed");
            }
        })
    }

    fn start_copy(&self, machine: &Machine) -> PortResult<()> {
        let mut attempt = 1;
        loop {
            match self.try_start_copy(machine) {
                Err(error) if attempt < PORT_ATTEMPTS && error.message.contains("host forwarding rule") => attempt += 1,
                other => return other,
            }
        }
    }

    fn try_start_copy(&self, machine: &Machine) -> PortResult<()> {
        let mut machine = machine.clone();
        let accelerator = self.accelerator()?;
        let disks = self.disks(&machine);
        let MachineKind::Copy { firmware, cpus, memory_mib, mac, ports, .. } = &mut machine.kind else {
            return Err(PortError::invalid(format!("{} is no copy", machine.id)));
        };
        *ports = free_ports(ports.keys())?;
        let uefi = if *firmware == BootFirmware::Uefi { Some(uefi_firmware()?) } else { None };
        if let Some((_, variables)) = uefi {
            self.give_variables(&machine.id, variables)?;
        }
        let copy = qemu::Copy {
            name: machine.id.as_str(),
            accelerator,
            cpus: *cpus,
            memory_mib: *memory_mib,
            disks,
            mac,
            ports,
            firmware: *firmware,
            uefi_code: uefi.map(|(code, _)| code),
        };
        let arguments = copy.arguments();
        self.record(&machine)?;
        self.spawn_qemu(&machine.id, &arguments)
    }

    fn give_variables(&self, id: &InstanceId, template: &Path) -> PortResult<()> {
        let variables = self.layout.instance(id).join(qemu::FIRMWARE_VARIABLES);
        if variables.exists() {
            return Ok(());
        }
        let bytes = fs::read(template).map_err(|e| files::io_error("read", template, &e))?;
        files::write_durable(&variables, &bytes)
    }

    /// The disks of a machine, in their order.
    pub(super) fn disks(&self, machine: &Machine) -> Vec<qemu::Disk> {
        let disk = |volume: &VolumeId| qemu::Disk { volume: volume.clone(), image: self.layout.volume_image(volume) };
        machine.volumes.iter().map(disk).collect()
    }

    /// Starts QEMU and waits until its monitor answers: from then on it will not fail for its arguments.
    pub(super) fn spawn_qemu(&self, id: &InstanceId, arguments: &[String]) -> PortResult<()> {
        let log = self.qemu_log(id);
        files::remove_file(&self.process_file(id))?;
        let output = File::create(&log).map_err(|e| files::io_error("make", &log, &e))?;
        let errors = output.try_clone().map_err(|e| files::io_error("make", &log, &e))?;
        let mut command = Command::new(qemu::PROGRAM);
        command.args(arguments).current_dir(self.layout.instance(id));
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let process = process::spawn_detached(&mut command).map_err(|e| cannot_start(&e, &log))?;
        self.adopt(id, &process)?;
        let answered = self.await_monitor(id, &process);
        if answered.is_err() {
            process.terminate(GRACE);
        }
        answered
    }

    fn await_monitor(&self, id: &InstanceId, process: &ProcessIdentity) -> PortResult<()> {
        let (began, log) = (Instant::now(), self.qemu_log(id));
        while began.elapsed() < START_LIMIT {
            if qmp::execute(&self.layout.instance(id), "query-status", &json!({})).is_ok() {
                return Ok(());
            }
            if !process.is_alive() {
                return Err(cannot_start(&io::Error::other("it ended at once"), &log));
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        Err(cannot_start(&io::Error::other("its monitor does not answer"), &log))
    }

    /// How machines are run here; decided once.
    pub(super) fn accelerator(&self) -> PortResult<accel::Accelerator> {
        if let Some(chosen) = self.config.accelerator {
            return Ok(chosen);
        }
        let _deciding = self.locks.lock("accelerator");
        let kernel = assets::find(&self.config.conversion_cache)?.map(|assets| assets.kernel);
        accel::decide(&self.layout.cache(), kernel.as_deref())
    }
}

fn copy_kind(spec: &InstanceSpec) -> MachineKind {
    let host_cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    MachineKind::Copy {
        firmware: spec.firmware,
        cpus: spec.cpus.clamp(1, host_cpus),
        memory_mib: memory_mib(spec.ram_bytes, available_memory()).max(least_memory_mib(spec.firmware)),
        mac: random_mac(),
        ports: spec.ports.iter().map(|port| (*port, 0)).collect(),
        start: spec.start,
    }
}

/// The source's memory, but no more than 2 GiB and half of what is free.
fn memory_mib(source_bytes: u64, available_bytes: u64) -> u64 {
    (source_bytes / MIB).min(2048).min(available_bytes / 2 / MIB)
}

/// UEFI firmware keeps so much for itself that a boot loader has no room for an initramfs in less.
fn least_memory_mib(firmware: BootFirmware) -> u64 {
    match firmware {
        BootFirmware::Bios => 256,
        BootFirmware::Uefi => 512,
    }
}

/// Bytes that new programs may use without making others swap.
fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// An address in QEMU's range. Every machine has a network of its own, yet two copies may be compared side by side.
fn random_mac() -> String {
    let mut bytes = [0u8; 3];
    // A copy with a well-known address is better than none.
    let _ = getrandom::fill(&mut bytes);
    format!("52:54:00:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2])
}

/// A free port of this host's loopback for each of the guest's ports.
fn free_ports<'a>(guest: impl Iterator<Item = &'a u16>) -> PortResult<BTreeMap<u16, u16>> {
    let failed = |e: io::Error| PortError::unavailable(format!("no free port on the loopback interface: {e}"));
    // All are held until all are chosen, so that they differ.
    let held =
        guest.map(|port| Ok((*port, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?))).collect::<io::Result<Vec<_>>>();
    let chosen = held.map_err(failed)?.into_iter().map(|(port, held)| Ok((port, held.local_addr()?.port())));
    chosen.collect::<io::Result<_>>().map_err(failed)
}

fn uefi_firmware() -> PortResult<(&'static Path, &'static Path)> {
    let there = |(code, variables): &(&'static str, &'static str)| {
        let (code, variables) = (Path::new(*code), Path::new(*variables));
        (code.exists() && variables.exists()).then_some((code, variables))
    };
    UEFI_FIRMWARE.iter().find_map(there).ok_or_else(|| {
        PortError::invalid(format!("no UEFI firmware at {}: install the package `ovmf`", UEFI_FIRMWARE[0].0))
    })
}

/// Why QEMU did not start; what it wrote to its log says most.
fn cannot_start(error: &io::Error, log: &Path) -> PortError {
    let program = qemu::PROGRAM;
    if error.kind() == io::ErrorKind::NotFound {
        let message = format!("{program} is not installed: install the packages `qemu-system-x86` and `ovmf`");
        return PortError::new(PortErrorKind::Invalid, message);
    }
    let said = super::machine::tail(log, 1024).unwrap_or_default();
    PortError::unavailable(format!("{program} cannot be started: {error}; it said: {}", said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_stays_within_sensible_bounds() {
        const GIB: u64 = 1 << 30;
        assert_eq!(memory_mib(GIB, 64 * GIB), 1024);
        assert_eq!(memory_mib(64 * GIB, 64 * GIB), 2048);
        assert_eq!(memory_mib(64 * GIB, 2 * GIB), 1024);
        assert_eq!(memory_mib(0, 0), 0);
        assert!(least_memory_mib(BootFirmware::Uefi) > least_memory_mib(BootFirmware::Bios));
    }

    #[test]
    fn every_port_gets_another_one() {
        let ports = free_ports([22, 80, 443].iter()).unwrap();
        let mut hosts: Vec<u16> = ports.values().copied().collect();
        hosts.sort_unstable();
        hosts.dedup();
        assert_eq!((ports.len(), hosts.len()), (3, 3));
    }
}
