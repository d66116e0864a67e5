//! A login prompt on the serial console. systemd starts one by itself where the kernel's command line names the console (the boot loader's
//! rule does that); an older init needs a line in `/etc/inittab`.

use crate::edit::Proposer;
use crate::guest::Guest;

const INITTAB: &str = "/etc/inittab";

pub(super) fn propose(guest: &Guest, to: &mut Proposer<'_>) {
    if guest.has_systemd() {
        return;
    }
    let Some(text) = guest.root.text(INITTAB) else { return };
    let lines = || text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    // A table without any terminal leaves prompts to a program of its own.
    if lines().any(|line| line.contains("ttyS0")) || !lines().any(|line| line.contains("tty1")) {
        return;
    }
    let is_sysv = lines().any(|line| line.contains(":initdefault:"));
    let entry = if is_sysv {
        "T0:2345:respawn:/sbin/getty -L ttyS0 115200 vt100"
    } else {
        "ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100"
    };
    to.write(INITTAB, format!("{}\n{entry}\n", text.trim_end_matches('\n')), "offer a login on the serial console");
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, assert_settles, propose_with};
    use super::*;

    #[test]
    fn an_older_init_gets_a_line() {
        let tree = Tree::new(&[(INITTAB, "id:2:initdefault:\n1:2345:respawn:/sbin/getty 38400 tty1\n")]);
        let proposal = propose_with(&tree.guest(), "serial-console", propose);
        assert!(
            tree.written(&proposal, INITTAB)
                .unwrap()
                .ends_with("\nT0:2345:respawn:/sbin/getty -L ttyS0 115200 vt100\n")
        );
        assert_settles(&tree.guest(), propose);
    }

    #[test]
    fn systemd_and_tables_without_terminals_need_none() {
        let tree = Tree::new(&[(INITTAB, "::respawn:/etc/init.d/console\n")]);
        assert!(propose_with(&tree.guest(), "serial-console", propose).edits.is_empty());
        tree.put(INITTAB, "1:2345:respawn:/sbin/getty 38400 tty1\n");
        tree.put("/lib/systemd/systemd", "");
        assert!(propose_with(&tree.guest(), "serial-console", propose).edits.is_empty());
    }
}
