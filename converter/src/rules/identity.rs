//! The replication agent goes from the copy: a launched copy must not replicate, least of all under the source's identity. Nothing of it is kept.
//!
//! `/etc/machine-id` and the SSH host keys stay: the copy is the same server, and what knows it by them must still do so.

use crate::edit::Proposer;
use crate::guest::Guest;

const AGENT: [(&str, &str); 5] = [
    ("/etc/systemd/system/multi-user.target.wants/rehost-agent.service", "do not start the replication agent"),
    ("/etc/systemd/system/rehost-agent.service", "remove the replication agent's unit"),
    ("/usr/local/sbin/rehost-agent", "remove the replication agent"),
    ("/var/lib/rehost-agent", "remove the replication agent's identity"),
    ("/etc/rehost-agent", "remove the replication agent's settings"),
];

pub(super) fn propose(_guest: &Guest, to: &mut Proposer<'_>) {
    for (path, why) in AGENT {
        to.remove(path, why);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, assert_settles, paths, propose_with};
    use super::*;

    #[test]
    fn nothing_of_the_agent_stays() {
        let tree = Tree::new(&[
            ("/var/lib/rehost-agent/identity/key.pem", "secret"),
            ("/usr/local/sbin/rehost-agent", ""),
            ("/etc/systemd/system/rehost-agent.service", ""),
            ("/etc/machine-id", "0123"),
        ]);
        tree.link("/etc/systemd/system/multi-user.target.wants/rehost-agent.service", "../rehost-agent.service");
        let guest = tree.guest();
        assert_eq!(paths(&propose_with(&guest, "agent", propose)).len(), 4);
        assert_settles(&guest, propose);
        assert!(tree.root().names("/var/lib").is_empty() && tree.root().exists("/etc/machine-id"));
    }
}
