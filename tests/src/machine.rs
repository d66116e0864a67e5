//! A QEMU machine that plays a source server, or a control of the experiment.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::accelerator::Accelerator;
use crate::error::{Context, Error, Result};
use crate::net::{Answer, free_port, wait_http_while};
use crate::process::{Running, on_one_cpu};
use crate::qmp::Qmp;

/// What the disks hang on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// SATA: a physical server, or VMware's.
    Ahci,
    /// VMware's paravirtual SCSI.
    Pvscsi,
    /// What an EC2 instance of the Nitro kind has.
    Nvme,
}

/// The network card's model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nic {
    /// Intel's, as emulated by VMware.
    E1000,
    /// VMware's own.
    Vmxnet3,
    /// The standard of KVM hosts.
    VirtioNet,
}

impl Nic {
    fn device(self) -> &'static str {
        match self {
            Self::E1000 => "e1000",
            Self::Vmxnet3 => "vmxnet3",
            Self::VirtioNet => "virtio-net-pci",
        }
    }
}

/// What starts the boot loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// The classic one.
    Bios,
    /// OVMF, with variables of the machine's own.
    Uefi,
}

/// The description of a machine.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Disks in raw format, in the order in which the guest names them.
    pub disks: Vec<PathBuf>,
    /// Where they hang.
    pub controller: Controller,
    /// The network card.
    pub nic: Nic,
    /// The card's address; images pin their interface's name to it.
    pub mac: String,
    /// The guest's network in CIDR; its router is the second address.
    pub subnet: String,
    /// The firmware.
    pub firmware: Firmware,
    /// Processors.
    pub cpus: u8,
    /// Memory in MiB. GRUB on UEFI needs 512.
    pub memory_mib: u32,
    /// Ports of the guest that are reached from loopback; see [`Machine::port`].
    pub guest_ports: Vec<u16>,
    /// With an address of this host's loopback network, on which each of the guest's ports is itself; else they are other ports
    /// of 127.0.0.1.
    pub address: Option<Ipv4Addr>,
    /// With a second controller, on which disks may be added while the machine runs; see [`Machine::add_disk`].
    pub hot_plug: bool,
    /// One more disk, on NVMe wherever the others hang. See [`MachineSpec::with_nvme`].
    pub nvme: Option<PathBuf>,
}

impl MachineSpec {
    /// A VMware-like server with SATA and e1000, in the network that the images are made for.
    #[must_use]
    pub fn source(disk: &Path) -> Self {
        Self {
            disks: vec![disk.to_owned()],
            controller: Controller::Ahci,
            nic: Nic::E1000,
            mac: "52:54:00:77:00:15".to_owned(),
            subnet: "10.77.0.0/24".to_owned(),
            firmware: Firmware::Bios,
            cpus: 2,
            memory_mib: 512,
            guest_ports: vec![22, 80, 8022],
            address: None,
            hot_plug: false,
            nvme: None,
        }
    }

    /// Where a server is to go: NVMe, another network card with another address, another subnet.
    #[must_use]
    pub fn target(disk: &Path) -> Self {
        Self {
            controller: Controller::Nvme,
            nic: Nic::VirtioNet,
            mac: "52:54:00:01:02:03".to_owned(),
            subnet: "10.0.2.0/24".to_owned(),
            ..Self::source(disk)
        }
    }

    /// The same machine with this controller.
    #[must_use]
    pub fn controller(self, controller: Controller) -> Self {
        Self { controller, ..self }
    }

    /// The same machine with this network card.
    #[must_use]
    pub fn nic(self, nic: Nic) -> Self {
        Self { nic, ..self }
    }

    /// The same machine with this firmware.
    #[must_use]
    pub fn firmware(self, firmware: Firmware) -> Self {
        Self { firmware, ..self }
    }

    /// The same machine with this much memory, in MiB.
    #[must_use]
    pub fn memory(self, memory_mib: u32) -> Self {
        Self { memory_mib, ..self }
    }

    /// The same machine with these ports, at an address of its own.
    #[must_use]
    pub fn reached_at(self, address: Ipv4Addr, ports: &[u16]) -> Self {
        Self { address: Some(address), guest_ports: ports.to_vec(), ..self }
    }

    /// The same machine with one more disk.
    #[must_use]
    pub fn disk(mut self, disk: &Path) -> Self {
        self.disks.push(disk.to_owned());
        self
    }

    /// The same machine with a controller for disks that are added while it runs.
    #[must_use]
    pub fn hot_plug(self) -> Self {
        Self { hot_plug: true, ..self }
    }

    /// The same machine with one more disk, on NVMe, and with one processor. On several, QEMU's NVMe device overlooks requests now and
    /// then, and the guest waits for half a minute for each; see crates/local/src/compute/conversion.rs.
    #[must_use]
    pub fn with_nvme(self, disk: &Path) -> Self {
        Self { nvme: Some(disk.to_owned()), cpus: 1, ..self }
    }

    /// Starts the machine; its socket, logs and firmware variables live in `folder`, which is created.
    ///
    /// # Errors
    /// When QEMU does not start.
    pub fn start(&self, folder: &Path) -> Result<Machine> {
        fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
        let host_port = |guest| if self.address.is_some() { Ok(guest) } else { free_port() };
        let ports = self.guest_ports.iter().map(|&guest| Ok((guest, host_port(guest)?))).collect::<Result<Vec<_>>>()?;
        let mut command = self.command(folder, &ports)?;
        let running = Running::start(&mut command, &folder.join("qemu.log"))?;
        let mut machine = Machine { running, folder: folder.to_owned(), ports };
        machine.wait_socket()?;
        Ok(machine)
    }

    fn command(&self, folder: &Path, ports: &[(u16, u16)]) -> Result<Command> {
        let mut command = match self.nvme {
            Some(_) => on_one_cpu("qemu-system-x86_64"),
            None => Command::new("qemu-system-x86_64"),
        };
        command
            .args(Accelerator::choose().arguments())
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "std", "-M", self.board()])
            .args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", folder.join("qmp.sock").display()))
            .arg("-serial")
            .arg(format!("file:{}", folder.join("serial.log").display()))
            .args(["-netdev", &self.netdev(ports)])
            .args(["-device", &format!("{},netdev=net0,mac={}", self.nic.device(), self.mac)]);
        self.add_disks(&mut command);
        if self.hot_plug {
            command.args(["-device", "virtio-scsi-pci,id=hot"]);
        }
        if self.firmware == Firmware::Uefi {
            add_uefi(&mut command, folder)?;
        }
        Ok(command)
    }

    fn board(&self) -> &'static str {
        if self.controller == Controller::Pvscsi { "pc" } else { "q35" }
    }

    fn netdev(&self, ports: &[(u16, u16)]) -> String {
        let address = self.address.unwrap_or(Ipv4Addr::LOCALHOST);
        let forwards = ports.iter().map(|(guest, host)| format!(",hostfwd=tcp:{address}:{host}-:{guest}"));
        format!("user,id=net0,net={}{}", self.subnet, forwards.collect::<String>())
    }

    fn add_disks(&self, command: &mut Command) {
        if self.controller == Controller::Pvscsi {
            command.args(["-device", "pvscsi,id=scsi0"]);
        }
        // The host's crash is not part of any experiment: no flush reaches the host's disk.
        let drive = |disk: &Path, id: &str| {
            let file = disk.display();
            ["-drive".to_owned(), format!("file={file},format=raw,if=none,id={id},cache=unsafe,discard=unmap")]
        };
        for (index, disk) in self.disks.iter().enumerate() {
            command.args(drive(disk, &format!("disk{index}"))).args(["-device", &self.disk_device(index)]);
        }
        if let Some(disk) = &self.nvme {
            command.args(drive(disk, "nvme")).args(["-device", "nvme,drive=nvme,serial=nvme"]);
        }
    }

    fn disk_device(&self, index: usize) -> String {
        match self.controller {
            Controller::Ahci => format!("ide-hd,drive=disk{index},bus=ide.{index}"),
            Controller::Pvscsi => format!("scsi-hd,drive=disk{index},bus=scsi0.0"),
            Controller::Nvme => format!("nvme,drive=disk{index},serial=vol{index}"),
        }
    }
}

fn add_uefi(command: &mut Command, folder: &Path) -> Result<()> {
    let variables = folder.join("variables.fd");
    fs::copy("/usr/share/OVMF/OVMF_VARS.fd", &variables)
        .context(|| "copy OVMF's variables (Debian's package ovmf)".to_owned())?;
    command
        .args(["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd"])
        .args(["-drive", &format!("if=pflash,format=raw,file={}", variables.display())]);
    Ok(())
}

/// A running machine. Dropping it ends QEMU at once, as a power cut would.
#[derive(Debug)]
pub struct Machine {
    running: Running,
    folder: PathBuf,
    ports: Vec<(u16, u16)>,
}

impl Machine {
    /// The loopback port that leads to a port of the guest.
    ///
    /// # Errors
    /// When the specification did not name that port.
    pub fn port(&self, guest_port: u16) -> Result<u16> {
        self.ports
            .iter()
            .find(|(guest, _)| *guest == guest_port)
            .map(|&(_, host)| host)
            .ok_or_else(|| Error::Unexpected(format!("port {guest_port} of the guest is not forwarded")))
    }

    /// Waits until the guest answers 200, as long as QEMU runs.
    ///
    /// # Errors
    /// When it does not within `limit`: with the guest's screen.
    pub fn wait_http(&mut self, guest_port: u16, path: &str, limit: Duration) -> Result<Answer> {
        let port = self.port(guest_port)?;
        let result = wait_http_while(port, path, limit, || self.running.check());
        result.map_err(|error| match error {
            Error::Timeout { what, after, seen } => {
                let screen = self.vga_text().unwrap_or_default();
                Error::Timeout { what, after, seen: format!("{seen}; the guest's screen: {screen}") }
            }
            other => other,
        })
    }

    /// The text on the VGA screen, with what scrolled within its 32 KiB; empty lines left out. A guest in a graphics
    /// mode (UEFI) has none.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn vga_text(&self) -> Result<String> {
        let dump = self.folder.join("vga.bin");
        let arguments = json!({ "val": 0xb8000, "size": 0x8000, "filename": dump.display().to_string() });
        self.qmp()?.execute("pmemsave", &arguments)?;
        let memory = fs::read(&dump).context(|| format!("read {}", dump.display()))?;
        Ok(screen_text(&memory))
    }

    /// Waits until the screen shows `text`.
    ///
    /// # Errors
    /// When it does not within `limit`: with what it shows.
    pub fn wait_vga(&mut self, text: &str, limit: Duration) -> Result<String> {
        let start = Instant::now();
        loop {
            self.running.check()?;
            let screen = self.vga_text()?;
            if screen.contains(text) {
                return Ok(screen);
            }
            if start.elapsed() >= limit {
                return Err(Error::Timeout { what: format!("{text:?} on the screen"), after: limit, seen: screen });
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// What the guest wrote to its serial port.
    #[must_use]
    pub fn serial_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("serial.log")).unwrap_or_default()).into_owned()
    }

    /// A new session on the control socket.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.folder.join("qmp.sock"))
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Succeeds while QEMU runs.
    ///
    /// # Errors
    /// [`Error::Stopped`] with its last words.
    pub fn check(&mut self) -> Result<()> {
        self.running.check()
    }

    /// Adds a disk while the machine runs, which must have been made with [`MachineSpec::hot_plug`].
    ///
    /// # Errors
    /// When QEMU refuses it.
    pub fn add_disk(&self, disk: &Path, name: &str) -> Result<()> {
        let mut qmp = self.qmp()?;
        let file = json!({ "driver": "file", "filename": disk.display().to_string(), "discard": "unmap" });
        let node = json!({ "driver": "raw", "node-name": name, "discard": "unmap", "file": file });
        qmp.execute("blockdev-add", &node)?;
        let device = json!({ "driver": "scsi-hd", "bus": "hot.0", "drive": name, "id": format!("{name}-device"), "serial": name });
        qmp.execute("device_add", &device).map(drop)
    }

    /// Stops the guest's processors: nothing changes until [`Machine::resume`].
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn pause(&self) -> Result<()> {
        self.qmp()?.execute("stop", &json!({})).map(drop)
    }

    /// Lets the guest's processors go on.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn resume(&self) -> Result<()> {
        self.qmp()?.execute("cont", &json!({})).map(drop)
    }

    /// Resets the guest, as its reset button would.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn reset(&self) -> Result<()> {
        self.qmp()?.execute("system_reset", &json!({})).map(drop)
    }

    /// Cuts the power. The disks keep what the guest had written.
    pub fn power_off(&mut self) {
        self.running.kill();
    }

    fn wait_socket(&mut self) -> Result<()> {
        let limit = Duration::from_secs(20);
        let start = Instant::now();
        loop {
            self.running.check()?;
            match self.qmp() {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() >= limit => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(30)),
            }
        }
    }
}

/// The characters of a text-mode screen of 80 columns: every cell is a character and its colour.
fn screen_text(memory: &[u8]) -> String {
    let lines = memory.chunks(160).map(|row| {
        let cells = row.chunks(2).filter_map(|cell| cell.first());
        let text: String =
            cells.map(|&byte| if (0x20..0x7f).contains(&byte) { char::from(byte) } else { ' ' }).collect();
        text.trim_end().to_owned()
    });
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
