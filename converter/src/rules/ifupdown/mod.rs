//! ifupdown: `/etc/network/interfaces` and what it includes.
//!
//! The first card's stanza becomes `dhcp`; what belongs to its fixed address is commented out, the rest stays. Cards beyond the
//! first become `allow-hotplug`, so that a card that the target does not have is not waited for. Where the guest has no DHCP
//! client for ifupdown, systemd-networkd takes the cards over.

use std::collections::BTreeSet;

use crate::edit::Proposer;
use crate::fstab::with_field;
use crate::guest::Guest;

use super::networkd;

const INTERFACES: &str = "/etc/network/interfaces";
const INCLUDED: &str = "/etc/network/interfaces.d";
const OWN_NAME: &str = "rehost-target";
/// Names that a first card gets on QEMU and on EC2 if nothing renames it.
const LIKELY_NAMES: [&str; 12] =
    ["eth0", "ens2", "ens3", "ens4", "ens5", "ens6", "enp0s2", "enp0s3", "enp0s4", "enp0s5", "enp1s0", "enX0"];
/// Options that belong to a fixed address, or to the source's own hardware.
const FIXED_OPTIONS: [&str; 11] = [
    "address",
    "netmask",
    "gateway",
    "broadcast",
    "network",
    "pointopoint",
    "hwaddress",
    "dns-nameservers",
    "dns-nameserver",
    "metric",
    "ethernet-wol",
];
const CLIENTS: [&str; 5] = ["dhclient", "dhcpcd", "udhcpc", "pump", "dhcpcd5"];

pub(super) fn primary(guest: &Guest) -> Option<String> {
    let interfaces = Interfaces::read(guest)?;
    interfaces.primary().map(|stanza| stanza.port.clone())
}

pub(super) fn propose(guest: &Guest, primary: Option<&str>, to: &mut Proposer<'_>) {
    let Some(interfaces) = Interfaces::read(guest) else { return };
    let has_client = CLIENTS.iter().any(|client| {
        ["/sbin", "/usr/sbin", "/bin", "/usr/bin"]
            .iter()
            .any(|directory| guest.root.exists(&format!("{directory}/{client}")))
    });
    let mode = match (has_client, networkd::is_installed(guest)) {
        (true, _) => Mode::Dhcp,
        (false, true) => Mode::HandOver,
        (false, false) => {
            to.warning("the guest has no DHCP client", "install isc-dhcp-client on the source before the next launch");
            Mode::Dhcp
        }
    };
    let mut conversion = Conversion { mode, interfaces: &interfaces, done: BTreeSet::new(), dropped: Vec::new() };
    for (path, text) in &interfaces.files {
        let new = conversion.convert(text);
        to.write(path, new, "get the address by DHCP");
    }
    for what in &conversion.dropped {
        to.warning(
            format!("{INTERFACES}: `{what}` belongs to the source's network and was commented out"),
            "add its like for the target's network",
        );
    }
    match mode {
        Mode::Dhcp => fallback(guest, &interfaces, to),
        Mode::HandOver if interfaces.stanzas.is_empty() => {}
        Mode::HandOver => networkd::take_over(primary, to),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Dhcp,
    /// systemd-networkd takes over: the stanzas of cards are commented out.
    HandOver,
}

/// A stanza `iface NAME inet METHOD` of a real card, or of a bridge on one.
#[derive(Debug)]
struct Stanza {
    name: String,
    /// The card itself: the bridge's port, or the name.
    port: String,
    has_gateway: bool,
}

/// All files and what they say of cards.
struct Interfaces {
    files: Vec<(String, String)>,
    stanzas: Vec<Stanza>,
}

impl Interfaces {
    fn read(guest: &Guest) -> Option<Self> {
        let mut files = vec![(INTERFACES.to_owned(), guest.root.text(INTERFACES)?)];
        for name in guest.root.names(INCLUDED) {
            let path = format!("{INCLUDED}/{name}");
            if !name.starts_with('.')
                && name != OWN_NAME
                && let Some(text) = guest.root.text(&path)
            {
                files.push((path, text));
            }
        }
        let stanzas = files.iter().flat_map(|(_, text)| stanzas(text)).collect();
        Some(Self { files, stanzas })
    }

    /// The card that leads out.
    fn primary(&self) -> Option<&Stanza> {
        self.stanzas.iter().find(|stanza| stanza.has_gateway).or_else(|| self.stanzas.first())
    }

    fn is_secondary(&self, name: &str) -> bool {
        self.is_card(name) && self.primary().is_some_and(|primary| primary.name != name && primary.port != name)
    }

    fn is_card(&self, name: &str) -> bool {
        self.stanzas.iter().any(|stanza| stanza.name == name)
    }

    fn includes(&self) -> bool {
        self.files
            .iter()
            .take(1)
            .flat_map(|(_, text)| text.lines())
            .any(|line| line.trim_start().starts_with("source") && line.contains("interfaces.d"))
    }
}

fn stanzas(text: &str) -> Vec<Stanza> {
    let mut found: Vec<Stanza> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["iface", name, "inet" | "inet6", method, ..] => {
                inside = is_hardware(name) && matches!(method, "static" | "dhcp" | "manual" | "auto");
                if inside && method != "manual" {
                    found.push(Stanza { name: name.to_owned(), port: name.to_owned(), has_gateway: false });
                } else {
                    inside = false;
                }
            }
            [word, ..] if starts_stanza(word) => inside = false,
            // Commented out it still tells, in a second run, which card leads out.
            ["gateway", ..] | ["#", "rehost:", "gateway", ..] if inside => {
                set_last(&mut found, |stanza| stanza.has_gateway = true)
            }
            ["bridge_ports" | "bridge-ports" | "bond-slaves" | "slaves" | "vlan-raw-device", port, ..]
                if inside && port != "none" =>
            {
                set_last(&mut found, |stanza| port.clone_into(&mut stanza.port));
            }
            _ => {}
        }
    }
    found
}

fn set_last(stanzas: &mut [Stanza], set: impl FnOnce(&mut Stanza)) {
    if let Some(last) = stanzas.last_mut() {
        set(last);
    }
}

fn is_hardware(name: &str) -> bool {
    const VIRTUAL: [&str; 9] = ["lo", "dummy", "tun", "tap", "wg", "docker", "veth", "virbr", "ppp"];
    !VIRTUAL.iter().any(|prefix| name.trim_end_matches(|c: char| c.is_ascii_digit()) == *prefix)
}

fn starts_stanza(word: &str) -> bool {
    word.starts_with("allow-")
        || matches!(
            word,
            "iface"
                | "auto"
                | "mapping"
                | "source"
                | "source-directory"
                | "no-auto-down"
                | "no-scripts"
                | "rename"
                | "template"
        )
}

struct Conversion<'a> {
    mode: Mode,
    interfaces: &'a Interfaces,
    /// Name and family of what has its DHCP stanza.
    done: BTreeSet<(String, String)>,
    /// Commands that were commented out.
    dropped: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// Nothing that is converted.
    Other,
    /// A card's stanza: what belongs to a fixed address goes.
    Card,
    /// A stanza that goes as a whole.
    Dropped,
}

impl Conversion<'_> {
    fn convert(&mut self, text: &str) -> String {
        let mut inside = Inside::Other;
        let lines: Vec<String> = text.split('\n').map(|line| self.line(line, &mut inside)).collect();
        lines.join("\n")
    }

    fn line(&mut self, line: &str, inside: &mut Inside) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(first) = words.first().copied().filter(|word| !word.starts_with('#')) else { return line.to_owned() };
        if let ["iface", name, family, method, ..] = words[..] {
            let (new, state) = self.header(line, name, family, method);
            *inside = state;
            return new;
        }
        if starts_stanza(first) {
            *inside = Inside::Other;
            return self.selection(line, first, words.get(1..).unwrap_or_default());
        }
        match inside {
            Inside::Other => line.to_owned(),
            Inside::Dropped => comment(line),
            Inside::Card if FIXED_OPTIONS.contains(&first) => comment(line),
            Inside::Card if is_route_command(first, line) => {
                self.dropped.push(line.trim().to_owned());
                comment(line)
            }
            Inside::Card => line.to_owned(),
        }
    }

    fn header(&mut self, line: &str, name: &str, family: &str, method: &str) -> (String, Inside) {
        if !is_hardware(name) || !matches!(family, "inet" | "inet6") {
            return (line.to_owned(), Inside::Other);
        }
        if self.mode == Mode::HandOver {
            return (comment(line), Inside::Dropped);
        }
        if method != "static" {
            return (line.to_owned(), if method == "dhcp" { Inside::Card } else { Inside::Other });
        }
        // Further addresses of the same card, as an alias or a second stanza: DHCP gives one.
        if name.contains(':') || !self.done.insert((name.to_owned(), family.to_owned())) {
            self.dropped.push(line.trim().to_owned());
            return (comment(line), Inside::Dropped);
        }
        let method = if family == "inet" { "dhcp" } else { "auto" };
        (with_field(line, 3, method), Inside::Card)
    }

    /// `auto` and `allow-…`: aliases go; of cards beyond the first nothing may be waited for.
    fn selection(&self, line: &str, keyword: &str, names: &[&str]) -> String {
        if keyword != "auto" && !keyword.starts_with("allow-") {
            return line.to_owned();
        }
        let goes = |name: &str| self.interfaces.is_card(name) && (self.mode == Mode::HandOver || name.contains(':'));
        if names.iter().all(|name| goes(name)) {
            return comment(line);
        }
        let is_optional = |name: &str| keyword == "auto" && self.interfaces.is_secondary(name);
        let (optional, kept): (Vec<&str>, Vec<&str>) =
            names.iter().copied().filter(|name| !goes(name)).partition(|name| is_optional(name));
        if kept.len() == names.len() {
            return line.to_owned();
        }
        let selection =
            |keyword: &str, names: &[&str]| (!names.is_empty()).then(|| format!("{keyword} {}", names.join(" ")));
        [selection(keyword, &kept), selection("allow-hotplug", &optional)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn is_route_command(option: &str, line: &str) -> bool {
    matches!(option, "up" | "post-up" | "pre-up" | "down" | "pre-down" | "post-down")
        && [" route ", " ip addr", " ip a ", "ifconfig "].iter().any(|command| line.contains(command))
}

fn comment(line: &str) -> String {
    format!("# rehost: {}", line.trim_start())
}

/// Stanzas for the names of a card that no `.link` file renames. A name that is not there is not waited for.
fn fallback(guest: &Guest, interfaces: &Interfaces, to: &mut Proposer<'_>) {
    if !interfaces.includes() || interfaces.stanzas.is_empty() {
        return;
    }
    let mut text =
        "# The first network card, should it not have the source's name on this machine (rehost).\n".to_owned();
    // Without udev there is no hotplugging, and the kernel's own name is certain.
    let keyword = |name: &str| if !guest.has_udev() && name == "eth0" { "auto" } else { "allow-hotplug" };
    for name in LIKELY_NAMES.iter().filter(|name| !interfaces.is_card(name)) {
        text.push_str(&format!("{} {name}\niface {name} inet dhcp\n", keyword(name)));
    }
    to.write(&format!("{INCLUDED}/{OWN_NAME}"), text, "use DHCP also on a card of another name");
}

#[cfg(test)]
mod tests;
