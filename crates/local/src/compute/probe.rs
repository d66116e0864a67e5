//! Probes of a launched copy: what counts as an answer.
//!
//! - **boot**: its serial console shows that user space runs from the server's own root file system: a login prompt, systemd's
//!   targets after the initramfs was left, or the kernel's hand-over to init. What came to an end before (a panic, a root file system
//!   that does not appear, emergency mode) is told as the reason.
//! - **tcp**: the guest itself accepts the connection. QEMU accepts on the guest's behalf long before that, so its own table of
//!   connections is asked; data from the guest is proof as well.
//! - **http**: a status below 500 answers `GET`.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rehost_control::PortError;
use rehost_control::ports::PortResult;
use rehost_model::InstanceId;
use rehost_model::launch::{Probe, ProbeOutcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::machine::{Life, MachineKind, endpoints, no_instance, tail};
use super::{Engine, qemu, qmp};

/// No attempt takes longer.
const LIMIT: Duration = Duration::from_secs(5);

/// So much of the console is searched; bytes.
const CONSOLE_SEARCHED: usize = 4 << 20;

/// A status line is shorter.
const HTTP_HEAD: usize = 4 << 10;

/// Proof of user space.
const RUNNING: [&str; 3] = ["login:", "Reached target", "Run /sbin/init as init process"];

/// Ends of a boot, each with its meaning.
const STUCK: [(&str, &str); 6] = [
    ("Kernel panic", "the kernel panicked"),
    ("Gave up waiting for root", "its root file system does not appear"),
    ("emergency mode", "it is in emergency mode"),
    ("(initramfs)", "it stays in its initramfs"),
    ("dracut-initqueue: Warning: Could not boot", "its root file system does not appear"),
    ("No bootable device", "its firmware finds nothing to boot"),
];

/// Left by the initramfs's own systemd, which reaches targets too.
const SWITCHED: [&str; 2] = ["Switching root", "Switch Root"];

/// What a probe needs to know of an instance.
#[derive(Debug)]
pub(super) enum Target {
    Console(String),
    Address { address: SocketAddr, guest_port: u16, folder: PathBuf },
    NotRunning,
}

impl Engine {
    /// What `probe` has to look at.
    pub(super) fn probe_target(&self, id: &InstanceId, probe: &Probe) -> PortResult<Target> {
        let machine = self.machine(id)?.ok_or_else(|| no_instance(id))?;
        if !matches!(machine.kind, MachineKind::Copy { .. }) {
            return Err(PortError::invalid(format!("{id} is no launched copy: only those are probed")));
        }
        let folder = self.layout.instance(id);
        if !matches!(self.life(&machine)?, Life::Running(_)) {
            return Ok(Target::NotRunning);
        }
        let Some(guest_port) = probe.port() else {
            return Ok(Target::Console(tail(&folder.join(qemu::CONSOLE), CONSOLE_SEARCHED)?));
        };
        let address = endpoints(&machine).get(&guest_port).copied().ok_or_else(|| {
            PortError::invalid(format!(
                "port {guest_port} of {id} cannot be reached: name it when the copy is launched"
            ))
        })?;
        Ok(Target::Address { address, guest_port, folder })
    }
}

/// One attempt.
pub(super) async fn attempt(target: Target, probe: &Probe) -> ProbeOutcome {
    match (target, probe) {
        (Target::NotRunning, _) => failed("the machine does not run"),
        (Target::Console(console), _) => boot(&console),
        (Target::Address { address, .. }, Probe::Http { path, .. }) => bounded(http(address, path)).await,
        (Target::Address { address, guest_port, folder }, _) => bounded(tcp(address, guest_port, folder)).await,
    }
}

async fn bounded(attempt: impl Future<Output = io::Result<ProbeOutcome>>) -> ProbeOutcome {
    match timeout(LIMIT, attempt).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => failed(&error.to_string()),
        Err(_) => failed(&format!("no answer within {} s", LIMIT.as_secs())),
    }
}

fn passed(detail: impl Into<String>) -> ProbeOutcome {
    ProbeOutcome { passed: true, detail: detail.into() }
}

fn failed(detail: &str) -> ProbeOutcome {
    ProbeOutcome { passed: false, detail: detail.to_owned() }
}

fn boot(console: &str) -> ProbeOutcome {
    let left_initramfs = SWITCHED.iter().filter_map(|mark| console.rfind(mark)).max();
    let in_systemd_initramfs = console.contains("Initramfs)") || console.contains("initrd");
    let counts = |(at, mark): &(usize, &str)| {
        *mark != "Reached target" || !in_systemd_initramfs || left_initramfs.is_some_and(|left| *at > left)
    };
    let running = RUNNING.iter().filter_map(|mark| console.rfind(mark).map(|at| (at, *mark))).filter(counts).max();
    let stuck = STUCK.iter().filter_map(|(mark, meaning)| console.rfind(mark).map(|at| (at, *meaning))).max();
    match (running, stuck) {
        (Some((at, mark)), None) => passed(format!("its console shows `{mark}` after {at} characters")),
        (Some((at, mark)), Some((stuck_at, _))) if at > stuck_at => passed(format!("its console shows `{mark}`")),
        (_, Some((_, meaning))) => failed(meaning),
        (None, None) => failed("its console does not show user space yet"),
    }
}

async fn tcp(address: SocketAddr, guest_port: u16, folder: PathBuf) -> io::Result<ProbeOutcome> {
    let mut stream = TcpStream::connect(address).await?;
    let mut byte = [0u8; 1];
    loop {
        match timeout(Duration::from_millis(250), stream.read(&mut byte)).await {
            Ok(Ok(0)) => return Ok(failed("connection refused")),
            Ok(Ok(_)) => return Ok(passed("accepted, and data came")),
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
        if accepted_by_guest(&folder, address.port(), guest_port).await {
            return Ok(passed("accepted"));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Whether QEMU's network has an established connection from this port of the host to this port of the guest.
async fn accepted_by_guest(folder: &std::path::Path, host_port: u16, guest_port: u16) -> bool {
    let folder = folder.to_owned();
    let table = tokio::task::spawn_blocking(move || qmp::human(&folder, "info usernet")).await;
    matches!(table, Ok(Ok(table)) if has_established(&table, host_port, guest_port))
}

/// Lines such as `TCP[ESTABLISHED] 14 127.0.0.1 18999 10.0.2.15 80 0 0`.
fn has_established(table: &str, host_port: u16, guest_port: u16) -> bool {
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let port = |index: usize| words.get(index).and_then(|word| word.parse::<u16>().ok());
        words.first() == Some(&"TCP[ESTABLISHED]") && port(3) == Some(host_port) && port(5) == Some(guest_port)
    })
}

async fn http(address: SocketAddr, path: &str) -> io::Result<ProbeOutcome> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: rehost\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while head.len() < HTTP_HEAD && !head.contains(&b'\n') {
        let mut part = [0u8; 512];
        match stream.read(&mut part).await? {
            0 => break,
            n => head.extend_from_slice(&part[..n]),
        }
    }
    Ok(match (head.is_empty(), status(&head)) {
        (true, _) => failed("connection refused, or closed without an answer"),
        (false, Some(status)) => ProbeOutcome { passed: status < 500, detail: format!("HTTP {status}") },
        (false, None) => failed("the answer is not HTTP"),
    })
}

/// The status in `HTTP/1.1 200 OK`.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
#[path = "probe/tests.rs"]
mod tests;
