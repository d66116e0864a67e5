//! The region's access keys, and what each may do.

use async_trait::async_trait;
use rehost_control::ports::PortResult;
use zeroize::Zeroizing;

/// What the holder of an access key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Everything.
    Admin,
    /// Enrol source servers, and nothing else: the agent installation policy.
    Enrol,
}

/// An access key. Its secret never shows in debug output.
#[derive(Clone)]
pub struct AccessKey {
    secret: Zeroizing<String>,
    permission: Permission,
}

impl AccessKey {
    /// A key with this secret.
    pub fn new(secret: impl Into<String>, permission: Permission) -> Self {
        Self { secret: Zeroizing::new(secret.into()), permission }
    }

    /// What its holder may do.
    #[must_use]
    pub fn permission(&self) -> Permission {
        self.permission
    }

    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AccessKey({:?})", self.permission)
    }
}

/// Where access keys are found.
#[async_trait]
pub trait AccessKeys: Send + Sync {
    /// The key of this id, or `None`.
    async fn find(&self, access_key_id: &str) -> PortResult<Option<AccessKey>>;
}

/// Keys that do not change while the service runs.
#[derive(Debug, Clone, Default)]
pub struct StaticKeys(std::collections::HashMap<String, AccessKey>);

impl StaticKeys {
    /// Adds a key.
    #[must_use]
    pub fn with(mut self, access_key_id: impl Into<String>, key: AccessKey) -> Self {
        self.0.insert(access_key_id.into(), key);
        self
    }
}

#[async_trait]
impl AccessKeys for StaticKeys {
    async fn find(&self, access_key_id: &str) -> PortResult<Option<AccessKey>> {
        Ok(self.0.get(access_key_id).cloned())
    }
}
