//! The guest's file tree, read as the guest itself would see it.
//!
//! Its symbolic links may be absolute (`/etc/resolv.conf → /run/…`) or hostile (`/etc/fstab → /proc/…`): they are resolved by hand,
//! inside the tree, as if it were `/`. A path that has been resolved has no links left, so that ordinary calls may follow.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// As many links as Linux follows.
const MAX_LINKS: usize = 40;
/// Configuration files are far smaller; an initramfs or an EFI program may be large.
const MAX_TEXT: u64 = 4 << 20;
const MAX_FILE: u64 = 1 << 30;

/// The directory where the guest's root file system is mounted.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// The tree below `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Where a path of the guest lies here, with every link followed; the last component need not exist.
    ///
    /// # Errors
    /// Too many links, or a directory that cannot be looked into.
    pub fn resolve(&self, path: &str) -> io::Result<PathBuf> {
        self.walk(path, true)
    }

    /// Like [`Root::resolve`], but a link at the very end is not followed.
    ///
    /// # Errors
    /// As for [`Root::resolve`].
    pub fn resolve_parent(&self, path: &str) -> io::Result<PathBuf> {
        self.walk(path, false)
    }

    /// The contents of a file; nothing if there is none.
    ///
    /// # Errors
    /// When it exists and cannot be read, or is absurdly large.
    pub fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        self.read_limited(path, MAX_FILE)
    }

    /// The contents of a text file; nothing if there is none, or none that can be read as text.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        self.read_limited(path, MAX_TEXT).ok().flatten().and_then(|bytes| String::from_utf8(bytes).ok())
    }

    /// Whether there is anything of this name, links followed.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.resolve(path).is_ok_and(|path| path.symlink_metadata().is_ok())
    }

    /// Whether there is anything of this name, be it a link that leads nowhere.
    #[must_use]
    pub fn has_name(&self, path: &str) -> bool {
        self.resolve_parent(path).is_ok_and(|path| path.symlink_metadata().is_ok())
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self, path: &str) -> bool {
        self.resolve(path).is_ok_and(|path| path.is_dir())
    }

    /// The names in a directory, sorted; none if there is no such directory.
    #[must_use]
    pub fn names(&self, directory: &str) -> Vec<String> {
        let entries = self.resolve(directory).and_then(fs::read_dir);
        let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        let mut names: Vec<String> = entries.into_iter().flatten().filter_map(name).collect();
        names.sort();
        names
    }

    fn read_limited(&self, path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let path = self.resolve(path)?;
        let metadata = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            metadata => metadata?,
        };
        if !metadata.is_file() {
            return Ok(None);
        }
        if metadata.len() > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
        }
        fs::read(path).map(Some)
    }

    fn walk(&self, path: &str, follow_last: bool) -> io::Result<PathBuf> {
        let mut pending: VecDeque<OsString> = components(Path::new(path));
        let mut here = PathBuf::new();
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                here.pop();
                continue;
            }
            let next = here.join(&name);
            let is_last = pending.is_empty();
            match fs::read_link(self.0.join(&next)) {
                Ok(target) if !is_last || follow_last => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(io::Error::other(format!("{path}: too many symbolic links")));
                    }
                    if target.is_absolute() {
                        here = PathBuf::new();
                    }
                    for component in components(&target).into_iter().rev() {
                        pending.push_front(component);
                    }
                }
                _ => here = next,
            }
        }
        Ok(self.0.join(here))
    }
}

/// The names of a path; `..` is kept, roots and `.` are not.
fn components(path: &Path) -> VecDeque<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("usr/lib/modules")).unwrap();
        fs::create_dir_all(directory.path().join("etc")).unwrap();
        symlink("usr/lib", directory.path().join("lib")).unwrap();
        fs::write(directory.path().join("usr/lib/modules/file"), "inside").unwrap();
        let root = Root::new(directory.path());
        (directory, root)
    }

    #[test]
    fn links_stay_inside() {
        let (directory, root) = tree();
        symlink("/lib/modules/file", directory.path().join("etc/absolute")).unwrap();
        symlink("../../../../lib/modules/file", directory.path().join("etc/up")).unwrap();
        symlink("/etc/hostname", directory.path().join("etc/nowhere")).unwrap();
        assert_eq!(root.text("/etc/absolute").as_deref(), Some("inside"));
        assert_eq!(root.text("etc/up").as_deref(), Some("inside"));
        assert_eq!(root.text("/etc/nowhere"), None);
        assert!(!root.exists("/etc/nowhere") && root.has_name("/etc/nowhere"));
        assert_eq!(root.resolve("/../../etc/../lib").unwrap(), directory.path().join("usr/lib"));
        assert_eq!(root.resolve_parent("/lib").unwrap(), directory.path().join("lib"));
        assert_eq!(root.names("/lib/modules"), ["file"]);
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let (directory, root) = tree();
        symlink("b", directory.path().join("a")).unwrap();
        symlink("a", directory.path().join("b")).unwrap();
        assert!(root.resolve("/a").is_err());
        assert!(!root.exists("/a"));
    }
}
