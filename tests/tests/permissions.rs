//! What each function may do, as the template's policies decide it, and above all what it may not.
//!
//! Neither emulator enforces policies. This shows that they say what they are meant to say, not that AWS asks for nothing else.
#![allow(clippy::unwrap_used)] // What cannot be read fails the test.

use rehost_tests::paths;
use rehost_tests::permissions::{ACCOUNT, REGION, Request, STACK};
use rehost_tests::template::Template;

const MADE: &[(&str, &str)] = &[("aws:RequestTag/rehost:stack", STACK), ("aws:RequestTag/rehost:server", "s-1")];
const MADE_FOR_NOBODY: &[(&str, &str)] = &[("aws:RequestTag/rehost:stack", STACK)];
const MADE_ELSEWHERE: &[(&str, &str)] =
    &[("aws:RequestTag/rehost:stack", "x"), ("aws:RequestTag/rehost:server", "s-1")];
const OWN: &[(&str, &str)] = &[("aws:ResourceTag/rehost:stack", STACK)];
const FOREIGN: &[(&str, &str)] = &[("aws:ResourceTag/rehost:stack", "x")];
const NOTHING: &[(&str, &str)] = &[];
const BY_EC2: &[(&str, &str)] = &[("iam:PassedToService", "ec2.amazonaws.com")];

/// Snapshots and images have no account in their ARNs.
fn ec2(kind: &str) -> String {
    let account = if ["snapshot", "image"].contains(&kind) { "" } else { ACCOUNT };
    format!("arn:aws:ec2:{REGION}:{account}:{kind}/x-1")
}

fn machine(name: &str) -> String {
    format!("arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{STACK}-{name}")
}

struct Checks(Template);

impl Checks {
    fn new() -> Self {
        Self(Template::load(paths::repository()).unwrap())
    }

    fn permits(&self, role: &str, action: &str, resource: &str, context: &[(&str, &str)]) -> bool {
        self.0.permits(&format!("{role}Role"), Request { action, resource, context }).unwrap()
    }

    fn check(&self, role: &str, action: &str, resource: &str, allowed: &[(&str, &str)], refused: &[&[(&str, &str)]]) {
        assert!(self.permits(role, action, resource, allowed), "{role} may not {action} {resource} with {allowed:?}");
        for context in refused.iter().chain([&NOTHING]) {
            assert!(!self.permits(role, action, resource, context), "{role} may {action} {resource} with {context:?}");
        }
    }

    /// Whatever the context.
    fn refuses(&self, role: &str, action: &str, resource: &str) {
        for context in [NOTHING, MADE, OWN, BY_EC2] {
            assert!(!self.permits(role, action, resource, context), "{role} may {action} {resource} with {context:?}");
        }
    }
}

#[test]
fn what_is_made_carries_the_tags_of_stack_and_server() {
    let checks = Checks::new();
    for (role, action, kind) in [
        ("Provision", "ec2:CreateVolume", "volume"),
        ("Convert", "ec2:CreateVolume", "volume"),
        ("Snapshot", "ec2:CreateSnapshot", "snapshot"),
        ("LaunchTest", "ec2:CreateSnapshot", "snapshot"),
        ("LaunchTest", "ec2:RegisterImage", "image"),
        ("LaunchCutover", "ec2:RunInstances", "instance"),
        ("Convert", "ec2:RunInstances", "instance"),
        ("Convert", "ec2:RunInstances", "volume"),
    ] {
        checks.check(role, action, &ec2(kind), MADE, &[MADE_FOR_NOBODY, MADE_ELSEWHERE]);
    }
    checks.check("Provision", "ec2:RunInstances", &ec2("instance"), MADE_FOR_NOBODY, &[MADE_ELSEWHERE]);
}

#[test]
fn tags_are_given_in_the_call_that_makes_a_thing_alone() {
    let checks = Checks::new();
    for (role, call, kind) in [
        ("Provision", "RunInstances", "instance"),
        ("Provision", "CreateVolume", "volume"),
        ("Snapshot", "CreateSnapshot", "snapshot"),
        ("LaunchTest", "RegisterImage", "image"),
        ("Convert", "RunInstances", "volume"),
    ] {
        checks.check(role, "ec2:CreateTags", &ec2(kind), &[("ec2:CreateAction", call)], &[OWN, FOREIGN, MADE]);
    }
    for role in ["Finalize", "Reap", "Tick", "Terminate", "Verify", "Agent", "Api"] {
        checks.refuses(role, "ec2:CreateTags", &ec2("snapshot"));
    }
}

#[test]
fn what_is_not_the_stacks_is_neither_changed_nor_removed() {
    let checks = Checks::new();
    for (role, action, kind) in [
        ("Provision", "ec2:AttachVolume", "volume"),
        ("Provision", "ec2:AttachVolume", "instance"),
        ("Provision", "ec2:ModifyVolume", "volume"),
        ("Finalize", "ec2:DetachVolume", "volume"),
        ("Finalize", "ec2:TerminateInstances", "instance"),
        ("Reap", "ec2:DeleteVolume", "volume"),
        ("Reap", "ec2:DeleteSnapshot", "snapshot"),
        ("FailJob", "ec2:DeregisterImage", "image"),
        ("Snapshot", "ec2:CreateSnapshot", "volume"),
        ("Convert", "ec2:CreateVolume", "snapshot"),
        ("LaunchTest", "ec2:RegisterImage", "snapshot"),
        ("LaunchTest", "ec2:RunInstances", "image"),
        ("LaunchCutover", "ec2:StopInstances", "instance"),
        ("Verify", "ec2:GetConsoleOutput", "instance"),
        ("Api", "ebs:GetSnapshotBlock", "snapshot"),
    ] {
        checks.check(role, action, &ec2(kind), OWN, &[FOREIGN, MADE]);
    }
}

#[test]
fn servers_come_from_their_launch_templates_with_their_roles() {
    let checks = Checks::new();
    let template = |id: &str| format!("arn:aws:ec2:{REGION}:{ACCOUNT}:launch-template/{id}LaunchTemplate");
    let (replication, conversion) = (template("Replication"), template("Conversion"));
    for (role, own, other) in [("Provision", &replication, &conversion), ("Convert", &conversion, &replication)] {
        for kind in ["image", "subnet", "security-group", "network-interface"] {
            let (own, other) = ([("ec2:LaunchTemplate", own.as_str())], [("ec2:LaunchTemplate", other.as_str())]);
            checks.check(role, "ec2:RunInstances", &ec2(kind), &own, &[&other, OWN]);
        }
    }
    checks.check("Provision", "iam:PassRole", "arn:ReplicationRole", BY_EC2, &[OWN]);
    checks.check("Convert", "iam:PassRole", "arn:ConversionRole", BY_EC2, &[OWN]);
    checks.check("LaunchTest", "iam:PassRole", "TargetRoleArns", BY_EC2, &[OWN]);
    for (role, passed) in [
        ("Provision", "arn:ConversionRole"),
        ("Convert", "arn:ReplicationRole"),
        ("LaunchTest", "arn:aws:iam::1:role/a"),
    ] {
        checks.refuses(role, "iam:PassRole", passed);
    }
}

#[test]
fn functions_that_make_nothing_may_make_and_remove_nothing() {
    let checks = Checks::new();
    for role in
        ["Register", "ReplicationStatus", "ReadyForTest", "Gate", "JobStatus", "BeginJob", "PrepareCutover", "Archive"]
    {
        assert!(checks.permits(role, "dynamodb:PutItem", "arn:Table", NOTHING), "{role}");
        for (action, kind) in [
            ("ec2:RunInstances", "instance"),
            ("ec2:DescribeInstances", "instance"),
            ("ec2:TerminateInstances", "instance"),
            ("ec2:DeleteSnapshot", "snapshot"),
        ] {
            checks.refuses(role, action, &ec2(kind));
        }
    }
    for role in ["Enrol", "Agent", "Verify", "OnEvent"] {
        checks.refuses(role, "ec2:TerminateInstances", &ec2("instance"));
        checks.refuses(role, "ec2:RunInstances", &ec2("instance"));
    }
}

#[test]
fn state_machines_are_started_by_those_who_must() {
    let checks = Checks::new();
    let start = "states:StartExecution";
    assert!(checks.permits("OnEvent", start, &machine("migrate"), NOTHING));
    for role in ["Gate", "Tick", "Agent", "Api"] {
        for name in ["provision", "snapshot", "launch", "terminate", "finalize"] {
            assert!(checks.permits(role, start, &machine(name), NOTHING), "{role} {name}");
        }
        checks.refuses(role, start, &machine("migrate"));
    }
    checks.refuses("OnEvent", start, &machine("finalize"));
    checks.refuses("OnEvent", "dynamodb:GetItem", "arn:Table");
    checks.refuses("Enrol", start, &machine("launch"));
}

#[test]
fn secrets_are_sealed_under_the_stacks_name() {
    let checks = Checks::new();
    let own = [("kms:EncryptionContext:rehost:stack", STACK)];
    for role in ["Provision", "Finalize", "Enrol", "Agent", "Api"] {
        checks.check(role, "kms:Decrypt", "arn:Key", &own, &[&[("kms:EncryptionContext:rehost:stack", "x")]]);
    }
    for role in ["Register", "Convert", "Tick", "Replication", "Conversion"] {
        assert!(!checks.permits(role, "kms:Decrypt", "arn:Key", &own), "{role}");
    }
}

/// What a replication or conversion server that was taken over could reach.
#[test]
fn servers_reach_their_programs_and_their_own_reports() {
    let checks = Checks::new();
    let object = |key: &str| format!("arn:Bucket/{key}");
    assert!(checks.permits("Replication", "s3:GetObject", &object("software/rehost-replicator"), NOTHING));
    assert!(checks.permits("Conversion", "s3:GetObject", &object("conversions/t/spec.json"), NOTHING));
    assert!(checks.permits("Conversion", "s3:PutObject", &object("conversions/t/report.json"), NOTHING));
    for role in ["Replication", "Conversion"] {
        for key in ["software/rehost-replicator", "software/rehost-converter", "conversions/t/spec.json"] {
            checks.refuses(role, "s3:PutObject", &object(key));
        }
        for key in ["ca/key.sealed", "manifests/s-1/1/vol-1.json", "conversions/t/report.json"] {
            checks.refuses(role, "s3:GetObject", &object(key));
        }
        checks.refuses(role, "s3:ListBucket", "arn:Bucket");
        checks.refuses(role, "dynamodb:GetItem", "arn:Table");
    }
}
