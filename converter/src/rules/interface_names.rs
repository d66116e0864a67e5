//! Names of network interfaces: rules that give them by MAC address or slot go, and the target's first card gets the name that the
//! source's first card had.

use crate::edit::Proposer;
use crate::guest::Guest;

const RULES: &str = "/etc/udev/rules.d";
const LINKS: &str = "/etc/systemd/network";
const OWN_LINK: &str = "10-rehost-primary.link";
/// Network drivers of EC2 (Nitro, enhanced networking, Xen) and of QEMU. A second card of the same kind keeps its own name: two cannot have one.
const DRIVERS: &str = "ena ixgbevf vif virtio_net e1000 e1000e";

pub(super) fn propose(guest: &Guest, primary: Option<&str>, to: &mut Proposer<'_>) {
    udev_rules(guest, to);
    link_files(guest, to);
    if let Some(primary) = primary.filter(|_| guest.has_udev()) {
        let contents = format!(
            "# The server's first network card keeps its name on any hardware (rehost).\n\
             [Match]\nDriver={DRIVERS}\n\n[Link]\nName={primary}\n"
        );
        to.write(
            &format!("{LINKS}/{OWN_LINK}"),
            contents,
            format!("keep the name {primary} for the first network card"),
        );
    }
}

fn udev_rules(guest: &Guest, to: &mut Proposer<'_>) {
    for name in guest.root.names(RULES).into_iter().filter(|name| name.ends_with(".rules")) {
        let path = format!("{RULES}/{name}");
        if name.ends_with("persistent-net.rules") {
            to.retire(&path, "forget interface names that were given by MAC address");
            continue;
        }
        let text = guest.root.text(&path).unwrap_or_default();
        let lines: Vec<String> = text
            .split('\n')
            .map(|line| if pins(line) { format!("# rehost: {line}") } else { line.to_owned() })
            .collect();
        to.write(&path, lines.join("\n"), "forget interface names that were given by MAC address");
    }
}

/// A rule that names an interface by what only the source's hardware has.
fn pins(line: &str) -> bool {
    let rule = line.trim_start();
    let by_hardware = ["{address}==", "KERNELS==", "ID_PATH}==", "{dev_id}=="].iter().any(|key| rule.contains(key));
    !rule.starts_with('#') && rule.contains("\"net\"") && by_hardware && rule.contains("NAME=\"")
}

fn link_files(guest: &Guest, to: &mut Proposer<'_>) {
    for name in guest.root.names(LINKS).into_iter().filter(|name| name.ends_with(".link") && name != OWN_LINK) {
        let path = format!("{LINKS}/{name}");
        let text = guest.root.text(&path).unwrap_or_default();
        let by_hardware = |line: &str| {
            ["MACAddress=", "PermanentMACAddress=", "Path="].iter().any(|key| line.trim_start().starts_with(key))
        };
        if text.lines().any(by_hardware) {
            to.retire(&path, "forget an interface name that was given by MAC address or slot");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, paths, propose_with};
    use super::*;

    #[test]
    fn pins_go_and_the_name_stays() {
        let tree = Tree::new(&[
            (
                "/etc/udev/rules.d/70-persistent-net.rules",
                "SUBSYSTEM==\"net\", ATTR{address}==\"52:54:00:00:00:01\", NAME=\"lan0\"\n",
            ),
            (
                "/etc/udev/rules.d/99-own.rules",
                "KERNEL==\"sda\", NAME=\"x\"\nSUBSYSTEM==\"net\", ATTR{address}==\"1\", NAME=\"lan1\"\n",
            ),
            ("/etc/systemd/network/10-lan.link", "[Match]\nMACAddress=52:54:00:00:00:01\n[Link]\nName=lan0\n"),
            ("/etc/systemd/network/99-other.link", "[Match]\nDriver=x\n"),
            ("/usr/bin/udevadm", ""),
        ]);
        let guest = tree.guest();
        let proposal = propose_with(&guest, "network", |guest, to| propose(guest, Some("lan0"), to));
        assert_eq!(
            paths(&proposal),
            [
                "/etc/udev/rules.d/70-persistent-net.rules",
                "/etc/udev/rules.d/99-own.rules",
                "/etc/systemd/network/10-lan.link",
                "/etc/systemd/network/10-rehost-primary.link"
            ]
        );
        let own = tree.written(&proposal, "/etc/udev/rules.d/99-own.rules").unwrap();
        assert_eq!(
            own,
            "KERNEL==\"sda\", NAME=\"x\"\n# rehost: SUBSYSTEM==\"net\", ATTR{address}==\"1\", NAME=\"lan1\"\n"
        );
        let link = tree.written(&proposal, "/etc/systemd/network/10-rehost-primary.link").unwrap();
        assert!(link.contains("\nName=lan0\n") && link.contains("virtio_net"), "{link}");
    }

    #[test]
    fn without_udev_there_is_no_link_file() {
        let tree = Tree::new(&[("/etc/hostname", "x")]);
        let proposal = propose_with(&tree.guest(), "network", |guest, to| propose(guest, Some("lan0"), to));
        assert!(proposal.edits.is_empty());
    }
}
