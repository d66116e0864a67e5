//! The contracts of the ports on emulators: moto, and ministack where moto differs from AWS.

#![allow(clippy::unwrap_used)] // What cannot be set up fails the test.

mod tasks;
mod world;

use std::sync::Arc;

use rehost_aws::{DynamoStore, EventBridgeEvents, KmsKeys, RegionConfig, S3Objects};
use rehost_control::ports::{Events, ItemKey, Keys, Kind, Objects, Store};
use rehost_control::{PortErrorKind, contract};
use rehost_model::event::Event;
use rehost_tests::aws::stack::make_table;
use rehost_tests::aws::{Failure, Wire};
use serde_json::json;

use world::World;

/// A store in a table of its own: the suite expects an empty one.
fn store(world: &World, table: &str) -> DynamoStore {
    let (wire, name) = (Wire::to(world.port), table.to_owned());
    std::thread::spawn(move || make_table(wire, &name).unwrap()).join().unwrap();
    DynamoStore::new(&RegionConfig { table: table.to_owned(), ..world.config.clone() }, &world.sdk)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_objects_and_keys_keep_their_contracts() {
    let world = World::new().await;
    contract::store::suite(Arc::new(store(&world, "plain"))).await;
    contract::objects::suite(&S3Objects::new(&world.config, &world.sdk)).await;
    contract::keys::suite(&KmsKeys::new(&world.config, &world.sdk)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_keep_them_also_when_every_call_fails_at_first() {
    let world = World::new().await;
    let failures = [
        (false, Failure::Internal),
        (false, Failure::Cut),
        (false, Failure::Throttle),
        (true, Failure::Cut),
        (true, Failure::Internal),
    ];
    for (n, (after_effect, failure)) in failures.into_iter().enumerate() {
        world.proxy.faults().clear();
        let store = store(&world, &format!("failing-{n}"));
        earn_retries(&store).await;
        world.proxy.faults().fail_first_attempts(after_effect, failure);
        // Without the races: even that budget is not made for so many conflicts on top of so many failures.
        contract::store::alone(&store).await;
        contract::objects::suite(&S3Objects::new(&world.config, &world.sdk)).await;
        contract::keys::suite(&KmsKeys::new(&world.config, &world.sdk)).await;
        assert!(world.proxy.faults().struck().len() > 100);
    }
}

/// The SDK has a budget of retries, 500 for a service and a process, that a retry which ends in a conflict takes from and that
/// every success adds to.
async fn earn_retries(store: &DynamoStore) {
    for _ in 0..300 {
        store.get(&ItemKey::new(Kind::Job, "absent")).await.unwrap();
    }
}

#[tokio::test]
async fn lists_are_whole_however_many_pages_they_have() {
    let world = World::new().await;
    let store = store(&world, "long");
    let large = "x".repeat(300 << 10);
    for n in 0..12 {
        store.put(&ItemKey::new(Kind::SnapshotSet, format!("s-1/{n:02}")), json!(large), None).await.unwrap();
    }
    world.proxy.forget_calls();
    let items = store.list(Kind::SnapshotSet, "s-1/").await.unwrap();
    assert_eq!(
        items.iter().map(|item| item.key.id.clone()).collect::<Vec<_>>(),
        (0..12).map(|n| format!("s-1/{n:02}")).collect::<Vec<_>>()
    );
    assert!(world.proxy.counts()["dynamodb:Query"] > 1, "DynamoDB gives at most 1 MiB at once");
}

#[tokio::test]
async fn what_was_never_deployed_is_told_as_such() {
    let world = World::new().await;
    let config = RegionConfig {
        table: "absent".to_owned(),
        bucket: "absent".to_owned(),
        event_bus: "absent".to_owned(),
        key_arn: format!("{}x", world.config.key_arn),
        ..world.config.clone()
    };
    let key = ItemKey::new(Kind::Job, "x");
    let errors = [
        DynamoStore::new(&config, &world.sdk).get(&key).await.unwrap_err(),
        DynamoStore::new(&config, &world.sdk).put(&key, json!(1), None).await.unwrap_err(),
        DynamoStore::new(&config, &world.sdk).list(Kind::Job, "").await.unwrap_err(),
        S3Objects::new(&config, &world.sdk).get("x").await.unwrap_err(),
        S3Objects::new(&config, &world.sdk).put("x", vec![]).await.unwrap_err(),
        KmsKeys::new(&config, &world.sdk).seal(b"x", "x").await.unwrap_err(),
        EventBridgeEvents::new(&config, &world.sdk).publish(&event()).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, PortErrorKind::Invalid, "{error}");
        assert!(error.message.contains("deploy the stack again"), "{error}");
    }
}

fn event() -> Event {
    serde_json::from_value(json!({
        "source": "rehost", "detail-type": "Source Server Registered", "time": "2026-01-02T03:04:05Z",
        "detail": {"version": 1, "sourceServerID": "s-0123456789abcdef0", "sequence": 1, "replicate": true}
    }))
    .unwrap()
}

#[tokio::test]
async fn events_reach_the_bus_and_what_it_does_not_take_is_an_error() {
    let world = World::new().await;
    let events = EventBridgeEvents::new(&world.config, &world.sdk);
    events.publish(&event()).await.unwrap();
    assert_eq!(world.proxy.calls(), ["events:PutEvents"]);
    // The call succeeds all the same; only its count of failed entries tells.
    let mut refused = event();
    refused.source = "aws.ec2".to_owned();
    world.proxy.add_hook(Arc::new(tasks::RefuseEntries));
    let error = events.publish(&refused).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Throttled, "{error}");
}
