use super::super::testing::{Tree, assert_settles, propose_with};
use super::*;

fn settle(guest: &Guest, to: &mut Proposer<'_>) {
    propose(guest, primary(guest).as_deref(), to);
}

fn convert(interfaces: &str) -> (String, Vec<String>) {
    let tree = Tree::new(&[(INTERFACES, interfaces), ("/sbin/dhclient", "")]);
    let proposal = propose_with(&tree.guest(), "network", settle);
    let causes = proposal.findings.iter().map(|finding| finding.cause.clone()).collect();
    let new = tree.written(&proposal, INTERFACES).unwrap_or_else(|| interfaces.to_owned());
    assert_settles(&tree.guest(), settle);
    (new, causes)
}

#[test]
fn a_fixed_address_becomes_dhcp() {
    let (new, causes) = convert(
        "source /etc/network/interfaces.d/*\nauto lo\niface lo inet loopback\n\n# the card\nauto lan0\niface lan0 inet static\n    address 10.0.0.5/24\n\
         \tgateway 10.0.0.1\n    mtu 1400\n    up ip route add 10.1.0.0/16 via 10.0.0.2\n    up logger lan0\niface lan0 inet6 static\n    address fd00::5/64\n",
    );
    assert_eq!(
        new,
        "source /etc/network/interfaces.d/*\nauto lo\niface lo inet loopback\n\n# the card\nauto lan0\niface lan0 inet dhcp\n# rehost: address 10.0.0.5/24\n\
         # rehost: gateway 10.0.0.1\n    mtu 1400\n# rehost: up ip route add 10.1.0.0/16 via 10.0.0.2\n    up logger lan0\niface lan0 inet6 auto\n\
         # rehost: address fd00::5/64\n"
    );
    assert_eq!(causes.len(), 1);
}

#[test]
fn further_cards_are_not_waited_for_and_aliases_go() {
    let (new, _) = convert(
        "auto lo eth0 eth1 eth0:1\niface lo inet loopback\niface eth1 inet static\n address 10.9.0.5\niface eth0 inet static\n address 10.0.0.5\n gateway 10.0.0.1\n\
         iface eth0:1 inet static\n address 10.0.0.6\n",
    );
    assert_eq!(
        new,
        "auto lo eth0\nallow-hotplug eth1\niface lo inet loopback\niface eth1 inet dhcp\n# rehost: address 10.9.0.5\niface eth0 inet dhcp\n\
         # rehost: address 10.0.0.5\n# rehost: gateway 10.0.0.1\n# rehost: iface eth0:1 inet static\n# rehost: address 10.0.0.6\n"
    );
}

#[test]
fn the_card_below_a_bridge_is_the_one_to_name() {
    let text = "auto br0\niface br0 inet static\n address 10.0.0.5/24\n bridge_ports ens192\n gateway 10.0.0.1\n";
    let tree = Tree::new(&[(INTERFACES, text)]);
    assert_eq!(primary(&tree.guest()).as_deref(), Some("ens192"));
}

#[test]
fn likely_names_get_dhcp_too() {
    let tree = Tree::new(&[
        (INTERFACES, "source /etc/network/interfaces.d/*\n"),
        ("/etc/network/interfaces.d/card", "auto ens3\niface ens3 inet static\n address 10.0.0.5\n"),
        ("/sbin/dhclient", ""),
        ("/bin/udevadm", ""),
    ]);
    let proposal = propose_with(&tree.guest(), "network", settle);
    let own = tree.written(&proposal, "/etc/network/interfaces.d/rehost-target").unwrap();
    assert!(own.contains("allow-hotplug eth0\niface eth0 inet dhcp\n") && !own.contains("ens3"), "{own}");
    assert!(tree.written(&proposal, "/etc/network/interfaces.d/card").unwrap().contains("inet dhcp"));
    assert_settles(&tree.guest(), settle);
    assert_eq!(tree.root().names(INCLUDED), [".card.rehost-orig", "card", "rehost-target"]);
}

#[test]
fn without_a_client_networkd_takes_over() {
    let tree = Tree::new(&[
        (INTERFACES, "auto lo lan0\niface lo inet loopback\niface lan0 inet static\n address 10.0.0.5\n"),
        ("/lib/systemd/systemd-networkd", ""),
    ]);
    let guest = tree.guest();
    let proposal = propose_with(&guest, "network", settle);
    assert_eq!(
        tree.written(&proposal, INTERFACES).unwrap(),
        "auto lo\niface lo inet loopback\n# rehost: iface lan0 inet static\n# rehost: address 10.0.0.5\n"
    );
    assert!(tree.written(&proposal, "/etc/systemd/network/20-rehost.network").unwrap().contains("Name=lan0 en* eth*"));
    assert_settles(&guest, settle);
}
