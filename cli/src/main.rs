//! The command `rehost`: makes and serves a local region, and is a client of its API.

mod args;
mod client;
mod commands;
mod home;
mod own;
mod report;
mod show;
mod target;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(&cli);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start: {error}")),
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("{error:#}")),
    }
}

/// The service tells what it does; other commands only what goes wrong. `REHOST_LOG` says otherwise.
fn start_log(cli: &Cli) {
    let usual = if matches!(cli.command, Command::Serve(_)) { "info" } else { "off" };
    let filter = EnvFilter::try_from_env("REHOST_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}

fn failed(message: &str) -> ExitCode {
    eprintln!("rehost: {message}");
    ExitCode::FAILURE
}
