//! Partition tables: MBR with logical partitions, and GPT. Numbers are those that the kernel gives.

use rehost_model::conversion::PartitionTable;

use super::{Bytes, le_u32, le_u64};

const SECTOR: u64 = 512;
/// As many as the kernel reads; a chain of logical partitions may be a loop.
const MAX_PARTITIONS: usize = 128;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const PROTECTIVE: u8 = 0xee;
/// `C12A7328-F81F-11D2-BA4B-00A0C93EC93B` as it is stored.
const ESP_TYPE: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
const ESP_MBR_TYPE: u8 = 0xef;

/// One partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Partition {
    /// As the kernel counts; 0 is the whole disk.
    pub number: u32,
    /// In bytes from the start of the disk.
    pub start: u64,
    pub bytes: u64,
    /// The `PARTUUID`, in lower case.
    pub partuuid: Option<String>,
    /// The GPT's name of it (`PARTLABEL`).
    pub name: Option<String>,
    /// Marked as EFI system partition.
    pub is_esp: bool,
}

/// How a disk is divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub kind: PartitionTable,
    /// For a disk without a table one entry, number 0: the disk itself.
    pub partitions: Vec<Partition>,
}

impl Table {
    /// Reads the table; a damaged one counts as none.
    #[must_use]
    pub fn read(bytes: &dyn Bytes) -> Self {
        let size = bytes.size();
        let whole = Partition { bytes: size, ..Partition::default() };
        let read = Mbr::read(bytes).and_then(|mbr| {
            if mbr.is_protective() {
                Some((PartitionTable::Gpt, read_gpt(bytes)?))
            } else {
                Some((PartitionTable::Mbr, mbr.partitions(bytes)))
            }
        });
        match read {
            Some((kind, mut partitions)) if !partitions.is_empty() => {
                partitions.retain(|partition| partition.start < size);
                Self { kind, partitions }
            }
            _ => Self { kind: PartitionTable::None, partitions: vec![whole] },
        }
    }
}

#[derive(Clone, Copy)]
struct MbrEntry {
    kind: u8,
    start: u64,
    sectors: u64,
}

struct Mbr {
    signature: u32,
    entries: Vec<MbrEntry>,
}

impl Mbr {
    /// The boot sector, if it has a partition table and is not a file system's own.
    fn read(bytes: &dyn Bytes) -> Option<Self> {
        let sector = bytes.read(0, 512)?;
        let entries = boot_record_entries(&sector)?;
        let flags_are_sane = (0..4).all(|index| matches!(sector.get(446 + index * 16), Some(0 | 0x80)));
        let mbr = Self { signature: le_u32(&sector, 440)?, entries };
        (flags_are_sane && mbr.entries.iter().any(|entry| entry.kind != 0)).then_some(mbr)
    }

    fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == PROTECTIVE)
    }

    fn partitions(&self, bytes: &dyn Bytes) -> Vec<Partition> {
        let mut found = Vec::new();
        for (number, entry) in (1..).zip(&self.entries) {
            if entry.kind != 0 && entry.sectors != 0 && !EXTENDED.contains(&entry.kind) {
                found.extend(self.partition(number, *entry));
            }
        }
        for entry in self.entries.iter().filter(|entry| EXTENDED.contains(&entry.kind)).take(1) {
            self.logical(bytes, entry.start, &mut found);
        }
        found
    }

    /// Walks the chain of boot records in the extended partition.
    fn logical(&self, bytes: &dyn Bytes, extended: u64, found: &mut Vec<Partition>) {
        let (mut record, mut number) = (extended, 5);
        for _ in 0..MAX_PARTITIONS {
            let sector = record.checked_mul(SECTOR).and_then(|at| bytes.read(at, 512));
            let Some(entries) = sector.as_deref().and_then(boot_record_entries) else { return };
            for entry in entries.iter().filter(|e| e.kind != 0 && e.sectors != 0 && !EXTENDED.contains(&e.kind)) {
                let Some(start) = record.checked_add(entry.start) else { return };
                found.extend(self.partition(number, MbrEntry { start, ..*entry }));
                number += 1;
            }
            let Some(next) = entries.iter().find(|entry| EXTENDED.contains(&entry.kind)) else { return };
            let Some(start) = extended.checked_add(next.start) else { return };
            record = start;
        }
    }

    fn partition(&self, number: u32, entry: MbrEntry) -> Option<Partition> {
        Some(Partition {
            number,
            start: entry.start.checked_mul(SECTOR)?,
            bytes: entry.sectors.checked_mul(SECTOR)?,
            partuuid: Some(format!("{:08x}-{number:02x}", self.signature)),
            name: None,
            is_esp: entry.kind == ESP_MBR_TYPE,
        })
    }
}

fn boot_record_entries(sector: &[u8]) -> Option<Vec<MbrEntry>> {
    if sector.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let entry = |index: usize| {
        let raw = sector.get(446 + index * 16..462 + index * 16)?;
        let (kind, start, sectors) = (*raw.get(4)?, le_u32(raw, 8)?, le_u32(raw, 12)?);
        Some(MbrEntry { kind, start: start.into(), sectors: sectors.into() })
    };
    (0..4).map(entry).collect()
}

/// The primary table, else the copy at the end of the disk; sectors of 512 or 4096 bytes.
fn read_gpt(bytes: &dyn Bytes) -> Option<Vec<Partition>> {
    [512, 4096].into_iter().find_map(|sector| {
        let last = (bytes.size() / sector).checked_sub(1)?;
        gpt_entries(bytes, sector, 1).or_else(|| gpt_entries(bytes, sector, last))
    })
}

fn gpt_entries(bytes: &dyn Bytes, sector: u64, header: u64) -> Option<Vec<Partition>> {
    let header = bytes.read(header.checked_mul(sector)?, 92)?;
    if !header.starts_with(b"EFI PART") {
        return None;
    }
    let (table, count, size) = (le_u64(&header, 72)?, le_u32(&header, 80)?, le_u32(&header, 84)?);
    if !(128..=4096).contains(&size) {
        return None;
    }
    let start = table.checked_mul(sector)?;
    let mut found = Vec::new();
    for index in 0..count.min(u32::try_from(MAX_PARTITIONS).ok()?) {
        let at = start.checked_add(u64::from(index) * u64::from(size))?;
        let Some(entry) = bytes.read(at, 128) else { break };
        found.extend(gpt_partition(index + 1, &entry, sector));
    }
    Some(found)
}

fn gpt_partition(number: u32, entry: &[u8], sector: u64) -> Option<Partition> {
    let kind = entry.get(..16)?;
    let (first, last) = (le_u64(entry, 32)?, le_u64(entry, 40)?);
    if kind.iter().all(|byte| *byte == 0) || last < first {
        return None;
    }
    let sectors = (last - first).checked_add(1)?;
    let name: Vec<u16> =
        (56..128).step_by(2).filter_map(|at| super::le_u16(entry, at)).take_while(|c| *c != 0).collect();
    Some(Partition {
        number,
        start: first.checked_mul(sector)?,
        bytes: sectors.checked_mul(sector)?,
        partuuid: mixed_endian_uuid(entry.get(16..32)?),
        name: (!name.is_empty()).then(|| String::from_utf16_lossy(&name)),
        is_esp: kind == ESP_TYPE,
    })
}

/// A GUID as Microsoft stores it: the first three fields little-endian.
fn mixed_endian_uuid(raw: &[u8]) -> Option<String> {
    let mut uuid: [u8; 16] = raw.try_into().ok()?;
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    Some(super::superblock::hyphenated(&uuid))
}
