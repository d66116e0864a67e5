//! netplan (Ubuntu): settings with fixed or MAC addresses are set aside as a whole, and one file asks for DHCP on every card. The settings
//! are YAML, in which cards, bridges and routes refer to each other: to edit single lines would leave some of that dangling.

use crate::edit::Proposer;
use crate::guest::Guest;

const DIRECTORY: &str = "/etc/netplan";
const OWN: &str = "/etc/netplan/60-rehost.yaml";
const FIXED: [&str; 5] = ["addresses:", "macaddress:", "gateway4:", "gateway6:", "routes:"];
const COMPOUND: [&str; 5] = ["bonds:", "bridges:", "vlans:", "wifis:", "tunnels:"];

/// The first card's name: what `set-name` gives it, else its key.
pub(super) fn primary(guest: &Guest) -> Option<String> {
    let texts = files(guest).into_iter().filter(|path| path != OWN).filter_map(|path| guest.root.text(&path));
    texts.into_iter().find_map(|text| {
        let mut lines = text.lines().skip_while(|line| line.trim() != "ethernets:").skip(1);
        let key = lines.next()?.trim().strip_suffix(':')?.trim_matches('"').to_owned();
        let named = text.lines().find_map(|line| line.trim().strip_prefix("set-name:"));
        let name = named.map_or(key, |name| name.trim().trim_matches('"').to_owned());
        let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        // A key with a match of its own is a word, not a name.
        (is_plain && (named.is_some() || !text.contains("match:"))).then_some(name)
    })
}

pub(super) fn propose(guest: &Guest, to: &mut Proposer<'_>) {
    let texts: Vec<(String, String)> = files(guest)
        .into_iter()
        .filter(|path| path != OWN)
        .map(|path| (guest.root.text(&path).unwrap_or_default(), path))
        .map(|(text, path)| (path, text))
        .collect();
    let has =
        |keys: &[&str]| texts.iter().any(|(_, text)| text.lines().any(|line| keys.iter().any(|key| is_key(line, key))));
    if !has(&FIXED) {
        return;
    }
    if has(&COMPOUND) {
        let cause = "netplan's bonds, bridges, VLANs or tunnels belong to the source's network and were set aside";
        to.warning(cause, format!("set up their like for the target's network in {OWN}; the originals are beside it"));
    }
    let renderer = if has(&["renderer: NetworkManager"]) { "NetworkManager" } else { "networkd" };
    for (path, _) in &texts {
        to.retire(path, "set fixed addresses aside");
    }
    let text = format!(
        "# Every network card by DHCP (rehost). The source's settings are beside this file.\nnetwork:\n  version: 2\n  renderer: {renderer}\n\
         \x20 ethernets:\n    all-cards:\n      match:\n        name: \"e*\"\n      dhcp4: true\n      dhcp6: true\n      optional: true\n"
    );
    to.write(OWN, text, "get the address by DHCP");
}

fn files(guest: &Guest) -> Vec<String> {
    let names = guest.root.names(DIRECTORY).into_iter().filter(|name| name.ends_with(".yaml"));
    names.map(|name| format!("{DIRECTORY}/{name}")).collect()
}

fn is_key(line: &str, key: &str) -> bool {
    line.trim_start().trim_start_matches("- ").starts_with(key)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, assert_settles, paths, propose_with};
    use super::*;

    const STATIC: &str = "network:\n  version: 2\n  ethernets:\n    ens192:\n      addresses: [10.0.0.5/24]\n      routes:\n      - to: default\n        via: 10.0.0.1\n";

    #[test]
    fn fixed_addresses_are_set_aside() {
        let tree = Tree::new(&[("/etc/netplan/00-installer.yaml", STATIC)]);
        let guest = tree.guest();
        assert_eq!(primary(&guest).as_deref(), Some("ens192"));
        let proposal = propose_with(&guest, "network", propose);
        assert_eq!(paths(&proposal), ["/etc/netplan/00-installer.yaml", OWN]);
        assert!(tree.written(&proposal, OWN).unwrap().contains("\n  ethernets:\n    all-cards:\n"));
        assert_settles(&guest, propose);
        assert_eq!(tree.root().names(DIRECTORY), ["00-installer.yaml.rehost-orig", "60-rehost.yaml"]);
    }

    #[test]
    fn dhcp_stays_and_bridges_are_told() {
        let tree = Tree::new(&[(
            "/etc/netplan/a.yaml",
            "network:\n  ethernets:\n    x:\n      match: {name: en*}\n      dhcp4: true\n",
        )]);
        assert!(propose_with(&tree.guest(), "network", propose).edits.is_empty());
        assert_eq!(primary(&tree.guest()), None);
        tree.put("/etc/netplan/b.yaml", format!("{STATIC}  bridges:\n    br0: {{}}\n"));
        assert_eq!(propose_with(&tree.guest(), "network", propose).findings.len(), 1);
    }
}
