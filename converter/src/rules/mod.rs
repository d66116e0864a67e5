//! The rules. Each looks at the guest and proposes edits and findings; none edits by itself.

mod drivers;
mod efi;
mod fstab;
mod grub;
mod hypervisor;
mod identity;
mod ifupdown;
mod interface_names;
mod kernel_arguments;
mod netplan;
mod network;
mod networkd;
mod serial_console;
#[cfg(test)]
pub(crate) mod testing;

use crate::edit::{Proposal, Proposer};
use crate::guest::Guest;

type Rule = fn(&Guest, &mut Proposer<'_>);

/// In the order in which a person would read them.
const RULES: [(&str, Rule); 8] = [
    ("fstab", fstab::propose),
    ("bootloader", grub::propose),
    ("efi", efi::propose),
    ("initramfs", drivers::propose),
    ("network", network::propose),
    ("serial-console", serial_console::propose),
    ("hypervisor", hypervisor::propose),
    ("agent", identity::propose),
];

/// What all rules propose for this guest.
pub(crate) fn propose(guest: &Guest) -> Proposal {
    let mut proposal = Proposal::default();
    for (rule, propose) in RULES {
        propose(guest, &mut Proposer { rule, root: &guest.root, proposal: &mut proposal });
    }
    proposal
}
