//! The network: from the source's fixed addresses to DHCP, whoever configures it.
//!
//! The target's network card has another driver, bus and MAC address, so that its name would change too. But names are written in more
//! places than the network's own settings (firewall rules, `listen` directives): where udev gives the names, the target's first card
//! gets the source's name by a `.link` file that matches drivers, not addresses. Stanzas for the names that a card would get
//! without it are a second line of defence, in ifupdown, which knows no wildcards in its older releases.

use crate::edit::Proposer;
use crate::guest::Guest;

use super::{ifupdown, interface_names, netplan, networkd};

const CONNECTIONS: &str = "/etc/NetworkManager/system-connections";

pub(super) fn propose(guest: &Guest, to: &mut Proposer<'_>) {
    let primary = ifupdown::primary(guest).or_else(|| netplan::primary(guest)).or_else(|| networkd::primary(guest));
    interface_names::propose(guest, primary.as_deref(), to);
    ifupdown::propose(guest, primary.as_deref(), to);
    netplan::propose(guest, to);
    networkd::propose(guest, to);
    network_manager(guest, to);
    if guest.inventory.network.is_empty() {
        to.warning(
            "no network configuration of a known kind was found",
            "see that the guest uses DHCP on its first card",
        );
    }
}

fn network_manager(guest: &Guest, to: &mut Proposer<'_>) {
    for name in guest.root.names(CONNECTIONS) {
        let text = guest.root.text(&format!("{CONNECTIONS}/{name}")).unwrap_or_default();
        let pinned = ["mac-address=", "method=manual", "address1="]
            .iter()
            .find(|key| text.lines().any(|line| line.starts_with(*key)));
        if let Some(key) = pinned {
            let cause = format!("NetworkManager's connection `{name}` has `{key}…`, which is not converted");
            to.warning(
                cause,
                "set it to method=auto without a MAC address on the source, or log in on the console and do it there",
            );
        }
    }
}
