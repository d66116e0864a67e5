//! One server on its way through the steps: what state machines, agent and replicator do, without any of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rehost_control::Ports;
use rehost_control::link::{self, CertificateIdentity};
use rehost_control::operations::{self, OperationError, ReplicationChange, ServerSettings};
use rehost_control::ports::{ExecutionStatus, ItemKey, Kind};
use rehost_control::steps::StepError;
use rehost_control::{PortErrorKind, ledger, schedule};
use rehost_model::job::InitiatedBy;
use rehost_model::launch::Probe;
use rehost_model::link::{
    AgentCommand, AgentPhase, AgentReport, BootFirmware, EnrolRequest, FenceState, PartitionTable, RenewRequest,
    ReplicatorEnrolRequest, ReplicatorReport, ServerReport, SourceDisk, VolumeReport,
};
use rehost_model::replication::Consistency;
use rehost_model::replicator::ReplicationServer;
use rehost_model::server::SourceProperties;
use rehost_model::{Epoch, ExecutionId, Job, JobId, LifeCycleState, ReplicatorId, ServerId, SourceServer};
use rehost_tests::aws::{Failure, Fault};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::chores;
use crate::world::{Region, Replicator, World};

/// How a step's calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    Nothing,
    /// The same, but others are at work in the same region: they may be faster.
    Crowd,
    /// The call `nth` of every invocation fails; then the invocation is repeated without a failure.
    Nth {
        nth: usize,
        after_effect: bool,
        failure: Failure,
    },
    /// Every call of every invocation fails once; after each failure the invocation is repeated with those that are left.
    Each(Failure),
    /// The same, in every state that an invocation leads to, and before or after the effect.
    EachWhereverItComes {
        after_effect: bool,
    },
    /// Every invocation is made twice.
    Twice,
}

/// How much faster than a state machine's time a crowd's goes by: who waits lets others get on.
const HASTE: u32 = 10;

/// What happened on the way.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// Calls of all invocations.
    pub(crate) calls: usize,
    /// Invocations that met a failure.
    pub(crate) struck: usize,
    /// Every invocation, in order.
    pub(crate) invocations: Vec<(String, Value)>,
}

pub(crate) struct Source {
    world: Arc<World>,
    /// What users, agent and replicators do goes this way.
    pub(crate) ports: Ports,
    steps: Ports,
    pub(crate) id: ServerId,
    plan: Plan,
    pub(crate) way: Way,
    /// The last invocation lived through a failure and wants to be made again.
    struck: bool,
    csr: String,
    agent: CertificateIdentity,
    held: Option<Epoch>,
    reached: Epoch,
    stopped: bool,
    fence: FenceState,
    told: Option<AgentCommand>,
}

fn csr() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

fn enrolment(csr: &str) -> EnrolRequest {
    let disk = |name: &str, is_boot_disk| SourceDisk {
        device_name: name.to_owned(),
        size_bytes: 1 << 30,
        is_boot_disk,
        partition_table: PartitionTable::Gpt,
    };
    EnrolRequest {
        csr: csr.to_owned(),
        source_server_id: None,
        user_provided_id: None,
        tags: BTreeMap::new(),
        properties: SourceProperties::default(),
        disks: vec![disk("/dev/sda", true), disk("/dev/sdb", false)],
        firmware: BootFirmware::Uefi,
        replicate: true,
        agent_version: "0".to_owned(),
    }
}

impl Source {
    pub(crate) async fn enrol(world: &Arc<World>, region: Region, plan: Plan) -> Self {
        let Region { steps, ports, .. } = region;
        if let Plan::EachWhereverItComes { after_effect } = plan {
            world.breaker.set(Some(after_effect));
        }
        let csr = csr();
        let id = link::enrol(&ports, &enrolment(&csr)).await.unwrap().source_server_id;
        let settings = ServerSettings { probes: Some(vec![Probe::Boot]), ..ServerSettings::default() };
        operations::update_server_settings(&ports, &id, &settings).await.unwrap();
        let agent =
            CertificateIdentity { serial: String::new(), server: Some(id.clone()), replicator: None, volumes: vec![] };
        let mut source = Self {
            world: Arc::clone(world),
            ports,
            steps,
            id,
            plan,
            way: Way::default(),
            struck: false,
            csr,
            agent,
            held: None,
            reached: Epoch(0),
            stopped: false,
            fence: FenceState::Open,
            told: None,
        };
        source.agent.serial = source.server().await.internal.certificate_serials[0].clone();
        source
    }

    /// Names the staging subnet.
    pub(crate) async fn stage_in(&self, subnet: &str) {
        let change =
            ReplicationChange { staging_area_subnet_id: Some(subnet.to_owned()), ..ReplicationChange::default() };
        operations::update_replication_configuration(&self.ports, &self.id, &change).await.unwrap();
    }

    pub(crate) async fn server(&self) -> SourceServer {
        self.item(Kind::SourceServer, self.id.as_str()).await
    }

    async fn item<T: DeserializeOwned>(&self, kind: Kind, id: &str) -> T {
        let item = self.ports.store.get(&ItemKey::new(kind, id)).await.unwrap().unwrap();
        serde_json::from_value(item.body).unwrap()
    }

    pub(crate) async fn ledger(&self) -> usize {
        ledger::entries(&self.ports, &self.id).await.unwrap().len()
    }

    pub(crate) async fn job(&self, id: &JobId) -> Job {
        self.item(Kind::Job, id.as_str()).await
    }

    pub(crate) async fn poll(&mut self) {
        self.poll_agent().await;
        self.poll_replicator().await;
    }

    pub(crate) async fn poll_agent(&mut self) {
        let phase = match (&self.told, self.stopped) {
            (_, true) => AgentPhase::Stopped,
            (Some(AgentCommand::Wait), _) => AgentPhase::Waiting,
            _ => AgentPhase::Idle,
        };
        let (agent_version, fence) = ("0".to_owned(), self.fence.clone());
        let report = AgentReport { agent_version, phase, fence, ..AgentReport::default() };
        let directive = link::agent_poll(&self.ports, &self.agent, &report).await.unwrap();
        if directive.renew {
            link::agent_renew(&self.ports, &self.agent, &RenewRequest { csr: self.csr.clone() }).await.unwrap();
            let internal = self.server().await.internal;
            self.agent.serial = internal.certificate_serials.last().unwrap().clone();
            self.agent.volumes = internal.paired_volumes;
        }
        self.told = Some(directive.command.clone());
        match directive.command {
            AgentCommand::Disconnect => self.stopped = true,
            AgentCommand::Replicate { checkpoint, fence, .. } => {
                self.fence = fence.map_or(FenceState::Open, |fence| FenceState::Fenced { fence });
                if self.held.is_none() && checkpoint > self.reached {
                    (self.reached, self.held) = (checkpoint, Some(checkpoint));
                }
            }
            _ => {}
        }
    }

    pub(crate) async fn poll_replicator(&mut self) {
        let server = self.server().await;
        let internal = &server.internal;
        for id in internal.replicator.iter().chain(&internal.former_replicator) {
            self.poll_as(id, &server).await;
        }
    }

    /// One poll of a replication server, for this server.
    async fn poll_as(&mut self, id: &ReplicatorId, server: &SourceServer) {
        let Some(replicator) = self.replicator(id).await else { return };
        // It asks for all whom it serves, once at a time.
        let identity = replicator.lock().await;
        let report = ReplicatorReport { port: 1500, version: "0".to_owned(), servers: vec![self.report(server)] };
        let directive = match link::replicator_poll(&self.ports, &identity, &report).await {
            // Others were faster; it asks again.
            Err(OperationError::Port(error)) if error.kind == PortErrorKind::Conflict && self.plan == Plan::Crowd => {
                return;
            }
            directive => directive.unwrap(),
        };
        if directive.releases.get(&self.id).is_some_and(|released| self.held.is_some_and(|held| *released >= held)) {
            self.held = None;
        }
    }

    /// What the replication server shows for itself; it enrols once, whomever it serves. `None` while it has not been launched.
    async fn replicator(&self, id: &ReplicatorId) -> Option<Replicator> {
        let token = self.world.cloud.enrol_token(id.as_str())?;
        let mut enrolled = self.world.cloud.replicators.lock().await;
        if let Some(replicator) = enrolled.get(id) {
            return Some(Arc::clone(replicator));
        }
        let request = ReplicatorEnrolRequest { replicator: id.clone(), token, csr: csr() };
        // An instance whose launch was not written down yet is not known: it asks again.
        link::replicator_enrol(&self.ports, &request).await.ok()?;
        let server: ReplicationServer = self.item(Kind::ReplicationServer, id.as_str()).await;
        let serial = server.certificate_serials[0].clone();
        let identity = CertificateIdentity { serial, server: None, replicator: Some(id.clone()), volumes: vec![] };
        let replicator = Arc::new(tokio::sync::Mutex::new(identity));
        enrolled.insert(id.clone(), Arc::clone(&replicator));
        Some(replicator)
    }

    fn report(&self, server: &SourceServer) -> ServerReport {
        let size = |volume| {
            let staging = &server.internal.staging;
            staging.iter().find(|disk| disk.volume.as_ref() == Some(volume)).map_or(0, |disk| disk.size_bytes)
        };
        let volumes = self.agent.volumes.iter();
        ServerReport {
            server: self.id.clone(),
            connected: !self.agent.volumes.is_empty(),
            received_bytes: 1,
            checkpoint: self.reached,
            held: self.held,
            expired: Epoch(0),
            consistency: Consistency::Quiescent,
            consistent: true,
            journal_bytes: 0,
            volumes: volumes.map(|v| VolumeReport { volume: v.clone(), synced_bytes: size(v) }).collect(),
            error: None,
        }
    }

    /// One invocation of a step, as its state machine makes it: what is retryable is repeated. The calls fail as planned.
    pub(crate) async fn invoke(&mut self, step: &str, state: &Value) -> Result<Value, StepError> {
        self.way.invocations.push((step.to_owned(), state.clone()));
        if !self.struck {
            self.plant();
        }
        if self.plan == Plan::Twice {
            let _ = chores::run(&self.steps, step, state.clone()).await;
        }
        for _ in 0..400 {
            let (answer, met) = self.attempt(step, state).await;
            match answer {
                Err(error) if error.name.starts_with("Retryable") => {
                    assert!(met || self.plan == Plan::Crowd, "{step} failed by itself: {error}");
                }
                answer => {
                    // A failure that the step itself lived through: the state machine goes on, with the failures that are left.
                    self.struck = met && answer.as_ref().is_ok_and(|answer| answer["status"] == "IN_PROGRESS");
                    return answer;
                }
            }
        }
        panic!("{step} does not get on: {state}");
    }

    fn plant(&self) {
        let faults = self.world.proxy.faults();
        self.world.breaker.begin();
        match self.plan {
            Plan::EachWhereverItComes { .. } => {}
            Plan::Nothing | Plan::Crowd | Plan::Twice => {}
            Plan::Nth { nth, after_effect, failure } => faults.plant(Fault { nth, after_effect, failure }),
            Plan::Each(failure) => faults.fail_every_call_once(failure),
        }
    }

    /// What the invocation answers, and whether it met a failure.
    async fn attempt(&mut self, step: &str, state: &Value) -> (Result<Value, StepError>, bool) {
        let faults = self.world.proxy.faults();
        faults.begin_again();
        self.world.breaker.begin_again();
        let struck = || faults.struck().len() + self.world.breaker.struck();
        let (seen, before) = (faults.seen(), struck());
        let answer = chores::run(&self.steps, step, state.clone()).await;
        let met = struck() > before;
        self.way.calls += faults.seen() - seen;
        self.way.struck += usize::from(met);
        (answer, met)
    }

    pub(crate) async fn drive(&mut self, step: &str, mut state: Value) -> Result<Value, StepError> {
        for _ in 0..400 {
            state = self.invoke(step, &state).await?;
            if state["status"] != "IN_PROGRESS" {
                return Ok(state);
            }
            if self.plan == Plan::Crowd {
                let seconds = state["waitSeconds"].as_u64().unwrap();
                tokio::time::sleep(Duration::from_secs(seconds) / HASTE).await;
            }
            self.poll().await;
        }
        panic!("{step} does not come to an end: {state} {:#?}", self.server().await.data_replication_info);
    }

    async fn snapshot(&mut self, mut state: Value) -> Result<Value, StepError> {
        for _ in 0..10 {
            let told = self.checkpoint(&state).await;
            assert_eq!(told["status"], "DONE", "{told}");
            state = self.drive("snapshot", state).await?;
            if state["status"] != "AGAIN" {
                return Ok(state);
            }
        }
        panic!("no snapshot comes about: {state}");
    }

    /// One step of a chain, to its end.
    pub(crate) async fn try_step(&mut self, step: &str, state: Value) -> Result<Value, StepError> {
        if step == "checkpoint and snapshot" { self.snapshot(state).await } else { self.drive(step, state).await }
    }

    /// Waits for a checkpoint as the state machine does, by token.
    async fn checkpoint(&mut self, state: &Value) -> Value {
        let execution = state["execution"].as_str().unwrap().to_owned();
        let token = self.world.cloud.wait(&execution);
        let input = json!({"token": token, "execution": execution, "sourceServerID": self.id});
        self.invoke("request-checkpoint", &input).await.unwrap();
        for _ in 0..40 {
            if let Some(told) = self.world.cloud.reported(&execution) {
                return serde_json::from_str(told["output"].as_str().unwrap_or_else(|| panic!("{told}"))).unwrap();
            }
            self.poll().await;
            // Among many it is nobody's own business.
            if self.plan != Plan::Crowd {
                schedule::tick(&self.ports).await.unwrap();
            }
        }
        panic!("nobody told {execution} of its checkpoint: {:#?}", self.server().await.internal.checkpoint);
    }

    async fn chain(&mut self, names: &[&str], mut state: Value) {
        for step in names {
            state = self.try_step(step, state).await.unwrap_or_else(|e| panic!("{step}: {e}"));
        }
    }

    /// The input of its first migration.
    pub(crate) fn migration(&self) -> Value {
        json!({"execution": format!("migrate-{}-1", self.id), "sourceServerID": self.id, "replicate": true})
    }

    pub(crate) async fn replicate(&mut self) {
        let registered = serde_json::to_value(chores::registered(&self.id)).unwrap();
        self.invoke("on-event", &registered).await.unwrap();
        let execution = ExecutionId(format!("migrate-{}-1", self.id));
        assert_eq!(self.ports.workflows.status(&execution).await.unwrap(), Some(ExecutionStatus::Running));
        let input = self.migration();
        let names = ["register", "provision", "replication-status", "checkpoint and snapshot", "ready-for-test"];
        self.chain(&names, input).await;
    }

    pub(crate) async fn launch(&mut self, initiated_by: InitiatedBy) {
        let servers = std::slice::from_ref(&self.id);
        let (started, step) = match initiated_by {
            InitiatedBy::StartCutover => {
                (operations::start_cutover(&self.ports, servers, BTreeMap::new()).await, "launch-cutover")
            }
            _ => (operations::start_test(&self.ports, servers, BTreeMap::new()).await, "launch-test"),
        };
        let job: Job = started.unwrap();
        let execution = format!("launch-{}-{}", job.job_id, self.id);
        let input = json!({"execution": execution, "jobID": job.job_id, "sourceServerID": self.id, "initiatedBy": initiated_by});
        let names =
            ["begin-job", "prepare-cutover", "checkpoint and snapshot", "convert", step, "verify", "complete-job"];
        self.chain(&names, input).await;
    }

    async fn terminate(&mut self) {
        let jobs = operations::describe_jobs(&self.ports, &operations::JobFilter::default()).await.unwrap();
        for job in jobs.iter().filter(|job| job.initiated_by == InitiatedBy::Terminate) {
            let execution = format!("terminate-{}-{}", job.job_id, self.id);
            let input = json!({"execution": execution, "jobID": job.job_id, "sourceServerID": self.id});
            self.chain(&["terminate"], input).await;
        }
    }

    /// The whole path, up to the archive.
    pub(crate) async fn migrate(&mut self) {
        self.replicate().await;
        self.chores().await;
        self.launch(InitiatedBy::StartTest).await;
        let ready = LifeCycleState::ReadyForCutover;
        operations::change_server_life_cycle_state(&self.ports, &self.id, ready).await.unwrap();
        self.terminate().await;
        self.launch(InitiatedBy::StartCutover).await;
        self.chores().await;
        operations::finalize_cutover(&self.ports, &self.id).await.unwrap();
        let execution = format!("finalize-{}", self.id);
        self.chain(&["finalize"], json!({"execution": execution, "sourceServerID": self.id})).await;
        operations::mark_as_archived(&self.ports, &self.id).await.unwrap();
        self.chores().await;
    }

    /// The clock strikes.
    async fn chores(&mut self) {
        for chore in chores::OF_THE_CLOCK {
            self.invoke(chore, &json!({})).await.unwrap();
        }
    }

    /// Makes every invocation once more, late: in this order.
    pub(crate) async fn repeat_all(&self, invocations: impl Iterator<Item = &(String, Value)>) {
        for (step, state) in invocations {
            // What comes too late is refused or without effect; which of both is the step's business.
            let _ = chores::run(&self.steps, step, state.clone()).await;
        }
    }
}
