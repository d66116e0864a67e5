//! A local region for a test: its home in a workspace, `rehost serve`, and the command as a user would call it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::journey::Site;
use crate::net::{free_port, http_get};
use crate::process::{Running, run};
use crate::{paths, sweep};

/// How long the service may take to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A region, and its service while that runs. Dropping it ends every process of the region.
#[derive(Debug)]
pub struct Region {
    home: PathBuf,
    port: u16,
    log: PathBuf,
    starts: u32,
    serve: Option<Running>,
}

/// What an agent needs to enrol.
#[derive(Debug, Clone)]
pub struct InstallKey {
    /// The installation key's id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// `sha256:…` of the region's private CA.
    pub ca_fingerprint: String,
}

impl Region {
    /// Makes a region in `folder`, whose replication servers are reached under `hosts`, and starts its service.
    ///
    /// # Errors
    /// When a command of `rehost` fails or the service does not come up.
    pub fn start(folder: &Path, hosts: &[&str]) -> Result<Self> {
        let port = free_port()?;
        let log = folder.join("serve.log");
        let mut region = Self { home: folder.join("home"), port, log, starts: 0, serve: None };
        let listen = format!("127.0.0.1:{port}");
        // Not 1500, which may be in use on the machine of the test.
        let replication = free_port()?.to_string();
        let base = ["init", "--listen", listen.as_str(), "--replication-port", replication.as_str()];
        let hosts = hosts.iter().flat_map(|host| ["--host", host]);
        let arguments: Vec<&str> = base.into_iter().chain(hosts).collect();
        region.rehost(&arguments)?;
        region.serve()?;
        Ok(region)
    }

    /// Starts the service (again).
    ///
    /// # Errors
    /// When it does not say that it is ready.
    pub fn serve(&mut self) -> Result<()> {
        self.starts += 1;
        let log = self.log.with_extension(format!("{}.log", self.starts));
        let mut command = self.command(&["serve"])?;
        let mut running = Running::start(&mut command, &log)?;
        let started = Instant::now();
        while !running.output().contains("serving on") {
            running.check()?;
            if started.elapsed() > START_LIMIT {
                let what = "the start of rehost serve".to_owned();
                return Err(Error::Timeout { what, after: START_LIMIT, seen: running.output() });
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.serve = Some(running);
        Ok(())
    }

    /// Kills the service (SIGKILL), and nothing else of the region.
    pub fn kill_serve(&mut self) {
        self.serve = None;
    }

    /// What the service has printed since its last start.
    #[must_use]
    pub fn serve_output(&self) -> String {
        self.serve.as_ref().map(Running::output).unwrap_or_default()
    }

    /// The service's process id, while it runs.
    #[must_use]
    pub fn serve_pid(&self) -> Option<u32> {
        self.serve.as_ref().map(Running::pid)
    }

    /// The port of the API.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The region's home.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Runs `rehost` and gives what it printed.
    ///
    /// # Errors
    /// [`Error::Failed`] with its words.
    pub fn rehost(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments)?)
    }

    /// Runs `rehost … --json` and gives the document.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let with_json: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let text = self.rehost(&with_json)?;
        serde_json::from_str(&text).map_err(|e| Error::Unexpected(format!("rehost {arguments:?} --json: {e}: {text}")))
    }

    /// The command `rehost` on this region.
    ///
    /// # Errors
    /// When it is not built.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(paths::binary("rehost")?);
        command.arg("--home").arg(&self.home).args(arguments);
        Ok(command)
    }

    /// What an agent needs to enrol here.
    ///
    /// # Errors
    /// When `rehost install-command` fails.
    pub fn install_key(&self) -> Result<InstallKey> {
        let document = self.json(&["install-command", "--show-secret"])?;
        let text = |name: &str| {
            let value = document.get(name).and_then(Value::as_str).map(str::to_owned);
            value.ok_or_else(|| Error::Unexpected(format!("rehost install-command --json has no {name}: {document}")))
        };
        Ok(InstallKey {
            access_key_id: text("accessKeyId")?,
            secret_access_key: text("secretAccessKey")?,
            ca_fingerprint: text("caFingerprint")?,
        })
    }

    /// A source server, as the API shows it.
    ///
    /// # Errors
    /// When there is none of that id.
    pub fn server(&self, id: &str) -> Result<Value> {
        self.json(&["server", "show", id])
    }

    /// Waits until `is_so` holds for the server, and gives it.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the server's state, its replication and its error.
    pub fn wait_server(&self, id: &str, what: &str, limit: Duration, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let started = Instant::now();
        loop {
            let seen = self.server(id);
            match seen {
                Ok(server) if is_so(&server) => return Ok(server),
                _ if started.elapsed() > limit => {
                    let seen = seen.map_or_else(|e| e.to_string(), |server| summary(&server));
                    return Err(Error::Timeout { what: what.to_owned(), after: limit, seen });
                }
                // The service may just be down on purpose.
                _ => thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// Waits until the server's lifecycle is in `state`.
    ///
    /// # Errors
    /// As [`Region::wait_server`].
    pub fn wait_state(&self, id: &str, state: &str, limit: Duration) -> Result<Value> {
        self.wait_server(id, &format!("lifecycle state {state}"), limit, |server| server["lifeCycle"]["state"] == state)
    }

    /// The only files that a region without servers has.
    ///
    /// # Errors
    /// When the home cannot be read.
    pub fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for folder in ["volumes", "snapshots", "instances", "replicators"] {
            let path = self.home.join(folder);
            if !path.exists() {
                continue;
            }
            for entry in std::fs::read_dir(&path).context(|| format!("read {}", path.display()))? {
                found.push(entry.context(|| format!("read {}", path.display()))?.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// The images of volumes: those of the staging area, and of launched copies if there are some.
    ///
    /// # Errors
    /// When the home cannot be read.
    pub fn volumes(&self) -> Result<Vec<PathBuf>> {
        let mut found = self.leftovers()?;
        found
            .retain(|path| path.extension().is_some_and(|e| e == "img") && path.starts_with(self.home.join("volumes")));
        Ok(found)
    }

    /// Where the region's only replication server listens, once there is one.
    ///
    /// # Errors
    /// [`Error::Timeout`] when none appears within `limit`.
    pub fn wait_replication_port(&self, limit: Duration) -> Result<u16> {
        let folder = self.home.join("replicators");
        let started = Instant::now();
        while started.elapsed() < limit {
            let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            let ports = entries.filter_map(|entry| {
                let config = std::fs::read(entry.path().join("config.json")).ok()?;
                let config: Value = serde_json::from_slice(&config).ok()?;
                config["listen"].as_str()?.rsplit(':').next()?.parse().ok()
            });
            if let Some(port) = ports.last() {
                return Ok(port);
            }
            thread::sleep(Duration::from_millis(20));
        }
        let what = "a replication server".to_owned();
        Err(Error::Timeout { what, after: limit, seen: format!("none in {}", folder.display()) })
    }

    /// Every event that was published, in EventBridge's envelope.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn events(&self) -> Result<Vec<Value>> {
        let path = self.home.join("events.jsonl");
        let text = std::fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
        let event = |line: &str| {
            serde_json::from_str(line).map_err(|e| Error::Unexpected(format!("{}: {e}: {line}", path.display())))
        };
        text.lines().map(event).collect()
    }

    /// Processes of the region other than its service.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let mut pids = sweep::processes_naming(&self.home);
        pids.retain(|pid| Some(*pid) != self.serve_pid());
        pids
    }
}

impl Site for Region {
    fn rehost(&self, arguments: &[&str]) -> Result<String> {
        self.rehost(arguments)
    }

    fn page(&self, server: &Value) -> Result<String> {
        let endpoint = server["launchedInstance"]["endpoints"]["80"].as_str().unwrap_or_default();
        let port = endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_default();
        Ok(http_get(port, "/", Duration::from_secs(10))?.text())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // The service first: it would start its replication servers again.
        self.serve = None;
        sweep::kill_naming(&self.home);
    }
}

/// What matters of a server when something did not happen.
fn summary(server: &Value) -> String {
    let info = &server["dataReplicationInfo"];
    format!(
        "{} {} error={} disks={} steps={}",
        server["lifeCycle"]["state"],
        info["dataReplicationState"],
        info["dataReplicationError"],
        info["replicatedDisks"],
        info["dataReplicationInitiation"]["steps"],
    )
}
