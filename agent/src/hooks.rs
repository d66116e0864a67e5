//! The user's scripts around a freeze and a fence: directories of programs below `/etc/rehost/hooks`.
//!
//! | directory | when | a failure |
//! |---|---|---|
//! | `pre-freeze.d` | before filesystems are frozen | nothing is frozen, and `post-freeze.d` runs |
//! | `post-freeze.d` | after they were thawed, or could not be frozen | is said; the rest runs all the same |
//! | `quiesce.d` | before a cutover: stop what writes | the fence fails, and `unquiesce.d` runs |
//! | `unquiesce.d` | when the source is to be used again | is said; the rest runs all the same |
//!
//! Executable files run one by one in lexical order, with `REHOST_HOOK` (`pre-freeze`, …) and `REHOST_SERVER` in an otherwise
//! almost empty environment. They run as the agent does, so file and directory must belong to its user (root) and be writable
//! by nobody else: one that is not is refused, not passed over, for a consistency that was asked for must not silently be
//! missing. A script that takes too long is killed with its process group. One that ended well may leave processes behind, such
//! as a database session that holds a lock until `post-freeze.d` ends it.

use std::fs;
use std::io::{self, PipeReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rehost_model::ServerId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, geteuid, kill_process_group};

/// Where the directories are, unless somebody says otherwise.
pub const HOOKS_DIR: &str = "/etc/rehost/hooks";

/// What is kept of a script's output: its end.
const OUTPUT_BYTES: usize = 4096;

/// How often a running script is looked after.
const TICK: Duration = Duration::from_millis(20);

/// What a script wrote before its end is taken in by so many reads: a pipe holds a megabyte at most.
const LAST_READS: usize = (1 << 20) / OUTPUT_BYTES;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An occasion for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    PreFreeze,
    PostFreeze,
    Quiesce,
    Unquiesce,
}

impl Hook {
    /// Its name, as scripts see it; with `.d` behind it, its directory.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PreFreeze => "pre-freeze",
            Self::PostFreeze => "post-freeze",
            Self::Quiesce => "quiesce",
            Self::Unquiesce => "unquiesce",
        }
    }

    /// These put things back: a script that fails must not keep the others from doing so.
    fn is_undo(self) -> bool {
        matches!(self, Self::PostFreeze | Self::Unquiesce)
    }
}

/// Which script failed, and how.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not run: {fault}; mend it with `chown root:root` and `chmod go-w`", path.display())]
    Untrusted { path: PathBuf, fault: &'static str },
    #[error("cannot start {}: {source}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("{} failed ({status}){output}", path.display())]
    Failed { path: PathBuf, status: ExitStatus, output: Output },
    #[error("{} was killed after {} ms; allow it more time, or make it quicker{output}", path.display(), timeout.as_millis())]
    TimedOut { path: PathBuf, timeout: Duration, output: Output },
}

/// The end of what a script wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output(Vec<u8>);

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match String::from_utf8_lossy(&self.0).trim() {
            "" => Ok(()),
            text => write!(f, ": {text}"),
        }
    }
}

impl Output {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.drain(..self.0.len().saturating_sub(OUTPUT_BYTES));
    }
}

/// The scripts of one server.
#[derive(Debug, Clone)]
pub struct HookSet {
    directory: PathBuf,
    server: ServerId,
    timeout: Duration,
}

impl HookSet {
    /// The scripts below `directory`, which need not be there; each may take up to `timeout`.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, server: ServerId, timeout: Duration) -> Self {
        Self { directory: directory.into(), server, timeout }
    }

    /// Changes how long a script may take, from the next one on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Runs the scripts of one occasion and waits for them. Gives how many there were. Where something is to be put back,
    /// all of them run, whatever happens to the others.
    ///
    /// # Errors
    /// The first [`HookError`].
    pub fn run(&self, hook: Hook) -> Result<usize, HookError> {
        let scripts = self.scripts(hook)?;
        let mut results = scripts.iter().map(|script| self.run_script(hook, script));
        if hook.is_undo() {
            // All of them first, then the first failure.
            let results: Vec<_> = results.collect();
            results.into_iter().collect::<Result<(), _>>()?;
        } else {
            results.try_for_each(|result| result)?;
        }
        Ok(scripts.len())
    }

    /// Runs the scripts before a freeze. Those after it run when what is returned is resumed or dropped, and at once if this
    /// fails.
    ///
    /// # Errors
    /// The first [`HookError`].
    pub fn pause(&self) -> Result<Paused<'_>, HookError> {
        let paused = Paused { hooks: self, is_over: false };
        self.run(Hook::PreFreeze)?;
        Ok(paused)
    }

    /// The scripts of one occasion, in their order.
    fn scripts(&self, hook: Hook) -> Result<Vec<PathBuf>, HookError> {
        let directory = self.directory.join(format!("{}.d", hook.name()));
        let read = |source| HookError::Read { path: directory.clone(), source };
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(read)?,
        };
        trust(&directory, &fs::metadata(&directory).map_err(read)?)?;
        let mut paths = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(read)?;
        paths.retain(|path| fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0));
        paths.sort();
        Ok(paths)
    }

    fn run_script(&self, hook: Hook, script: &Path) -> Result<(), HookError> {
        let start = |source| HookError::Start { path: script.to_owned(), source };
        trust(script, &fs::metadata(script).map_err(start)?)?;
        let (mut child, output) = self.start(hook, script).map_err(start)?;
        let mut listener = Listener { pipe: Some(output), heard: Output::default() };
        let ended = listener.follow(&mut child, Instant::now() + self.timeout).map_err(start)?;
        let (path, output) = (script.to_owned(), listener.heard);
        match ended {
            None => Err(HookError::TimedOut { path, timeout: self.timeout, output }),
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(HookError::Failed { path, status, output }),
        }
    }

    fn start(&self, hook: Hook, script: &Path) -> io::Result<(Child, PipeReader)> {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(script);
        command.env_clear().env("PATH", PATH).env("LANG", "C.UTF-8");
        command.env("REHOST_HOOK", hook.name()).env("REHOST_SERVER", self.server.as_str());
        command.current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        Ok((command.spawn()?, reader))
    }
}

/// The scripts before a freeze ran; dropped, it runs those after it. To be made before, and dropped after, what is frozen.
#[derive(Debug)]
pub struct Paused<'a> {
    hooks: &'a HookSet,
    is_over: bool,
}

impl Paused<'_> {
    /// Runs the scripts after a freeze.
    ///
    /// # Errors
    /// The first [`HookError`]; the others ran all the same.
    pub fn resume(mut self) -> Result<(), HookError> {
        self.is_over = true;
        self.hooks.run(Hook::PostFreeze).map(|_| ())
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if let Err(error) = self.hooks.run(Hook::PostFreeze) {
            tracing::error!(%error, "a script failed after a freeze");
        }
    }
}

/// Only what root alone can change is run by root.
fn trust(path: &Path, found: &fs::Metadata) -> Result<(), HookError> {
    let untrusted = |fault| Err(HookError::Untrusted { path: path.to_owned(), fault });
    if found.uid() != geteuid().as_raw() {
        return untrusted("it does not belong to the agent's user");
    }
    if found.mode() & 0o022 != 0 {
        return untrusted("others may write to it");
    }
    Ok(())
}

/// Takes in what a script writes, so that it never waits for a reader.
struct Listener {
    pipe: Option<PipeReader>,
    heard: Output,
}

impl Listener {
    /// Waits for the script to end; `None` when it was killed because it did not. Whatever it left behind in the background
    /// may hold its output open: that is not waited for.
    fn follow(&mut self, child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.listen(left.min(TICK));
            if let Some(status) = child.try_wait()? {
                self.listen_to_the_rest();
                return Ok(Some(status));
            }
            if left.is_zero() {
                // The group still has its leader, which was not waited for: the number is nobody else's.
                let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
                child.wait()?;
                self.listen_to_the_rest();
                return Ok(None);
            }
        }
    }

    /// Takes in what is there when the script has ended. What it left behind may write on and on.
    fn listen_to_the_rest(&mut self) {
        for _ in 0..LAST_READS {
            if !self.listen(Duration::ZERO) {
                return;
            }
        }
    }

    /// Takes in what comes within `patience`; whether anything came.
    fn listen(&mut self, patience: Duration) -> bool {
        let Some(pipe) = &mut self.pipe else {
            sleep(patience);
            return false;
        };
        let timeout = Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
        if !poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0) {
            return false;
        }
        let mut bytes = [0; OUTPUT_BYTES];
        match pipe.read(&mut bytes) {
            Ok(count @ 1..) => self.heard.push(bytes.get(..count).unwrap_or_default()),
            _ => self.pipe = None,
        }
        self.pipe.is_some()
    }
}

#[cfg(test)]
mod tests;
