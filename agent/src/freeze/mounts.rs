//! The mounts of the machine, from `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// Number of a device, as `major:minor`. Filesystems without a single device below them have an anonymous one, major 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// The driver's number; 0 for an anonymous device.
    pub major: u32,
    /// The device's number.
    pub minor: u32,
}

impl DeviceId {
    /// From the number that `stat` gives.
    #[must_use]
    pub fn from_raw(device: u64) -> Self {
        Self { major: rustix::fs::major(device), minor: rustix::fs::minor(device) }
    }

    /// From text such as `8:1`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// Whether no block device stands behind it.
    pub(crate) fn is_anonymous(self) -> bool {
        self.major == 0
    }
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u64,
    /// Of the superblock: the same for each mount of one filesystem, also for each subvolume of a btrfs.
    pub(crate) device: DeviceId,
    pub(crate) point: PathBuf,
    /// `ext4`, `xfs`, …
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
    /// Whether the filesystem itself is writable. A single mount of it may be read-only all the same, as those of a service
    /// with `ProtectSystem=` are: others write to it.
    pub(crate) writable: bool,
}

/// Reads every line; one that makes no sense is passed over.
pub(crate) fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: the fields between the sixth and the
/// hyphen are optional.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let device = DeviceId::parse(text(fields.nth(1)?)?)?;
    let point = path(fields.nth(1)?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = text(fields.next()?)?.to_owned();
    let source = path(fields.next()?);
    let writable = text(fields.next()?)?.split(',').any(|option| option == "rw");
    Some(Mount { id, device, point, kind, source, writable })
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok()
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(mut field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    while let Some((&first, rest)) = field.split_first() {
        let escaped = (first == b'\\').then(|| rest.first_chunk::<3>().and_then(octal)).flatten();
        plain.push(escaped.unwrap_or(first));
        field = if escaped.is_some() { rest.get(3..).unwrap_or_default() } else { rest };
    }
    plain
}

fn octal(digits: &[u8; 3]) -> Option<u8> {
    u8::from_str_radix(text(digits)?, 8).ok()
}

/// The mount that a path lies on: the one with the longest mount point, and of those the one on top.
pub(crate) fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    // Of equals, max_by_key takes the last.
    above.max_by_key(|mount| mount.point.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = b"\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
40 27 8:17 / /srv/a\\040b\\134c rw shared:3 master:1 - xfs /dev/sdb1 rw,attr2\n\
nonsense\n\
41 27 0:44 /@home /home ro,relatime shared:9 - btrfs /dev/sdc rw,subvol=/@home\n\
42 27 0:45 / /sys rw - sysfs sysfs rw\n\
43 27 8:33 / /mnt rw - ext4 /dev/sdc1 ro\n\
44 43 8:49 / /mnt rw - ext4 /dev/sdd1 rw\n";

    #[test]
    fn lines_are_read_with_their_optional_fields_and_escapes() {
        let mounts = parse(MOUNTINFO);
        assert_eq!(mounts.iter().map(|m| m.id).collect::<Vec<_>>(), [27, 40, 41, 42, 43, 44]);
        assert_eq!(mounts[1].point, Path::new("/srv/a b\\c"));
        assert_eq!((mounts[1].device, mounts[1].kind.as_str()), (DeviceId { major: 8, minor: 17 }, "xfs"));
        assert_eq!(mounts[2].source, Path::new("/dev/sdc"));
        assert!(mounts[2].device.is_anonymous());
    }

    #[test]
    fn what_counts_is_whether_the_filesystem_is_writable_not_the_mount() {
        let writable: Vec<_> = parse(MOUNTINFO).iter().map(|m| m.writable).collect();
        assert_eq!(writable, [true, true, true, true, false, true]);
    }

    #[test]
    fn a_broken_escape_stays_as_it_is() {
        assert_eq!(unescape(b"a\\0"), b"a\\0");
        assert_eq!(unescape(b"\\999\\012"), b"\\999\n");
        assert_eq!(unescape(b"\\777"), b"\\777");
    }

    #[test]
    fn a_path_lies_on_the_topmost_of_the_deepest_mounts() {
        let mounts = parse(MOUNTINFO);
        let id = |path: &str| mount_of(&mounts, Path::new(path)).map(|m| m.id);
        assert_eq!([id("/mnt/x"), id("/mntx"), id("/home/a/b")], [Some(44), Some(27), Some(41)]);
        assert_eq!(id("relative"), None);
    }
}
