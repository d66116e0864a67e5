//! One server on its way through the steps: what state machines, agent and replicator do, without any of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rehost_control::Ports;
use rehost_control::link::{self, CertificateIdentity};
use rehost_control::operations::{self, ServerSettings};
use rehost_control::ports::{ItemKey, Kind};
use rehost_control::steps::{self, StepError};
use rehost_control::{ledger, schedule};
use rehost_model::job::InitiatedBy;
use rehost_model::launch::Probe;
use rehost_model::link::{
    AgentCommand, AgentPhase, AgentReport, BootFirmware, EnrolRequest, FenceState, PartitionTable, RenewRequest,
    ReplicatorEnrolRequest, ReplicatorReport, ServerReport, SourceDisk, VolumeReport,
};
use rehost_model::replication::Consistency;
use rehost_model::replicator::ReplicationServer;
use rehost_model::server::SourceProperties;
use rehost_model::{Epoch, ExecutionId, Job, LifeCycleState, ReplicatorId, ServerId, SourceServer};
use rehost_tests::aws::{Failure, Fault};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::world::World;

/// How a step's calls fail.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Plan {
    Nothing,
    /// The same, but others are at work in the same region: they may be faster.
    Crowd,
    /// The call `nth` of every invocation fails; then the invocation is repeated.
    Nth {
        nth: usize,
        after_effect: bool,
        failure: Failure,
    },
    /// Every call of every invocation fails once; after each failure the invocation is repeated.
    Each(Failure),
    /// Every invocation is made twice.
    Twice,
}

/// What happened on the way.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// Calls of the longest invocation.
    pub(crate) longest: usize,
    /// Invocations that met a failure.
    pub(crate) struck: usize,
    /// Every invocation, in order.
    pub(crate) invocations: Vec<(String, Value)>,
}

pub(crate) struct Source {
    world: Arc<World>,
    pub(crate) ports: Ports,
    pub(crate) id: ServerId,
    plan: Plan,
    pub(crate) way: Way,
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
    pub(crate) async fn enrol(world: &Arc<World>, ports: Ports, plan: Plan) -> Self {
        let csr = csr();
        let id = link::enrol(&ports, &enrolment(&csr)).await.unwrap().source_server_id;
        let settings = ServerSettings { probes: Some(vec![Probe::Boot]), ..ServerSettings::default() };
        operations::update_server_settings(&ports, &id, &settings).await.unwrap();
        let agent =
            CertificateIdentity { serial: String::new(), server: Some(id.clone()), replicator: None, volumes: vec![] };
        let mut source = Self {
            world: Arc::clone(world),
            ports,
            id,
            plan,
            way: Way::default(),
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

    async fn poll(&mut self) {
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
        let Some(id) = server.internal.replicator.clone() else { return };
        let Some(identity) = self.replicator_identity(&id).await else { return };
        let report = ReplicatorReport { port: 1500, version: "0".to_owned(), servers: vec![self.report(&server)] };
        let directive = link::replicator_poll(&self.ports, &identity, &report).await.unwrap();
        if directive.releases.get(&self.id).is_some_and(|released| self.held.is_some_and(|held| *released >= held)) {
            self.held = None;
        }
    }

    /// What the replication server shows for itself; it enrols once, whomever it serves. `None` while it has not been launched.
    async fn replicator_identity(&self, id: &ReplicatorId) -> Option<CertificateIdentity> {
        let token = self.world.cloud.enrol_token(id.as_str())?;
        let mut enrolled = self.world.cloud.replicators.lock().await;
        if let Some(identity) = enrolled.get(id) {
            return Some(identity.clone());
        }
        let request = ReplicatorEnrolRequest { replicator: id.clone(), token, csr: csr() };
        // An instance whose launch was not written down yet is not known: it asks again.
        link::replicator_enrol(&self.ports, &request).await.ok()?;
        let server: ReplicationServer = self.item(Kind::ReplicationServer, id.as_str()).await;
        let serial = server.certificate_serials[0].clone();
        let identity = CertificateIdentity { serial, server: None, replicator: Some(id.clone()), volumes: vec![] };
        enrolled.insert(id.clone(), identity.clone());
        Some(identity)
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
    async fn invoke(&mut self, step: &str, state: &Value) -> Result<Value, StepError> {
        self.way.invocations.push((step.to_owned(), state.clone()));
        let faults = self.world.proxy.faults();
        match self.plan {
            Plan::Nothing | Plan::Crowd => faults.clear(),
            Plan::Nth { nth, after_effect, failure } => faults.plant(Fault { nth, after_effect, failure }),
            Plan::Each(failure) => faults.fail_every_call_once(failure),
            Plan::Twice => {
                faults.clear();
                let _ = steps::run(&self.ports, step, state.clone()).await;
            }
        }
        let answer = self.repeat(step, state).await;
        self.world.proxy.faults().clear();
        answer
    }

    async fn repeat(&mut self, step: &str, state: &Value) -> Result<Value, StepError> {
        let mut struck = 0;
        for _ in 0..400 {
            let faults = self.world.proxy.faults();
            faults.begin_again();
            let before = faults.seen();
            let answer = steps::run(&self.ports, step, state.clone()).await;
            self.way.longest = self.way.longest.max(faults.seen() - before);
            let failed = faults.struck().len();
            let met = failed > struck;
            struck = failed;
            self.way.struck += usize::from(met);
            match answer {
                Err(error) if error.name.starts_with("Retryable") => {
                    assert!(met || matches!(self.plan, Plan::Crowd), "{step} failed by itself: {error}");
                }
                // A failure that the step itself lived through: the state machine goes on.
                answer => return answer,
            }
        }
        panic!("{step} does not get on: {state}");
    }

    async fn drive(&mut self, step: &str, mut state: Value) -> Result<Value, StepError> {
        for _ in 0..80 {
            state = self.invoke(step, &state).await?;
            if state["status"] != "IN_PROGRESS" {
                return Ok(state);
            }
            self.poll().await;
        }
        panic!("{step} does not come to an end: {state} {:#?}", self.server().await.data_replication_info);
    }

    async fn snapshot(&mut self, mut state: Value) -> Value {
        for _ in 0..10 {
            let told = self.checkpoint(&state).await;
            assert_eq!(told["status"], "DONE", "{told}");
            state = self.drive("snapshot", state).await.unwrap_or_else(|e| panic!("snapshot: {e}"));
            if state["status"] != "AGAIN" {
                return state;
            }
        }
        panic!("no snapshot comes about: {state}");
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
            schedule::tick(&self.ports).await.unwrap();
        }
        panic!("nobody told {execution} of its checkpoint: {:#?}", self.server().await.internal.checkpoint);
    }

    async fn chain(&mut self, names: &[&str], mut state: Value) {
        for step in names {
            state = match *step {
                "checkpoint and snapshot" => self.snapshot(state).await,
                _ => self.drive(step, state).await.unwrap_or_else(|e| panic!("{step}: {e}")),
            };
        }
    }

    pub(crate) async fn replicate(&mut self) {
        let execution = ExecutionId(format!("migrate-{}-1", self.id));
        let input = json!({"execution": execution, "sourceServerID": self.id, "replicate": true});
        self.ports.workflows.start("migrate", &execution, input.clone()).await.unwrap();
        let names = ["register", "provision", "replication-status", "checkpoint and snapshot", "ready-for-test"];
        self.chain(&names, input).await;
    }

    async fn launch(&mut self, initiated_by: InitiatedBy) {
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
        self.launch(InitiatedBy::StartTest).await;
        let ready = LifeCycleState::ReadyForCutover;
        operations::change_server_life_cycle_state(&self.ports, &self.id, ready).await.unwrap();
        self.terminate().await;
        self.launch(InitiatedBy::StartCutover).await;
        operations::finalize_cutover(&self.ports, &self.id).await.unwrap();
        let execution = format!("finalize-{}", self.id);
        self.chain(&["finalize"], json!({"execution": execution, "sourceServerID": self.id})).await;
        operations::mark_as_archived(&self.ports, &self.id).await.unwrap();
    }

    /// Makes every invocation once more, late: in this order.
    pub(crate) async fn repeat_all(&self, invocations: impl Iterator<Item = &(String, Value)>) {
        for (step, state) in invocations {
            // What comes too late is refused or without effect; which of both is the step's business.
            let _ = steps::run(&self.ports, step, state.clone()).await;
        }
    }
}
