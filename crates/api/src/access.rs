//! Who may call: holders of the region's access keys, or whoever the gateway in front of the service let through.

use std::sync::Arc;

use async_trait::async_trait;
use rehost_control::ports::PortResult;
use zeroize::Zeroizing;

/// How callers of MGN's operations and of enrolment are known. Agents and replicators prove themselves with certificates in
/// either case.
#[derive(Clone)]
pub enum Authentication {
    /// They sign with one of these keys, for the service `mgn`.
    Keys(Arc<dyn AccessKeys>),
    /// API Gateway's IAM authoriser stands in front of the service: it checked the signature, and the caller's policies for the
    /// path. Only the [`GatewayCaller`] in a request's extensions counts.
    Gateway,
}

/// Whom API Gateway's IAM authoriser found behind a signature. Put into a request's extensions by whoever receives the
/// gateway's events; nothing that a client sends ends up there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayCaller {
    /// The ARN of the IAM user or of the role's session.
    pub user_arn: String,
    /// The account of that identity.
    pub account: String,
    /// The id of the access key; the secret is not known here.
    pub access_key: String,
}

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
