//! What both sides insist on, as rustls configurations.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};

use super::TransportError;

/// Own certificate and key, and the private CA that peers must come from.
pub struct TlsIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ca: CertificateDer<'static>,
}

impl TlsIdentity {
    /// Reads the certificate (leaf first), its key and the CA's certificate from PEM texts.
    ///
    /// # Errors
    /// [`TransportError::Material`] names the part that cannot be read.
    pub fn from_pem(certificate: &str, key: &str, ca: &str) -> Result<Self, TransportError> {
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| TransportError::material("the certificate", e))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|e| TransportError::material("the private key", e))?;
        let ca = CertificateDer::from_pem_slice(ca.as_bytes())
            .map_err(|e| TransportError::material("the CA's certificate", e))?;
        Ok(Self { chain, key, ca })
    }

    fn roots(&self) -> Result<RootCertStore, TransportError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).map_err(|e| TransportError::material("the CA's certificate", e))?;
        Ok(roots)
    }
}

/// The agent's side of TLS. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) role: ServerName<'static>,
}

impl ClientTls {
    /// A client that speaks only to the holder of `role`, such as [`rehost_model::region::REPLICATOR_ROLE`].
    ///
    /// # Errors
    /// [`TransportError::Material`] or [`TransportError::Tls`] if key and certificates do not fit together.
    pub fn new(identity: TlsIdentity, role: &str) -> Result<Self, TransportError> {
        Self::with_provider(provider(), identity, role)
    }

    pub(super) fn with_provider(
        provider: Arc<CryptoProvider>,
        identity: TlsIdentity,
        role: &str,
    ) -> Result<Self, TransportError> {
        let roots = identity.roots()?;
        let role = ServerName::try_from(role.to_owned()).map_err(|e| TransportError::material("the role's name", e))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(identity.chain, identity.key)?;
        // A resumed connection would carry an older certificate's rights.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self { config: Arc::new(config), role })
    }
}

/// The replicator's side of TLS. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls {
    pub(super) config: Arc<ServerConfig>,
}

impl ServerTls {
    /// A server that accepts only clients with a certificate of the private CA.
    ///
    /// # Errors
    /// [`TransportError::Material`] or [`TransportError::Tls`] if key and certificates do not fit together.
    pub fn new(identity: TlsIdentity) -> Result<Self, TransportError> {
        let provider = provider();
        let roots = Arc::new(identity.roots()?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| TransportError::material("the CA's certificate", e))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain, identity.key)?;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config) })
    }
}

/// AES-256-GCM and nothing else, so that no negotiation can end elsewhere.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
    Arc::new(provider)
}
