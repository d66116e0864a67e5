//! The chain against a region in memory.

use std::collections::BTreeMap;

use rehost_model::job::{InitiatedBy, JobLogEvent, JobStatus, LaunchStatus};
use rehost_model::ledger::{LedgerEntry, ResourceKind};
use rehost_model::link::{
    AgentCommand, AgentPhase, AgentReport, BootFirmware, EnrolRequest, FenceState, PartitionTable, RenewRequest,
    ReplicatorEnrolRequest, ReplicatorReport, ServerReport, SourceDisk, VolumeReport,
};
use rehost_model::replication::DataReplicationState;
use rehost_model::replicator::ReplicationServer;
use rehost_model::server::SourceProperties;
use rehost_model::{Epoch, Job, JobId, LifeCycleState, ServerId, SourceServer, VolumeId};
use serde_json::{Value, json};

mod cutover;
mod images;
mod late;
mod reaper;
mod replication;
mod snapshots;
mod sweeps;

use super::{StepError, run};
use crate::link::{self, CertificateIdentity};
use crate::ports::Ports;
use crate::testing::Fake;
use crate::{operations, repo};

const DISK_BYTES: u64 = 64 << 20;

/// A source with its agent, and the replicator that it is told to use; both do what they are told at once.
struct Source {
    fake: Fake,
    ports: Ports,
    id: ServerId,
    csr: String,
    agent: CertificateIdentity,
    replicators: BTreeMap<String, CertificateIdentity>,
    held: Option<Epoch>,
    reached: Epoch,
    hold_expires: bool,
    stopped: bool,
    fence: FenceState,
    /// The quiesce scripts fail, or hang.
    fence_fails: bool,
    fence_hangs: bool,
    inventory: Vec<SourceDisk>,
    /// What the agent was told last.
    told: Option<AgentCommand>,
}

fn csr() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

fn enrol_request(csr: &str) -> EnrolRequest {
    let disk = |name: &str, is_boot_disk| SourceDisk {
        device_name: name.to_owned(),
        size_bytes: DISK_BYTES,
        is_boot_disk,
        partition_table: PartitionTable::Mbr,
    };
    EnrolRequest {
        csr: csr.to_owned(),
        source_server_id: None,
        user_provided_id: None,
        tags: BTreeMap::new(),
        properties: SourceProperties::default(),
        disks: vec![disk("/dev/sda", true), disk("/dev/sdb", false)],
        firmware: BootFirmware::Bios,
        replicate: true,
        agent_version: "0".to_owned(),
    }
}

impl Source {
    async fn enrol() -> Self {
        Self::enrol_at(Fake::default()).await
    }

    async fn enrol_at(fake: Fake) -> Self {
        let ports = fake.ports();
        let csr = csr();
        let response = link::enrol(&ports, &enrol_request(&csr)).await.unwrap();
        let id = response.source_server_id;
        let mut source = Self {
            fake,
            ports,
            id: id.clone(),
            csr,
            agent: CertificateIdentity { serial: String::new(), server: Some(id), replicator: None, volumes: vec![] },
            replicators: BTreeMap::new(),
            held: None,
            reached: Epoch(0),
            hold_expires: false,
            stopped: false,
            fence: FenceState::Open,
            fence_fails: false,
            fence_hangs: false,
            inventory: vec![],
            told: None,
        };
        source.agent.serial = source.server().internal.certificate_serials[0].clone();
        source
    }

    fn item<T: repo::Aggregate>(&self, id: &str) -> T {
        let world = self.fake.world();
        let item = &world.items[&crate::ports::ItemKey::new(T::KIND, id)];
        serde_json::from_value(item.body.clone()).unwrap()
    }

    fn server(&self) -> SourceServer {
        self.item(self.id.as_str())
    }

    /// One poll of the agent and of each replicator.
    async fn poll(&mut self) {
        self.poll_agent().await;
        self.poll_replicator().await;
    }

    async fn poll_agent(&mut self) {
        let phase = match (&self.told, self.stopped) {
            (_, true) => AgentPhase::Stopped,
            (Some(AgentCommand::Wait), _) => AgentPhase::Waiting,
            (Some(AgentCommand::Pause), _) => AgentPhase::Paused,
            _ => AgentPhase::Idle,
        };
        let (inventory, fence) = (self.inventory.clone(), self.fence.clone());
        let agent_version = "0".to_owned();
        let report = AgentReport { agent_version, phase, inventory, fence, ..AgentReport::default() };
        let directive = link::agent_poll(&self.ports, &self.agent, &report).await.unwrap();
        if directive.renew {
            link::agent_renew(&self.ports, &self.agent, &RenewRequest { csr: self.csr.clone() }).await.unwrap();
            let internal = self.server().internal;
            self.agent.serial = internal.certificate_serials.last().unwrap().clone();
            self.agent.volumes = internal.paired_volumes;
        }
        self.told = Some(directive.command.clone());
        self.follow_fence();
        match directive.command {
            AgentCommand::Disconnect => self.stopped = true,
            AgentCommand::Replicate { checkpoint, .. } if self.held.is_none() && checkpoint > self.reached => {
                (self.reached, self.held) = (checkpoint, Some(checkpoint));
            }
            _ => {}
        }
    }

    /// As the agent does it, in no time.
    fn follow_fence(&mut self) {
        let wanted = match &self.told {
            Some(AgentCommand::Replicate { fence, .. }) => fence.clone(),
            Some(AgentCommand::Wait) => None,
            _ => return,
        };
        self.fence = match wanted {
            None => FenceState::Open,
            Some(fence) if self.fence_hangs => FenceState::Closing { fence },
            Some(fence) if self.fence_fails => {
                FenceState::Failed { fence, reason: "10-stop-web ended with 1".to_owned() }
            }
            Some(fence) => FenceState::Fenced { fence },
        };
    }

    async fn poll_replicator(&mut self) {
        let Some(id) = self.server().internal.replicator else { return };
        let token = self.fake.world().enrol_tokens.get(id.as_str()).cloned();
        let Some(token) = token else { return };
        if !self.replicators.contains_key(id.as_str()) {
            let request = ReplicatorEnrolRequest { replicator: id.clone(), token, csr: csr() };
            link::replicator_enrol(&self.ports, &request).await.unwrap();
            let serial = self.item::<ReplicationServer>(id.as_str()).certificate_serials[0].clone();
            let identity = CertificateIdentity { serial, server: None, replicator: Some(id.clone()), volumes: vec![] };
            self.replicators.insert(id.to_string(), identity);
        }
        let identity = &self.replicators[id.as_str()];
        let report = ReplicatorReport { port: 1500, version: "0".to_owned(), servers: vec![self.report()] };
        let directive = link::replicator_poll(&self.ports, identity, &report).await.unwrap();
        if directive.releases.get(&self.id).is_some_and(|released| self.held.is_some_and(|held| *released >= held)) {
            self.held = None;
        }
    }

    fn report(&self) -> ServerReport {
        let staging = self.server().internal.staging;
        let size = |v: &VolumeId| staging.iter().find(|d| d.volume.as_ref() == Some(v)).map_or(0, |d| d.size_bytes);
        let volumes = self.agent.volumes.iter();
        let expired = if self.hold_expires { self.reached } else { Epoch(0) };
        ServerReport {
            server: self.id.clone(),
            connected: !self.agent.volumes.is_empty(),
            received_bytes: 1,
            checkpoint: self.reached,
            held: if self.hold_expires { None } else { self.held },
            expired,
            consistency: rehost_model::replication::Consistency::Quiescent,
            consistent: true,
            journal_bytes: 0,
            volumes: volumes.map(|v| VolumeReport { volume: v.clone(), synced_bytes: size(v) }).collect(),
            error: None,
        }
    }

    /// Carries an execution over a step, as its state machine would.
    async fn drive(&mut self, step: &str, state: Value) -> Result<Value, StepError> {
        if step == "snapshot" { self.drive_snapshot(state).await } else { self.drive_step(step, state).await }
    }

    /// Calls a step until it has nothing left to do: retryable errors are retried.
    async fn drive_step(&mut self, step: &str, mut state: Value) -> Result<Value, StepError> {
        for _ in 0..60 {
            match run(&self.ports, step, state.clone()).await {
                Ok(answer) if answer["status"] == "IN_PROGRESS" => {
                    state = answer;
                    self.fake.world().now_ms += 1000;
                    self.poll().await;
                }
                Err(error) if error.name.starts_with("Retryable") => self.poll().await,
                other => return other,
            }
        }
        panic!("{step} did not come to an end: {state} {:#?}", self.server().data_replication_info);
    }

    fn migrate_input(&self) -> Value {
        let world = self.fake.world();
        let mine =
            |(machine, input): &&(String, Value)| machine == "migrate" && input["sourceServerID"] == self.id.as_str();
        world.executions.values().find(mine).unwrap().1.clone()
    }

    async fn reach_ready_for_test(&mut self) {
        let mut state = self.migrate_input();
        for step in ["register", "provision", "replication-status", "snapshot", "ready-for-test"] {
            state = self.drive(step, state).await.unwrap_or_else(|e| panic!("{step}: {e}"));
            assert_eq!(state["status"], "DONE", "{step}");
        }
    }

    fn launch_state(&self, job: &Job) -> Value {
        let execution = format!("launch-{}-{}", job.job_id, self.id);
        self.fake.world().executions[&execution].1.clone()
    }

    async fn launch(&mut self, job: &Job) -> Result<(), StepError> {
        let step = if job.initiated_by == InitiatedBy::StartCutover { "launch-cutover" } else { "launch-test" };
        let mut state = self.launch_state(job);
        for step in ["begin-job", "prepare-cutover", "snapshot", "convert", step, "verify", "complete-job"] {
            state = match self.drive(step, state.clone()).await {
                Ok(state) => state,
                Err(error) => {
                    state["error"] = json!({"Error": error.name, "Cause": error.cause});
                    self.drive("fail-job", state).await?;
                    return Err(error);
                }
            };
        }
        Ok(())
    }

    async fn terminate_jobs(&mut self) {
        for input in self.executions_of("terminate") {
            self.drive("terminate", input).await.unwrap();
        }
    }

    fn job(&self, id: &JobId) -> Job {
        self.item(id.as_str())
    }

    /// The inputs of the executions of a state machine.
    fn executions_of(&self, machine: &str) -> Vec<Value> {
        let world = self.fake.world();
        world.executions.values().filter(|(m, _)| m == machine).map(|(_, input)| input.clone()).collect()
    }

    /// Installs the agent again, with its key, as the same server.
    async fn enrol_again(&mut self) {
        let mut request = enrol_request(&self.csr);
        request.source_server_id = Some(self.id.clone());
        let response = link::enrol(&self.ports, &request).await.unwrap();
        assert_eq!(response.source_server_id, self.id);
        self.fake.world().executions.retain(|_, (machine, _)| machine != "migrate");
        self.agent.serial = self.server().internal.certificate_serials.last().unwrap().clone();
        let sequence = self.server().internal.event_sequence;
        let input = json!({"execution": format!("migrate-{sequence}"), "sourceServerID": self.id, "replicate": true});
        self.fake.world().executions.insert(format!("migrate-{sequence}"), ("migrate".to_owned(), input));
        (self.agent.volumes, self.stopped, self.held, self.reached) = (vec![], false, None, Epoch(0));
        self.told = None;
    }

    async fn ledger(&self) -> Vec<LedgerEntry> {
        crate::ledger::entries(&self.ports, &self.id).await.unwrap()
    }

    async fn finalize(&mut self) {
        let state = json!({"execution": "finalize", "sourceServerID": self.id});
        let state = self.drive("finalize", state).await.unwrap();
        assert_eq!(state["status"], "DONE");
    }

    async fn start(&self, initiated_by: InitiatedBy) -> Job {
        let servers = std::slice::from_ref(&self.id);
        let started = match initiated_by {
            InitiatedBy::StartCutover => operations::start_cutover(&self.ports, servers, BTreeMap::new()).await,
            _ => operations::start_test(&self.ports, servers, BTreeMap::new()).await,
        };
        started.unwrap()
    }

    async fn mark(&mut self, state: LifeCycleState) {
        operations::change_server_life_cycle_state(&self.ports, &self.id, state).await.unwrap();
        self.terminate_jobs().await;
    }

    /// The whole path, up to the archive.
    async fn migrate(&mut self) {
        self.reach_ready_for_test().await;
        let test = self.start(InitiatedBy::StartTest).await;
        self.launch(&test).await.unwrap();
        self.mark(LifeCycleState::ReadyForCutover).await;
        let cutover = self.start(InitiatedBy::StartCutover).await;
        self.launch(&cutover).await.unwrap();
        operations::finalize_cutover(&self.ports, &self.id).await.unwrap();
        self.finalize().await;
        operations::mark_as_archived(&self.ports, &self.id).await.unwrap();
    }
}

#[tokio::test]
async fn the_whole_path_ends_archived_with_an_empty_ledger() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let server = source.server();
    assert_eq!(server.life_cycle.state, LifeCycleState::ReadyForTest);
    assert!(server.data_replication_info.last_snapshot_date_time.is_some());

    let job = source.start(InitiatedBy::StartTest).await;
    assert_eq!(source.server().life_cycle.state, LifeCycleState::Testing, "at the call");
    source.launch(&job).await.unwrap();
    let job = source.job(&job.job_id);
    assert_eq!(job.status, JobStatus::Completed);
    assert_eq!(job.participating_servers[0].launch_status, LaunchStatus::Launched);
    let events: Vec<_> = job.log.iter().map(|item| item.event).collect();
    assert_eq!(events.first(), Some(&JobLogEvent::JobStart));
    assert_eq!(events.last(), Some(&JobLogEvent::JobEnd));

    source.mark(LifeCycleState::ReadyForCutover).await;
    assert!(source.server().launched_instance.is_none(), "the test instance went with the test");
    let cutover = source.start(InitiatedBy::StartCutover).await;
    source.launch(&cutover).await.unwrap();
    operations::finalize_cutover(&source.ports, &source.id).await.unwrap();
    assert!(operations::mark_as_archived(&source.ports, &source.id).await.is_err(), "resources are still there");
    source.finalize().await;
    let archived = operations::mark_as_archived(&source.ports, &source.id).await.unwrap();

    assert!(archived.is_archived && archived.launched_instance.is_some());
    assert_eq!(archived.data_replication_info.data_replication_state, DataReplicationState::Disconnected);
    assert_eq!(source.ledger().await, []);
    let inventory: Vec<_> = source.fake.world().inventory().into_iter().collect();
    let cutover = Some("cutover".to_owned());
    assert_eq!(inventory, [(ResourceKind::Volume, cutover.clone()), (ResourceKind::Instance, cutover)]);
}

#[tokio::test]
async fn events_count_without_gaps_and_tell_every_state() {
    let mut source = Source::enrol().await;
    source.migrate().await;
    let world = source.fake.world();
    let sequences: Vec<_> = world.events.iter().map(|e| e.detail.sequence).collect();
    let expected: Vec<u64> = (1..=u64::try_from(sequences.len()).unwrap()).collect();
    assert_eq!(sequences, expected);
    let states: Vec<_> = world
        .events
        .iter()
        .filter(|e| e.detail.data.contains_key("previousState"))
        .map(|e| &e.detail.data["state"])
        .collect();
    for state in
        ["INITIATING", "INITIAL_SYNC", "READY_FOR_TEST", "TESTING", "READY_FOR_CUTOVER", "CUTTING_OVER", "CUTOVER"]
    {
        assert!(states.iter().any(|s| *s == state), "{state} in {states:?}");
    }
}

#[tokio::test]
async fn a_failed_conversion_leaves_nothing_and_the_state_before_the_call() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let before = source.fake.world().inventory();
    source.fake.world().conversion_fails = true;
    let job = source.start(InitiatedBy::StartTest).await;
    let error = source.launch(&job).await.unwrap_err();
    assert_eq!(error.name, "ConversionFailed");
    assert_eq!(source.server().life_cycle.state, LifeCycleState::ReadyForTest);
    assert_eq!(source.server().internal.active_job, None);
    let job = source.job(&job.job_id);
    assert_eq!((job.status, job.participating_servers[0].launch_status), (JobStatus::Completed, LaunchStatus::Failed));
    let reason = job.log.iter().find_map(|item| item.event_data.raw_error.clone()).unwrap();
    assert!(reason.contains("no root file system was found") && reason.contains("replicate the root disk"), "{reason}");
    assert_eq!(source.fake.world().inventory(), before);
}

#[tokio::test]
async fn a_failed_initiation_step_stays_visible_until_it_succeeds() {
    let mut source = Source::enrol().await;
    let mut state = source.drive("register", source.migrate_input()).await.unwrap();
    for n in 0.. {
        source.fake.fail_call(n, false);
        state = run(&source.ports, "provision", state.clone()).await.unwrap_or(state);
        source.fake.fail_call(usize::MAX, false);
        if source.server().data_replication_info.data_replication_state == DataReplicationState::Stalled {
            break;
        }
        source.poll_replicator().await;
    }
    source.poll_agent().await;
    let info = source.server().data_replication_info;
    assert_eq!(info.data_replication_state, DataReplicationState::Stalled);
    assert!(info.data_replication_error.is_some(), "the agent, which has no trouble, hid that of the initiation");
    source.drive("provision", state).await.unwrap();
    assert_eq!(source.server().data_replication_info.data_replication_error, None);
}

#[tokio::test]
async fn a_cutover_that_does_not_answer_rolls_back() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    source.mark(LifeCycleState::ReadyForCutover).await;
    source.fake.world().probes_fail = true;
    let settings = operations::ServerSettings { verify_timeout_seconds: Some(10), ..Default::default() };
    operations::update_server_settings(&source.ports, &source.id, &settings).await.unwrap();
    let job = source.start(InitiatedBy::StartCutover).await;
    assert_eq!(source.launch(&job).await.unwrap_err().name, "VerifyFailed");
    assert_eq!(source.server().life_cycle.state, LifeCycleState::ReadyForCutover);
    assert!(source.server().launched_instance.is_none());
}

#[tokio::test]
async fn a_snapshot_whose_hold_expired_does_not_count() {
    let mut source = Source::enrol().await;
    let mut state = source.migrate_input();
    for step in ["register", "provision", "replication-status"] {
        state = source.drive(step, state).await.unwrap();
    }
    // The checkpoint is reached and held, the snapshots are taken; then the replicator says that the hold timed out.
    while source.fake.world().inventory().iter().all(|(kind, _)| *kind != ResourceKind::Snapshot) {
        state = run(&source.ports, "snapshot", state).await.unwrap();
        source.poll().await;
    }
    source.hold_expires = true;
    source.poll_replicator().await;
    let answer = run(&source.ports, "snapshot", state.clone()).await.unwrap();
    assert_eq!(answer["status"], "IN_PROGRESS");
    (source.hold_expires, source.held) = (false, None);
    let answer = source.drive("snapshot", answer).await.unwrap();
    assert_eq!(answer["status"], "DONE");
    assert!(answer["epoch"].as_u64() > Some(1), "another checkpoint was asked for: {answer}");
    let snapshots = source.fake.world().resources.values().filter(|(kind, _)| *kind == ResourceKind::Snapshot).count();
    assert_eq!(snapshots, 2, "one for each disk, and none of the expired hold");
}

#[tokio::test]
async fn two_jobs_never_work_on_one_server() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    source.start(InitiatedBy::StartTest).await;
    let servers = std::slice::from_ref(&source.id);
    let error = operations::start_test(&source.ports, servers, BTreeMap::new()).await.unwrap_err();
    assert!(matches!(error, operations::OperationError::Conflict { .. }), "{error:?}");
    assert!(operations::terminate_target_instances(&source.ports, servers, BTreeMap::new()).await.is_err());
}

#[tokio::test]
async fn who_holds_another_key_gets_another_identity() {
    let source = Source::enrol().await;
    let mut request = enrol_request(&csr());
    request.source_server_id = Some(source.id.clone());
    let stranger = link::enrol(&source.ports, &request).await.unwrap();
    assert_ne!(stranger.source_server_id, source.id);
    let mut again = enrol_request(&source.csr);
    again.source_server_id = Some(source.id.clone());
    let same = link::enrol(&source.ports, &again).await.unwrap();
    assert_eq!(same.source_server_id, source.id);
}

#[tokio::test]
async fn a_replaced_certificate_is_refused_once_the_new_one_was_used() {
    let mut source = Source::enrol().await;
    let first = source.agent.clone();
    source.reach_ready_for_test().await;
    assert_ne!(first.serial, source.agent.serial);
    let report = AgentReport { agent_version: "0".to_owned(), phase: AgentPhase::Idle, ..AgentReport::default() };
    assert!(link::agent_poll(&source.ports, &first, &report).await.is_err());
    assert!(link::agent_poll(&source.ports, &source.agent, &report).await.is_ok());
}

#[tokio::test]
async fn a_server_can_be_disconnected_installed_and_disconnected_again() {
    let mut source = Source::enrol().await;
    for round in 1..=2u64 {
        source.reach_ready_for_test().await;
        operations::disconnect_from_service(&source.ports, &source.id).await.unwrap();
        let finalizes = source.executions_of("finalize").len();
        assert_eq!(u64::try_from(finalizes).unwrap(), round, "each disconnection has a finalize of its own");
        source.finalize().await;
        assert_eq!(source.ledger().await, [], "round {round}");
        assert!(source.fake.world().inventory().is_empty(), "round {round}");
        if round == 1 {
            source.enrol_again().await;
        }
    }
}

#[tokio::test]
async fn without_its_copy_a_cutover_cannot_be_finalized() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    source.mark(LifeCycleState::ReadyForCutover).await;
    let job = source.start(InitiatedBy::StartCutover).await;
    source.launch(&job).await.unwrap();
    let servers = std::slice::from_ref(&source.id);
    operations::terminate_target_instances(&source.ports, servers, BTreeMap::new()).await.unwrap();
    let error = operations::finalize_cutover(&source.ports, &source.id).await.unwrap_err();
    assert!(error.to_string().contains("no cutover instance"), "{error}");
    source.terminate_jobs().await;
    assert_eq!(source.fake.world().inventory().iter().filter(|(_, p)| p.as_deref() == Some("cutover")).count(), 0);
}

#[tokio::test]
async fn after_the_cutover_the_copy_is_the_users() {
    let mut source = Source::enrol().await;
    source.migrate().await;
    let servers = std::slice::from_ref(&source.id);
    assert!(operations::terminate_target_instances(&source.ports, servers, BTreeMap::new()).await.is_err());
}

#[tokio::test]
async fn a_failed_second_test_shows_the_first_ones_instance_again() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let first = source.start(InitiatedBy::StartTest).await;
    source.launch(&first).await.unwrap();
    let instance = source.server().launched_instance.unwrap().ec2_instance_id;
    source.fake.world().conversion_fails = true;
    let second = source.start(InitiatedBy::StartTest).await;
    source.launch(&second).await.unwrap_err();
    assert_eq!(source.server().life_cycle.state, LifeCycleState::Testing);
    assert_eq!(source.server().launched_instance.map(|l| l.ec2_instance_id), Some(instance));
}

#[tokio::test]
async fn what_was_given_up_is_terminated_after_a_crash() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let job = source.start(InitiatedBy::StartTest).await;
    source.launch(&job).await.unwrap();
    // The lifecycle is written; the call that would create the job is cut off.
    for n in 0.. {
        source.fake.fail_call(n, false);
        let marked =
            operations::change_server_life_cycle_state(&source.ports, &source.id, LifeCycleState::ReadyForCutover)
                .await;
        source.fake.fail_call(usize::MAX, false);
        assert!(marked.is_err());
        if source.server().life_cycle.state == LifeCycleState::ReadyForCutover {
            break;
        }
    }
    assert!(source.executions_of("terminate").is_empty());
    crate::jobs::recover(&source.ports).await.unwrap();
    source.terminate_jobs().await;
    assert!(source.fake.world().inventory().iter().all(|(_, purpose)| purpose.as_deref() != Some("test")));
}

#[tokio::test]
async fn a_snapshot_that_fails_is_shown_and_tried_again() {
    let mut source = Source::enrol().await;
    let mut state = source.migrate_input();
    for step in ["register", "provision", "replication-status"] {
        state = source.drive(step, state).await.unwrap();
    }
    state["error"] = json!({"Error": "NoSpace", "Cause": "the disk is full: free some space"});
    let answer = run(&source.ports, "snapshot-failed", state.clone()).await.unwrap();
    assert_eq!(answer["status"], "IN_PROGRESS");
    source.poll().await;
    let error = source.server().data_replication_info.data_replication_error.unwrap();
    assert!(error.raw_error.contains("free some space"), "also after the agent's next report: {error:?}");
    source.drive("snapshot", state).await.unwrap();
    assert_eq!(source.server().data_replication_info.data_replication_error, None);
}
