//! The negative control: a disk that was not converted boots on its own hardware and not on the target's, and the
//! screen says why. Without it a migration that "boots" proves nothing about the conversion.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::machine::MachineSpec;
use crate::net::http_get;
use crate::process::run;

/// What Debian's initramfs says when the root disk does not appear.
pub const GAVE_UP: &str = "Gave up waiting for root file system device";

/// Boots a copy of `disk` on the target's hardware (NVMe, virtio-net, BIOS) and succeeds if it does **not** come up:
/// its screen shows that the root device was not found, and nothing answers on its port 80. Gives the screen's text.
///
/// # Errors
/// [`Error::Unexpected`] when the copy answers; [`Error::Timeout`] when neither shows within `limit`.
pub fn fails_on_target(disk: &Path, folder: &Path, limit: Duration) -> Result<String> {
    fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
    let copy = folder.join("unconverted.img");
    copy_sparse(disk, &copy)?;
    let mut machine = MachineSpec::target(&copy).start(folder)?;
    let screen = machine.wait_vga(GAVE_UP, limit)?;
    let answer = http_get(machine.port(80)?, "/", Duration::from_secs(1));
    drop(machine);
    fs::remove_file(&copy).context(|| format!("remove {}", copy.display()))?;
    match answer {
        Ok(answer) => Err(Error::Unexpected(format!("the unconverted disk answers on NVMe: {}", answer.text()))),
        Err(_) => Ok(screen),
    }
}

/// Copies a disk image with its holes, by reference where the filesystem can.
///
/// # Errors
/// When the copy fails, for example for want of space.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let mut cp = std::process::Command::new("cp");
    run(cp.args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to)).map(drop)
}
