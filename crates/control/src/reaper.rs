//! The reaper: compares what the ledger says, what carries our tags, and who needs it, and removes what nobody does.
//!
//! What it must never touch is what was cut over: from finalize on that is in no ledger, and only its tags tell whose it was. And it
//! never races who is at work: a resource is in the ledger before it exists, so that whatever is listed first and has no entry afterwards was
//! struck out or never written; and what belongs to a job, or to a server that is leaving, is left to those.

mod groups;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use rehost_model::ledger::{LedgerEntry, Purpose, ResourceKind};
use rehost_model::replicator::ReplicationServer;
use rehost_model::snapshot::SnapshotSet;
use rehost_model::{Job, JobId, ReplicatorId, SecurityGroupId, ServerId, SourceServer, Timestamp};
use serde::{Deserialize, Serialize};

use crate::costs::{self, PriceTable, ServerCost};
use crate::ledger;
use crate::ports::{PortResult, Ports, SharedGroup, TaggedResource};
use crate::{PortError, repo};

/// What the ledger and the tags show, and what was done about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leftovers {
    pub checked_date_time: Timestamp,
    /// Everything in the ledgers, and everything that carries our tags and is in none.
    pub resources: Vec<Resource>,
    /// Where prices are known.
    pub costs: Vec<ServerCost>,
}

impl Leftovers {
    /// Those that nobody needs.
    pub fn left(&self) -> impl Iterator<Item = &Resource> {
        self.resources.iter().filter(|resource| resource.why.is_some())
    }
}

/// One resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    pub kind: ResourceKind,
    /// `None` of what was written down, and of which nothing more is known. Several of one call are separated by commas.
    pub id: Option<String>,
    #[serde(rename = "sourceServerID")]
    pub server: Option<ServerId>,
    #[serde(rename = "jobID")]
    pub job: Option<JobId>,
    pub purpose: Option<Purpose>,
    /// When it was written into the ledger.
    pub since: Option<Timestamp>,
    /// What a month of it costs.
    pub monthly: Option<f64>,
    /// Why nobody needs it; `None` of what is in use.
    pub why: Option<Why>,
    pub done: Done,
}

/// Why nobody needs a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Why {
    /// It was written down an hour ago or more and never made.
    NeverMade,
    /// It was made, and the answer to that was lost: from now on its entry says what it is.
    AnswerLost,
    /// It does not exist any more.
    Gone,
    /// Its server is not known any more.
    ServerGone,
    /// The replication that it served is over.
    ReplicationEnded,
    /// The job that it was made for is over, and it is not the copy that the server shows.
    JobOver,
    /// It is in no ledger.
    NotInLedger,
    /// No server uses this replication server or security group.
    Unused,
    /// It is in no ledger, and it may be somebody's copy: it is for a person to decide.
    UnknownOwner,
}

/// What was done about a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", tag = "action", content = "error")]
pub enum Done {
    /// Nothing: it is in use, it was only looked, or it is for a person to decide.
    Nothing,
    /// It was removed, with its entry.
    Removed,
    /// Its entry was struck out.
    StruckOut,
    /// Its id was written into its entry: the answer to its creation had been lost.
    WrittenDown,
    /// It will be removed the next time, if nobody uses it until then.
    Marked,
    /// It could not be done, for this reason; the next time it is tried again.
    Failed(String),
}

/// Compares, and removes what nobody needs unless `dry_run`. One that cannot be removed keeps no other from being removed.
///
/// # Errors
/// When it cannot be seen what there is.
pub async fn reap(ports: &Ports, prices: Option<&PriceTable>, dry_run: bool) -> PortResult<Leftovers> {
    let now = ports.clock.now();
    // In this order: what exists now has been in the ledger before.
    let real = ports.compute.tagged_resources(None).await?;
    let groups = groups::listed(ports).await;
    let ledger: Vec<LedgerEntry> = repo::list(ports, "").await?;
    let facts = Facts::gather(ports, Listed { real, groups }, ledger, now).await?;
    let mut findings = verdict::of_entries(&facts);
    findings.extend(verdict::of_strays(&facts));
    findings.extend(verdict::of_replication_servers(&facts));
    findings.extend(verdict::of_groups(&facts));
    // What is made of others goes before them.
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.resource.kind));
    let mut resources = Vec::new();
    for mut finding in findings {
        let billed = finding.entry.as_ref().and_then(|entry| entry.billed.as_ref());
        finding.resource.monthly = prices.zip(billed).and_then(|(prices, billed)| prices.monthly(billed));
        if !dry_run {
            finding.resource.done =
                carry_out(ports, &finding).await.unwrap_or_else(|error| Done::Failed(error.to_string()));
        }
        resources.push(finding.resource);
    }
    let costs = prices.map(|prices| costs::of_servers(prices, &facts.server_list(), &facts.ledger, now));
    Ok(Leftovers { checked_date_time: now, resources, costs: costs.unwrap_or_default() })
}

/// What the region shows.
struct Listed {
    real: Vec<TaggedResource>,
    groups: Option<Vec<SharedGroup>>,
}

/// Everything that is known when it is judged.
struct Facts {
    now: Timestamp,
    real: Vec<TaggedResource>,
    groups: Option<Vec<SharedGroup>>,
    unneeded_groups: BTreeSet<SecurityGroupId>,
    ledger: Vec<LedgerEntry>,
    servers: BTreeMap<ServerId, SourceServer>,
    jobs: BTreeMap<JobId, Job>,
    replicators: Vec<ReplicationServer>,
    sets: Vec<SnapshotSet>,
}

impl Facts {
    async fn gather(ports: &Ports, listed: Listed, ledger: Vec<LedgerEntry>, now: Timestamp) -> PortResult<Self> {
        let servers = repo::list::<SourceServer>(ports, "").await?;
        let jobs = repo::list::<Job>(ports, "").await?;
        let Listed { real, groups } = listed;
        let unneeded_groups = groups::unneeded(ports, groups.as_deref().unwrap_or_default(), &ledger, &servers).await;
        Ok(Self {
            now,
            real,
            groups,
            unneeded_groups,
            ledger,
            servers: servers.into_iter().map(|server| (server.source_server_id.clone(), server)).collect(),
            jobs: jobs.into_iter().map(|job| (job.job_id.clone(), job)).collect(),
            replicators: repo::list(ports, "").await?,
            sets: repo::list(ports, "").await?,
        })
    }

    fn server_list(&self) -> Vec<SourceServer> {
        self.servers.values().cloned().collect()
    }
}

/// A resource, and what is to be done about it.
struct Finding {
    resource: Resource,
    entry: Option<LedgerEntry>,
    act: Act,
}

/// What is to be done about a resource.
enum Act {
    Nothing,
    Remove,
    StrikeOut,
    WriteDown(String),
    /// Nobody is to choose the replication server any more.
    Drain(ReplicatorId),
    RemoveReplicator(ReplicatorId),
    RemoveGroup(SecurityGroupId),
}

async fn carry_out(ports: &Ports, finding: &Finding) -> PortResult<Done> {
    match (&finding.act, &finding.entry) {
        (Act::Nothing, _) => Ok(Done::Nothing),
        (Act::Remove, Some(entry)) => {
            ledger::remove(ports, vec![entry.clone()]).await?;
            Ok(Done::Removed)
        }
        (Act::Remove, None) => {
            ledger::delete(ports, finding.resource.kind, finding.resource.id.as_deref().unwrap_or_default()).await?;
            Ok(Done::Removed)
        }
        (Act::StrikeOut, Some(entry)) => ledger::strike_out(ports, entry).await.map(|()| Done::StruckOut),
        (Act::WriteDown(id), Some(entry)) => {
            repo::update(ports, &format!("{}/{}", entry.server, entry.token), |entry: &mut LedgerEntry| {
                entry.resource.get_or_insert_with(|| id.clone());
                Ok::<_, PortError>(())
            })
            .await?;
            Ok(Done::WrittenDown)
        }
        (Act::Drain(id), _) => {
            repo::update_replicator(ports, id, |replicator| {
                replicator.draining = true;
                Ok(())
            })
            .await?;
            Ok(Done::Marked)
        }
        (Act::RemoveReplicator(id), _) => {
            if let Some(instance) = &finding.resource.id {
                ledger::delete(ports, ResourceKind::Instance, instance).await?;
            }
            repo::remove::<ReplicationServer>(ports, id.as_str()).await?;
            Ok(Done::Removed)
        }
        (Act::RemoveGroup(id), _) => groups::remove(ports, id).await,
        (Act::StrikeOut | Act::WriteDown(_), None) => Ok(Done::Nothing),
    }
}
