//! What the command reads from a region's home: credentials, and where the region is being served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rehost_control::authority::{self, CERTIFICATE_OBJECT};
use rehost_control::ports::Objects as _;
use rehost_local::objects::FileObjects;
use rehost_local::region::RegionConfig;
use serde::{Deserialize, Serialize};

use crate::args::Global;

/// Where `rehost serve` says that it is running, within the home.
const SERVING_FILE: &str = "serve.json";

/// What the region is, within the home.
const CONFIG_FILE: &str = "region.json";

/// Its objects, within the home.
const OBJECTS_FOLDER: &str = "objects";

/// AWS's format of a credentials file.
const CREDENTIALS_FILE: &str = "credentials";

/// The profile of the key that may do everything.
const ADMIN_PROFILE: &str = "default";

/// The profile of the key that may only enrol source servers.
const INSTALLATION_PROFILE: &str = "agent-installation";

/// The home of a local region.
pub(crate) struct Home(PathBuf);

/// An access key.
#[derive(PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
}

/// The process that serves a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Serving {
    pub(crate) pid: u32,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

impl Home {
    /// The home that the user named, or `~/.rehost`.
    pub(crate) fn of(global: &Global) -> Result<Self> {
        if let Some(path) = &global.home {
            return Ok(Self(std::path::absolute(path).unwrap_or_else(|_| path.clone())));
        }
        let user = std::env::home_dir().context("there is no home directory; name the region's home with --home")?;
        Ok(Self(user.join(".rehost")))
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The file with the region's keys.
    pub(crate) fn credentials_file(&self) -> PathBuf {
        self.0.join(CREDENTIALS_FILE)
    }

    /// The key that may do everything.
    pub(crate) fn admin_key(&self) -> Result<Key> {
        self.key(ADMIN_PROFILE)
    }

    /// The key that may only enrol source servers.
    pub(crate) fn installation_key(&self) -> Result<Key> {
        self.key(INSTALLATION_PROFILE)
    }

    fn key(&self, profile: &str) -> Result<Key> {
        let file = self.credentials_file();
        let shown = self.0.display();
        let text = std::fs::read_to_string(&file).with_context(|| {
            format!(
                "there is no region at {shown} (cannot read {}); make one with `rehost init --home {shown}`",
                file.display()
            )
        })?;
        parse_key(&text, profile).with_context(|| format!("{} has no complete profile [{profile}]", file.display()))
    }

    /// The endpoint as source servers see it: the first host under which the region is reached, and its port.
    pub(crate) fn endpoint_for_sources(&self) -> Result<String> {
        let file = self.0.join(CONFIG_FILE);
        let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let config: RegionConfig =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file.display()))?;
        let port = self.serving().map_or(config.listen.port(), |serving| serving.port);
        let host = config.advertised_hosts.first().cloned().unwrap_or_else(|| config.listen.ip().to_string());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Ok(format!("https://{host}:{port}"))
    }

    /// By which agents know the region's authority.
    pub(crate) async fn authority_fingerprint(&self) -> Result<String> {
        let objects = FileObjects::new(self.0.join(OBJECTS_FOLDER));
        let certificate = objects.get(CERTIFICATE_OBJECT).await?;
        let certificate = certificate.with_context(|| format!("the region has no {CERTIFICATE_OBJECT}"))?;
        Ok(authority::fingerprint_of(&String::from_utf8_lossy(&certificate))?)
    }

    /// The process that serves the region, as it noted itself.
    pub(crate) fn serving(&self) -> Result<Serving> {
        let (file, shown) = (self.0.join(SERVING_FILE), self.0.display());
        let Ok(text) = std::fs::read_to_string(&file) else {
            bail!("the region {shown} is not running; start it with `rehost serve --home {shown}`");
        };
        serde_json::from_str(&text)
            .map_err(|e| anyhow!("{} is damaged ({e}); start the region again with `rehost serve`", file.display()))
    }

    /// Notes who serves the region; whole or not at all.
    pub(crate) fn note_serving(&self, serving: &Serving) -> Result<()> {
        let file = self.0.join(SERVING_FILE);
        let new = self.0.join(format!("{SERVING_FILE}.new"));
        std::fs::write(&new, serde_json::to_vec(serving)?)
            .and_then(|()| std::fs::rename(&new, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Takes the note back, if it is still this process's own.
    pub(crate) fn forget_serving(&self, serving: &Serving) {
        if self.serving().is_ok_and(|noted| noted == *serving) {
            // What cannot be removed misleads nobody for long: the port does not answer.
            drop(std::fs::remove_file(self.0.join(SERVING_FILE)));
        }
    }
}

impl Serving {
    /// Where clients on this machine reach it.
    pub(crate) fn address_for_clients(&self) -> SocketAddr {
        let address = match self.address {
            IpAddr::V4(a) if a.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(a) if a.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            other => other,
        };
        SocketAddr::new(address, self.port)
    }
}

fn parse_key(text: &str, profile: &str) -> Option<Key> {
    let (mut id, mut secret, mut inside) = (None, None, false);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| inside) {
            match name.trim() {
                "aws_access_key_id" => id = Some(value.trim().to_owned()),
                "aws_secret_access_key" => secret = Some(value.trim().to_owned()),
                _ => {}
            }
        }
    }
    Some(Key { id: id?, secret: secret? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# keys\n[default]\naws_access_key_id = AK1\naws_secret_access_key = s/+=\n\n\
                        [agent-installation]\naws_access_key_id=AK2\n";

    #[test]
    fn keys_are_read_by_profile() {
        let key = parse_key(FILE, "default").unwrap();
        assert_eq!((key.id.as_str(), key.secret.as_str()), ("AK1", "s/+="));
        assert!(parse_key(FILE, "agent-installation").is_none(), "its secret is missing");
        assert!(parse_key(FILE, "other").is_none());
    }

    #[test]
    fn the_note_is_taken_back_by_its_writer_only() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home(folder.path().to_owned());
        assert!(home.serving().unwrap_err().to_string().contains("is not running"));
        let mine = Serving { pid: 1, address: "0.0.0.0".parse().unwrap(), port: 8443 };
        home.note_serving(&mine).unwrap();
        assert_eq!(home.serving().unwrap().address_for_clients().to_string(), "127.0.0.1:8443");
        let successor = Serving { pid: 2, ..mine.clone() };
        home.note_serving(&successor).unwrap();
        home.forget_serving(&mine);
        assert_eq!(home.serving().unwrap(), successor);
        home.forget_serving(&successor);
        assert!(home.serving().is_err());
    }

    #[test]
    fn a_home_without_a_region_is_told_how_to_get_one() {
        let folder = tempfile::tempdir().unwrap();
        let error = Home(folder.path().to_owned()).admin_key().err().unwrap();
        assert!(format!("{error:#}").contains("rehost init"), "{error:#}");
    }
}
