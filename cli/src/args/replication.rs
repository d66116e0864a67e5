//! The settings of MGN's replication configuration, of a server or of the template.

use std::collections::HashMap;

use clap::Args;
use rehost_model::settings::{DataPlaneRouting, EbsEncryption, LargeStagingDiskType};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What is not given stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Replication")]
pub(crate) struct ReplicationArgs {
    /// The subnet in which replication and conversion servers are launched; an empty text: the region's own.
    #[arg(long, value_name = "subnet-…")]
    pub(crate) staging_subnet: Option<String>,
    /// A security group of replication servers; may be given several times, and an empty text takes all away.
    #[arg(long, value_name = "sg-…")]
    pub(crate) security_group: Vec<String>,
    /// Whether replication servers have the region's own security group beside those.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) default_security_group: Option<bool>,
    /// The instance type of replication servers, such as t3.small.
    #[arg(long, value_name = "TYPE")]
    pub(crate) replication_server_type: Option<String>,
    /// Whether a server gets a replication server of its own, when one is made for it the next time.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) dedicated: Option<bool>,
    /// The type of staging disks from 500 GiB on: GP2, GP3 or ST1.
    #[arg(long, value_name = "TYPE", value_parser = of_model::<LargeStagingDiskType>)]
    pub(crate) large_disk_type: Option<LargeStagingDiskType>,
    /// Under which key staging disks are encrypted: DEFAULT (the account's for EBS) or CUSTOM (--encryption-key).
    #[arg(long, value_name = "KIND", value_parser = of_model::<EbsEncryption>)]
    pub(crate) encryption: Option<EbsEncryption>,
    /// The key for --encryption CUSTOM.
    #[arg(long, value_name = "ARN")]
    pub(crate) encryption_key: Option<String>,
    /// Limit of a replication's bandwidth in Mbit/s, from now on; 0 means none.
    #[arg(long, alias = "bandwidth", value_name = "MBIT")]
    pub(crate) throttle: Option<u64>,
    /// By which of their addresses agents reach replication servers: PRIVATE_IP or PUBLIC_IP.
    #[arg(long, value_name = "ADDRESS", value_parser = of_model::<DataPlaneRouting>)]
    pub(crate) routing: Option<DataPlaneRouting>,
    /// Whether replication servers get a public address.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) public_ip: Option<bool>,
    /// A tag of staging disks; may be given several times: these, and no others. An empty text takes all away.
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag)]
    pub(crate) staging_tag: Vec<String>,
}

impl ReplicationArgs {
    /// The groups that are given, if any.
    pub(crate) fn security_groups(&self) -> Option<Vec<String>> {
        let named = self.security_group.iter().filter(|group| !group.is_empty()).cloned().collect();
        (!self.security_group.is_empty()).then_some(named)
    }

    /// The tags that are given, if any.
    pub(crate) fn staging_tags(&self) -> Option<HashMap<String, String>> {
        let pairs = self.staging_tag.iter().filter_map(|tag| tag.split_once('='));
        let tags = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        (!self.staging_tag.is_empty()).then_some(tags)
    }
}

/// A word as MGN writes it, in upper or lower case; the error names those that there are.
pub(super) fn of_model<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(Value::from(text.to_ascii_uppercase())).map_err(|e| e.to_string())
}

fn tag(text: &str) -> Result<String, String> {
    let is_tag = text.is_empty() || text.split_once('=').is_some_and(|(key, _)| !key.is_empty());
    is_tag.then(|| text.to_owned()).ok_or_else(|| "write KEY=VALUE".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: ReplicationArgs,
    }

    fn parsed(words: &[&str]) -> Result<ReplicationArgs, clap::Error> {
        Line::try_parse_from([&["x"], words].concat()).map(|line| line.args)
    }

    #[test]
    fn groups_and_tags_are_given_taken_away_or_left() {
        let groups = |words: &[&str]| parsed(words).unwrap().security_groups();
        assert_eq!(groups(&[]), None);
        assert_eq!(groups(&["--security-group", ""]), Some(vec![]));
        let two = groups(&["--security-group", "sg-1", "--security-group", "sg-2"]);
        assert_eq!(two, Some(vec!["sg-1".to_owned(), "sg-2".to_owned()]));
        let tags = |words: &[&str]| parsed(words).unwrap().staging_tags();
        assert_eq!((tags(&[]), tags(&["--staging-tag", ""])), (None, Some(HashMap::new())));
        let tag = HashMap::from([("a".to_owned(), "b=c".to_owned())]);
        assert_eq!(tags(&["--staging-tag", "a=b=c"]), Some(tag));
    }

    #[test]
    fn words_are_mgns() {
        let args = parsed(&["--large-disk-type", "st1", "--encryption=CUSTOM", "--routing", "public_ip"]).unwrap();
        assert_eq!(args.large_disk_type, Some(LargeStagingDiskType::St1));
        assert_eq!((args.encryption, args.routing), (Some(EbsEncryption::Custom), Some(DataPlaneRouting::PublicIp)));
        for wrong in [["--encryption", "NONE"], ["--staging-tag", "x"], ["--staging-tag", "=x"]] {
            assert!(parsed(&wrong).is_err(), "{wrong:?}");
        }
        assert!(parsed(&["--encryption", "none"]).unwrap_err().to_string().contains("CUSTOM"));
    }
}
