//! A hundred servers on their way at once, without a data plane: what each costs in calls, in capacity of the table and in
//! transitions of state machines.
//!
//! Capacity is reckoned by DynamoDB's own rule from the bytes that go over the wire, which is a little more than it would
//! charge: a write unit for each KiB, a read unit for each 4 KiB of a strongly consistent read. (moto answers
//! `ReturnConsumedCapacity` with constants.) Transitions are those of the state machines as they stand: a task and the choice
//! after it, and a wait before each further invocation.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use rehost_tests::aws::{Answer, Call, Hook};
use serde_json::{Value, json};

/// Adds up what the table is asked for.
#[derive(Default)]
pub(crate) struct Meter(Mutex<Units>);

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Units {
    pub(crate) read: usize,
    pub(crate) written: usize,
}

impl Meter {
    pub(crate) fn take(&self) -> Units {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[async_trait]
impl Hook for Meter {
    async fn after(&self, call: &Call, answer: &mut Answer) {
        if call.service != "dynamodb" {
            return;
        }
        let mut units = self.0.lock().unwrap();
        match call.action.as_str() {
            "PutItem" | "DeleteItem" => units.written += call.body.len().div_ceil(1 << 10).max(1),
            _ => units.read += answer.body.len().div_ceil(4 << 10).max(1),
        }
    }
}

/// What a piece of the way cost each of so many servers.
pub(crate) fn each(
    servers: usize,
    counts: &BTreeMap<String, usize>,
    units: Units,
    invocations: &BTreeMap<String, usize>,
) -> Value {
    let per = |count: usize| (count as f64 / servers as f64 * 100.0).round() / 100.0;
    let calls: BTreeMap<_, _> = counts.iter().map(|(name, count)| (name.clone(), per(*count))).collect();
    let steps: BTreeMap<_, _> = invocations.iter().map(|(name, count)| (name.clone(), per(*count))).collect();
    let invoked: usize = invocations.values().sum();
    json!({
        "servers": servers,
        "callsPerServer": calls,
        "allCallsPerServer": per(counts.values().sum()),
        "invocationsPerServer": steps,
        "transitionsPerServer": per(transitions(invocations, servers)),
        "allInvocationsPerServer": per(invoked),
        "readUnitsPerServer": per(units.read),
        "writeUnitsPerServer": per(units.written),
    })
}

/// A task and its choice for each invocation, and a wait before each but the first of a server.
fn transitions(invocations: &BTreeMap<String, usize>, servers: usize) -> usize {
    invocations.values().map(|count| 2 * count + count.saturating_sub(servers)).sum()
}

/// Prints the figures, and writes them to the file that `AWS_FIGURES` names.
pub(crate) fn tell(figures: &Value) {
    let text = serde_json::to_string_pretty(figures).unwrap();
    println!("{text}");
    if let Some(file) = std::env::var_os("AWS_FIGURES") {
        std::fs::write(file, text + "\n").unwrap();
    }
}
