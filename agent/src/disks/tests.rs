use std::os::unix::fs::symlink;

use super::*;

/// A machine laid out in a directory: disks are files under `dev`.
struct Machine {
    root: tempfile::TempDir,
    system: System,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let system = System::under(root.path());
        for folder in ["sys/block", "sys/class/block", "sys/dev/block", "sys/devices", "proc/self", "dev", "etc"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        Self { root, system }
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn link(&self, from: &str, to: &str) {
        symlink(self.root.path().join(to), self.root.path().join(from)).unwrap();
    }

    /// A disk of `sectors` sectors, with partitions numbered from 1.
    fn disk(&self, name: &str, number: &str, sectors: u64, partitions: &[&str]) -> &Self {
        let folder = format!("sys/devices/{name}");
        self.write(&format!("{folder}/size"), sectors.to_string());
        self.link(&format!("sys/block/{name}"), &folder);
        self.link(&format!("sys/class/block/{name}"), &folder);
        self.link(&format!("sys/dev/block/{number}"), &folder);
        self.write(&format!("dev/{}", name.replace('!', "/")), vec![0; 512 * usize::try_from(sectors).unwrap()]);
        for (index, partition) in (1..).zip(partitions) {
            self.write(&format!("{folder}/{partition}/partition"), index.to_string());
            self.write(&format!("dev/{partition}"), vec![0; 512]);
            self.link(&format!("sys/class/block/{partition}"), &format!("{folder}/{partition}"));
            self.link(&format!("sys/dev/block/{number}{index}"), &format!("{folder}/{partition}"));
        }
        self
    }

    fn mounts(&self, lines: &str) -> &Self {
        self.write("proc/self/mountinfo", lines);
        self
    }

    fn device(&self, name: &str) -> String {
        self.system.dev.join(name).display().to_string()
    }

    fn select(&self, chosen: Option<&[String]>) -> Result<Selection, DiskError> {
        select(&self.system, chosen)
    }

    /// Names and boot flags of what is selected.
    fn selected(&self, chosen: Option<&[String]>) -> Vec<(String, bool)> {
        let name = |d: &SourceDisk| d.device_name.rsplit('/').next().unwrap().to_owned();
        self.select(chosen).unwrap().disks.iter().map(|d| (name(d), d.is_boot_disk)).collect()
    }
}

fn entry(name: &str, is_boot: bool) -> (String, bool) {
    (name.to_owned(), is_boot)
}

#[test]
fn all_whole_disks_are_taken_the_boot_disk_first() {
    let machine = Machine::new();
    machine.disk("sda", "8:0", 8, &["sda1"]).disk("sdb", "8:16", 16, &["sdb1"]).disk("cciss!c0d0", "104:0", 8, &[]);
    machine.mounts("22 1 8:161 / / rw - ext4 /dev/sdb1 rw");
    assert_eq!(machine.selected(None), [entry("sdb", true), entry("c0d0", false), entry("sda", false)]);
    let disks = machine.select(None).unwrap().disks;
    assert_eq!(disks[0].size_bytes, 16 * 512);
    assert_eq!(disks[1].device_name, machine.device("cciss/c0d0"));
}

#[test]
fn what_is_no_disk_is_left_out() {
    let machine = Machine::new();
    for (name, number) in
        [("loop0", "7:0"), ("zram0", "252:0"), ("sr0", "11:0"), ("dm-0", "253:0"), ("md0", "9:0"), ("nbd0", "43:0")]
    {
        machine.disk(name, number, 8, &[]);
    }
    machine.disk("sdc", "8:32", 8, &[]).disk("sdd", "8:48", 8, &[]).disk("sde", "8:64", 0, &[]);
    machine.write("sys/devices/sdc/removable", "1");
    machine.write("sys/devices/sdd/ro", "1");
    assert!(matches!(machine.select(None), Err(DiskError::None { .. })));
    machine.disk("vda", "254:0", 8, &[]);
    let selection = machine.select(None).unwrap();
    assert_eq!(selection.disks.len(), 1);
    assert!(selection.notes[0].contains("is taken for the boot disk"), "{:?}", selection.notes);
}

#[test]
fn the_boot_disk_is_found_below_lvm_and_on_btrfs() {
    let machine = Machine::new();
    machine.disk("nvme0n1", "259:0", 8, &["nvme0n1p1"]).disk("sda", "8:0", 8, &["sda1"]).disk("dm-0", "253:0", 4, &[]);
    machine.write("sys/devices/dm-0/slaves/nvme0n1p1", "");
    machine.mounts("22 1 253:0 / / rw - ext4 /dev/mapper/vg-root rw");
    assert_eq!(machine.selected(None)[0], entry("nvme0n1", true));
    let source = machine.device("sda1");
    machine.mounts(&format!("22 1 0:31 /@ / rw shared:1 - btrfs {source} rw,subvol=/@"));
    assert_eq!(machine.selected(None)[0], entry("sda", true));
    machine.mounts(&format!("22 1 0:31 /@ / rw - btrfs {source} rw\n23 22 259:01 / /boot rw - ext4 /dev/nvme0n1p1 rw"));
    assert_eq!(machine.selected(None)[0], entry("nvme0n1", true));
}

#[test]
fn the_boot_disk_goes_along_with_chosen_disks() {
    let machine = Machine::new();
    machine.disk("sda", "8:0", 8, &["sda1"]).disk("sdb", "8:16", 16, &[]);
    machine.mounts("22 1 8:01 / / rw - ext4 /dev/sda1 rw");
    let chosen = [machine.device("sdb")];
    assert_eq!(machine.selected(Some(&chosen)), [entry("sda", true), entry("sdb", false)]);
    assert!(machine.select(Some(&chosen)).unwrap().notes[0].contains("is the boot disk"));
}

#[test]
fn images_stand_for_another_machine() {
    let machine = Machine::new();
    machine.disk("sda", "8:0", 8, &["sda1"]).mounts("22 1 8:01 / / rw - ext4 /dev/sda1 rw");
    machine.write("a.img", vec![0; 1024]);
    machine.write("b.img", vec![0; 512]);
    let image = |name: &str| machine.root.path().join(name).display().to_string();
    assert_eq!(
        machine.selected(Some(&[image("a.img"), image("b.img")])),
        [entry("a.img", true), entry("b.img", false)]
    );
}

#[test]
fn wrong_choices_are_refused_with_the_remedy() {
    let machine = Machine::new();
    machine.disk("sda", "8:0", 8, &["sda1"]);
    machine.write("odd.img", [0; 700]);
    let odd = machine.root.path().join("odd.img").display().to_string();
    let refused = |chosen: &[String]| machine.select(Some(chosen)).unwrap_err().to_string();
    let partition = refused(&[machine.device("sda1")]);
    assert!(partition.ends_with(&format!("name {}", machine.device("sda"))), "{partition}");
    assert!(refused(&[machine.device("sdz")]).starts_with("cannot open "));
    assert!(refused(&[machine.device("")]).contains("neither a block device nor a file"));
    assert!(refused(&[machine.device("sda"), machine.device("sda")]).contains("named twice"));
    assert!(refused(&[odd]).contains("700 bytes"));
}

#[test]
fn a_disk_that_is_added_is_seen_where_all_are_replicated() {
    let machine = Machine::new();
    machine.disk("sda", "8:0", 2048, &[]).disk("sdb", "8:16", 4096, &[]).disk("loop0", "7:0", 64, &[]);
    let (sda, sdb, image) = (machine.device("sda"), machine.device("sdb"), machine.device("loop0"));
    let names = |found: Vec<SourceDisk>| found.into_iter().map(|disk| disk.device_name).collect::<Vec<_>>();
    let inventory = |replicated: &[&str], all| names(inventory(&machine.system, replicated, all));
    assert_eq!(inventory(&[&sda], true), [sda.clone(), sdb]);
    assert_eq!(inventory(&[&sda], false), [sda]);
    // An image stands for another machine.
    assert_eq!(inventory(&[&image], true), [image.as_str()]);
    assert_eq!(inventory(&["/nonexistent"], true), Vec::<String>::new());
}
