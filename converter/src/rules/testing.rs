//! Small guests for the rules' tests.

use std::fs;
use std::path::Path;

use rehost_model::conversion::{ConversionRequest, ConversionTarget, PartitionTable};
use rehost_model::launch::BootMode;

use crate::disk::{Content, Disk, Disks, Partition, Superblock, Volume};
use crate::edit::{Edit, Proposal, Proposer};
use crate::guest::Guest;
use crate::root::Root;

/// A file tree with these files.
pub(crate) struct Tree {
    directory: tempfile::TempDir,
    pub(crate) target: ConversionTarget,
}

impl Tree {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self { directory: tempfile::tempdir().unwrap(), target: ConversionTarget::Qemu };
        for (path, contents) in files {
            tree.put(path, contents);
        }
        tree
    }

    pub(crate) fn put(&self, path: &str, contents: impl AsRef<[u8]>) {
        let path = self.directory.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    pub(crate) fn link(&self, path: &str, target: &str) {
        let path = self.directory.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    pub(crate) fn root(&self) -> Root {
        Root::new(self.directory.path())
    }

    /// The guest, with one disk: ext4 (UUID 1111…) and swap (UUID 2222…) on `/dev/sda`.
    pub(crate) fn guest(&self) -> Guest {
        self.guest_on(disks())
    }

    pub(crate) fn guest_on(&self, disks: Disks) -> Guest {
        let request = ConversionRequest::new(self.target, BootMode::UseSource, Vec::new());
        Guest::survey(self.root(), disks, &request, None)
    }

    /// What a proposal writes to a path, if it does.
    pub(crate) fn written(&self, proposal: &Proposal, path: &str) -> Option<String> {
        proposal.edits.iter().find_map(|planned| match &planned.edit {
            Edit::Write { path: own, contents } if own == path => Some(String::from_utf8(contents.clone()).unwrap()),
            _ => None,
        })
    }
}

pub(crate) fn disks() -> Disks {
    let volume = |number, content, digit: char| {
        let part = |length| digit.to_string().repeat(length);
        let uuid = [8, 4, 4, 4, 12].map(part).join("-");
        let superblock = Superblock { content, uuid: Some(uuid), label: None, has_errors: false };
        Volume { partition: Partition { number, bytes: 1 << 20, ..Partition::default() }, superblock: Some(superblock) }
    };
    Disks(vec![Disk {
        node: Path::new("/dev/nvme0n1").to_owned(),
        source_device: Some("/dev/sda".to_owned()),
        bytes: 4 << 20,
        table: PartitionTable::Mbr,
        volumes: vec![volume(1, Content::Ext4, '1'), volume(2, Content::Swap, '2')],
        grub_boot_sector: true,
    }])
}

pub(crate) fn propose_with(guest: &Guest, rule: &'static str, propose: super::Rule) -> Proposal {
    let mut proposal = Proposal::default();
    propose(guest, &mut Proposer { rule, root: &guest.root, proposal: &mut proposal });
    proposal
}

/// Carries a proposal out, then asks the rule again: it must have nothing left to do.
pub(crate) fn assert_settles(guest: &Guest, rule: super::Rule) {
    let first = propose_with(guest, "test", rule);
    for planned in &first.edits {
        crate::edit::apply(&guest.root, &planned.edit).unwrap();
    }
    let second = propose_with(guest, "test", rule);
    assert_eq!(paths(&second), [""; 0], "the rule is not idempotent");
}

/// The paths of a proposal's edits.
pub(crate) fn paths(proposal: &Proposal) -> Vec<&str> {
    proposal.edits.iter().map(|planned| planned.edit.path()).collect()
}
