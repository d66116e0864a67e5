//! What AWS refuses for good, seen from the whole way: the server or the job says why and what to do, nothing is left of the
//! attempt, and it goes on when the cause is gone.

use std::collections::BTreeMap;

use rehost_control::operations::{self, ServerSettings};
use rehost_model::LifeCycleState;
use rehost_model::job::{InitiatedBy, JobStatus};
use rehost_model::ledger::ResourceKind;
use rehost_model::replication::DataReplicationState;
use rehost_tests::aws::{Answer, Call};
use serde_json::{Value, json};

use crate::source::{Plan, Source};
use crate::world::{Refusal, World};

fn any(_: &Call) -> bool {
    true
}

/// A launch of a copy, which alone comes from an image.
fn of_image(call: &Call) -> bool {
    call.form().contains_key("ImageId")
}

fn of_template(call: &Call) -> bool {
    !of_image(call)
}

fn refusal(action: &'static str, of: fn(&Call) -> bool, code: &str) -> Refusal {
    let xml = format!(
        "<Response><Errors><Error><Code>{code}</Code><Message>as planted</Message></Error></Errors><RequestID>0</RequestID></Response>"
    );
    Refusal { action, of, answer: Answer::new(400, "text/xml", xml) }
}

/// A copy whose guest does not answer.
fn never_boots() -> Refusal {
    let xml = "<DescribeInstanceStatusResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>0</requestId>\
               <instanceStatusSet><item><instanceState><code>16</code><name>running</name></instanceState>\
               <systemStatus><status>ok</status></systemStatus><instanceStatus><status>impaired</status></instanceStatus>\
               </item></instanceStatusSet></DescribeInstanceStatusResponse>";
    Refusal { action: "DescribeInstanceStatus", of: any, answer: Answer::new(200, "text/xml", xml) }
}

/// What comes while the replication begins: action, code, and what the user has to be told.
const INITIATION: &[(&str, &str, &str)] = &[
    ("RunInstances", "UnauthorizedOperation", "ec2:RunInstances"),
    ("RunInstances", "InsufficientFreeAddressesInSubnet", "free addresses"),
    ("RunInstances", "Unsupported", "availability zone does not offer"),
    ("RunInstances", "InvalidLaunchTemplateId.NotFound", "launch template of this account"),
    ("DescribeSubnets", "InvalidSubnetID.NotFound", "that exists in this region"),
    ("CreateVolume", "InvalidKMSKey.InvalidState", "key's policy"),
    ("AttachVolume", "AttachmentLimitExceeded", "larger type"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_while_initiating_is_told_and_goes_on_when_it_is_granted() {
    let world = World::new().await;
    for (action, code, told) in INITIATION {
        let region = world.fresh().await;
        let before = world.resources().await;
        let mut source = Source::enrol(&world, region, Plan::Nothing).await;
        if *action == "DescribeSubnets" {
            source.stage_in("subnet-0123456789abcdef0").await;
        }
        world.cloud.refuse(Some(refusal(action, any, code)));
        let stalled = source.stall().await;
        assert!(stalled.contains(told) && stalled.contains(code), "{action} {code}: {stalled}");
        world.cloud.refuse(None);
        if *action == "DescribeSubnets" {
            source.stage_in("").await;
        }
        source.replicate().await;
        assert_eq!(source.server().await.life_cycle.state, LifeCycleState::ReadyForTest, "{action} {code}");
        source.disconnect().await;
        assert_eq!(source.ledger().await, 0, "{action} {code}");
        assert_eq!(world.resources().await, before, "{action} {code}");
    }
}

/// What comes while a copy is made and launched.
fn of_launches() -> Vec<(Refusal, &'static str)> {
    vec![
        (refusal("CreateSnapshot", any, "SnapshotLimitExceeded"), "retention"),
        (refusal("CreateVolume", any, "UnauthorizedOperation"), "ec2:CreateVolume"),
        (refusal("CreateVolume", any, "InvalidKMSKey.InvalidState"), "key's policy"),
        (refusal("RunInstances", of_template, "InsufficientFreeAddressesInSubnet"), "free addresses"),
        (refusal("RegisterImage", any, "UnauthorizedOperation"), "ec2:RegisterImage"),
        (refusal("RunInstances", of_image, "UnauthorizedOperation"), "ec2:RunInstances"),
        (refusal("RunInstances", of_image, "InsufficientInstanceCapacity"), "another instance type"),
        (refusal("RunInstances", of_image, "Unsupported"), "availability zone does not offer"),
        (
            refusal("DescribeLaunchTemplateVersions", any, "InvalidLaunchTemplateId.NotFound"),
            "launch template of this account",
        ),
        (never_boots(), "instance impaired"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_while_launching_fails_the_job_and_leaves_nothing() {
    let world = World::new().await;
    let region = world.fresh().await;
    let mut source = Source::enrol(&world, region, Plan::Nothing).await;
    let settings = ServerSettings { verify_timeout_seconds: Some(10), ..ServerSettings::default() };
    operations::update_server_settings(&source.ports, &source.id, &settings).await.unwrap();
    source.replicate().await;
    let (before, entries, snapshots) = (world.resources().await, source.ledger().await, source.snapshots().await);
    for (refusal, told) in of_launches() {
        let what = refusal.action;
        world.cloud.refuse(Some(refusal));
        let (job, cause) = source.fail_launch(&world).await;
        assert!(cause.contains(told), "{what}: {cause}");
        let log = serde_json::to_string(&job).unwrap();
        assert!(job.status == JobStatus::Completed && log.contains(told), "{what}: {log}");
        let server = source.server().await;
        assert_eq!(server.life_cycle.state, LifeCycleState::ReadyForTest, "{what}");
        assert_eq!(server.data_replication_info.data_replication_state, DataReplicationState::Continuous, "{what}");
        assert_eq!(others(&world.resources().await), others(&before), "{what}");
        // The snapshots that a launch begins with are the server's, and stay as their retention says: an entry for those of both disks.
        assert_eq!(source.ledger().await - entries, (source.snapshots().await - snapshots) / 2, "{what}");
    }
    source.launch(InitiatedBy::StartTest).await;
    assert_eq!(source.server().await.life_cycle.state, LifeCycleState::Testing);
    source.disconnect().await;
    assert_eq!(source.ledger().await, 0);
}

/// Without snapshots: moto makes one of its own for each image, and keeps it.
fn others(resources: &BTreeMap<&'static str, usize>) -> Vec<(&'static str, usize)> {
    resources.iter().filter(|(kind, _)| **kind != "snapshots").map(|(kind, count)| (*kind, *count)).collect()
}

impl Source {
    async fn snapshots(&self) -> usize {
        let resources = self.ports.compute.tagged_resources(Some(&self.id)).await.unwrap();
        resources.iter().filter(|resource| resource.kind == ResourceKind::Snapshot).count()
    }

    /// Begins the replication, up to where it stalls; what the server shows then.
    async fn stall(&mut self) -> String {
        let input = self.migration();
        self.drive("register", input.clone()).await.unwrap();
        for _ in 0..60 {
            let state = self.invoke("provision", &input).await.unwrap();
            assert_eq!(state["status"], "IN_PROGRESS");
            let info = self.server().await.data_replication_info;
            if let (DataReplicationState::Stalled, Some(error)) =
                (info.data_replication_state, info.data_replication_error)
            {
                return error.raw_error;
            }
            self.poll().await;
        }
        panic!("it does not stall: {:#?}", self.server().await.data_replication_info);
    }

    async fn disconnect(&mut self) {
        operations::disconnect_from_service(&self.ports, &self.id).await.unwrap();
        let execution = format!("finalize-{}", self.id);
        self.drive("finalize", json!({"execution": execution, "sourceServerID": self.id})).await.unwrap();
    }

    /// A test launch that is expected to fail; the job afterwards, and why it failed.
    async fn fail_launch(&mut self, world: &World) -> (rehost_model::Job, String) {
        let job = operations::start_test(&self.ports, std::slice::from_ref(&self.id), BTreeMap::new());
        let job = job.await.unwrap();
        let execution = format!("launch-{}-{}", job.job_id, self.id);
        let mut state: Value = json!({
            "execution": execution, "jobID": job.job_id, "sourceServerID": self.id, "initiatedBy": InitiatedBy::StartTest,
        });
        for step in [
            "begin-job",
            "prepare-cutover",
            "checkpoint and snapshot",
            "convert",
            "launch-test",
            "verify",
            "complete-job",
        ] {
            match self.try_step(step, state.clone()).await {
                Ok(next) => state = next,
                Err(error) => {
                    state["error"] = json!({"Error": error.name, "Cause": error.cause});
                    world.cloud.refuse(None);
                    self.drive("fail-job", state).await.unwrap();
                    self.poll().await;
                    return (self.job(&job.job_id).await, error.cause);
                }
            }
        }
        panic!("nothing was refused: {:#?}", self.job(&job.job_id).await);
    }
}
