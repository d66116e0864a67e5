//! Lets every call of an invocation fail once, before or after its effect, whatever state the calls before it have led to.
//!
//! An invocation that met a failure is made again, and goes on where it was: the same call then comes in another place. So a
//! call is told from others by what it asks for, and by the last effect that there was before it: in each state that an
//! invocation leads to, each call that is made in it fails once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use rehost_tests::aws::{Answer, Call, Hook};

use crate::table::plain_text;
use crate::world::Cloud;

/// What only looks.
const LOOKS: [&str; 7] = ["Describe", "Get", "List", "Query", "Head", "Decrypt", "GenerateDataKey"];

#[derive(Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Default)]
struct State {
    /// Before or after the effect; `None`: nothing fails.
    after_effect: Option<bool>,
    invocation: usize,
    last_effect: String,
    /// How often each call came since the last effect, or since the invocation was made again.
    since: BTreeMap<String, usize>,
    struck: BTreeSet<(usize, String, String, usize)>,
    /// Numbers of the calls whose answers are to be lost.
    lost: BTreeSet<usize>,
}

impl Breaker {
    /// From now on calls fail so, or no more.
    pub(crate) fn set(&self, after_effect: Option<bool>) {
        *self.0.lock().unwrap() = State { after_effect, ..State::default() };
    }

    /// Another invocation begins.
    pub(crate) fn begin(&self) {
        let mut state = self.0.lock().unwrap();
        state.invocation += 1;
        state.last_effect.clear();
    }

    /// The invocation is made, or made again.
    pub(crate) fn begin_again(&self) {
        self.0.lock().unwrap().since.clear();
    }

    /// How many calls have failed.
    pub(crate) fn struck(&self) -> usize {
        self.0.lock().unwrap().struck.len()
    }
}

impl State {
    /// Whether this call fails.
    fn next(&mut self, call: &Call) -> bool {
        let Some(after_effect) = self.after_effect else { return false };
        let what = what(call);
        let occurrence = self.since.entry(what.clone()).or_default();
        *occurrence += 1;
        let place = (self.invocation, self.last_effect.clone(), what.clone(), *occurrence);
        let fails = self.struck.insert(place);
        if (after_effect || !fails) && !LOOKS.iter().any(|look| call.action.starts_with(look)) {
            self.last_effect = what;
            self.since.clear();
        }
        fails
    }
}

/// What a call asks for, as far as that is the same when it is made again: what has a name by chance may get another one then.
fn what(call: &Call) -> String {
    let body = call.json();
    let key = |of: &str| body.get(of).map(|item| format!("{} {}", item["kind"], item["id"]));
    let key = key("Key").or_else(|| key("Item")).unwrap_or_default();
    let values = &body["ExpressionAttributeValues"];
    plain_text(&format!("{} {key} {} {}", call.name(), values[":kind"], values[":prefix"]))
}

/// What comes from a gateway in between, when the service itself is not heard.
fn no_answer() -> Answer {
    Answer::new(503, "text/html", "<html>Service Unavailable</html>")
}

/// Sees calls before all others do.
pub(crate) struct Before(pub(crate) Arc<Breaker>, pub(crate) Arc<Cloud>);

/// Sees answers after all others did.
pub(crate) struct After(pub(crate) Arc<Breaker>);

#[async_trait]
impl Hook for Before {
    async fn before(&self, call: &Call) -> Option<Answer> {
        let mut state = self.0.0.lock().unwrap();
        if !state.next(call) {
            return None;
        }
        if state.after_effect != Some(true) {
            return Some(no_answer());
        }
        // What is answered here has no answer that could be lost later.
        if self.1.answer(call).is_some() {
            return Some(no_answer());
        }
        state.lost.insert(call.number);
        None
    }
}

#[async_trait]
impl Hook for After {
    async fn after(&self, call: &Call, answer: &mut Answer) {
        if self.0.0.lock().unwrap().lost.remove(&call.number) {
            *answer = no_answer();
        }
    }
}
