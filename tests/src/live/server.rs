//! The live server: a Debian machine with a web server and the writer, and the agent inside.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::offline::Places;
use super::record::count;
use crate::error::{Context, Error, Result};
use crate::machine::{Machine, MachineSpec};
use crate::process::run;
use crate::region::Region;
use crate::ssh::Ssh;
use crate::{DebianServer, agent, paths};

/// Where the guests of the source's network find this machine's loopback.
pub const GATEWAY: &str = "10.77.0.2";
/// Where the writer writes, seen from inside the file systems of the disk.
pub const PLACES: Places<'static> =
    Places { log: "/var/www/html/records", second: "/records", latest: "/var/www/html/latest" };
const ACKNOWLEDGED: &str = "/run/live-writer/acknowledged";

/// The writer's unit. It runs on the source alone: a launched copy has no SATA disk, and so its records stay as they were.
const UNIT: &str = "[Unit]
Description=Writes without end
ConditionPathExists=/dev/sda
RequiresMountsFor=/srv/data
[Service]
RuntimeDirectory=live-writer
ExecStartPre=/bin/mkdir -p /var/churn
ExecStart=/usr/local/sbin/live-writer run /var/www/html/records /srv/data/records /run/live-writer/acknowledged /var/churn 25 10
[Install]
WantedBy=multi-user.target
";

/// A running source server that writes.
#[derive(Debug)]
pub struct LiveServer {
    machine: Machine,
    ssh: Ssh,
    disk: PathBuf,
    patience: Duration,
}

impl LiveServer {
    /// Boots it, with an NVMe disk beside its own or without; its files are made in `folder`.
    ///
    /// # Errors
    /// When the image cannot be built, or the server does not answer.
    pub fn start(folder: &Path, nvme: Option<&Path>, patience: Duration) -> Result<Self> {
        let disk = folder.join("source.img");
        let key = DebianServer::default().build(&disk)?;
        let spec = MachineSpec::source(&disk).memory(768).hot_plug();
        let spec = match nvme {
            Some(nvme) => spec.with_nvme(nvme),
            None => spec,
        };
        let mut machine = spec.start(&folder.join("source"))?;
        machine.wait_http(80, "/", patience)?;
        let ssh = Ssh::new(machine.port(22)?, key);
        ssh.wait(patience)?;
        Ok(Self { machine, ssh, disk, patience })
    }

    /// Its image.
    #[must_use]
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// The machine.
    pub fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Runs a command as root inside.
    ///
    /// # Errors
    /// With what it printed.
    pub fn sh(&self, command: &str) -> Result<String> {
        self.ssh.run(command).map(|text| text.trim_end().to_owned())
    }

    /// Copies the writer into it and starts it, now and at every boot.
    ///
    /// # Errors
    /// When that fails.
    pub fn start_writer(&self, folder: &Path) -> Result<()> {
        self.install(&paths::binary("live-writer")?, "/usr/local/sbin/live-writer", folder)?;
        self.sh(&format!(
            "printf '%s' '{UNIT}' >/etc/systemd/system/live-writer.service && systemctl daemon-reload && \
             systemctl enable --now --quiet live-writer"
        ))?;
        self.wait_records(1)
    }

    /// Installs the agent as an administrator would, with these further options; the server's id.
    ///
    /// # Errors
    /// When the installation fails.
    pub fn install_agent(&self, region: &Region, folder: &Path, options: &str) -> Result<String> {
        let key = region.install_key()?;
        self.install(&paths::binary("rehost-agent")?, "/root/rehost-agent", folder)?;
        // The secret goes by the environment, so that it stands in no process list and no history.
        let output = self.sh(&format!(
            "AWS_SECRET_ACCESS_KEY='{}' /root/rehost-agent install --endpoint https://{GATEWAY}:{} --ca-fingerprint {} \
             --aws-access-key-id {} --no-prompt {options}",
            key.secret_access_key,
            region.port(),
            key.ca_fingerprint,
            key.access_key_id
        ))?;
        agent::server_id(&output)
    }

    /// Copies a program into the server, without what only debuggers need: the guest's network card is slow.
    fn install(&self, program: &Path, to: &str, folder: &Path) -> Result<()> {
        let stripped = folder.join("stripped");
        run(std::process::Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
        self.ssh.copy(&stripped, "/root/new")?;
        std::fs::remove_file(&stripped).context(|| format!("remove {}", stripped.display()))?;
        self.sh(&format!("chmod 755 /root/new && mv /root/new {to} && sync {to}")).map(drop)
    }

    /// How many records the writer has acknowledged.
    ///
    /// # Errors
    /// When it has not started.
    pub fn acknowledged(&self) -> Result<u64> {
        let text = self.sh(&format!("cat {ACKNOWLEDGED}"))?;
        text.parse().map_err(|_| Error::Unexpected(format!("the writer acknowledged {text:?}")))
    }

    /// Waits until at least so many records are acknowledged.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the writer's own words.
    pub fn wait_records(&self, wanted: u64) -> Result<()> {
        let started = Instant::now();
        loop {
            let seen = self.acknowledged();
            if seen.as_ref().is_ok_and(|seen| *seen >= wanted) {
                return Ok(());
            }
            if started.elapsed() > self.patience {
                let words = self.sh("systemctl status --no-pager live-writer; true").unwrap_or_default();
                let seen = format!("{seen:?}; {words}");
                return Err(Error::Timeout { what: format!("record {wanted}"), after: self.patience, seen });
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// Whether the writer runs.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn writer_runs(&self) -> Result<bool> {
        Ok(self.sh("systemctl is-active live-writer; true")? == "active")
    }

    /// What `rehost-agent status --json` says.
    ///
    /// # Errors
    /// When it fails.
    pub fn agent_status(&self) -> Result<Value> {
        let text = self.sh("rehost-agent status --json")?;
        serde_json::from_str(&text).map_err(|error| Error::Unexpected(format!("{error}: {text}")))
    }

    /// The agent's own words since the machine's start.
    #[must_use]
    pub fn agent_journal(&self) -> String {
        self.sh("journalctl -u rehost-agent --no-pager -o cat").unwrap_or_else(|error| error.to_string())
    }

    /// Traffic and reads as the guest's kernel counts them.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn counters(&self) -> Result<Counters> {
        let text = self.sh("cat /sys/class/net/lan0/statistics/tx_bytes /sys/block/sda/stat")?;
        let mut words = text.split_ascii_whitespace().map(|word| word.parse::<u64>().unwrap_or_default());
        let sent = words.next().unwrap_or_default();
        Ok(Counters { sent, read: words.nth(2).unwrap_or_default() * 512 })
    }

    /// Reboots it, and waits until it is back.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn reboot(&mut self) -> Result<()> {
        let boot = || self.sh("cat /proc/sys/kernel/random/boot_id");
        let before = boot()?;
        // The connection breaks with the server: how this ends says nothing.
        let _ = self.sh("systemctl reboot");
        let started = Instant::now();
        while boot().map_or(true, |now| now == before) {
            if started.elapsed() > self.patience {
                let seen = self.machine.vga_text().unwrap_or_default();
                return Err(Error::Timeout { what: "the reboot".to_owned(), after: self.patience, seen });
            }
            thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }

    /// How many records the server itself serves: every one of them right.
    ///
    /// # Errors
    /// When one is not.
    pub fn served_records(&self) -> Result<u64> {
        let answer = crate::http_get(self.machine.port(80)?, "/records", Duration::from_secs(60))?;
        count(&answer.body)
    }
}

/// What the guest's kernel has counted since its boot; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Sent by the network card.
    pub sent: u64,
    /// Read from the boot disk.
    pub read: u64,
}

impl Counters {
    /// What came since `before`, without a reboot between.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self { sent: self.sent.saturating_sub(before.sent), read: self.read.saturating_sub(before.read) }
    }
}
