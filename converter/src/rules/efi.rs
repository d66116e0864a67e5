//! UEFI: firmware variables (the boot order with its `debian` entry) stay behind with the old machine. New firmware starts what it finds
//! at the removable-media path, `EFI/BOOT/BOOTX64.EFI`; if there is nothing, the vendor's boot loader is copied there.
//!
//! With Secure Boot's shim the pair is copied (shim loads `grubx64.efi` from its own directory). `fbx64.efi` is not: it would
//! look for the lost boot entries first. GRUB's own prefix keeps pointing to the vendor's directory, which stays.

use rehost_model::conversion::Firmware;

use crate::edit::Proposer;
use crate::guest::Guest;
use crate::root::Root;

const ESPS: [&str; 3] = ["/boot/efi", "/efi", "/boot"];

pub(super) fn propose(guest: &Guest, to: &mut Proposer<'_>) {
    if guest.inventory.firmware != Some(Firmware::Uefi) {
        return;
    }
    let Some(efi) = ESPS.iter().find_map(|esp| child(&guest.root, esp, "EFI")) else {
        to.error("the EFI system partition is not mounted anywhere", "add it to /etc/fstab as /boot/efi on the source");
        return;
    };
    let boot = child(&guest.root, &efi, "BOOT");
    if boot.as_deref().and_then(|boot| child(&guest.root, boot, "BOOTX64.EFI")).is_some() {
        return;
    }
    let boot = boot.unwrap_or_else(|| format!("{efi}/BOOT"));
    let Some(vendor) = vendor(&guest.root, &efi) else {
        to.error(format!("{efi} has no boot loader for x86_64"), "run grub-install on the source");
        return;
    };
    copy_loader(guest, &vendor, &boot, to);
}

/// The directory that has a boot loader: `EFI/debian`, `EFI/ubuntu`.
fn vendor(root: &Root, efi: &str) -> Option<String> {
    let has_loader = |directory: &String| {
        ["shimx64.efi", "grubx64.efi"].iter().any(|loader| child(root, directory, loader).is_some())
    };
    root.names(efi).iter().map(|name| format!("{efi}/{name}")).find(has_loader)
}

fn copy_loader(guest: &Guest, vendor: &str, boot: &str, to: &mut Proposer<'_>) {
    let shim = child(&guest.root, vendor, "shimx64.efi");
    let grub = child(&guest.root, vendor, "grubx64.efi");
    let mut copies = match (shim, grub) {
        (Some(shim), Some(grub)) => vec![(shim, "BOOTX64.EFI"), (grub, "grubx64.efi")],
        (Some(only), None) | (None, Some(only)) => vec![(only, "BOOTX64.EFI")],
        (None, None) => return,
    };
    copies.extend(child(&guest.root, vendor, "mmx64.efi").map(|manager| (manager, "mmx64.efi")));
    copies.extend(child(&guest.root, vendor, "grub.cfg").map(|settings| (settings, "grub.cfg")));
    for (from, name) in copies {
        match guest.root.read(&from) {
            Ok(Some(contents)) => {
                to.write(&format!("{boot}/{name}"), contents, format!("let firmware without boot entries find {from}"));
            }
            Ok(None) => {}
            Err(error) => to.error(format!("cannot read {from}: {error}"), "run grub-install on the source"),
        }
    }
}

/// The path of a directory's entry, whatever its case: vfat keeps names as they were written.
fn child(root: &Root, directory: &str, name: &str) -> Option<String> {
    let found = root.names(directory).into_iter().find(|own| own.eq_ignore_ascii_case(name))?;
    Some(format!("{directory}/{found}"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, assert_settles, disks, paths, propose_with};
    use super::*;
    use crate::disk::{Content, Disks};

    fn uefi_disks() -> Disks {
        let mut disks = disks();
        disks.0[0].grub_boot_sector = false;
        let volume = &mut disks.0[0].volumes[1];
        volume.partition.is_esp = true;
        volume.superblock.as_mut().unwrap().content = Content::Vfat;
        disks
    }

    #[test]
    fn shim_and_grub_are_copied_together() {
        let tree = Tree::new(&[
            ("/boot/efi/EFI/debian/shimx64.efi", "shim"),
            ("/boot/efi/EFI/debian/grubx64.efi", "grub"),
            ("/boot/efi/EFI/debian/grub.cfg", "configfile"),
            ("/boot/efi/EFI/debian/fbx64.efi", "fallback"),
        ]);
        let guest = tree.guest_on(uefi_disks());
        let proposal = propose_with(&guest, "efi", propose);
        let boot = "/boot/efi/EFI/BOOT";
        assert_eq!(paths(&proposal), ["BOOTX64.EFI", "grubx64.efi", "grub.cfg"].map(|name| format!("{boot}/{name}")));
        assert_eq!(tree.written(&proposal, &format!("{boot}/BOOTX64.EFI")).as_deref(), Some("shim"));
        assert_settles(&guest, propose);
    }

    #[test]
    fn a_loader_at_the_removable_path_stays() {
        let tree =
            Tree::new(&[("/boot/efi/EFI/boot/bootx64.efi", "own"), ("/boot/efi/EFI/debian/grubx64.efi", "grub")]);
        let proposal = propose_with(&tree.guest_on(uefi_disks()), "efi", propose);
        assert!(proposal.edits.is_empty() && proposal.findings.is_empty());
    }

    #[test]
    fn no_loader_is_an_error_and_bios_does_not_care() {
        let tree = Tree::new(&[("/boot/efi/EFI/debian/readme", "")]);
        assert_eq!(propose_with(&tree.guest_on(uefi_disks()), "efi", propose).findings.len(), 1);
        assert!(propose_with(&tree.guest(), "efi", propose).findings.is_empty());
    }
}
