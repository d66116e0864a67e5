//! The command `rehost-replicator`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rehost_replicator::config::ReplicatorConfig;
use rehost_replicator::service;
use tokio::signal::unix::{SignalKind, signal};

/// Receives the disks of source servers and keeps their staging volumes.
#[derive(Parser)]
#[command(name = "rehost-replicator", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve agents, in the foreground
    Run {
        /// JSON file, readable by its owner alone
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Most bytes of changes of a server that wait for their checkpoint [default: 1 GiB]
        #[arg(long, value_name = "BYTES")]
        journal_bytes: Option<u64>,
    },
}

fn main() -> ExitCode {
    let Command::Run { config, journal_bytes } = Cli::parse().command;
    let filter = tracing_subscriber::EnvFilter::try_from_env("REHOST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match run(&config, journal_bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &std::path::Path, journal_bytes: Option<u64>) -> Result<(), Box<dyn std::error::Error>> {
    let mut config = ReplicatorConfig::load(config)?;
    config.journal_bytes = journal_bytes.or(config.journal_bytes);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Ok(service::run(&config, stop).await?)
    })
}
