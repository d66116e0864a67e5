//! The agent as a service of systemd: one binary, one unit.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rehost_link::identity::StateDir;

/// The name of the unit.
pub const UNIT: &str = "rehost-agent.service";

/// The unit; `{binary}` and `{state_dir}` are filled in.
const TEMPLATE: &str = include_str!("rehost-agent.service");

/// Where the service's parts go; replaceable for tests.
#[derive(Debug, Clone)]
pub struct ServiceLayout {
    pub binary: PathBuf,
    pub unit: PathBuf,
    /// This directory exists where systemd runs.
    pub systemd: PathBuf,
    pub systemctl: PathBuf,
}

impl Default for ServiceLayout {
    fn default() -> Self {
        Self {
            binary: "/usr/local/sbin/rehost-agent".into(),
            unit: Path::new("/etc/systemd/system").join(UNIT),
            systemd: "/run/systemd/system".into(),
            systemctl: "systemctl".into(),
        }
    }
}

/// Why the service cannot be set up or removed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("`systemctl {command}` failed: {reason}; see `journalctl -u rehost-agent`")]
    Systemctl { command: String, reason: String },
}

impl ServiceLayout {
    /// Whether systemd runs the machine.
    #[must_use]
    pub fn is_managed(&self) -> bool {
        self.systemd.is_dir()
    }

    /// Copies the running program to where the service starts it; `false` when it runs from there already.
    ///
    /// # Errors
    /// [`ServiceError::Io`]; the earlier binary is kept then.
    pub fn install_binary(&self) -> Result<bool, ServiceError> {
        let this = std::env::current_exe().map_err(|e| io_error("find", Path::new("the running program"), e))?;
        if fs::canonicalize(&self.binary).is_ok_and(|installed| installed == this) {
            return Ok(false);
        }
        let program = fs::read(&this).map_err(|e| io_error("read", &this, e))?;
        replace(&self.binary, &program, 0o755)?;
        Ok(true)
    }

    /// Writes the unit, enables it and starts it (anew).
    ///
    /// # Errors
    /// [`ServiceError`]; a unit that was written stays, for the caller to remove.
    pub fn enable(&self, state: &StateDir) -> Result<(), ServiceError> {
        let quoted = |path: &Path| path.display().to_string().replace('%', "%%");
        let unit = TEMPLATE.replace("{binary}", &quoted(&self.binary)).replace("{state_dir}", &quoted(state.path()));
        replace(&self.unit, unit.as_bytes(), 0o644)?;
        self.systemctl(&["daemon-reload"])?;
        self.systemctl(&["enable", UNIT])?;
        self.systemctl(&["restart", UNIT])
    }

    /// Stops the unit and removes it; `false` when there was none.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub fn remove_unit(&self) -> Result<bool, ServiceError> {
        if !self.unit.exists() {
            return Ok(false);
        }
        if self.is_managed() {
            self.systemctl(&["disable", "--now", UNIT])?;
        }
        remove(&self.unit)?;
        if self.is_managed() {
            self.systemctl(&["daemon-reload"])?;
        }
        Ok(true)
    }

    /// Removes the binary; it may be gone already.
    ///
    /// # Errors
    /// [`ServiceError::Io`].
    pub fn remove_binary(&self) -> Result<(), ServiceError> {
        remove(&self.binary)
    }

    /// Keeps the service of the agent in `state` from being started at the next boot; nothing when it is no service.
    ///
    /// # Errors
    /// [`ServiceError::Systemctl`].
    pub fn disable(&self, state: &StateDir) -> Result<(), ServiceError> {
        let unit = fs::read_to_string(&self.unit).unwrap_or_default();
        if !self.is_managed() || !unit.contains(&format!("--state-dir {}\n", state.path().display())) {
            return Ok(());
        }
        self.systemctl(&["disable", UNIT])
    }

    fn systemctl(&self, arguments: &[&str]) -> Result<(), ServiceError> {
        let failed = |reason: String| ServiceError::Systemctl { command: arguments.join(" "), reason };
        let output = Command::new(&self.systemctl).args(arguments).output().map_err(|e| failed(e.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// Keeps the service of the agent in `state` from being started at the next boot.
///
/// # Errors
/// [`ServiceError::Systemctl`].
pub fn disable(state: &StateDir) -> Result<(), ServiceError> {
    ServiceLayout::default().disable(state)
}

fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), ServiceError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| io_error("create", folder, e))?;
    }
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The new name, too, must outlast a power cut.
        path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    };
    write().map_err(|e| io_error("write", path, e))
}

fn remove(path: &Path) -> Result<(), ServiceError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, e)),
        _ => Ok(()),
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> ServiceError {
    ServiceError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine with a systemd that notes what it is told, and refuses what is named in `refuse`.
    pub(crate) fn layout(root: &Path, refuse: &str) -> ServiceLayout {
        let systemctl = root.join("systemctl");
        let script = format!(
            "#!/bin/sh\necho \"$*\" >> {}/calls\ncase \"$1\" in {refuse}) echo refused >&2; exit 1;; esac\n",
            root.display()
        );
        replace(&systemctl, script.as_bytes(), 0o755).unwrap();
        fs::create_dir_all(root.join("systemd")).unwrap();
        ServiceLayout {
            binary: root.join("sbin/rehost-agent"),
            unit: root.join("units").join(UNIT),
            systemd: root.join("systemd"),
            systemctl,
        }
    }

    #[test]
    fn the_service_comes_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let (layout, state) = (layout(directory.path(), "none"), StateDir::new("/var/lib/rehost-agent"));
        assert!(layout.install_binary().unwrap());
        layout.enable(&state).unwrap();
        let unit = fs::read_to_string(&layout.unit).unwrap();
        let start = format!("ExecStart={} run --state-dir /var/lib/rehost-agent\n", layout.binary.display());
        assert!(unit.contains(&start) && !unit.contains('{'), "{unit}");
        layout.disable(&state).unwrap();
        layout.disable(&StateDir::new("/somewhere/else")).unwrap();
        assert!(layout.remove_unit().unwrap() && !layout.remove_unit().unwrap());
        layout.remove_binary().unwrap();
        assert!(!layout.unit.exists() && !layout.binary.exists());
        let calls = fs::read_to_string(directory.path().join("calls")).unwrap();
        let expected = [
            "daemon-reload",
            "enable rehost-agent.service",
            "restart rehost-agent.service",
            "disable rehost-agent.service",
            "disable --now rehost-agent.service",
            "daemon-reload",
        ];
        assert_eq!(calls.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_systemd_refuses_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let refused = layout(directory.path(), "restart").enable(&StateDir::new("/s")).unwrap_err().to_string();
        assert!(refused.contains("`systemctl restart rehost-agent.service` failed: refused"), "{refused}");
    }
}
