//! How a copy is launched and how it proves that it works.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{InstanceId, JobId};

/// MGN's `LaunchConfiguration` of one server, with the probes that its copy must answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LaunchConfiguration {
    pub launch_disposition: LaunchDisposition,
    pub target_instance_type_right_sizing_method: RightSizing,
    pub copy_private_ip: bool,
    pub copy_tags: bool,
    pub boot_mode: BootMode,
    pub licensing: Licensing,
    /// The EC2 launch template (`lt-…`) whose default version says what else the copy is launched with: its subnet, security groups,
    /// instance profile, key pair, and the instance type where that is not chosen by size.
    #[serde(rename = "ec2LaunchTemplateID", skip_serializing_if = "Option::is_none")]
    pub ec2_launch_template_id: Option<String>,
    /// What a launched copy must answer before the launch counts as successful.
    pub probes: Vec<Probe>,
    /// How long a copy may take to pass its probes; seconds.
    pub verify_timeout_seconds: u64,
    /// Whether a cutover runs the source's quiesce scripts and keeps it fenced from then on.
    pub quiesce: bool,
}

impl Default for LaunchConfiguration {
    fn default() -> Self {
        Self {
            launch_disposition: LaunchDisposition::Started,
            target_instance_type_right_sizing_method: RightSizing::Basic,
            copy_private_ip: false,
            copy_tags: true,
            boot_mode: BootMode::UseSource,
            licensing: Licensing::default(),
            ec2_launch_template_id: None,
            probes: vec![Probe::Boot],
            verify_timeout_seconds: 600,
            quiesce: false,
        }
    }
}

/// MGN's `LaunchDisposition`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum LaunchDisposition {
    Stopped,
    Started,
}

/// MGN's `TargetInstanceTypeRightSizingMethod`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RightSizing {
    None,
    Basic,
}

/// MGN's `BootMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BootMode {
    LegacyBios,
    Uefi,
    UseSource,
}

/// MGN's `Licensing`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Licensing {
    pub os_byol: bool,
}

/// MGN's `LaunchedInstance`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchedInstance {
    #[serde(rename = "ec2InstanceID")]
    pub ec2_instance_id: InstanceId,
    #[serde(rename = "jobID")]
    pub job_id: JobId,
    pub first_boot: FirstBoot,
    /// Where ports of the copy can be reached (`port` → `host:port`). Not part of MGN's shape, whose clients skip it.
    #[serde(default)]
    pub endpoints: BTreeMap<u16, String>,
}

/// MGN's `FirstBoot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum FirstBoot {
    Waiting,
    Succeeded,
    Unknown,
    Stopped,
}

/// What a launched copy must answer: `boot` (it reached user space), `tcp:22` (the port accepts), `http:80` or
/// `http:80/path` (the server answers with a status below 500).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Probe {
    Boot,
    Tcp { port: u16 },
    Http { port: u16, path: String },
}

impl Probe {
    /// The port of the guest that the probe needs to reach.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Boot => None,
            Self::Tcp { port } | Self::Http { port, .. } => Some(*port),
        }
    }
}

/// A text that names no probe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no probe: write `boot`, `tcp:PORT` or `http:PORT[/PATH]`, such as `http:80/health`")]
pub struct InvalidProbe(String);

impl FromStr for Probe {
    type Err = InvalidProbe;

    fn from_str(text: &str) -> Result<Self, InvalidProbe> {
        let invalid = || InvalidProbe(text.to_owned());
        let port = |p: &str| p.parse::<u16>().ok().filter(|p| *p != 0).ok_or_else(invalid);
        match text.split_once(':') {
            None if text == "boot" => Ok(Self::Boot),
            Some(("tcp", p)) => Ok(Self::Tcp { port: port(p)? }),
            Some(("http", rest)) => {
                let (p, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
                let clean = path.bytes().all(|b| b.is_ascii_graphic());
                if clean { Ok(Self::Http { port: port(p)?, path: path.to_owned() }) } else { Err(invalid()) }
            }
            _ => Err(invalid()),
        }
    }
}

impl TryFrom<String> for Probe {
    type Error = InvalidProbe;

    fn try_from(text: String) -> Result<Self, InvalidProbe> {
        text.parse()
    }
}

impl From<Probe> for String {
    fn from(probe: Probe) -> String {
        probe.to_string()
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot => f.write_str("boot"),
            Self::Tcp { port } => write!(f, "tcp:{port}"),
            Self::Http { port, path } => write!(f, "http:{port}{path}"),
        }
    }
}

/// What one attempt of a probe saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeOutcome {
    pub passed: bool,
    /// What was seen, such as `HTTP 200` or `connection refused`.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_survive_their_text() {
        for text in ["boot", "tcp:22", "http:80/", "http:8080/health?deep=1"] {
            assert_eq!(text.parse::<Probe>().unwrap().to_string(), text);
        }
        assert_eq!("http:80".parse::<Probe>().unwrap().to_string(), "http:80/");
    }

    #[test]
    fn what_is_no_probe_is_refused() {
        for text in ["", "ping", "tcp", "tcp:", "tcp:0", "tcp:65536", "http:80/a b", "http:x/", "http:80/\r\nX: y"] {
            assert!(text.parse::<Probe>().is_err(), "{text:?}");
        }
    }
}
