//! `/etc/fstab`: device names become UUIDs of what they named on the source, and what is not there must not stop the boot.
//!
//! systemd waits 90 s for a device and then stops in emergency mode; `nofail` is what keeps a server reachable.

use crate::disk::Resolution;
use crate::edit::Proposer;
use crate::fstab::{Entry, with_field};
use crate::guest::Guest;

const FSTAB: &str = "/etc/fstab";

pub(super) fn propose(guest: &Guest, to: &mut Proposer<'_>) {
    let Some(text) = guest.root.text(FSTAB) else {
        to.info(
            format!("there is no readable {FSTAB}"),
            "nothing to do if the guest mounts its file systems otherwise",
        );
        return;
    };
    let mut changed = Vec::new();
    let lines: Vec<String> = text.split('\n').map(|line| convert(guest, line, &mut changed, to)).collect();
    if !changed.is_empty() {
        to.write(FSTAB, lines.join("\n"), format!("mount {} by UUID or optionally", changed.join(", ")));
    }
}

fn convert(guest: &Guest, line: &str, changed: &mut Vec<String>, to: &mut Proposer<'_>) -> String {
    let Some(entry) = Entry::parse(line) else { return line.to_owned() };
    let new = match guest.disks.resolve(entry.device) {
        Resolution::Found(_, volume) if is_device_name(entry.device) => match volume.uuid() {
            Some(uuid) => with_field(line, 0, &format!("UUID={uuid}")),
            None => without_uuid(line, &entry, to),
        },
        Resolution::Missing => missing(guest, line, &entry, to),
        Resolution::Found(..) | Resolution::NotHardware => line.to_owned(),
    };
    if new != line {
        changed.push(if entry.kind == "swap" { "swap".to_owned() } else { entry.mount_point.to_owned() });
    }
    new
}

/// Names that the hardware gives; UUIDs and labels travel with the disk.
fn is_device_name(device: &str) -> bool {
    device.starts_with("/dev/")
        && !["by-uuid", "by-label", "by-partuuid", "by-partlabel"]
            .iter()
            .any(|link| device.starts_with(&format!("/dev/disk/{link}/")))
}

fn missing(guest: &Guest, line: &str, entry: &Entry<'_>, to: &mut Proposer<'_>) -> String {
    if let (true, Some(uuid)) = (entry.mount_point == "/", &guest.root_uuid) {
        to.info(
            format!("{FSTAB} names {} as root, which is not there", entry.device),
            "the file system that holds it is used",
        );
        return with_field(line, 0, &format!("UUID={uuid}"));
    }
    if entry.mount_point == "/" {
        let cause = format!("the root file system {} is on none of the disks", entry.device);
        to.error(cause, "replicate the boot disk, and say what the source calls its disks");
        return line.to_owned();
    }
    optional(line, entry, "is on none of the replicated disks", to)
}

fn without_uuid(line: &str, entry: &Entry<'_>, to: &mut Proposer<'_>) -> String {
    optional(line, entry, "holds nothing that has a UUID", to)
}

fn optional(line: &str, entry: &Entry<'_>, why: &str, to: &mut Proposer<'_>) -> String {
    if entry.has_option("nofail") || entry.has_option("noauto") {
        return line.to_owned();
    }
    let what = if entry.kind == "swap" { "swap" } else { entry.mount_point };
    let cause = format!("{} ({what}) {why}: its entry became `nofail`", entry.device);
    to.warning(cause, format!("replicate that disk too, or remove the entry from {FSTAB}"));
    with_field(line, 3, &format!("{},nofail", entry.options))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, propose_with};
    use super::*;

    fn convert(fstab: &str) -> (Option<String>, Vec<String>) {
        let tree = Tree::new(&[(FSTAB, fstab)]);
        let proposal = propose_with(&tree.guest(), "fstab", propose);
        let causes = proposal.findings.iter().map(|finding| finding.cause.clone()).collect();
        (tree.written(&proposal, FSTAB), causes)
    }

    #[test]
    fn names_become_uuids_and_the_rest_stays() {
        let (new, causes) = convert(
            "# /dev/sda1 was root\n/dev/sda1\t/  ext4 noatime 0 1\n/dev/sda2 none swap sw 0 0\nUUID=11111111-1111-1111-1111-111111111111 /x ext4\n\
             tmpfs /tmp tmpfs\n/dev/mapper/vg-x /y xfs\n",
        );
        assert_eq!(
            new.unwrap(),
            "# /dev/sda1 was root\nUUID=11111111-1111-1111-1111-111111111111\t/  ext4 noatime 0 1\nUUID=22222222-2222-2222-2222-222222222222 none swap sw 0 0\n\
             UUID=11111111-1111-1111-1111-111111111111 /x ext4\ntmpfs /tmp tmpfs\n/dev/mapper/vg-x /y xfs\n"
        );
        assert!(causes.is_empty(), "{causes:?}");
    }

    #[test]
    fn what_is_not_there_does_not_stop_the_boot() {
        let (new, causes) =
            convert("/dev/sda1 / ext4\n/dev/sdz1 /data ext4 rw 0 2\nUUID=dead /d ext4 noauto\nLABEL=gone /e ext4\n");
        let new = new.unwrap();
        assert!(
            new.contains(
                "/dev/sdz1 /data ext4 rw,nofail 0 2\nUUID=dead /d ext4 noauto\nLABEL=gone /e ext4 defaults,nofail\n"
            ),
            "{new}"
        );
        assert_eq!(causes.len(), 2);
    }

    #[test]
    fn a_converted_table_stays() {
        let (new, causes) = convert("UUID=11111111-1111-1111-1111-111111111111 / ext4\n/dev/sdz1 /data ext4 nofail\n");
        assert_eq!((new, causes.len()), (None, 0));
    }

    #[test]
    fn a_root_that_is_elsewhere_is_an_error() {
        let (new, causes) = convert("/dev/sdz1 / ext4\n");
        assert_eq!(new, None);
        assert!(causes[0].contains("root file system /dev/sdz1"));
    }
}
