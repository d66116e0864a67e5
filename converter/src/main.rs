//! The command. As `/init` of the conversion machine it needs no arguments.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use rehost_converter::disk::{Disk, Disks};
use rehost_converter::server::{self, ServerOptions};
use rehost_converter::{Guest, Root, carry_out, initramfs, machine, plan};
use rehost_model::conversion::{ConversionReport, ConversionRequest, ConversionTarget};
use rehost_model::launch::BootMode;

/// Makes a Linux server's disks boot on other hardware.
#[derive(Debug, Parser)]
#[command(version, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    convert: Convert,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the conversion machine's initramfs.
    BuildInitramfs {
        /// The directory into which a kernel package was unpacked (`dpkg -x linux-image-…-cloud-amd64….deb DIR`).
        #[arg(long, value_name = "DIR")]
        kernel: PathBuf,
        /// The converter to put into it; by default this program.
        #[arg(long, value_name = "FILE")]
        converter: Option<PathBuf>,
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Convert the attached volumes that a request names, and write a report: on a conversion server.
    Run {
        /// The request, JSON.
        #[arg(long, value_name = "FILE")]
        request: PathBuf,
        /// Where the report goes, JSON; whole or not at all.
        #[arg(long, value_name = "FILE")]
        report: PathBuf,
        /// Take the volumes from files of this directory named by their ids, in place of NVMe disks.
        #[arg(long, value_name = "DIR")]
        disks_directory: Option<PathBuf>,
        /// How long to wait for the volumes.
        #[arg(long, value_name = "N", default_value_t = 300)]
        wait_seconds: u64,
    },
}

/// Convert a mounted file tree.
#[derive(Debug, clap::Args)]
struct Convert {
    /// Where the guest's root file system (and what belongs to it) is mounted.
    #[arg(long, value_name = "DIR", required = true)]
    root: Option<PathBuf>,
    /// A disk or image of the guest, and what the source calls it; repeat in the source's order.
    #[arg(long = "disk", value_name = "FILE[=/dev/NAME]")]
    disks: Vec<String>,
    #[arg(long, value_enum, default_value_t = Target::Qemu)]
    target: Target,
    /// Say what would be done; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Target {
    Ec2,
    Qemu,
}

fn main() -> ExitCode {
    if machine::is_init() {
        machine::run();
    }
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Some(Command::BuildInitramfs { kernel, converter, output }) => build(&kernel, converter, &output),
        Some(Command::Run { request, report, disks_directory, wait_seconds }) => {
            serve(&ServerOptions { request, report, disks: disks_directory, wait: Duration::from_secs(wait_seconds) })
        }
        None => convert(&arguments.convert),
    };
    done.unwrap_or_else(|error| {
        eprintln!("rehost-converter: {error}");
        ExitCode::from(2)
    })
}

fn build(kernel: &std::path::Path, converter: Option<PathBuf>, output: &std::path::Path) -> Result<ExitCode, String> {
    let own = || std::env::current_exe().map_err(|error| format!("where is this program? {error}; give --converter"));
    let converter = converter.map_or_else(own, Ok)?;
    let archive = initramfs::build(&converter, kernel).map_err(|error| error.to_string())?;
    fs::write(output, archive).map_err(|error| format!("cannot write {}: {error}", output.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn serve(options: &ServerOptions) -> Result<ExitCode, String> {
    let report = server::run(options).map_err(|error| format!("cannot write {}: {error}", options.report.display()))?;
    print(&report);
    Ok(if report.outcome.is_launchable() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn convert(arguments: &Convert) -> Result<ExitCode, String> {
    let started = Instant::now();
    let directory = arguments.root.as_deref().ok_or("--root is missing")?;
    let directory =
        directory.canonicalize().map_err(|error| format!("cannot open {}: {error}", directory.display()))?;
    let target = match arguments.target {
        Target::Ec2 => ConversionTarget::Ec2,
        Target::Qemu => ConversionTarget::Qemu,
    };
    let disks = arguments.disks.iter().map(|disk| read_disk(disk)).collect::<Result<_, _>>().map(Disks)?;
    let request = ConversionRequest::new(target, BootMode::UseSource, Vec::new());
    let guest = Guest::survey(Root::new(&directory), disks, &request, None);
    let report = carry_out(&guest, plan(&guest), arguments.dry_run, started);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?);
    } else {
        print(&report);
    }
    Ok(if report.outcome.is_launchable() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read_disk(argument: &str) -> Result<Disk, String> {
    let (file, source) = match argument.split_once('=') {
        Some((file, source)) => (file, Some(source.to_owned())),
        None => (argument, None),
    };
    Disk::read(file.as_ref(), source).map_err(|error| format!("cannot read {file}: {error}"))
}

fn print(report: &ConversionReport) {
    for action in &report.actions {
        let backup = action.backup.as_deref().map_or_else(String::new, |backup| format!(" (original: {backup})"));
        println!("{:<15} {}: {}{backup}", action.rule, action.path, action.description);
    }
    for finding in &report.findings {
        println!("{:?} ({}): {}\n    {}", finding.severity, finding.rule, finding.cause, finding.remedy);
    }
    let mode = if report.dry_run { " (dry run: nothing was changed)" } else { "" };
    println!("{:?}{mode}, {} edits, {} ms", report.outcome, report.actions.len(), report.duration_ms);
}
