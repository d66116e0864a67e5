//! The fence, as the daemon holds it: one that cannot be looked after is no reason to stop replicating.

use std::time::Duration;

use rehost_link::identity::StateDir;
use rehost_model::link::{FenceId, FenceState};

use crate::fence::Fence;
use crate::hooks::HookSet;
use crate::system::System;

/// The fence, or why there can be none.
pub(super) struct Fencing {
    fence: Result<Fence, String>,
    wanted: Option<FenceId>,
}

impl Fencing {
    pub(super) fn open(state: &StateDir, hooks: HookSet, system: &System, say: &mut dyn FnMut(String)) -> Self {
        let fence = Fence::open(state, hooks, system).map_err(|error| error.to_string());
        if let Err(reason) = &fence {
            say(format!("the source cannot be fenced: {reason}"));
        }
        Self { fence, wanted: None }
    }

    /// Goes towards what is wanted.
    pub(super) fn follow(&mut self, wanted: Option<&FenceId>, hook_timeout_ms: u64) {
        self.wanted = wanted.cloned();
        if let Ok(fence) = &mut self.fence {
            fence.set_hook_timeout(Duration::from_millis(hook_timeout_ms));
            fence.follow(wanted);
        }
    }

    /// How far it is.
    pub(super) fn state(&self) -> FenceState {
        match (&self.fence, &self.wanted) {
            (Ok(fence), _) => fence.state(),
            (Err(reason), Some(fence)) => FenceState::Failed { fence: fence.clone(), reason: reason.clone() },
            (Err(_), None) => FenceState::Open,
        }
    }
}
