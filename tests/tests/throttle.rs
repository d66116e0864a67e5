//! A limit of the bandwidth that is changed while the first copy runs is obeyed at once.
//!
//! The bytes are counted on the wire, outside of the product. How close they come to the limit is printed; the verdict leaves room
//! for a machine that is busy with something else.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use rehost_tests::disk::{first_difference, write_random};
use rehost_tests::forward::Link;
use rehost_tests::{Error, Forwarder, LocalAgent, Region, Result, Workspace};

const PATIENCE: Duration = Duration::from_secs(120);
/// More than is sent while the limit is looked at.
const DISK_MIB: usize = 160;
/// Each limit is looked at for so long.
const WINDOW: Duration = Duration::from_secs(6);
/// Mbit/s, one after the other.
const LIMITS: [u64; 3] = [24, 72, 8];

#[test]
fn a_limit_is_obeyed_while_the_first_copy_runs() -> Result<()> {
    let space = Workspace::new("throttle")?;
    let source = space.path("source.img");
    write_random(&source, DISK_MIB, 1)?;
    // Agents reach the replicator through a forwarder, which counts.
    let region = Region::start(space.folder(), &["127.0.0.3"])?;
    let mut agent = LocalAgent::install(&region, &source, &space.path("agent"))?;
    let id = agent.server().to_owned();
    limit(&region, &id, LIMITS[0])?;
    agent.start()?;
    let port = region.wait_replication_port(PATIENCE)?;
    let outside = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 3), port));
    let forwarder = Forwarder::start_at(outside, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Link::default())?;
    for mbit in LIMITS {
        limit(&region, &id, mbit)?;
        wait_obeyed(&agent, &forwarder, mbit)?;
        let percent = measure(&forwarder, mbit);
        println!("limit {mbit} Mbit/s: {percent:.1} % of it went over the wire in {WINDOW:?}");
        assert!((50.0..125.0).contains(&percent), "{percent:.1} % of {mbit} Mbit/s");
    }
    limit(&region, &id, 0)?;
    region.wait_state(&id, "READY_FOR_TEST", PATIENCE)?;
    let volumes = region.volumes()?;
    assert_eq!(volumes.len(), 1, "{volumes:?}");
    assert_eq!(first_difference(&source, &volumes[0])?, None);
    Ok(())
}

fn limit(region: &Region, id: &str, mbit: u64) -> Result<()> {
    region.rehost(&["server", "set", id, "--throttle", &mbit.to_string()]).map(drop)
}

/// Until the agent knows the limit, and something has gone over the wire since.
fn wait_obeyed(agent: &LocalAgent, forwarder: &Forwarder, mbit: u64) -> Result<()> {
    let started = Instant::now();
    let mut known_at = None;
    loop {
        let status = agent.status()?;
        if known_at.is_none() && status["status"]["throttleBytesPerSecond"] == mbit * 125_000 {
            known_at = Some(forwarder.sent());
        }
        // A quarter of a second's worth: what was allowed before is through.
        if known_at.is_some_and(|bytes| forwarder.sent() > bytes + mbit * 125_000 / 4) {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            let what = format!("a limit of {mbit} Mbit/s");
            return Err(Error::Timeout { what, after: PATIENCE, seen: status.to_string() });
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// What went over the wire in one window, in percent of the limit.
#[expect(clippy::cast_precision_loss, reason = "some megabytes")]
fn measure(forwarder: &Forwarder, mbit: u64) -> f64 {
    let (begin, before) = (Instant::now(), forwarder.sent());
    thread::sleep(WINDOW);
    let (time, after) = (begin.elapsed(), forwarder.sent());
    (after - before) as f64 * 100.0 / (time.as_secs_f64() * (mbit * 125_000) as f64)
}
