//! What a deployment makes, made on an emulator by hand: table, bucket, key, bus, network and launch templates. The tests of
//! the ports need no template of CloudFormation for that, and no SDK.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::emulators::{ACCOUNT, REGION};
use super::wire::{Wire, first};
use crate::error::{Error, Result};

/// The API's URL, which nothing calls in these tests.
const API: &str = "https://api.rehost.invalid";

/// The stack's name.
pub const STACK: &str = "rehost-test";

/// Makes what a deployment makes, state machines apart; gives the environment of its functions.
///
/// # Errors
/// When the emulator refuses something.
pub fn make(port: u16) -> Result<BTreeMap<String, String>> {
    let wire = Wire::to(port);
    make_table(wire, STACK)?;
    let bucket = format!("{STACK}-{ACCOUNT}");
    wire.create_bucket(&bucket)?;
    wire.json("events", "AWSEvents.CreateEventBus", &json!({"Name": STACK}))?;
    let network = Network::make(wire)?;
    let variables = [
        ("AWS_REGION", REGION.to_owned()),
        ("REHOST_ACCOUNT", ACCOUNT.to_owned()),
        ("REHOST_STACK", STACK.to_owned()),
        ("REHOST_TABLE", STACK.to_owned()),
        ("REHOST_BUCKET", bucket),
        ("REHOST_KEY_ARN", make_key(wire)?),
        ("REHOST_EVENT_BUS", STACK.to_owned()),
        ("REHOST_ENDPOINT", API.to_owned()),
        ("REHOST_STAGING_SUBNET", network.staging_subnet),
        ("REHOST_STAGING_SECURITY_GROUP", network.security_group),
        ("REHOST_TARGET_SUBNET", network.target_subnet),
        ("REHOST_STAGING_LAUNCH_TEMPLATE", make_launch_template(wire, "staging", "t3.small", &network.image)?),
        ("REHOST_CONVERSION_LAUNCH_TEMPLATE", make_launch_template(wire, "conversion", "t3.medium", &network.image)?),
    ];
    Ok(variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Makes a state machine named `{STACK}-{machine}`.
///
/// # Errors
/// When the emulator refuses it.
pub fn make_machine(port: u16, machine: &str, definition: &Value) -> Result<()> {
    let role = format!("arn:aws:iam::{ACCOUNT}:role/{STACK}");
    let body = json!({"name": format!("{STACK}-{machine}"), "definition": definition.to_string(), "roleArn": role});
    Wire::to(port).json("states", "AWSStepFunctions.CreateStateMachine", &body).map(|_| ())
}

/// Makes a subnet in a network that is not the stack's; its id.
///
/// # Errors
/// When the emulator refuses it.
pub fn make_far_subnet(port: u16) -> Result<String> {
    let wire = Wire::to(port);
    let vpc = element(&wire.ec2("CreateVpc", &[("CidrBlock", "10.78.0.0/16")])?, "vpcId")?;
    make_subnet(wire, &vpc, "10.78.0.0/18")
}

fn make_subnet(wire: Wire, vpc: &str, cidr: &str) -> Result<String> {
    let fields = [("VpcId", vpc), ("CidrBlock", cidr), ("AvailabilityZone", "eu-central-1a")];
    element(&wire.ec2("CreateSubnet", &fields)?, "subnetId")
}

/// Makes a table with the store's keys.
///
/// # Errors
/// When the emulator refuses it.
pub fn make_table(wire: Wire, name: &str) -> Result<()> {
    let body = json!({
        "TableName": name, "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [
            {"AttributeName": "kind", "AttributeType": "S"}, {"AttributeName": "id", "AttributeType": "S"}
        ],
        "KeySchema": [{"AttributeName": "kind", "KeyType": "HASH"}, {"AttributeName": "id", "KeyType": "RANGE"}],
    });
    wire.json("dynamodb", "DynamoDB_20120810.CreateTable", &body).map(|_| ())
}

fn make_key(wire: Wire) -> Result<String> {
    let made = wire.json("kms", "TrentService.CreateKey", &json!({}))?;
    let arn = made["KeyMetadata"]["Arn"].as_str().map(str::to_owned);
    arn.ok_or_else(|| odd("CreateKey", &made))
}

struct Network {
    staging_subnet: String,
    target_subnet: String,
    security_group: String,
    image: String,
}

impl Network {
    fn make(wire: Wire) -> Result<Self> {
        let ec2 = |action, fields: &[(&str, &str)], tag| element(&wire.ec2(action, fields)?, tag);
        let vpc = ec2("CreateVpc", &[("CidrBlock", "10.77.0.0/16")], "vpcId")?;
        let subnet = |cidr| make_subnet(wire, &vpc, cidr);
        let group = [("VpcId", vpc.as_str()), ("GroupName", STACK), ("GroupDescription", "replication servers")];
        Ok(Self {
            staging_subnet: subnet("10.77.0.0/18")?,
            target_subnet: subnet("10.77.64.0/18")?,
            security_group: ec2("CreateSecurityGroup", &group, "groupId")?,
            image: make_image(wire)?,
        })
    }
}

/// The image that Amazon Linux would be.
fn make_image(wire: Wire) -> Result<String> {
    let snapshot = wire.ec2("CreateVolume", &[("AvailabilityZone", "eu-central-1a"), ("Size", "8")])?;
    let snapshot = wire.ec2("CreateSnapshot", &[("VolumeId", &element(&snapshot, "volumeId")?)])?;
    let fields = [
        ("Name", "amazon-linux"),
        ("RootDeviceName", "/dev/xvda"),
        ("Architecture", "x86_64"),
        ("VirtualizationType", "hvm"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.SnapshotId", &element(&snapshot, "snapshotId")?),
    ];
    element(&wire.ec2("RegisterImage", &fields)?, "imageId")
}

fn make_launch_template(wire: Wire, name: &str, instance_type: &str, image: &str) -> Result<String> {
    let name = format!("{STACK}-{name}");
    let fields = [
        ("LaunchTemplateName", name.as_str()),
        ("LaunchTemplateData.ImageId", image),
        ("LaunchTemplateData.InstanceType", instance_type),
    ];
    element(&wire.ec2("CreateLaunchTemplate", &fields)?, "launchTemplateId")
}

/// The content of the first element of this name.
fn element(xml: &str, name: &str) -> Result<String> {
    first(xml, name).map(str::to_owned).ok_or_else(|| odd(name, &xml))
}

fn odd(what: &str, seen: &dyn std::fmt::Display) -> Error {
    Error::Unexpected(format!("the emulator answered {what} otherwise than expected: {seen}"))
}
