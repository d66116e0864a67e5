//! A region on moto behind the proxy, and beside it what moto does not play: replication servers that tell their tokens,
//! conversion servers that leave reports, tasks that wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use aws_config::retry::RetryConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rehost_aws::{RegionConfig, S3Objects, sdk};
use rehost_control::Ports;
use rehost_control::link::CertificateIdentity;
use rehost_ec2::Ec2Compute;
use rehost_model::ReplicatorId;
use rehost_model::conversion::{ConversionOutcome, ConversionReport, Finding, Severity};
use rehost_tests::aws::wire::{Wire, first};
use rehost_tests::aws::{Answer, Call, Hook, Moto, Proxy, Routes, stack};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::breaker::{self, Breaker};

/// EC2 has hundreds of them.
const INSTANCE_TYPES: &str = "DescribeInstanceTypes";

/// moto, to be reset between cases, and the proxies in front of it.
pub(crate) struct World {
    /// The way of the steps, on which calls fail.
    pub(crate) proxy: Proxy,
    pub(crate) breaker: Arc<Breaker>,
    /// The way of everybody else.
    pub(crate) ground: Proxy,
    pub(crate) wire: Wire,
    pub(crate) cloud: Arc<Cloud>,
    moto: Arc<Moto>,
    _folder: TempDir,
}

/// An empty region.
#[derive(Clone)]
pub(crate) struct Region {
    /// For the steps.
    pub(crate) steps: Ports,
    /// For everybody else: users, agents, replicators.
    pub(crate) ports: Ports,
    /// In a network other than the stack's.
    pub(crate) far_subnet: String,
}

impl World {
    pub(crate) async fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let moto = Arc::new(tokio::task::spawn_blocking(move || Moto::start(&path)).await.unwrap().unwrap());
        let start = || Proxy::start(Routes::to(&moto.endpoint())).unwrap();
        let (proxy, ground) = (start(), start());
        let wire = Wire::to(moto.port());
        let cloud = Arc::new(Cloud {
            wire,
            told: Mutex::default(),
            refused: Mutex::default(),
            instance_types: Mutex::default(),
            replicators: tokio::sync::Mutex::default(),
        });
        let breaker = Arc::new(Breaker::default());
        proxy.add_hook(Arc::new(breaker::Before(breaker.clone(), cloud.clone())));
        proxy.add_hook(cloud.clone());
        proxy.add_hook(Arc::new(breaker::After(breaker.clone())));
        ground.add_hook(cloud.clone());
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        for proxy in [&proxy, &ground] {
            // The last to see a call before moto does: whatever is answered otherwise waits for no turn.
            proxy.add_hook(Arc::new(Turns { turns: Arc::clone(&turns), taken: Mutex::default() }));
        }
        Arc::new(Self { proxy, breaker, ground, wire, cloud, moto, _folder: folder })
    }

    /// An empty region. The SDK does not retry: every failure reaches the step.
    pub(crate) async fn fresh(&self) -> Region {
        self.proxy.faults().clear();
        self.breaker.set(None);
        *self.cloud.told.lock().unwrap() = Told::default();
        self.cloud.refuse(None);
        self.cloud.replicators.lock().await.clear();
        let moto = Arc::clone(&self.moto);
        let make = move || {
            moto.reset().unwrap();
            let environment = stack::make(moto.port()).unwrap();
            let wait = json!({"StartAt": "A", "States": {"A": {"Type": "Wait", "Seconds": 600, "End": true}}});
            for machine in ["migrate", "provision", "snapshot", "launch", "terminate", "finalize"] {
                stack::make_machine(moto.port(), machine, &wait).unwrap();
            }
            (environment, stack::make_far_subnet(moto.port()).unwrap())
        };
        let (environment, far_subnet) = tokio::task::spawn_blocking(make).await.unwrap();
        let config = RegionConfig::read(&|name| environment.get(name).cloned()).unwrap();
        Region { steps: ports(&config, &self.proxy).await, ports: ports(&config, &self.ground).await, far_subnet }
    }

    /// What there is in the account, by kind: how many.
    pub(crate) async fn resources(&self) -> BTreeMap<&'static str, usize> {
        let wire = self.wire;
        let count = move || {
            let alive = [
                ("Filter.1.Name", "instance-state-name"),
                ("Filter.1.Value.1", "pending"),
                ("Filter.1.Value.2", "running"),
                ("Filter.1.Value.3", "stopping"),
                ("Filter.1.Value.4", "stopped"),
            ];
            let count = |action: &str, fields: &[(&str, &str)], mark: &str| {
                wire.ec2(action, fields).unwrap().matches(mark).count()
            };
            BTreeMap::from([
                ("instances", count("DescribeInstances", &alive, "<instanceId>i-")),
                (
                    "volumes",
                    count("DescribeVolumes", &[], "<status>available</status>")
                        + count("DescribeVolumes", &[], "<status>in-use</status>"),
                ),
                ("snapshots", count("DescribeSnapshots", &[("Owner.1", "self")], "<snapshotId>")),
                ("images", count("DescribeImages", &[("Owner.1", "self")], "<imageId>")),
                ("security groups", count("DescribeSecurityGroups", &[], "<groupDescription>")),
            ])
        };
        tokio::task::spawn_blocking(count).await.unwrap()
    }
}

/// How many calls moto works on at once: it is one process of Python, and more of them only keep each other from it.
const AT_ONCE: usize = 4;

/// Lets calls wait for their turn at moto.
struct Turns {
    turns: Arc<Semaphore>,
    taken: Mutex<BTreeMap<usize, OwnedSemaphorePermit>>,
}

#[async_trait]
impl Hook for Turns {
    async fn before(&self, call: &Call) -> Option<Answer> {
        let turn = Arc::clone(&self.turns).acquire_owned().await.unwrap();
        self.taken.lock().unwrap().insert(call.number, turn);
        None
    }

    async fn after(&self, call: &Call, _: &mut Answer) {
        self.taken.lock().unwrap().remove(&call.number);
    }
}

async fn ports(config: &RegionConfig, proxy: &Proxy) -> Ports {
    let sdk = sdk::load(config).await.into_builder();
    let credentials = Credentials::new("test", "test", None, None, "test");
    let sdk = sdk
        .endpoint_url(proxy.endpoint())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .retry_config(RetryConfig::disabled())
        .build();
    let compute = Ec2Compute::new(&sdk, config.clone(), Arc::new(S3Objects::new(config, &sdk)));
    rehost_aws::ports(config, &sdk, Arc::new(compute))
}

/// What was asked for on the way through the proxy.
#[derive(Default)]
struct Told {
    /// The tokens with which replicators enrol, by their ids.
    enrol: BTreeMap<String, String>,
    /// Tasks that wait: token and execution.
    waiting: BTreeMap<String, String>,
    /// What became of them, by execution.
    reported: BTreeMap<String, Value>,
    tokens: usize,
}

/// What is answered in place of what moto would.
pub(crate) struct Refusal {
    pub(crate) action: &'static str,
    /// Which calls of it.
    pub(crate) of: fn(&Call) -> bool,
    pub(crate) answer: Answer,
}

/// What a replication server shows for itself; to be held while it asks.
pub(crate) type Replicator = Arc<tokio::sync::Mutex<CertificateIdentity>>;

pub(crate) struct Cloud {
    wire: Wire,
    told: Mutex<Told>,
    refused: Mutex<Option<Refusal>>,
    /// What moto answers always alike, and never quickly: by the question.
    instance_types: Mutex<BTreeMap<Vec<u8>, Answer>>,
    /// The replication servers that have enrolled.
    pub(crate) replicators: tokio::sync::Mutex<BTreeMap<ReplicatorId, Replicator>>,
}

impl Cloud {
    pub(crate) fn enrol_token(&self, replicator: &str) -> Option<String> {
        self.told.lock().unwrap().enrol.get(replicator).cloned()
    }

    /// A task of this execution waits from now on; those before it do not any more.
    pub(crate) fn wait(&self, execution: &str) -> String {
        let mut told = self.told.lock().unwrap();
        told.tokens += 1;
        let token = format!("token-{}", told.tokens);
        told.reported.remove(execution);
        told.waiting.retain(|_, waits| waits != execution);
        told.waiting.insert(token.clone(), execution.to_owned());
        token
    }

    pub(crate) fn reported(&self, execution: &str) -> Option<Value> {
        self.told.lock().unwrap().reported.get(execution).cloned()
    }

    /// From now on these calls are answered so, until something else is said.
    pub(crate) fn refuse(&self, refusal: Option<Refusal>) {
        *self.refused.lock().unwrap() = refusal;
    }

    /// What is not for moto.
    pub(crate) fn answer(&self, call: &Call) -> Option<Answer> {
        let refused = self.refused.lock().unwrap();
        if let Some(refusal) = refused.as_ref().filter(|refusal| refusal.action == call.action && (refusal.of)(call)) {
            return Some(refusal.answer.clone());
        }
        drop(refused);
        if call.action == INSTANCE_TYPES {
            return self.instance_types.lock().unwrap().get(call.body.as_ref()).cloned();
        }
        call.action.starts_with("SendTask").then(|| self.report(call))
    }

    /// As Step Functions: a token is good for one report.
    fn report(&self, call: &Call) -> Answer {
        let (body, mut told) = (call.json(), self.told.lock().unwrap());
        let token = body["taskToken"].as_str().unwrap_or_default();
        let Some(execution) = told.waiting.get(token).cloned() else {
            let refusal = json!({"__type": "TaskTimedOut", "message": "the task is over"});
            return Answer::new(400, "application/x-amz-json-1.0", refusal.to_string());
        };
        if call.action != "SendTaskHeartbeat" {
            told.waiting.remove(token);
            told.reported.insert(execution, body);
        }
        Answer::new(200, "application/x-amz-json-1.0", "{}")
    }

    /// Finds the replicator's configuration in the user data.
    fn read_user_data(&self, call: &Call) {
        let form = call.form();
        let script = form.get("UserData").and_then(|data| BASE64.decode(data).ok()).unwrap_or_default();
        let script = String::from_utf8_lossy(&script);
        let config = script.split_once("CONFIG_BASE64='").and_then(|(_, rest)| rest.split_once('\''));
        let config = config.and_then(|(config, _)| BASE64.decode(config).ok()).unwrap_or_default();
        let config: Value = serde_json::from_slice(&config).unwrap_or_default();
        if let (Some(id), Some(token)) = (config["replicatorID"].as_str(), config["enrolToken"].as_str()) {
            self.told.lock().unwrap().enrol.insert(id.to_owned(), token.to_owned());
        }
    }

    /// What does the emulator's work for it, after an answer; blocking.
    fn complete(wire: Wire, call: &Call, answer: &str) {
        if call.action == "RegisterImage" {
            tag_image(wire, call, answer);
        }
        let object = call.path.trim_start_matches('/').split_once('/').filter(|_| call.action == "PutObject");
        let spec = object.and_then(|(bucket, key)| Some((bucket, key.strip_suffix("/spec.json")?)));
        if let Some((bucket, folder)) = spec {
            let finding = Finding::new(Severity::Info, "root", "converted", "nothing");
            let report = ConversionReport::ended(ConversionOutcome::Converted, finding);
            let report = serde_json::to_vec(&report).unwrap();
            wire.put_object(bucket, &format!("{folder}/report.json"), &report).unwrap();
        }
    }
}

/// moto does not tag images when they are registered.
fn tag_image(wire: Wire, call: &Call, answer: &str) {
    let form = call.form();
    let mut fields = vec![("ResourceId.1".to_owned(), first(answer, "imageId").unwrap().to_owned())];
    for (name, value) in form {
        if let Some(tag) = name.strip_prefix("TagSpecification.1.Tag.") {
            fields.push((format!("Tag.{tag}"), value));
        }
    }
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    if fields.len() > 1 {
        wire.ec2("CreateTags", &fields).unwrap();
    }
}

#[async_trait]
impl Hook for Cloud {
    async fn before(&self, call: &Call) -> Option<Answer> {
        if call.action == "RunInstances" {
            self.read_user_data(call);
        }
        self.answer(call)
    }

    async fn after(&self, call: &Call, answer: &mut Answer) {
        if call.action == INSTANCE_TYPES && answer.status.is_success() {
            self.instance_types.lock().unwrap().insert(call.body.to_vec(), answer.clone());
        }
        let completes = ["RegisterImage", "PutObject"].contains(&call.action.as_str()) && answer.status.is_success();
        if completes {
            let (wire, call, text) = (self.wire, call.clone(), answer.text());
            tokio::task::spawn_blocking(move || Self::complete(wire, &call, &text)).await.unwrap();
        }
    }
}
