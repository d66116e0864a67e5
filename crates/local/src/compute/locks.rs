//! One lock for each name: work on one resource waits for other work on it, and for nothing else.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The names that are locked now.
#[derive(Debug, Default)]
pub(super) struct NamedLocks {
    held: Mutex<HashSet<String>>,
    released: Condvar,
}

impl NamedLocks {
    /// Waits until nobody holds `name`, then holds it until the guard is dropped.
    pub(super) fn lock(&self, name: &str) -> NamedGuard<'_> {
        let mut held = self.held();
        while !held.insert(name.to_owned()) {
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        NamedGuard { locks: self, name: name.to_owned() }
    }

    // The set stays consistent whoever panics while holding it: it changes in single calls.
    fn held(&self) -> MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds one name.
#[derive(Debug)]
pub(super) struct NamedGuard<'a> {
    locks: &'a NamedLocks,
    name: String,
}

impl Drop for NamedGuard<'_> {
    fn drop(&mut self) {
        self.locks.held().remove(&self.name);
        self.locks.released.notify_all();
    }
}
