use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType, SerialNumber,
};

use super::*;

const NOW_MS: i64 = 1_760_000_000_000;

fn now() -> Timestamp {
    Timestamp::from_unix_ms(NOW_MS)
}

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn generate() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn der(&self) -> &[u8] {
        self.0.der()
    }

    fn signer(&self, usage: ExtendedKeyUsagePurpose) -> RequestSigner {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["replicator.rehost.internal".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI("rehost:server:s-0123456789abcdef0".try_into().unwrap()));
        params.extended_key_usages = vec![usage];
        params.serial_number = Some(SerialNumber::from(vec![0x9a, 0x01]));
        params.not_before = day(-1);
        params.not_after = day(1);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        RequestSigner::new(certificate.der(), key.serialized_der()).unwrap()
    }
}

fn day(offset: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(NOW_MS / 1000 + offset * 86_400).unwrap()
}

fn signed() -> (Ca, String) {
    let ca = Ca::generate();
    let header = ca.signer(ExtendedKeyUsagePurpose::ClientAuth).sign("POST", "/a", b"body", now()).unwrap();
    (ca, header)
}

fn verify_at(ca: &Ca, header: &str, now: Timestamp) -> Result<VerifiedCertificate, SignatureError> {
    verify(header, "POST", "/a", b"body", ca.der(), now, MAX_CLOCK_SKEW)
}

#[test]
fn a_signed_request_is_accepted_and_names_its_sender() {
    let (ca, header) = signed();
    let verified = verify_at(&ca, &header, now()).unwrap();
    assert_eq!(verified.serial_hex, "9a01");
    assert_eq!(verified.uri_sans, ["rehost:server:s-0123456789abcdef0"]);
    assert_eq!(verified.dns_sans, ["replicator.rehost.internal"]);
}

#[test]
fn a_server_certificate_signs_as_well_and_one_for_another_purpose_does_not() {
    let ca = Ca::generate();
    let of = |usage| ca.signer(usage).sign("POST", "/a", b"body", now()).unwrap();
    assert!(verify_at(&ca, &of(ExtendedKeyUsagePurpose::ServerAuth), now()).is_ok());
    let refused = verify_at(&ca, &of(ExtendedKeyUsagePurpose::CodeSigning), now());
    assert!(matches!(refused, Err(SignatureError::Untrusted { .. })), "{refused:?}");
}

#[test]
fn another_method_path_body_or_date_does_not_fit_the_signature() {
    let (ca, header) = signed();
    let check = |header: &str, method, path, body: &[u8]| {
        verify(header, method, path, body, ca.der(), now(), MAX_CLOCK_SKEW).unwrap_err()
    };
    assert_eq!(check(&header, "PUT", "/a", b"body"), SignatureError::Mismatch);
    assert_eq!(check(&header, "POST", "/b", b"body"), SignatureError::Mismatch);
    assert_eq!(check(&header, "POST", "/a", b"Body"), SignatureError::Mismatch);
    let other_date = header.replace(&now().to_string(), &now().plus_ms(1).to_string());
    assert_eq!(check(&other_date, "POST", "/a", b"body"), SignatureError::Mismatch);
}

#[test]
fn another_certificate_of_the_same_authority_does_not_fit_the_signature() {
    let (ca, header) = signed();
    let other = ca.signer(ExtendedKeyUsagePurpose::ClientAuth).sign("POST", "/a", b"body", now()).unwrap();
    let signature = |h: &str| h.rsplit_once("signature=").unwrap().1.to_owned();
    let mixed = header.replace(&signature(&header), &signature(&other));
    assert_eq!(verify_at(&ca, &mixed, now()), Err(SignatureError::Mismatch));
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let (_, header) = signed();
    let refused = verify_at(&Ca::generate(), &header, now());
    assert!(matches!(refused, Err(SignatureError::Untrusted { .. })), "{refused:?}");
}

#[test]
fn clocks_that_are_apart_are_named_with_their_difference() {
    let (ca, header) = signed();
    let late = verify_at(&ca, &header, now().plus_ms(600_000)).unwrap_err();
    assert!(matches!(late, SignatureError::ClockSkew { difference_seconds: -600, .. }), "{late:?}");
    assert!(late.to_string().contains("600 s behind"), "{late}");
    assert!(verify_at(&ca, &header, now().plus_ms(299_000)).is_ok());
}

#[test]
fn an_expired_certificate_is_refused_with_its_end() {
    let ca = Ca::generate();
    let signer = ca.signer(ExtendedKeyUsagePurpose::ClientAuth);
    let later = now().plus_ms(2 * 86_400_000);
    let header = signer.sign("POST", "/a", b"body", later).unwrap();
    let expired = verify_at(&ca, &header, later).unwrap_err();
    assert_eq!(expired, SignatureError::Expired { not_after: now().plus_ms(86_400_000) });
}

#[test]
fn headers_that_are_none_of_ours_are_refused_without_a_panic() {
    let (ca, header) = signed();
    assert_eq!(verify_at(&ca, "AWS4-HMAC-SHA256 Credential=x", now()), Err(SignatureError::Missing));
    assert_eq!(verify_at(&ca, "", now()), Err(SignatureError::Missing));
    for cut in 0..header.len() {
        assert!(verify_at(&ca, &header[..cut], now()).is_err(), "cut at {cut}");
    }
    let long = format!("{header}, x={}", "y".repeat(MAX_HEADER_BYTES));
    assert!(matches!(verify_at(&ca, &long, now()), Err(SignatureError::Malformed { .. })));
}

#[test]
fn serial_numbers_have_no_leading_zero_bytes() {
    assert_eq!(serial_hex(&[0, 0, 0x8f, 0x00]), "8f00");
    assert_eq!(serial_hex(&[]), "");
}
