//! What is known of the guest before any rule is asked.

use rehost_model::conversion::{ConversionRequest, ConversionTarget, Firmware, GuestInventory};
use rehost_model::launch::BootMode;

use crate::disk::{Content, Disk, Disks, Resolution, Volume};
use crate::fstab;
use crate::root::Root;

/// GRUB's menu, where Debian keeps it.
pub(crate) const GRUB_CFG: &str = "/boot/grub/grub.cfg";

/// A guest: its file tree, its disks, and what was found in them.
#[derive(Debug, Clone)]
pub struct Guest {
    pub root: Root,
    pub disks: Disks,
    pub target: ConversionTarget,
    pub boot_mode: BootMode,
    pub inventory: GuestInventory,
    /// The UUID of the root file system, if it is on one of the disks.
    pub root_uuid: Option<String>,
}

impl Guest {
    /// Looks at a mounted tree and its disks. `root_device` is the root file system's UUID where the caller knows it (because it
    /// mounted it); else `/etc/fstab` says which volume it is.
    #[must_use]
    pub fn survey(root: Root, disks: Disks, request: &ConversionRequest, root_uuid: Option<String>) -> Self {
        let fstab = root.text("/etc/fstab").unwrap_or_default();
        let root_entry = fstab::entries(&fstab).find(|entry| entry.mount_point == "/");
        let root_uuid = root_uuid.or_else(|| match disks.resolve(root_entry?.device) {
            Resolution::Found(_, volume) => volume.uuid().map(str::to_owned),
            _ => None,
        });
        let own = root_uuid.as_deref().and_then(|uuid| disks.volumes().find(|(_, volume)| volume.uuid() == Some(uuid)));
        let os_release = root.text("/etc/os-release").or_else(|| root.text("/usr/lib/os-release")).unwrap_or_default();
        let inventory = GuestInventory {
            os_id: os_release_field(&os_release, "ID"),
            os_version: os_release_field(&os_release, "VERSION_ID"),
            os_name: os_release_field(&os_release, "PRETTY_NAME"),
            kernels: kernels(&root),
            architecture: architecture(&root),
            firmware: firmware(&root, &disks, &fstab, request.boot_mode),
            partition_table: own.map(|(disk, _)| disk.table),
            root_device: own.map(|(disk, volume)| source_name(disk, volume)),
            root_filesystem: own.and_then(|(_, volume)| Some(volume.superblock.as_ref()?.content.name().to_owned())),
            root_filesystem_uuid: root_uuid.clone(),
            bootloader: (root.exists(GRUB_CFG) || root.exists("/boot/grub2/grub.cfg")).then(|| "grub".to_owned()),
            initramfs_tool: initramfs_tool(&root).map(str::to_owned),
            network: network(&root),
            disks: disks.0.iter().map(Disk::inventory).collect(),
        };
        Self { root, disks, target: request.target, boot_mode: request.boot_mode, inventory, root_uuid }
    }

    /// `ID` and `ID_LIKE` of os-release, all words.
    #[must_use]
    pub fn os_families(&self) -> Vec<String> {
        let text =
            self.root.text("/etc/os-release").or_else(|| self.root.text("/usr/lib/os-release")).unwrap_or_default();
        let words = |field| os_release_field(&text, field).unwrap_or_default();
        format!("{} {}", words("ID"), words("ID_LIKE")).split_whitespace().map(str::to_owned).collect()
    }

    /// Whether systemd is what starts this guest.
    #[must_use]
    pub fn has_systemd(&self) -> bool {
        self.root.exists("/lib/systemd/systemd") || self.root.exists("/usr/lib/systemd/systemd")
    }

    /// Whether systemd's udev, which reads `.link` files, names its interfaces.
    #[must_use]
    pub fn has_udev(&self) -> bool {
        ["/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd", "/usr/bin/udevadm", "/bin/udevadm"]
            .iter()
            .any(|path| self.root.exists(path))
    }
}

/// Directories of the tree which may be volumes of their own and matter to the conversion.
pub(crate) const OWN_VOLUMES: [&str; 5] = ["/boot", "/boot/efi", "/efi", "/usr", "/var"];

/// A volume in the source's words, such as `/dev/sda1`.
pub(crate) fn source_name(disk: &Disk, volume: &Volume) -> String {
    let base = disk.source_device.clone().unwrap_or_else(|| disk.node.display().to_string());
    let number = volume.partition.number;
    match number {
        0 => base,
        _ if base.ends_with(|c: char| c.is_ascii_digit()) => format!("{base}p{number}"),
        _ => format!("{base}{number}"),
    }
}

fn os_release_field(text: &str, field: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(field)?.strip_prefix('='))?;
    let value = value.trim().trim_matches(|c| c == '"' || c == '\'');
    (!value.is_empty()).then(|| value.to_owned())
}

fn kernels(root: &Root) -> Vec<String> {
    let mut kernels = root.names("/lib/modules");
    kernels.retain(|version| root.is_directory(&format!("/lib/modules/{version}/kernel")));
    kernels
}

/// From the ELF header of a program that every guest has.
fn architecture(root: &Root) -> Option<String> {
    let program = ["/bin/sh", "/sbin/init", "/usr/bin/env"].iter().find_map(|path| root.read(path).ok().flatten())?;
    let machine = program.starts_with(b"\x7fELF").then(|| program.get(18..20))??;
    let name = match machine {
        [0x3e, 0] => "x86_64",
        [0xb7, 0] => "aarch64",
        [0x03, 0] => "i386",
        _ => return None,
    };
    Some(name.to_owned())
}

/// A disk can be made for both: then the request decides, else what `/etc/fstab` mounts.
fn firmware(root: &Root, disks: &Disks, fstab: &str, wanted: BootMode) -> Option<Firmware> {
    let has_esp = disks.volumes().any(|(_, volume)| volume.partition.is_esp && volume.holds(Content::Vfat));
    let mounts_esp = fstab::entries(fstab).any(|entry| matches!(entry.mount_point, "/boot/efi" | "/efi"));
    let uefi = has_esp || mounts_esp || (disks.0.is_empty() && root.is_directory("/boot/efi/EFI"));
    let bios = disks.0.iter().any(|disk| disk.grub_boot_sector) || (disks.0.is_empty() && !uefi);
    match (bios, uefi, wanted) {
        (true, true, BootMode::LegacyBios) | (true, false, _) => Some(Firmware::Bios),
        (true, true, BootMode::Uefi) | (false, true, _) => Some(Firmware::Uefi),
        (true, true, BootMode::UseSource) => Some(if mounts_esp { Firmware::Uefi } else { Firmware::Bios }),
        (false, false, _) => None,
    }
}

fn initramfs_tool(root: &Root) -> Option<&'static str> {
    if root.is_directory("/etc/initramfs-tools") {
        Some("initramfs-tools")
    } else if root.exists("/usr/bin/dracut") || root.exists("/usr/sbin/dracut") || root.exists("/etc/dracut.conf") {
        Some("dracut")
    } else {
        None
    }
}

fn network(root: &Root) -> Vec<String> {
    let has = |directory: &str, extension: &str| root.names(directory).iter().any(|name| name.ends_with(extension));
    let mut found = Vec::new();
    let mut add = |name: &str, is_there: bool| {
        if is_there {
            found.push(name.to_owned());
        }
    };
    add("ifupdown", root.exists("/etc/network/interfaces"));
    add("netplan", has("/etc/netplan", ".yaml"));
    add("systemd-networkd", has("/etc/systemd/network", ".network"));
    add("NetworkManager", has("/etc/NetworkManager/system-connections", ""));
    found
}
