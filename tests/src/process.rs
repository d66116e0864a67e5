//! Child processes that end with their owner.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

/// A command that runs on one processor only.
#[must_use]
pub fn on_one_cpu(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &first_cpu(), program]);
    command
}

/// A processor that may be used here, by its number.
fn first_cpu() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("0").trim();
    allowed.split([',', '-']).next().unwrap_or("0").to_owned()
}

/// A running child, killed through its own handle when this is dropped. Its output goes to a file.
#[derive(Debug)]
pub struct Running {
    program: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command` with both outputs in `log`, and no input.
    ///
    /// # Errors
    /// When the file cannot be made or the program cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let program = program_name(command);
        let out = File::create(log).context(|| format!("create {}", log.display()))?;
        let err = out.try_clone().context(|| format!("share {}", log.display()))?;
        let child =
            command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().context(|| format!("start {program}"))?;
        Ok(Self { program, child, log: log.to_owned() })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Succeeds while the process runs.
    ///
    /// # Errors
    /// [`Error::Stopped`] with the end of its output.
    pub fn check(&mut self) -> Result<()> {
        match self.try_wait()? {
            None => Ok(()),
            Some(status) => Err(Error::Stopped {
                program: self.program.clone(),
                status,
                log: self.log.clone(),
                tail: last_lines(&self.output(), 12),
            }),
        }
    }

    /// The exit status, if it has ended.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context(|| format!("look after {}", self.program))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it still runs after `limit`; it goes on running.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() >= limit {
                return Err(Error::Timeout {
                    what: format!("the end of {}", self.program),
                    after: limit,
                    seen: last_lines(&self.output(), 12),
                });
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it at once (SIGKILL) and reaps it. Harmless when it has ended already.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running child with everything that it starts: all of its process group ends with it when this is dropped.
#[derive(Debug)]
pub struct Group {
    leader: Running,
}

impl Group {
    /// Starts `command` as the leader of a group of its own; the rest is as in [`Running::start`].
    ///
    /// # Errors
    /// As [`Running::start`].
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        Ok(Self { leader: Running::start(command.process_group(0), log)? })
    }

    /// The id of the leader, and so of the group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.leader.pid()
    }

    /// What it printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.leader.output()
    }

    /// Succeeds while the leader runs.
    ///
    /// # Errors
    /// As [`Running::check`].
    pub fn check(&mut self) -> Result<()> {
        self.leader.check()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // As long as one of them lives, the id is no other group's.
        let leader = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(leader) = leader {
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
        self.leader.kill();
    }
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// [`Error::Failed`] with the end of what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let program = program_name(command);
    let output = command.stdin(Stdio::null()).output().context(|| format!("start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let printed = text + &String::from_utf8_lossy(&output.stderr);
    Err(Error::Failed { program, status: output.status, output: last_lines(&printed, 12) })
}

/// The last `count` lines of a text.
#[must_use]
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

fn program_name(command: &Command) -> String {
    let path = Path::new(command.get_program());
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_child_is_gone() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let running = Running::start(Command::new("sleep").arg("600"), log.path()).unwrap();
        let folder = PathBuf::from(format!("/proc/{}", running.pid()));
        assert!(folder.exists());
        drop(running);
        assert!(!folder.exists());
    }

    #[test]
    fn a_dropped_group_is_gone_with_its_children() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let group = Group::start(Command::new("sh").args(["-c", "sleep 600 & echo $!; wait"]), log.path()).unwrap();
        let started = Instant::now();
        let child = loop {
            if let Ok(pid) = group.output().trim().parse::<u32>() {
                break pid;
            }
            assert!(started.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(10));
        };
        drop(group);
        // An orphan is a zombie until init looks after it.
        let gone = || !std::fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        while !gone() {
            assert!(started.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_stopped_child_is_reported_with_its_words() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut running =
            Running::start(Command::new("sh").args(["-c", "echo no such disk; exit 3"]), log.path()).unwrap();
        running.wait(Duration::from_secs(20)).unwrap();
        let message = running.check().unwrap_err().to_string();
        assert!(message.contains("no such disk") && message.contains('3'), "{message}");
    }

    #[test]
    fn last_lines_of_a_short_text_are_all_of_it() {
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
        assert_eq!(last_lines("", 2), "");
    }
}
