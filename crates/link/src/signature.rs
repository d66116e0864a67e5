//! Requests signed with a certificate's key: the header scheme `REHOST-X509`.
//!
//! Agents and replicators prove who they are with their certificate. Mutual TLS alone would tie that to whoever ends the TLS
//! connection, which is not the control plane when it runs behind an HTTP API; a signature inside the request is carried
//! through. The header is
//!
//! ```text
//! authorization: REHOST-X509 certificate=<base64 of the DER>, date=<RFC 3339>, signature=<base64>
//! ```
//!
//! and the signature is ECDSA P-256 with SHA-256 (ASN.1) over these lines, each ended by `\n` but the last:
//!
//! ```text
//! REHOST-X509-1
//! POST
//! /rehost/v1/agent/poll
//! <SHA-256 of the body, hex>
//! <SHA-256 of the certificate's DER, hex>
//! <date, as in the header>
//! ```

use std::time::Duration;

use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rehost_model::Timestamp;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter};

/// The name of the scheme in the `authorization` header.
pub const SCHEME: &str = "REHOST-X509";

/// How far the clocks of the two sides may be apart, unless the verifier says otherwise.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);

/// The first line of what is signed: changes when the canonical text does.
const CANONICAL_VERSION: &str = "REHOST-X509-1";

/// A certificate with its chain checked takes 1 KiB or so; far more is no header of ours.
const MAX_HEADER_BYTES: usize = 32 * 1024;

/// The algorithms that the private CA and its certificates use.
const ALGORITHMS: &[&dyn rustls_pki_types::SignatureVerificationAlgorithm] =
    &[webpki::aws_lc_rs::ECDSA_P256_SHA256, webpki::aws_lc_rs::ECDSA_P384_SHA384];

/// A certificate and its key, ready to sign requests.
pub struct RequestSigner {
    certificate_der: Vec<u8>,
    key: EcdsaKeyPair,
}

impl RequestSigner {
    /// From a certificate (DER) and its P-256 key (PKCS #8, DER).
    ///
    /// # Errors
    /// [`SignatureError::UnusableKey`] when the key is not a P-256 key in PKCS #8.
    pub fn new(certificate_der: &[u8], key_pkcs8: &[u8]) -> Result<Self, SignatureError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key_pkcs8)
            .map_err(|_| SignatureError::UnusableKey)?;
        Ok(Self { certificate_der: certificate_der.to_vec(), key })
    }

    /// The value of the `authorization` header for a request.
    ///
    /// # Errors
    /// [`SignatureError::UnusableKey`] when the key refuses to sign.
    pub fn sign(&self, method: &str, path: &str, body: &[u8], now: Timestamp) -> Result<String, SignatureError> {
        let date = now.to_string();
        let text = canonical_text(method, path, body, &self.certificate_der, &date);
        let signature =
            self.key.sign(&SystemRandom::new(), text.as_bytes()).map_err(|_| SignatureError::UnusableKey)?;
        let (certificate, signature) = (BASE64.encode(&self.certificate_der), BASE64.encode(signature.as_ref()));
        Ok(format!("{SCHEME} certificate={certificate}, date={date}, signature={signature}"))
    }
}

/// What a certificate says of its holder, after its chain and the signature were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCertificate {
    /// The serial number as lower-case hex, as [`serial_hex`] writes it.
    pub serial_hex: String,
    /// URI subject alternative names, such as `rehost:server:s-…`.
    pub uri_sans: Vec<String>,
    /// DNS subject alternative names.
    pub dns_sans: Vec<String>,
}

/// Why a signed request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the request is not signed with a certificate: it has no `{SCHEME}` authorization header")]
    Missing,
    #[error("the `{SCHEME}` authorization header cannot be read: {what}")]
    Malformed { what: &'static str },
    #[error(
        "the clock of the sender is {} {} that of the control plane ({}); set the sender's clock (for example with NTP) and \
         try again", seconds(*difference_seconds), if *difference_seconds < 0 { "behind" } else { "ahead of" }, now
    )]
    ClockSkew {
        /// The sender's clock minus the verifier's, in seconds.
        difference_seconds: i64,
        now: Timestamp,
    },
    #[error("the certificate is not valid any more (it ended at {not_after}); enrol again")]
    Expired { not_after: Timestamp },
    #[error("the certificate is not valid yet (it begins at {not_before}); check the clocks")]
    NotYetValid { not_before: Timestamp },
    #[error("the certificate was not issued by this region's authority ({reason}); enrol again with this region")]
    Untrusted { reason: String },
    #[error("the signature does not fit the request")]
    Mismatch,
    #[error("the key is not a P-256 key in PKCS #8")]
    UnusableKey,
}

fn seconds(difference: i64) -> String {
    format!("{} s", difference.unsigned_abs())
}

/// Checks the `authorization` header of a request against the region's authority.
///
/// `path` is the path of the request without a query; `ca_der` the authority's certificate; `max_skew` how far the date of the
/// signature may be from `now`, which bounds how long a recorded request can be replayed.
///
/// # Errors
/// A [`SignatureError`] that says which part is wrong.
pub fn verify(
    header: &str,
    method: &str,
    path: &str,
    body: &[u8],
    ca_der: &[u8],
    now: Timestamp,
    max_skew: Duration,
) -> Result<VerifiedCertificate, SignatureError> {
    let parts = HeaderParts::parse(header)?;
    check_clock(parts.date, now, max_skew)?;
    let certificate_der = CertificateDer::from(parts.certificate_der.as_slice());
    let certificate = trusted_certificate(&certificate_der, ca_der, now)?;
    let text = canonical_text(method, path, body, &parts.certificate_der, parts.date_text);
    certificate
        .verify_signature(webpki::aws_lc_rs::ECDSA_P256_SHA256, text.as_bytes(), &parts.signature)
        .map_err(|_| SignatureError::Mismatch)?;
    Ok(VerifiedCertificate {
        serial_hex: serial_hex(certificate.serial()),
        uri_sans: certificate.valid_uri_names().map(str::to_owned).collect(),
        dns_sans: certificate.valid_dns_names().map(str::to_owned).collect(),
    })
}

/// A serial number (big-endian bytes) as lower-case hex, without the zero bytes that DER may put in front.
#[must_use]
pub fn serial_hex(serial: &[u8]) -> String {
    let zeros = serial.iter().take_while(|b| **b == 0).count();
    hex::encode(serial.get(zeros..).unwrap_or_default())
}

struct HeaderParts<'a> {
    certificate_der: Vec<u8>,
    date: Timestamp,
    date_text: &'a str,
    signature: Vec<u8>,
}

impl<'a> HeaderParts<'a> {
    fn parse(header: &'a str) -> Result<Self, SignatureError> {
        let malformed = |what| SignatureError::Malformed { what };
        if header.len() > MAX_HEADER_BYTES {
            return Err(malformed("it is longer than 32 KiB"));
        }
        let fields = header.strip_prefix(SCHEME).and_then(|r| r.strip_prefix(' ')).ok_or(SignatureError::Missing)?;
        let field = |name: &str| {
            let of_name = |part: &'a str| part.trim().strip_prefix(name)?.strip_prefix('=');
            fields.split(',').find_map(of_name)
        };
        let base64 = |text: &str| BASE64.decode(text).ok();
        let date_text = field("date").ok_or(malformed("`date` is missing"))?;
        Ok(Self {
            certificate_der: field("certificate").and_then(base64).ok_or(malformed("`certificate` is not base64"))?,
            date: date_text.parse().map_err(|_| malformed("`date` is not an RFC 3339 time"))?,
            date_text,
            signature: field("signature").and_then(base64).ok_or(malformed("`signature` is not base64"))?,
        })
    }
}

fn check_clock(date: Timestamp, now: Timestamp, max_skew: Duration) -> Result<(), SignatureError> {
    let difference_ms = date.unix_ms().saturating_sub(now.unix_ms());
    if u128::from(difference_ms.unsigned_abs()) > max_skew.as_millis() {
        return Err(SignatureError::ClockSkew { difference_seconds: difference_ms / 1000, now });
    }
    Ok(())
}

fn trusted_certificate<'a>(
    der: &'a CertificateDer<'a>,
    ca_der: &[u8],
    now: Timestamp,
) -> Result<EndEntityCert<'a>, SignatureError> {
    let untrusted = |e: webpki::Error| SignatureError::Untrusted { reason: e.to_string() };
    let ca = CertificateDer::from(ca_der);
    let anchor = webpki::anchor_from_trusted_cert(&ca).map_err(untrusted)?;
    let certificate = EndEntityCert::try_from(der).map_err(untrusted)?;
    let anchors = [anchor];
    certificate.verify_for_usage(ALGORITHMS, &anchors, &[], unix_time(now), AgentOrReplicator, None, None).map_err(
        |e| match e {
            webpki::Error::CertExpired { not_after, .. } => SignatureError::Expired { not_after: timestamp(not_after) },
            webpki::Error::CertNotValidYet { not_before, .. } => {
                SignatureError::NotYetValid { not_before: timestamp(not_before) }
            }
            other => untrusted(other),
        },
    )?;
    Ok(certificate)
}

/// Certificates for TLS clients (agents) and TLS servers (replicators) both sign requests; any other purpose is refused.
struct AgentOrReplicator;

impl ExtendedKeyUsageValidator for AgentOrReplicator {
    fn validate(&self, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let (server, client) = (KeyPurposeId::new(EKU_SERVER_AUTH), KeyPurposeId::new(EKU_CLIENT_AUTH));
        for usage in usages {
            let usage = usage?;
            if usage == server || usage == client {
                return Ok(());
            }
        }
        Err(webpki::Error::EmptyEkuExtension)
    }
}

/// id-kp-serverAuth, 1.3.6.1.5.5.7.3.1, and id-kp-clientAuth, 1.3.6.1.5.5.7.3.2.
const EKU_SERVER_AUTH: &[u8] = &[43, 6, 1, 5, 5, 7, 3, 1];
const EKU_CLIENT_AUTH: &[u8] = &[43, 6, 1, 5, 5, 7, 3, 2];

fn unix_time(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(at.unix_ms()).unwrap_or(0)))
}

fn timestamp(at: UnixTime) -> Timestamp {
    Timestamp::from_unix_ms(i64::try_from(at.as_secs()).unwrap_or(i64::MAX).saturating_mul(1000))
}

fn canonical_text(method: &str, path: &str, body: &[u8], certificate_der: &[u8], date: &str) -> String {
    let sha256 = |bytes: &[u8]| hex::encode(digest::digest(&digest::SHA256, bytes));
    let (body, certificate) = (sha256(body), sha256(certificate_der));
    format!("{CANONICAL_VERSION}\n{method}\n{path}\n{body}\n{certificate}\n{date}")
}

#[cfg(test)]
mod tests;
