//! The fault harness: runs agent and replicator as processes, breaks what can break at random moments, and says whether a
//! volume is still exactly some acknowledged checkpoint. See `docs/faults.md`.

mod bed;
mod child;
mod failure;
mod files;
mod history;
mod interrupt;
mod leftovers;
mod network;
mod plan;
mod role;
mod rows;
mod series;
mod source;
mod spec;
mod storage;
mod writer;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Breaks replication in every way it knows, and checks what is left.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    series: series::Options,
    #[command(subcommand)]
    role: Option<RoleCommand>,
}

#[derive(Debug, Subcommand)]
enum RoleCommand {
    /// Plays the agent of a run.
    #[command(hide = true)]
    Agent { folder: PathBuf },
    /// Plays the replicator of a run.
    #[command(hide = true)]
    Replicator {
        folder: PathBuf,
        #[arg(long, default_value_t = 1)]
        key: u8,
    },
    /// Plays the watchdog of an agent's freezes.
    #[command(hide = true)]
    ThawWatchdog,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(RoleCommand::Agent { folder }) => role::agent::run(&folder).map(|()| ExitCode::SUCCESS),
        Some(RoleCommand::Replicator { folder, key }) => {
            role::replicator::run(&folder, key).map(|()| ExitCode::SUCCESS)
        }
        Some(RoleCommand::ThawWatchdog) => Ok(rehost_agent::freeze::run_thaw_watchdog()),
        None => {
            interrupt::catch()?;
            series::run(&arguments.series)
        }
    }
}
