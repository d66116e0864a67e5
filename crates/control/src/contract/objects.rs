//! The contract of [`Objects`].

use crate::PortErrorKind;
use crate::ports::Objects;

/// Keys that no implementation accepts.
pub const REFUSED_KEYS: [&str; 12] =
    ["", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", "./a", "a//b", "a/", "a\0b", "a\\b"];

/// The whole contract, against an empty place.
///
/// # Panics
/// When the implementation breaks it.
pub async fn suite(objects: &dyn Objects) {
    objects_are_read_as_written(objects).await;
    deleting_is_idempotent(objects).await;
    hostile_keys_are_refused(objects).await;
}

async fn objects_are_read_as_written(objects: &dyn Objects) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let large = every_byte.repeat(4096);
    for (key, bytes) in [("a", b"first".to_vec()), ("deep/er/b.json", every_byte), ("a", Vec::new()), ("a", large)] {
        objects.put(key, bytes.clone()).await.expect("put succeeds");
        assert_eq!(objects.get(key).await, Ok(Some(bytes)), "{key}: the newest content, whole");
    }
    assert_eq!(objects.get("absent").await, Ok(None));
    assert_eq!(objects.get("deep/absent").await, Ok(None));
    assert_eq!(objects.get("absent/too").await, Ok(None));
}

async fn deleting_is_idempotent(objects: &dyn Objects) {
    objects.put("gone/soon", vec![1]).await.expect("put succeeds");
    for _ in 0..2 {
        objects.delete("gone/soon").await.expect("delete succeeds");
        assert_eq!(objects.get("gone/soon").await, Ok(None));
    }
    objects.delete("never/was").await.expect("deleting what does not exist is a success");
    objects.put("gone/soon", vec![2]).await.expect("put succeeds again");
    assert_eq!(objects.get("gone/soon").await, Ok(Some(vec![2])));
}

async fn hostile_keys_are_refused(objects: &dyn Objects) {
    let long = "x".repeat(2000);
    for key in REFUSED_KEYS.into_iter().chain([long.as_str()]) {
        let results =
            [objects.put(key, vec![1]).await.err(), objects.get(key).await.err(), objects.delete(key).await.err()];
        for error in results {
            assert_eq!(error.map(|e| e.kind), Some(PortErrorKind::Invalid), "the key {key:?} is refused");
        }
    }
}
