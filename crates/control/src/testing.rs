//! A region in memory, for tests: a store, a cloud that fails on demand, and an agent and a replicator that do what they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use rehost_model::conversion::{ConversionOutcome, ConversionReport, Finding, Severity};
use rehost_model::event::Event;
use rehost_model::launch::{Probe, ProbeOutcome};
use rehost_model::ledger::ResourceKind;
use rehost_model::settings::ReplicationSettings;
use rehost_model::{ExecutionId, InstanceId, SecurityGroupId, ServerId, SnapshotId, TaskToken, Timestamp, VolumeId};
use serde_json::Value;

use crate::PortError;
use crate::ports::{
    ClientToken, Clock, Compute, ConversionProgress, ConversionSpec, Events, ExecutionStatus, Instance, InstanceSpec,
    InstanceState, Item, ItemKey, Keys, Kind, Objects, Polling, PortResult, Ports, ReplicationServerSpec,
    SnapshotState, Store, TaggedResource, Tags, TaskOutcome, Version, VolumeSpec, Workflows,
};

/// Fails one call, before or after it took effect.
#[derive(Default)]
pub(crate) struct Faults {
    calls: usize,
    fail_at: Option<(usize, bool)>,
}

/// Everything that the fake region holds.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) faults: Faults,
    pub(crate) now_ms: i64,
    pub(crate) items: BTreeMap<ItemKey, Item>,
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
    pub(crate) events: Vec<Event>,
    pub(crate) executions: BTreeMap<String, (String, Value)>,
    pub(crate) resources: BTreeMap<String, (ResourceKind, Tags)>,
    pub(crate) tokens: BTreeMap<String, String>,
    pub(crate) enrol_tokens: BTreeMap<String, String>,
    /// Sizes of volumes that were modified.
    pub(crate) grown: BTreeMap<String, u64>,
    /// Tasks that wait, by their tokens: the executions that they belong to.
    pub(crate) waiting: BTreeMap<String, String>,
    /// What became of tasks that waited, by their executions.
    pub(crate) reported: BTreeMap<String, TaskOutcome>,
    pub(crate) heartbeats: BTreeMap<String, usize>,
    /// Tokens that were given out.
    pub(crate) calls_of_tokens: usize,
    /// Executions that are over.
    pub(crate) ended: BTreeMap<String, ExecutionStatus>,
    /// What is in snapshots; nothing unless it is put there.
    pub(crate) snapshot_bytes: BTreeMap<String, Vec<u8>>,
    pub(crate) conversion_fails: bool,
    pub(crate) probes_fail: bool,
}

/// The fake region; every port is it.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<World>>);

impl Fake {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    pub(crate) fn ports(&self) -> Ports {
        let all = Arc::new(self.clone());
        Ports {
            store: all.clone(),
            compute: all.clone(),
            objects: all.clone(),
            events: Arc::new(crate::rules::RuledEvents::new(all.clone(), all.clone())),
            workflows: all.clone(),
            keys: all.clone(),
            clock: all,
            region: "local".to_owned(),
            account: "000000000000".to_owned(),
            replicator_hosts: vec!["127.0.0.1".to_owned()],
            polling: Polling::LOCAL,
        }
    }

    /// From now on the call number `n` (from 0) of any port fails: before or after its effect.
    pub(crate) fn fail_call(&self, n: usize, after_effect: bool) {
        self.world().faults = Faults { calls: 0, fail_at: Some((n, after_effect)) };
    }

    pub(crate) fn calls(&self) -> usize {
        self.world().faults.calls
    }

    /// Runs a call on the world, or fails as it was told to.
    fn call<T>(&self, effect: impl FnOnce(&mut World) -> PortResult<T>) -> PortResult<T> {
        let mut world = self.world();
        let number = world.faults.calls;
        world.faults.calls += 1;
        world.now_ms += 1;
        match world.faults.fail_at {
            Some((at, false)) if at == number => Err(PortError::unavailable("planted before the call")),
            Some((at, true)) if at == number => {
                effect(&mut world)?;
                Err(PortError::unavailable("planted after the call"))
            }
            _ => effect(&mut world),
        }
    }

    fn create(&self, kind: ResourceKind, id: String, tags: &Tags, token: &ClientToken) -> PortResult<String> {
        self.call(|world| {
            let id = world.tokens.entry(token.as_str().to_owned()).or_insert(id).clone();
            world.resources.insert(id.clone(), (kind, tags.clone()));
            Ok(id)
        })
    }

    fn remove(&self, id: &str) -> PortResult<()> {
        self.call(|world| {
            world.resources.remove(id);
            Ok(())
        })
    }
}

fn parsed<T: std::str::FromStr<Err = rehost_model::id::InvalidId>>(id: String) -> PortResult<T> {
    id.parse().map_err(PortError::invalid)
}

#[async_trait]
impl Store for Fake {
    async fn get(&self, key: &ItemKey) -> PortResult<Option<Item>> {
        self.call(|world| Ok(world.items.get(key).cloned()))
    }

    async fn put(&self, key: &ItemKey, body: Value, expected: Option<Version>) -> PortResult<Version> {
        self.call(|world| {
            if world.items.get(key).map(|item| item.version) != expected {
                return Err(PortError::conflict("another version"));
            }
            let version = expected.unwrap_or(0) + 1;
            world.items.insert(key.clone(), Item { key: key.clone(), version, body });
            Ok(version)
        })
    }

    async fn delete(&self, key: &ItemKey, expected: Version) -> PortResult<()> {
        self.call(|world| match world.items.get(key) {
            Some(item) if item.version != expected => Err(PortError::conflict("another version")),
            _ => {
                world.items.remove(key);
                Ok(())
            }
        })
    }

    async fn list(&self, kind: Kind, prefix: &str) -> PortResult<Vec<Item>> {
        self.call(|world| {
            let wanted = |item: &&Item| item.key.kind == kind && item.key.id.starts_with(prefix);
            Ok(world.items.values().filter(wanted).cloned().collect())
        })
    }
}

#[async_trait]
impl Objects for Fake {
    async fn put(&self, key: &str, bytes: Vec<u8>) -> PortResult<()> {
        self.call(|world| {
            world.objects.insert(key.to_owned(), bytes);
            Ok(())
        })
    }

    async fn get(&self, key: &str) -> PortResult<Option<Vec<u8>>> {
        self.call(|world| Ok(world.objects.get(key).cloned()))
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        self.call(|world| {
            world.objects.remove(key);
            Ok(())
        })
    }
}

#[async_trait]
impl Events for Fake {
    async fn publish(&self, event: &Event) -> PortResult<()> {
        self.call(|world| {
            world.events.push(event.clone());
            Ok(())
        })
    }
}

#[async_trait]
impl Workflows for Fake {
    async fn start(&self, machine: &str, execution: &ExecutionId, input: Value) -> PortResult<()> {
        self.call(|world| {
            world.executions.entry(execution.0.clone()).or_insert_with(|| (machine.to_owned(), input));
            Ok(())
        })
    }

    async fn stop(&self, _: &ExecutionId, _: &str) -> PortResult<()> {
        Ok(())
    }

    async fn status(&self, execution: &ExecutionId) -> PortResult<Option<ExecutionStatus>> {
        self.call(|world| {
            let ended = world.ended.get(&execution.0).cloned();
            Ok(ended.or(world.executions.contains_key(&execution.0).then_some(ExecutionStatus::Running)))
        })
    }

    async fn report(&self, token: &TaskToken, outcome: TaskOutcome) -> PortResult<()> {
        self.call(|world| match world.waiting.remove(&token.0) {
            Some(task) => {
                world.reported.insert(task, outcome);
                Ok(())
            }
            None => Err(PortError::not_found("TaskTimedOut: no task waits with this token (any more)")),
        })
    }

    async fn heartbeat(&self, token: &TaskToken) -> PortResult<()> {
        self.call(|world| match world.waiting.get(&token.0).cloned() {
            Some(task) => {
                *world.heartbeats.entry(task).or_default() += 1;
                Ok(())
            }
            None => Err(PortError::not_found("TaskTimedOut: no task waits with this token (any more)")),
        })
    }
}

#[async_trait]
impl Keys for Fake {
    async fn seal(&self, plain: &[u8], context: &str) -> PortResult<Vec<u8>> {
        self.call(|_| Ok([context.as_bytes(), b"|", plain].concat()))
    }

    async fn open(&self, sealed: &[u8], context: &str) -> PortResult<Vec<u8>> {
        let prefix = format!("{context}|");
        let plain = sealed.strip_prefix(prefix.as_bytes()).map(<[u8]>::to_vec);
        self.call(|_| plain.ok_or_else(|| PortError::invalid("sealed for another context")))
    }
}

impl Clock for Fake {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(1_760_000_000_000 + self.world().now_ms)
    }
}

#[async_trait]
impl Compute for Fake {
    async fn ensure_security_group(&self, _: &ReplicationSettings) -> PortResult<Option<SecurityGroupId>> {
        self.call(|_| Ok(None))
    }

    async fn launch_replication_server(
        &self,
        spec: &ReplicationServerSpec,
        token: &ClientToken,
    ) -> PortResult<InstanceId> {
        self.world().enrol_tokens.insert(spec.id.to_string(), spec.enrol_token.clone());
        parsed(self.create(ResourceKind::Instance, InstanceId::generate().to_string(), &spec.tags, token)?)
    }

    async fn create_volume(&self, spec: &VolumeSpec, token: &ClientToken) -> PortResult<VolumeId> {
        parsed(self.create(ResourceKind::Volume, VolumeId::generate().to_string(), &spec.tags, token)?)
    }

    async fn delete_volume(&self, volume: &VolumeId) -> PortResult<()> {
        self.remove(volume.as_str())
    }

    async fn modify_volume(&self, volume: &VolumeId, size_bytes: u64) -> PortResult<()> {
        self.call(|world| {
            let size = world.grown.entry(volume.to_string()).or_default();
            *size = size_bytes.max(*size);
            Ok(())
        })
    }

    async fn attach_volume(&self, volume: &VolumeId, _: &InstanceId) -> PortResult<String> {
        self.call(|_| Ok(format!("/volumes/{volume}")))
    }

    async fn detach_volume(&self, _: &VolumeId, _: &InstanceId) -> PortResult<()> {
        self.call(|_| Ok(()))
    }

    async fn create_snapshots(
        &self,
        volumes: &[VolumeId],
        tags: &Tags,
        token: &ClientToken,
    ) -> PortResult<Vec<SnapshotId>> {
        let each = |(i, _)| {
            let token = ClientToken::derive(&[token.as_str(), &format!("{i}")]);
            parsed(self.create(ResourceKind::Snapshot, SnapshotId::generate().to_string(), tags, &token)?)
        };
        volumes.iter().enumerate().map(each).collect()
    }

    async fn snapshot_state(&self, _: &SnapshotId) -> PortResult<SnapshotState> {
        self.call(|_| Ok(SnapshotState::Completed))
    }

    async fn read_snapshot(&self, snapshot: &SnapshotId, offset: u64, length: usize) -> PortResult<Vec<u8>> {
        self.call(|world| {
            let bytes = world.snapshot_bytes.get(snapshot.as_str()).cloned().unwrap_or_default();
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            Ok(bytes[from..].iter().copied().take(length).collect())
        })
    }

    async fn delete_snapshot(&self, snapshot: &SnapshotId) -> PortResult<()> {
        self.remove(snapshot.as_str())
    }

    async fn start_conversion(&self, spec: &ConversionSpec, token: &ClientToken) -> PortResult<InstanceId> {
        parsed(self.create(ResourceKind::Instance, InstanceId::generate().to_string(), &spec.tags, token)?)
    }

    async fn conversion_progress(&self, _: &InstanceId) -> PortResult<ConversionProgress> {
        self.call(|world| {
            let outcome = if world.conversion_fails { ConversionOutcome::Failed } else { ConversionOutcome::Converted };
            let severity = if world.conversion_fails { Severity::Error } else { Severity::Info };
            let finding = Finding::new(severity, "root", "no root file system was found", "replicate the root disk");
            Ok(ConversionProgress::Reported(Box::new(ConversionReport::ended(outcome, finding))))
        })
    }

    async fn run_instance(&self, spec: &InstanceSpec, token: &ClientToken) -> PortResult<InstanceId> {
        parsed(self.create(ResourceKind::Instance, InstanceId::generate().to_string(), &spec.tags, token)?)
    }

    async fn instance(&self, id: &InstanceId) -> PortResult<Option<Instance>> {
        self.call(|world| {
            let endpoints = BTreeMap::from([(80, SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)))]);
            let state = InstanceState::Running;
            let there = world.resources.contains_key(id.as_str());
            let (private_ip, public_ip, state_reason) = (None, None, None);
            Ok(there.then(|| Instance { id: id.clone(), state, endpoints, private_ip, public_ip, state_reason }))
        })
    }

    async fn console_output(&self, _: &InstanceId) -> PortResult<String> {
        self.call(|_| Ok("login:".to_owned()))
    }

    async fn probe(&self, _: &InstanceId, _: &Probe) -> PortResult<ProbeOutcome> {
        self.call(|world| Ok(ProbeOutcome { passed: !world.probes_fail, detail: "as planted".to_owned() }))
    }

    async fn terminate_instance(&self, id: &InstanceId) -> PortResult<()> {
        self.remove(id.as_str())
    }

    async fn tagged_resources(&self, server: Option<&ServerId>) -> PortResult<Vec<TaggedResource>> {
        self.call(|world| {
            let tag = rehost_model::ledger::SERVER_TAG;
            let tagged = world.resources.iter().filter(|(_, (_, tags))| {
                tags.get(tag).is_some_and(|of| server.is_none_or(|server| of == server.as_str()))
            });
            Ok(tagged
                .map(|(id, (kind, tags))| TaggedResource { kind: *kind, id: id.clone(), tags: tags.clone() })
                .collect())
        })
    }
}

impl World {
    /// Resources by kind and purpose, without their random ids: what two runs can be compared by.
    pub(crate) fn inventory(&self) -> BTreeSet<(ResourceKind, Option<String>)> {
        self.resources.values().map(|(kind, tags)| (*kind, tags.get(crate::ledger::PURPOSE_TAG).cloned())).collect()
    }
}
