//! Keeps the bodies of answers, so that `--json` can print them as they came: the client's types cannot be serialised.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_mgn::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_mgn::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_mgn::error::BoxError;
use serde_json::Value;

use super::merged;

/// The bodies since they were last asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Bodies(Arc<Mutex<Vec<Value>>>);

impl Bodies {
    /// The latest body; forgets all.
    pub(super) fn last(&self) -> Value {
        self.take().pop().unwrap_or_default()
    }

    /// The items of all pages; forgets them.
    pub(super) fn items(&self) -> Value {
        merged(self.take())
    }

    fn take(&self) -> Vec<Value> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Intercept for Bodies {
    fn name(&self) -> &'static str {
        "Bodies"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response().body().bytes().unwrap_or_default();
        if context.output_or_error().is_ok()
            && let Ok(value) = serde_json::from_slice(body)
        {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(value);
        }
        Ok(())
    }
}
