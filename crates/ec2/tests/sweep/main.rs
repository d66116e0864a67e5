//! The failure sweep: every step of a whole migration against moto, over the real SDKs, with every call failing before and
//! after its effect, with throttling and internal errors on every call, and with every invocation made twice, late and out
//! of order. The end is the same table and the same resources as without a failure.
//!
//! State machines, agent and replicator are played here, without waiting: a step that says `IN_PROGRESS` is called again at
//! once. A run takes the call number `n` of *every* invocation of a step in turn; what is retryable is repeated, as the state
//! machines' Retry does. The runs end when no invocation has so many calls.

#![allow(clippy::unwrap_used)] // What cannot be set up fails the test.

mod flight;
mod source;
mod table;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

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
}

async fn migrate(world: &Arc<World>, plan: Plan) -> (End, Way) {
    let ports = world.fresh().await;
    let mut source = Source::enrol(world, ports, plan).await;
    source.migrate().await;
    (end(world, &source).await, std::mem::take(&mut source.way))
}

async fn end(world: &World, source: &Source) -> End {
    let table = Table::read(&source.ports).await;
    End { table, resources: world.resources().await, ledger: source.ledger().await }
}

fn same(expected: &End, found: &End, what: &str) {
    assert_eq!(found.ledger, 0, "{what}: entries stay in the ledger");
    assert_eq!(found.resources, expected.resources, "{what}: other resources");
    let differences = expected.table.differences(&found.table);
    assert!(differences.is_empty(), "{what}: another table:\n{}", differences.join("\n"));
}

/// Lets the call `n` of every invocation fail, for every n.
async fn sweep(after_effect: bool, failure: Failure) {
    let world = World::new().await;
    let (expected, way) = migrate(&world, Plan::Nothing).await;
    assert!(way.longest > 10, "{way:?}");
    let mut struck = 0;
    for nth in 0.. {
        let (end, way) = migrate(&world, Plan::Nth { nth, after_effect, failure }).await;
        let what = format!("call {nth} of every invocation, after its effect: {after_effect}, {failure:?}");
        same(&expected, &end, &what);
        struck += way.struck;
        println!("{what}: {} failures", way.struck);
        if way.struck == 0 {
            break;
        }
    }
    println!("{struck} failures in all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_fails_before_its_effect() {
    sweep(false, Failure::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_fails_after_its_effect() {
    sweep(true, Failure::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_throttled_once_and_broken_once() {
    let world = World::new().await;
    let (expected, _) = migrate(&world, Plan::Nothing).await;
    for failure in [Failure::Throttle, Failure::Internal] {
        let (end, way) = migrate(&world, Plan::Each(failure)).await;
        same(&expected, &end, &format!("{failure:?} on every call"));
        println!("{failure:?} on every call: {} failures", way.struck);
        assert!(way.struck > 100, "{way:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_invocation_comes_twice_late_and_out_of_order() {
    let world = World::new().await;
    let (expected, _) = migrate(&world, Plan::Nothing).await;
    let ports = world.fresh().await;
    let mut source = Source::enrol(&world, ports, Plan::Twice).await;
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
    let (ports, meter) = (world.fresh().await, Arc::new(Meter::default()));
    world.proxy.add_hook(meter.clone());
    // The authority is made by whoever comes first: a hundred who do so at once are another test's business.
    let mut sources = Vec::new();
    for _ in 0..FLIGHT {
        sources.push(Source::enrol(&world, ports.clone(), Plan::Crowd).await);
    }
    let enrolment = flight::each(FLIGHT, &world.proxy.counts(), meter.take(), &BTreeMap::new());
    world.proxy.forget_calls();
    let mut flying = JoinSet::new();
    for mut source in sources {
        flying.spawn(async move {
            source.replicate().await;
            source
        });
    }
    let mut sources = flying.join_all().await;
    let mut invocations: BTreeMap<String, usize> = BTreeMap::new();
    for (step, _) in sources.iter().flat_map(|source| &source.way.invocations) {
        *invocations.entry(step.clone()).or_default() += 1;
    }
    let chain = flight::each(FLIGHT, &world.proxy.counts(), meter.take(), &invocations);
    for source in &sources {
        assert_eq!(source.server().await.life_cycle.state, LifeCycleState::ReadyForTest);
    }
    let source = &mut sources[0];
    world.proxy.forget_calls();
    meter.take();
    source.poll_agent().await;
    let agent = flight::each(1, &world.proxy.counts(), meter.take(), &BTreeMap::new());
    world.proxy.forget_calls();
    source.poll_replicator().await;
    let replicator = flight::each(1, &world.proxy.counts(), meter.take(), &BTreeMap::new());
    flight::tell(&json!({
        "enrolment": enrolment, "toReadyForTest": chain, "agentPoll": agent, "replicatorPoll": replicator,
    }));
}
