//! Network interfaces, read from sysfs and procfs: no netlink socket, no library.

use std::net::{Ipv4Addr, Ipv6Addr};

use rehost_model::server::NetworkInterface;

use crate::system::{System, names, text};

/// The interfaces that are hardware (or a hypervisor's), with their addresses; all but the loopback when none is.
pub(super) fn interfaces(system: &System) -> Vec<NetworkInterface> {
    let class = system.sys.join("class/net");
    let all: Vec<_> = names(&class).into_iter().filter(|name| name != "lo").collect();
    let hardware: Vec<_> = all.iter().filter(|name| class.join(name).join("device").exists()).cloned().collect();
    let chosen = if hardware.is_empty() { all } else { hardware };
    let file = |name: &str| text(system.proc.join("net").join(name)).unwrap_or_default();
    let routes = routes(&file("route"));
    let (locals, locals_v6) = (local_addresses(&file("fib_trie")), local_addresses_v6(&file("if_inet6")));
    let primary = primary(&routes, &chosen);
    let describe = |name: &String| {
        let v4 = locals.iter().filter(|ip| interface_of(**ip, &routes) == Some(name.as_str())).map(ToString::to_string);
        let v6 = locals_v6.iter().filter(|(interface, _)| interface == name).map(|(_, ip)| ip.to_string());
        NetworkInterface {
            mac_address: text(class.join(name).join("address")).unwrap_or_default(),
            ips: v4.chain(v6).collect(),
            is_primary: primary.as_deref() == Some(name.as_str()),
        }
    };
    chosen.iter().map(describe).collect()
}

struct Route {
    interface: String,
    destination: u32,
    mask: u32,
    metric: u32,
}

/// `/proc/net/route`: addresses are 32-bit numbers as the machine keeps them, in hexadecimal.
fn routes(table: &str) -> Vec<Route> {
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::swap_bytes);
    let route = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        Some(Route {
            interface: (*fields.first()?).to_owned(),
            destination: number(fields.get(1)?)?,
            metric: fields.get(6)?.parse().ok()?,
            mask: number(fields.get(7)?)?,
        })
    };
    table.lines().skip(1).filter_map(route).collect()
}

/// The interface of the default route with the lowest metric, else the first one.
fn primary(routes: &[Route], interfaces: &[String]) -> Option<String> {
    let default = routes.iter().filter(|r| r.mask == 0 && interfaces.contains(&r.interface)).min_by_key(|r| r.metric);
    default.map(|r| r.interface.clone()).or_else(|| interfaces.first().cloned())
}

/// The interface whose own network an address is in: the most specific route, but never the default.
fn interface_of(ip: Ipv4Addr, routes: &[Route]) -> Option<&str> {
    let address = u32::from(ip);
    let matching = routes.iter().filter(|r| r.mask != 0 && address & r.mask == r.destination);
    matching.max_by_key(|r| r.mask).map(|r| r.interface.as_str())
}

/// The addresses that `/proc/net/fib_trie` marks as the machine's own, without those of the loopback.
fn local_addresses(trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut leaf = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = leaf.filter(|a| !a.is_loopback())
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// `/proc/net/if_inet6`; link-local addresses say nothing and are left out.
fn local_addresses_v6(table: &str) -> Vec<(String, Ipv6Addr)> {
    let entry = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let address = Ipv6Addr::from(u128::from_str_radix(fields.first()?, 16).ok()?);
        let usable = !address.is_loopback() && !address.is_unicast_link_local();
        usable.then(|| Some(((*fields.last()?).to_owned(), address))).flatten()
    };
    table.lines().filter_map(entry).collect()
}
