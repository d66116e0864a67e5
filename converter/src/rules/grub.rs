//! GRUB: the menu that is there (`grub.cfg`), and the settings from which the guest's next `update-grub` makes a new one. Both
//! are edited, else the next kernel would undo the conversion.

use crate::edit::Proposer;
use crate::guest::{GRUB_CFG, Guest};

use super::kernel_arguments::{additions, translate};

const DEFAULTS: &str = "/etc/default/grub";
const SERIAL_COMMAND: &str = "serial --speed=115200 --unit=0 --word=8 --parity=no --stop=1";

pub(super) fn propose(guest: &Guest, to: &mut Proposer<'_>) {
    let has_serial_module = ["i386-pc", "x86_64-efi"]
        .iter()
        .any(|platform| guest.root.exists(&format!("/boot/grub/{platform}/serial.mod")));
    match guest.root.text(GRUB_CFG) {
        Some(text) => {
            check_root(guest, &text, to);
            to.write(
                GRUB_CFG,
                menu(guest, &text, has_serial_module),
                "start from the root's UUID, with a serial console",
            );
        }
        None => to.error(format!("{GRUB_CFG} cannot be read as text"), "run update-grub on the source"),
    }
    if let Some(text) = guest.root.text(DEFAULTS) {
        to.write(DEFAULTS, defaults(guest, &text, has_serial_module), "keep the kernel's arguments over update-grub");
    }
    to.retire("/boot/grub/device.map", "forget the source's names of disks");
}

fn check_root(guest: &Guest, menu: &str, to: &mut Proposer<'_>) {
    if !menu.lines().any(|line| kernel_line(line).is_some()) {
        to.error(format!("{GRUB_CFG} starts no kernel"), "run update-grub on the source");
    } else if guest.root_uuid.is_none() {
        let cause = "the UUID of the root file system is not known";
        to.error(cause, "give its disk to the converter; set a UUID with tune2fs -U if it has none");
    }
}

/// The menu with every kernel line and terminal converted.
fn menu(guest: &Guest, text: &str, has_serial_module: bool) -> String {
    let mut serial_is_set = text.lines().any(|line| line.trim_start().starts_with("serial "));
    let mut convert = |line: &str| {
        if has_serial_module && let Some(terminal) = terminal_line(line) {
            let first = if serial_is_set { String::new() } else { format!("{SERIAL_COMMAND}\n") };
            serial_is_set = true;
            return first + &terminal;
        }
        menu_entry_line(guest, line).unwrap_or_else(|| line.to_owned())
    };
    text.split('\n').map(&mut convert).collect::<Vec<_>>().join("\n")
}

/// `linux <file> <arguments>`: its part up to the file, and the arguments.
fn kernel_line(line: &str) -> Option<(&str, Vec<&str>)> {
    let mut words = line.split_whitespace();
    let command = words.next().filter(|word| matches!(*word, "linux" | "linux16" | "linuxefi"))?;
    let file = words.next()?;
    let after_command = line.find(command)? + command.len();
    let end = after_command + line.get(after_command..)?.find(file)? + file.len();
    Some((line.get(..end)?, words.collect()))
}

fn menu_entry_line(guest: &Guest, line: &str) -> Option<String> {
    let (head, arguments) = kernel_line(line)?;
    let mut new = translate(guest, &arguments);
    let additions = additions(guest, &new);
    new.extend(additions.into_iter().map(str::to_owned));
    (new != arguments).then(|| format!("{head} {}", new.join(" ")))
}

/// A line that chooses GRUB's terminal without a serial one, in new words.
fn terminal_line(line: &str) -> Option<String> {
    let command =
        line.split_whitespace().next().filter(|word| matches!(*word, "terminal_input" | "terminal_output"))?;
    let indent = line.get(..line.find(command)?)?;
    (!line.contains("serial")).then(|| format!("{indent}{command} console serial"))
}

/// `/etc/default/grub` with the arguments and terminal converted.
fn defaults(guest: &Guest, text: &str, has_serial_module: bool) -> String {
    let mut lines: Vec<String> = text.trim_end_matches('\n').split('\n').map(str::to_owned).collect();
    translate_variable(guest, &mut lines, "GRUB_CMDLINE_LINUX_DEFAULT");
    translate_variable(guest, &mut lines, "GRUB_CMDLINE_LINUX");
    let all = ["GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"]
        .iter()
        .flat_map(|name| words(&value(&lines, name).unwrap_or_default()))
        .collect::<Vec<_>>();
    let missing = additions(guest, &all);
    if !missing.is_empty() {
        let mut own = words(&value(&lines, "GRUB_CMDLINE_LINUX").unwrap_or_default());
        own.extend(missing.into_iter().map(str::to_owned));
        set(&mut lines, "GRUB_CMDLINE_LINUX", &own.join(" "));
    }
    if has_serial_module {
        for name in ["GRUB_TERMINAL_INPUT", "GRUB_TERMINAL_OUTPUT"] {
            comment_out(&mut lines, name);
        }
        set(&mut lines, "GRUB_TERMINAL", "console serial");
        set(&mut lines, "GRUB_SERIAL_COMMAND", SERIAL_COMMAND);
    }
    // With it, update-grub would write the name that the root's disk happens to have.
    comment_out(&mut lines, "GRUB_DISABLE_LINUX_UUID");
    lines.join("\n") + "\n"
}

fn translate_variable(guest: &Guest, lines: &mut Vec<String>, name: &str) {
    if let Some(old) = value(lines, name) {
        let arguments: Vec<&str> = old.split_whitespace().collect();
        let new = translate(guest, &arguments);
        if new != arguments {
            set(lines, name, &new.join(" "));
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn assigns<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.trim_start().strip_prefix(name)?.strip_prefix('=')
}

/// The last assignment counts, as in the shell.
fn value(lines: &[String], name: &str) -> Option<String> {
    let raw = lines.iter().rev().find_map(|line| assigns(line, name))?.trim();
    let quoted = ['"', '\''].iter().find_map(|quote| raw.strip_prefix(*quote)?.split(*quote).next());
    Some(quoted.unwrap_or(raw).to_owned())
}

fn set(lines: &mut Vec<String>, name: &str, value: &str) {
    let line = format!("{name}=\"{value}\"");
    match lines.iter_mut().rev().find(|line| assigns(line, name).is_some()) {
        Some(existing) if assigns(existing, name).map(|raw| raw.trim().trim_matches('"')) == Some(value) => {}
        Some(existing) => *existing = line,
        None => lines.push(line),
    }
}

fn comment_out(lines: &mut [String], name: &str) {
    for line in lines.iter_mut().filter(|line| assigns(line, name).is_some()) {
        line.insert(0, '#');
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, assert_settles, paths, propose_with};
    use super::*;

    const MENU: &str = "terminal_output gfxterm\nset timeout=5\nmenuentry 'Debian' {\n\tlinux\t/boot/vmlinuz-6.1 root=/dev/sda1 ro  quiet\n\
        \tinitrd\t/boot/initrd.img-6.1\n}\n";
    const UUID: &str = "11111111-1111-1111-1111-111111111111";

    fn tree(defaults: &str) -> Tree {
        Tree::new(&[
            ("/etc/fstab", "/dev/sda1 / ext4\n"),
            (GRUB_CFG, MENU),
            (DEFAULTS, defaults),
            ("/boot/grub/i386-pc/serial.mod", ""),
            ("/boot/grub/device.map", "(hd0) /dev/sda\n"),
        ])
    }

    #[test]
    fn the_menu_and_the_settings_agree() {
        let tree = tree(
            "# comment\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet resume=/dev/sdx1\"\nGRUB_CMDLINE_LINUX=''\nGRUB_DISABLE_LINUX_UUID=true\n",
        );
        let proposal = propose_with(&tree.guest(), "bootloader", propose);
        let menu = tree.written(&proposal, GRUB_CFG).unwrap();
        let line =
            format!("\tlinux\t/boot/vmlinuz-6.1 root=UUID={UUID} ro quiet console=tty0 console=ttyS0,115200n8\n");
        assert!(menu.contains(&line), "{menu}");
        assert!(
            menu.starts_with(&format!("{SERIAL_COMMAND}\nterminal_output console serial\nset timeout=5\n")),
            "{menu}"
        );
        let defaults = tree.written(&proposal, DEFAULTS).unwrap();
        assert_eq!(
            defaults,
            format!(
                "# comment\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200n8\"\n\
                 #GRUB_DISABLE_LINUX_UUID=true\nGRUB_TERMINAL=\"console serial\"\nGRUB_SERIAL_COMMAND=\"{SERIAL_COMMAND}\"\n"
            )
        );
        assert!(paths(&proposal).contains(&"/boot/grub/device.map"));
        assert!(proposal.findings.is_empty(), "{:?}", proposal.findings);
    }

    #[test]
    fn a_second_run_finds_nothing() {
        assert_settles(&tree("GRUB_CMDLINE_LINUX_DEFAULT=quiet\n").guest(), propose);
    }

    #[test]
    fn without_its_module_the_terminal_stays() {
        let tree = Tree::new(&[("/etc/fstab", "/dev/sda1 / ext4\n"), (GRUB_CFG, MENU)]);
        let proposal = propose_with(&tree.guest(), "bootloader", propose);
        assert!(tree.written(&proposal, GRUB_CFG).unwrap().starts_with("terminal_output gfxterm\n"));
    }

    #[test]
    fn a_menu_without_a_kernel_is_an_error() {
        let tree = Tree::new(&[("/etc/fstab", "/dev/sda1 / ext4\n"), (GRUB_CFG, "set timeout=5\n")]);
        assert!(propose_with(&tree.guest(), "bootloader", propose).findings[0].cause.contains("starts no kernel"));
    }
}
