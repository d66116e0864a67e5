//! Who a peer is, by its certificate. The chain was checked by TLS before anything here is asked.

use rehost_model::{
    ServerId, VolumeId,
    region::{SERVER_URI, VOLUME_URI},
};
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// A certificate that does not say who its holder is.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IdentityError {
    /// Not X.509.
    #[error("it is no X.509 certificate: {0}")]
    Malformed(String),
    /// No URI names a server, or more than one does.
    #[error("it names {0} source servers instead of one: is it an agent's certificate?")]
    Servers(usize),
    /// A URI of ours holds no identifier.
    #[error("it holds an invalid identifier: {0}")]
    Identifier(String),
}

/// A source server, and the volumes that it may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The server.
    pub server: ServerId,
    /// Its volumes.
    pub volumes: Vec<VolumeId>,
}

impl PeerIdentity {
    /// Reads the identity from the URIs among the certificate's alternative names.
    ///
    /// # Errors
    /// [`IdentityError`] if they do not name exactly one server.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let uris = uris(certificate)?;
        let servers = parsed::<ServerId>(&uris, SERVER_URI)?;
        let volumes = parsed::<VolumeId>(&uris, VOLUME_URI)?;
        match <[ServerId; 1]>::try_from(servers) {
            Ok([server]) => Ok(Self { server, volumes }),
            Err(servers) => Err(IdentityError::Servers(servers.len())),
        }
    }

    /// Whether the server may write this volume.
    #[must_use]
    pub fn may_write(&self, volume: &VolumeId) -> bool {
        self.volumes.contains(volume)
    }
}

fn uris(certificate: &CertificateDer<'_>) -> Result<Vec<String>, IdentityError> {
    let malformed = |e: &dyn ToString| IdentityError::Malformed(e.to_string());
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|e| malformed(&e))?;
    let names = parsed.subject_alternative_name().map_err(|e| malformed(&e))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    Ok(names.iter().filter_map(uri).collect())
}

fn parsed<T: std::str::FromStr>(uris: &[String], prefix: &str) -> Result<Vec<T>, IdentityError>
where
    T::Err: ToString,
{
    let suffixes = uris.iter().filter_map(|uri| uri.strip_prefix(prefix));
    suffixes.map(|id| id.parse().map_err(|e: T::Err| IdentityError::Identifier(e.to_string()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn certificate(uris: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_server_and_its_volumes_are_read() {
        let (server, volume) = (ServerId::generate(), VolumeId::generate());
        let der = certificate(&[
            &format!("{SERVER_URI}{server}"),
            &format!("{VOLUME_URI}{volume}"),
            "https://example.invalid/",
        ]);
        let identity = PeerIdentity::from_certificate(&der).unwrap();
        assert_eq!(identity.server, server);
        assert!(identity.may_write(&volume));
        assert!(!identity.may_write(&VolumeId::generate()));
    }

    #[test]
    fn no_server_two_servers_and_nonsense_are_refused() {
        let server = || format!("{SERVER_URI}{}", ServerId::generate());
        let none = certificate(&[]);
        assert_eq!(PeerIdentity::from_certificate(&none), Err(IdentityError::Servers(0)));
        let two = certificate(&[&server(), &server()]);
        assert_eq!(PeerIdentity::from_certificate(&two), Err(IdentityError::Servers(2)));
        let nonsense = certificate(&["rehost:server:../../x"]);
        assert!(matches!(PeerIdentity::from_certificate(&nonsense), Err(IdentityError::Identifier(_))));
        let garbage = CertificateDer::from(vec![1, 2, 3]);
        assert!(matches!(PeerIdentity::from_certificate(&garbage), Err(IdentityError::Malformed(_))));
    }
}
