//! The certificate with which the endpoint proves its role. Its key exists in memory only.

use std::sync::{Arc, Mutex, PoisonError};

use rehost_control::authority::{Authority, AuthorityError, Subject};
use rehost_model::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::TLS13;
use tokio_rustls::TlsAcceptor;

/// How long a certificate is valid.
const VALIDITY_DAYS: u32 = 90;

/// After this time a new one takes its place.
const RENEW_AFTER_MS: u64 = 30 * DAY_MS;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Why the endpoint has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the certificate of the endpoint cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the certificate of the endpoint cannot be read: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
}

/// Certificate and key of the endpoint, replaced in time.
pub(super) struct ControlIdentity {
    authority: Arc<Authority>,
    current: Mutex<(Timestamp, TlsAcceptor)>,
}

impl ControlIdentity {
    pub(super) fn new(authority: Arc<Authority>, now: Timestamp) -> Result<Self, IdentityError> {
        let current = Mutex::new((now, issue(&authority, now)?));
        Ok(Self { authority, current })
    }

    /// What accepts TLS connections at this time.
    pub(super) fn acceptor(&self, now: Timestamp) -> Result<TlsAcceptor, IdentityError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now.ms_since(current.0) > RENEW_AFTER_MS {
            *current = (now, issue(&self.authority, now)?);
        }
        Ok(current.1.clone())
    }
}

fn issue(authority: &Authority, now: Timestamp) -> Result<TlsAcceptor, IdentityError> {
    // A day of tolerance for sources whose clock is slow: they are told so by the API, which they must reach for that.
    let not_before = Timestamp::from_unix_ms(now.unix_ms().saturating_sub_unsigned(DAY_MS));
    let (issued, key) = authority.issue_with_key(&Subject::Control, not_before, VALIDITY_DAYS)?;
    let leaf = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes())?;
    // With the authority in the chain, a client that knows no more than its fingerprint can pin it.
    let chain = vec![leaf, CertificateDer::from(authority.certificate_der().to_vec())];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_vec()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
