use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

const NOW_MS: i64 = 1_900_000_000_000;

fn csr() -> (KeyPair, String) {
    let key = new_key().unwrap();
    let request = CertificateParams::new(vec!["mallory.example".to_owned()]).unwrap().serialize_request(&key).unwrap();
    (key, request.pem().unwrap())
}

fn der(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
}

fn issue(authority: &Authority, subject: &Subject) -> Vec<u8> {
    let (_, request) = csr();
    der(&authority.issue(&request, subject, Timestamp::from_unix_ms(NOW_MS), 30).unwrap().certificate_pem)
}

fn alternative_names(certificate: &[u8]) -> Vec<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => format!("URI:{uri}"),
        GeneralName::DNSName(dns) => format!("DNS:{dns}"),
        other => panic!("{other}"),
    };
    names.value.general_names.iter().map(text).collect()
}

fn verifies(authority: &Authority, certificate: &[u8], at_ms: i64, usage: KeyUsage) -> bool {
    let ca = CertificateDer::from(authority.certificate_der());
    let anchors = [anchor_from_trusted_cert(&ca).unwrap()];
    let leaf = CertificateDer::from(certificate);
    let end_entity = EndEntityCert::try_from(&leaf).unwrap();
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_millis(u64::try_from(at_ms).unwrap()));
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    end_entity.verify_for_usage(algorithms, &anchors, &[], time, usage, None, None).is_ok()
}

#[test]
fn subjects_get_their_names_and_nothing_from_the_request() {
    let authority = Authority::generate().unwrap();
    let (server, volume, id) = (ServerId::generate(), VolumeId::generate(), ReplicatorId::generate());
    let agent = issue(&authority, &Subject::Agent { server: server.clone(), volumes: vec![volume.clone()] });
    assert_eq!(
        alternative_names(&agent),
        [format!("URI:rehost:server:{server}"), format!("URI:rehost:volume:{volume}")]
    );
    let (_, parsed) = X509Certificate::from_der(&agent).unwrap();
    assert_eq!(parsed.subject().to_string(), format!("CN={server}"));
    let replicator = issue(&authority, &Subject::Replicator { id: id.clone() });
    assert_eq!(
        alternative_names(&replicator),
        [format!("URI:rehost:replicator:{id}"), "DNS:replicator.rehost.internal".to_owned()]
    );
    assert_eq!(alternative_names(&issue(&authority, &Subject::Control)), ["DNS:control.rehost.internal"]);
}

#[test]
fn chains_verify_for_their_usage_within_their_validity_and_under_their_own_authority() {
    let (authority, other) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let agent = issue(&authority, &Subject::Agent { server: ServerId::generate(), volumes: vec![] });
    let client = KeyUsage::client_auth;
    assert!(verifies(&authority, &agent, NOW_MS + 1000, client()));
    assert!(!verifies(&authority, &agent, NOW_MS + 1000, KeyUsage::server_auth()));
    assert!(verifies(&authority, &agent, NOW_MS - 300_000, client()));
    assert!(!verifies(&authority, &agent, NOW_MS - 660_000, client()));
    assert!(!verifies(&authority, &agent, NOW_MS + 31 * 86_400_000, client()));
    assert!(!verifies(&other, &agent, NOW_MS + 1000, client()));
    let replicator = issue(&authority, &Subject::Replicator { id: ReplicatorId::generate() });
    assert!(verifies(&authority, &replicator, NOW_MS, client()));
    assert!(verifies(&authority, &replicator, NOW_MS, KeyUsage::server_auth()));
    let control = issue(&authority, &Subject::Control);
    assert!(verifies(&authority, &control, NOW_MS, KeyUsage::server_auth()));
    let leaf = CertificateDer::from(control.as_slice());
    let role = ServerName::try_from(CONTROL_ROLE).unwrap();
    EndEntityCert::try_from(&leaf).unwrap().verify_is_valid_for_subject_name(&role).unwrap();
}

#[test]
fn serial_numbers_are_those_that_were_told() {
    let authority = Authority::generate().unwrap();
    for _ in 0..20 {
        let (_, request) = csr();
        let issued = authority.issue(&request, &Subject::Control, Timestamp::from_unix_ms(NOW_MS), 1).unwrap();
        let certificate = der(&issued.certificate_pem);
        let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
        assert_eq!(hex::encode(parsed.raw_serial()), issued.serial_hex);
        assert_eq!(issued.serial_hex.len(), 32);
    }
}

#[test]
fn the_certificate_is_of_the_requests_key() {
    let authority = Authority::generate().unwrap();
    let (key, request) = csr();
    let issued = authority.issue(&request, &Subject::Control, Timestamp::from_unix_ms(NOW_MS), 1).unwrap();
    let certificate = der(&issued.certificate_pem);
    let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
    assert_eq!(&*parsed.public_key().subject_public_key.data, key.public_key_raw());
}

#[test]
fn bad_requests_are_refused() {
    let authority = Authority::generate().unwrap();
    let refused = |request: &str| {
        let answer = authority.issue(request, &Subject::Control, Timestamp::from_unix_ms(NOW_MS), 1);
        assert!(matches!(answer, Err(AuthorityError::BadRequest(_))), "{request}");
    };
    refused("");
    refused("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n");
    refused(&"x".repeat(MAX_CSR_BYTES + 1));
    refused(&request_of_another_curve());
    refused(&request_with_a_changed_signature());
}

fn request_of_another_curve() -> String {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

fn request_with_a_changed_signature() -> String {
    use base64::Engine as _;
    let key = new_key().unwrap();
    let mut bytes = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let body = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
}

#[test]
fn a_key_made_here_belongs_to_its_certificate() {
    let authority = Authority::generate().unwrap();
    let (issued, key) = authority.issue_with_key(&Subject::Control, Timestamp::from_unix_ms(NOW_MS), 1).unwrap();
    let key = KeyPair::try_from(key.as_slice()).unwrap();
    let certificate = der(&issued.certificate_pem);
    let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
    assert_eq!(&*parsed.public_key().subject_public_key.data, key.public_key_raw());
}

#[test]
fn the_fingerprint_is_the_hash_of_the_der() {
    let authority = Authority::generate().unwrap();
    let digest = Sha256::digest(der(authority.certificate_pem()));
    assert_eq!(authority.fingerprint(), format!("sha256:{}", hex::encode(digest)));
    assert_eq!(fingerprint_of(authority.certificate_pem()).unwrap(), authority.fingerprint());
}

#[derive(Default)]
struct Memory(Mutex<HashMap<String, Vec<u8>>>);

#[async_trait]
impl Objects for Memory {
    async fn put(&self, key: &str, bytes: Vec<u8>) -> PortResult<()> {
        self.0.lock().unwrap().insert(key.to_owned(), bytes);
        Ok(())
    }
    async fn get(&self, key: &str) -> PortResult<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }
    async fn delete(&self, key: &str) -> PortResult<()> {
        self.0.lock().unwrap().remove(key);
        Ok(())
    }
}

struct Mask;

#[async_trait]
impl Keys for Mask {
    async fn seal(&self, plain: &[u8], _context: &str) -> PortResult<Vec<u8>> {
        Ok(plain.iter().map(|b| b ^ 0x5a).collect())
    }
    async fn open(&self, sealed: &[u8], context: &str) -> PortResult<Vec<u8>> {
        self.seal(sealed, context).await
    }
}

#[tokio::test]
async fn the_authority_is_made_once_and_found_again() {
    let objects = Memory::default();
    let made = load_or_create(&objects, &Mask).await.unwrap();
    let found = load_or_create(&objects, &Mask).await.unwrap();
    assert_eq!(made.fingerprint(), found.fingerprint());
    let agent = issue(&found, &Subject::Agent { server: ServerId::generate(), volumes: vec![] });
    assert!(verifies(&made, &agent, NOW_MS, KeyUsage::client_auth()));
    let sealed = objects.get(KEY_OBJECT).await.unwrap().unwrap();
    assert!(!String::from_utf8_lossy(&sealed).contains("PRIVATE KEY"));
}

#[tokio::test]
async fn a_creation_that_was_cut_off_is_done_again_and_a_lost_key_is_an_error() {
    let objects = Memory::default();
    load_or_create(&objects, &Mask).await.unwrap();
    objects.delete(CERTIFICATE_OBJECT).await.unwrap();
    load_or_create(&objects, &Mask).await.unwrap();
    objects.delete(KEY_OBJECT).await.unwrap();
    let error = load_or_create(&objects, &Mask).await.err().unwrap();
    assert!(error.message.contains(KEY_OBJECT), "{error}");
}

#[tokio::test]
async fn a_key_of_another_authority_is_an_error() {
    let (objects, other) = (Memory::default(), Memory::default());
    load_or_create(&objects, &Mask).await.unwrap();
    load_or_create(&other, &Mask).await.unwrap();
    objects.put(KEY_OBJECT, other.get(KEY_OBJECT).await.unwrap().unwrap()).await.unwrap();
    assert!(load_or_create(&objects, &Mask).await.is_err());
}
