//! The identity of an agent or a replicator: a P-256 key that never leaves its machine, and the certificate for it.
//!
//! It lives in one directory (mode 0700) as PEM files (mode 0600), each replaced atomically and made durable, so that a power
//! cut leaves either the old or the new one. The key is made once and kept: renewals only replace the certificate.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rehost_model::Timestamp;
use rehost_model::link::IssuedCertificate;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::signature::RequestSigner;

const KEY_FILE: &str = "key.pem";
const CERTIFICATE_FILE: &str = "certificate.pem";
const CA_FILE: &str = "ca.pem";

/// An identity file has a few KiB at most; more is damage.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Why an identity cannot be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is damaged ({reason}); remove it and install again", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("cannot make a key: {0}")]
    Key(String),
    #[error("the control plane issued a certificate that cannot be used: {0}")]
    Issued(String),
}

/// A private key with which certificates are asked for.
pub struct PrivateKey(rcgen::KeyPair);

impl PrivateKey {
    /// A new P-256 key.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when the random number generator fails.
    pub fn generate() -> Result<Self, IdentityError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256);
        key.map(Self).map_err(|e| IdentityError::Key(e.to_string()))
    }

    fn from_pem(pem: &str) -> Result<Self, String> {
        rcgen::KeyPair::from_pem(pem).map(Self).map_err(|e| e.to_string())
    }

    /// PKCS #8, PEM.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// A signing request (PEM) that proves possession of the key and names nobody: names are the authority's business.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when the key refuses to sign.
    pub fn signing_request(&self) -> Result<String, IdentityError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&self.0).and_then(|request| request.pem());
        request.map_err(|e| IdentityError::Key(e.to_string()))
    }
}

/// A key with its certificate and the authority that issued it.
pub struct Identity {
    key_pem: Zeroizing<String>,
    certificate_pem: String,
    ca_pem: String,
    certificate: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Identity {
    /// Puts a key and what was issued for it together.
    ///
    /// # Errors
    /// [`IdentityError::Issued`] when the certificates cannot be read or are not for this key.
    pub fn new(key: &PrivateKey, issued: &IssuedCertificate) -> Result<Self, IdentityError> {
        let identity = Self::parse(key.to_pem(), issued.certificate.clone(), issued.ca_certificate.clone())
            .map_err(IdentityError::Issued)?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&identity.certificate)
            .map_err(|e| IdentityError::Issued(e.to_string()))?;
        if certificate.public_key().subject_public_key.data != key.0.public_key_raw() {
            return Err(IdentityError::Issued("it is for another key".to_owned()));
        }
        Ok(identity)
    }

    fn parse(key_pem: Zeroizing<String>, certificate_pem: String, ca_pem: String) -> Result<Self, String> {
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| e.to_string());
        let (certificate, ca) = (der(&certificate_pem)?, der(&ca_pem)?);
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|e| e.to_string())?;
        let seconds = |at: x509_parser::time::ASN1Time| Timestamp::from_unix_ms(at.timestamp().saturating_mul(1000));
        let (not_before, not_after) = (seconds(parsed.validity().not_before), seconds(parsed.validity().not_after));
        Ok(Self { key_pem, certificate_pem, ca_pem, certificate, ca, not_before, not_after })
    }

    /// The key, PKCS #8 as PEM.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// When the certificate ends.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whether it is time to renew: two thirds of the certificate's life are over, so that a third is left to try again.
    #[must_use]
    pub fn is_due_for_renewal(&self, now: Timestamp) -> bool {
        now.ms_since(self.not_before) >= self.not_after.ms_since(self.not_before) / 3 * 2
    }

    /// Signs requests with this identity.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when the key is no P-256 key.
    pub fn signer(&self) -> Result<RequestSigner, IdentityError> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(self.key_pem.as_bytes());
        let key = key.map_err(|e| IdentityError::Key(e.to_string()))?;
        RequestSigner::new(&self.certificate, key.secret_pkcs8_der()).map_err(|e| IdentityError::Key(e.to_string()))
    }
}

/// The directory in which an identity is kept.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The directory at `path`, which need not be there.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Makes the directory, for its owner alone; it may be there already.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn create(&self) -> Result<(), IdentityError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(|e| self.io("create", "", e))?;
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700)).map_err(|e| self.io("protect", "", e))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The key that is kept here, if there is one.
    ///
    /// # Errors
    /// [`IdentityError::Io`] or [`IdentityError::Damaged`].
    pub fn key(&self) -> Result<Option<PrivateKey>, IdentityError> {
        let Some(pem) = self.read(KEY_FILE)? else { return Ok(None) };
        let pem = Zeroizing::new(pem);
        PrivateKey::from_pem(&pem).map(Some).map_err(|reason| self.damaged(KEY_FILE, reason))
    }

    /// The identity that is kept here; `None` unless it is complete.
    ///
    /// # Errors
    /// [`IdentityError::Io`] or [`IdentityError::Damaged`].
    pub fn identity(&self) -> Result<Option<Identity>, IdentityError> {
        let (key, certificate, ca) = (self.read(KEY_FILE)?, self.read(CERTIFICATE_FILE)?, self.read(CA_FILE)?);
        let (Some(key), Some(certificate), Some(ca)) = (key, certificate, ca) else { return Ok(None) };
        let identity = Identity::parse(Zeroizing::new(key), certificate, ca);
        identity.map(Some).map_err(|reason| self.damaged(CERTIFICATE_FILE, reason))
    }

    /// Writes the key alone: before it is used for the first time, so that no certificate is issued for a key that is lost.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn save_key(&self, key: &PrivateKey) -> Result<(), IdentityError> {
        self.write(KEY_FILE, key.to_pem().as_bytes())
    }

    /// Writes a whole identity.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn save(&self, identity: &Identity) -> Result<(), IdentityError> {
        self.write(KEY_FILE, identity.key_pem.as_bytes())?;
        self.write(CA_FILE, identity.ca_pem.as_bytes())?;
        self.write(CERTIFICATE_FILE, identity.certificate_pem.as_bytes())
    }

    /// Reads a file of the directory; `None` when it is not there.
    ///
    /// # Errors
    /// [`IdentityError::Io`], or [`IdentityError::Damaged`] when it is implausibly large.
    pub fn read(&self, name: &str) -> Result<Option<String>, IdentityError> {
        let path = self.0.join(name);
        match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(found) if found.len() > MAX_FILE_BYTES => {
                return Err(self.damaged(name, "it is implausibly large".to_owned()));
            }
            _ => {}
        }
        fs::read_to_string(&path).map(Some).map_err(|e| self.io("read", name, e))
    }

    /// Replaces a file of the directory, atomically and durably, readable by its owner alone.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), IdentityError> {
        let temporary = self.0.join(format!(".{name}.new"));
        let written = write_new(&temporary, content)
            .and_then(|()| fs::rename(&temporary, self.0.join(name)))
            .and_then(|()| fs::File::open(&self.0)?.sync_all());
        written.map_err(|e| self.io("write", name, e))
    }

    fn io(&self, action: &'static str, name: &str, source: io::Error) -> IdentityError {
        let path = if name.is_empty() { self.0.clone() } else { self.0.join(name) };
        IdentityError::Io { action, path, source }
    }

    fn damaged(&self, name: &str, reason: String) -> IdentityError {
        IdentityError::Damaged { path: self.0.join(name), reason }
    }
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    // A left-over of a crash may have any mode: begin with a new file.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued_for(key: &PrivateKey) -> IssuedCertificate {
        let mut params = rcgen::CertificateParams::default();
        params.not_before = time::OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(1_900_000).unwrap();
        let pem = params.self_signed(&key.0).unwrap().pem();
        IssuedCertificate { certificate: pem.clone(), ca_certificate: pem }
    }

    #[test]
    fn an_identity_is_kept_privately_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::new(directory.path().join("a/b"));
        state.create().unwrap();
        assert!(state.identity().unwrap().is_none() && state.key().unwrap().is_none());
        let key = PrivateKey::generate().unwrap();
        state.save_key(&key).unwrap();
        assert!(state.identity().unwrap().is_none());
        let identity = Identity::new(&state.key().unwrap().unwrap(), &issued_for(&key)).unwrap();
        state.save(&identity).unwrap();
        let found = state.identity().unwrap().unwrap();
        assert_eq!(found.certificate_pem(), identity.certificate_pem());
        assert_eq!(found.key_pem(), key.to_pem().as_str());
        assert!(found.signer().unwrap().sign("POST", "/", b"", Timestamp::from_unix_ms(0)).is_ok());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(state.path()), 0o700);
        for file in fs::read_dir(state.path()).unwrap() {
            assert_eq!(mode(&file.unwrap().path()), 0o600);
        }
    }

    #[test]
    fn a_certificate_for_another_key_is_refused() {
        let (mine, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        assert!(matches!(Identity::new(&mine, &issued_for(&other)), Err(IdentityError::Issued(_))));
    }

    #[test]
    fn renewal_is_due_after_two_thirds() {
        let key = PrivateKey::generate().unwrap();
        let identity = Identity::new(&key, &issued_for(&key)).unwrap();
        assert!(!identity.is_due_for_renewal(Timestamp::from_unix_ms(1_599_999_000)));
        assert!(identity.is_due_for_renewal(Timestamp::from_unix_ms(1_600_000_000)));
        assert_eq!(identity.not_after(), Timestamp::from_unix_ms(1_900_000_000));
    }

    #[test]
    fn damage_is_named_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::new(directory.path());
        state.write(KEY_FILE, b"-----BEGIN NONSENSE-----").unwrap();
        let error = state.key().err().unwrap().to_string();
        assert!(error.contains("key.pem is damaged"), "{error}");
    }

    #[test]
    fn signing_requests_are_signed_by_their_key_and_name_nobody() {
        let key = PrivateKey::generate().unwrap();
        let request = rcgen::CertificateSigningRequestParams::from_pem(&key.signing_request().unwrap()).unwrap();
        assert!(request.params.subject_alt_names.is_empty());
        assert_eq!(request.params.distinguished_name.iter().count(), 0);
    }
}
