//! Making a region.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rehost_control::PortError;
use rehost_control::authority;
use rehost_control::ports::{ItemKey, Keys, Kind, PortResult, Store};
use rehost_model::ReplicationTemplateId;
use rehost_model::region::REPLICATION_PORT;
use rehost_model::settings::{ReplicationSettings, ReplicationTemplate};

use super::config::{FORMAT, RegionConfig, check_host};
use super::lock::RegionLock;
use super::{AccessKeys, clock, names, reachable, unfit};
use crate::database::Database;
use crate::files::{PRIVATE_FOLDER, file_error, sync_folder_of};
use crate::keys::FileKeys;
use crate::objects::FileObjects;
use crate::store::SqliteStore;

/// What a new region is to be.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Where the API will listen; replication servers listen on the same address.
    pub listen: SocketAddr,
    /// The hosts under which agents reach replication servers, to be tried in order. None: the address of `listen`.
    pub advertised_hosts: Vec<String>,
    /// The port of the first replication server; others get free ones.
    pub replication_port: u16,
}

impl InitOptions {
    /// The usual region that listens there: replication servers from port 1500 on.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self { listen, advertised_hosts: Vec::new(), replication_port: REPLICATION_PORT }
    }

    fn hosts(&self) -> Vec<String> {
        match self.advertised_hosts.as_slice() {
            [] => vec![reachable(self.listen).ip().to_string()],
            hosts => hosts.to_vec(),
        }
    }
}

/// What [`init`] made, or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitReport {
    pub home: PathBuf,
    pub config: RegionConfig,
    /// The region existed, just as it was asked for; nothing was changed.
    pub already_initialised: bool,
    /// The file with the access keys.
    pub credentials: PathBuf,
    /// `sha256:HEX` of the certificate authority's certificate.
    pub ca_fingerprint: String,
}

/// Makes a region in `home`, which must not exist or be empty. Asked again for the same, it changes nothing and says so.
///
/// # Errors
/// `Conflict` when there is another region or something else in `home`; nothing is overwritten. What an attempt that failed
/// had made is removed.
pub async fn init(home: &Path, options: &InitOptions) -> PortResult<InitReport> {
    let hosts = options.hosts();
    hosts.iter().try_for_each(|host| check_host(host))?;
    if home.join(names::CONFIG).exists() {
        return existing(home, options, hosts).await;
    }
    make_home(home)?;
    let _lock = RegionLock::take(&home.join(names::LOCK))?;
    check_empty(home)?;
    let config = RegionConfig {
        format: FORMAT,
        listen: options.listen,
        advertised_hosts: hosts,
        replication_port: options.replication_port,
        created: clock().now(),
    };
    let ca_fingerprint = fill_or_empty(home, &config).await?;
    Ok(report(home, config, false, ca_fingerprint))
}

pub(super) async fn fill_or_empty(home: &Path, config: &RegionConfig) -> PortResult<String> {
    let made = fill(home, config).await;
    if made.is_err() {
        empty(home);
    }
    made
}

fn report(home: &Path, config: RegionConfig, already_initialised: bool, ca_fingerprint: String) -> InitReport {
    let credentials = home.join(names::CREDENTIALS);
    InitReport { home: home.to_owned(), config, already_initialised, credentials, ca_fingerprint }
}

async fn existing(home: &Path, options: &InitOptions, hosts: Vec<String>) -> PortResult<InitReport> {
    let config = RegionConfig::load(&home.join(names::CONFIG))?;
    let asked = RegionConfig {
        listen: options.listen,
        advertised_hosts: hosts,
        replication_port: options.replication_port,
        ..config.clone()
    };
    if asked != config {
        let differs = |what: &str, is: String, asked: String| {
            if is == asked { String::new() } else { format!(", {what} {is} (not {asked})") }
        };
        let listen = differs("listens on", config.listen.to_string(), asked.listen.to_string());
        let hosts = differs("is reached under", config.advertised_hosts.join(" "), asked.advertised_hosts.join(" "));
        let port =
            differs("replicates from port", config.replication_port.to_string(), asked.replication_port.to_string());
        let why = format!("there is another region already{listen}{hosts}{port}; choose another home, or edit");
        return Err(PortError::conflict(format!("{}: {why} {}", home.display(), names::CONFIG)));
    }
    let keys = FileKeys::open(&home.join(names::MASTER_KEY))?;
    let authority = authority::load_or_create(&FileObjects::new(home.join(names::OBJECTS)), &keys).await?;
    Ok(report(home, config, true, authority.fingerprint()))
}

fn make_home(home: &Path) -> PortResult<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(home);
    made.map_err(|e| file_error("make the folder", home, &e))?;
    check_empty(home)?;
    fs::set_permissions(home, fs::Permissions::from_mode(PRIVATE_FOLDER))
        .map_err(|e| file_error("make private the folder", home, &e))
}

fn check_empty(home: &Path) -> PortResult<()> {
    let failed = |e: io::Error| file_error("look into the folder", home, &e);
    for entry in fs::read_dir(home).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name != names::LOCK {
            let why = format!("there is `{}` in it, but no {}", name.to_string_lossy(), names::CONFIG);
            let remedy = "it is no region, or the making of one was cut off; empty it or choose another home";
            return Err(PortError::conflict(format!("{}: {why}: {remedy}", home.display())));
        }
    }
    Ok(())
}

/// Makes everything that a region begins with; `region.json` comes last, it makes the folder a region.
async fn fill(home: &Path, config: &RegionConfig) -> PortResult<String> {
    let folder = home.join(names::KEYS);
    let made = fs::DirBuilder::new().mode(PRIVATE_FOLDER).create(&folder);
    made.map_err(|e| file_error("make the folder", &folder, &e))?;
    let keys: Arc<dyn Keys> = Arc::new(FileKeys::create(&home.join(names::MASTER_KEY))?);
    let access_keys = AccessKeys::generate()?;
    access_keys.seal(&home.join(names::ACCESS_KEYS), &*keys).await?;
    access_keys.write_credentials(&home.join(names::CREDENTIALS))?;
    let authority = authority::load_or_create(&FileObjects::new(home.join(names::OBJECTS)), &*keys).await?;
    write_template(home).await?;
    config.save(&home.join(names::CONFIG))?;
    sync_folder_of(home).map_err(|e| file_error("make durable the folder", home, &e))?;
    Ok(authority.fingerprint())
}

async fn write_template(home: &Path) -> PortResult<()> {
    let template =
        ReplicationTemplate { id: ReplicationTemplateId::generate(), settings: ReplicationSettings::default() };
    let body = serde_json::to_value(&template).map_err(|e| unfit(home, e))?;
    let store = SqliteStore::new(Database::open(&home.join(names::DATABASE))?);
    store.put(&ItemKey::new(Kind::ReplicationTemplate, &template.id), body, None).await.map(|_| ())
}

/// Removes what [`fill`] may have made of a folder that was empty before.
fn empty(home: &Path) {
    for name in [names::CONFIG, names::CREDENTIALS, names::DATABASE, "rehost.db-wal", "rehost.db-shm"] {
        remove(&home.join(name), |path| fs::remove_file(path));
    }
    for name in [names::KEYS, names::OBJECTS] {
        remove(&home.join(name), |path| fs::remove_dir_all(path));
    }
    remove(&home.join(names::LOCK), |path| fs::remove_file(path));
}

fn remove(path: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) {
    match remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "what a failed init had made cannot be removed");
        }
        _ => {}
    }
}
