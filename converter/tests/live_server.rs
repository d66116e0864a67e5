//! `rehost-converter run` on a real image: a partition with an ext4 file system, attached as a loop device. Needs root.

// What the tests share stops at the first surprise, as the tests do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rehost_model::VolumeId;
use rehost_model::conversion::{
    ConversionOutcome, ConversionReport, ConversionRequest, ConversionTarget, RequestedDisk,
};
use rehost_model::launch::BootMode;

const FILES: [(&str, &str); 16] = [
    ("etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
    ("etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n/dev/sdc1 /backup ext4 defaults 0 2\n"),
    ("etc/default/grub", "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n"),
    ("etc/initramfs-tools/modules", "# none\n"),
    ("etc/network/interfaces", "auto lo\niface lo inet loopback\n"),
    ("boot/grub/grub.cfg", "\tlinux /boot/vmlinuz-6.1 root=/dev/sda1 ro quiet\n\tinitrd /boot/initrd.img-6.1\n"),
    ("boot/grub/i386-pc/serial.mod", "module"),
    ("boot/grub/i386-pc/core.img", "core"),
    ("boot/vmlinuz-6.1", "a kernel"),
    ("boot/initrd.img-6.1", "an initramfs"),
    ("usr/lib/modules/6.1/modules.dep", "kernel/nvme.ko:\nkernel/ena.ko:\n"),
    ("usr/lib/modules/6.1/kernel/nvme.ko", "nvme"),
    ("usr/lib/modules/6.1/kernel/ena.ko", "ena"),
    ("usr/lib/systemd/systemd", ""),
    ("usr/bin/udevadm", ""),
    ("usr/sbin/dhclient", ""),
];

/// First sector of the partition, and its size.
const START: u64 = 2048 * 512;
const BYTES: u64 = 32 << 20;

fn succeeds(command: &mut Command) -> Output {
    let done = command.stdin(Stdio::null()).output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    done
}

/// An image as a volume's file, named by its id.
fn image(directory: &Path) -> VolumeId {
    let tree = tempfile::tempdir().unwrap();
    for (path, contents) in FILES {
        let path = tree.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    for link in ["lib", "bin", "sbin"] {
        symlink(format!("usr/{link}"), tree.path().join(link)).unwrap();
    }
    let volume = VolumeId::generate();
    let path = directory.join(volume.as_str());
    let file = fs::File::create(&path).unwrap();
    file.set_len(START + BYTES).unwrap();
    file.write_all_at(b"GRUB", 0x180).unwrap();
    // An entry of a partition table: active, Linux, from START on.
    let sectors = [START / 512, BYTES / 512].map(|n| u32::try_from(n).unwrap().to_le_bytes());
    let entry = [&[0x80, 0, 0, 0, 0x83, 0, 0, 0][..], &sectors[0], &sectors[1]].concat();
    file.write_all_at(&entry, 446).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    let offset = format!("offset={START}");
    succeeds(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-E", &offset, "-d"])
            .arg(tree.path())
            .arg(&path)
            .arg(format!("{}k", BYTES / 1024)),
    );
    volume
}

fn convert(directory: &Path, volume: &VolumeId) -> (ConversionReport, bool) {
    let disk = RequestedDisk { serial: volume.nvme_serial(), source_device: Some("/dev/sda".to_owned()) };
    let request = ConversionRequest::new(ConversionTarget::Ec2, BootMode::UseSource, vec![disk]);
    let paths: [PathBuf; 2] = ["request.json", "report.json"].map(|name| directory.join(name));
    fs::write(&paths[0], serde_json::to_vec(&request).unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rehost-converter"));
    command.arg("run").arg("--request").arg(&paths[0]).arg("--report").arg(&paths[1]);
    command.arg("--disks-directory").arg(directory).args(["--wait-seconds", "30"]);
    let done = command.stdin(Stdio::null()).output().unwrap();
    let report = fs::read(&paths[1]).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&done.stderr)));
    (serde_json::from_slice(&report).unwrap(), done.status.success())
}

fn loop_devices_of(path: &Path) -> String {
    let done = succeeds(Command::new("losetup").arg("--associated").arg(path));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[test]
fn live_a_volume_of_a_directory_is_converted_once() {
    let directory = tempfile::tempdir().unwrap();
    let volume = image(directory.path());
    let (report, succeeded) = convert(directory.path(), &volume);
    assert_eq!(report.outcome, ConversionOutcome::Converted, "{report:#?}");
    assert!(succeeded && report.actions.iter().any(|action| action.path.ends_with("fstab")), "{report:#?}");
    let guest = report.guest.unwrap();
    assert_eq!(guest.root_device.as_deref(), Some("/dev/sda1"));
    let path = directory.path().join(volume.as_str());
    assert_eq!(loop_devices_of(&path), "", "the loop device is gone");
    let (again, _) = convert(directory.path(), &volume);
    assert_eq!(again.outcome, ConversionOutcome::Unchanged, "what was edited is on the volume: {again:#?}");
    assert!(!directory.path().join("report.json.partial").exists());
}
