//! The disks of source servers, made by the scripts in `tests/images`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::machine::{Controller, Firmware};
use crate::paths;
use crate::process::run;
use crate::ssh::Key;

/// A small Linux: Debian's kernel, busybox, 256 MiB, a page on port 80. Built in a second.
#[derive(Debug, Clone)]
pub struct SmallLinux {
    firmware: Firmware,
    controller: Controller,
    page: String,
    root_wait: u32,
    size_mib: u32,
}

impl Default for SmallLinux {
    fn default() -> Self {
        Self {
            firmware: Firmware::Bios,
            controller: Controller::Ahci,
            page: "rehost small linux".to_owned(),
            root_wait: 30,
            size_mib: 256,
        }
    }
}

impl SmallLinux {
    /// For this firmware: BIOS has an MBR, UEFI a GPT.
    #[must_use]
    pub fn firmware(self, firmware: Firmware) -> Self {
        Self { firmware, ..self }
    }

    /// With this controller's driver alone in its initramfs: AHCI or pvscsi.
    #[must_use]
    pub fn controller(self, controller: Controller) -> Self {
        Self { controller, ..self }
    }

    /// With this page.
    #[must_use]
    pub fn page(self, page: &str) -> Self {
        Self { page: page.to_owned(), ..self }
    }

    /// Seconds for which its initramfs waits for the root disk.
    #[must_use]
    pub fn root_wait(self, seconds: u32) -> Self {
        Self { root_wait: seconds, ..self }
    }

    /// Of this size, in MiB; at least 128.
    #[must_use]
    pub fn size(self, mib: u32) -> Self {
        Self { size_mib: mib, ..self }
    }

    /// Writes the disk to `out` and gives its path.
    ///
    /// # Errors
    /// When a tool is missing (with the command that installs it) or fails.
    pub fn build(&self, out: &Path) -> Result<PathBuf> {
        let firmware = if self.firmware == Firmware::Uefi { "uefi" } else { "bios" };
        run(script("small-linux")
            .args(["--firmware", firmware, "--controller", controller_name(self.controller)?])
            .args(["--page", &self.page, "--root-wait", &self.root_wait.to_string()])
            .args(["--size", &self.size_mib.to_string()])
            .arg(out))?;
        Ok(out.to_owned())
    }
}

/// A Debian server with systemd, apache2 and ssh on 2 GiB. Its first build takes more than a minute and is cached.
#[derive(Debug, Clone)]
pub struct DebianServer {
    controller: Controller,
    suite: Option<String>,
}

/// Names the release of Debian, such as `bullseye`, for whoever tries others than this machine's own.
pub const SUITE_VARIABLE: &str = "REHOST_TEST_SUITE";

impl Default for DebianServer {
    fn default() -> Self {
        Self { controller: Controller::Ahci, suite: std::env::var(SUITE_VARIABLE).ok() }
    }
}

impl DebianServer {
    /// With this controller's driver alone in its initramfs: AHCI or pvscsi.
    #[must_use]
    pub fn controller(self, controller: Controller) -> Self {
        Self { controller, ..self }
    }

    /// Writes the disk to `out` and gives the key that opens its ssh.
    ///
    /// # Errors
    /// When a tool is missing or the bootstrap fails: with the end of its log.
    pub fn build(&self, out: &Path) -> Result<Key> {
        let mut script = script("debian-server");
        if let Some(suite) = &self.suite {
            script.args(["--suite", suite]);
        }
        run(script.args(["--controller", controller_name(self.controller)?]).arg(out))?;
        let mut folder = out.as_os_str().to_owned();
        folder.push(".ssh");
        Ok(Key::in_folder(Path::new(&folder)))
    }
}

fn script(name: &str) -> Command {
    Command::new(paths::repository().join("tests/images").join(name))
}

fn controller_name(controller: Controller) -> Result<&'static str> {
    match controller {
        Controller::Ahci => Ok("ahci"),
        Controller::Pvscsi => Ok("pvscsi"),
        Controller::Nvme => Err(Error::Unexpected("no source image has NVMe: it is where servers go".to_owned())),
    }
}
