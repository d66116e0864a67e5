use std::os::unix::fs::symlink;

use super::*;

fn tree() -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("etc")).unwrap();
    fs::write(directory.path().join("etc/fstab"), "old").unwrap();
    let root = Root::new(directory.path());
    (directory, root)
}

fn write_edit(path: &str, contents: &str) -> Edit {
    Edit::Write { path: path.to_owned(), contents: contents.into() }
}

#[test]
fn writing_keeps_the_original_and_the_mode() {
    let (directory, root) = tree();
    let fstab = directory.path().join("etc/fstab");
    fs::set_permissions(&fstab, fs::Permissions::from_mode(0o640)).unwrap();
    apply(&root, &write_edit("/etc/fstab", "new")).unwrap();
    apply(&root, &write_edit("/etc/fstab", "newer")).unwrap();
    assert_eq!(root.text("/etc/fstab").as_deref(), Some("newer"));
    assert_eq!(root.text("/etc/fstab.rehost-orig").as_deref(), Some("old"));
    assert_eq!(fstab.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(root.names("/etc"), ["fstab", "fstab.rehost-orig"]);
}

#[test]
fn extended_attributes_stay() {
    let (directory, root) = tree();
    let fstab = directory.path().join("etc/fstab");
    if rustix::fs::setxattr(&fstab, "user.label", b"x", rustix::fs::XattrFlags::empty()).is_err() {
        return; // The file system of the temporary directory has none.
    }
    apply(&root, &write_edit("/etc/fstab", "new")).unwrap();
    let mut value = [0u8; 8];
    assert_eq!(rustix::fs::getxattr(&fstab, "user.label", &mut value).unwrap(), 1);
}

#[test]
fn writing_through_a_link_stays_in_the_tree() {
    let (directory, root) = tree();
    fs::create_dir(directory.path().join("run")).unwrap();
    symlink("/run/resolv.conf", directory.path().join("etc/resolv.conf")).unwrap();
    apply(&root, &write_edit("/etc/resolv.conf", "nameserver ::1\n")).unwrap();
    assert_eq!(fs::read_to_string(directory.path().join("run/resolv.conf")).unwrap(), "nameserver ::1\n");
}

#[test]
fn new_files_get_their_directories() {
    let (_directory, root) = tree();
    apply(&root, &write_edit("/etc/systemd/network/10-x.link", "[Match]\n")).unwrap();
    assert_eq!(root.names("/etc/systemd/network"), ["10-x.link"]);
}

#[test]
fn retiring_keeps_and_removing_does_not() {
    let (directory, root) = tree();
    fs::create_dir_all(directory.path().join("var/lib/agent/keys")).unwrap();
    apply(&root, &Edit::Retire { path: "/etc/fstab".into() }).unwrap();
    apply(&root, &Edit::Remove { path: "/var/lib/agent".into() }).unwrap();
    apply(&root, &Edit::Remove { path: "/var/lib/agent".into() }).unwrap();
    assert_eq!(root.names("/etc"), ["fstab.rehost-orig"]);
    assert!(root.names("/var/lib").is_empty());
}

#[test]
fn appending_replaces_what_was_appended_before() {
    let (_directory, root) = tree();
    let append = |tail: &str| Edit::Append { path: "/etc/fstab".into(), keep: 3, tail: tail.into() };
    apply(&root, &append("+long tail")).unwrap();
    apply(&root, &append("+tail")).unwrap();
    assert_eq!(root.text("/etc/fstab").as_deref(), Some("old+tail"));
}

#[test]
fn links_are_made() {
    let (directory, root) = tree();
    apply(&root, &Edit::Link { path: "/etc/wants/a.service".into(), target: "/lib/a.service".into() }).unwrap();
    assert_eq!(fs::read_link(directory.path().join("etc/wants/a.service")).unwrap(), Path::new("/lib/a.service"));
}

#[test]
fn backups_hide_where_every_file_is_read() {
    assert_eq!(backup_path("/etc/fstab"), "/etc/fstab.rehost-orig");
    assert_eq!(backup_path("/etc/network/interfaces.d/eth0"), "/etc/network/interfaces.d/.eth0.rehost-orig");
}

#[test]
fn an_edit_that_fails_names_its_file_and_leaves_it() {
    let (_directory, root) = tree();
    let error = apply(&root, &write_edit("/etc/fstab/x", "new")).unwrap_err();
    assert!(error.to_string().contains("/etc/fstab/x"), "{error}");
    assert_eq!(root.text("/etc/fstab").as_deref(), Some("old"));
}
