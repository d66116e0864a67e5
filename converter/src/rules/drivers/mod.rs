//! Drivers for the target in the initramfs: of every kernel that can be booted, and of those that will be installed.
//!
//! The existing initramfs stays as it is; a second archive with the drivers is **appended** to it (the kernel unpacks both). Running the
//! guest's own `update-initramfs` would take a minute where this takes a second, and would run foreign programs. The archive has
//! the module files, the kernel's whole module index (which replaces the smaller one of the first archive), and
//! `conf/modules`, whose modules initramfs-tools loads first of all.
//!
//! There are no entries for `lib` or `usr`: in the first archive they may be links, which directories would replace.

mod index;

use std::collections::BTreeSet;

use rehost_model::conversion::ConversionTarget;

use crate::cpio::{self, Entry};
use crate::disk::Resolution;
use crate::edit::{self, Edit, Proposer};
use crate::guest::{GRUB_CFG, Guest};

use index::{Availability, Index};

/// Without it the root file system is not found.
const DISK: &str = "nvme";
/// Loaded where the kernel has them as modules; most kernels lack some.
const OTHERS: [&str; 15] = [
    "nvme_core",
    "ena",
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "virtio_net",
    "sd_mod",
    "xen_blkfront",
    "xen_netfront",
    "e1000",
    "e1000e",
    "ext4",
    "crc32c_generic",
    "crc32c_intel",
    "libcrc32c",
];
const TOOLS_MODULES: &str = "/etc/initramfs-tools/modules";
const TOOLS_RESUME: &str = "/etc/initramfs-tools/conf.d/resume";
/// First entry of what is appended: its content is the length of the original.
const MARKER: &str = "conf/rehost-original-length";

pub(super) fn propose(guest: &Guest, to: &mut Proposer<'_>) {
    let resume = resume(guest);
    let mut drivers = BTreeSet::new();
    let mut prepared = 0;
    for image in images(guest) {
        match prepare(guest, &image, resume.as_deref(), to) {
            Some(modules) => {
                prepared += 1;
                drivers.extend(modules);
            }
            None => to.warning(
                format!("the initramfs {} could not be given the target's drivers", image.path),
                "boot another kernel, or remove this one with its initramfs on the source",
            ),
        }
    }
    if prepared == 0 {
        let cause = "no kernel of this guest can be given the target's disk driver (NVMe)";
        to.error(cause, "install Debian's generic kernel (linux-image-amd64) on the source, and run update-initramfs");
        return;
    }
    keep_for_next_kernel(guest, &drivers, to);
    if let Some(resume) = resume {
        to.write(TOOLS_RESUME, resume, "resume from a device that exists, or from none");
    }
}

/// An initramfs and the kernel it belongs to.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Image {
    path: String,
    kernel: String,
}

/// Those that GRUB starts and those that are named as Debian names them.
fn images(guest: &Guest) -> BTreeSet<Image> {
    let menu = guest.root.text(GRUB_CFG).unwrap_or_default();
    let started = menu.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| word.starts_with("initrd"))?;
        words.last()?.rsplit('/').next()
    });
    let installed = guest.root.names("/boot");
    let named = installed.iter().map(String::as_str).filter(|name| name.starts_with("initrd.img-"));
    started.chain(named).filter_map(|name| image(guest, name)).collect()
}

fn image(guest: &Guest, name: &str) -> Option<Image> {
    let path = format!("/boot/{name}");
    let kernels = &guest.inventory.kernels;
    let known = kernels.iter().find(|kernel| name.strip_prefix("initrd.img-") == Some(kernel.as_str()));
    // An initramfs of another name (`initrd`) can only belong to the only kernel.
    let only = || (!name.starts_with("initrd.img-") && kernels.len() == 1).then(|| kernels.first()).flatten();
    let kernel = known.or_else(only)?;
    guest.root.exists(&path).then(|| Image { path, kernel: kernel.clone() })
}

/// Asks for the drivers in one initramfs; gives their names, or nothing if its kernel has no disk driver for the target.
fn prepare(guest: &Guest, image: &Image, resume: Option<&str>, to: &mut Proposer<'_>) -> Option<Vec<&'static str>> {
    let directory = format!("/lib/modules/{}", image.kernel);
    let index = Index::read(&guest.root, &directory)?;
    if index.availability(DISK) == Availability::Missing {
        return None;
    }
    if guest.target == ConversionTarget::Ec2 && index.availability("ena") == Availability::Missing {
        let cause = format!("kernel {} has no driver for EC2's network card (ena)", image.kernel);
        to.warning(cause, "install Debian's generic kernel on the source, or choose an instance type without ENA");
    }
    let is_module = |module: &&str| index.availability(module) == Availability::Module;
    let modules: Vec<&str> = [DISK].into_iter().chain(OTHERS).filter(is_module).collect();
    let content = guest.root.read(&image.path).ok()??;
    let cut_off = edit::length_before_append(&guest.root, &image.path).and_then(|length| usize::try_from(length).ok());
    let original = cut_off.filter(|length| *length <= content.len()).unwrap_or_else(|| original_length(&content));
    let mut entries = vec![Entry::directory("conf"), Entry::file(MARKER, 0o644, format!("{original}\n").into_bytes())];
    entries.push(Entry::file("conf/modules", 0o644, conf_modules(guest, &modules).into_bytes()));
    if let Some(resume) = resume {
        entries.push(Entry::directory("conf/conf.d"));
        entries.push(Entry::file("conf/conf.d/resume", 0o644, resume.as_bytes().to_vec()));
    }
    entries.extend(module_entries(guest, &directory, &index.closure(&modules))?);
    let mut tail = vec![0; cpio::padding(original)];
    tail.extend(cpio::write(&entries).ok()?);
    if content.get(original..) != Some(&tail) || cut_off.is_some() {
        let description =
            format!("add {} and what they need; the original is its first {original} bytes", modules.join(", "));
        to.edit(Edit::Append { path: image.path.clone(), keep: original as u64, tail }, description);
    }
    Some(modules)
}

/// The length of an initramfs without what an earlier conversion appended.
fn original_length(content: &[u8]) -> usize {
    let starts = (0..content.len()).step_by(4);
    starts.filter_map(|start| appended_at(content, start)).next().unwrap_or(content.len())
}

/// If the archive that begins here is a conversion's and reaches to the end: the length of what was there before.
fn appended_at(content: &[u8], start: usize) -> Option<usize> {
    const FIRST_NAME: usize = 110;
    let archive = content.get(start..)?;
    if !archive.starts_with(b"070701") || !archive.get(FIRST_NAME..)?.starts_with(b"conf\0") {
        return None;
    }
    let (entries, used) = cpio::read(archive).ok()?;
    let marker = entries.get(1).filter(|entry| entry.path == MARKER)?;
    let cpio::Kind::File(length) = &marker.kind else { return None };
    let length: usize = std::str::from_utf8(length).ok()?.trim().parse().ok()?;
    (used == archive.len() && length <= start && start - length < 4).then_some(length)
}

/// What the guest itself wants to be loaded early, then the target's drivers.
fn conf_modules(guest: &Guest, modules: &[&str]) -> String {
    let own = guest.root.text(TOOLS_MODULES).unwrap_or_default();
    // Drivers may stand there since an earlier conversion, in another order.
    let is_own =
        |line: &&str| !line.is_empty() && !line.starts_with('#') && !modules.contains(&line.replace('-', "_").as_str());
    let own = own.lines().map(str::trim).filter(is_own);
    own.chain(modules.iter().copied()).map(|line| format!("{line}\n")).collect()
}

fn module_entries(guest: &Guest, directory: &str, files: &BTreeSet<String>) -> Option<Vec<Entry>> {
    let inside = directory.trim_start_matches('/');
    let indexes = guest.root.names(directory);
    // The symbols' index serves modprobe's command line only, and is large.
    let indexes = indexes.iter().filter(|name| name.starts_with("modules.") && !name.starts_with("modules.symbols"));
    let mut directories = BTreeSet::from(["lib/modules".to_owned(), inside.to_owned()]);
    let mut contents = Vec::new();
    for file in files.iter().chain(indexes) {
        let bytes = guest.root.read(&format!("{directory}/{file}")).ok()??;
        let path = format!("{inside}/{file}");
        directories.extend(path.match_indices('/').skip(2).filter_map(|(at, _)| Some(path.get(..at)?.to_owned())));
        contents.push(Entry::file(path, 0o644, bytes));
    }
    Some(directories.into_iter().map(Entry::directory).chain(contents).collect())
}

/// `/etc/initramfs-tools/modules`, for the initramfs of the next kernel.
fn keep_for_next_kernel(guest: &Guest, drivers: &BTreeSet<&str>, to: &mut Proposer<'_>) {
    if !guest.root.is_directory("/etc/initramfs-tools") {
        let cause = "the guest builds its initramfs with a tool that is not known";
        to.info(cause, "add nvme and the network driver to that tool's settings before the next kernel is installed");
        return;
    }
    let mut text = guest.root.text(TOOLS_MODULES).unwrap_or_default();
    let own: BTreeSet<String> =
        text.lines().filter_map(|line| Some(line.split_whitespace().next()?.replace('-', "_"))).collect();
    let missing: Vec<&str> = drivers.iter().copied().filter(|driver| !own.contains(*driver)).collect();
    if missing.is_empty() {
        return;
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str("# Drivers of the machine that this server was migrated to (rehost).\n");
    text.extend(missing.iter().map(|driver| format!("{driver}\n")));
    to.write(TOOLS_MODULES, text, "give the next kernel's initramfs the same drivers");
}

/// initramfs-tools' `resume` setting as it should be: without devices that are named by hardware or are not there.
fn resume(guest: &Guest) -> Option<String> {
    let text = guest.root.text(TOOLS_RESUME)?;
    let device = text.lines().find_map(|line| line.trim().strip_prefix("RESUME="))?.trim_matches('"');
    Some(match guest.disks.resolve(device) {
        Resolution::Missing => "RESUME=none\n".to_owned(),
        Resolution::Found(_, volume) if device.starts_with("/dev/") => format!("RESUME=UUID={}\n", volume.uuid()?),
        _ => text,
    })
}

#[cfg(test)]
mod tests;
