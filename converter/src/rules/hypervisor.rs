//! What the old hypervisor left: guest agents that wait for their host, or fail, where it is not. They are disabled, not removed:
//! their packages stay, and so does the way back.
//!
//! `open-vm-tools`, `qemu-guest-agent` and `hyperv-daemons` ask systemd for their hypervisor and do nothing without it: they stay.

use std::collections::BTreeSet;

use crate::edit::Proposer;
use crate::guest::Guest;

/// Units and start scripts, with whose they are.
const LEFTOVERS: [(&str, &str); 12] = [
    ("vmware-tools", "VMware Tools"),
    ("vmware-tools-thinprint", "VMware Tools"),
    ("vboxadd", "VirtualBox Guest Additions"),
    ("vboxadd-service", "VirtualBox Guest Additions"),
    ("vboxadd-x11", "VirtualBox Guest Additions"),
    ("virtualbox-guest-utils", "VirtualBox Guest Additions"),
    ("xe-daemon", "Xen guest agent"),
    ("xe-linux-distribution", "Xen guest agent"),
    ("xe-guest-utilities", "Xen guest agent"),
    ("xendomains", "Xen"),
    ("prltoolsd", "Parallels Tools"),
    ("prltools_updater", "Parallels Tools"),
];
const UNITS: &str = "/etc/systemd/system";

pub(super) fn propose(guest: &Guest, to: &mut Proposer<'_>) {
    let mut found = BTreeSet::new();
    for directory in start_directories(guest) {
        for name in guest.root.names(&directory) {
            if let Some(owner) = owner(&name) {
                found.insert(owner);
                to.remove(&format!("{directory}/{name}"), format!("do not start {owner}"));
            }
        }
    }
    for owner in found {
        to.info(
            format!("{owner} belongs to the old hypervisor and was disabled"),
            "remove its package when the server has settled",
        );
    }
}

/// Where links say what is started: systemd's `.wants`, and System V's run levels.
fn start_directories(guest: &Guest) -> Vec<String> {
    let wants = guest
        .root
        .names(UNITS)
        .into_iter()
        .filter(|name| name.ends_with(".wants"))
        .map(|name| format!("{UNITS}/{name}"));
    let levels = ["0", "1", "2", "3", "4", "5", "6", "S"].map(|level| format!("/etc/rc{level}.d"));
    wants.chain(levels).collect()
}

/// `vboxadd.service` or `S20vboxadd`.
fn owner(name: &str) -> Option<&'static str> {
    let script = name.strip_prefix(['S', 'K']).map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    let unit = name.strip_suffix(".service");
    LEFTOVERS.iter().find(|(leftover, _)| unit == Some(leftover) || script == Some(leftover)).map(|(_, owner)| *owner)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, assert_settles, paths, propose_with};
    use super::*;

    #[test]
    fn agents_of_the_old_host_are_disabled() {
        let tree = Tree::new(&[("/etc/hostname", "x")]);
        tree.link("/etc/systemd/system/multi-user.target.wants/vboxadd.service", "/lib/systemd/system/vboxadd.service");
        tree.link(
            "/etc/systemd/system/multi-user.target.wants/open-vm-tools.service",
            "/lib/systemd/system/open-vm-tools.service",
        );
        tree.link("/etc/rc2.d/S20vmware-tools", "../init.d/vmware-tools");
        let proposal = propose_with(&tree.guest(), "hypervisor", propose);
        assert_eq!(
            paths(&proposal),
            ["/etc/systemd/system/multi-user.target.wants/vboxadd.service", "/etc/rc2.d/S20vmware-tools"]
        );
        assert_eq!(proposal.findings.len(), 2);
        assert_settles(&tree.guest(), propose);
    }
}
