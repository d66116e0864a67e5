//! The region's private certificate authority: who may speak as a source server, a replication server or the control plane.
//!
//! Every certificate is made from the key of a signing request and from what the control plane knows: names, extensions and
//! validity in the request are ignored. Keys are P-256. Clients pin the authority by its fingerprint,
//! `sha256:` and the hexadecimal SHA-256 of the certificate's DER.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKey,
    PublicKeyData as _, SanType, SerialNumber,
};
use rehost_model::region::{CONTROL_ROLE, REPLICATOR_ROLE, REPLICATOR_URI, SERVER_URI, VOLUME_URI};
use rehost_model::{ReplicatorId, ServerId, Timestamp, VolumeId};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::ports::{Keys, Objects, PortResult};
use crate::{PortError, PortErrorKind};

/// Where the authority's certificate stands among the region's objects; PEM.
pub const CERTIFICATE_OBJECT: &str = "ca/certificate.pem";

/// Where the authority's sealed key stands among the region's objects.
pub const KEY_OBJECT: &str = "ca/key.sealed";

/// The context under which the key is sealed.
const KEY_CONTEXT: &str = "rehost:ca-key";

/// How long the authority itself is valid.
const CA_VALIDITY: Duration = Duration::days(3650);

/// Certificates begin this much before their time, so that a peer whose clock is somewhat slow accepts a fresh one.
const CLOCK_TOLERANCE: Duration = Duration::minutes(10);

/// A signing request of a P-256 key has under 1 KiB; nothing larger is parsed.
const MAX_CSR_BYTES: usize = 8 * 1024;

/// A point of P-256 as it stands in a key: one byte that says it is not compressed, and two coordinates.
const UNCOMPRESSED_P256_BYTES: usize = 65;

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The signing request of a client will never do as it is.
    #[error("the certificate signing request is not usable: {0}; send a PKCS#10 request, PEM, of an ECDSA P-256 key")]
    BadRequest(String),
    /// The authority itself is damaged.
    #[error("the region's certificate authority is not usable: {0}; restore {CERTIFICATE_OBJECT} and {KEY_OBJECT}")]
    Broken(String),
}

impl From<AuthorityError> for PortError {
    fn from(error: AuthorityError) -> Self {
        Self::invalid(error)
    }
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A source server; it may write these volumes.
    Agent { server: ServerId, volumes: Vec<VolumeId> },
    /// A replication server.
    Replicator { id: ReplicatorId },
    /// The control plane's own endpoint.
    Control,
}

/// A certificate that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub certificate_pem: String,
    /// Lower-case hexadecimal, 32 digits.
    pub serial_hex: String,
}

/// The certificate authority of one region.
pub struct Authority {
    certificate_pem: String,
    certificate_der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority, valid for ten years.
    ///
    /// # Errors
    /// [`AuthorityError::Broken`] when no key can be made.
    pub fn generate() -> Result<Self, AuthorityError> {
        let key = new_key()?;
        let serial = random_serial()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("rehost private CA {}", &hex::encode(serial)[..8]));
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // A source whose clock is somewhat slow must not find the authority to be of tomorrow.
        params.not_before = OffsetDateTime::now_utc() - Duration::DAY;
        params.not_after = params.not_before + CA_VALIDITY;
        let certificate = params.self_signed(&key).map_err(broken)?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            certificate_der: certificate.der().to_vec(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The authority of this certificate and key, both PEM.
    ///
    /// # Errors
    /// [`AuthorityError::Broken`] when they cannot be read or do not belong together.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(key_pem).map_err(broken)?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).map_err(broken)?;
        let certificate = pem.parse_x509().map_err(broken)?;
        if *certificate.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(AuthorityError::Broken("the key does not belong to the certificate".to_owned()));
        }
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            certificate_der: pem.contents.clone(),
            issuer: Issuer::from_ca_cert_pem(certificate_pem, key).map_err(broken)?,
        })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's certificate, DER.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate_der
    }

    /// By which clients pin the authority: `sha256:` and 64 hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint_of_der(&self.certificate_der)
    }

    /// Makes a certificate for the key of a signing request (PEM), valid for `validity_days` from `not_before`
    /// (and for the ten minutes before it).
    ///
    /// # Errors
    /// [`AuthorityError::BadRequest`] when the request is malformed, not of a P-256 key or not signed by its own key.
    pub fn issue(
        &self,
        csr_pem: &str,
        subject: &Subject,
        not_before: Timestamp,
        validity_days: u32,
    ) -> Result<Issued, AuthorityError> {
        let key = requested_key(csr_pem)?;
        let serial = random_serial()?;
        let mut params = subject.certificate()?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = datetime(not_before).saturating_sub(CLOCK_TOLERANCE);
        params.not_after = datetime(not_before).saturating_add(Duration::days(i64::from(validity_days)));
        let certificate = params.signed_by(&key, &self.issuer).map_err(broken)?;
        Ok(Issued { certificate_pem: certificate.pem(), serial_hex: hex::encode(serial) })
    }

    /// As [`Self::issue`], for a key made here; gives the key too (PKCS#8, DER).
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn issue_with_key(
        &self,
        subject: &Subject,
        not_before: Timestamp,
        validity_days: u32,
    ) -> Result<(Issued, Zeroizing<Vec<u8>>), AuthorityError> {
        let key = new_key()?;
        let request = CertificateParams::default().serialize_request(&key).map_err(broken)?;
        let issued = self.issue(&request.pem().map_err(broken)?, subject, not_before, validity_days)?;
        Ok((issued, Zeroizing::new(key.serialize_der())))
    }

    fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }
}

/// The fingerprint of an authority's certificate (PEM), without its key.
///
/// # Errors
/// [`AuthorityError::Broken`] when it cannot be read.
pub fn fingerprint_of(certificate_pem: &str) -> Result<String, AuthorityError> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).map_err(broken)?;
    Ok(fingerprint_of_der(&pem.contents))
}

fn fingerprint_of_der(der: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(der)))
}

/// The region's authority: read from its objects, or made and written there the first time.
///
/// # Errors
/// Of the ports; `Invalid` when certificate and key are there but cannot be used, or when only the certificate is: an
/// authority that clients have pinned is never replaced silently.
pub async fn load_or_create(objects: &dyn Objects, keys: &dyn Keys) -> PortResult<Authority> {
    let Some(certificate) = objects.get(CERTIFICATE_OBJECT).await? else {
        return create(objects, keys).await;
    };
    let Some(sealed) = objects.get(KEY_OBJECT).await? else {
        return Err(AuthorityError::Broken(format!("{KEY_OBJECT} is missing")).into());
    };
    let key = Zeroizing::new(keys.open(&sealed, KEY_CONTEXT).await?);
    let (certificate, key) = (text(&certificate, CERTIFICATE_OBJECT)?, text(&key, KEY_OBJECT)?);
    Ok(Authority::from_pem(certificate, key)?)
}

async fn create(objects: &dyn Objects, keys: &dyn Keys) -> PortResult<Authority> {
    let authority = Authority::generate()?;
    let sealed = keys.seal(authority.key_pem().as_bytes(), KEY_CONTEXT).await?;
    // The certificate last: as long as it is missing nobody has seen this authority, and the next attempt may make another.
    objects.put(KEY_OBJECT, sealed).await?;
    objects.put(CERTIFICATE_OBJECT, authority.certificate_pem().as_bytes().to_vec()).await?;
    Ok(authority)
}

fn text<'a>(bytes: &'a [u8], what: &str) -> PortResult<&'a str> {
    std::str::from_utf8(bytes).map_err(|_| PortError::new(PortErrorKind::Invalid, format!("{what} is not PEM")))
}

impl Subject {
    fn certificate(&self) -> Result<CertificateParams, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&self.name());
        params.subject_alt_names = self.alternative_names()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = self.extended_usages();
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn name(&self) -> String {
        match self {
            Self::Agent { server, .. } => server.to_string(),
            Self::Replicator { id } => id.to_string(),
            Self::Control => CONTROL_ROLE.to_owned(),
        }
    }

    fn alternative_names(&self) -> Result<Vec<SanType>, AuthorityError> {
        match self {
            Self::Agent { server, volumes } => {
                let volumes = volumes.iter().map(|volume| uri(&format!("{VOLUME_URI}{volume}")));
                std::iter::once(uri(&format!("{SERVER_URI}{server}"))).chain(volumes).collect()
            }
            Self::Replicator { id } => Ok(vec![uri(&format!("{REPLICATOR_URI}{id}"))?, dns(REPLICATOR_ROLE)?]),
            Self::Control => Ok(vec![dns(CONTROL_ROLE)?]),
        }
    }

    fn extended_usages(&self) -> Vec<ExtendedKeyUsagePurpose> {
        match self {
            Self::Agent { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Self::Replicator { .. } => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Self::Control => vec![ExtendedKeyUsagePurpose::ServerAuth],
        }
    }
}

fn uri(text: &str) -> Result<SanType, AuthorityError> {
    text.try_into().map(SanType::URI).map_err(broken)
}

fn dns(text: &str) -> Result<SanType, AuthorityError> {
    text.try_into().map(SanType::DnsName).map_err(broken)
}

/// The public key of a signing request (the DER of its subject public key), whose signature by that key is checked.
///
/// # Errors
/// [`AuthorityError::BadRequest`] as for [`Authority::issue`].
pub fn requested_key_der(csr_pem: &str) -> Result<Vec<u8>, AuthorityError> {
    Ok(requested_key(csr_pem)?.der_bytes().to_vec())
}

fn requested_key(csr_pem: &str) -> Result<PublicKey, AuthorityError> {
    let refused = |why: String| AuthorityError::BadRequest(why);
    if csr_pem.len() > MAX_CSR_BYTES {
        return Err(refused(format!("it has {} bytes, more than {MAX_CSR_BYTES}", csr_pem.len())));
    }
    // Checks the request's signature by its own key as well: proof that the sender holds it.
    let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| refused(e.to_string()))?;
    // The algorithm is that of the signature; the curve shows in the length of the point.
    let of_p256 = request.public_key.der_bytes().len() == UNCOMPRESSED_P256_BYTES;
    if *request.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 || !of_p256 {
        return Err(refused("its key is not an ECDSA P-256 key".to_owned()));
    }
    Ok(request.public_key)
}

fn new_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(broken)
}

/// 16 random bytes; the first is neither 0 nor above 127, so that the DER integer has the same bytes.
fn random_serial() -> Result<[u8; 16], AuthorityError> {
    let mut serial = [0u8; 16];
    getrandom::fill(&mut serial).map_err(broken)?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(serial)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn datetime(time: Timestamp) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::milliseconds(time.unix_ms()))
}

fn broken(why: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Broken(why.to_string())
}

#[cfg(test)]
mod tests;
