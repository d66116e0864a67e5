//! The newc cpio format, as the kernel unpacks it into its initramfs: one writer for the conversion machine's own initramfs and for
//! the drivers that are appended to a guest's.
//!
//! An entry is a header of 110 ASCII bytes (magic and 13 hexadecimal numbers), the name with a NUL, padding to four bytes,
//! the content, padding to four bytes. An archive ends with an entry named `TRAILER!!!`. The kernel unpacks several archives
//! one after the other, compressed or not, if each begins at a multiple of four bytes.
//!
//! Archives are reproducible: no times, no owners, inode numbers by position.

const MAGIC: &[u8] = b"070701";
const HEADER_BYTES: usize = 110;
const TRAILER: &str = "TRAILER!!!";
const TYPE_MASK: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    CharacterDevice { major: u32, minor: u32 },
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative, without a leading slash.
    pub path: String,
    /// Permission bits only; the type is [`Entry::kind`]'s.
    pub mode: u32,
    pub kind: Kind,
}

impl Entry {
    /// A directory with mode 0755.
    #[must_use]
    pub fn directory(path: impl Into<String>) -> Self {
        Self { path: path.into(), mode: 0o755, kind: Kind::Directory }
    }

    /// A regular file.
    #[must_use]
    pub fn file(path: impl Into<String>, mode: u32, contents: Vec<u8>) -> Self {
        Self { path: path.into(), mode, kind: Kind::File(contents) }
    }
}

/// Why bytes are no archive, or entries cannot become one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    #[error("no cpio entry at byte {0}: the archive is damaged or compressed")]
    NoEntry(usize),
    #[error("the cpio entry at byte {0} reaches past the end: the archive is cut off")]
    CutOff(usize),
    #[error("the cpio entry at byte {0} has a type or name that is not supported")]
    Unsupported(usize),
    #[error("`{0}` is larger than the 4 GiB that a cpio entry can hold")]
    TooLarge(String),
}

/// Writes a whole archive, trailer included; its length is a multiple of four.
///
/// # Errors
/// [`CpioError::TooLarge`] for a file of 4 GiB or more.
pub fn write(entries: &[Entry]) -> Result<Vec<u8>, CpioError> {
    let mut archive = Vec::new();
    for (inode, entry) in (1u32..).zip(entries) {
        append(&mut archive, inode, entry)?;
    }
    append_raw(&mut archive, &Header { inode: 0, mode: 0, links: 1, device: (0, 0) }, TRAILER, &[])?;
    Ok(archive)
}

/// Reads one archive from the start of `bytes`; also says how many bytes it takes, trailer included.
///
/// # Errors
/// [`CpioError`] for anything but a whole uncompressed archive.
pub fn read(bytes: &[u8]) -> Result<(Vec<Entry>, usize), CpioError> {
    let mut entries = Vec::new();
    let mut at = 0;
    loop {
        let (entry, next) = read_entry(bytes, at)?;
        at = next;
        match entry {
            Some(entry) => entries.push(entry),
            None => return Ok((entries, at)),
        }
    }
}

/// Bytes of padding that bring `length` to a multiple of four.
#[must_use]
pub fn padding(length: usize) -> usize {
    length.wrapping_neg() & 3
}

struct Header {
    inode: u32,
    mode: u32,
    links: u32,
    device: (u32, u32),
}

fn append(archive: &mut Vec<u8>, inode: u32, entry: &Entry) -> Result<(), CpioError> {
    let (kind, links, device, contents): (_, _, _, &[u8]) = match &entry.kind {
        Kind::Directory => (DIRECTORY, 2, (0, 0), &[]),
        Kind::File(contents) => (FILE, 1, (0, 0), contents),
        Kind::Symlink(target) => (SYMLINK, 1, (0, 0), target.as_bytes()),
        Kind::CharacterDevice { major, minor } => (CHARACTER_DEVICE, 1, (*major, *minor), &[]),
    };
    let header = Header { inode, mode: kind | (entry.mode & !TYPE_MASK), links, device };
    append_raw(archive, &header, &entry.path, contents)
}

fn append_raw(archive: &mut Vec<u8>, header: &Header, name: &str, contents: &[u8]) -> Result<(), CpioError> {
    let too_large = |_| CpioError::TooLarge(name.to_owned());
    let size = u32::try_from(contents.len()).map_err(too_large)?;
    let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
    let (major, minor) = header.device;
    archive.extend_from_slice(MAGIC);
    let numbers = [header.inode, header.mode, 0, 0, header.links, 0, size, 0, 0, major, minor, name_size, 0];
    for number in numbers {
        archive.extend_from_slice(format!("{number:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(contents);
    pad(archive);
    Ok(())
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len() + padding(archive.len()), 0);
}

fn read_entry(bytes: &[u8], at: usize) -> Result<(Option<Entry>, usize), CpioError> {
    let header = bytes.get(at..at + HEADER_BYTES).ok_or(CpioError::CutOff(at))?;
    if !header.starts_with(MAGIC) {
        return Err(CpioError::NoEntry(at));
    }
    let number = |index: usize| hex_field(header, index).ok_or(CpioError::NoEntry(at));
    let (mode, size, name_size) = (number(1)?, number(6)? as usize, number(11)? as usize);
    let name_start = at + HEADER_BYTES;
    let name = bytes.get(name_start..).and_then(|rest| rest.get(..name_size)).ok_or(CpioError::CutOff(at))?;
    let name = name.strip_suffix(b"\0").and_then(|name| std::str::from_utf8(name).ok());
    let name = name.ok_or(CpioError::Unsupported(at))?;
    let start = name_start + name_size + padding(name_start + name_size);
    let contents = bytes.get(start..).and_then(|rest| rest.get(..size)).ok_or(CpioError::CutOff(at))?;
    let next = start + size + padding(start + size);
    if name == TRAILER {
        return Ok((None, next.min(bytes.len())));
    }
    let kind = match mode & TYPE_MASK {
        DIRECTORY => Kind::Directory,
        FILE => Kind::File(contents.to_vec()),
        SYMLINK => Kind::Symlink(String::from_utf8(contents.to_vec()).map_err(|_| CpioError::Unsupported(at))?),
        CHARACTER_DEVICE => Kind::CharacterDevice { major: number(9)?, minor: number(10)? },
        _ => return Err(CpioError::Unsupported(at)),
    };
    Ok((Some(Entry { path: name.to_owned(), mode: mode & !TYPE_MASK, kind }), next))
}

fn hex_field(header: &[u8], index: usize) -> Option<u32> {
    let start = MAGIC.len() + index * 8;
    let text = std::str::from_utf8(header.get(start..start + 8)?).ok()?;
    u32::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::Directory),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Kind::File),
            "[a-z/]{1,20}".prop_map(Kind::Symlink),
            (0u32..300, 0u32..300).prop_map(|(major, minor)| Kind::CharacterDevice { major, minor }),
        ]
    }

    fn entry() -> impl Strategy<Value = Entry> {
        ("[a-zA-Z0-9_./-]{1,40}", 0u32..0o7777, kind()).prop_map(|(path, mode, kind)| Entry { path, mode, kind })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in proptest::collection::vec(entry(), 0..8)) {
            let archive = write(&entries).unwrap();
            prop_assert_eq!(archive.len() % 4, 0);
            prop_assert_eq!(read(&archive).unwrap(), (entries, archive.len()));
        }

        #[test]
        fn cut_off_archives_are_refused(entries in proptest::collection::vec(entry(), 0..4), cut in any::<proptest::sample::Index>()) {
            let archive = write(&entries).unwrap();
            // The padding behind the trailer's name may be missing: it says nothing.
            let cut = cut.index(archive.len() - 4);
            prop_assert!(read(&archive[..cut]).is_err());
        }

        #[test]
        fn hostile_bytes_do_no_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
            if magic && bytes.len() >= 6 {
                bytes[..6].copy_from_slice(MAGIC);
            }
            let _ = read(&bytes);
        }

        #[test]
        fn hostile_numbers_do_no_harm(entries in proptest::collection::vec(entry(), 1..3), field in 0usize..13, digits in "[0-9a-f]{8}") {
            let mut archive = write(&entries).unwrap();
            archive[6 + field * 8..14 + field * 8].copy_from_slice(digits.as_bytes());
            let _ = read(&archive);
        }
    }

    #[test]
    fn the_header_is_as_the_kernel_expects_it() {
        let archive = write(&[Entry::file("init", 0o755, b"x".to_vec())]).unwrap();
        let text = String::from_utf8(archive).unwrap();
        let expected = "07070100000001000081ed00000000000000000000000100000000000000010000000000000000000000000000000000000005\
                        00000000init\0";
        assert_eq!(&text[..115], expected);
    }
}
