//! The endpoint for the settings of one server that MGN has no operation for; shared with clients.

use rehost_control::operations::ServerSettings;
use rehost_model::{ServerId, SourceServer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Path of [`SettingsRequest`]; signed with SigV4, service `mgn`, by a key that may do everything.
pub const SETTINGS_PATH: &str = "/rehost/v1/servers/settings";

/// Changes what is given, and reads the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SettingsRequest {
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
    #[serde(default)]
    pub settings: ServerSettings,
}

/// The server as MGN shows it, and all its settings as they are now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettingsResponse {
    pub source_server: Value,
    pub settings: ServerSettings,
}

impl SettingsResponse {
    pub(crate) fn of(server: &SourceServer) -> Self {
        Self { source_server: server.to_api(), settings: ServerSettings::of(server) }
    }
}

/// Path of [`AddDiskRequest`]; signed as [`SettingsRequest`], answered by the server as MGN shows it.
pub const ADD_DISK_PATH: &str = "/rehost/v1/servers/disks/add";

/// Replicates a disk that the agent has reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddDiskRequest {
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
    pub device_name: String,
}
