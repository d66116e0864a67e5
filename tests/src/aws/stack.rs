//! What a deployment makes, made on an emulator by hand: table, bucket, key, bus, network and launch templates. The tests of
//! the ports need no template of CloudFormation for that, and no SDK.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::emulators::{ACCOUNT, REGION};
use crate::error::{Error, Result};
use crate::net::http_request;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The API's URL, which nothing calls in these tests.
const API: &str = "https://api.rehost.invalid";

/// Calls of an emulator without an SDK.
#[derive(Debug, Clone, Copy)]
pub struct Raw {
    /// Where the emulator listens on the loopback interface.
    pub port: u16,
}

impl Raw {
    /// A call of a service that speaks JSON; `target` is the header `X-Amz-Target`.
    ///
    /// # Errors
    /// When it is refused or not answered.
    pub fn json(&self, service: &str, target: &str, body: &Value) -> Result<Value> {
        let headers = [("Content-Type", "application/x-amz-json-1.0"), ("X-Amz-Target", target)];
        let answer = self.call("POST", "/", service, &headers, body.to_string().as_bytes())?;
        if answer.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&answer).map_err(|e| odd(target, &e)) }
    }

    /// A call of a service that takes forms, such as EC2; the answer is XML.
    ///
    /// # Errors
    /// When it is refused or not answered.
    pub fn form(&self, service: &str, action: &str, fields: &[(&str, &str)]) -> Result<String> {
        let version = if service == "ec2" { "2016-11-15" } else { "2010-05-08" };
        let mut body = format!("Action={action}&Version={version}");
        for (name, value) in fields {
            body += &format!("&{name}={}", encoded(value));
        }
        let headers = [("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")];
        self.call("POST", "/", service, &headers, body.as_bytes())
    }

    /// Any other call.
    ///
    /// # Errors
    /// When it is refused or not answered.
    pub fn call(
        &self,
        method: &str,
        path: &str,
        service: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<String> {
        let scope = format!("AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/{service}/aws4_request, Signature=0");
        let headers: Vec<_> = [("Authorization", scope.as_str())].into_iter().chain(headers.iter().copied()).collect();
        let answer = http_request(self.port, method, path, &headers, body, PATIENCE)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.text());
        }
        let called = headers.iter().find(|(name, _)| *name == "X-Amz-Target").map_or(path, |(_, target)| target);
        Err(Error::Unexpected(format!("{service} answered {} to {called}: {}", answer.status, answer.text())))
    }
}

/// The stack's name.
pub const STACK: &str = "rehost-test";

/// Makes what a deployment makes, state machines apart; gives the environment of its functions.
///
/// # Errors
/// When the emulator refuses something.
pub fn make(port: u16) -> Result<BTreeMap<String, String>> {
    let raw = Raw { port };
    make_table(raw, STACK)?;
    let bucket = format!("{STACK}-{ACCOUNT}");
    make_bucket(raw, &bucket)?;
    raw.json("events", "AWSEvents.CreateEventBus", &json!({"Name": STACK}))?;
    let network = Network::make(raw)?;
    let variables = [
        ("AWS_REGION", REGION.to_owned()),
        ("REHOST_ACCOUNT", ACCOUNT.to_owned()),
        ("REHOST_STACK", STACK.to_owned()),
        ("REHOST_TABLE", STACK.to_owned()),
        ("REHOST_BUCKET", bucket),
        ("REHOST_KEY_ARN", make_key(raw)?),
        ("REHOST_EVENT_BUS", STACK.to_owned()),
        ("REHOST_ENDPOINT", API.to_owned()),
        ("REHOST_STAGING_SUBNET", network.staging_subnet),
        ("REHOST_STAGING_SECURITY_GROUP", network.security_group),
        ("REHOST_TARGET_SUBNET", network.target_subnet),
        ("REHOST_STAGING_LAUNCH_TEMPLATE", make_launch_template(raw, "staging", "t3.small", &network.image)?),
        ("REHOST_CONVERSION_LAUNCH_TEMPLATE", make_launch_template(raw, "conversion", "t3.medium", &network.image)?),
    ];
    Ok(variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Makes a state machine named `{STACK}-{machine}`.
///
/// # Errors
/// When the emulator refuses it.
pub fn make_machine(port: u16, machine: &str, definition: &Value) -> Result<()> {
    let role = format!("arn:aws:iam::{ACCOUNT}:role/{STACK}");
    let body =
        json!({"name": format!("{STACK}-{machine}"), "definition": definition.to_string(), "roleArn": role});
    Raw { port }.json("states", "AWSStepFunctions.CreateStateMachine", &body).map(|_| ())
}

/// Makes a table with the store's keys.
///
/// # Errors
/// When the emulator refuses it.
pub fn make_table(raw: Raw, name: &str) -> Result<()> {
    let body = json!({
        "TableName": name, "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [
            {"AttributeName": "kind", "AttributeType": "S"}, {"AttributeName": "id", "AttributeType": "S"}
        ],
        "KeySchema": [{"AttributeName": "kind", "KeyType": "HASH"}, {"AttributeName": "id", "KeyType": "RANGE"}],
    });
    raw.json("dynamodb", "DynamoDB_20120810.CreateTable", &body).map(|_| ())
}

fn make_bucket(raw: Raw, name: &str) -> Result<()> {
    let place = format!(
        "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
    );
    raw.call("PUT", &format!("/{name}"), "s3", &[("Content-Type", "application/xml")], place.as_bytes()).map(|_| ())
}

fn make_key(raw: Raw) -> Result<String> {
    let made = raw.json("kms", "TrentService.CreateKey", &json!({}))?;
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
    fn make(raw: Raw) -> Result<Self> {
        let ec2 = |action, fields: &[(&str, &str)], tag| element(&raw.form("ec2", action, fields)?, tag);
        let vpc = ec2("CreateVpc", &[("CidrBlock", "10.77.0.0/16")], "vpcId")?;
        let subnet =
            |cidr| ec2("CreateSubnet", &[("VpcId", &vpc), ("CidrBlock", cidr), ("AvailabilityZone", "eu-central-1a")], "subnetId");
        let group = [("VpcId", vpc.as_str()), ("GroupName", STACK), ("GroupDescription", "replication servers")];
        Ok(Self {
            staging_subnet: subnet("10.77.0.0/18")?,
            target_subnet: subnet("10.77.64.0/18")?,
            security_group: ec2("CreateSecurityGroup", &group, "groupId")?,
            image: make_image(raw)?,
        })
    }
}

/// The image that Amazon Linux would be.
fn make_image(raw: Raw) -> Result<String> {
    let snapshot = raw.form("ec2", "CreateVolume", &[("AvailabilityZone", "eu-central-1a"), ("Size", "8")])?;
    let snapshot = raw.form("ec2", "CreateSnapshot", &[("VolumeId", &element(&snapshot, "volumeId")?)])?;
    let fields = [
        ("Name", "amazon-linux"),
        ("RootDeviceName", "/dev/xvda"),
        ("Architecture", "x86_64"),
        ("VirtualizationType", "hvm"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.SnapshotId", &element(&snapshot, "snapshotId")?),
    ];
    element(&raw.form("ec2", "RegisterImage", &fields)?, "imageId")
}

fn make_launch_template(raw: Raw, name: &str, instance_type: &str, image: &str) -> Result<String> {
    let name = format!("{STACK}-{name}");
    let fields = [
        ("LaunchTemplateName", name.as_str()),
        ("LaunchTemplateData.ImageId", image),
        ("LaunchTemplateData.InstanceType", instance_type),
    ];
    element(&raw.form("ec2", "CreateLaunchTemplate", &fields)?, "launchTemplateId")
}

/// The content of the first element of this name.
fn element(xml: &str, name: &str) -> Result<String> {
    let content = xml.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once('<'));
    content.map(|(content, _)| content.to_owned()).ok_or_else(|| odd(name, &xml))
}

fn odd(what: &str, seen: &dyn std::fmt::Display) -> Error {
    Error::Unexpected(format!("the emulator answered {what} otherwise than expected: {seen}"))
}

fn encoded(value: &str) -> String {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.~".contains(&c);
    value.bytes().map(|c| if plain(c) { char::from(c).to_string() } else { format!("%{c:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_encoded_and_answers_searched() {
        assert_eq!(encoded("a/b c"), "a%2Fb%20c");
        assert_eq!(element("<x><vpcId>vpc-1</vpcId></x>", "vpcId").unwrap(), "vpc-1");
        assert!(element("<x/>", "vpcId").is_err());
    }
}
