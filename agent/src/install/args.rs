//! The options of `install`: MGN's own names, and what a region without a public endpoint needs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use rehost_link::control_client::CaFingerprint;
use rehost_link::sigv4::{AccessKey, SigningService};
use zeroize::Zeroizing;

use super::InstallError;
use super::prompt::Terminal;
use crate::settings::STATE_DIR;

/// The options of `rehost-agent install`; not to be shown, since it may hold secrets.
#[derive(Args)]
pub struct InstallArgs {
    /// Region of the control plane; part of what is signed. An endpoint of API Gateway names its own
    #[arg(long, env = "AWS_REGION", default_value = "local")]
    pub region: String,
    /// Who checks the signature: execute-api (API Gateway) or mgn; told from the endpoint unless it has a name of its own
    #[arg(long, env = "REHOST_SIGNING_SERVICE", value_name = "SERVICE")]
    pub signing_service: Option<SigningService>,
    /// Access key that may enrol servers
    #[arg(long, env = "AWS_ACCESS_KEY_ID", value_name = "ID")]
    pub aws_access_key_id: Option<String>,
    /// Its secret; better given as the environment variable or at the prompt, where no process list shows it
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", value_name = "SECRET", hide_env_values = true)]
    pub aws_secret_access_key: Option<Zeroizing<String>>,
    /// Session token of temporary credentials
    #[arg(long, env = "AWS_SESSION_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub aws_session_token: Option<Zeroizing<String>>,
    /// Ask nothing; what is missing is an error
    #[arg(long)]
    pub no_prompt: bool,
    /// Disks to replicate, such as /dev/sda,/dev/sdb, or image files; all disks by default
    #[arg(long, value_name = "DISK,…", value_delimiter = ',')]
    pub devices: Vec<String>,
    /// Tags of the source server
    #[arg(long, value_name = "KEY=VALUE", num_args = 1..)]
    pub tags: Vec<String>,
    /// A name of your own for this server
    #[arg(long, value_name = "ID")]
    pub user_provided_id: Option<String>,
    /// Where the control plane is: https://HOST[:PORT]
    #[arg(long, env = "REHOST_ENDPOINT", value_name = "URL")]
    pub endpoint: Option<String>,
    /// Enrol, and do not replicate
    #[arg(long)]
    pub no_replication: bool,
    /// Fingerprint of the region's private authority, sha256:HEX, as `rehost init` shows it
    #[arg(long, env = "REHOST_CA_FINGERPRINT", value_name = "FINGERPRINT")]
    pub ca_fingerprint: Option<CaFingerprint>,
    /// Directory of the agent's identity
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
    /// Only enrol and keep the identity: no copy of the program, no service
    #[arg(long)]
    pub no_service: bool,
}

impl InstallArgs {
    /// The tags by their keys.
    pub(super) fn tags(&self) -> Result<BTreeMap<String, String>, InstallError> {
        let pair = |tag: &String| match tag.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(InstallError::Tag(tag.clone())),
        };
        self.tags.iter().map(pair).collect()
    }

    /// The disks that the user wants; `None` means all.
    pub(super) fn chosen_disks(&self) -> Option<&[String]> {
        (!self.devices.is_empty()).then_some(self.devices.as_slice())
    }

    /// What can be asked for what is missing.
    pub(super) fn terminal(&self) -> Option<Terminal> {
        if self.no_prompt { None } else { Terminal::open() }
    }

    pub(super) fn endpoint(&self, terminal: Option<&Terminal>) -> Result<String, InstallError> {
        given(self.endpoint.clone(), "--endpoint (or REHOST_ENDPOINT)", || {
            terminal.map(|t| t.ask("Endpoint of the control plane (https://HOST[:PORT])"))
        })
    }

    /// The access key, from options, environment or the terminal.
    pub(super) fn access_key(&self, terminal: Option<&Terminal>) -> Result<AccessKey, InstallError> {
        let id = given(self.aws_access_key_id.clone(), "--aws-access-key-id (or AWS_ACCESS_KEY_ID)", || {
            terminal.map(|t| t.ask("AWS access key ID"))
        })?;
        let secret =
            given(self.aws_secret_access_key.clone(), "AWS_SECRET_ACCESS_KEY (or --aws-secret-access-key)", || {
                terminal.map(|t| t.ask_secret("AWS secret access key (not shown)"))
            })?;
        Ok(AccessKey { id, secret, session_token: self.aws_session_token.clone() })
    }
}

/// An option's value, or the answer to a question.
fn given<T: AsRef<str>>(
    value: Option<T>,
    option: &'static str,
    ask: impl FnOnce() -> Option<std::io::Result<T>>,
) -> Result<T, InstallError> {
    let missing = || InstallError::Missing { option };
    let value = match value {
        Some(value) => value,
        None => ask().ok_or_else(missing)?.map_err(InstallError::Terminal)?,
    };
    if value.as_ref().is_empty() { Err(missing()) } else { Ok(value) }
}
