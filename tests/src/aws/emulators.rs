//! The emulators as processes: started on ports of their own, awaited, and ended with everything that they started.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::net::{free_port, http_get, http_post};
use crate::paths;
use crate::process::{Group, last_lines};

/// How long an emulator may take to answer: both load a thousand modules of Python.
const START_LIMIT: Duration = Duration::from_secs(120);

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The account in which ministack keeps what requests of other credentials make.
pub const ACCOUNT: &str = "123456789012";

/// The region that both emulators play.
pub const REGION: &str = "eu-central-1";

/// What the SDKs and the AWS CLI need to talk to an emulator.
#[must_use]
pub fn credentials() -> [(&'static str, &'static str); 5] {
    [
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", REGION),
        ("AWS_DEFAULT_REGION", REGION),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
}

/// moto: EC2, EBS direct, SSM, Step Functions and more, in memory. Its own account is 123456789012.
#[derive(Debug)]
pub struct Moto {
    server: Server,
}

impl Moto {
    /// Starts it; its log is `folder`/moto.log.
    ///
    /// # Errors
    /// When it is not installed, or does not answer.
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_with(folder, None)
    }

    /// As [`Self::start`], with Lambda tasks of its state machines going to the endpoint `lambda`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(folder: &Path, lambda: Option<&str>) -> Result<Self> {
        let mut command = python("moto", "moto-server")?;
        // moto's own port: with 0 it takes a free one and says which.
        command.arg("0");
        command.envs(lambda.map(|endpoint| ("AWS_ENDPOINT_URL_LAMBDA", endpoint)));
        let log = folder.join("moto.log");
        let mut group = Group::start(&mut command, &log)?;
        let port = await_so(&mut group, "moto", |group| {
            let output = group.output();
            let port = output.lines().find_map(|line| line.strip_prefix("listening on ")?.parse().ok());
            port.filter(|port| http_get(*port, "/moto-api/", PATIENCE).is_ok_and(|answer| answer.status == 200))
        })?;
        Ok(Self { server: Server { port, group, log } })
    }

    /// Its URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Forgets everything that was made.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub fn reset(&self) -> Result<()> {
        self.server.post("/moto-api/reset")
    }

    /// What it has printed.
    #[must_use]
    pub fn output(&self) -> String {
        self.server.group.output()
    }
}

/// ministack: everything but EC2's details; it runs functions from their zips as processes of its own.
#[derive(Debug)]
pub struct MiniStack {
    server: Server,
}

impl MiniStack {
    /// Starts it; its log is `folder`/ministack.log, and what it unpacks stays in `folder`. `environment` is set for it
    /// and for the functions that it runs.
    ///
    /// # Errors
    /// When it is not installed, or does not answer.
    pub fn start(folder: &Path, environment: &[(&str, &str)]) -> Result<Self> {
        let log = folder.join("ministack.log");
        let mut last = None;
        // It cannot choose a port itself; another process may take this one first.
        for _ in 0..3 {
            match Self::start_on(free_port()?, folder, &log, environment) {
                Err(error @ Error::Stopped { .. }) => last = Some(error),
                other => return other,
            }
        }
        Err(last.unwrap_or_else(|| Error::Unexpected("ministack was not started".to_owned())))
    }

    fn start_on(port: u16, folder: &Path, log: &Path, environment: &[(&str, &str)]) -> Result<Self> {
        let mut command = python("ministack", "ministack-server")?;
        command
            .env("GATEWAY_PORT", port.to_string())
            .env("BIND_HOST", "127.0.0.1")
            .env("MINISTACK_HOST", "localhost")
            .env("MINISTACK_ACCOUNT_ID", ACCOUNT)
            .env("MINISTACK_REGION", REGION)
            .env("IOT_MTLS_ENABLED", "0")
            .env("SFTP_ENABLED", "0")
            .env("TMPDIR", folder)
            // No Docker is asked for what it does not need.
            .env("DOCKER_HOST", "unix:///nonexistent")
            .envs(environment.iter().copied());
        let mut group = Group::start(&mut command, log)?;
        await_so(&mut group, "ministack", |_| {
            http_get(port, "/_ministack/health", PATIENCE).ok().filter(|answer| answer.status == 200)
        })?;
        Ok(Self { server: Server { port, group, log: log.to_owned() } })
    }

    /// Its URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Forgets everything that was made.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub fn reset(&self) -> Result<()> {
        self.server.post("/_ministack/reset")
    }

    /// What it has printed.
    #[must_use]
    pub fn output(&self) -> String {
        self.server.group.output()
    }
}

#[derive(Debug)]
struct Server {
    port: u16,
    group: Group,
    log: PathBuf,
}

impl Server {
    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn post(&self, path: &str) -> Result<()> {
        let answer = http_post(self.port, path, b"", PATIENCE)?;
        if answer.status == 200 {
            return Ok(());
        }
        Err(Error::Unexpected(format!(
            "{} answered {} to {path}; see {}",
            self.endpoint(),
            answer.status,
            self.log.display()
        )))
    }
}

/// The launcher `script` in the environment of the emulator `name`.
fn python(name: &str, script: &str) -> Result<Command> {
    let program = paths::cache().join("aws").join(name).join("bin/python3");
    if !program.is_file() {
        return Err(Error::Unexpected(format!("the emulator {name} is not installed: run scripts/install-deps aws")));
    }
    let mut command = Command::new(program);
    command.arg("-u").arg(paths::repository().join("tests/emulators").join(script));
    // Of the caller's environment it gets nothing that says where AWS is.
    command.env_clear().envs(std::env::vars().filter(|(name, _)| !name.starts_with("AWS_")));
    command.envs(credentials());
    Ok(command)
}

/// Asks until there is an answer, as long as the process runs.
fn await_so<T>(group: &mut Group, name: &str, mut ask: impl FnMut(&Group) -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask(group) {
            return Ok(answer);
        }
        group.check()?;
        if started.elapsed() > START_LIMIT {
            let seen = last_lines(&group.output(), 12);
            return Err(Error::Timeout { what: format!("the start of {name}"), after: START_LIMIT, seen });
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workspace;

    #[test]
    fn moto_answers_and_is_gone_when_dropped() {
        let space = Workspace::new("moto").unwrap();
        let moto = Moto::start(space.folder()).unwrap();
        let port = moto.port();
        moto.reset().unwrap();
        drop(moto);
        assert!(http_get(port, "/moto-api/", Duration::from_secs(2)).is_err());
    }
}
