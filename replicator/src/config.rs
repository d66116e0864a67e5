//! The configuration file of a replicator.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rehost_link::control_client::{CaFingerprint, ControlError, Endpoint};
use rehost_model::ReplicatorId;
use serde::Deserialize;
use zeroize::Zeroizing;

/// More is no configuration of ours.
const MAX_BYTES: u64 = 64 * 1024;

/// What `rehost-replicator run --config FILE` reads: JSON, readable by its owner alone.
pub struct ReplicatorConfig {
    pub replicator: ReplicatorId,
    /// The one-time secret with which it authenticates first.
    pub enrol_token: Zeroizing<String>,
    pub endpoint: Endpoint,
    /// Of the control plane's own authority; `None`: its certificate is of a public one.
    pub ca_fingerprint: Option<CaFingerprint>,
    /// Where agents connect.
    pub listen: SocketAddr,
    /// Its identity, and what is durable of each volume.
    pub state_dir: PathBuf,
    /// How long volumes are held still for a snapshot that nobody releases.
    pub hold_timeout: Duration,
    /// Most bytes of a server's journal; the engine's own limit if there is none.
    pub journal_bytes: Option<u64>,
    /// Has the volumes as files named by their ids, in place of NVMe disks.
    pub volumes_directory: Option<PathBuf>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration {} holds a secret, but others may read it (mode {mode:o}); run: chmod 600 {}", path.display(), path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the configuration {} is wrong: {reason}", path.display())]
    Wrong { path: PathBuf, reason: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    #[serde(rename = "replicatorID")]
    replicator: ReplicatorId,
    enrol_token: String,
    control_endpoint: String,
    #[serde(default)]
    ca_fingerprint: Option<String>,
    listen: SocketAddr,
    state_dir: PathBuf,
    hold_timeout_seconds: u64,
    #[serde(default)]
    journal_bytes: Option<u64>,
    #[serde(default)]
    volumes_directory: Option<PathBuf>,
}

impl ReplicatorConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// A [`ConfigError`] that says what to mend.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let mode = file.metadata().map_err(read)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(ConfigError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_BYTES).read_to_string(&mut text).map_err(read)?;
        Self::parse(&text).map_err(|reason| ConfigError::Wrong { path: path.to_owned(), reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let written: Written = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let fingerprint = written.ca_fingerprint.map(|text| text.parse()).transpose();
        Ok(Self {
            replicator: written.replicator,
            enrol_token: Zeroizing::new(written.enrol_token),
            endpoint: written.control_endpoint.parse().map_err(|e: ControlError| format!("controlEndpoint: {e}"))?,
            ca_fingerprint: fingerprint.map_err(|e| format!("caFingerprint: {e}"))?,
            listen: written.listen,
            state_dir: written.state_dir,
            hold_timeout: Duration::from_secs(written.hold_timeout_seconds),
            journal_bytes: written.journal_bytes,
            volumes_directory: written.volumes_directory,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn text() -> String {
        format!(
            r#"{{"replicatorID":"{}","enrolToken":"s3cret","controlEndpoint":"https://127.0.0.1:8443",
            "caFingerprint":"sha256:{}","listen":"127.0.0.1:1500","stateDir":"/s","holdTimeoutSeconds":120}}"#,
            ReplicatorId::generate(),
            "ab".repeat(32)
        )
    }

    fn load(text: &str, mode: u32) -> Result<ReplicatorConfig, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        ReplicatorConfig::load(&path)
    }

    #[test]
    fn a_configuration_is_read() {
        let config = load(&text(), 0o600).unwrap();
        assert_eq!((config.endpoint.port(), config.listen.port()), (8443, 1500));
        assert_eq!((config.hold_timeout, config.journal_bytes), (Duration::from_secs(120), None));
    }

    #[test]
    fn a_public_authority_and_a_directory_of_volumes_may_be_given() {
        let text = text().replace("caFingerprint", "volumesDirectory").replace("sha256:", "/");
        let config = load(&text, 0o600).unwrap();
        assert!(config.ca_fingerprint.is_none());
        assert_eq!(config.volumes_directory, Some(PathBuf::from(format!("/{}", "ab".repeat(32)))));
    }

    #[test]
    fn an_exposed_secret_is_refused() {
        for mode in [0o640, 0o604] {
            assert!(matches!(load(&text(), mode), Err(ConfigError::Exposed { .. })));
        }
    }

    #[test]
    fn mistakes_are_named_without_the_secret() {
        for (right, wrong, name) in [
            ("https://127.0.0.1:8443", "http://x", "controlEndpoint"),
            ("sha256:ab", "sha256:zz", "caFingerprint"),
            ("holdTimeoutSeconds", "holdTimeout", "holdTimeout"),
            ("127.0.0.1:1500", "nowhere", "invalid socket address"),
        ] {
            let error = load(&text().replace(right, wrong), 0o600).err().unwrap().to_string();
            assert!(error.contains(name) && !error.contains("s3cret"), "{error}");
        }
    }
}
