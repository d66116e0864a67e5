use std::os::unix::fs::symlink;

use super::*;
use crate::freeze::mounts::parse;

/// A machine that is laid out in a directory: `sda` with a partition, a RAID of `sdb` and `sdc`, LVM on it, loop devices.
struct Machine {
    _root: tempfile::TempDir,
    system: System,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let machine = Self { system: System::under(root.path()), _root: root };
        fs::create_dir_all(&machine.system.dev).unwrap();
        machine
    }

    /// A device at `devices/block/{path}`; its node is an empty file.
    fn device(&self, path: &str, number: &str) -> &Self {
        let name = path.rsplit('/').next().unwrap();
        let directory = self.system.sys.join("devices/block").join(path);
        fs::create_dir_all(directory.join("slaves")).unwrap();
        fs::write(directory.join("dev"), format!("{number}\n")).unwrap();
        if path.contains('/') {
            fs::write(directory.join("partition"), "1\n").unwrap();
        }
        for (class, link) in [("dev/block", number), ("class/block", name)] {
            let class = self.system.sys.join(class);
            fs::create_dir_all(&class).unwrap();
            symlink(&directory, class.join(link)).unwrap();
        }
        fs::write(self.system.dev.join(name), "").unwrap();
        self
    }

    fn slave(&self, of: &str, path: &str) -> &Self {
        let devices = self.system.sys.join("devices/block");
        let name = path.rsplit('/').next().unwrap();
        symlink(devices.join(path), devices.join(of).join("slaves").join(name)).unwrap();
        self
    }

    fn backing(&self, of: &str, file: &str) -> &Self {
        let directory = self.system.sys.join("devices/block").join(of).join("loop");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("backing_file"), format!("{file}\n")).unwrap();
        self
    }

    fn btrfs(&self, uuid: &str, paths: &[&str]) -> &Self {
        let directory = self.system.sys.join("fs/btrfs").join(uuid).join("devices");
        fs::create_dir_all(&directory).unwrap();
        for path in paths {
            symlink(self.system.sys.join("devices/block").join(path), directory.join(path)).unwrap();
        }
        self
    }

    /// What lies below the last of the mounts.
    fn beneath(&self, mountinfo: &str) -> (Vec<String>, u32) {
        let mounts = parse(mountinfo.as_bytes());
        let layers = Layers { system: &self.system, mounts: &mounts };
        let beneath = layers.beneath(mounts.last().unwrap());
        (beneath.devices.iter().map(ToString::to_string).collect(), beneath.loops)
    }
}

fn found(devices: &[&str], loops: u32) -> (Vec<String>, u32) {
    (devices.iter().map(|d| (*d).to_owned()).collect(), loops)
}

#[test]
fn a_partition_lies_on_its_disk() {
    let machine = Machine::new();
    machine.device("sda", "8:0").device("sda/sda1", "8:1");
    assert_eq!(machine.beneath("1 1 8:1 / / rw - ext4 /dev/root rw"), found(&["8:0", "8:1"], 0));
}

#[test]
fn lvm_on_raid_lies_on_every_disk_of_it() {
    let machine = Machine::new();
    machine.device("sdb", "8:16").device("sdc", "8:32").device("sdc/sdc1", "8:33");
    machine.device("md0", "9:0").slave("md0", "sdb").slave("md0", "sdc/sdc1");
    machine.device("dm-0", "253:0").slave("dm-0", "md0");
    let below = machine.beneath("1 1 253:0 / /srv rw - xfs /dev/mapper/v-s rw");
    assert_eq!(below, found(&["8:16", "8:32", "8:33", "9:0", "253:0"], 0));
}

#[test]
fn a_loop_device_lies_on_what_its_file_lies_on() {
    let machine = Machine::new();
    machine.device("sda", "8:0").device("sda/sda1", "8:1");
    machine
        .device("loop0", "7:0")
        .backing("loop0", "/images/a")
        .device("loop1", "7:1")
        .backing("loop1", "/a/b (deleted)");
    let below = machine.beneath(
        "1 1 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 7:0 / /a rw - ext4 /dev/loop0 rw\n3 1 7:1 / /b rw - ext4 /dev/loop1 rw",
    );
    assert_eq!(below, found(&["7:0", "7:1", "8:0", "8:1"], 2));
}

#[test]
fn a_circle_of_loop_devices_ends() {
    let machine = Machine::new();
    machine.device("loop0", "7:0").backing("loop0", "/a/b");
    let (devices, loops) = machine.beneath("2 1 7:0 / /a rw - ext4 /dev/loop0 rw");
    assert_eq!((devices, loops), found(&["7:0"], MAX_LOOPS));
}

#[test]
fn a_btrfs_lies_on_all_of_its_devices_wherever_its_link_points() {
    let machine = Machine::new();
    machine.device("sdb", "8:16").device("sdc", "8:32").device("sdd", "8:48");
    machine.btrfs("one", &["sdb", "sdc"]).btrfs("two", &["sdd"]).btrfs("features", &[]);
    fs::create_dir_all(machine.system.dev.join("disk")).unwrap();
    symlink("../sdc", machine.system.dev.join("disk/by-x")).unwrap();
    let below = machine.beneath("1 1 0:40 /@ /b rw - btrfs /dev/disk/by-x rw,subvol=/@");
    assert_eq!(below, found(&["8:16", "8:32"], 0));
}

#[test]
fn filesystems_of_the_kernel_lie_on_nothing() {
    let machine = Machine::new();
    machine.device("sda", "8:0");
    assert_eq!(machine.beneath("1 1 0:20 / /proc rw - proc proc rw"), found(&[], 0));
    assert_eq!(machine.beneath("1 1 0:20 / /mnt rw - nfs4 host:/export rw"), found(&[], 0));
    assert_eq!(machine.beneath("1 1 0:20 / /mnt rw - btrfs /dev/gone rw"), found(&[], 0));
}
