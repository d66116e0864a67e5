//! The command lines of QEMU: launched copies and conversion machines. Pure functions of what the machine is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rehost_model::VolumeId;
use rehost_model::link::BootFirmware;

use super::accel::Accelerator;

/// The program.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// Names in an instance's folder, which is the machine's working directory: a socket's path may have 107 bytes only.
pub(super) const CONSOLE: &str = "console.log";
pub(super) const REPORT: &str = "report.log";
pub(super) const QMP_SOCKET: &str = "qmp.sock";
pub(super) const FIRMWARE_VARIABLES: &str = "vars.fd";
pub(super) const INITRAMFS: &str = "initramfs.cpio";

/// Under TCG, `max` is slower and less robust. Distributions built for x86-64-v2 need the added features.
const TCG_CPU: &str = "qemu64,-svm,+ssse3,+sse4.1,+sse4.2,+popcnt";

/// What is enough for the converter; MiB.
const CONVERSION_MEMORY_MIB: u64 = 512;

/// A disk of a machine.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) volume: VolumeId,
    pub(super) image: PathBuf,
}

/// A launched copy.
#[derive(Debug, Clone)]
pub(super) struct Copy<'a> {
    pub(super) name: &'a str,
    pub(super) accelerator: Accelerator,
    pub(super) cpus: u64,
    pub(super) memory_mib: u64,
    /// The first is booted.
    pub(super) disks: Vec<Disk>,
    pub(super) mac: &'a str,
    /// Port of the guest → port of this host's loopback.
    pub(super) ports: &'a BTreeMap<u16, u16>,
    pub(super) firmware: BootFirmware,
    /// The code of the UEFI firmware, for `firmware` UEFI.
    pub(super) uefi_code: Option<&'a Path>,
}

/// A conversion machine.
#[derive(Debug, Clone)]
pub(super) struct Conversion<'a> {
    pub(super) name: &'a str,
    pub(super) accelerator: Accelerator,
    pub(super) disks: Vec<Disk>,
    pub(super) kernel: &'a Path,
    /// The request, as an argument of the kernel.
    pub(super) request: &'a str,
}

impl Copy<'_> {
    /// The arguments. The guest's flushes reach the disk: it may be the user's server from now on.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut line = Line::machine(self.name, self.accelerator);
        line.add("-smp", self.cpus).add("-m", self.memory_mib);
        // Some boot loaders wait for a graphics card that is not there.
        line.add("-vga", "std");
        line.consoles(&[CONSOLE]);
        if let (BootFirmware::Uefi, Some(code)) = (self.firmware, self.uefi_code) {
            line.add("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={}", value(code)));
            line.add("-drive", format!("if=pflash,unit=1,format=raw,file={FIRMWARE_VARIABLES}"));
        }
        line.disks(&self.disks, "cache=writeback,discard=unmap", Boot::FromDisks);
        let forwards: String =
            self.ports.iter().map(|(guest, host)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}")).collect();
        line.add("-netdev", format!("user,id=net0{forwards}"));
        line.add("-device", format!("virtio-net-pci,netdev=net0,mac={},romfile=", self.mac));
        line.add("-device", "virtio-rng-pci");
        line.0
    }
}

impl Conversion<'_> {
    /// The arguments. Nothing is flushed while it runs (the volumes are synced when it has ended), it has no network, and it
    /// does not come back after its end.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut line = Line::machine(self.name, self.accelerator);
        line.add("-smp", 1).add("-m", CONVERSION_MEMORY_MIB);
        line.consoles(&[CONSOLE, REPORT]);
        line.0.push("-no-reboot".to_owned());
        line.add("-kernel", self.kernel.display()).add("-initrd", INITRAMFS);
        line.add("-append", format!("console=ttyS0 quiet panic=-1 no_timer_check {}", self.request));
        line.disks(&self.disks, "cache=unsafe", Boot::Kernel);
        line.0
    }
}

/// Boots nothing but a kernel, to see whether an accelerator works; the console is standard output.
pub(super) fn probe_arguments(accelerator: Accelerator, kernel: &Path) -> Vec<String> {
    let mut line = Line::machine("rehost-accelerator-probe", accelerator);
    line.add("-m", 256).add("-serial", "stdio");
    line.0.push("-no-reboot".to_owned());
    line.add("-kernel", kernel.display()).add("-append", "console=ttyS0 panic=-1");
    line.0
}

/// What a machine boots.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Boot {
    FromDisks,
    Kernel,
}

/// A command line that grows.
struct Line(Vec<String>);

impl Line {
    fn machine(name: &str, accelerator: Accelerator) -> Self {
        let mut line = Self(Vec::new());
        line.add("-name", name_argument(name)).add("-machine", "q35");
        match accelerator {
            Accelerator::Kvm => line.add("-accel", "kvm").add("-cpu", "host"),
            Accelerator::Tcg => line.add("-accel", "tcg,thread=multi").add("-cpu", TCG_CPU),
        };
        line.0.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
        line.add("-display", "none");
        line
    }

    fn add(&mut self, option: &str, value: impl ToString) -> &mut Self {
        self.0.push(option.to_owned());
        self.0.push(value.to_string());
        self
    }

    /// Serial lines into files, which are never cut short by a restart, and QEMU's own monitor.
    fn consoles(&mut self, files: &[&str]) {
        for (index, file) in files.iter().enumerate() {
            self.add("-chardev", format!("file,id=serial{index},path={file},append=on"));
            self.add("-serial", format!("chardev:serial{index}"));
        }
        self.add("-qmp", format!("unix:{QMP_SOCKET},server=on,wait=off"));
    }

    /// The disks as NVMe devices under their volumes' serial numbers, as on EC2's Nitro instances.
    fn disks(&mut self, disks: &[Disk], options: &str, boot: Boot) {
        for (index, disk) in disks.iter().enumerate() {
            let image = value(&disk.image);
            self.add("-drive", format!("file={image},format=raw,if=none,id=disk{index},{options}"));
            let serial = disk.volume.nvme_serial();
            let order = if boot == Boot::FromDisks { format!(",bootindex={index}") } else { String::new() };
            self.add("-device", format!("nvme,drive=disk{index},serial={serial}{order}"));
        }
    }
}

/// The argument that tells a machine's process from all others.
pub(super) fn name_argument(name: &str) -> String {
    format!("guest={name}")
}

/// A path as the value of a suboption: a comma would end it.
fn value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(image: &str) -> Disk {
        Disk { volume: "vol-0123456789abcdef0".parse().unwrap(), image: image.into() }
    }

    fn copy<'a>(ports: &'a BTreeMap<u16, u16>, firmware: BootFirmware) -> Copy<'a> {
        Copy {
            name: "i-0123456789abcdef0",
            accelerator: Accelerator::Tcg,
            cpus: 2,
            memory_mib: 256,
            disks: vec![disk("/a,b/vol.img")],
            mac: "52:54:00:00:00:01",
            ports,
            firmware,
            uefi_code: Some(Path::new("/code.fd")),
        }
    }

    #[test]
    fn a_copy_has_its_disks_and_ports() {
        let ports = BTreeMap::from([(80, 40080), (22, 40022)]);
        let line = copy(&ports, BootFirmware::Bios).arguments().join(" ");
        assert!(line.contains("file=/a,,b/vol.img,format=raw,if=none,id=disk0,cache=writeback"), "{line}");
        assert!(line.contains("nvme,drive=disk0,serial=vol0123456789abcdef0,bootindex=0"), "{line}");
        assert!(line.contains("hostfwd=tcp:127.0.0.1:40022-:22,hostfwd=tcp:127.0.0.1:40080-:80"), "{line}");
        assert!(line.contains("-accel tcg,thread=multi -cpu qemu64,-svm"), "{line}");
        assert!(!line.contains("pflash") && !line.contains("-no-reboot"), "{line}");
    }

    #[test]
    fn a_uefi_copy_has_variables_of_its_own() {
        let line = copy(&BTreeMap::new(), BootFirmware::Uefi).arguments().join(" ");
        assert!(line.contains("unit=0,format=raw,readonly=on,file=/code.fd"), "{line}");
        assert!(line.contains("unit=1,format=raw,file=vars.fd"), "{line}");
    }

    #[test]
    fn a_conversion_machine_has_no_network_and_does_not_come_back() {
        let machine = Conversion {
            name: "i-0123456789abcdef0",
            accelerator: Accelerator::Tcg,
            disks: vec![disk("/v.img")],
            kernel: Path::new("/vmlinuz"),
            request: "rehost.request=7b7d",
        };
        let line = machine.arguments().join(" ");
        assert!(line.contains("-no-reboot") && line.contains("rehost.request=7b7d"), "{line}");
        assert!(!line.contains("-netdev") && !line.contains("bootindex") && line.contains("cache=unsafe"), "{line}");
    }
}
