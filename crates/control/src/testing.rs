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
use rehost_model::{
    ExecutionId, ImageId, InstanceId, SecurityGroupId, ServerId, SnapshotId, TaskToken, Timestamp, VolumeId,
};
use serde_json::Value;

use crate::ports::{
    ClientToken, Clock, Compute, ConversionProgress, ConversionSpec, Events, ExecutionStatus, GroupRole, GroupSource,
    ImageSpec, ImageState, Instance, InstanceSpec, InstanceState, Item, ItemKey, Keys, Kind, Objects, Polling,
    PortResult, Ports, ReplicationServerSpec, SharedGroup, SnapshotState, Store, TaggedResource, Tags, TaskOutcome,
    Version, VolumeSpec, Workflows,
};
use crate::{PortError, PortErrorKind};

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
    /// By network and role; a network is named like the only subnet that it has.
    pub(crate) groups: BTreeMap<(String, &'static str), SharedGroup>,
    /// They cannot be listed.
    pub(crate) groups_unknown: bool,
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
    /// Snapshots are refused for now so often.
    pub(crate) throttled_snapshots: usize,
    /// Copies are launched from images, which takes time, as on EC2.
    pub(crate) has_images: bool,
    /// What is pending, and how often it will still be said to be.
    pub(crate) pending: BTreeMap<String, usize>,
    /// What becomes of something after it was pending: kinds that fail.
    pub(crate) fails: BTreeSet<ResourceKind>,
    /// What was made of what: images of snapshots, instances of images.
    pub(crate) made_of: BTreeMap<String, Vec<String>>,
    /// Volumes that were made with an instance.
    pub(crate) made_with: BTreeMap<String, Vec<String>>,
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
    async fn group_source(&self, settings: &ReplicationSettings, _: GroupRole) -> PortResult<GroupSource> {
        let subnet = settings.staging_area_subnet_id.clone();
        self.call(|_| Ok(if subnet.is_empty() { GroupSource::Unnamed } else { GroupSource::Shared(subnet) }))
    }

    async fn ensure_shared_group(&self, network: &str, role: GroupRole) -> PortResult<SecurityGroupId> {
        self.call(|world| {
            let group = world.groups.entry((network.to_owned(), role.name())).or_insert_with(|| SharedGroup {
                id: SecurityGroupId::generate(),
                network: network.to_owned(),
                role,
                in_use: false,
            });
            Ok(group.id.clone())
        })
    }

    async fn shared_groups(&self) -> PortResult<Vec<SharedGroup>> {
        self.call(|world| match world.groups_unknown {
            true => Err(PortError::new(PortErrorKind::Denied, "security groups are not to be listed")),
            false => Ok(world.groups.values().cloned().collect()),
        })
    }

    async fn delete_security_group(&self, group: &SecurityGroupId) -> PortResult<()> {
        self.call(|world| {
            world.groups.retain(|_, there| there.id != *group);
            Ok(())
        })
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
        self.call(|world| {
            let gone = || PortError::not_found(format!("no such volume: {volume}"));
            world.resources.contains_key(volume.as_str()).then(|| format!("/volumes/{volume}")).ok_or_else(gone)
        })
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
        if self.world().throttled_snapshots > 0 {
            self.world().throttled_snapshots -= 1;
            return Err(PortError::new(PortErrorKind::Throttled, "another snapshot of the volume is being made"));
        }
        let each = |(i, _)| {
            let token = ClientToken::derive(&[token.as_str(), &format!("{i}")]);
            let made = self.create(ResourceKind::Snapshot, SnapshotId::generate().to_string(), tags, &token)?;
            let mut world = self.world();
            if world.has_images {
                world.pending.entry(made.clone()).or_insert(1);
            }
            parsed(made)
        };
        volumes.iter().enumerate().map(each).collect()
    }

    async fn snapshot_state(&self, snapshot: &SnapshotId) -> PortResult<SnapshotState> {
        self.call(|world| match (world.is_pending(snapshot.as_str()), world.fails.contains(&ResourceKind::Snapshot)) {
            _ if !world.resources.contains_key(snapshot.as_str()) => Err(PortError::not_found(snapshot)),
            (true, _) => Ok(SnapshotState::Pending),
            (_, true) => Ok(SnapshotState::Failed),
            _ => Ok(SnapshotState::Completed),
        })
    }

    async fn read_snapshot(&self, snapshot: &SnapshotId, offset: u64, length: usize) -> PortResult<Vec<u8>> {
        self.call(|world| {
            let bytes = world.snapshot_bytes.get(snapshot.as_str()).cloned().unwrap_or_default();
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            Ok(bytes[from..].iter().copied().take(length).collect())
        })
    }

    async fn delete_snapshot(&self, snapshot: &SnapshotId) -> PortResult<()> {
        if !self.world().users_of(snapshot.as_str()).is_empty() {
            return Err(PortError::conflict("an image is made of the snapshot"));
        }
        self.remove(snapshot.as_str())
    }

    fn launches_from_images(&self) -> bool {
        self.world().has_images
    }

    async fn register_image(&self, spec: &ImageSpec, token: &ClientToken) -> PortResult<ImageId> {
        let image = self.create(ResourceKind::Image, ImageId::generate().to_string(), &spec.tags, token)?;
        let mut world = self.world();
        let snapshots = spec.snapshots.iter().map(ToString::to_string).collect();
        world.made_of.insert(image.clone(), snapshots);
        world.pending.entry(image.clone()).or_insert(2);
        parsed(image)
    }

    async fn image_state(&self, image: &ImageId) -> PortResult<ImageState> {
        self.call(|world| {
            let there = world.resources.contains_key(image.as_str());
            match (there, world.is_pending(image.as_str()), world.fails.contains(&ResourceKind::Image)) {
                (false, ..) => Err(PortError::not_found("no such image")),
                (_, true, _) => Ok(ImageState::Pending),
                (_, _, true) => Ok(ImageState::Failed("as planted".to_owned())),
                _ => Ok(ImageState::Available),
            }
        })
    }

    async fn deregister_image(&self, image: &ImageId) -> PortResult<()> {
        {
            let world = self.world();
            let unfinished = |id: &String| world.pending.get(id).is_some_and(|left| *left > 0);
            assert!(!world.users_of(image.as_str()).iter().any(unfinished), "an instance is still made of it");
        }
        self.remove(image.as_str())
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
        let has_images = self.world().has_images;
        assert_eq!((spec.image.is_some(), spec.volumes.is_empty()), (has_images, has_images));
        let instance = self.create(ResourceKind::Instance, InstanceId::generate().to_string(), &spec.tags, token);
        // Also when the answer is lost.
        let made = self.world().tokens.get(token.as_str()).cloned();
        if let (Some(made), Some(image)) = (made, &spec.image) {
            self.world().make_with(&made, image, &spec.tags);
        }
        parsed(instance?)
    }

    async fn instance(&self, id: &InstanceId) -> PortResult<Option<Instance>> {
        self.call(|world| {
            let endpoints = BTreeMap::from([(80, SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)))]);
            let state = match (world.is_pending(id.as_str()), world.made_with.contains_key(id.as_str())) {
                (true, _) => InstanceState::Pending,
                (_, true) if world.fails.contains(&ResourceKind::Instance) => InstanceState::Terminated,
                _ => InstanceState::Running,
            };
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
        self.call(|world| {
            world.resources.remove(id.as_str());
            for volume in world.made_with.remove(id.as_str()).unwrap_or_default() {
                world.resources.remove(&volume);
            }
            Ok(())
        })
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
    /// The volumes of an instance that was launched from an image; once.
    fn make_with(&mut self, instance: &str, image: &ImageId, tags: &Tags) {
        if self.made_with.contains_key(instance) || !self.resources.contains_key(instance) {
            return;
        }
        let disks = self.made_of.get(image.as_str()).map_or(0, Vec::len);
        let volumes: Vec<String> = (0..disks).map(|_| VolumeId::generate().to_string()).collect();
        for volume in &volumes {
            self.resources.insert(volume.clone(), (ResourceKind::Volume, tags.clone()));
        }
        self.made_of.insert(instance.to_owned(), vec![image.to_string()]);
        self.made_with.insert(instance.to_owned(), volumes);
        self.pending.insert(instance.to_owned(), 2);
    }

    /// Whether it is still being made; asked once more.
    fn is_pending(&mut self, id: &str) -> bool {
        let left = self.pending.get_mut(id).filter(|left| **left > 0);
        left.is_some_and(|left| {
            *left -= 1;
            true
        })
    }

    /// What is made of it and is there.
    fn users_of(&self, id: &str) -> Vec<String> {
        let of_it = self.made_of.iter().filter(|(_, of)| of.iter().any(|o| o == id)).map(|(user, _)| user);
        of_it.filter(|user| self.resources.contains_key(*user)).cloned().collect()
    }

    /// Resources by kind and purpose, without their random ids: what two runs can be compared by.
    pub(crate) fn inventory(&self) -> BTreeSet<(ResourceKind, Option<String>)> {
        self.resources.values().map(|(kind, tags)| (*kind, tags.get(crate::ledger::PURPOSE_TAG).cloned())).collect()
    }
}
