//! Reads disks by itself: partition tables, and what each partition holds.
//!
//! The bytes come from somebody else's server. Every number in them is checked before it is used; what makes no sense is
//! "nothing known", never a panic.

mod names;
mod superblock;
mod table;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rehost_model::conversion::{DiskInventory, PartitionInventory, PartitionTable};

pub use names::Resolution;
pub use superblock::{Content, Superblock};
pub use table::{Partition, Table};

/// Bytes that can be read anywhere; a disk or a test's array.
pub trait Bytes {
    /// Exactly `length` bytes at `offset`, or nothing where they are not all there.
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>>;
    /// Size in bytes.
    fn size(&self) -> u64;
}

impl Bytes for &[u8] {
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
    }

    fn size(&self) -> u64 {
        self.len() as u64
    }
}

struct FileBytes {
    file: File,
    size: u64,
}

impl Bytes for FileBytes {
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let end = offset.checked_add(length as u64)?;
        let mut buffer = vec![0; if end <= self.size { length } else { return None }];
        self.file.read_exact_at(&mut buffer, offset).ok().map(|()| buffer)
    }

    fn size(&self) -> u64 {
        self.size
    }
}

/// A partition (or a whole disk without a partition table) and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub partition: Partition,
    /// Nothing where the content is not known.
    pub superblock: Option<Superblock>,
}

impl Volume {
    /// The content, if it is one that has this name.
    #[must_use]
    pub fn holds(&self, content: Content) -> bool {
        self.superblock.as_ref().is_some_and(|superblock| superblock.content == content)
    }

    /// The file system's UUID.
    #[must_use]
    pub fn uuid(&self) -> Option<&str> {
        self.superblock.as_ref()?.uuid.as_deref()
    }
}

/// One disk of the guest, as it is now attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The device or image file here.
    pub node: PathBuf,
    /// What the source calls it, such as `/dev/sda`.
    pub source_device: Option<String>,
    pub bytes: u64,
    pub table: PartitionTable,
    pub volumes: Vec<Volume>,
    /// Whether the boot sector has GRUB's first stage.
    pub grub_boot_sector: bool,
}

impl Disk {
    /// Reads a disk's partition table and superblocks.
    ///
    /// # Errors
    /// When the device cannot be opened or has no size; contents that make no sense are no error.
    pub fn read(node: &Path, source_device: Option<String>) -> io::Result<Self> {
        let file = File::open(node)?;
        let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
        Ok(Self::parse(&FileBytes { file, size }, node, source_device))
    }

    fn parse(bytes: &dyn Bytes, node: &Path, source_device: Option<String>) -> Self {
        let table = Table::read(bytes);
        let volume = |partition: Partition| {
            let superblock = Superblock::read(bytes, partition.start, partition.bytes);
            Volume { partition, superblock }
        };
        let boot_sector = bytes.read(0, 440).unwrap_or_default();
        Self {
            node: node.to_owned(),
            source_device,
            bytes: bytes.size(),
            table: table.kind,
            volumes: table.partitions.into_iter().map(volume).collect(),
            grub_boot_sector: boot_sector.windows(4).any(|window| window == b"GRUB"),
        }
    }

    /// The device of one of its volumes here: `/dev/nvme0n1p2`.
    #[must_use]
    pub fn volume_node(&self, number: u32) -> PathBuf {
        let node = self.node.to_string_lossy();
        match number {
            0 => self.node.clone(),
            _ if node.ends_with(|c: char| c.is_ascii_digit()) => format!("{node}p{number}").into(),
            _ => format!("{node}{number}").into(),
        }
    }

    /// For the report.
    #[must_use]
    pub fn inventory(&self) -> DiskInventory {
        let partition = |volume: &Volume| PartitionInventory {
            number: volume.partition.number,
            bytes: volume.partition.bytes,
            content: volume.superblock.as_ref().map(|superblock| superblock.content.name().to_owned()),
            uuid: volume.uuid().map(str::to_owned),
            label: volume.superblock.as_ref().and_then(|superblock| superblock.label.clone()),
        };
        DiskInventory {
            source_device: self.source_device.clone(),
            bytes: self.bytes,
            partition_table: self.table,
            partitions: self.volumes.iter().map(partition).collect(),
        }
    }
}

/// The guest's disks, in the source's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disks(pub Vec<Disk>);

impl Disks {
    /// Every volume with its disk.
    pub fn volumes(&self) -> impl Iterator<Item = (&Disk, &Volume)> {
        self.0.iter().flat_map(|disk| disk.volumes.iter().map(move |volume| (disk, volume)))
    }

    /// The volume that a name of the source's `/etc/fstab` or kernel command line means.
    #[must_use]
    pub fn resolve(&self, spec: &str) -> Resolution<'_> {
        names::resolve(self, spec)
    }
}

/// Little-endian numbers at checked places.
fn le_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

fn le_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn le_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests;
