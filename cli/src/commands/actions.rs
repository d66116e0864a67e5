//! Commands that change servers.

use anyhow::{Result, bail};
use aws_sdk_mgn::types::ChangeServerLifeCycleStateSourceServerLifecycleState as Mark;
use aws_sdk_mgn::types::LifeCycleState;
use rehost_api::settings::SettingsRequest;
use rehost_control::operations::ServerSettings;

use super::{out, out_json, wait};
use crate::args::{CutoverArgs, LaunchArgs, OneArgs, WaitArgs};
use crate::client::{Change, Launch, Mgn};
use crate::own;

/// Cuts servers over; with their sources quiesced, or not, if that was said.
pub(super) async fn cutover(mgn: &Mgn, args: &CutoverArgs, json: bool) -> Result<()> {
    if let Some(quiesce) = args.quiesce {
        for id in mgn.resolve_all(&args.launch.servers).await? {
            let settings = ServerSettings { quiesce: Some(quiesce), ..ServerSettings::default() };
            own::settings(&mgn.target, &SettingsRequest { source_server_id: id.parse()?, settings }).await?;
        }
    }
    launch(mgn, Launch::Cutover, &args.launch, json).await
}

/// Starts a job for servers, and waits for it if asked to.
pub(super) async fn launch(mgn: &Mgn, launch: Launch, args: &LaunchArgs, json: bool) -> Result<()> {
    let servers = mgn.resolve_all(&args.servers).await?;
    let job = mgn.launch(launch, servers).await?;
    let id = job.value.job_id().to_owned();
    if !args.wait.wait {
        return if json {
            out_json(&job.json)
        } else {
            out(format_args!("{id} started; follow it with `rehost watch --until {id}`\n"))
        };
    }
    if !json {
        out(format_args!("{id} started\n"))?;
    }
    let over = wait::for_job(mgn, &id, args.wait.timeout, !json).await?;
    if json {
        out_json(&over.json)?;
    }
    wait::verdict(mgn, &over.value).await?;
    if json { Ok(()) } else { out(format_args!("{id} succeeded\n")) }
}

/// Changes one server.
pub(super) async fn change(mgn: &Mgn, one: &OneArgs, change: Change, json: bool) -> Result<()> {
    let id = mgn.resolve(&one.server).await?;
    let server = mgn.change(&id, &change).await?;
    if json {
        return out_json(&server);
    }
    let state = server["lifeCycle"]["state"].as_str().unwrap_or("changed");
    let archived = if server["isArchived"] == true { ", archived" } else { "" };
    out(format_args!("{id} is {state}{archived}\n"))
}

/// Changes the replication of one server.
pub(super) async fn replication(mgn: &Mgn, one: &OneArgs, change: Change, json: bool) -> Result<()> {
    let id = mgn.resolve(&one.server).await?;
    let server = mgn.change(&id, &change).await?;
    if json {
        return out_json(&server);
    }
    let state = server["dataReplicationInfo"]["dataReplicationState"].as_str().unwrap_or("changed");
    out(format_args!("the replication of {id} is {state}\n"))
}

/// Changes the lifecycle state of one server; waits until the job that this may start is over, if asked to.
pub(super) async fn mark(mgn: &Mgn, state: Mark, args: &WaitArgs, json: bool) -> Result<()> {
    let id = mgn.resolve(&args.one.server).await?;
    change(mgn, &OneArgs { server: id.clone() }, Change::Mark(state), json).await?;
    if args.wait.wait {
        wait::for_jobs_of(mgn, &id, args.wait.timeout).await?;
    }
    Ok(())
}

/// Takes back a test or a cutover.
pub(super) async fn revert(mgn: &Mgn, args: &WaitArgs, json: bool) -> Result<()> {
    let id = mgn.resolve(&args.one.server).await?;
    let server = mgn.server(&id).await?.value;
    let target = match server.life_cycle().and_then(|l| l.state()) {
        Some(LifeCycleState::CuttingOver) => Mark::ReadyForCutover,
        Some(LifeCycleState::Testing | LifeCycleState::ReadyForCutover) => Mark::ReadyForTest,
        state => {
            let state = state.map_or("in no known state", LifeCycleState::as_str);
            bail!("{id} is {state}: there is no test or cutover to take back")
        }
    };
    mark(mgn, target, args, json).await
}

/// Ends the replication of a server, and waits until all that was made for it is gone if asked to.
pub(super) async fn end(mgn: &Mgn, ending: Change, args: &WaitArgs, json: bool) -> Result<()> {
    let id = mgn.resolve(&args.one.server).await?;
    let one = OneArgs { server: id.clone() };
    if !args.wait.wait {
        return change(mgn, &one, ending, json).await;
    }
    mgn.change(&id, &ending).await?;
    let server = wait::for_disconnection(mgn, &id, args.wait.timeout).await?;
    if json {
        return out_json(&server.json);
    }
    let state = server.value.life_cycle().and_then(|l| l.state()).map_or("", LifeCycleState::as_str);
    out(format_args!("{id} is {state}; its replication is over and its staging resources are gone\n"))
}
