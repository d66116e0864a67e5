//! What an installed agent knows besides its identity: `agent.json` in its state directory.

use rehost_link::control_client::{CaFingerprint, ControlClient, ControlError, Endpoint, Trust};
use rehost_link::identity::{Identity, IdentityError, StateDir};
use rehost_model::ServerId;
use serde::{Deserialize, Serialize};

/// Where the state is kept unless `--state-dir` says otherwise.
pub const STATE_DIR: &str = "/var/lib/rehost-agent";

const FILE: &str = "agent.json";

/// The settings of an installed agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentSettings {
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
    /// `https://host[:port]`.
    pub endpoint: String,
    /// The private authority of the endpoint, which may be the region's own; `None` for the public ones.
    #[serde(default)]
    pub ca_fingerprint: Option<CaFingerprint>,
    /// Every disk of the machine is to be replicated, also one that is added; not only those that were named.
    #[serde(default = "yes")]
    pub all_disks: bool,
}

fn yes() -> bool {
    true
}

/// Why an agent's state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("no agent is installed in {dir}; run `rehost-agent install` first")]
    NotInstalled { dir: String },
    #[error("{dir}/{FILE} is damaged ({reason}); install the agent again")]
    Damaged { dir: String, reason: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl AgentSettings {
    /// The settings that are kept in `state`; `None` when no agent is installed there.
    ///
    /// # Errors
    /// [`StateError`] when they cannot be read.
    pub fn load(state: &StateDir) -> Result<Option<Self>, StateError> {
        let Some(text) = state.read(FILE)? else { return Ok(None) };
        let damaged = |e: serde_json::Error| StateError::Damaged { dir: dir(state), reason: e.to_string() };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// Writes the settings to `state`.
    ///
    /// # Errors
    /// [`StateError::Identity`] when the file cannot be written.
    pub fn save(&self, state: &StateDir) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        Ok(state.write(FILE, &text)?)
    }

    /// A client of the control plane.
    ///
    /// # Errors
    /// [`StateError::Control`] when the endpoint cannot be used.
    pub fn client(&self, identity: &Identity) -> Result<ControlClient, StateError> {
        let trust = Trust::after_enrolment(self.ca_fingerprint, identity.ca());
        let endpoint: Endpoint = self.endpoint.parse()?;
        Ok(ControlClient::new(endpoint, &trust)?)
    }
}

/// The settings and the identity of the agent that is installed in `state`.
///
/// # Errors
/// [`StateError::NotInstalled`] unless both are there.
pub fn installed(state: &StateDir) -> Result<(AgentSettings, Identity), StateError> {
    match (AgentSettings::load(state)?, state.identity()?) {
        (Some(settings), Some(identity)) => Ok((settings, identity)),
        _ => Err(StateError::NotInstalled { dir: dir(state) }),
    }
}

fn dir(state: &StateDir) -> String {
    state.path().display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::new(directory.path());
        assert_eq!(AgentSettings::load(&state).unwrap(), None);
        assert!(installed(&state).err().unwrap().to_string().contains("rehost-agent install"));
        let settings = AgentSettings {
            source_server_id: ServerId::generate(),
            endpoint: "https://127.0.0.1:8443".to_owned(),
            ca_fingerprint: Some(format!("sha256:{}", "07".repeat(32)).parse().unwrap()),
            all_disks: true,
        };
        settings.save(&state).unwrap();
        assert_eq!(AgentSettings::load(&state).unwrap(), Some(settings));
        state.write(FILE, b"{}").unwrap();
        assert!(matches!(AgentSettings::load(&state), Err(StateError::Damaged { .. })));
    }
}
