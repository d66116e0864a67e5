//! The region's certificate authority is made once, also when several functions start for the first time at once.

use rehost_control::PortError;
use rehost_control::authority::{Authority, CERTIFICATE_OBJECT, load_or_create};
use rehost_control::ports::{ItemKey, Kind, PortResult, Ports};
use serde_json::json;

/// After so long, whoever was about to make the authority is taken to have died; milliseconds.
const TURN_MS: u64 = 60_000;

/// The authority.
///
/// # Errors
/// Those of the ports; `Unavailable` while another function is making it.
pub(crate) async fn load(ports: &Ports) -> PortResult<Authority> {
    if ports.objects.get(CERTIFICATE_OBJECT).await?.is_none() {
        take_turn(ports).await?;
    }
    load_or_create(ports.objects.as_ref(), ports.keys.as_ref()).await
}

/// Lets one function at a time go on. Objects know no conditions, and two authorities made at once would leave the
/// certificate of one with the key of the other.
async fn take_turn(ports: &Ports) -> PortResult<()> {
    let (key, now) = (ItemKey::new(Kind::Lock, "authority"), ports.clock.now());
    let earlier = ports.store.get(&key).await?;
    let since_ms = earlier.as_ref().and_then(|turn| turn.body.get("sinceMs")?.as_i64());
    let held = since_ms.is_some_and(|since| now.unix_ms().saturating_sub(since).unsigned_abs() < TURN_MS);
    if held {
        return Err(busy());
    }
    let turn = json!({"sinceMs": now.unix_ms()});
    match ports.store.put(&key, turn, earlier.map(|turn| turn.version)).await {
        Err(error) if error.kind == rehost_control::PortErrorKind::Conflict => Err(busy()),
        other => other.map(drop),
    }
}

fn busy() -> PortError {
    PortError::unavailable("the region's certificate authority is just being made; try again in a minute")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rehost_control::PortErrorKind;
    use rehost_local::objects::FileObjects;

    use super::*;
    use crate::tests::TestRegion;

    /// A region in which nobody has made the authority yet.
    async fn fresh() -> (TestRegion, Ports) {
        let region = TestRegion::new().await;
        let objects = Arc::new(FileObjects::new(region.folder.path().join("other")));
        let ports = Ports { objects, ..region.ports.clone() };
        (region, ports)
    }

    #[tokio::test]
    async fn functions_that_start_at_once_find_one_authority() {
        let (_region, ports) = fresh().await;
        let (one, other) = tokio::join!(load(&ports), load(&ports));
        let now = load(&ports).await.unwrap().fingerprint();
        let mut made = 0;
        for result in [one, other] {
            match result {
                Ok(authority) => {
                    assert_eq!(authority.fingerprint(), now);
                    made += 1;
                }
                Err(error) => assert_eq!(error.kind, PortErrorKind::Unavailable),
            }
        }
        assert!(made >= 1);
    }

    #[tokio::test]
    async fn a_turn_that_was_never_ended_is_over_after_a_while() {
        let (_region, ports) = fresh().await;
        let key = ItemKey::new(Kind::Lock, "authority");
        let now = ports.clock.now().unix_ms();
        let version = ports.store.put(&key, json!({"sinceMs": now}), None).await.unwrap();
        assert_eq!(load(&ports).await.err().unwrap().kind, PortErrorKind::Unavailable);
        let long_ago = now - 2 * i64::try_from(TURN_MS).unwrap();
        ports.store.put(&key, json!({"sinceMs": long_ago}), Some(version)).await.unwrap();
        assert!(load(&ports).await.is_ok());
    }
}
