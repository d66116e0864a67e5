//! Who needs what there is: pure functions of everything that is known.

use rehost_model::ledger::{JOB_TAG, LedgerEntry, Purpose, ResourceKind, SERVER_TAG};
use rehost_model::replicator::ReplicationServer;
use rehost_model::{JobId, LifeCycleState, ServerId, SourceServer};

use super::{Act, Done, Facts, Finding, Resource, Why};
use crate::ledger::{PURPOSE_TAG, TOKEN_TAG};
use crate::ports::{SharedGroup, TaggedResource};
use crate::steps::{groups, replicator};

/// What is younger may be at work on by a step that has not come to its end, and EC2 may not show it yet; milliseconds.
const GRACE_MS: u64 = 3_600_000;

/// Each entry of the ledgers.
pub(super) fn of_entries(facts: &Facts) -> Vec<Finding> {
    facts.ledger.iter().map(|entry| of_entry(facts, entry)).collect()
}

fn of_entry(facts: &Facts, entry: &LedgerEntry) -> Finding {
    let verdict = match facts.servers.get(&entry.server) {
        None if entry.purpose == Purpose::Cutover => Some((Why::UnknownOwner, Act::Nothing)),
        None if replicator::named_by(entry).is_some() => Some((Why::ServerGone, Act::StrikeOut)),
        None => Some((Why::ServerGone, Act::Remove)),
        // Whoever removes everything of it is at work.
        Some(server) if is_ending(server) => None,
        Some(server) => match replicator::named_by(entry) {
            Some(id) => {
                let uses = [&server.internal.replicator, &server.internal.former_replicator];
                let is_used = uses.into_iter().flatten().any(|used| *used == id);
                (!is_used && is_old(facts, entry)).then_some((Why::Unused, Act::StrikeOut))
            }
            None => unneeded(facts, server, entry).or_else(|| unreal(facts, entry)),
        },
    };
    let (why, act) = verdict.map_or((None, Act::Nothing), |(why, act)| (Some(why), act));
    // Others may share it; see `of_groups`.
    let act = if matches!(act, Act::Remove) && entry.kind.is_shared() { Act::StrikeOut } else { act };
    let resource = Resource {
        kind: entry.kind,
        id: entry.resource.clone(),
        server: Some(entry.server.clone()),
        job: entry.job.clone(),
        purpose: Some(entry.purpose),
        since: Some(entry.created),
        monthly: None,
        why,
        done: Done::Nothing,
    };
    Finding { resource, entry: Some(entry.clone()), act }
}

/// Whether everything of the server is being removed; a server that was disconnected keeps saying so when that is done.
fn is_ending(server: &SourceServer) -> bool {
    server.is_leaving() && server.data_replication_info.data_replication_state.is_active()
}

fn is_old(facts: &Facts, entry: &LedgerEntry) -> bool {
    facts.now.ms_since(entry.created) > GRACE_MS
}

/// What its server has no use for any more.
fn unneeded(facts: &Facts, server: &SourceServer, entry: &LedgerEntry) -> Option<(Why, Act)> {
    if !is_old(facts, entry) {
        return None;
    }
    match (entry.purpose, &entry.job) {
        (Purpose::Staging, _) => {
            let replicates = server.data_replication_info.data_replication_state.is_active();
            (!replicates).then_some((Why::ReplicationEnded, Act::Remove))
        }
        (purpose, Some(job)) => {
            let is_shown = purpose != Purpose::Conversion && shows_copy_of(server, job);
            (is_over(facts, server, job) && !is_shown).then_some((Why::JobOver, Act::Remove))
        }
        (_, None) => None,
    }
}

fn shows_copy_of(server: &SourceServer, job: &JobId) -> bool {
    server.launched_instance.as_ref().is_some_and(|launched| launched.job_id == *job)
}

/// Whether a job is over for a server on which no other is at work: that one may go back to what an earlier one made.
fn is_over(facts: &Facts, server: &SourceServer, job: &JobId) -> bool {
    let Some(job) = facts.jobs.get(job) else { return server.internal.active_job.is_none() };
    let mine = job.participating_servers.iter().find(|p| p.source_server_id == server.source_server_id);
    server.internal.active_job.is_none() && mine.is_none_or(|mine| mine.launch_status.is_over())
}

/// Entries that do not agree with what there is.
fn unreal(facts: &Facts, entry: &LedgerEntry) -> Option<(Why, Act)> {
    if !is_old(facts, entry) {
        return None;
    }
    let mine = |r: &&TaggedResource| r.kind == entry.kind && r.tags.get(TOKEN_TAG) == Some(&entry.token);
    match &entry.resource {
        Some(ids) => (!ids.split(',').any(|id| exists(facts, entry.kind, id))).then_some((Why::Gone, Act::StrikeOut)),
        None => {
            let ids: Vec<&str> = facts.real.iter().filter(mine).map(|r| r.id.as_str()).collect();
            if ids.is_empty() {
                return Some((Why::NeverMade, Act::StrikeOut));
            }
            Some((Why::AnswerLost, Act::WriteDown(ids.join(","))))
        }
    }
}

fn exists(facts: &Facts, kind: ResourceKind, id: &str) -> bool {
    match (kind, &facts.groups) {
        (ResourceKind::SecurityGroup, Some(groups)) => groups.iter().any(|group| group.id.as_str() == id),
        (ResourceKind::SecurityGroup, None) => true,
        _ => facts.real.iter().any(|r| r.kind == kind && r.id == id),
    }
}

/// What carries our tags and is in no ledger, but for what is the user's.
pub(super) fn of_strays(facts: &Facts) -> Vec<Finding> {
    let is_known = |stray: &TaggedResource| {
        let token = stray.tags.get(TOKEN_TAG);
        let server = stray.tags.get(SERVER_TAG);
        // By the token: with an instance that is made from an image come its volumes, which carry its tags.
        facts.ledger.iter().any(|e| Some(&e.token) == token && server.is_some_and(|s| s == e.server.as_str()))
    };
    facts.real.iter().filter(|stray| !is_known(stray)).filter_map(|stray| of_stray(facts, stray)).collect()
}

fn of_stray(facts: &Facts, stray: &TaggedResource) -> Option<Finding> {
    let server: Option<ServerId> = stray.tags.get(SERVER_TAG).and_then(|id| id.parse().ok());
    let job: Option<JobId> = stray.tags.get(JOB_TAG).and_then(|id| id.parse().ok());
    let purpose = stray.tags.get(PURPOSE_TAG);
    let purpose = Purpose::ALL.into_iter().find(|known| purpose.is_some_and(|tag| tag == known.as_tag()));
    let known = server.as_ref().and_then(|id| facts.servers.get(id));
    let (why, act) = match (known, purpose) {
        (_, None) => (Why::UnknownOwner, Act::Nothing),
        (None, Some(Purpose::Cutover)) => return None,
        (None, _) => (Why::ServerGone, Act::Remove),
        (Some(server), _) if is_ending(server) => return None,
        (Some(server), Some(Purpose::Cutover)) => of_cutover(facts, server, job.as_ref())?,
        (Some(server), _) if is_in_use(facts, server, &stray.id) => (Why::NotInLedger, Act::Nothing),
        (Some(_), _) => (Why::NotInLedger, Act::Remove),
    };
    let (kind, id) = (stray.kind, Some(stray.id.clone()));
    let resource =
        Resource { kind, id, server, job, purpose, since: None, monthly: None, why: Some(why), done: Done::Nothing };
    Some(Finding { resource, entry: None, act })
}

/// A copy of a cutover: the user's, unless its job failed for certain.
fn of_cutover(facts: &Facts, server: &SourceServer, job: Option<&JobId>) -> Option<(Why, Act)> {
    use rehost_model::job::LaunchStatus::{Failed, Terminated};
    let Some(job) = job else {
        let is_users = server.life_cycle.state == LifeCycleState::Cutover;
        return (!is_users).then_some((Why::UnknownOwner, Act::Nothing));
    };
    if shows_copy_of(server, job) {
        return None;
    }
    let participants = facts.jobs.get(job).map(|job| job.participating_servers.as_slice()).unwrap_or_default();
    let mine = participants.iter().find(|p| p.source_server_id == server.source_server_id);
    let failed = mine.is_some_and(|p| matches!(p.launch_status, Failed | Terminated));
    let act = if failed && server.internal.active_job.is_none() { Act::Remove } else { Act::Nothing };
    Some((if failed { Why::NotInLedger } else { Why::UnknownOwner }, act))
}

fn is_in_use(facts: &Facts, server: &SourceServer, id: &str) -> bool {
    let volumes = server.internal.staging.iter().filter_map(|disk| disk.volume.as_ref()).any(|v| v.as_str() == id);
    let instance = server.launched_instance.as_ref().is_some_and(|l| l.ec2_instance_id.as_str() == id);
    let of_server = facts.sets.iter().filter(|set| set.server == server.source_server_id);
    volumes || instance || of_server.flat_map(|set| &set.snapshots).any(|snapshot| snapshot.as_str() == id)
}

/// Whether a server has none yet and wants one: what it has chosen it is about to write down.
fn chooses(facts: &Facts, server: &ServerId) -> bool {
    facts.servers.get(server).is_some_and(|server| {
        let is_active = server.data_replication_info.data_replication_state.is_active();
        server.internal.replicator.is_none() && is_active && !server.is_leaving()
    })
}

/// Replication servers that no server uses. Somebody may just be choosing one, so it is marked first and goes the next time.
pub(super) fn of_replication_servers(facts: &Facts) -> Vec<Finding> {
    let unused = |replicator: &&ReplicationServer| {
        let mut used = facts.servers.values().flat_map(|s| [&s.internal.replicator, &s.internal.former_replicator]);
        let is_just_chosen = replicator.reserved.keys().any(|server| chooses(facts, server));
        !used.any(|id| id.as_ref() == Some(&replicator.id)) && !is_just_chosen
    };
    let finding = |replicator: &ReplicationServer| {
        let id = replicator.id.clone();
        let resource = Resource {
            kind: ResourceKind::Instance,
            id: replicator.instance.as_ref().map(ToString::to_string),
            server: None,
            job: None,
            purpose: Some(Purpose::Staging),
            since: None,
            monthly: None,
            why: Some(Why::Unused),
            done: Done::Nothing,
        };
        let act = if replicator.draining { Act::RemoveReplicator(id) } else { Act::Drain(id) };
        Finding { resource, entry: None, act }
    };
    facts.replicators.iter().filter(unused).map(finding).collect()
}

/// Security groups that servers share: those that nobody needs, and those that are needed and in no ledger.
pub(super) fn of_groups(facts: &Facts) -> Vec<Finding> {
    let is_unneeded = |group: &SharedGroup| facts.unneeded_groups.contains(&group.id);
    let is_in_ledger = |group: &SharedGroup| facts.ledger.iter().any(|entry| groups::is_wanted_by(group, entry));
    let finding = |group: &SharedGroup| {
        let resource = Resource {
            kind: ResourceKind::SecurityGroup,
            id: Some(group.id.to_string()),
            server: None,
            job: None,
            purpose: Some(groups::purpose(group.role)),
            since: None,
            monthly: None,
            why: is_unneeded(group).then_some(Why::Unused),
            done: Done::Nothing,
        };
        let act = if is_unneeded(group) { Act::RemoveGroup(group.id.clone()) } else { Act::Nothing };
        Finding { resource, entry: None, act }
    };
    facts.groups.iter().flatten().filter(|group| !is_in_ledger(group)).map(finding).collect()
}
