//! What runs the guests' instructions: KVM where it works, else TCG.
//!
//! The device node proves nothing (some machines let one open it and then hang), so a kernel is booted once, without
//! disk or initramfs: it must reach its panic about the missing root. The answer holds until this machine reboots.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::error::{Context, Result};
use crate::process::{Running, run};
use crate::{Workspace, paths};

const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// How QEMU executes a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// Translation, on any machine; ten to thirty times slower.
    Tcg,
}

impl Accelerator {
    /// The accelerator for machines on this host; the first call may boot a probe (up to 10 s).
    #[must_use]
    pub fn choose() -> Self {
        static CHOICE: OnceLock<Accelerator> = OnceLock::new();
        *CHOICE.get_or_init(|| cached().unwrap_or_else(decide))
    }

    /// The options of QEMU that select it, with a CPU model that suits it.
    #[must_use]
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // A plain model is faster to translate, and more robust, than `max`.
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", TCG_CPU],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The CPU model of translated guests. The agent inside encrypts: with these instructions AES-256-GCM runs at about
/// 70 MB/s, without them at 9; its implementation needs all four. More of them only slow BLAKE3 and the boot down.
pub const TCG_CPU: &str = "qemu64,-svm,+aes,+pclmulqdq,+ssse3,+sse4.1";

fn cached() -> Option<Accelerator> {
    let text = fs::read_to_string(paths::cache().join("accelerator")).ok()?;
    let (boot, name) = text.trim_end().split_once(' ')?;
    if boot != boot_id() {
        return None;
    }
    [Accelerator::Kvm, Accelerator::Tcg].into_iter().find(|choice| choice.name() == name)
}

fn decide() -> Accelerator {
    let openable = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let choice = if openable && probe().unwrap_or(false) { Accelerator::Kvm } else { Accelerator::Tcg };
    // Without a cache the next run probes again, no worse.
    let _ = fs::write(paths::cache().join("accelerator"), format!("{} {}\n", boot_id(), choice.name()));
    choice
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn probe() -> Result<bool> {
    let space = Workspace::new("probe")?;
    let kernel = run(&mut Command::new(paths::repository().join("tests/images/kernel-path")))?;
    let serial = space.path("serial.log");
    let mut machine = Running::start(&mut probe_command(Path::new(kernel.trim()), &serial), &space.path("qemu.log"))?;
    let ended = machine.wait(PROBE_LIMIT).is_ok_and(|status| status.success());
    let console = fs::read(&serial).context(|| format!("read {}", serial.display()))?;
    Ok(ended && String::from_utf8_lossy(&console).contains("Unable to mount root fs"))
}

fn probe_command(kernel: &Path, serial: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(Accelerator::Kvm.arguments())
        .args(["-M", "q35", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(kernel)
        .arg("-serial")
        .arg(format!("file:{}", serial.display()));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_both_accelerators_at_once() {
        for choice in [Accelerator::Kvm, Accelerator::Tcg] {
            let arguments = choice.arguments();
            assert_eq!(arguments.contains(&"kvm"), choice == Accelerator::Kvm);
            assert!(arguments.iter().all(|argument| !argument.contains("kvm:tcg")));
        }
    }
}
