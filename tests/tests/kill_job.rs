//! Kill -9 of the service again and again while a launch, its end and a finalize run: every job ends as if nothing had happened.
//!
//! `SEED` repeats the moments.

use std::thread;
use std::time::{Duration, Instant};

use rehost_tests::random::Random;
use rehost_tests::{Error, LocalAgent, Region, Result, SmallLinux, Workspace, http_get};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(300);
/// The service lives at most this long between two kills; steps of the launch take longer.
const LIFE_IN_LAUNCH_MS: u64 = 4000;
/// A finalize is over in seconds.
const LIFE_IN_FINALIZE_MS: u64 = 500;

#[test]
fn qemu_kill_the_service_during_the_jobs() -> Result<()> {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rehost_tests::random::seed);
    println!("SEED={seed}");
    let mut random = Random::new(seed);
    let space = Workspace::new("kill-job")?;
    let disk = SmallLinux::default().page("survived").build(&space.path("source.img"))?;
    let mut region = Region::start(space.folder(), &["127.0.0.1"])?;
    let mut agent = LocalAgent::install(&region, &disk, &space.path("agent"))?;
    agent.start()?;
    let id = agent.server().to_owned();
    region.wait_state(&id, "READY_FOR_TEST", PATIENCE)?;
    region.rehost(&["server", "set", &id, "--probe", "http:80"])?;
    region.rehost(&["ready", &id])?;

    region.rehost(&["cutover", &id])?;
    let kills =
        kill_until(&mut region, &mut random, LIFE_IN_LAUNCH_MS, |region| Ok(is_over(&region.json(&["jobs"])?)))?;
    println!("the launch ended after {kills} kills");
    assert!(kills > 1, "the launch takes longer than one life of the service");
    let server = region.server(&id)?;
    assert_eq!(server["lifeCycle"]["state"], "CUTTING_OVER", "{server}");
    assert_eq!(server["launchedInstance"]["firstBoot"], "SUCCEEDED");
    let endpoint = server["launchedInstance"]["endpoints"]["80"].as_str().unwrap_or_default().to_owned();
    let port = endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_default();
    assert_eq!(http_get(port, "/", Duration::from_secs(10))?.text(), "survived\n");

    region.rehost(&["finalize", &id])?;
    let kills = kill_until(&mut region, &mut random, LIFE_IN_FINALIZE_MS, |region| {
        Ok(region.server(&id)?["dataReplicationInfo"]["dataReplicationState"] == "DISCONNECTED")
    })?;
    println!("the finalize ended after {kills} kills");
    assert!(kills > 0, "the finalize waits for the agent longer than one life of the service");
    let images = |folder: &str| -> Result<usize> {
        let left = region.leftovers()?;
        Ok(left.iter().filter(|p| p.parent().is_some_and(|f| f.ends_with(folder))).count())
    };
    let counts = (images("snapshots")?, images("instances")?, images("replicators")?);
    assert_eq!(counts, (0, 1, 0), "snapshots, instances, replication servers: {:?}", region.leftovers()?);
    assert_eq!(region.processes().len(), 1, "the copy's process and no other");
    Ok(())
}

/// Whether every job is over.
fn is_over(jobs: &Value) -> bool {
    let items = jobs.get("items").unwrap_or(jobs).as_array().cloned().unwrap_or_default();
    !items.is_empty() && items.iter().all(|job| job["status"] == "COMPLETED")
}

/// Kills and restarts the service at random moments until `done`; how often.
fn kill_until(
    region: &mut Region,
    random: &mut Random,
    life_ms: u64,
    done: impl Fn(&Region) -> Result<bool>,
) -> Result<u32> {
    let started = Instant::now();
    for kills in 0.. {
        thread::sleep(Duration::from_millis(50 + random.below(life_ms)));
        if done(region)? {
            return Ok(kills);
        }
        if started.elapsed() > PATIENCE {
            let what = "the end of the job under kills".to_owned();
            return Err(Error::Timeout { what, after: PATIENCE, seen: region.serve_output() });
        }
        region.kill_serve();
        region.serve()?;
    }
    Ok(0)
}
