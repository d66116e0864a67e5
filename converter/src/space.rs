//! Whether the edits fit on the guest's file systems. A `/boot` of its own is often nearly full, and a conversion that ends half way
//! for want of space would leave a clone that is good for nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rehost_model::conversion::{Finding, Severity};

use crate::edit::{Edit, Planned, backup_path};
use crate::root::Root;

/// For directories, and what file systems round up.
const RESERVE: u64 = 256 << 10;

/// The file systems that are too small for these edits.
pub(crate) fn shortages(root: &Root, edits: &[Planned]) -> Vec<Finding> {
    let mut needs: BTreeMap<u64, (u64, PathBuf)> = BTreeMap::new();
    for planned in edits {
        if let Some((device, directory)) = file_system(root, planned.edit.path()) {
            needs.entry(device).or_insert((0, directory)).0 += growth(root, &planned.edit);
        }
    }
    needs.into_values().filter_map(|(needed, directory)| shortage(root, needed, &directory)).collect()
}

fn shortage(root: &Root, needed: u64, directory: &Path) -> Option<Finding> {
    let statistics = rustix::fs::statvfs(directory).ok()?;
    let free = statistics.f_bfree.saturating_mul(statistics.f_frsize);
    let name = Path::new("/").join(directory.strip_prefix(root.directory()).unwrap_or(directory));
    (needed > 0 && needed.saturating_add(RESERVE) > free).then(|| {
        let cause = format!(
            "the file system of {} has {} KiB free; the conversion needs {} KiB",
            name.display(),
            free >> 10,
            (needed + RESERVE) >> 10
        );
        Finding::new(
            Severity::Error,
            "space",
            cause,
            "make room on the source, for example by removing old kernels, then launch again",
        )
    })
}

/// Bytes that an edit adds, the kept original included.
fn growth(root: &Root, edit: &Edit) -> u64 {
    let size = |path: &str| root.resolve(path).and_then(fs::metadata).map_or(0, |metadata| metadata.len());
    match edit {
        Edit::Write { path, contents } => {
            let old = if root.has_name(&backup_path(path)) { 0 } else { size(path) };
            // The new file stands beside the one that it replaces until it is whole.
            contents.len() as u64 + old
        }
        Edit::Append { path, keep, tail } => (keep + tail.len() as u64).saturating_sub(size(path)),
        Edit::Retire { path } => size(path),
        Edit::Remove { .. } | Edit::Link { .. } => 0,
    }
}

/// The device of the nearest directory that exists, and that directory.
fn file_system(root: &Root, path: &str) -> Option<(u64, PathBuf)> {
    let path = root.resolve(path).ok()?;
    let directory = path.ancestors().skip(1).find(|directory| directory.is_dir())?;
    Some((directory.metadata().ok()?.dev(), directory.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::testing::Tree;

    fn planned(edit: Edit) -> Planned {
        Planned { rule: "test", description: String::new(), edit }
    }

    #[test]
    fn growth_counts_originals_and_what_was_appended_before() {
        let tree = Tree::new(&[("/etc/fstab", "12345"), ("/boot/initrd", "original+tail")]);
        let root = tree.root();
        let write = |path: &str| Edit::Write { path: path.to_owned(), contents: vec![0; 100] };
        assert_eq!(growth(&root, &write("/etc/fstab")), 105);
        assert_eq!(growth(&root, &write("/etc/new/file")), 100);
        assert_eq!(growth(&root, &Edit::Append { path: "/boot/initrd".into(), keep: 8, tail: vec![0; 15] }), 10);
        tree.put("/etc/fstab.rehost-orig", "1");
        assert_eq!(growth(&root, &write("/etc/fstab")), 100);
    }

    #[test]
    fn a_shortage_names_the_file_system() {
        let tree = Tree::new(&[("/etc/fstab", "12345")]);
        let directory = tree.root().directory().join("etc");
        let finding = shortage(&tree.root(), u64::MAX >> 1, &directory).unwrap();
        assert!(finding.cause.contains("file system of /etc has"), "{}", finding.cause);
        let edits = [planned(Edit::Write { path: "/etc/a/b".into(), contents: vec![0; 10] })];
        assert!(shortages(&tree.root(), &edits).is_empty());
    }
}
