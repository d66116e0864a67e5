//! How a disk is divided, by its first sectors.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rehost_model::link::PartitionTable;

/// Enough for a GPT with its usual 128 entries on disks with sectors of 512 and of 4096 bytes.
const HEAD_BYTES: u64 = 64 * 1024;

const MBR_SIGNATURE: [u8; 2] = [0x55, 0xaa];
const GPT_SIGNATURE: &[u8] = b"EFI PART";

/// The type of an EFI system partition in an MBR.
const MBR_ESP: u8 = 0xef;
/// c12a7328-f81f-11d2-ba4b-00a0c93ec93b and 21686148-6449-6e6f-744e-656564454649, as they lie on a disk.
const GPT_ESP: &[u8] = b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";
const GPT_BIOS_BOOT: &[u8] = b"Hah!IdontNeedEFI";

/// The kind of the partition table; `None` when there is none or it cannot be read.
pub(super) fn of(disk: &Path) -> PartitionTable {
    in_head(&head(disk))
}

/// Whether the disk is made to be started by UEFI: it has an EFI system partition, and no place for a BIOS boot loader.
pub(super) fn is_for_uefi(disk: &Path) -> bool {
    let head = head(disk);
    match in_head(&head) {
        PartitionTable::None => false,
        PartitionTable::Mbr => mbr_entries(&head).any(|entry| entry.get(4) == Some(&MBR_ESP)),
        PartitionTable::Gpt => {
            let types: Vec<_> = gpt_types(&head).collect();
            types.contains(&GPT_ESP) && !types.contains(&GPT_BIOS_BOOT)
        }
    }
}

fn head(disk: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    // What cannot be read has no table; the engine reports such a disk when it reads it.
    let _ = File::open(disk).and_then(|f| f.take(HEAD_BYTES).read_to_end(&mut head));
    head
}

fn mbr_entries(head: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    head.get(446..510).unwrap_or_default().chunks(16)
}

/// The types of a GPT's partitions, for the place and size that entries have in practice.
fn gpt_types(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let sector = if head.get(512..520) == Some(GPT_SIGNATURE) { 512 } else { 4096 };
    head.get(2 * sector..).unwrap_or_default().chunks(128).take(128).filter_map(|entry| entry.get(..16))
}

fn in_head(head: &[u8]) -> PartitionTable {
    let at = |offset: usize, length: usize| head.get(offset..offset + length).unwrap_or_default();
    if at(510, 2) != MBR_SIGNATURE {
        return PartitionTable::None;
    }
    if at(512, 8) == GPT_SIGNATURE || at(4096, 8) == GPT_SIGNATURE {
        return PartitionTable::Gpt;
    }
    let entries = mbr_entries(head);
    // The boot sector of a file system ends with the same signature; its code rarely looks like four partitions.
    let plausible = |entry: &[u8]| matches!(entry.first(), Some(0 | 0x80));
    let used = |entry: &[u8]| entry.get(4).is_some_and(|kind| *kind != 0);
    let is_mbr = entries.clone().all(plausible) && entries.clone().any(used);
    if is_mbr { PartitionTable::Mbr } else { PartitionTable::None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mbr(kind: u8) -> Vec<u8> {
        let mut head = vec![0; 8192];
        head[510..512].copy_from_slice(&MBR_SIGNATURE);
        (head[446], head[450]) = (0x80, kind);
        head
    }

    #[test]
    fn disks_for_uefi_are_known_by_their_partitions() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        let check = |head: &[u8]| {
            std::fs::write(&disk, head).unwrap();
            is_for_uefi(&disk)
        };
        assert!(check(&mbr(MBR_ESP)) && !check(&mbr(0x83)) && !check(&[]));
        for sector in [512, 4096] {
            let mut gpt = mbr(0xee);
            gpt.resize(2 * sector + 128 * 128, 0);
            gpt[sector..sector + 8].copy_from_slice(GPT_SIGNATURE);
            assert!(!check(&gpt));
            gpt[2 * sector + 128..2 * sector + 144].copy_from_slice(GPT_ESP);
            assert!(check(&gpt), "sectors of {sector}");
            gpt[2 * sector..2 * sector + 16].copy_from_slice(GPT_BIOS_BOOT);
            assert!(!check(&gpt));
        }
    }

    #[test]
    fn tables_are_told_apart() {
        assert_eq!(in_head(&mbr(0x83)), PartitionTable::Mbr);
        for header_at in [512, 4096] {
            let mut gpt = mbr(0xee);
            gpt[header_at..header_at + 8].copy_from_slice(GPT_SIGNATURE);
            assert_eq!(in_head(&gpt), PartitionTable::Gpt);
        }
        let mut boot_sector = mbr(0x83);
        boot_sector[446 + 16] = 0x6e;
        for none in [boot_sector, mbr(0), vec![0; 8192], vec![], vec![0x55; 511]] {
            assert_eq!(in_head(&none), PartitionTable::None);
        }
    }
}
