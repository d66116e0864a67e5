use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

fn mbr_entry(disk: &mut [u8], at: usize, kind: u8, start: u32, sectors: u32) {
    disk[at + 4] = kind;
    put(disk, at + 8, &start.to_le_bytes());
    put(disk, at + 12, &sectors.to_le_bytes());
}

fn signed(disk: &mut [u8], at: usize) {
    put(disk, at + 510, &[0x55, 0xaa]);
}

fn ext4(disk: &mut [u8], at: usize, uuid: u8) {
    put(disk, at + 1024 + 0x38, &[0x53, 0xef, 1, 0]);
    put(disk, at + 1024 + 0x60, &0x242u32.to_le_bytes());
    put(disk, at + 1024 + 0x68, &[uuid; 16]);
    put(disk, at + 1024 + 0x78, b"rootfs");
}

fn swap(disk: &mut [u8], at: usize) {
    put(disk, at + 4086, b"SWAPSPACE2");
    put(disk, at + 1036, &[0x22; 16]);
}

/// A primary ext4, and swap in the first of two logical partitions.
fn mbr_disk() -> Vec<u8> {
    let mut disk = vec![0; 8 * MIB];
    put(&mut disk, 0x180, b"GRUB ");
    put(&mut disk, 440, &0x1234_abcd_u32.to_le_bytes());
    mbr_entry(&mut disk, 446, 0x83, 2048, 4096);
    mbr_entry(&mut disk, 462, 0x05, 8192, 8192);
    signed(&mut disk, 0);
    let extended = 8192 * 512;
    mbr_entry(&mut disk, extended + 446, 0x82, 64, 1024);
    mbr_entry(&mut disk, extended + 462, 0x05, 2048, 2048);
    signed(&mut disk, extended);
    mbr_entry(&mut disk, extended + 2048 * 512 + 446, 0x83, 64, 1024);
    signed(&mut disk, extended + 2048 * 512);
    ext4(&mut disk, MIB, 0x11);
    swap(&mut disk, extended + 64 * 512);
    disk
}

fn gpt_disk() -> Vec<u8> {
    let mut disk = vec![0; 4 * MIB];
    mbr_entry(&mut disk, 446, 0xee, 1, 8191);
    signed(&mut disk, 0);
    put(&mut disk, 512, b"EFI PART");
    put(&mut disk, 512 + 72, &2u64.to_le_bytes());
    put(&mut disk, 512 + 80, &128u32.to_le_bytes());
    put(&mut disk, 512 + 84, &128u32.to_le_bytes());
    let esp = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
    for (entry, kind, start) in [(0, esp, 2048u64), (2, [7; 16], 4096)] {
        let at = 1024 + entry * 128;
        put(&mut disk, at, &kind);
        put(&mut disk, at + 16, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        put(&mut disk, at + 32, &start.to_le_bytes());
        put(&mut disk, at + 40, &(start + 2047).to_le_bytes());
        put(&mut disk, at + 56, &[b'd', 0, b'a', 0]);
    }
    put(&mut disk, MIB + 54, b"FAT16   ");
    put(&mut disk, MIB + 39, &0x1234_abcdu32.to_le_bytes());
    signed(&mut disk, MIB);
    ext4(&mut disk, 2 * MIB, 0x33);
    disk
}

fn parse(bytes: &[u8], source: Option<&str>) -> Disk {
    Disk::parse(&bytes, Path::new("/dev/nvme0n1"), source.map(str::to_owned))
}

fn uuid(disks: &Disks, spec: &str) -> Option<String> {
    match disks.resolve(spec) {
        Resolution::Found(_, volume) => volume.uuid().map(str::to_owned),
        _ => None,
    }
}

const ROOT_UUID: &str = "11111111-1111-1111-1111-111111111111";
const SWAP_UUID: &str = "22222222-2222-2222-2222-222222222222";

#[test]
fn mbr_with_logical_partitions() {
    let disk = parse(&mbr_disk(), None);
    assert_eq!(disk.table, PartitionTable::Mbr);
    assert!(disk.grub_boot_sector);
    let numbers: Vec<u32> = disk.volumes.iter().map(|volume| volume.partition.number).collect();
    assert_eq!(numbers, [1, 5, 6]);
    assert!(disk.volumes[0].holds(Content::Ext4));
    assert_eq!(disk.volumes[0].superblock.as_ref().unwrap().label.as_deref(), Some("rootfs"));
    assert!(disk.volumes[1].holds(Content::Swap));
    assert_eq!(disk.volumes[0].partition.partuuid.as_deref(), Some("1234abcd-01"));
    assert_eq!(disk.volume_node(5), Path::new("/dev/nvme0n1p5"));
}

#[test]
fn gpt_keeps_its_numbers() {
    let disk = parse(&gpt_disk(), None);
    assert_eq!(disk.table, PartitionTable::Gpt);
    let numbers: Vec<u32> = disk.volumes.iter().map(|volume| volume.partition.number).collect();
    assert_eq!(numbers, [1, 3]);
    assert!(disk.volumes[0].partition.is_esp);
    assert_eq!(disk.volumes[0].uuid(), Some("1234-ABCD"));
    assert_eq!(disk.volumes[1].partition.partuuid.as_deref(), Some("03020100-0504-0706-0809-0a0b0c0d0e0f"));
    assert_eq!(disk.volumes[1].partition.name.as_deref(), Some("da"));
}

#[test]
fn a_file_system_on_the_whole_disk() {
    let mut bytes = vec![0; MIB];
    ext4(&mut bytes, 0, 0x44);
    let disk = parse(&bytes, None);
    assert_eq!((disk.table, disk.volumes[0].partition.number), (PartitionTable::None, 0));
    assert!(disk.volumes[0].holds(Content::Ext4));
}

#[test]
fn marked_errors_are_seen() {
    let mut bytes = vec![0; MIB];
    ext4(&mut bytes, 0, 0x44);
    bytes[1024 + 0x3a] = 3;
    assert!(parse(&bytes, None).volumes[0].superblock.as_ref().unwrap().has_errors);
}

#[test]
fn a_loop_of_logical_partitions_ends() {
    let mut disk = mbr_disk();
    let second = (8192 + 2048) * 512;
    mbr_entry(&mut disk, second + 462, 0x05, 0, 2048);
    assert!(parse(&disk, None).volumes.len() < 300);
}

#[test]
fn names_of_the_source_resolve_by_its_own_order() {
    let disks = Disks(vec![parse(&gpt_disk(), Some("/dev/sdb")), parse(&mbr_disk(), Some("/dev/sda"))]);
    assert_eq!(uuid(&disks, "/dev/sda1").as_deref(), Some(ROOT_UUID));
    assert_eq!(uuid(&disks, "/dev/sda5").as_deref(), Some(SWAP_UUID));
    assert_eq!(uuid(&disks, "/dev/sdb1").as_deref(), Some("1234-ABCD"));
    assert_eq!(disks.resolve("/dev/sdc1"), Resolution::Missing);
}

#[test]
fn names_without_a_hint_resolve_by_position() {
    let disks = Disks(vec![parse(&mbr_disk(), None), parse(&gpt_disk(), None)]);
    for name in
        ["/dev/sda1", "/dev/vda1", "/dev/xvda1", "/dev/nvme0n1p1", "LABEL=rootfs", "/dev/disk/by-partuuid/1234abcd-01"]
    {
        assert_eq!(uuid(&disks, name).as_deref(), Some(ROOT_UUID), "{name}");
    }
    assert_eq!(uuid(&disks, "/dev/sdb1").as_deref(), Some("1234-ABCD"));
    assert_eq!(uuid(&disks, "UUID=1234-abcd").as_deref(), Some("1234-ABCD"));
    assert_eq!(disks.resolve("/dev/disk/by-id/ata-X-part1"), Resolution::Missing);
    for other in ["/dev/mapper/vg-root", "/dev/vg/root", "tmpfs", "nas:/export", "/swapfile", "/dev/md0"] {
        assert_eq!(disks.resolve(other), Resolution::NotHardware, "{other}");
    }
}

#[test]
fn hardware_links_resolve_with_a_single_disk() {
    let disks = Disks(vec![parse(&mbr_disk(), Some("/dev/sda"))]);
    assert_eq!(uuid(&disks, "/dev/disk/by-id/ata-QEMU_HARDDISK-part5").as_deref(), Some(SWAP_UUID));
}

proptest! {
    #[test]
    fn hostile_disks_do_no_harm(
        gpt in any::<bool>(),
        flips in proptest::collection::vec((0usize..6000, any::<u8>()), 0..60),
        cut in 0usize..4 * MIB,
    ) {
        let mut disk = if gpt { gpt_disk() } else { mbr_disk() };
        for (at, byte) in flips {
            disk[at] = byte;
        }
        disk.truncate(cut);
        let _ = parse(&disk, None).inventory();
    }

    #[test]
    fn hostile_superblocks_do_no_harm(head in proptest::collection::vec(any::<u8>(), 0..5000), kind in 0usize..6) {
        let mut head = head;
        let magic: (usize, &[u8]) = [
            (1080, b"\x53\xef".as_slice()), (0, b"XFSB"), (0, b"LUKS\xba\xbe"), (512, b"LABELONE"), (4086, b"SWAPSPACE2"), (510, b"\x55\xaa"),
        ][kind];
        if head.len() >= magic.0 + magic.1.len() {
            put(&mut head, magic.0, magic.1);
        }
        let _ = parse(&head, None).inventory();
    }

    #[test]
    fn hostile_names_do_no_harm(name in "(/dev/)?(sd|nvme|disk/by-id/|xvd)?[a-z0-9=/-]{0,30}") {
        let disks = Disks(vec![parse(&mbr_disk(), None)]);
        let _ = disks.resolve(&name);
    }
}
