//! `region.json`.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use rehost_control::PortError;
use rehost_control::ports::PortResult;
use rehost_model::Timestamp;
use serde::{Deserialize, Serialize};

use super::unfit;
use crate::files::{file_error, write_private};

/// The form of the home that this code makes and reads.
pub(super) const FORMAT: u32 = 1;

/// The longest DNS name.
const MAX_HOST: usize = 253;

/// What a region is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegionConfig {
    /// The form of the home; a newer one is refused.
    pub format: u32,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// The hosts under which agents reach replication servers, to be tried in order.
    pub advertised_hosts: Vec<String>,
    /// The port of the first replication server; others get free ones.
    pub replication_port: u16,
    pub created: Timestamp,
}

impl RegionConfig {
    pub(super) fn load(path: &Path) -> PortResult<Self> {
        let home = path.parent().unwrap_or(path).display();
        let text = fs::read(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                PortError::not_found(format!("there is no region at {home}; make one with `rehost init --home {home}`"))
            }
            _ => file_error("read the region's configuration", path, &e),
        })?;
        let config: Self = serde_json::from_slice(&text).map_err(|e| unfit(path, format!("{e}; mend that line")))?;
        if config.format != FORMAT {
            let why = format!("this rehost reads homes of form {FORMAT}, this one has form {}", config.format);
            return Err(unfit(path, why + ": use the rehost that made it"));
        }
        config.advertised_hosts.iter().try_for_each(|host| check_host(host))?;
        Ok(config)
    }

    pub(super) fn save(&self, path: &Path) -> PortResult<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| unfit(path, e))?;
        text.push(b'\n');
        write_private(path, &text).map_err(|e| file_error("write the region's configuration", path, &e))
    }
}

/// Whether agents could dial this: a name or an address, without a port.
pub(super) fn check_host(host: &str) -> PortResult<()> {
    let label = |l: &str| !l.is_empty() && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_');
    let name = !host.is_empty() && host.len() <= MAX_HOST && host.split('.').all(label);
    if name || host.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    let shown: String = host.chars().take(80).collect();
    Err(PortError::invalid(format!("`{shown}` is not a host name or an IP address (without a port)")))
}
