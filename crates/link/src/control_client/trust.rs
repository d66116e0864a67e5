//! Whom the client believes to be the control plane.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use rehost_model::region::CONTROL_ROLE;
use serde::{Deserialize, Serialize};

use super::{ControlError, Endpoint};

/// The SHA-256 of a private authority's certificate (DER), written `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CaFingerprint([u8; 32]);

impl CaFingerprint {
    /// The fingerprint of a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        Self(sha256)
    }
}

impl fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected `sha256:` and 64 hexadecimal digits, as `rehost init` shows it")]
pub struct InvalidFingerprint;

impl FromStr for CaFingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let digits = text.trim().strip_prefix("sha256:").ok_or(InvalidFingerprint)?;
        let mut sha256 = [0; 32];
        hex::decode_to_slice(digits, &mut sha256).map_err(|_| InvalidFingerprint)?;
        Ok(Self(sha256))
    }
}

impl From<CaFingerprint> for String {
    fn from(fingerprint: CaFingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for CaFingerprint {
    type Error = InvalidFingerprint;

    fn try_from(text: String) -> Result<Self, InvalidFingerprint> {
        text.parse()
    }
}

/// How the control plane proves itself.
#[derive(Debug, Clone)]
pub enum Trust {
    /// By a chain that ends in the authority with this fingerprint, and its role or its host name: for the first contact, and for an
    /// endpoint that a private authority of its own stands for.
    Fingerprint(CaFingerprint),
    /// By a certificate of this authority, and its role: after enrolment.
    Authority(CertificateDer<'static>),
    /// By a certificate for its host name from a public authority.
    PublicRoots,
}

impl Trust {
    /// The trust once the region's authority `ca` is known. `pinned` is what the endpoint was known by at first; `None` stands for the
    /// public authorities.
    #[must_use]
    pub fn after_enrolment(pinned: Option<CaFingerprint>, ca: &CertificateDer<'static>) -> Self {
        match pinned {
            None => Self::PublicRoots,
            Some(pinned) if pinned == CaFingerprint::of(ca) => Self::Authority(ca.clone()),
            Some(pinned) => Self::Fingerprint(pinned),
        }
    }

    pub(super) fn server_name(&self, endpoint: &Endpoint) -> Result<ServerName<'static>, ControlError> {
        let name = match self {
            Self::PublicRoots | Self::Fingerprint(_) => endpoint.host(),
            Self::Authority(_) => CONTROL_ROLE,
        };
        ServerName::try_from(name.to_owned()).map_err(|_| ControlError::Endpoint {
            text: name.to_owned(),
            reason: "it is neither a host name nor an address",
        })
    }

    pub(super) fn client_config(&self) -> Result<ClientConfig, ControlError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let failed = |e: rustls::Error| ControlError::Request(e.to_string());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?;
        let config = match self {
            Self::Fingerprint(fingerprint) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(PinnedAuthority::new(*fingerprint, &provider)))
                .with_no_client_auth(),
            Self::Authority(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone()).map_err(failed)?;
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            Self::PublicRoots => {
                let roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
                builder.with_root_certificates(roots).with_no_client_auth()
            }
        };
        Ok(config)
    }
}

/// Accepts a chain whose last certificate has the pinned fingerprint and from which the first one descends.
#[derive(Debug)]
struct PinnedAuthority {
    fingerprint: CaFingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The chain does not end in the pinned authority.
#[derive(Debug, thiserror::Error)]
#[error(
    "its authority has the fingerprint {found}, not the {pinned} of --ca-fingerprint; compare with what `rehost init` showed: \
     if they differ, this is another control plane, or somebody is in between"
)]
struct OtherAuthority {
    found: CaFingerprint,
    pinned: CaFingerprint,
}

impl PinnedAuthority {
    fn new(fingerprint: CaFingerprint, provider: &CryptoProvider) -> Self {
        Self { fingerprint, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (ca, between) = intermediates.split_last().unwrap_or((end_entity, &[]));
        let found = CaFingerprint::of(ca);
        if found != self.fingerprint {
            let other = OtherAuthority { found, pinned: self.fingerprint };
            return Err(CertificateError::Other(OtherError(Arc::new(other))).into());
        }
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let certificate = rustls::server::ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &roots,
            between,
            now,
            self.algorithms.all,
        )?;
        // The region's own authority names the role, another one the host. Neither gives such a name to agents or replicators.
        let role = ServerName::try_from(CONTROL_ROLE).map_err(|e| rustls::Error::General(e.to_string()))?;
        let by_role = rustls::client::verify_server_name(&certificate, &role);
        by_role.or_else(|_| rustls::client::verify_server_name(&certificate, server_name))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Turns a failed handshake into what the user has to do about it.
pub(super) fn handshake_error(address: String, error: &std::io::Error) -> ControlError {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(problem)) => {
            ControlError::Untrusted { address, reason: certificate_problem(problem) }
        }
        Some(rustls::Error::InvalidMessage(_)) => ControlError::NotTls { address },
        Some(other) => ControlError::Untrusted { address, reason: other.to_string() },
        None => ControlError::Broken { address, reason: format!("during the TLS handshake: {error}") },
    }
}

fn certificate_problem(problem: &CertificateError) -> String {
    use CertificateError as E;
    let clock = |what: &str, bound: &UnixTime, now: &UnixTime| {
        let apart = Duration::from_secs(bound.as_secs().abs_diff(now.as_secs()));
        format!(
            "its certificate {what} by this machine's clock ({} s apart); set this machine's clock, for example with NTP",
            apart.as_secs()
        )
    };
    match problem {
        E::Other(other) => other.0.to_string(),
        E::NotValidYetContext { time, not_before } => clock("is not valid yet", not_before, time),
        E::ExpiredContext { time, not_after } => clock("has expired", not_after, time),
        E::UnknownIssuer => {
            "its certificate is not from the expected authority; for a region with a private authority give \
             --ca-fingerprint as `rehost init` showed it"
                .to_owned()
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            format!("its certificate is not a control plane's ({problem}); check --endpoint")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_stays_where_the_endpoint_has_another_authority_than_the_region() {
        let (ca, other) = (CertificateDer::from(vec![1, 2, 3]), CertificateDer::from(vec![4]));
        let pin = CaFingerprint::of(&ca);
        assert!(matches!(Trust::after_enrolment(Some(pin), &ca), Trust::Authority(own) if own == ca));
        assert!(matches!(Trust::after_enrolment(Some(pin), &other), Trust::Fingerprint(kept) if kept == pin));
        assert!(matches!(Trust::after_enrolment(None, &ca), Trust::PublicRoots));
    }

    #[test]
    fn fingerprints_are_read_as_they_are_written() {
        let fingerprint = CaFingerprint::of(&CertificateDer::from(vec![1, 2, 3]));
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        for text in ["", "sha256:", "sha256:00", "00", "sha1:00", &format!("sha256:{}", "0g".repeat(32))] {
            assert_eq!(text.parse::<CaFingerprint>(), Err(InvalidFingerprint), "{text}");
        }
    }
}
