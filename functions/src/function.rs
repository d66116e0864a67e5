//! What a function does with its input.

use rehost_control::ports::Ports;
use rehost_control::steps::{self, StepError};
use serde_json::Value;

use crate::chores;

/// A function that takes JSON and gives JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// A step of the state machines, by its name in [`steps::NAMES`].
    Step(&'static str),
    /// Takes an event of EventBridge, and starts what [`rehost_control::rules`] say.
    OnEvent,
    /// Every minute: what nobody reports, what is due, and what was cut off.
    Tick,
    /// Every hour: removes what nobody needs, by ledger, tags and what there is.
    Reap,
}

impl Function {
    /// The name of the program, and in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Step(name) => name,
            Self::OnEvent => "on-event",
            Self::Tick => "tick",
            Self::Reap => "reap",
        }
    }

    /// Carries it out. Every error has a name, which Retry and Catch of the state machines match.
    pub(crate) async fn carry_out(self, ports: &Ports, stack: &str, input: Value) -> Result<Value, StepError> {
        match self {
            Self::Step(name) => steps::run(ports, name, input).await,
            Self::OnEvent => chores::on_event(ports, input).await,
            Self::Tick => chores::tick(ports, stack).await,
            Self::Reap => chores::reap(ports, stack).await,
        }
    }
}
