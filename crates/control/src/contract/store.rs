//! The contract of [`Store`].

use std::sync::Arc;

use serde_json::{Value, json};

use crate::PortErrorKind;
use crate::ports::{ItemKey, Kind, PortResult, Store};

/// How many writers race for one item.
const WRITERS: u64 = 12;

/// The whole contract, against an empty store.
///
/// # Panics
/// When the store breaks it.
pub async fn suite(store: Arc<dyn Store>) {
    alone(&*store).await;
    of_many_creators_one_wins(Arc::clone(&store)).await;
    no_update_is_lost(store).await;
}

/// The part of [`suite`] with one writer at a time.
///
/// # Panics
/// When the store breaks it.
pub async fn alone(store: &dyn Store) {
    items_are_read_as_written(store).await;
    creating_needs_absence(store).await;
    writing_needs_the_present_version(store).await;
    deleting_needs_the_present_version(store).await;
    a_new_life_begins_at_one(store).await;
    kinds_are_apart(store).await;
    lists_are_exact_and_ordered(store).await;
}

fn refused<T: std::fmt::Debug>(result: PortResult<T>, what: &str) {
    let error = result.expect_err(what);
    assert_eq!(error.kind, PortErrorKind::Conflict, "{what}: {error}");
}

async fn body(store: &dyn Store, key: &ItemKey) -> Option<(u64, Value)> {
    let item = store.get(key).await.expect("get answers")?;
    assert_eq!(item.key, *key, "an item carries its own key");
    Some((item.version, item.body))
}

async fn items_are_read_as_written(store: &dyn Store) {
    let key = ItemKey::new(Kind::SourceServer, "read/as-written");
    assert_eq!(body(store, &key).await, None);
    let bodies = [
        json!({"text": "Grüße \u{1F680} \"quoted\" \\ \n", "empty": "", "null": null, "list": [], "map": {}}),
        json!({"large": 9_007_199_254_740_993_u64, "negative": -1, "fraction": 0.25, "max": u64::MAX}),
        json!([1, "two", [3]]),
        json!("x".repeat(100_000)),
        Value::Null,
    ];
    let mut expected = None;
    for written in bodies {
        let version = store.put(&key, written.clone(), expected).await.expect("put succeeds");
        assert_eq!(version, expected.unwrap_or(0) + 1, "versions count from 1");
        assert_eq!(body(store, &key).await, Some((version, written)));
        expected = Some(version);
    }
}

async fn creating_needs_absence(store: &dyn Store) {
    let key = ItemKey::new(Kind::Job, "create");
    assert_eq!(store.put(&key, json!(1), None).await, Ok(1));
    refused(store.put(&key, json!(2), None).await, "creating what exists");
    assert_eq!(body(store, &key).await, Some((1, json!(1))), "a refused write writes nothing");
}

async fn writing_needs_the_present_version(store: &dyn Store) {
    let key = ItemKey::new(Kind::Job, "write");
    refused(store.put(&key, json!(0), Some(1)).await, "changing what does not exist");
    assert_eq!(body(store, &key).await, None);
    store.put(&key, json!(1), None).await.expect("create");
    assert_eq!(store.put(&key, json!(2), Some(1)).await, Ok(2));
    for stale in [0, 1, 3, u64::MAX] {
        refused(store.put(&key, json!(3), Some(stale)).await, "writing with another version");
    }
    assert_eq!(body(store, &key).await, Some((2, json!(2))));
}

async fn deleting_needs_the_present_version(store: &dyn Store) {
    let key = ItemKey::new(Kind::Lock, "delete");
    store.delete(&key, 1).await.expect("deleting what does not exist is a success");
    store.put(&key, json!(1), None).await.expect("create");
    store.put(&key, json!(2), Some(1)).await.expect("write");
    refused(store.delete(&key, 1).await, "deleting another version");
    assert!(body(store, &key).await.is_some());
    store.delete(&key, 2).await.expect("delete");
    assert_eq!(body(store, &key).await, None);
    store.delete(&key, 2).await.expect("deleting twice is a success");
}

async fn a_new_life_begins_at_one(store: &dyn Store) {
    let key = ItemKey::new(Kind::Lock, "again");
    store.put(&key, json!(1), None).await.expect("create");
    store.delete(&key, 1).await.expect("delete");
    assert_eq!(store.put(&key, json!(2), None).await, Ok(1));
}

async fn kinds_are_apart(store: &dyn Store) {
    let (lock, ledger) = (ItemKey::new(Kind::Lock, "same"), ItemKey::new(Kind::Ledger, "same"));
    store.put(&lock, json!("lock"), None).await.expect("create");
    store.put(&ledger, json!("ledger"), None).await.expect("the same id in another kind is another item");
    store.delete(&lock, 1).await.expect("delete");
    assert_eq!(body(store, &ledger).await, Some((1, json!("ledger"))));
}

async fn ids(store: &dyn Store, prefix: &str) -> Vec<String> {
    let items = store.list(Kind::SnapshotSet, prefix).await.expect("list answers");
    items.into_iter().map(|item| item.key.id).collect()
}

async fn lists_are_exact_and_ordered(store: &dyn Store) {
    let written = ["s-b/2", "s-b/10", "s-a/1", "s-A/1", "s-b", "s_b/1", "s%/1", "s-bb/1", "t"];
    for (index, id) in written.iter().enumerate() {
        store.put(&ItemKey::new(Kind::SnapshotSet, id), json!(index), None).await.expect("create");
    }
    let mut sorted = written.to_vec();
    sorted.sort_unstable();
    assert_eq!(ids(store, "").await, sorted, "everything, ordered by id");
    assert_eq!(ids(store, "s-b/").await, ["s-b/10", "s-b/2"]);
    assert_eq!(ids(store, "s_").await, ["s_b/1"], "no character of a prefix is a wildcard");
    assert_eq!(ids(store, "s%").await, ["s%/1"]);
    assert_eq!(ids(store, "s-A").await, ["s-A/1"], "upper and lower case differ");
    assert_eq!(ids(store, "absent").await, [""; 0]);
    let items = store.list(Kind::SnapshotSet, "t").await.expect("list answers");
    assert_eq!(items.iter().map(|i| (i.version, i.body.clone())).collect::<Vec<_>>(), [(1, json!(8))]);
}

async fn of_many_creators_one_wins(store: Arc<dyn Store>) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move { store.put(&ItemKey::new(Kind::Lock, "race"), json!(writer), None).await });
    }
    let won = writers.join_all().await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1, "of {WRITERS} that create the same item exactly one succeeds");
}

async fn no_update_is_lost(store: Arc<dyn Store>) {
    let key = ItemKey::new(Kind::Lock, "count");
    store.put(&key, json!(0), None).await.expect("create");
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        writers.spawn(increment(Arc::clone(&store), key.clone()));
    }
    writers.join_all().await;
    assert_eq!(body(&*store, &key).await, Some((WRITERS + 1, json!(WRITERS))));
}

async fn increment(store: Arc<dyn Store>, key: ItemKey) {
    loop {
        let (version, value) = body(&*store, &key).await.expect("the counter exists");
        let next = json!(value.as_u64().expect("a number") + 1);
        match store.put(&key, next, Some(version)).await {
            Ok(_) => return,
            Err(e) => assert_eq!(e.kind, PortErrorKind::Conflict, "{e}"),
        }
    }
}
