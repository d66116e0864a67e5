//! The agent on the machine of the test, with an image file as its source.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::paths;
use crate::process::{Running, run};
use crate::region::{InstallKey, Region};

/// An installed agent that runs in the foreground of its own process.
#[derive(Debug)]
pub struct LocalAgent {
    state: PathBuf,
    server: String,
    starts: u32,
    running: Option<Running>,
}

impl LocalAgent {
    /// Enrols an agent for the image `disk` with the region; its state is in `state`. It does not run yet.
    ///
    /// # Errors
    /// When the installation fails: with its words.
    pub fn install(region: &Region, disk: &Path, state: &Path) -> Result<Self> {
        let endpoint = format!("https://127.0.0.1:{}", region.port());
        let output = run(&mut install_command(&endpoint, &region.install_key()?, disk, state)?)?;
        Ok(Self { state: state.to_owned(), server: server_id(&output)?, starts: 0, running: None })
    }

    /// The source server's id.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Starts it (again).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        self.starts += 1;
        let log = self.state.with_extension(format!("{}.log", self.starts));
        let mut command = Command::new(paths::binary("rehost-agent")?);
        command.arg("run").arg("--state-dir").arg(&self.state);
        command.arg("--runtime-dir").arg(self.state.with_extension("run"));
        self.running = Some(Running::start(&mut command, &log)?);
        Ok(())
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// The running process.
    pub fn process(&mut self) -> Option<&mut Running> {
        self.running.as_mut()
    }

    /// What `rehost-agent status --json` shows.
    ///
    /// # Errors
    /// When it fails, or shows something else.
    pub fn status(&self) -> Result<Value> {
        let mut command = Command::new(paths::binary("rehost-agent")?);
        command.args(["status", "--json", "--state-dir"]).arg(&self.state);
        let text = run(command.arg("--runtime-dir").arg(self.state.with_extension("run")))?;
        serde_json::from_str(&text).map_err(|e| Error::Unexpected(format!("rehost-agent status --json: {e}: {text}")))
    }

    /// The folder of its identity.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What it has printed since its last start.
    #[must_use]
    pub fn output(&self) -> String {
        self.running.as_ref().map(Running::output).unwrap_or_default()
    }
}

/// The installation of an agent for the image `disk`; nothing is asked, and no service is set up.
///
/// # Errors
/// When the agent is not built.
pub fn install_command(endpoint: &str, key: &InstallKey, disk: &Path, state: &Path) -> Result<Command> {
    let mut command = Command::new(paths::binary("rehost-agent")?);
    command
        .args(["install", "--no-prompt", "--no-service"])
        .args(["--endpoint", endpoint])
        .args(["--ca-fingerprint", &key.ca_fingerprint])
        .args(["--aws-access-key-id", &key.access_key_id])
        .env("AWS_SECRET_ACCESS_KEY", &key.secret_access_key)
        .arg("--devices")
        .arg(disk)
        .arg("--state-dir")
        .arg(state);
    Ok(command)
}

/// The id in what `rehost-agent install` printed: the first word that looks like one.
///
/// # Errors
/// [`Error::Unexpected`] with the output.
pub fn server_id(output: &str) -> Result<String> {
    let looks_so = |word: &&str| word.len() == 19 && word.starts_with("s-");
    let words = output.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let found = words.into_iter().find(looks_so).map(str::to_owned);
    found.ok_or_else(|| Error::Unexpected(format!("the installation shows no source server id: {output}")))
}
