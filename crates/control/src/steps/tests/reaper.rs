//! The reaper on a region in memory: what is in use stays, what nobody needs goes, what was cut over is never touched.

use rehost_model::ledger::{JOB_TAG, LedgerEntry, Purpose, SERVER_TAG};
use rehost_model::{SecurityGroupId, SnapshotId, Timestamp};

use super::*;
use crate::PortError;
use crate::costs::PriceTable;
use crate::ledger::{PURPOSE_TAG, TOKEN_TAG};
use crate::ports::{GroupRole, Tags};
use crate::reaper::{Done, Leftovers, Why, reap};
use crate::steps::groups;

const HOUR_MS: i64 = 3_600_000;

fn tags(server: &ServerId, purpose: &str, token: &str) -> Tags {
    let tags = [(SERVER_TAG, server.as_str()), (PURPOSE_TAG, purpose), (TOKEN_TAG, token)];
    tags.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

impl Source {
    async fn reap(&self) -> Leftovers {
        reap(&self.ports, None, false).await.unwrap()
    }

    /// What was found to be left over, and what was done about it.
    async fn reaped(&self) -> Vec<(Why, Done)> {
        self.reap().await.left().map(|r| (r.why.unwrap(), r.done.clone())).collect()
    }

    fn hours_pass(&self, hours: i64) {
        self.fake.world().now_ms += hours * HOUR_MS;
    }

    fn leave(&self, kind: ResourceKind, id: &str, tags: Tags) {
        self.fake.world().resources.insert(id.to_owned(), (kind, tags));
    }

    fn exists(&self, id: &str) -> bool {
        self.fake.world().resources.contains_key(id)
    }

    async fn note(&self, token: &str, purpose: Purpose, resource: Option<&str>) {
        self.write(ResourceKind::Volume, token, purpose, resource).await;
    }

    /// Names the staging subnet.
    pub(super) async fn stage_in(&self, subnet: &str) {
        let moved = repo::update_server(&self.ports, &self.id, |server| {
            server.internal.replication.settings.staging_area_subnet_id = subnet.to_owned();
            Ok::<_, PortError>(())
        });
        moved.await.unwrap();
    }

    /// The security groups in the ledger.
    pub(super) async fn group_entries(&self) -> Vec<LedgerEntry> {
        self.ledger().await.into_iter().filter(|entry| entry.kind == ResourceKind::SecurityGroup).collect()
    }

    /// Somebody is about to look for a security group of replication servers, or to make it.
    async fn plan_group(&self, network: &str) {
        let token = format!("group-replication-{network}");
        self.write(ResourceKind::SecurityGroup, &token, Purpose::Staging, None).await;
    }

    async fn write(&self, kind: ResourceKind, token: &str, purpose: Purpose, resource: Option<&str>) {
        let entry = LedgerEntry {
            token: token.to_owned(),
            server: self.id.clone(),
            kind,
            resource: resource.map(str::to_owned),
            purpose,
            job: None,
            created: self.ports.clock.now(),
            billed: None,
        };
        repo::create(&self.ports, &entry).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_in_use_is_never_touched() {
    for has_images in [false, true] {
        let fake = Fake::default();
        fake.world().has_images = has_images;
        let mut source = Source::enrol_at(fake).await;
        source.reach_ready_for_test().await;
        for round in 0..4 {
            match round {
                1 => {
                    let test = source.start(InitiatedBy::StartTest).await;
                    source.launch(&test).await.unwrap();
                }
                2 => {
                    source.mark(LifeCycleState::ReadyForCutover).await;
                    let cutover = source.start(InitiatedBy::StartCutover).await;
                    source.launch(&cutover).await.unwrap();
                }
                3 => {
                    operations::finalize_cutover(&source.ports, &source.id).await.unwrap();
                    assert_eq!(source.reaped().await, [], "while it is being finalized");
                    source.finalize().await;
                    operations::mark_as_archived(&source.ports, &source.id).await.unwrap();
                }
                _ => {}
            }
            source.hours_pass(2);
            let before = source.fake.world().resources.clone();
            assert_eq!(source.reaped().await, [], "{has_images}, round {round}");
            assert_eq!(source.fake.world().resources, before, "{has_images}, round {round}");
        }
    }
}

#[tokio::test]
async fn what_is_in_no_ledger_goes_unless_it_may_be_the_users() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let (volume, snapshot) = (VolumeId::generate().to_string(), SnapshotId::generate().to_string());
    source.leave(ResourceKind::Volume, &volume, tags(&source.id, "staging", "lost"));
    source.leave(ResourceKind::Snapshot, &snapshot, tags(&ServerId::generate(), "staging", "lost"));
    let theirs = VolumeId::generate().to_string();
    source.leave(ResourceKind::Volume, &theirs, tags(&ServerId::generate(), "cutover", "lost"));
    let unclear = VolumeId::generate().to_string();
    source.leave(ResourceKind::Volume, &unclear, tags(&source.id, "cutover", "lost"));
    let looked = reap(&source.ports, None, true).await.unwrap();
    assert_eq!(looked.left().count(), 3);
    assert!(looked.left().all(|resource| resource.done == Done::Nothing) && source.exists(&volume), "only looked");
    let reaped = source.reaped().await;
    for expected in
        [(Why::NotInLedger, Done::Removed), (Why::ServerGone, Done::Removed), (Why::UnknownOwner, Done::Nothing)]
    {
        assert!(reaped.contains(&expected), "{expected:?} in {reaped:?}");
    }
    assert!(!source.exists(&volume) && !source.exists(&snapshot));
    assert!(source.exists(&theirs) && source.exists(&unclear));
}

impl Source {
    /// The groups that are in the region, by network and role.
    fn groups(&self) -> Vec<(String, &'static str)> {
        self.fake.world().groups.keys().cloned().collect()
    }
}

#[tokio::test]
async fn a_security_group_goes_when_it_is_in_nobodys_ledger() {
    let mut source = Source::enrol().await;
    source.stage_in("subnet-1").await;
    source.reach_ready_for_test().await;
    let test = source.start(InitiatedBy::StartTest).await;
    source.launch(&test).await.unwrap();
    assert_eq!(source.groups(), [("subnet-1".to_owned(), "conversion"), ("subnet-1".to_owned(), "replication")]);
    let noted = source.group_entries().await;
    assert_eq!(
        noted.iter().map(|entry| entry.purpose).collect::<Vec<_>>(),
        [Purpose::Staging],
        "the conversion is over"
    );
    assert_eq!(source.reaped().await, [(Why::Unused, Done::Removed)]);
    assert_eq!(source.groups(), [("subnet-1".to_owned(), "replication")]);
    operations::disconnect_from_service(&source.ports, &source.id).await.unwrap();
    source.finalize().await;
    assert_eq!(source.group_entries().await, []);
    assert_eq!(source.reaped().await, [(Why::Unused, Done::Removed)]);
    assert_eq!((source.groups(), source.reaped().await), (vec![], vec![]));
}

#[tokio::test]
async fn a_security_group_is_kept_by_whoever_may_need_it() {
    let source = Source::enrol().await;
    source.stage_in("subnet-1").await;
    for role in GroupRole::ALL {
        source.ports.compute.ensure_shared_group("subnet-1", role).await.unwrap();
    }
    let ids: Vec<_> = source.fake.world().groups.values().map(|group| group.id.clone()).collect();
    let named = async |names: Vec<SecurityGroupId>| {
        let named = repo::update_server(&source.ports, &source.id, |server| {
            server.internal.replication.settings.replication_servers_security_groups_ids = names.clone();
            Ok::<_, PortError>(())
        });
        named.await.unwrap();
    };
    named(ids).await;
    assert_eq!(source.reaped().await, [], "settings name both");
    assert_eq!(source.reap().await.resources.len(), 2, "and both are shown");
    named(vec![]).await;
    let used = |in_use| source.fake.world().groups.values_mut().for_each(|group| group.in_use = in_use);
    used(true);
    assert_eq!(source.reaped().await, [], "instances have them");
    used(false);
    source.plan_group("subnet-1").await;
    source.plan_group("subnet-2").await;
    source.fake.world().groups_unknown = true;
    assert_eq!(source.reaped().await, [], "they cannot be listed");
    source.fake.world().groups_unknown = false;
    assert_eq!(source.reaped().await, [(Why::Unused, Done::Removed)]);
    assert_eq!(source.groups(), [("subnet-1".to_owned(), "replication")], "it is just being looked up");
    source.hours_pass(2);
    let ended = || (Why::ReplicationEnded, Done::StruckOut);
    assert_eq!(source.reaped().await, [ended(), ended()], "it never began");
    assert_eq!(source.reaped().await, [(Why::Unused, Done::Removed)]);
    assert_eq!(source.groups(), []);
}

#[tokio::test]
async fn an_entry_of_a_security_group_that_somebody_deleted_is_struck_out_and_comes_again() {
    let mut source = Source::enrol().await;
    source.stage_in("subnet-1").await;
    source.reach_ready_for_test().await;
    source.fake.world().groups.clear();
    source.hours_pass(2);
    source.fake.world().groups_unknown = true;
    assert_eq!(source.reaped().await, [], "they cannot be listed");
    source.fake.world().groups_unknown = false;
    assert_eq!(source.reaped().await, [(Why::Gone, Done::StruckOut)]);
    assert_eq!(source.group_entries().await, []);
    let server = source.server();
    let group = groups::ensure(&source.ports, &server, GroupRole::Replication, None).await.unwrap().unwrap();
    let noted: Vec<_> = source.group_entries().await.into_iter().map(|entry| entry.resource).collect();
    assert_eq!(noted, [Some(group.to_string())]);
}

#[tokio::test]
async fn a_copy_of_a_cutover_that_failed_goes() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    source.mark(LifeCycleState::ReadyForCutover).await;
    source.fake.world().conversion_fails = true;
    let job = source.start(InitiatedBy::StartCutover).await;
    source.launch(&job).await.unwrap_err();
    let volume = VolumeId::generate().to_string();
    let mut of_job = tags(&source.id, "cutover", "lost");
    of_job.insert(JOB_TAG.to_owned(), job.job_id.to_string());
    source.leave(ResourceKind::Volume, &volume, of_job);
    assert_eq!(source.reaped().await, [(Why::NotInLedger, Done::Removed)]);
    assert!(!source.exists(&volume));
}

#[tokio::test]
async fn entries_are_brought_in_line_with_what_exists() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let lost = VolumeId::generate().to_string();
    source.note("never", Purpose::Staging, None).await;
    source.note("gone", Purpose::Staging, Some(VolumeId::generate().as_str())).await;
    source.note("answer", Purpose::Staging, None).await;
    source.leave(ResourceKind::Volume, &lost, tags(&source.id, "staging", "answer"));
    assert_eq!(source.reaped().await, [], "somebody may be at work on them");
    source.hours_pass(2);
    let reaped = source.reaped().await;
    for expected in
        [(Why::NeverMade, Done::StruckOut), (Why::Gone, Done::StruckOut), (Why::AnswerLost, Done::WrittenDown)]
    {
        assert!(reaped.contains(&expected), "{expected:?} in {reaped:?}");
    }
    let ledger = source.ledger().await;
    assert!(ledger.iter().all(|entry| entry.token != "never" && entry.token != "gone"));
    assert!(ledger.iter().any(|entry| entry.resource.as_deref() == Some(&lost)));
    assert!(source.exists(&lost));
}

#[tokio::test]
async fn after_the_end_of_a_replication_or_a_job_nothing_of_it_stays() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    operations::disconnect_from_service(&source.ports, &source.id).await.unwrap();
    source.finalize().await;
    let volume = VolumeId::generate().to_string();
    source.leave(ResourceKind::Volume, &volume, tags(&source.id, "staging", "late"));
    source.note("late", Purpose::Staging, Some(&volume)).await;
    source.hours_pass(2);
    assert_eq!(source.reaped().await, [(Why::ReplicationEnded, Done::Removed)]);
    assert!(!source.exists(&volume));
    assert_eq!(source.ledger().await, []);
}

#[tokio::test]
async fn a_replication_server_that_nobody_uses_is_marked_and_goes_the_next_time() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let id = source.server().internal.replicator.unwrap();
    let instance = source.item::<ReplicationServer>(id.as_str()).instance.unwrap();
    repo::update_server(&source.ports, &source.id, |server| {
        server.internal.replicator = None;
        Ok::<_, PortError>(())
    })
    .await
    .unwrap();
    assert_eq!(source.reaped().await, [(Why::Unused, Done::Marked)]);
    assert!(source.exists(instance.as_str()));
    assert_eq!(source.reaped().await, [(Why::Unused, Done::Removed)]);
    assert!(!source.exists(instance.as_str()));
}

#[tokio::test]
async fn a_replication_server_that_is_just_being_chosen_is_not_marked() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let id = source.server().internal.replicator.unwrap();
    let change = |replicator: Option<rehost_model::ReplicatorId>| {
        let (ports, server) = (&source.ports, &source.id);
        repo::update_server(ports, server, move |server| {
            server.internal.replicator.clone_from(&replicator);
            Ok::<_, PortError>(())
        })
    };
    // It was reserved; the server has not written down yet that it uses it.
    change(None).await.unwrap();
    repo::update_replicator(&source.ports, &id, |replicator| {
        replicator.reserved.insert(source.id.clone(), 2);
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(source.reaped().await, []);
    // It chose another one in the end.
    change(Some(rehost_model::ReplicatorId::generate())).await.unwrap();
    assert_eq!(source.reaped().await, [(Why::Unused, Done::Marked)]);
}

#[tokio::test]
async fn it_ends_the_same_whichever_call_fails() {
    for after_effect in [false, true] {
        for n in 0.. {
            let mut source = Source::enrol().await;
            source.reach_ready_for_test().await;
            let before = source.fake.world().inventory();
            let volume = VolumeId::generate().to_string();
            source.leave(ResourceKind::Volume, &volume, tags(&source.id, "test", "lost"));
            source.note("never", Purpose::Staging, None).await;
            source.hours_pass(2);
            source.fake.fail_call(n, after_effect);
            let _ = reap(&source.ports, None, false).await;
            let planted = source.fake.calls() > n;
            source.fake.fail_call(usize::MAX, false);
            source.reap().await;
            assert_eq!(source.fake.world().inventory(), before, "call {n}");
            assert_eq!(source.reaped().await, [], "call {n}");
            if !planted {
                assert!(n > 5, "{n}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn costs_are_counted_while_it_exists_and_after() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let prices = PriceTable::parse(
        r#"{"region":"r","currency":"USD","prices":[{"id":"volume.gp3","price":730.0,"unit":"GB-month"},
            {"id":"instance.t3.small","price":10.0,"unit":"hour"}]}"#,
    )
    .unwrap();
    source.hours_pass(3);
    let costs = reap(&source.ports, Some(&prices), true).await.unwrap().costs;
    // Two volumes of a GiB (begun) each at 1 an hour, and the replication server.
    assert!((costs[0].monthly - 12.0 * 730.0).abs() < 0.1, "{costs:?}");
    assert!((costs[0].so_far - 36.0).abs() < 0.5, "{costs:?}");
    operations::disconnect_from_service(&source.ports, &source.id).await.unwrap();
    source.finalize().await;
    source.hours_pass(100);
    let costs = reap(&source.ports, Some(&prices), true).await.unwrap().costs;
    assert_eq!(costs[0].monthly, 0.0);
    assert!((costs[0].so_far - 36.0).abs() < 0.5, "what is gone costs nothing more: {costs:?}");
}

#[tokio::test]
async fn an_old_replication_server_is_replaced_while_its_agent_waits() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let old = source.server().internal.replicator.unwrap();
    source.hours_pass(31 * 24);
    source.poll().await;
    source.poll().await;
    let seen = Timestamp::from_unix_ms(0);
    assert!(source.item::<ReplicationServer>(old.as_str()).last_seen.is_some_and(|at| at > seen));
    crate::monitor::check_replicators(&source.ports).await.unwrap();
    let moving = source.server();
    assert_ne!(moving.internal.replicator, Some(old.clone()));
    let input = source.executions_of("provision").remove(0);
    source.drive("provision", input).await.unwrap();
    let server = source.server();
    assert!(server.internal.replicator.is_some_and(|id| id != old) && server.internal.former_replicator.is_none());
    assert_eq!(source.fake.world().inventory().iter().filter(|(kind, _)| *kind == ResourceKind::Instance).count(), 1);
}

#[tokio::test]
async fn twenty_jobs_are_at_work_at_most() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    for _ in 0..operations::MAX_JOBS_AT_ONCE {
        crate::jobs::create(&source.ports, &[ServerId::generate()], BTreeMap::new(), InitiatedBy::StartTest)
            .await
            .unwrap();
    }
    let servers = std::slice::from_ref(&source.id);
    let refused = operations::start_test(&source.ports, servers, BTreeMap::new()).await.unwrap_err();
    assert!(
        matches!(&refused, operations::OperationError::Port(e) if e.kind == crate::PortErrorKind::Quota),
        "{refused}"
    );
    let policy = rehost_model::settings::MigrationPolicy { auto_test: true, ..Default::default() };
    let settings = operations::ServerSettings { policy: Some(policy), ..Default::default() };
    operations::update_server_settings(&source.ports, &source.id, &settings).await.unwrap();
    let gate = json!({"gate": "TEST", "sourceServerID": source.id});
    let waits = run(&source.ports, "gate", gate.clone()).await.unwrap();
    assert_eq!(waits["status"], "IN_PROGRESS", "it waits for its turn");
    source.fake.world().items.retain(|key, _| key.kind != crate::ports::Kind::Job);
    assert_eq!(run(&source.ports, "gate", gate).await.unwrap()["status"], "OPEN");
}

#[tokio::test]
async fn the_archive_waits_for_the_end_of_the_replication() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    source.mark(LifeCycleState::ReadyForCutover).await;
    let cutover = source.start(InitiatedBy::StartCutover).await;
    source.launch(&cutover).await.unwrap();
    operations::finalize_cutover(&source.ports, &source.id).await.unwrap();
    let state = json!({"execution": "migrate-1", "sourceServerID": source.id});
    assert_eq!(run(&source.ports, "archive", state.clone()).await.unwrap()["status"], "IN_PROGRESS");
    source.finalize().await;
    for _ in 0..2 {
        assert_eq!(run(&source.ports, "archive", state.clone()).await.unwrap()["status"], "DONE");
    }
    assert!(source.server().is_archived);
}
