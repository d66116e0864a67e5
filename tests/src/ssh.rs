//! ssh and scp into the Debian server, as its administrator would use them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::process::run;

/// What opens a server: root's private key, and the server's own public one.
#[derive(Debug, Clone)]
pub struct Key {
    identity: PathBuf,
    known_hosts: PathBuf,
}

impl Key {
    /// The files that the image's builder leaves in a folder.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self { identity: folder.join("id_ed25519"), known_hosts: folder.join("known_hosts") }
    }
}

/// A way into a running server.
#[derive(Debug, Clone)]
pub struct Ssh {
    port: u16,
    key: Key,
}

impl Ssh {
    /// The server behind `port` of the loopback interface.
    #[must_use]
    pub fn new(port: u16, key: Key) -> Self {
        Self { port, key }
    }

    /// Runs a shell command as root and gives its standard output.
    ///
    /// # Errors
    /// When the connection or the command fails: with what it printed.
    pub fn run(&self, command: &str) -> Result<String> {
        run(&mut self.command(command))
    }

    /// The ssh command that [`Ssh::run`] runs, for a caller that wants the output as it comes.
    #[must_use]
    pub fn command(&self, command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(self.options()).args(["-p", &self.port.to_string(), "root@127.0.0.1", command]);
        ssh
    }

    /// Copies a file to the server.
    ///
    /// # Errors
    /// When the connection or the copy fails.
    pub fn copy(&self, file: &Path, to: &str) -> Result<()> {
        let mut scp = Command::new("scp");
        scp.args(self.options()).args(["-P", &self.port.to_string()]).arg(file).arg(format!("root@127.0.0.1:{to}"));
        run(&mut scp).map(drop)
    }

    /// Waits until the server lets us in.
    ///
    /// # Errors
    /// [`Error::Timeout`] with ssh's last words.
    pub fn wait(&self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.run("true") {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() >= limit => {
                    let what = format!("ssh on port {}", self.port);
                    return Err(Error::Timeout { what, after: limit, seen: error.to_string() });
                }
                Err(_) => thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    fn options(&self) -> Vec<String> {
        let mut words =
            vec!["-F".to_owned(), "/dev/null".to_owned(), "-i".to_owned(), self.key.identity.display().to_string()];
        let known_hosts = format!("UserKnownHostsFile={}", self.key.known_hosts.display());
        // The guest's port accepts long before its server does: the time limit covers the greeting.
        for option in [
            known_hosts.as_str(),
            "HostKeyAlias=source-server",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "ConnectTimeout=20",
        ] {
            words.extend(["-o".to_owned(), option.to_owned()]);
        }
        words
    }
}
