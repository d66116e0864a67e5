//! What the source is: host name, operating system, processors, memory, network interfaces, firmware.

use std::collections::BTreeMap;

use rehost_model::link::{BootFirmware, SourceDisk};
use rehost_model::server::{Cpu, Disk, IdentificationHints, OperatingSystem, SourceProperties};

use crate::system::{System, text};

mod network;

/// Collects the facts; what a machine does not tell is left empty.
#[must_use]
pub fn collect(system: &System, disks: &[SourceDisk]) -> SourceProperties {
    SourceProperties {
        identification_hints: hints(system),
        network_interfaces: network::interfaces(system),
        disks: disks.iter().map(|d| Disk { device_name: d.device_name.clone(), bytes: d.size_bytes }).collect(),
        cpus: cpus(&text(system.proc.join("cpuinfo")).unwrap_or_default()),
        ram_bytes: ram_bytes(&text(system.proc.join("meminfo")).unwrap_or_default()),
        os: OperatingSystem { full_string: operating_system(system) },
        recommended_instance_type: None,
        last_updated_date_time: None,
    }
}

/// Which firmware started the machine.
#[must_use]
pub fn firmware(system: &System) -> BootFirmware {
    if system.sys.join("firmware/efi").exists() { BootFirmware::Uefi } else { BootFirmware::Bios }
}

fn hints(system: &System) -> IdentificationHints {
    let hostname = text(system.proc.join("sys/kernel/hostname")).unwrap_or_default();
    let hosts = text(system.etc.join("hosts")).unwrap_or_default();
    let dmi = |attribute: &str| text(system.sys.join("class/dmi/id").join(attribute));
    let vendor = dmi("sys_vendor").unwrap_or_default();
    IdentificationHints {
        fqdn: full_name(&hostname, &hosts),
        vm_ware_uuid: vendor.contains("VMware").then(|| dmi("product_uuid")).flatten(),
        aws_instance_id: (vendor == "Amazon EC2").then(|| dmi("board_asset_tag")).flatten(),
        hostname,
    }
}

/// The host name with its domain: as it is, or as the hosts file has it.
fn full_name(hostname: &str, hosts: &str) -> Option<String> {
    if hostname.contains('.') {
        return Some(hostname.to_owned());
    }
    let of_host = |name: &&str| name.strip_prefix(hostname).is_some_and(|rest| rest.starts_with('.'));
    let names = |line: &str| line.split('#').next().unwrap_or_default().to_owned();
    let found = |line: String| line.split_whitespace().skip(1).find(of_host).map(str::to_owned);
    (!hostname.is_empty()).then(|| hosts.lines().map(names).find_map(found)).flatten()
}

fn operating_system(system: &System) -> String {
    let release = text(system.etc.join("os-release")).unwrap_or_default();
    let value = |key: &str| release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let name = value("PRETTY_NAME").or(value("NAME")).map_or("Linux", |v| v.trim_matches(['"', '\'']));
    match text(system.proc.join("sys/kernel/osrelease")) {
        Some(kernel) => format!("{name}, kernel {kernel}"),
        None => name.to_owned(),
    }
}

/// One entry for each socket, with its physical cores where the processor tells them.
fn cpus(cpuinfo: &str) -> Vec<Cpu> {
    let mut sockets: BTreeMap<String, Cpu> = BTreeMap::new();
    for processor in cpuinfo.split("\n\n") {
        let value = |key: &str| {
            let of_key = |line: &str| {
                let (name, value) = line.split_once(':')?;
                (name.trim() == key).then(|| value.trim().to_owned())
            };
            processor.lines().find_map(of_key)
        };
        if value("processor").is_none() {
            continue;
        }
        let socket = sockets.entry(value("physical id").unwrap_or_default()).or_default();
        socket.model_name = value("model name").unwrap_or_default();
        socket.cores = value("cpu cores").and_then(|n| n.parse().ok()).unwrap_or(socket.cores + 1);
    }
    sockets.into_values().collect()
}

fn ram_bytes(meminfo: &str) -> u64 {
    let kib =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0u64).saturating_mul(1024)
}

#[cfg(test)]
mod tests;
