//! The command line.

mod replication;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use rehost_link::sigv4::SigningService;
use rehost_model::launch::{BootMode, Probe};

pub(crate) use replication::ReplicationArgs;

/// Lifts running Linux servers to another home, disk block by disk block, and proves the copy before anyone depends on it.
#[derive(Debug, Parser)]
#[command(name = "rehost", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the service is, and how to show what it says.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The region's home [default: ~/.rehost].
    #[arg(long, global = true, env = "REHOST_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Another service with MGN's API, with credentials as the AWS CLI finds them; the home is then not used.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) endpoint_url: Option<String>,
    /// The AWS region of that service.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) region: Option<String>,
    /// The AWS profile for that service.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Who checks signatures there: execute-api (API Gateway) or mgn; told from the URL unless it has a name of its own.
    #[arg(long, global = true, env = "REHOST_SIGNING_SERVICE", value_name = "SERVICE")]
    pub(crate) signing_service: Option<SigningService>,
    /// Print JSON, in MGN's shapes.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a local region: its home, keys, certificate authority and credentials.
    Init(InitArgs),
    /// Run the local region until it is told to stop (SIGINT or SIGTERM).
    Serve(ServeArgs),
    /// Print the command that installs the agent on a source server.
    #[command(name = "install-command")]
    Install(InstallArgs),
    /// List the source servers.
    Servers(ServersArgs),
    /// Show a source server, or change its settings.
    #[command(subcommand)]
    Server(ServerCommand),
    /// Show or change the template: the replication settings that new servers start from.
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Launch test instances.
    Test(LaunchArgs),
    /// Mark a server as ready for cutover; its test instance is terminated.
    Ready(WaitArgs),
    /// Launch cutover instances.
    Cutover(CutoverArgs),
    /// Take back a test (to READY_FOR_TEST) or a cutover (to READY_FOR_CUTOVER).
    Revert(WaitArgs),
    /// End the migration of a server: its launched instance stays, everything else goes.
    Finalize(WaitArgs),
    /// Hide a server that was cut over or disconnected.
    Archive(OneArgs),
    /// Terminate the launched instances of servers.
    Terminate(LaunchArgs),
    /// Stop replicating a server, and remove everything that was made for it.
    Disconnect(WaitArgs),
    /// Send nothing for a while; what changes meanwhile is noted, and is all that a resume costs.
    Pause(OneArgs),
    /// Go on after a pause.
    Resume(OneArgs),
    /// End a server's replication and remove what was made for it; its agent stays, for `rehost start`.
    Stop(OneArgs),
    /// Begin the replication of a stopped server anew.
    Start(OneArgs),
    /// Try at once again what stalls a server's replication.
    Retry(OneArgs),
    /// The disks of a server.
    #[command(subcommand)]
    Disks(DisksCommand),
    /// List the snapshots, or show, take or verify one.
    #[command(alias = "snapshot")]
    Snapshots(SnapshotsArgs),
    /// List the jobs.
    Jobs(JobsArgs),
    /// Show a job and its log.
    #[command(subcommand)]
    Job(JobCommand),
    /// Compare ledgers, tags and reality: show what exists on behalf of servers and nobody needs.
    Leftovers(LeftoversArgs),
    /// Follow servers as they replicate: live bars on a terminal, plain lines elsewhere.
    Watch(WatchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Where `rehost serve` will listen.
    #[arg(long, default_value = "127.0.0.1:8443", value_name = "ADDRESS:PORT")]
    pub(crate) listen: std::net::SocketAddr,
    /// A host under which agents reach this machine, in the order to be tried; the address of --listen if none is given.
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Vec<String>,
    /// The port of the first replication server; others get free ones.
    #[arg(long, default_value_t = rehost_model::region::REPLICATION_PORT, value_name = "PORT")]
    pub(crate) replication_port: u16,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Listen here instead of where the region's configuration says.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Where rehost-replicator and rehost-converter are [default: beside this program].
    #[arg(long, env = "REHOST_PROGRAMS", value_name = "DIR")]
    pub(crate) programs: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// The address of this service as the source sees it, such as https://10.0.0.5:8443.
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// Print the secret too, so that the line can be run as it is.
    #[arg(long)]
    pub(crate) show_secret: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServersArgs {
    /// List the archived servers instead.
    #[arg(long)]
    pub(crate) archived: bool,
    /// Only servers in this lifecycle state, such as TESTING; may be given several times.
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// Everything about one server.
    Show(OneArgs),
    /// Change the settings of one server.
    Set(Box<SetArgs>),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// What it says.
    Show,
    /// Change it, or make it if there is none. Servers that are there keep their settings.
    Set(Box<ReplicationArgs>),
    /// Delete it: new servers start from the defaults.
    Delete,
}

/// One server.
#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// Its id, the beginning of it, its host name or its user-provided id.
    pub(crate) server: String,
}

/// One server, and whether to wait.
#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    pub(crate) one: OneArgs,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Servers of one job.
#[derive(Debug, Args)]
pub(crate) struct LaunchArgs {
    /// Their ids, the beginnings of them, their host names or user-provided ids.
    #[arg(required = true)]
    pub(crate) servers: Vec<String>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Servers to be cut over.
#[derive(Debug, Args)]
pub(crate) struct CutoverArgs {
    #[command(flatten)]
    pub(crate) launch: LaunchArgs,
    /// Run the sources' quiesce scripts first and keep them from changing from then on; if the cutover fails, they are undone.
    /// From now on this is the servers' setting. Left out, the setting decides.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) quiesce: Option<bool>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DisksCommand {
    /// Replicate a disk that the source got after its agent was installed.
    Add(AddDiskArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AddDiskArgs {
    #[command(flatten)]
    pub(crate) one: OneArgs,
    /// The device, such as /dev/sdc; `rehost server show` names those that are not replicated.
    pub(crate) device: String,
}

/// Whether to wait for the end.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Wait until it is done; fail with its reason if it fails.
    #[arg(long)]
    pub(crate) wait: bool,
    /// With --wait: give up after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "3600")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    pub(crate) one: OneArgs,
    /// What a launched copy must answer: boot, tcp:PORT or http:PORT[/PATH]; may be given several times.
    #[arg(long, value_name = "PROBE")]
    pub(crate) probe: Vec<Probe>,
    /// How long a launched copy may take to pass its probes.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) verify_timeout: Option<u64>,
    /// Launch a test as soon as the server is ready for it.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) auto_test: Option<bool>,
    /// Mark it ready for cutover when its test passed.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) auto_ready: Option<bool>,
    /// Cut over as soon as it is ready for it.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) auto_cutover: Option<bool>,
    /// Finalize when its cutover passed.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) auto_finalize: Option<bool>,
    /// Archive it when it was finalized.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) auto_archive: Option<bool>,
    /// How copies boot: LEGACY_BIOS, UEFI or USE_SOURCE.
    #[arg(long, value_name = "MODE", value_parser = replication::of_model::<BootMode>)]
    pub(crate) boot_mode: Option<BootMode>,
    /// Whether a cutover runs the source's quiesce scripts and keeps it from changing.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) quiesce: Option<bool>,
    /// A checkpoint at least this often while anything changes.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) checkpoint_interval: Option<Duration>,
    /// The longest that filesystems may be frozen for a checkpoint; 0 forbids freezing.
    #[arg(long, value_name = "MILLISECONDS")]
    pub(crate) max_freeze: Option<u64>,
    /// How long one of the source's hook scripts may take.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) hook_timeout: Option<Duration>,
    /// Replicate disks that the source gets without being asked.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) auto_disks: Option<bool>,
    /// Take a snapshot this often, such as 15m, 2h or 1d; 0: only on demand.
    #[arg(long, value_name = "TIME", value_parser = minutes)]
    pub(crate) snapshot_every: Option<u64>,
    /// Keep so many of the newest snapshots.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) keep_last: Option<u32>,
    /// Keep the newest snapshot of each of so many hours.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) keep_hourly: Option<u32>,
    /// Keep the newest snapshot of each of so many days.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) keep_daily: Option<u32>,
    /// The EC2 launch template whose default version says what else copies are launched with; an empty text takes it away.
    #[arg(long, value_name = "lt-…")]
    pub(crate) launch_template: Option<String>,
    /// Whether copies get the source's private address.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) copy_private_ip: Option<bool>,
    /// Whether the instance type of copies is chosen by the source's CPUs and memory; otherwise the launch template says it.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) right_size: Option<bool>,
    /// Replace the server's replication server after so many days; 0: never.
    #[arg(long, value_name = "DAYS")]
    pub(crate) rotate_after: Option<u64>,
    #[command(flatten)]
    pub(crate) replication: ReplicationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LeftoversArgs {
    /// Remove them now; the region does so by itself every hour on AWS.
    #[arg(long)]
    pub(crate) reap: bool,
    /// Show what is in use, too, and what each server costs where prices are known.
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SnapshotsArgs {
    /// Only those of this server: its id, the beginning of it, its host name or its user-provided id.
    pub(crate) server: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Option<SnapshotsCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotsCommand {
    /// One snapshot: its checkpoint, consistency and manifests.
    Show(EpochArgs),
    /// Take a snapshot now.
    Take(WaitArgs),
    /// Compare a snapshot with its manifests; fails where they differ.
    Verify(EpochArgs),
}

/// One snapshot of a server.
#[derive(Debug, Args)]
pub(crate) struct EpochArgs {
    #[command(flatten)]
    pub(crate) one: OneArgs,
    /// Its checkpoint; the newest that can be launched from if none is given.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) epoch: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Only jobs created at or after this time, such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// A job, its servers and its log.
    Show(JobArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job's id, or the beginning of it.
    pub(crate) job: String,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Only this server: its id, the beginning of it, its host name or its user-provided id.
    pub(crate) server: Option<String>,
    /// Stop once every watched server is in this lifecycle or data replication state, or once this job is completed.
    #[arg(long, value_name = "STATE|JOB")]
    pub(crate) until: Option<String>,
    /// With --until: give up after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "3600")]
    pub(crate) timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

/// Minutes: `15m`, `2h`, `1d`, or 0.
fn minutes(text: &str) -> Result<u64, String> {
    let wrong = || "write a time such as 15m, 2h or 1d, or 0".to_owned();
    if text == "0" {
        return Ok(0);
    }
    let units = [('m', 1), ('h', 60), ('d', 24 * 60)];
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(*name)?, *unit))).ok_or_else(wrong)?;
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn snapshots_are_listed_or_worked_on() {
        let parse = |words: &[&str]| match Cli::try_parse_from([&["rehost"], words].concat()).unwrap().command {
            Command::Snapshots(args) => args,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&["snapshots", "web-1"]).server.as_deref(), Some("web-1"));
        assert!(parse(&["snapshots"]).command.is_none());
        assert!(matches!(parse(&["snapshot", "take", "web-1", "--wait"]).command, Some(SnapshotsCommand::Take(_))));
        let Some(SnapshotsCommand::Verify(verify)) = parse(&["snapshots", "verify", "web-1", "--epoch", "7"]).command
        else {
            panic!("not verify")
        };
        assert_eq!((verify.one.server.as_str(), verify.epoch), ("web-1", Some(7)));
        for (text, expected) in [
            ("0", Some(0)),
            ("15m", Some(15)),
            ("2h", Some(120)),
            ("1d", Some(1440)),
            ("15", None),
            ("m", None),
            ("-1h", None),
        ] {
            assert_eq!(minutes(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn switches_may_stand_alone_or_with_a_value() {
        let parse = |tail: &[&str]| {
            let words = [&["rehost", "server", "set", "web-1"], tail].concat();
            match Cli::try_parse_from(words).unwrap().command {
                Command::Server(ServerCommand::Set(set)) => *set,
                other => panic!("{other:?}"),
            }
        };
        let set = parse(&["--probe", "http:80", "--probe", "boot", "--auto-test", "--auto-cutover=false"]);
        assert_eq!((set.auto_test, set.auto_cutover, set.auto_archive), (Some(true), Some(false), None));
        assert_eq!(set.probe.len(), 2);
        let throttled = parse(&["--throttle", "50", "--quiesce"]).replication;
        assert_eq!(throttled, parse(&["--bandwidth", "50"]).replication);
        assert_eq!(parse(&["--checkpoint-interval", "5"]).checkpoint_interval, Some(Duration::from_secs(5)));
        assert_eq!(parse(&["--boot-mode", "uefi"]).boot_mode, Some(BootMode::Uefi));
    }
}
