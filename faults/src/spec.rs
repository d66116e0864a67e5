//! What a run is made of, written to its folder for the processes that play the agent and the replicator.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rehost_link::transport::TlsIdentity;
use rehost_model::region::{REPLICATOR_ROLE, SERVER_URI, VOLUME_URI};
use rehost_model::{ServerId, VolumeId};
use serde::{Deserialize, Serialize};

/// One run, as its processes see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) server: ServerId,
    pub(crate) disks: Vec<DiskSpec>,
    /// The port of the network between the two.
    pub(crate) port: u16,
    /// A continuous checkpoint this often; milliseconds.
    pub(crate) interval_ms: u64,
    /// Bytes that the replicator's journal may take.
    pub(crate) journal_bytes: u64,
    /// A freeze may last this long; milliseconds. 0 forbids freezing.
    pub(crate) freeze_ms: u64,
    /// A peer that is silent for this long is gone; milliseconds.
    pub(crate) silence_ms: u64,
}

/// A disk of the source and the volume it goes to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DiskSpec {
    pub(crate) source: PathBuf,
    pub(crate) volume: VolumeId,
    pub(crate) size_bytes: u64,
    pub(crate) target: PathBuf,
}

impl Spec {
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(self.silence_ms)
    }

    /// Writes the run and its certificates to `folder`.
    pub(crate) fn save(&self, folder: &Path, authority: &Authority) -> Result<()> {
        fs::write(folder.join("run.json"), serde_json::to_vec(self)?)?;
        let uri = |text: String| Ok::<_, anyhow::Error>(SanType::URI(text.as_str().try_into()?));
        let mut names = vec![uri(format!("{SERVER_URI}{}", self.server))?];
        for disk in &self.disks {
            names.push(uri(format!("{VOLUME_URI}{}", disk.volume))?);
        }
        authority.issue(&folder.join("agent"), names)?;
        authority.issue(&folder.join("replicator"), vec![SanType::DnsName(REPLICATOR_ROLE.try_into()?)])
    }

    /// Reads it back.
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("run.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }
}

/// A private CA for all runs.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn generate() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    fn issue(&self, to: &Path, names: Vec<SanType>) -> Result<()> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        fs::write(to.with_extension("pem"), certificate.pem())?;
        fs::write(to.with_extension("key"), key.serialize_pem())?;
        fs::write(to.with_extension("ca"), self.0.pem())?;
        Ok(())
    }
}

/// The identity of a role, from the run's folder.
pub(crate) fn identity(folder: &Path, role: &str) -> Result<TlsIdentity> {
    let read = |end: &str| {
        let path = folder.join(role).with_extension(end);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    Ok(TlsIdentity::from_pem(&read("pem")?, &read("key")?, &read("ca")?)?)
}
