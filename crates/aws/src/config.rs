//! What a function is told about its region: by its environment, which the template of the deployment fills.

use std::env;
use std::fmt;

use rehost_control::PortError;
use rehost_control::ports::PortResult;

/// Seconds between two reports of an agent or replicator, unless [`names::POLL_SECONDS`] says otherwise.
pub const DEFAULT_POLL_SECONDS: u64 = 15;

/// From where agents reach replication servers, unless [`names::AGENT_CIDR`] says otherwise. What keeps others out is mutual TLS
/// with the region's own authority.
pub const ANYWHERE: &str = "0.0.0.0/0";

/// The longest that agents and replicators may be told to stay away; seconds.
const MAX_POLL_SECONDS: u64 = 300;

/// The names of the variables.
pub mod names {
    pub const REGION: &str = "AWS_REGION";
    pub const ACCOUNT: &str = "REHOST_ACCOUNT";
    pub const STACK: &str = "REHOST_STACK";
    pub const TABLE: &str = "REHOST_TABLE";
    pub const BUCKET: &str = "REHOST_BUCKET";
    pub const KEY_ARN: &str = "REHOST_KEY_ARN";
    pub const EVENT_BUS: &str = "REHOST_EVENT_BUS";
    pub const ENDPOINT: &str = "REHOST_ENDPOINT";
    pub const CA_FINGERPRINT: &str = "REHOST_CA_FINGERPRINT";
    pub const STAGING_SUBNET: &str = "REHOST_STAGING_SUBNET";
    pub const STAGING_SECURITY_GROUP: &str = "REHOST_STAGING_SECURITY_GROUP";
    pub const AGENT_CIDR: &str = "REHOST_AGENT_CIDR";
    pub const TARGET_SUBNET: &str = "REHOST_TARGET_SUBNET";
    pub const STAGING_LAUNCH_TEMPLATE: &str = "REHOST_STAGING_LAUNCH_TEMPLATE";
    pub const CONVERSION_LAUNCH_TEMPLATE: &str = "REHOST_CONVERSION_LAUNCH_TEMPLATE";
    pub const POLL_SECONDS: &str = "REHOST_POLL_SECONDS";
}

/// A region on AWS. Where the services are reached is no part of it: emulators' addresses come by the SDK's own variables
/// `AWS_ENDPOINT_URL` and `AWS_ENDPOINT_URL_…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionConfig {
    /// The region's name, such as `eu-west-1`.
    pub region: String,
    /// The account's number: 12 digits.
    pub account: String,
    /// The stack's name. State machines are named `{stack}-{machine}`; whatever is made carries it in the tag `rehost:stack`.
    pub stack: String,
    /// The DynamoDB table of the store.
    pub table: String,
    /// The S3 bucket of the objects.
    pub bucket: String,
    /// The KMS key under which secrets are sealed.
    pub key_arn: String,
    /// The EventBridge bus of the events.
    pub event_bus: String,
    /// URL of the HTTP API, which agents and replicators call; without a slash at the end.
    pub endpoint: String,
    /// Pins the API's private authority (`sha256:` and 64 hexadecimal digits); without it, public authorities are trusted.
    pub ca_fingerprint: Option<String>,
    /// Where replication and conversion servers live, unless a server's settings name another subnet.
    pub staging_subnet: String,
    /// The security group of replication servers, unless a server's settings name others.
    pub staging_security_group: String,
    /// From where agents reach replication servers in networks that the stack's template makes no security group for. Not looked
    /// at here: where the template makes a group with it, EC2 has seen it, and it sees it again in each other network.
    pub agent_cidr: String,
    /// Where copies are launched, unless the user's launch template names a subnet.
    pub target_subnet: String,
    /// The launch template of replication servers.
    pub staging_launch_template: String,
    /// The launch template of conversion servers.
    pub conversion_launch_template: String,
    /// How often agents and replicators report while nothing is urgent; seconds.
    pub poll_seconds: u64,
}

impl RegionConfig {
    /// What the process's environment says.
    ///
    /// # Errors
    /// `Invalid` for a variable that is missing or malformed; it is named.
    pub fn from_environment() -> PortResult<Self> {
        Self::read(&|name| env::var(name).ok())
    }

    /// The same from any source of variables.
    ///
    /// # Errors
    /// As [`Self::from_environment`].
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> PortResult<Self> {
        let text = |name: &'static str| required(variable, name);
        let id = |name, prefix| identifier(required(variable, name)?, name, prefix);
        Ok(Self {
            region: text(names::REGION)?,
            account: account(text(names::ACCOUNT)?)?,
            stack: stack(text(names::STACK)?)?,
            table: text(names::TABLE)?,
            bucket: text(names::BUCKET)?,
            key_arn: identifier(text(names::KEY_ARN)?, names::KEY_ARN, "arn:")?,
            event_bus: text(names::EVENT_BUS)?,
            endpoint: endpoint(&text(names::ENDPOINT)?)?,
            ca_fingerprint: optional(variable, names::CA_FINGERPRINT).map(fingerprint).transpose()?,
            staging_subnet: id(names::STAGING_SUBNET, "subnet-")?,
            staging_security_group: id(names::STAGING_SECURITY_GROUP, "sg-")?,
            agent_cidr: optional(variable, names::AGENT_CIDR).unwrap_or_else(|| ANYWHERE.to_owned()),
            target_subnet: id(names::TARGET_SUBNET, "subnet-")?,
            staging_launch_template: id(names::STAGING_LAUNCH_TEMPLATE, "lt-")?,
            conversion_launch_template: id(names::CONVERSION_LAUNCH_TEMPLATE, "lt-")?,
            poll_seconds: optional(variable, names::POLL_SECONDS)
                .map_or(Ok(DEFAULT_POLL_SECONDS), |text| poll_seconds(&text))?,
        })
    }

    /// The first part of the region's ARNs: `aws`, or that of China or the US government's regions.
    #[must_use]
    pub fn partition(&self) -> &'static str {
        match self.region.split('-').next() {
            Some("cn") => "aws-cn",
            Some("us") if self.region.starts_with("us-gov-") => "aws-us-gov",
            _ => "aws",
        }
    }
}

fn optional(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn required(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> PortResult<String> {
    optional(variable, name).ok_or_else(|| {
        PortError::invalid(format!(
            "the environment variable {name} is not set; the stack's template sets it: deploy again"
        ))
    })
}

fn refused(name: &str, text: &str, expected: impl fmt::Display) -> PortError {
    let shown: String = text.chars().take(100).collect();
    PortError::invalid(format!("the environment variable {name} is {shown:?}, expected {expected}: deploy again"))
}

fn account(text: String) -> PortResult<String> {
    let sound = text.len() == 12 && text.bytes().all(|c| c.is_ascii_digit());
    if sound { Ok(text) } else { Err(refused(names::ACCOUNT, &text, "the 12 digits of an account")) }
}

/// A stack's name as CloudFormation allows it, but shorter: names of state machines begin with it.
fn stack(text: String) -> PortResult<String> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
    let sound = text.len() <= 64 && text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(allowed);
    let expected = "a letter and at most 63 of `A-Z a-z 0-9 -`";
    if sound { Ok(text) } else { Err(refused(names::STACK, &text, expected)) }
}

fn identifier(text: String, name: &str, prefix: &str) -> PortResult<String> {
    let sound = text.len() > prefix.len() && text.starts_with(prefix);
    if sound { Ok(text) } else { Err(refused(name, &text, format_args!("an identifier that begins with `{prefix}`"))) }
}

fn endpoint(text: &str) -> PortResult<String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    if host.is_some_and(|host| !host.is_empty() && !host.starts_with('/')) {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err(refused(names::ENDPOINT, text, "the URL of the API"))
}

fn fingerprint(text: String) -> PortResult<String> {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    let sound = digits.len() == 64 && digits.bytes().all(|c| c.is_ascii_hexdigit());
    if sound { Ok(text) } else { Err(refused(names::CA_FINGERPRINT, &text, "`sha256:` and 64 hexadecimal digits")) }
}

fn poll_seconds(text: &str) -> PortResult<u64> {
    let seconds = text.parse().ok().filter(|seconds| (1..=MAX_POLL_SECONDS).contains(seconds));
    let expected = || format!("seconds from 1 to {MAX_POLL_SECONDS}");
    seconds.ok_or_else(|| refused(names::POLL_SECONDS, text, expected()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rehost_control::PortErrorKind;

    use super::*;

    fn whole() -> BTreeMap<&'static str, String> {
        let fingerprint = format!("sha256:{}", "ab".repeat(32));
        BTreeMap::from([
            (names::REGION, "eu-west-1".to_owned()),
            (names::ACCOUNT, "123456789012".to_owned()),
            (names::STACK, "rehost".to_owned()),
            (names::TABLE, "rehost".to_owned()),
            (names::BUCKET, "rehost-123456789012".to_owned()),
            (names::KEY_ARN, "arn:aws:kms:eu-west-1:123456789012:key/k".to_owned()),
            (names::EVENT_BUS, "rehost".to_owned()),
            (names::ENDPOINT, "https://api.example/".to_owned()),
            (names::CA_FINGERPRINT, fingerprint),
            (names::STAGING_SUBNET, "subnet-1".to_owned()),
            (names::STAGING_SECURITY_GROUP, "sg-1".to_owned()),
            (names::AGENT_CIDR, "10.0.0.0/8".to_owned()),
            (names::TARGET_SUBNET, "subnet-2".to_owned()),
            (names::STAGING_LAUNCH_TEMPLATE, "lt-1".to_owned()),
            (names::CONVERSION_LAUNCH_TEMPLATE, "lt-2".to_owned()),
            (names::POLL_SECONDS, "3".to_owned()),
        ])
    }

    fn read(variables: &BTreeMap<&'static str, String>) -> PortResult<RegionConfig> {
        RegionConfig::read(&|name| variables.get(name).cloned())
    }

    #[test]
    fn a_whole_environment_is_read() {
        let config = read(&whole()).unwrap();
        assert_eq!((config.endpoint.as_str(), config.poll_seconds), ("https://api.example", 3));
        assert_eq!((config.partition(), config.agent_cidr.as_str()), ("aws", "10.0.0.0/8"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for name in whole().into_keys() {
            let mut variables = whole();
            variables.insert(name, " ".to_owned());
            let result = read(&variables);
            if [names::CA_FINGERPRINT, names::POLL_SECONDS, names::AGENT_CIDR].contains(&name) {
                let config = result.unwrap();
                let by_default = config.poll_seconds == DEFAULT_POLL_SECONDS || config.agent_cidr == ANYWHERE;
                assert!(config.ca_fingerprint.is_none() || by_default, "{name}");
                continue;
            }
            let error = result.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Invalid);
            assert!(error.message.contains(name), "{error}");
        }
    }

    #[test]
    fn what_is_malformed_is_named_and_shown() {
        let malformed = [
            (names::ACCOUNT, "12345"),
            (names::STACK, "a_b"),
            (names::STACK, "1a"),
            (names::KEY_ARN, "alias/k"),
            (names::ENDPOINT, "ftp://x"),
            (names::ENDPOINT, "https:///x"),
            (names::CA_FINGERPRINT, "sha256:00"),
            (names::STAGING_SUBNET, "subnet-"),
            (names::TARGET_SUBNET, "vpc-1"),
            (names::STAGING_LAUNCH_TEMPLATE, "sg-1"),
            (names::POLL_SECONDS, "0"),
            (names::POLL_SECONDS, "an hour"),
        ];
        for (name, text) in malformed {
            let mut variables = whole();
            variables.insert(name, text.to_owned());
            let error = read(&variables).unwrap_err();
            assert!(error.message.contains(name) && error.message.contains(text), "{error}");
        }
    }

    #[test]
    fn partitions_follow_from_the_region() {
        for (region, partition) in [("us-east-1", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")] {
            let config = RegionConfig { region: region.to_owned(), ..read(&whole()).unwrap() };
            assert_eq!(config.partition(), partition);
        }
    }
}
