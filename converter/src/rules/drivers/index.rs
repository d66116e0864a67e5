//! A kernel's index of its modules: `modules.dep`, `modules.softdep`, `modules.alias`, `modules.builtin`.

use std::collections::{BTreeMap, BTreeSet};

use crate::root::Root;

/// Where a driver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Availability {
    BuiltIn,
    Module,
    Missing,
}

/// The modules of one kernel.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Module name → its file and those of its dependencies, relative to the kernel's module directory.
    files: BTreeMap<String, (String, Vec<String>)>,
    /// Module name → names (or aliases) that should be there too.
    soft: BTreeMap<String, Vec<String>>,
    /// Alias → module names; only aliases without wildcards.
    aliases: BTreeMap<String, Vec<String>>,
    built_in: BTreeSet<String>,
}

impl Index {
    /// Reads the index of a kernel; nothing if `depmod` never ran for it.
    pub(super) fn read(root: &Root, directory: &str) -> Option<Self> {
        let text = |name: &str| root.text(&format!("{directory}/{name}"));
        let mut index = Self::default();
        for line in text("modules.dep")?.lines() {
            let Some((file, dependencies)) = line.split_once(':') else { continue };
            let dependencies = dependencies.split_whitespace().map(str::to_owned).collect();
            index.files.insert(module_name(file), (file.to_owned(), dependencies));
        }
        index.built_in = text("modules.builtin").unwrap_or_default().lines().map(module_name).collect();
        for line in text("modules.softdep").unwrap_or_default().lines() {
            let mut words = line.split_whitespace().filter(|word| !matches!(*word, "pre:" | "post:"));
            if let (Some("softdep"), Some(module)) = (words.next(), words.next()) {
                index.soft.entry(normal(module)).or_default().extend(words.map(normal));
            }
        }
        for line in text("modules.alias").unwrap_or_default().lines() {
            if let ["alias", alias, module] = line.split_whitespace().collect::<Vec<_>>()[..]
                && !alias.contains(['*', '?', '['])
            {
                index.aliases.entry(normal(alias)).or_default().push(normal(module));
            }
        }
        Some(index)
    }

    pub(super) fn availability(&self, module: &str) -> Availability {
        let module = normal(module);
        if self.built_in.contains(&module) {
            Availability::BuiltIn
        } else if self.files.contains_key(&module) {
            Availability::Module
        } else {
            Availability::Missing
        }
    }

    /// The files of these modules and of all that they need, soft dependencies included.
    pub(super) fn closure(&self, modules: &[&str]) -> BTreeSet<String> {
        let mut files = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut pending: Vec<String> = modules.iter().map(|module| normal(module)).collect();
        while let Some(name) = pending.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            pending.extend(self.soft.get(&name).into_iter().flatten().cloned());
            match self.files.get(&name) {
                Some((file, dependencies)) => {
                    files.insert(file.clone());
                    pending.extend(dependencies.iter().map(|file| module_name(file)));
                }
                None => pending.extend(self.aliases.get(&name).into_iter().flatten().cloned()),
            }
        }
        files
    }
}

/// `kernel/fs/ext4/ext4.ko.xz` → `ext4`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    normal(name.split(".ko").next().unwrap_or(name))
}

/// The kernel takes `-` and `_` for the same.
fn normal(name: &str) -> String {
    name.trim().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Tree;
    use super::*;

    const DIRECTORY: &str = "/lib/modules/6.1";

    pub(in super::super) fn tree() -> Tree {
        Tree::new(&[
            (
                "/lib/modules/6.1/modules.dep",
                "kernel/nvme.ko: kernel/nvme-core.ko kernel/t10-pi.ko\nkernel/nvme-core.ko:\nkernel/t10-pi.ko: kernel/crc.ko\nkernel/crc.ko:\n\
                 kernel/ext4.ko.xz: kernel/jbd2.ko\nkernel/jbd2.ko:\nkernel/crc32c_generic.ko:\nkernel/loop-a.ko: kernel/loop-b.ko\nkernel/loop-b.ko: kernel/loop-a.ko\n",
            ),
            ("/lib/modules/6.1/modules.softdep", "# c\nsoftdep ext4 pre: crc32c\n"),
            (
                "/lib/modules/6.1/modules.alias",
                "alias crc32c crc32c_generic\nalias pci:v*d crc\nalias crc32c crc32c_intel\n",
            ),
            ("/lib/modules/6.1/modules.builtin", "kernel/drivers/virtio/virtio-pci.ko\n"),
        ])
    }

    #[test]
    fn closure_follows_hard_and_soft_dependencies() {
        let index = Index::read(&tree().root(), DIRECTORY).unwrap();
        let files: Vec<String> = index.closure(&["ext4", "nvme"]).into_iter().collect();
        let expected =
            ["crc", "crc32c_generic", "ext4", "jbd2", "nvme-core", "nvme", "t10-pi"].map(|name| match name {
                "ext4" => "kernel/ext4.ko.xz".to_owned(),
                name => format!("kernel/{name}.ko"),
            });
        assert_eq!(files, expected);
        assert_eq!(index.closure(&["loop_a"]).len(), 2);
        assert!(index.closure(&["absent"]).is_empty());
    }

    #[test]
    fn availability_knows_built_in_drivers() {
        let index = Index::read(&tree().root(), DIRECTORY).unwrap();
        assert_eq!(index.availability("virtio_pci"), Availability::BuiltIn);
        assert_eq!(index.availability("nvme_core"), Availability::Module);
        assert_eq!(index.availability("ena"), Availability::Missing);
        assert!(Index::read(&tree().root(), "/lib/modules/5.0").is_none());
    }
}
