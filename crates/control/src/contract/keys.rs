//! The contract of [`Keys`].

use crate::PortErrorKind;
use crate::ports::Keys;

/// The whole contract.
///
/// # Panics
/// When the implementation breaks it.
pub async fn suite(keys: &dyn Keys) {
    for plain in [b"".to_vec(), b"secret".to_vec(), vec![0x5a; 70_000]] {
        sealing_is_undone_by_opening(keys, &plain).await;
    }
    the_same_secret_never_looks_the_same(keys).await;
    another_context_does_not_open(keys).await;
    a_changed_byte_does_not_open(keys).await;
}

async fn sealing_is_undone_by_opening(keys: &dyn Keys, plain: &[u8]) {
    let sealed = keys.seal(plain, "context").await.expect("seal succeeds");
    assert!(plain.len() < 6 || !sealed.windows(6).any(|w| plain.starts_with(w)), "the secret shows");
    assert_eq!(keys.open(&sealed, "context").await.as_deref(), Ok(plain));
}

async fn the_same_secret_never_looks_the_same(keys: &dyn Keys) {
    let first = keys.seal(b"secret", "context").await.expect("seal succeeds");
    let second = keys.seal(b"secret", "context").await.expect("seal succeeds");
    assert_ne!(first, second);
}

async fn another_context_does_not_open(keys: &dyn Keys) {
    let sealed = keys.seal(b"secret", "ca/key").await.expect("seal succeeds");
    for context in ["", "ca/key ", "ca", "CA/KEY"] {
        assert_refused(keys, &sealed, context).await;
    }
}

async fn a_changed_byte_does_not_open(keys: &dyn Keys) {
    let sealed = keys.seal(b"secret", "context").await.expect("seal succeeds");
    for index in 0..sealed.len() {
        let mut changed = sealed.clone();
        if let Some(byte) = changed.get_mut(index) {
            *byte ^= 1;
        }
        assert_refused(keys, &changed, "context").await;
        assert_refused(keys, &sealed[..index], "context").await;
    }
    assert_refused(keys, &[sealed.as_slice(), b"x"].concat(), "context").await;
}

async fn assert_refused(keys: &dyn Keys, sealed: &[u8], context: &str) {
    let error = keys.open(sealed, context).await.expect_err("must not open");
    assert_eq!(error.kind, PortErrorKind::Invalid, "{error}");
}
