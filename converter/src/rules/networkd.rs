//! systemd-networkd: `.network` files with a fixed address or a MAC address in their match.

use crate::edit::Proposer;
use crate::guest::Guest;

const DIRECTORY: &str = "/etc/systemd/network";
const OWN: &str = "/etc/systemd/network/20-rehost.network";
const WANTS: &str = "/etc/systemd/system/multi-user.target.wants/systemd-networkd.service";
const BY_HARDWARE: [&str; 4] = ["MACAddress", "PermanentMACAddress", "Path", "Driver"];
const FIXED: [&str; 3] = ["Address", "Gateway", "DNS"];

pub(super) fn is_installed(guest: &Guest) -> bool {
    guest.root.exists("/lib/systemd/systemd-networkd") || guest.root.exists("/usr/lib/systemd/systemd-networkd")
}

/// The first card's name, if a `.network` file has one without wildcards.
pub(super) fn primary(guest: &Guest) -> Option<String> {
    let names = files(guest).into_iter().filter(|path| path != OWN);
    names.filter_map(|path| guest.root.text(&path)).filter(|text| is_card(text)).find_map(|text| {
        let name = values(&text, "Match", "Name").next()?.split_whitespace().next()?.to_owned();
        (!name.contains(['*', '?', '[', '!'])).then_some(name)
    })
}

pub(super) fn propose(guest: &Guest, to: &mut Proposer<'_>) {
    for path in files(guest) {
        let Some(text) = guest.root.text(&path).filter(|text| is_card(text)) else { continue };
        let fixed =
            values(&text, "Network", "Address").next().is_some() || text.lines().any(|line| line.trim() == "[Address]");
        let pinned = BY_HARDWARE.iter().any(|key| values(&text, "Match", key).next().is_some());
        if fixed || pinned {
            to.write(&path, convert(&text, fixed), "get the address by DHCP, on a card of any address");
        }
    }
}

/// Lets networkd configure the cards of a guest whose own tool cannot do DHCP.
pub(super) fn take_over(primary: Option<&str>, to: &mut Proposer<'_>) {
    let names = primary.map_or_else(|| "en* eth*".to_owned(), |primary| format!("{primary} en* eth*"));
    let text = format!(
        "# The guest's own network tool has no DHCP client (rehost).\n[Match]\nName={names}\n\n[Network]\nDHCP=yes\n"
    );
    to.write(OWN, text, "get the address by DHCP");
    to.link(WANTS, "/lib/systemd/system/systemd-networkd.service", "start systemd-networkd");
    to.info(
        "the guest has no DHCP client for ifupdown: systemd-networkd configures its network",
        "check the name servers in /etc/resolv.conf, which stays as it is; install isc-dhcp-client to use ifupdown again",
    );
}

fn files(guest: &Guest) -> Vec<String> {
    let names = guest.root.names(DIRECTORY).into_iter().filter(|name| name.ends_with(".network"));
    names.map(|name| format!("{DIRECTORY}/{name}")).collect()
}

/// Bridges, bonds, tunnels and the like have a type or kind in their match, or a well-known name.
fn is_card(text: &str) -> bool {
    let of_type =
        values(text, "Match", "Type").any(|kind| kind != "ether") || values(text, "Match", "Kind").next().is_some();
    let virtual_name = values(text, "Match", "Name").any(|name| {
        ["br", "bond", "docker", "veth", "wg", "tun", "tap", "vlan", "lo", "virbr", "dummy"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    });
    !of_type && !virtual_name
}

/// Values of a key in a section.
fn values<'a>(text: &'a str, section: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let mut inside = false;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[') {
            inside = name.strip_suffix(']') == Some(section);
        }
        let (own, value) = line.split_once('=')?;
        (inside && own.trim() == key).then(|| value.trim())
    })
}

fn convert(text: &str, fixed: bool) -> String {
    let has_name = values(text, "Match", "Name").next().is_some();
    let mut section = String::new();
    let mut lines = Vec::new();
    for line in text.trim_end_matches('\n').split('\n') {
        let trimmed = line.trim();
        if trimmed.starts_with('[') {
            trimmed.clone_into(&mut section);
        }
        let key = trimmed.split_once('=').map_or("", |(key, _)| key.trim());
        let goes = match section.as_str() {
            "[Match]" => BY_HARDWARE.contains(&key),
            "[Network]" => fixed && (FIXED.contains(&key) || key == "DHCP"),
            "[Address]" | "[Route]" => fixed && !trimmed.is_empty() && !trimmed.starts_with('#'),
            _ => false,
        };
        lines.push(if goes { format!("# rehost: {trimmed}") } else { line.to_owned() });
        match trimmed {
            "[Match]" if !has_name => lines.push("Name=en* eth*".to_owned()),
            "[Network]" if fixed => lines.push("DHCP=yes".to_owned()),
            _ => {}
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, assert_settles, propose_with};
    use super::*;

    #[test]
    fn a_fixed_address_becomes_dhcp() {
        let text = "[Match]\nMACAddress=52:54:00:00:00:01\n\n[Network]\nAddress=10.0.0.5/24\nGateway=10.0.0.1\nLLDP=no\n\n[Route]\nGateway=10.0.0.2\n";
        let tree = Tree::new(&[("/etc/systemd/network/10-lan.network", text)]);
        let proposal = propose_with(&tree.guest(), "network", propose);
        assert_eq!(
            tree.written(&proposal, "/etc/systemd/network/10-lan.network").unwrap(),
            "[Match]\nName=en* eth*\n# rehost: MACAddress=52:54:00:00:00:01\n\n[Network]\nDHCP=yes\n# rehost: Address=10.0.0.5/24\n\
             # rehost: Gateway=10.0.0.1\nLLDP=no\n\n# rehost: [Route]\n# rehost: Gateway=10.0.0.2\n"
        );
        assert_settles(&tree.guest(), propose);
    }

    #[test]
    fn names_bridges_and_dhcp_stay() {
        let tree = Tree::new(&[
            ("/etc/systemd/network/10-a.network", "[Match]\nName=br0\n[Network]\nAddress=10.0.0.5/24\n"),
            ("/etc/systemd/network/20-b.network", "[Match]\nName=ens192\n[Network]\nDHCP=yes\n"),
        ]);
        assert!(propose_with(&tree.guest(), "network", propose).edits.is_empty());
        assert_eq!(primary(&tree.guest()).as_deref(), Some("ens192"));
    }
}
