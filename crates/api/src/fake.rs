//! A region in memory, just enough for the API: items, objects, and workflows that start and never move.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use rehost_control::authority::{Authority, load_or_create};
use rehost_control::ports::*;
use rehost_control::{PortError, Ports};
use rehost_model::event::Event;
use rehost_model::launch::{Probe, ProbeOutcome};
use rehost_model::{ExecutionId, InstanceId, ServerId, SnapshotId, TaskToken, Timestamp, VolumeId};
use serde_json::Value;

use crate::access::{AccessKey, Authentication, Permission, StaticKeys};
use crate::{ApiState, router};

pub(crate) const ADMIN_KEY: (&str, &str) = ("REHOSTADMINKEY000001", "admin/secret+of-the-region");
pub(crate) const ENROL_KEY: (&str, &str) = ("REHOSTENROLKEY000001", "installation/secret");
pub(crate) const ACCOUNT: &str = "000000000000";
const START_MS: i64 = 1_900_000_000_000;

/// A region, its clock, and what a client needs to know.
pub(crate) struct Region {
    pub(crate) state: ApiState,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) authority: Arc<Authority>,
}

impl Region {
    pub(crate) async fn new() -> Self {
        let (memory, clock) = (Arc::new(Memory::default()), Arc::new(TestClock(AtomicI64::new(START_MS))));
        let authority = Arc::new(load_or_create(memory.as_ref(), memory.as_ref()).await.unwrap());
        let ports = Ports {
            store: memory.clone(),
            compute: memory.clone(),
            objects: memory.clone(),
            events: memory.clone(),
            workflows: memory.clone(),
            keys: memory,
            clock: clock.clone(),
            region: "local".to_owned(),
            account: ACCOUNT.to_owned(),
            replicator_hosts: vec!["127.0.0.1".to_owned()],
            polling: Polling::LOCAL,
        };
        let keys = StaticKeys::default()
            .with(ADMIN_KEY.0, AccessKey::new(ADMIN_KEY.1, Permission::Admin))
            .with(ENROL_KEY.0, AccessKey::new(ENROL_KEY.1, Permission::Enrol));
        let state =
            ApiState { ports, authentication: Authentication::Keys(Arc::new(keys)), authority: authority.clone() };
        Self { state, clock, authority }
    }

    pub(crate) fn router(&self) -> axum::Router {
        router(self.state.clone())
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

pub(crate) struct TestClock(AtomicI64);

impl TestClock {
    pub(crate) fn advance_ms(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.0.load(Ordering::SeqCst))
    }
}

#[derive(Default)]
struct Memory {
    items: Mutex<BTreeMap<ItemKey, (Version, Value)>>,
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
}

#[async_trait]
impl Store for Memory {
    async fn get(&self, key: &ItemKey) -> PortResult<Option<Item>> {
        let items = self.items.lock().unwrap();
        Ok(items.get(key).map(|(version, body)| Item { key: key.clone(), version: *version, body: body.clone() }))
    }

    async fn put(&self, key: &ItemKey, body: Value, expected: Option<Version>) -> PortResult<Version> {
        let mut items = self.items.lock().unwrap();
        if items.get(key).map(|(version, _)| *version) != expected {
            return Err(PortError::conflict("another writer was faster"));
        }
        let version = expected.unwrap_or(0) + 1;
        items.insert(key.clone(), (version, body));
        Ok(version)
    }

    async fn delete(&self, key: &ItemKey, _expected: Version) -> PortResult<()> {
        self.items.lock().unwrap().remove(key);
        Ok(())
    }

    async fn list(&self, kind: Kind, prefix: &str) -> PortResult<Vec<Item>> {
        let items = self.items.lock().unwrap();
        let wanted = items.iter().filter(|(key, _)| key.kind == kind && key.id.starts_with(prefix));
        Ok(wanted.map(|(k, (version, body))| Item { key: k.clone(), version: *version, body: body.clone() }).collect())
    }
}

#[async_trait]
impl Objects for Memory {
    async fn put(&self, key: &str, bytes: Vec<u8>) -> PortResult<()> {
        self.objects.lock().unwrap().insert(key.to_owned(), bytes);
        Ok(())
    }
    async fn get(&self, key: &str) -> PortResult<Option<Vec<u8>>> {
        Ok(self.objects.lock().unwrap().get(key).cloned())
    }
    async fn delete(&self, key: &str) -> PortResult<()> {
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }
}

#[async_trait]
impl Keys for Memory {
    async fn seal(&self, plain: &[u8], _context: &str) -> PortResult<Vec<u8>> {
        Ok(plain.iter().map(|b| b ^ 0x5a).collect())
    }
    async fn open(&self, sealed: &[u8], context: &str) -> PortResult<Vec<u8>> {
        self.seal(sealed, context).await
    }
}

#[async_trait]
impl Events for Memory {
    async fn publish(&self, _event: &Event) -> PortResult<()> {
        Ok(())
    }
}

#[async_trait]
impl Workflows for Memory {
    async fn start(&self, _machine: &str, _execution: &ExecutionId, _input: Value) -> PortResult<()> {
        Ok(())
    }
    async fn stop(&self, _execution: &ExecutionId, _cause: &str) -> PortResult<()> {
        Ok(())
    }
    async fn status(&self, _execution: &ExecutionId) -> PortResult<Option<ExecutionStatus>> {
        Ok(None)
    }
    async fn report(&self, _token: &TaskToken, _outcome: TaskOutcome) -> PortResult<()> {
        Ok(())
    }
    async fn heartbeat(&self, _token: &TaskToken) -> PortResult<()> {
        Ok(())
    }
}

fn none<T>() -> PortResult<T> {
    Err(PortError::unavailable("this region has no machines"))
}

#[async_trait]
impl Compute for Memory {
    async fn launch_replication_server(&self, _: &ReplicationServerSpec, _: &ClientToken) -> PortResult<InstanceId> {
        none()
    }
    async fn create_volume(&self, _: &VolumeSpec, _: &ClientToken) -> PortResult<VolumeId> {
        none()
    }
    async fn delete_volume(&self, _: &VolumeId) -> PortResult<()> {
        none()
    }
    async fn modify_volume(&self, _: &VolumeId, _: u64) -> PortResult<()> {
        none()
    }
    async fn attach_volume(&self, _: &VolumeId, _: &InstanceId) -> PortResult<String> {
        none()
    }
    async fn detach_volume(&self, _: &VolumeId, _: &InstanceId) -> PortResult<()> {
        none()
    }
    async fn create_snapshots(&self, _: &[VolumeId], _: &Tags, _: &ClientToken) -> PortResult<Vec<SnapshotId>> {
        none()
    }
    async fn snapshot_state(&self, _: &SnapshotId) -> PortResult<SnapshotState> {
        none()
    }
    async fn read_snapshot(&self, _: &SnapshotId, _: u64, _: usize) -> PortResult<Vec<u8>> {
        none()
    }
    async fn delete_snapshot(&self, _: &SnapshotId) -> PortResult<()> {
        none()
    }
    async fn start_conversion(&self, _: &ConversionSpec, _: &ClientToken) -> PortResult<InstanceId> {
        none()
    }
    async fn conversion_progress(&self, _: &InstanceId) -> PortResult<ConversionProgress> {
        none()
    }
    async fn run_instance(&self, _: &InstanceSpec, _: &ClientToken) -> PortResult<InstanceId> {
        none()
    }
    async fn instance(&self, _: &InstanceId) -> PortResult<Option<Instance>> {
        none()
    }
    async fn console_output(&self, _: &InstanceId) -> PortResult<String> {
        none()
    }
    async fn probe(&self, _: &InstanceId, _: &Probe) -> PortResult<ProbeOutcome> {
        none()
    }
    async fn terminate_instance(&self, _: &InstanceId) -> PortResult<()> {
        none()
    }
    async fn tagged_resources(&self, _: Option<&ServerId>) -> PortResult<Vec<TaggedResource>> {
        none()
    }
}
