//! The requests of MGN's operations. Every member arrives as text and is checked here, so that an error names its member.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use rehost_control::operations::{JobFilter, ReplicationChange, ServerFilter};
use rehost_model::{JobId, LifeCycleState, ReplicationTemplateId, ServerId, Timestamp};
use serde::Deserialize;

use crate::error::ApiError;

/// MGN's limits for tags.
const MAX_TAGS: usize = 50;
const MAX_TAG_CHARS: usize = 256;

/// MGN's limit for the ids in a filter.
const MAX_FILTER_IDS: usize = 1000;

/// What every request may say of the account: nothing, or the one that is asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Account {
    #[serde(rename = "accountID")]
    account_id: Option<String>,
}

impl Account {
    /// Refuses to answer for another account than `account`.
    pub(crate) fn check(&self, account: &str) -> Result<(), ApiError> {
        match &self.account_id {
            Some(other) if other != account => {
                Err(ApiError::field("accountID", format!("this region belongs to the account {account}; leave it out")))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DescribeSourceServers {
    filters: Option<SourceServerFilters>,
    pub(crate) max_results: Option<i64>,
    pub(crate) next_token: Option<String>,
    #[serde(flatten)]
    pub(crate) account: Account,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SourceServerFilters {
    #[serde(rename = "sourceServerIDs")]
    source_server_ids: Option<Vec<String>>,
    is_archived: Option<bool>,
    replication_types: Option<Vec<String>>,
    life_cycle_states: Option<Vec<String>>,
    #[serde(rename = "applicationIDs")]
    application_ids: Option<Vec<String>>,
}

impl DescribeSourceServers {
    /// The filter; `None` when no server of this region can pass it.
    pub(crate) fn filter(&self) -> Result<Option<ServerFilter>, ApiError> {
        let Some(filters) = &self.filters else { return Ok(Some(ServerFilter::default())) };
        let replication_types = filters.replication_types.as_deref().unwrap_or_default();
        let agent_based = replication_types.is_empty() || replication_types.iter().any(|t| t == "AGENT_BASED");
        let of_applications = filters.application_ids.as_deref().is_some_and(|ids| !ids.is_empty());
        let filter = ServerFilter {
            ids: ids("filters.sourceServerIDs", filters.source_server_ids.as_deref().unwrap_or_default())?,
            is_archived: filters.is_archived,
            states: states(filters.life_cycle_states.as_deref().unwrap_or_default())?,
        };
        Ok((agent_based && !of_applications).then_some(filter))
    }
}

/// `StartTest`, `StartCutover` and `TerminateTargetInstances`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Servers {
    #[serde(rename = "sourceServerIDs")]
    source_server_ids: Option<Vec<String>>,
    tags: BTreeMap<String, String>,
    #[serde(flatten)]
    pub(crate) account: Account,
}

impl Servers {
    /// The servers, and the tags of the job.
    pub(crate) fn checked(self) -> Result<(Vec<ServerId>, BTreeMap<String, String>), ApiError> {
        let given = required("sourceServerIDs", self.source_server_ids)?;
        Ok((ids("sourceServerIDs", &given)?, tags(self.tags)?))
    }
}

/// The operations that name one server and nothing else.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Server {
    #[serde(rename = "sourceServerID")]
    source_server_id: Option<String>,
    #[serde(flatten)]
    pub(crate) account: Account,
}

impl Server {
    pub(crate) fn checked(self) -> Result<ServerId, ApiError> {
        one_id("sourceServerID", self.source_server_id)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ChangeServerLifeCycleState {
    #[serde(flatten)]
    pub(crate) server: Server,
    life_cycle: Option<TargetLifeCycle>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TargetLifeCycle {
    state: Option<String>,
}

impl ChangeServerLifeCycleState {
    pub(crate) fn checked(self) -> Result<(ServerId, LifeCycleState), ApiError> {
        let given = required("lifeCycle.state", required("lifeCycle", self.life_cycle)?.state)?;
        let state = match given.as_str() {
            "READY_FOR_TEST" => LifeCycleState::ReadyForTest,
            "READY_FOR_CUTOVER" => LifeCycleState::ReadyForCutover,
            "CUTOVER" => LifeCycleState::Cutover,
            _ => {
                let message = "must be READY_FOR_TEST, READY_FOR_CUTOVER or CUTOVER";
                return Err(ApiError::field("lifeCycle.state", message));
            }
        };
        Ok((self.server.checked()?, state))
    }
}

/// `UpdateReplicationConfiguration`. What this service has no use for (`name`, `internetProtocol`, `storeSnapshotOnLocalZone`, …)
/// is accepted and not kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct UpdateReplicationConfiguration {
    #[serde(flatten)]
    pub(crate) server: Server,
    #[serde(flatten)]
    members: Members,
}

type Members = serde_json::Map<String, serde_json::Value>;

impl UpdateReplicationConfiguration {
    pub(crate) fn checked(self) -> Result<(ServerId, ReplicationChange), ApiError> {
        Ok((self.server.checked()?, replication_change(self.members)?))
    }
}

fn replication_change(members: Members) -> Result<ReplicationChange, ApiError> {
    let mut change = ReplicationChange::default();
    for (name, value) in members {
        // One at a time, so that an error names its member.
        let one = serde_json::json!({ name.clone(): value });
        let read: ReplicationChange = serde_json::from_value(one).map_err(|e| ApiError::field(&name, e))?;
        change = change.with(read);
    }
    Ok(change)
}

/// The operations on a replication configuration template; as to what is not kept, see [`UpdateReplicationConfiguration`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Template {
    #[serde(rename = "replicationConfigurationTemplateID")]
    id: Option<String>,
    #[serde(flatten)]
    members: Members,
}

impl Template {
    /// The template that is meant.
    pub(crate) fn id(&self) -> Result<ReplicationTemplateId, ApiError> {
        one_id("replicationConfigurationTemplateID", self.id.clone())
    }

    pub(crate) fn change(self) -> Result<ReplicationChange, ApiError> {
        replication_change(self.members)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DescribeTemplates {
    #[serde(rename = "replicationConfigurationTemplateIDs")]
    ids: Option<Vec<String>>,
    pub(crate) max_results: Option<i64>,
    pub(crate) next_token: Option<String>,
}

impl DescribeTemplates {
    pub(crate) fn ids(&self) -> Result<Vec<ReplicationTemplateId>, ApiError> {
        ids("replicationConfigurationTemplateIDs", self.ids.as_deref().unwrap_or_default())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DescribeJobs {
    filters: Option<JobFilters>,
    pub(crate) max_results: Option<i64>,
    pub(crate) next_token: Option<String>,
    #[serde(flatten)]
    pub(crate) account: Account,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct JobFilters {
    #[serde(rename = "jobIDs")]
    job_ids: Option<Vec<String>>,
    from_date: Option<String>,
    to_date: Option<String>,
}

impl DescribeJobs {
    pub(crate) fn filter(&self) -> Result<JobFilter, ApiError> {
        let Some(filters) = &self.filters else { return Ok(JobFilter::default()) };
        Ok(JobFilter {
            ids: ids("filters.jobIDs", filters.job_ids.as_deref().unwrap_or_default())?,
            from: date("filters.fromDate", filters.from_date.as_deref())?,
            to: date("filters.toDate", filters.to_date.as_deref())?,
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DescribeJobLogItems {
    #[serde(rename = "jobID")]
    job_id: Option<String>,
    pub(crate) max_results: Option<i64>,
    pub(crate) next_token: Option<String>,
    #[serde(flatten)]
    pub(crate) account: Account,
}

impl DescribeJobLogItems {
    pub(crate) fn job(&self) -> Result<JobId, ApiError> {
        one_id("jobID", self.job_id.clone())
    }
}

/// A request of rehost's own that names one server.
pub(crate) fn one_id<I>(name: &str, given: Option<String>) -> Result<I, ApiError>
where
    I: FromStr<Err: Display>,
{
    required(name, given)?.parse().map_err(|e| ApiError::field(name, e))
}

fn required<T>(name: &str, given: Option<T>) -> Result<T, ApiError> {
    given.ok_or_else(|| ApiError::field(name, "is required"))
}

fn ids<I>(name: &str, given: &[String]) -> Result<Vec<I>, ApiError>
where
    I: FromStr<Err: Display>,
{
    if given.len() > MAX_FILTER_IDS {
        return Err(ApiError::field(name, format!("has {} members; at most {MAX_FILTER_IDS}", given.len())));
    }
    given.iter().map(|id| id.parse().map_err(|e| ApiError::field(name, e))).collect()
}

fn states(given: &[String]) -> Result<Vec<LifeCycleState>, ApiError> {
    let state = |text: &String| {
        let known = LifeCycleState::ALL.into_iter().find(|s| s.as_str() == text);
        known.ok_or_else(|| ApiError::field("filters.lifeCycleStates", format!("`{text}` is not a lifecycle state")))
    };
    given.iter().map(state).collect()
}

fn date(name: &str, given: Option<&str>) -> Result<Option<Timestamp>, ApiError> {
    let parse = |text: &str| {
        text.parse().map_err(|_| ApiError::field(name, format!("`{text}` is not a time like 2026-01-31T12:00:00Z")))
    };
    given.map(parse).transpose()
}

fn tags(given: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    let too_long = |text: &String| text.chars().count() > MAX_TAG_CHARS;
    if given.len() > MAX_TAGS {
        return Err(ApiError::field("tags", format!("has {} members; at most {MAX_TAGS}", given.len())));
    }
    if given.iter().any(|(key, value)| key.is_empty() || too_long(key) || too_long(value)) {
        return Err(ApiError::field(
            "tags",
            format!("keys have 1 to {MAX_TAG_CHARS} characters, values at most as many"),
        ));
    }
    Ok(given)
}
