//! What a partition holds: kind, UUID and label as blkid says them.

use super::{Bytes, le_u16, le_u32};

/// Enough for every superblock that is looked for (btrfs lies at 64 KiB).
const HEAD_BYTES: usize = 68 << 10;

/// Kinds of content that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Ext2,
    Ext3,
    Ext4,
    Vfat,
    Swap,
    Xfs,
    Btrfs,
    LvmMember,
    Luks,
    RaidMember,
    Ntfs,
}

impl Content {
    /// blkid's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Vfat => "vfat",
            Self::Swap => "swap",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::LvmMember => "LVM2_member",
            Self::Luks => "crypto_LUKS",
            Self::RaidMember => "linux_raid_member",
            Self::Ntfs => "ntfs",
        }
    }

    /// A file system that the converter mounts with ext4's driver.
    #[must_use]
    pub fn is_ext(self) -> bool {
        matches!(self, Self::Ext2 | Self::Ext3 | Self::Ext4)
    }
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    pub content: Content,
    pub uuid: Option<String>,
    pub label: Option<String>,
    /// The file system's own mark that it found errors in itself.
    pub has_errors: bool,
}

impl Superblock {
    /// Looks at the first 68 KiB of a partition.
    #[must_use]
    pub fn read(bytes: &dyn Bytes, start: u64, length: u64) -> Option<Self> {
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(HEAD_BYTES);
        let readable = usize::try_from(bytes.size().checked_sub(start)?).unwrap_or(usize::MAX);
        let head = bytes.read(start, length.min(readable))?;
        [luks, lvm, raid, swap, btrfs, xfs, ext, ntfs, vfat].iter().find_map(|look| look(&head))
    }

    fn new(content: Content, uuid: Option<String>, label: Option<String>) -> Self {
        Self { content, uuid, label, has_errors: false }
    }
}

fn ext(head: &[u8]) -> Option<Superblock> {
    const COMPAT_JOURNAL: u32 = 0x4;
    const INCOMPAT_EXT3: u32 = 0x2 | 0x4 | 0x10;
    const RO_COMPAT_EXT3: u32 = 0x1 | 0x2 | 0x4;
    const ERROR_STATE: u16 = 0x2;
    let block = head.get(1024..2048)?;
    if le_u16(block, 0x38)? != 0xef53 {
        return None;
    }
    let (compat, incompat, ro_compat) = (le_u32(block, 0x5c)?, le_u32(block, 0x60)?, le_u32(block, 0x64)?);
    let content = if incompat & !INCOMPAT_EXT3 != 0 || ro_compat & !RO_COMPAT_EXT3 != 0 {
        Content::Ext4
    } else if compat & COMPAT_JOURNAL != 0 {
        Content::Ext3
    } else {
        Content::Ext2
    };
    let superblock = Superblock::new(content, uuid_at(block, 0x68), text_at(block, 0x78, 16));
    Some(Superblock { has_errors: le_u16(block, 0x3a)? & ERROR_STATE != 0, ..superblock })
}

fn vfat(head: &[u8]) -> Option<Superblock> {
    if head.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let (serial, label) = if head.get(82..87)? == b"FAT32" {
        (67, 71)
    } else if head.get(54..57)? == b"FAT" {
        (39, 43)
    } else {
        return None;
    };
    let serial = le_u32(head, serial)?;
    let uuid = format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff);
    let label = text_at(head, label, 11).filter(|label| label != "NO NAME");
    Some(Superblock::new(Content::Vfat, Some(uuid), label))
}

fn swap(head: &[u8]) -> Option<Superblock> {
    [4096, 8192, 16384, 65536].into_iter().find(|page| head.get(page - 10..*page) == Some(b"SWAPSPACE2".as_slice()))?;
    Some(Superblock::new(Content::Swap, uuid_at(head, 1036), text_at(head, 1052, 16)))
}

fn xfs(head: &[u8]) -> Option<Superblock> {
    head.starts_with(b"XFSB").then(|| Superblock::new(Content::Xfs, uuid_at(head, 32), text_at(head, 108, 12)))
}

fn btrfs(head: &[u8]) -> Option<Superblock> {
    let block = head.get(0x1_0000..)?;
    (block.get(64..72)? == b"_BHRfS_M")
        .then(|| Superblock::new(Content::Btrfs, uuid_at(block, 32), text_at(block, 299, 256)))
}

fn lvm(head: &[u8]) -> Option<Superblock> {
    (0..4)
        .map(|sector| sector * 512)
        .find(|at| head.get(*at..at + 8) == Some(b"LABELONE") && head.get(at + 24..at + 32) == Some(b"LVM2 001"))?;
    Some(Superblock::new(Content::LvmMember, None, None))
}

fn luks(head: &[u8]) -> Option<Superblock> {
    head.starts_with(b"LUKS\xba\xbe").then(|| Superblock::new(Content::Luks, text_at(head, 168, 40), None))
}

fn raid(head: &[u8]) -> Option<Superblock> {
    [0, 4096].into_iter().find(|at| le_u32(head, *at) == Some(0xa92b_4efc))?;
    Some(Superblock::new(Content::RaidMember, None, None))
}

fn ntfs(head: &[u8]) -> Option<Superblock> {
    (head.get(3..11)? == b"NTFS    ").then(|| Superblock::new(Content::Ntfs, None, None))
}

fn uuid_at(bytes: &[u8], at: usize) -> Option<String> {
    let raw: &[u8; 16] = bytes.get(at..)?.first_chunk()?;
    raw.iter().any(|byte| *byte != 0).then(|| hyphenated(raw))
}

/// A UUID in the usual form, lower case.
pub(super) fn hyphenated(raw: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in raw.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Text that ends at a NUL or is padded with blanks; nothing if empty.
fn text_at(bytes: &[u8], at: usize, length: usize) -> Option<String> {
    let raw = bytes.get(at..at + length)?;
    let raw = raw.split(|byte| *byte == 0).next()?;
    let text = String::from_utf8_lossy(raw).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}
