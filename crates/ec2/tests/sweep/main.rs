//! The failure sweep: every step of a whole migration against moto, over the real SDKs, with every call failing before and
//! after its effect, with throttling and internal errors on every call, and with every invocation made twice, late and out
//! of order. The end is the same table and the same resources as without a failure.
//!
//! State machines, agent and replicator are played here, without waiting: a step that says `IN_PROGRESS` is called again at
//! once. A run takes the call number `n` of *every* invocation of a step in turn; what is retryable is repeated, as the state
//! machines' Retry does. The runs end when no invocation has so many calls.

#![allow(clippy::unwrap_used)] // What cannot be set up fails the test.

mod breaker;
mod chores;
mod flight;
mod refusals;
mod source;
mod table;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rehost_control::Ports;
use rehost_model::LifeCycleState;
use rehost_tests::aws::Failure;
use serde_json::json;
use tokio::task::JoinSet;

use flight::Meter;
use source::{Plan, Source, Way};
use table::Table;
use world::World;

/// What a migration comes to.
#[derive(Debug, PartialEq, Eq)]
struct End {
    table: Table,
    resources: BTreeMap<&'static str, usize>,
    ledger: usize,
    left: Vec<String>,
}

async fn migrate(world: &Arc<World>, plan: Plan) -> (End, Way) {
    let began = Instant::now();
    let mut source = enrol(world, plan).await;
    source.migrate().await;
    let (end, way) = (end(world, &source).await, std::mem::take(&mut source.way));
    let (calls, struck, took) = (way.calls, way.struck, began.elapsed());
    println!("{plan:?}: {calls} calls, {struck} failures, {took:.1?}");
    (end, way)
}

/// A server that replicates in a network of the user's: there are more calls than in the stack's own.
async fn enrol(world: &Arc<World>, plan: Plan) -> Source {
    let region = world.fresh().await;
    let far_subnet = region.far_subnet.clone();
    let source = Source::enrol(world, region, plan).await;
    source.stage_in(&far_subnet).await;
    source
}

async fn end(world: &World, source: &Source) -> End {
    // What servers share goes with the reaper alone, and that may have met failures.
    chores::run(&source.ports, "reap", json!({})).await.unwrap();
    let table = Table::read(&source.ports).await;
    let left = chores::left(&source.ports, true).await.unwrap();
    End { table, resources: world.resources().await, ledger: source.ledger().await, left }
}

fn same(expected: &End, found: &End, what: &str) {
    assert_eq!(found.ledger, 0, "{what}: entries stay in the ledger");
    assert_eq!(found.resources, expected.resources, "{what}: other resources");
    assert_eq!(found.left, Vec::<String>::new(), "{what}: nobody needs these");
    let differences = expected.table.differences(&found.table);
    assert!(differences.is_empty(), "{what}: another table:\n{}", differences.join("\n"));
}

/// How many calls of each invocation have their connections cut one at a time; the other failures reach them all.
const CUT: usize = 6;

/// Lets every call of every invocation fail: wherever it comes, and by the cut of its connection.
async fn sweep(after_effect: bool) {
    let world = World::new().await;
    let (expected, way) = migrate(&world, Plan::Nothing).await;
    let (end, broken) = migrate(&world, Plan::EachWhereverItComes { after_effect }).await;
    same(&expected, &end, &format!("no answer to any call, after its effect: {after_effect}"));
    assert!(broken.struck >= way.calls, "{} of {} calls failed", broken.struck, way.calls);
    if !after_effect {
        let (end, cut) = migrate(&world, Plan::Each(Failure::Cut)).await;
        same(&expected, &end, "the connection cut on every call");
        assert!(cut.struck > 100, "{cut:?}");
    }
    for nth in 0..CUT {
        let plan = Plan::Nth { nth, after_effect, failure: Failure::Cut };
        let (end, _) = migrate(&world, plan).await;
        same(&expected, &end, &format!("{plan:?}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_fails_before_its_effect() {
    sweep(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_fails_after_its_effect() {
    sweep(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_throttled_once_and_broken_once() {
    let world = World::new().await;
    let (expected, _) = migrate(&world, Plan::Nothing).await;
    for failure in [Failure::Throttle, Failure::Internal] {
        let (end, way) = migrate(&world, Plan::Each(failure)).await;
        same(&expected, &end, &format!("{failure:?} on every call"));
        assert!(way.struck > 100, "{way:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_invocation_comes_twice_late_and_out_of_order() {
    let world = World::new().await;
    let (expected, _) = migrate(&world, Plan::Nothing).await;
    let mut source = enrol(&world, Plan::Twice).await;
    source.migrate().await;
    same(&expected, &end(&world, &source).await, "every invocation twice");
    let invocations = std::mem::take(&mut source.way.invocations);
    source.repeat_all(invocations.iter()).await;
    same(&expected, &end(&world, &source).await, "every invocation late");
    source.repeat_all(invocations.iter().rev()).await;
    same(&expected, &end(&world, &source).await, "every invocation late and in the opposite order");
}

/// How many servers are on their way at once.
const FLIGHT: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_servers_in_flight_reach_ready_for_test() {
    let world = World::new().await;
    let (region, of_steps, of_others) = (world.fresh().await, Arc::new(Meter::default()), Arc::new(Meter::default()));
    world.proxy.add_hook(of_steps.clone());
    world.ground.add_hook(of_others.clone());
    // The authority is made by whoever comes first: a hundred who do so at once are another test's business.
    let mut sources = Vec::new();
    for _ in 0..FLIGHT {
        sources.push(Source::enrol(&world, region.clone(), Plan::Crowd).await);
    }
    let enrolment = flight::each(FLIGHT, &world.ground.counts(), of_others.take(), &BTreeMap::new());
    let clock = tokio::spawn(strike(region.ports.clone()));
    let mut flying = JoinSet::new();
    for mut source in sources {
        flying.spawn(async move {
            source.replicate().await;
            source
        });
    }
    let mut sources = flying.join_all().await;
    clock.abort();
    assert!(clock.await.is_err_and(|ended| ended.is_cancelled()), "the clock stopped by itself");
    let mut invocations: BTreeMap<String, usize> = BTreeMap::new();
    for (step, _) in sources.iter().flat_map(|source| &source.way.invocations) {
        *invocations.entry(step.clone()).or_default() += 1;
    }
    let chain = flight::each(FLIGHT, &world.proxy.counts(), of_steps.take(), &invocations);
    for source in &sources {
        assert_eq!(source.server().await.life_cycle.state, LifeCycleState::ReadyForTest);
    }
    let mut ask = async |what: Asked| {
        world.ground.forget_calls();
        of_others.take();
        match what {
            Asked::AgentPoll => sources[0].poll_agent().await,
            Asked::ReplicatorPoll => sources[0].poll_replicator().await,
            Asked::Tick => chores::tick(&region.ports).await.unwrap(),
            Asked::Reap => assert_eq!(chores::left(&region.ports, false).await.unwrap(), Vec::<String>::new()),
        }
        let servers = if matches!(what, Asked::Tick | Asked::Reap) { FLIGHT } else { 1 };
        flight::each(servers, &world.ground.counts(), of_others.take(), &BTreeMap::new())
    };
    flight::tell(&json!({
        "enrolment": enrolment,
        "toReadyForTest": chain,
        "agentPoll": ask(Asked::AgentPoll).await,
        "replicatorPoll": ask(Asked::ReplicatorPoll).await,
        "tick": ask(Asked::Tick).await,
        "reap": ask(Asked::Reap).await,
    }));
}

/// What is asked of a region with many servers again and again.
enum Asked {
    AgentPoll,
    ReplicatorPoll,
    Tick,
    Reap,
}

/// How fast the time of the clock goes by that invokes the chores, other than that of the servers.
const MINUTE: Duration = Duration::from_secs(30);

/// The clock of a region: strikes until it is stopped.
async fn strike(ports: Ports) {
    loop {
        for chore in chores::OF_THE_CLOCK {
            chores::run(&ports, chore, json!({})).await.unwrap();
        }
        tokio::time::sleep(MINUTE).await;
    }
}
