//! What the serial console of a Linux guest says about its boot.

/// Proof that user space runs from the guest's own root file system.
const RUNNING: [&str; 4] = ["login:", "Reached target", "Run /sbin/init as init process", "Cloud-init v."];

/// Ends of a boot, each with its meaning.
const STUCK: [(&str, &str); 6] = [
    ("Kernel panic", "the kernel panicked"),
    ("Gave up waiting for root", "its root file system does not appear"),
    ("emergency mode", "it is in emergency mode"),
    ("(initramfs)", "it stays in its initramfs"),
    ("Warning: Could not boot", "its root file system does not appear"),
    ("No bootable device", "its firmware finds nothing to boot"),
];

/// Why the boot that this console shows cannot go on; `None` when it did, or nothing says that it cannot.
pub(crate) fn stuck(console: &str) -> Option<&'static str> {
    let running = RUNNING.iter().filter_map(|mark| console.rfind(mark)).max();
    let stuck = STUCK.iter().filter_map(|(mark, meaning)| Some((console.rfind(mark)?, *meaning))).max();
    stuck.filter(|(at, _)| running.is_none_or(|running| running < *at)).map(|(_, meaning)| meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_that_ended_is_told_by_its_last_mark() {
        assert_eq!(stuck(""), None);
        assert_eq!(stuck("Kernel panic - not syncing: VFS"), Some("the kernel panicked"));
        assert_eq!(stuck("You are in emergency mode\nserver login: "), None);
        assert_eq!(stuck("server login: \nKernel panic"), Some("the kernel panicked"));
        assert_eq!(
            stuck("Gave up waiting for root file system device\n(initramfs) "),
            Some("it stays in its initramfs")
        );
    }
}
