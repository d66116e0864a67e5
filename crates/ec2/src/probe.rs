//! Probes of a launched copy: what counts as an answer.
//!
//! - **boot**: EC2's status checks pass, for which the guest's network must answer, and its console shows no boot that came to an
//!   end.
//! - **tcp**: the guest accepts a connection, at its private or its public address.
//! - **http**: a status below 500 answers `GET`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aws_sdk_ec2::types::{InstanceStatusSummary, SummaryStatus};
use rehost_control::PortError;
use rehost_control::ports::{Instance, InstanceState, PortResult};
use rehost_model::InstanceId;
use rehost_model::launch::{Probe, ProbeOutcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Ec2Compute;
use crate::console;
use crate::errors::failed;

/// No attempt at an address takes longer.
const LIMIT: Duration = Duration::from_secs(4);

/// A status line is shorter; bytes.
const HTTP_HEAD: usize = 4 << 10;

impl Ec2Compute {
    /// See [`rehost_control::ports::Compute::probe`].
    pub(crate) async fn attempt(&self, id: &InstanceId, probe: &Probe) -> PortResult<ProbeOutcome> {
        let gone = || PortError::not_found(format!("the instance {id} does not exist (any more)"));
        let instance = self.look_at(id).await?.ok_or_else(gone)?;
        if instance.state != InstanceState::Running {
            return Ok(refused(format!("it does not run: it is {:?}", instance.state)));
        }
        match probe.port() {
            None => self.boot(id).await,
            Some(port) => Ok(reach(&addresses(&instance, port), probe).await),
        }
    }

    async fn boot(&self, id: &InstanceId) -> PortResult<ProbeOutcome> {
        let described = self.ec2.describe_instance_status().instance_ids(id.as_str()).send().await;
        let described = described.map_err(|e| failed("ec2:DescribeInstanceStatus", id, &e))?;
        let status = described.instance_statuses().first();
        let text = |summary: Option<&InstanceStatusSummary>| {
            summary.and_then(|s| s.status()).map_or("unknown", SummaryStatus::as_str).to_owned()
        };
        let (guest, host) =
            (text(status.and_then(|s| s.instance_status())), text(status.and_then(|s| s.system_status())));
        // Without its console the status checks alone count.
        let console = self.console(id).await.unwrap_or_default();
        Ok(booted(&guest, &host, &console))
    }
}

fn booted(guest: &str, host: &str, console: &str) -> ProbeOutcome {
    let checks = format!("status checks: instance {guest}, system {host}");
    let passed = [guest, host].iter().all(|status| *status == SummaryStatus::Ok.as_str());
    match console::stuck(console) {
        Some(why) => refused(format!("{why}; {checks}")),
        None if passed => ProbeOutcome { passed: true, detail: checks },
        None => refused(checks),
    }
}

fn refused(detail: impl Into<String>) -> ProbeOutcome {
    ProbeOutcome { passed: false, detail: detail.into() }
}

fn addresses(instance: &Instance, port: u16) -> Vec<SocketAddr> {
    let ips: Vec<IpAddr> = instance.private_ip.into_iter().chain(instance.public_ip).collect();
    ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}

/// Tries all addresses at once; the first that answers well counts.
async fn reach(addresses: &[SocketAddr], probe: &Probe) -> ProbeOutcome {
    let mut attempts = JoinSet::new();
    for address in addresses.iter().copied() {
        let probe = probe.clone();
        attempts.spawn(async move { (address, one(address, &probe).await) });
    }
    let mut seen = Vec::new();
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok((_, outcome)) if outcome.passed => return outcome,
            Ok((address, outcome)) => seen.push(format!("{address}: {}", outcome.detail)),
            Err(error) => seen.push(error.to_string()),
        }
    }
    seen.sort();
    if seen.is_empty() { refused("it has no address") } else { refused(seen.join("; ")) }
}

async fn one(address: SocketAddr, probe: &Probe) -> ProbeOutcome {
    let attempt = async {
        match probe {
            Probe::Http { path, .. } => http(address, path).await,
            _ => {
                TcpStream::connect(address).await.map(|_| ProbeOutcome { passed: true, detail: "accepted".to_owned() })
            }
        }
    };
    match timeout(LIMIT, attempt).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => refused(error.to_string()),
        Err(_) => refused(format!("no answer within {} s", LIMIT.as_secs())),
    }
}

async fn http(address: SocketAddr, path: &str) -> io::Result<ProbeOutcome> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: rehost\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while head.len() < HTTP_HEAD && !head.contains(&b'\n') {
        let mut part = [0; 512];
        match stream.read(&mut part).await? {
            0 => break,
            n => head.extend(part.iter().take(n)),
        }
    }
    Ok(match status(&head) {
        Some(status) => ProbeOutcome { passed: status < 500, detail: format!("HTTP {status}") },
        None if head.is_empty() => refused("closed without an answer"),
        None => refused("the answer is not HTTP"),
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
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_boot_counts_by_status_checks_and_console() {
        assert!(booted("ok", "ok", "").passed);
        assert!(booted("ok", "ok", "server login: ").passed);
        assert!(!booted("initializing", "ok", "server login: ").passed);
        assert!(!booted("ok", "impaired", "").passed);
        let panicked = booted("ok", "ok", "Kernel panic");
        assert!(!panicked.passed && panicked.detail.contains("panicked") && panicked.detail.contains("instance ok"));
    }

    #[test]
    fn status_lines_are_read_with_care() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        for head in ["", "HTTP/2 200", "HTTP/1.1", "HTTP/1.1 99 x", "SSH-2.0-x", "HTTP/1.1 abc"] {
            assert_eq!(status(head.as_bytes()), None, "{head:?}");
        }
    }

    /// A server for one connection, and an address where nothing listens.
    async fn server(answer: &'static str) -> (SocketAddr, SocketAddr) {
        let (listener, free) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (address, closed) = (listener.local_addr().unwrap(), free.local_addr().unwrap());
        drop(free);
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 512];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        (address, closed)
    }

    #[tokio::test]
    async fn one_address_that_answers_is_enough() {
        let http = |port| Probe::Http { port, path: "/".to_owned() };
        let (open, closed) = server("HTTP/1.1 200 OK\r\n\r\n").await;
        assert_eq!(reach(&[closed, open], &http(open.port())).await.detail, "HTTP 200");
        let (open, _) = server("HTTP/1.1 503 no\r\n\r\n").await;
        assert!(!reach(&[open], &http(open.port())).await.passed);
        let (open, closed) = server("").await;
        assert!(reach(&[open], &Probe::Tcp { port: open.port() }).await.passed);
        let refusal = reach(&[closed], &Probe::Tcp { port: closed.port() }).await;
        assert!(!refusal.passed && refusal.detail.contains(&closed.to_string()), "{refusal:?}");
        assert!(!reach(&[], &Probe::Tcp { port: 1 }).await.passed);
    }
}
