//! Whether this host can run machines with KVM: decided by booting a kernel, since `/dev/kvm` may open and yet not work.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rehost_control::ports::PortResult;
use serde::{Deserialize, Serialize};

use super::{files, qemu};

/// How machines are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    Kvm,
    /// Emulation: works everywhere, some ten times slower.
    Tcg,
}

/// A kernel that works is at its panic (there is no root file system) within a second.
const PROBE_LIMIT_SECONDS: &str = "20";

/// What a kernel says which has come through its whole initialisation, and found no root file system.
const REACHED: &str = "Unable to mount root fs";

/// A decision, which holds for one kernel of the host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decision {
    kernel: String,
    accelerator: Accelerator,
    detail: String,
}

/// The accelerator to use. `kernel` is a kernel that the probe may boot (else one of the host's own); without one, emulation.
pub(super) fn decide(cache: &Path, kernel: Option<&Path>) -> PortResult<Accelerator> {
    let path = cache.join("accel.json");
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let known = files::read_json::<Decision>(&path).ok().flatten().filter(|known| known.kernel == release);
    if let Some(known) = known {
        return Ok(known.accelerator);
    }
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Tcg);
    }
    let Some(kernel) = kernel.map(Path::to_owned).or_else(host_kernel) else { return Ok(Accelerator::Tcg) };
    let (accelerator, detail) = match boots(Accelerator::Kvm, &kernel) {
        Ok(()) => (Accelerator::Kvm, "a kernel boots with KVM".to_owned()),
        Err(why) => (Accelerator::Tcg, why),
    };
    tracing::info!(?accelerator, detail, "decided how to run machines");
    files::write_json(&path, &Decision { kernel: release, accelerator, detail })?;
    Ok(accelerator)
}

fn host_kernel() -> Option<PathBuf> {
    let names = files::names(Path::new("/boot")).ok()?;
    let newest = names.into_iter().filter(|name| name.starts_with("vmlinuz-")).max()?;
    Some(Path::new("/boot").join(newest)).filter(|path| fs::File::open(path).is_ok())
}

/// Boots the kernel; the error says how far it came.
fn boots(accelerator: Accelerator, kernel: &Path) -> Result<(), String> {
    // A machine that hangs is ended even if this process is killed meanwhile.
    let output = Command::new("timeout")
        .args(["--signal=KILL", PROBE_LIMIT_SECONDS, qemu::PROGRAM])
        .args(qemu::probe_arguments(accelerator, kernel))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("`timeout` cannot be started: {e}"))?;
    let console = String::from_utf8_lossy(&output.stdout);
    if console.contains(REACHED) {
        return Ok(());
    }
    let complaints = String::from_utf8_lossy(&output.stderr);
    let last = complaints.lines().last().or(console.lines().last()).unwrap_or("it printed nothing");
    Err(format!("a machine with KVM does not boot a kernel within {PROBE_LIMIT_SECONDS} s: {last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_holds_for_its_kernel_only() {
        let cache = tempfile::tempdir().unwrap();
        let path = cache.path().join("accel.json");
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let decision =
            |kernel: &str| Decision { kernel: kernel.to_owned(), accelerator: Accelerator::Kvm, detail: String::new() };
        files::write_json(&path, &decision(&release)).unwrap();
        assert_eq!(decide(cache.path(), None).unwrap(), Accelerator::Kvm);
        files::write_json(&path, &decision("another")).unwrap();
        let no_kernel = cache.path().join("no-kernel");
        assert_eq!(decide(cache.path(), Some(&no_kernel)).unwrap(), Accelerator::Tcg);
    }
}
