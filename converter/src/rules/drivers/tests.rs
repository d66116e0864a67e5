use super::super::testing::{Tree, assert_settles, paths, propose_with};
use super::*;
use crate::edit::{Proposal, apply};

const ORIGINAL: &[u8] = b"a compressed initramfs of odd length";

fn tree() -> Tree {
    let tree = Tree::new(&[
        ("/etc/fstab", "/dev/sda1 / ext4\n"),
        (
            "/lib/modules/6.1/modules.dep",
            "kernel/drivers/nvme/nvme.ko: kernel/drivers/nvme/nvme-core.ko\nkernel/drivers/nvme/nvme-core.ko:\nkernel/fs/ext4.ko:\n",
        ),
        ("/lib/modules/6.1/modules.dep.bin", "binary"),
        ("/lib/modules/6.1/modules.symbols", "large"),
        ("/lib/modules/6.1/kernel/drivers/nvme/nvme.ko", "nvme module"),
        ("/lib/modules/6.1/kernel/drivers/nvme/nvme-core.ko", "core module"),
        ("/lib/modules/6.1/kernel/fs/ext4.ko", "ext4 module"),
        (TOOLS_MODULES, "# comment\nahci"),
        (TOOLS_RESUME, "RESUME=/dev/sda2\n"),
    ]);
    tree.put("/boot/initrd.img-6.1", [ORIGINAL, b"!"].concat());
    tree
}

fn tail(proposal: &Proposal) -> &[u8] {
    let tail = proposal.edits.iter().find_map(|planned| match &planned.edit {
        Edit::Append { keep, tail, .. } => {
            assert_eq!(*keep, 37);
            Some(tail)
        }
        _ => None,
    });
    tail.unwrap()
}

#[test]
fn the_archive_has_the_drivers_and_begins_at_four_bytes() {
    let tree = tree();
    let proposal = propose_with(&tree.guest(), "initramfs", propose);
    let tail = tail(&proposal);
    assert_eq!(&tail[..3], [0, 0, 0]);
    let (entries, used) = cpio::read(&tail[3..]).unwrap();
    assert_eq!(used, tail.len() - 3);
    let names: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(
        names,
        [
            "conf",
            MARKER,
            "conf/modules",
            "conf/conf.d",
            "conf/conf.d/resume",
            "lib/modules",
            "lib/modules/6.1",
            "lib/modules/6.1/kernel",
            "lib/modules/6.1/kernel/drivers",
            "lib/modules/6.1/kernel/drivers/nvme",
            "lib/modules/6.1/kernel/fs",
            "lib/modules/6.1/kernel/drivers/nvme/nvme-core.ko",
            "lib/modules/6.1/kernel/drivers/nvme/nvme.ko",
            "lib/modules/6.1/kernel/fs/ext4.ko",
            "lib/modules/6.1/modules.dep",
            "lib/modules/6.1/modules.dep.bin",
        ]
    );
    assert_eq!(entries[2].kind, cpio::Kind::File(b"ahci\nnvme\nnvme_core\next4\n".to_vec()));
    assert_eq!(entries[4].kind, cpio::Kind::File(b"RESUME=UUID=22222222-2222-2222-2222-222222222222\n".to_vec()));
}

#[test]
fn the_next_kernel_gets_them_too() {
    let tree = tree();
    let proposal = propose_with(&tree.guest(), "initramfs", propose);
    let modules = tree.written(&proposal, TOOLS_MODULES).unwrap();
    assert!(modules.starts_with("# comment\nahci\n# Drivers"), "{modules}");
    assert!(modules.ends_with("ext4\nnvme\nnvme_core\n"), "{modules}");
    assert!(tree.written(&proposal, TOOLS_RESUME).unwrap().starts_with("RESUME=UUID=2222"));
}

#[test]
fn nothing_is_appended_twice() {
    assert_settles(&tree().guest(), propose);
}

#[test]
fn an_older_archive_is_replaced() {
    let tree = tree();
    for planned in propose_with(&tree.guest(), "initramfs", propose).edits {
        apply(&tree.root(), &planned.edit).unwrap();
    }
    tree.put("/lib/modules/6.1/kernel/fs/ext4.ko", "ext4 module of an update");
    let second = propose_with(&tree.guest(), "initramfs", propose);
    assert_eq!(paths(&second), ["/boot/initrd.img-6.1"]);
    tail(&second);
}

#[test]
fn an_archive_that_was_cut_off_is_replaced() {
    let tree = tree();
    let first = propose_with(&tree.guest(), "initramfs", propose);
    let whole = [ORIGINAL, b"!", tail(&first)].concat();
    for length in [ORIGINAL.len() + 1, ORIGINAL.len() + 50, whole.len() - 1, whole.len()] {
        tree.put("/boot/initrd.img-6.1", &whole[..length]);
        tree.put("/boot/initrd.img-6.1.rehost-append", "37");
        let second = propose_with(&tree.guest(), "initramfs", propose);
        assert_eq!(tail(&second), tail(&first), "cut off at {length}");
        for planned in second.edits {
            apply(&tree.root(), &planned.edit).unwrap();
        }
        assert_eq!(tree.root().read("/boot/initrd.img-6.1").unwrap().unwrap(), whole, "cut off at {length}");
        assert!(!tree.root().has_name("/boot/initrd.img-6.1.rehost-append"));
    }
    assert_settles(&tree.guest(), propose);
}

#[test]
fn a_kernel_without_nvme_is_an_error_and_edits_nothing() {
    let tree = tree();
    tree.put("/lib/modules/6.1/modules.dep", "kernel/fs/ext4.ko:\n");
    let proposal = propose_with(&tree.guest(), "initramfs", propose);
    assert!(proposal.edits.is_empty());
    assert!(proposal.findings.iter().any(|finding| finding.cause.contains("NVMe")));
}

#[test]
fn ec2_wants_ena() {
    let mut tree = tree();
    tree.target = ConversionTarget::Ec2;
    let proposal = propose_with(&tree.guest(), "initramfs", propose);
    assert!(proposal.findings.iter().any(|finding| finding.cause.contains("ena")));
    assert!(!proposal.edits.is_empty());
}

#[test]
fn an_initramfs_of_another_name_belongs_to_the_only_kernel() {
    let tree = tree();
    tree.put("/boot/initrd", "x");
    tree.put(GRUB_CFG, "initrd /boot/initrd\ninitrd /boot/initrd.img-5.0\n");
    let names: Vec<String> = images(&tree.guest()).into_iter().map(|image| image.path).collect();
    assert_eq!(names, ["/boot/initrd", "/boot/initrd.img-6.1"]);
}
