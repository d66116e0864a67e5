//! What the commands do, one module for each group.

mod actions;
mod jobs;
mod leftovers;
mod region;
mod servers;
mod snapshots;
mod template;
mod wait;
mod watch;

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use anyhow::Result;
use aws_sdk_mgn::types::ChangeServerLifeCycleStateSourceServerLifecycleState as Mark;

use crate::args::{Cli, Command, DisksCommand, JobCommand, ServerCommand};
use crate::client::{Change, Launch, Mgn};
use crate::target::Target;

/// Runs the command to its end.
pub(crate) async fn run(cli: Cli) -> Result<()> {
    match &cli.command {
        Command::Init(args) => return region::init(&cli.global, args).await,
        Command::Serve(args) => return region::serve(&cli.global, args).await,
        Command::Install(args) => return region::install_command(&cli.global, args).await,
        _ => {}
    }
    let mgn = Mgn::new(Target::of(&cli.global).await?);
    ask(&mgn, cli).await
}

async fn ask(mgn: &Mgn, cli: Cli) -> Result<()> {
    let json = cli.global.json;
    match cli.command {
        Command::Servers(args) => servers::list(mgn, &args, json).await,
        Command::Server(ServerCommand::Show(one)) => servers::show(mgn, &one, json).await,
        Command::Server(ServerCommand::Set(set)) => servers::set(mgn, *set, json).await,
        Command::Template(command) => template::run(mgn, &command, json).await,
        Command::Test(args) => actions::launch(mgn, Launch::Test, &args, json).await,
        Command::Cutover(args) => actions::cutover(mgn, &args, json).await,
        Command::Terminate(args) => actions::launch(mgn, Launch::Terminate, &args, json).await,
        Command::Ready(args) => actions::mark(mgn, Mark::ReadyForCutover, &args, json).await,
        Command::Revert(args) => actions::revert(mgn, &args, json).await,
        Command::Archive(one) => actions::change(mgn, &one, Change::Archive, json).await,
        Command::Finalize(args) => actions::end(mgn, Change::Finalize, &args, json).await,
        Command::Disconnect(args) => actions::end(mgn, Change::Disconnect, &args, json).await,
        Command::Pause(one) => actions::replication(mgn, &one, Change::Pause, json).await,
        Command::Resume(one) => actions::replication(mgn, &one, Change::Resume, json).await,
        Command::Stop(one) => actions::replication(mgn, &one, Change::Stop, json).await,
        Command::Start(one) => actions::replication(mgn, &one, Change::Start, json).await,
        Command::Retry(one) => actions::replication(mgn, &one, Change::Retry, json).await,
        Command::Disks(DisksCommand::Add(args)) => servers::add_disk(mgn, &args, json).await,
        Command::Snapshots(args) => snapshots::run(mgn, args, json).await,
        Command::Jobs(args) => jobs::list(mgn, args, json).await,
        Command::Job(JobCommand::Show(args)) => jobs::show(mgn, &args, json).await,
        Command::Leftovers(args) => leftovers::run(mgn, &args, json).await,
        Command::Watch(args) => watch::watch(mgn, &args, json).await,
        Command::Init(_) | Command::Serve(_) | Command::Install(_) => Ok(()),
    }
}

/// Writes to standard output. A reader that has seen enough ends the command, quietly.
fn out(text: impl Display) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

fn out_json(value: &impl serde::Serialize) -> Result<()> {
    out(format_args!("{}\n", serde_json::to_string_pretty(value)?))
}
