//! Processes that outlive the one that started them, and are never mistaken for others.
//!
//! A process is known by its pid, its start time and the host's boot: a pid alone is recycled. Signals go through a pidfd that was
//! opened before the start time was compared, so they can reach no other process.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// Index of `starttime` in `/proc/PID/stat`, counted from the field after the command's name.
const START_TIME_FIELD: usize = 19;

/// What tells a process from every other one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProcessIdentity {
    pid: i32,
    /// Clock ticks from the host's boot to the process's start.
    start_ticks: u64,
    boot_id: String,
}

impl ProcessIdentity {
    /// The identity of the process that has this pid now; `None` when there is none, or only its remains (a zombie).
    pub(super) fn of(pid: i32) -> Option<Self> {
        let start_ticks = running_since(pid)?;
        Some(Self { pid, start_ticks, boot_id: boot_id() })
    }

    /// Whether the process runs.
    pub(super) fn is_alive(&self) -> bool {
        running_since(self.pid) == Some(self.start_ticks) && boot_id() == self.boot_id
    }

    /// Asks the process to end, and kills it when it has not done so within `grace`. `false` when it could not be ended.
    pub(super) fn terminate(&self, grace: Duration) -> bool {
        let Some(handle) = self.open() else { return true };
        let _ = pidfd_send_signal(&handle, Signal::TERM);
        if has_ended(&handle, grace) {
            return true;
        }
        let _ = pidfd_send_signal(&handle, Signal::KILL);
        has_ended(&handle, Duration::from_secs(10))
    }

    #[cfg(test)]
    pub(super) fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        pidfd_send_signal(self.open().ok_or(rustix::io::Errno::SRCH)?, signal)
    }

    /// A handle of this very process; `None` when it does not run any more.
    fn open(&self) -> Option<OwnedFd> {
        let handle = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(handle)
    }
}

/// A pidfd becomes readable when its process has ended.
fn has_ended(handle: &OwnedFd, within: Duration) -> bool {
    let timeout = Timespec { tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&timeout)), Ok(1..))
}

/// Starts `command` in a process group of its own, so that neither a terminal's signals nor the end of this process reach it.
/// Its environment is `PATH` alone: nothing of this process's credentials goes with it.
pub(super) fn spawn_detached(command: &mut Command) -> io::Result<ProcessIdentity> {
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path))).process_group(0);
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(|_| io::Error::other("the pid has more than 31 bits"))?;
    let identity = ProcessIdentity::of(pid);
    // Somebody must take in the exit status, else a dead child stays as a zombie.
    std::thread::Builder::new().name(format!("reap-{pid}")).stack_size(64 << 10).spawn(move || child.wait())?;
    identity.ok_or_else(|| io::Error::other("it ended at once"))
}

/// Does this on one processor, and so does whatever process it starts: that inherits it.
pub(super) fn on_one_cpu<T>(start: impl FnOnce() -> T) -> io::Result<T> {
    let before = sched_getaffinity(None)?;
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    sched_setaffinity(None, &here)?;
    let started = start();
    sched_setaffinity(None, &before)?;
    Ok(started)
}

/// The running process of this program (a file name) that has exactly this argument: one that was started by a process which
/// was killed before it could write down whom it had started. The argument must be unique, such as one with a random id.
pub(super) fn find_by_argument(program: &str, argument: &str) -> Option<ProcessIdentity> {
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| runs(*pid, program, argument)).find_map(ProcessIdentity::of)
}

fn runs(pid: i32, program: &str, argument: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0);
    let name = words.next().and_then(|path| path.rsplit(|byte| *byte == b'/').next());
    name == Some(program.as_bytes()) && words.any(|one| one == argument.as_bytes())
}

/// Start time of the process with this pid, unless it has ended.
fn running_since(pid: i32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The start time in a line of `/proc/PID/stat`. The command's name may contain anything, brackets and spaces too.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ended = matches!(*fields.first()?, "Z" | "X" | "x");
    if ended { None } else { fields.get(START_TIME_FIELD)?.parse().ok() }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> ProcessIdentity {
        spawn_detached(Command::new("sleep").arg("300")).unwrap()
    }

    #[test]
    fn a_process_is_known_and_ended() {
        let process = sleeper();
        assert!(process.is_alive());
        assert_eq!(ProcessIdentity::of(process.pid), Some(process.clone()));
        assert!(process.terminate(Duration::from_secs(5)));
        assert!(!process.is_alive());
    }

    #[test]
    fn what_is_started_on_one_cpu_stays_there_and_who_starts_it_does_not() {
        let cpus = |of: i32| {
            let status = fs::read_to_string(format!("/proc/{of}/status")).unwrap();
            status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
        };
        let before = sched_getaffinity(None).unwrap();
        let process = on_one_cpu(sleeper).unwrap();
        assert!(cpus(process.pid).parse::<usize>().is_ok(), "{}", cpus(process.pid));
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        assert!(process.terminate(Duration::from_secs(5)));
    }

    #[test]
    fn a_recycled_pid_is_neither_alive_nor_killed() {
        let process = sleeper();
        for other in [
            ProcessIdentity { start_ticks: process.start_ticks + 1, ..process.clone() },
            ProcessIdentity { boot_id: "another boot".to_owned(), ..process.clone() },
        ] {
            assert!(!other.is_alive());
            assert!(other.terminate(Duration::from_millis(10)), "nothing to end counts as ended");
        }
        assert!(process.is_alive());
        assert!(process.terminate(Duration::from_secs(5)));
    }

    #[test]
    fn a_process_that_ignores_the_request_is_killed() {
        let script = "trap '' TERM; while :; do sleep 0.1; done";
        let process = spawn_detached(Command::new("sh").args(["-c", script])).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(process.terminate(Duration::from_secs(1)));
        assert!(!process.is_alive());
    }

    #[test]
    fn names_with_brackets_do_not_confuse() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(&format!("12 (a) Z 1) {fields}")), Some(4711));
        assert_eq!(parse_stat(&format!("12 (a) {}", fields.replacen('S', "Z", 1))), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn an_orphan_is_found_by_its_argument() {
        let marker = format!("300.{}", std::process::id());
        let process = spawn_detached(Command::new("sleep").arg(&marker)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(find_by_argument("sleep", &marker), Some(process.clone()));
        assert_eq!(find_by_argument("another", &marker), None);
        assert!(process.terminate(Duration::from_secs(5)));
        assert_eq!(find_by_argument("sleep", &marker), None);
    }
}
