//! The command `rehost-agent`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use rehost_agent::fence::unfence;
use rehost_agent::freeze::run_thaw_watchdog;
use rehost_agent::hooks::{HOOKS_DIR, HookSet};
use rehost_agent::install::{InstallArgs, install};
use rehost_agent::run::{RunOptions, run};
use rehost_agent::service::ServiceLayout;
use rehost_agent::settings::{STATE_DIR, StateError, installed};
use rehost_agent::status::{RUNTIME_DIR, StatusFile};
use rehost_agent::system::System;
use rehost_agent::uninstall::{UninstallOptions, uninstall};
use rehost_link::control_client::now;
use rehost_link::identity::StateDir;
use rehost_model::link::{CheckpointSettings, FenceId};

/// Replicates this server's disks to a region of rehost.
#[derive(Parser)]
#[command(name = "rehost-agent", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Enrol this server and set the agent up; run it again to keep the identity and renew the rest
    Install(Box<InstallArgs>),
    /// Replicate, in the foreground; the service runs this
    Run {
        #[command(flatten)]
        places: Places,
        /// Directory of the user's scripts
        #[arg(long, value_name = "DIR", default_value = HOOKS_DIR)]
        hooks_dir: PathBuf,
    },
    /// Show what the agent is doing
    Status {
        #[command(flatten)]
        places: Places,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell the control plane, and remove the agent from this server
    Uninstall {
        #[command(flatten)]
        places: Places,
        /// The agent was installed with --no-service
        #[arg(long)]
        no_service: bool,
    },
    /// Put a source that was fenced for a cutover back into use, when no control plane is there to do so
    Unfence {
        #[command(flatten)]
        places: Places,
        /// Directory of the user's scripts
        #[arg(long, value_name = "DIR", default_value = HOOKS_DIR)]
        hooks_dir: PathBuf,
    },
    /// Thaw what the agent froze when it is gone; started by the agent
    #[command(hide = true)]
    ThawWatchdog,
}

#[derive(Args)]
struct Places {
    /// Directory of the agent's identity
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Directory in memory where the running agent shows what it does
    #[arg(long, value_name = "DIR", default_value = RUNTIME_DIR)]
    runtime_dir: PathBuf,
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if matches!(command, Command::ThawWatchdog) {
        // Before anything else is set up: the less it is, the less can go wrong with it.
        return run_thaw_watchdog();
    }
    start_tracing();
    match carry_out(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Only what goes wrong, unless REHOST_LOG asks for more: the log may lie on the disk that is replicated.
fn start_tracing() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("REHOST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

fn carry_out(command: Command) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let layout = ServiceLayout::default();
    match command {
        Command::Install(args) => {
            runtime.block_on(install(&args, &System::default(), &layout, &mut say))?;
        }
        Command::Run { places, hooks_dir } => {
            let Places { state_dir, runtime_dir } = places;
            let options = RunOptions { state_dir, runtime_dir, hooks_dir };
            let end = runtime.block_on(run(&options));
            // A data engine that does not stop must not keep the process.
            runtime.shutdown_timeout(Duration::from_millis(100));
            end?;
        }
        Command::Status { places, json } => show_status(&places, json)?,
        Command::Uninstall { places, no_service } => {
            let Places { state_dir, runtime_dir } = places;
            let options = UninstallOptions { state_dir, runtime_dir, no_service };
            runtime.block_on(uninstall(&options, &layout, &mut say))?;
        }
        Command::Unfence { places, hooks_dir } => open_by_hand(&places, &hooks_dir)?,
        Command::ThawWatchdog => {}
    }
    Ok(())
}

fn say(line: &str) {
    // A reader that went away is no reason to stop half-way.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn open_by_hand(places: &Places, hooks_dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let state = StateDir::new(&places.state_dir);
    let (settings, _) = installed(&state)?;
    let timeout = Duration::from_millis(CheckpointSettings::default().hook_timeout_ms);
    match unfence(&state, HookSet::new(hooks_dir, settings.source_server_id, timeout))? {
        Some(FenceId(fence)) => say(&format!("the source is in use again; it was fenced for {fence}")),
        None => say("the source is not fenced"),
    }
    Ok(())
}

fn show_status(places: &Places, json: bool) -> Result<(), StateError> {
    let (settings, identity) = installed(&StateDir::new(&places.state_dir))?;
    let status = StatusFile::new(&places.runtime_dir, &places.state_dir).read();
    let running = status.as_ref().is_some_and(|s| s.is_fresh(now()));
    if json {
        let shown = serde_json::json!({
            "sourceServerID": settings.source_server_id,
            "endpoint": settings.endpoint,
            "certificateEnds": identity.not_after(),
            "running": running,
            "status": status,
        });
        say(&format!("{shown:#}"));
        return Ok(());
    }
    match status {
        Some(status) => status.lines(now()).iter().for_each(|line| say(line)),
        None => {
            say(&format!("source server  {}", settings.source_server_id));
            say(&format!("control plane  {}", settings.endpoint));
            say("doing          nothing: the agent has not run since the last boot");
            say(&format!("certificate    until {}", identity.not_after()));
        }
    }
    Ok(())
}
