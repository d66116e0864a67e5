//! The kernel's command line, in GRUB's menu and in GRUB's settings.

use rehost_model::conversion::ConversionTarget;

use crate::disk::Resolution;
use crate::guest::Guest;

const SERIAL_CONSOLE: &str = "console=ttyS0,115200n8";
const SCREEN: &str = "console=tty0";
/// EBS can take longer than the kernel's 30 s to answer: AWS asks for the largest value.
const EBS_TIMEOUT: &str = "nvme_core.io_timeout=4294967295";

/// Arguments that name hardware, in words that hold on the target; those that name what is not there go.
pub(super) fn translate(guest: &Guest, arguments: &[&str]) -> Vec<String> {
    arguments.iter().filter_map(|argument| translate_one(guest, argument)).collect()
}

/// What must be added to these arguments.
pub(super) fn additions(guest: &Guest, arguments: &[String]) -> Vec<&'static str> {
    let has = |prefix: &str| arguments.iter().any(|argument| argument.starts_with(prefix));
    let mut additions = Vec::new();
    // The last console gets the boot messages and emergency prompts: the one that can be read from outside.
    if !has("console=ttyS0") {
        if !has(SCREEN) {
            additions.push(SCREEN);
        }
        additions.push(SERIAL_CONSOLE);
    }
    if guest.target == ConversionTarget::Ec2 && !has("nvme_core.io_timeout=") {
        additions.push(EBS_TIMEOUT);
    }
    additions
}

fn translate_one(guest: &Guest, argument: &str) -> Option<String> {
    match argument.split_once('=') {
        Some(("root", device)) => Some(root(guest, device)),
        Some(("resume", device)) => match guest.disks.resolve(device) {
            Resolution::Missing => None,
            Resolution::Found(_, volume) => Some(format!("resume=UUID={}", volume.uuid()?)),
            Resolution::NotHardware => Some(argument.to_owned()),
        },
        // Consoles of Xen and KVM's paravirtual console: a console that is not there takes the messages with it.
        Some(("console", "hvc0" | "xvc0")) => None,
        _ => Some(argument.to_owned()),
    }
}

fn root(guest: &Guest, device: &str) -> String {
    let is_name = device.starts_with("/dev/");
    let uuid = match guest.disks.resolve(device) {
        Resolution::Found(_, volume) if is_name => volume.uuid(),
        Resolution::Missing => guest.root_uuid.as_deref(),
        _ => None,
    };
    uuid.map_or_else(|| format!("root={device}"), |uuid| format!("root=UUID={uuid}"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Tree;
    use super::*;

    fn convert(target: ConversionTarget, line: &str) -> String {
        let mut tree = Tree::new(&[("/etc/fstab", "/dev/sda1 / ext4\n")]);
        tree.target = target;
        let guest = tree.guest();
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let mut new = translate(&guest, &arguments);
        let additions = additions(&guest, &new);
        new.extend(additions.into_iter().map(str::to_owned));
        new.join(" ")
    }

    #[test]
    fn names_and_consoles() {
        let uuid = "root=UUID=11111111-1111-1111-1111-111111111111";
        let qemu = |line| convert(ConversionTarget::Qemu, line);
        assert_eq!(qemu("root=/dev/sda1 ro quiet"), format!("{uuid} ro quiet console=tty0 console=ttyS0,115200n8"));
        assert_eq!(qemu("root=/dev/hda7 console=hvc0 console=ttyS0"), format!("{uuid} console=ttyS0"));
        assert_eq!(
            qemu("root=/dev/mapper/vg-root resume=/dev/sda2 console=ttyS0"),
            "root=/dev/mapper/vg-root resume=UUID=22222222-2222-2222-2222-222222222222 console=ttyS0"
        );
        assert_eq!(qemu("resume=/dev/sdb9 resume=UUID=77 console=tty0"), "console=tty0 console=ttyS0,115200n8");
    }

    #[test]
    fn ec2_waits_for_its_disks() {
        let line = convert(ConversionTarget::Ec2, "console=ttyS0");
        assert_eq!(line, "console=ttyS0 nvme_core.io_timeout=4294967295");
    }
}
