//! Which guests can be converted; the others are refused before anything is edited, each with cause and remedy.

use rehost_model::conversion::{Finding, Severity};

use crate::disk::{Content, Disks, Resolution};
use crate::fstab;
use crate::guest::{GRUB_CFG, Guest, OWN_VOLUMES};

const RULE: &str = "support";
/// `ID`s of distributions whose boot path differs from Debian's.
const OTHER_FAMILIES: [&str; 14] = [
    "rhel",
    "centos",
    "fedora",
    "rocky",
    "almalinux",
    "ol",
    "amzn",
    "suse",
    "opensuse",
    "sles",
    "arch",
    "gentoo",
    "alpine",
    "nixos",
];

/// Why this guest cannot be converted; empty if it can.
#[must_use]
pub(crate) fn obstacles(guest: &Guest) -> Vec<Finding> {
    [family(guest), architecture(guest), boot_loader(guest), initramfs(guest)]
        .into_iter()
        .flatten()
        .chain(damaged(guest))
        .chain(own_volumes(guest))
        .collect()
}

/// Why there is no root file system among these volumes.
#[must_use]
pub fn no_root(disks: &Disks) -> Finding {
    let contents: Vec<&str> =
        disks.volumes().filter_map(|(_, volume)| Some(volume.superblock.as_ref()?.content.name())).collect();
    let has = |content: Content| contents.contains(&content.name());
    let (cause, remedy) = if has(Content::Luks) {
        ("the disks are encrypted (LUKS)", "decrypt them on the source, or move this server's data by other means")
    } else if has(Content::LvmMember) {
        (
            "no root file system on a plain partition; there are LVM volumes",
            "LVM is not supported yet: move the root file system to a partition",
        )
    } else if has(Content::RaidMember) {
        (
            "no root file system on a plain partition; there is software RAID",
            "break the mirror on the source, or wait for support of RAID",
        )
    } else if has(Content::Xfs) || has(Content::Btrfs) {
        ("no root file system on ext2, ext3 or ext4; there is xfs or btrfs", "xfs and btrfs are not supported yet")
    } else if has(Content::Ntfs) {
        ("the disks hold NTFS and no Linux", "Windows is not supported: migrate Linux servers only")
    } else {
        ("the disks hold no bootable Linux", "check that the boot disk is among the replicated disks")
    };
    let seen = if contents.is_empty() { "nothing that is known".to_owned() } else { contents.join(", ") };
    error(format!("{cause} (found: {seen})"), remedy)
}

fn family(guest: &Guest) -> Option<Finding> {
    let families = guest.os_families();
    let other = families.iter().find(|family| OTHER_FAMILIES.contains(&family.as_str()))?;
    let name = guest.inventory.os_name.as_deref().unwrap_or(other);
    Some(error(format!("{name} is not of the Debian family"), "only Debian and Ubuntu are supported yet"))
}

fn architecture(guest: &Guest) -> Option<Finding> {
    let other = guest.inventory.architecture.as_deref().filter(|architecture| *architecture != "x86_64")?;
    Some(error(format!("the guest's programs are for {other}"), "only x86_64 servers are supported yet"))
}

fn boot_loader(guest: &Guest) -> Option<Finding> {
    if guest.root.exists(GRUB_CFG) {
        return None;
    }
    let cause = if guest.root.is_directory("/boot") {
        format!("there is no {GRUB_CFG}: the guest starts with another boot loader, or /boot is not among the disks")
    } else {
        "there is no /boot: this is no bootable system".to_owned()
    };
    Some(error(cause, "replicate the disk with /boot; install GRUB on the source if it uses another boot loader"))
}

fn initramfs(guest: &Guest) -> Option<Finding> {
    (guest.inventory.initramfs_tool.as_deref() == Some("dracut"))
        .then(|| error("the guest builds its initramfs with dracut", "only initramfs-tools is supported yet"))
}

/// Volumes that would be edited and are marked as damaged. Others are checked by the guest itself when it boots.
fn damaged(guest: &Guest) -> Vec<Finding> {
    let text = guest.root.text("/etc/fstab").unwrap_or_default();
    let edited = fstab::entries(&text)
        .filter(|entry| OWN_VOLUMES.contains(&entry.mount_point))
        .map(|entry| entry.device.to_owned());
    let root = guest.root_uuid.iter().map(|uuid| format!("UUID={uuid}"));
    let is_damaged = |device: &String| match guest.disks.resolve(device) {
        Resolution::Found(_, volume) => volume.superblock.as_ref().is_some_and(|superblock| superblock.has_errors),
        _ => false,
    };
    let finding = |device| {
        let cause = format!("the file system {device} is marked as damaged");
        error(
            cause,
            "check it on the source (`fsck.mode=force` on the kernel's command line, reboot), then migrate again",
        )
    };
    edited.chain(root).filter(is_damaged).map(finding).collect()
}

/// `/boot` and the like on volumes that cannot be mounted here.
fn own_volumes(guest: &Guest) -> Vec<Finding> {
    let text = guest.root.text("/etc/fstab").unwrap_or_default();
    let mut found = Vec::new();
    for entry in fstab::entries(&text).filter(|entry| OWN_VOLUMES.contains(&entry.mount_point)) {
        let readable = match guest.disks.resolve(entry.device) {
            Resolution::Found(_, volume) => {
                volume.superblock.as_ref().is_some_and(|s| s.content.is_ext() || s.content == Content::Vfat)
            }
            Resolution::Missing => true, // The fstab rule has its own word on that.
            Resolution::NotHardware => matches!(entry.kind, "tmpfs" | "none" | "bind"),
        };
        if !readable {
            let cause =
                format!("{} is on {}, which cannot be mounted for the conversion", entry.mount_point, entry.device);
            found.push(error(cause, "only ext2, ext3, ext4 and vfat on partitions are supported yet"));
        }
    }
    found
}

fn error(cause: impl Into<String>, remedy: &str) -> Finding {
    Finding::new(Severity::Error, RULE, cause, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::testing::{Tree, disks};

    const FSTAB: &str = "/dev/sda1 / ext4\n";

    fn causes(tree: &Tree) -> Vec<String> {
        obstacles(&tree.guest()).into_iter().map(|finding| finding.cause).collect()
    }

    #[test]
    fn debian_with_grub_is_supported() {
        let tree =
            Tree::new(&[("/etc/fstab", FSTAB), (GRUB_CFG, ""), ("/etc/os-release", "ID=ubuntu\nID_LIKE=debian\n")]);
        assert_eq!(causes(&tree), [""; 0]);
    }

    #[test]
    fn others_are_refused_by_name() {
        let tree = Tree::new(&[
            ("/etc/os-release", "ID=\"rocky\"\nID_LIKE=\"rhel fedora\"\nPRETTY_NAME='Rocky 9'\n"),
            ("/usr/bin/dracut", ""),
        ]);
        tree.put("/bin/sh", [b"\x7fELF".as_slice(), &[0; 14], &[0xb7, 0]].concat());
        let causes = causes(&tree);
        assert_eq!(causes.len(), 4, "{causes:?}");
        assert!(causes[0].contains("Rocky 9") && causes[1].contains("aarch64"));
    }

    #[test]
    fn a_damaged_root_and_a_boot_on_lvm_are_refused() {
        let tree = Tree::new(&[("/etc/fstab", "/dev/sda1 / ext4\n/dev/vg/boot /boot ext4\n"), (GRUB_CFG, "")]);
        let mut disks = disks();
        disks.0[0].volumes[0].superblock.as_mut().unwrap().has_errors = true;
        let findings = obstacles(&tree.guest_on(disks));
        assert!(
            findings[0].cause.contains("damaged") && findings[1].cause.contains("/boot is on /dev/vg/boot"),
            "{findings:?}"
        );
    }

    #[test]
    fn disks_without_linux_say_what_they_hold() {
        assert!(no_root(&disks()).cause.contains("found: ext4, swap"));
        let mut encrypted = disks();
        encrypted.0[0].volumes[0].superblock.as_mut().unwrap().content = Content::Luks;
        assert!(no_root(&encrypted).cause.contains("encrypted"));
        assert!(no_root(&Disks::default()).cause.contains("no bootable Linux"));
    }
}
