//! All rules together on a Debian-like tree: a dry run tells exactly what a conversion then does, and a second conversion finds nothing to do.

// What the tests share stops at the first surprise, as the tests do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rehost_converter::disk::{Content, Disk, Disks, Partition, Superblock, Volume};
use rehost_converter::{Guest, Root, carry_out, plan};
use rehost_model::conversion::{
    ConversionOutcome, ConversionReport, ConversionRequest, ConversionTarget, Firmware, PartitionTable,
};
use rehost_model::launch::BootMode;

const FILES: [(&str, &str); 20] = [
    ("etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
    (
        "etc/fstab",
        "/dev/sda2 / ext4 defaults 0 1\n/dev/sda1 /boot/efi vfat umask=0077 0 1\n/dev/sdc1 /backup ext4 defaults 0 2\n",
    ),
    ("etc/default/grub", "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n"),
    ("etc/initramfs-tools/modules", "# none\n"),
    ("etc/initramfs-tools/conf.d/resume", "RESUME=/dev/sdz9\n"),
    ("etc/network/interfaces", "source /etc/network/interfaces.d/*\nauto lo\niface lo inet loopback\n"),
    (
        "etc/network/interfaces.d/lan",
        "auto ens192\niface ens192 inet static\n\taddress 10.0.0.5/24\n\tgateway 10.0.0.1\n",
    ),
    (
        "etc/udev/rules.d/70-persistent-net.rules",
        "SUBSYSTEM==\"net\", ATTR{address}==\"52:54:00:00:00:01\", NAME=\"ens192\"\n",
    ),
    (
        "boot/grub/grub.cfg",
        "terminal_output gfxterm\n\tlinux /boot/vmlinuz-6.1 root=/dev/sda2 ro quiet\n\tinitrd /boot/initrd.img-6.1\n",
    ),
    ("boot/grub/x86_64-efi/serial.mod", "module"),
    ("boot/grub/device.map", "(hd0) /dev/sda\n"),
    ("boot/initrd.img-6.1", "an initramfs"),
    ("boot/efi/EFI/debian/grubx64.efi", "grub"),
    ("usr/lib/modules/6.1/modules.dep", "kernel/nvme.ko:\n"),
    ("usr/lib/modules/6.1/kernel/nvme.ko", "nvme"),
    ("usr/lib/systemd/systemd", ""),
    ("usr/bin/udevadm", ""),
    ("usr/sbin/dhclient", ""),
    ("var/lib/rehost-agent/key.pem", "secret"),
    ("etc/systemd/system/rehost-agent.service", "[Service]\n"),
];

fn tree() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, contents) in FILES {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    for link in ["lib", "bin", "sbin"] {
        symlink(format!("usr/{link}"), directory.path().join(link)).unwrap();
    }
    let wants = directory.path().join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants).unwrap();
    symlink("/etc/systemd/system/rehost-agent.service", wants.join("rehost-agent.service")).unwrap();
    symlink("/lib/systemd/system/vboxadd.service", wants.join("vboxadd.service")).unwrap();
    directory
}

fn volume(number: u32, content: Content, uuid: &str, is_esp: bool) -> Volume {
    let superblock = Superblock { content, uuid: Some(uuid.to_owned()), label: None, has_errors: false };
    let partition = Partition { number, bytes: 1 << 20, is_esp, ..Partition::default() };
    Volume { partition, superblock: Some(superblock) }
}

fn convert(directory: &Path, dry_run: bool) -> ConversionReport {
    let disks = Disks(vec![Disk {
        node: "/dev/nvme0n1".into(),
        source_device: Some("/dev/sda".to_owned()),
        bytes: 4 << 20,
        table: PartitionTable::Gpt,
        volumes: vec![volume(1, Content::Vfat, "AAAA-BBBB", true), volume(2, Content::Ext4, "0000-root", false)],
        grub_boot_sector: false,
    }]);
    let request = ConversionRequest::new(ConversionTarget::Ec2, BootMode::UseSource, Vec::new());
    let guest = Guest::survey(Root::new(directory), disks, &request, None);
    carry_out(&guest, plan(&guest), dry_run, Instant::now())
}

/// Every file and link with its contents.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match fs::read_link(&path) {
                Ok(target) => drop(all.insert(path, target.into_os_string().into_encoded_bytes())),
                Err(_) if path.is_dir() => pending.push(path),
                Err(_) => drop(all.insert(path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    all
}

#[test]
fn a_dry_run_tells_what_a_conversion_does_and_changes_nothing() {
    let tree = tree();
    let before = snapshot(tree.path());
    let rehearsal = convert(tree.path(), true);
    assert_eq!(snapshot(tree.path()), before);
    let conversion = convert(tree.path(), false);
    assert_eq!((rehearsal.outcome, conversion.outcome), (ConversionOutcome::Converted, ConversionOutcome::Converted));
    assert_eq!(rehearsal.actions, conversion.actions);
    assert_eq!(rehearsal.findings, conversion.findings);
    let guest = conversion.guest.unwrap();
    assert_eq!((guest.firmware, guest.root_device.as_deref()), (Some(Firmware::Uefi), Some("/dev/sda2")));

    // Exactly the announced files differ: edited, new, gone, or kept as an original.
    let after = snapshot(tree.path());
    let announced = |path: &Path| {
        let path = format!("/{}", path.strip_prefix(tree.path()).unwrap().display());
        let is = |own: &str| path == own || path.starts_with(&format!("{own}/"));
        conversion.actions.iter().any(|action| is(&action.path) || action.backup.as_deref().is_some_and(is))
    };
    for path in before.keys().chain(after.keys()) {
        assert_eq!(before.get(path) != after.get(path), announced(path), "{}", path.display());
    }
    for action in &conversion.actions {
        if let Some(backup) = &action.backup {
            let original = before.get(&tree.path().join(action.path.trim_start_matches('/')));
            assert_eq!(after.get(&tree.path().join(backup.trim_start_matches('/'))), original, "{backup}");
        }
    }
}

#[test]
fn a_second_conversion_finds_nothing_to_do() {
    let tree = tree();
    assert_eq!(convert(tree.path(), false).outcome, ConversionOutcome::Converted);
    let once = snapshot(tree.path());
    let second = convert(tree.path(), false);
    assert_eq!((second.outcome, second.actions), (ConversionOutcome::Unchanged, Vec::new()));
    assert_eq!(snapshot(tree.path()), once);
}

#[test]
fn a_guest_that_cannot_boot_is_not_edited() {
    let tree = tree();
    fs::write(tree.path().join("usr/lib/modules/6.1/modules.dep"), "kernel/ahci.ko:\n").unwrap();
    let before = snapshot(tree.path());
    let report = convert(tree.path(), false);
    assert_eq!(report.outcome, ConversionOutcome::Failed);
    assert!(report.failure().unwrap().contains("NVMe"));
    fs::write(tree.path().join("etc/os-release"), "ID=rocky\n").unwrap();
    assert_eq!(convert(tree.path(), false).outcome, ConversionOutcome::Unsupported);
    fs::write(tree.path().join("etc/os-release"), FILES[0].1).unwrap();
    assert_eq!(snapshot(tree.path()), before);
}

#[test]
fn an_edit_that_fails_is_reported() {
    let tree = tree();
    // A directory in the place of the temporary name: the settings cannot be written.
    fs::create_dir_all(tree.path().join("etc/default/grub.rehost-new/x")).unwrap();
    let report = convert(tree.path(), false);
    assert_eq!(report.outcome, ConversionOutcome::Failed);
    assert!(report.failure().unwrap().contains("/etc/default/grub"), "{report:?}");
}
