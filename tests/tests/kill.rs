//! Kill -9 of the agent, the replicator and the service at random moments of the initial sync: the volume ends identical to
//! the source, and no finished part travels again beyond the unacknowledged window.
//!
//! `KILL_RUNS` (10) runs each; `SEED` repeats one series.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rehost_tests::error::Context;
use rehost_tests::forward::Link;
use rehost_tests::random::Random;
use rehost_tests::{Error, Forwarder, LocalAgent, Region, Result, Workspace, sweep};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);
/// Two thirds of it are data: twice the window, so that a start over from the beginning would show.
const DISK_BYTES: usize = 192 << 20;
/// Of these every third is a hole, so that zero runs are part of it.
const EXTENT_BYTES: usize = 1 << 20;
/// What a session may have under way unacknowledged.
const WINDOW_BYTES: u64 = 32 << 20;
/// Slow enough that a sync takes some seconds and a kill falls into it.
const LINK_BYTES_PER_SECOND: u64 = 48 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Agent,
    Replicator,
    Service,
}

#[test]
fn kill_the_agent() -> Result<()> {
    series(Victim::Agent)
}

#[test]
fn kill_the_replicator() -> Result<()> {
    series(Victim::Replicator)
}

#[test]
fn kill_the_service() -> Result<()> {
    series(Victim::Service)
}

fn series(victim: Victim) -> Result<()> {
    let runs: u32 = variable("KILL_RUNS").unwrap_or(10);
    let seed: u64 = variable("SEED").unwrap_or_else(rehost_tests::random::seed);
    println!("{victim:?}: SEED={seed} KILL_RUNS={runs}");
    let mut random = Random::new(seed);
    let space = Workspace::new("kill")?;
    // Agents reach the replicator through a forwarder of their own, which is slow and counts.
    let mut region = Region::start(space.folder(), &["127.0.0.2"])?;
    for run in 0..runs {
        let outcome = one(&mut region, &space, victim, run, &mut random)?;
        println!("{victim:?} run {run}: {outcome}");
    }
    Ok(())
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn one(region: &mut Region, space: &Workspace, victim: Victim, run: u32, random: &mut Random) -> Result<String> {
    let source = space.path(&format!("source-{run}.img"));
    let data_bytes = write_source(&source, random)?;
    let mut agent = LocalAgent::install(region, &source, &space.path(&format!("agent-{run}")))?;
    let id = agent.server().to_owned();
    agent.start()?;
    let link = Link { delay: Duration::ZERO, bytes_per_second: Some(LINK_BYTES_PER_SECOND) };
    let port = replicator_port(region)?;
    let forwarder = Forwarder::start_at(
        SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port)),
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        link,
    )?;
    // Not before more than a window is behind it: earlier there is nothing yet that must not travel again.
    let kill_at = WINDOW_BYTES + random.below(data_bytes * 9 / 10 - WINDOW_BYTES);
    wait_sent(&forwarder, kill_at)?;
    kill(region, &mut agent, victim)?;
    region.wait_state(&id, "READY_FOR_TEST", PATIENCE)?;
    let sent = forwarder.sent();
    compare(region, &id, &source)?;
    // Everything once, a window again, and what frames, TLS, handshakes and digest requests weigh.
    let allowed = data_bytes + WINDOW_BYTES + data_bytes / 50;
    assert!(sent <= allowed, "{sent} bytes went over the wire for {data_bytes} of data; allowed: {allowed}");
    region.rehost(&["disconnect", &id, "--wait"])?;
    drop(agent);
    std::fs::remove_file(&source).context(|| format!("remove {}", source.display()))?;
    let again = sent.saturating_sub(data_bytes) / 1024;
    Ok(format!("killed after {} KiB of {} KiB; {again} KiB beyond the data", kill_at / 1024, data_bytes / 1024))
}

/// A disk of incompressible extents with holes between them; the bytes of data in it.
fn write_source(path: &Path, random: &mut Random) -> Result<u64> {
    let what = || format!("write {}", path.display());
    let mut file = File::create(path).context(what)?;
    file.set_len(DISK_BYTES as u64).context(what)?;
    let mut extent = vec![0; EXTENT_BYTES];
    let mut data_bytes = 0;
    for index in 0..DISK_BYTES / EXTENT_BYTES {
        if index % 3 == 2 {
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Current(EXTENT_BYTES as i64)).context(what)?;
        } else {
            random.fill(&mut extent);
            file.write_all(&extent).context(what)?;
            data_bytes += EXTENT_BYTES as u64;
        }
    }
    file.sync_all().context(what)?;
    Ok(data_bytes)
}

/// The port of the region's replication server, once it has one.
fn replicator_port(region: &Region) -> Result<u16> {
    let folder = region.home().join("replicators");
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let configs = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        for config in configs.map(|entry| entry.path().join("config.json")) {
            let document: Value =
                serde_json::from_slice(&std::fs::read(&config).unwrap_or_default()).unwrap_or_default();
            let port = document["listen"].as_str().and_then(|l| l.rsplit(':').next()?.parse().ok());
            if let Some(port) = port {
                return Ok(port);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(Error::Unexpected(format!("no replication server appeared in {}", folder.display())))
}

fn wait_sent(forwarder: &Forwarder, bytes: u64) -> Result<()> {
    let started = Instant::now();
    while forwarder.sent() < bytes {
        if started.elapsed() > PATIENCE {
            let seen = format!("{} bytes", forwarder.sent());
            return Err(Error::Timeout { what: format!("{bytes} bytes on the wire"), after: PATIENCE, seen });
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn kill(region: &mut Region, agent: &mut LocalAgent, victim: Victim) -> Result<()> {
    match victim {
        Victim::Agent => {
            agent.kill();
            agent.start()
        }
        // The service starts it again by itself.
        Victim::Replicator => {
            let killed = sweep::kill_naming_once(&region.home().join("replicators"));
            assert_eq!(killed.len(), 1, "one replicator runs, and it is killed");
            Ok(())
        }
        Victim::Service => {
            region.kill_serve();
            region.serve()
        }
    }
}

/// The staging volume against the source.
fn compare(region: &Region, id: &str, source: &Path) -> Result<()> {
    let volume = volume_of(region)?;
    let (mut a, mut b) = (vec![0; EXTENT_BYTES], vec![0; EXTENT_BYTES]);
    let what = || format!("compare {} with {}", volume.display(), source.display());
    let (mut left, mut right) = (File::open(source).context(what)?, File::open(&volume).context(what)?);
    for index in 0..DISK_BYTES / EXTENT_BYTES {
        left.read_exact(&mut a).context(what)?;
        right.read_exact(&mut b).context(what)?;
        assert!(a == b, "{id}: the volume differs from the source in MiB {index}");
    }
    assert_eq!(right.read(&mut b).context(what)?, 0, "{id}: the volume is longer than the source");
    Ok(())
}

/// The only staging volume there is.
fn volume_of(region: &Region) -> Result<PathBuf> {
    let images: Vec<_> = region
        .leftovers()?
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "img") && p.to_string_lossy().contains("/volumes/"))
        .collect();
    match images.as_slice() {
        [one] => Ok(one.clone()),
        other => Err(Error::Unexpected(format!("one staging volume expected: {other:?}"))),
    }
}
