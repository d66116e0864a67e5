//! The agent's side of its watchdog.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::thawer::NAME;
use super::wire::{Answer, Received, Request, ask, receive};

/// How long a new process may take to lock its memory, on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer may take: nothing but a look at a socket is needed for it.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// How long a watchdog that was let go may take to end.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Why nothing watches over a freeze; then nothing is frozen.
#[derive(Debug, thiserror::Error)]
pub enum WatchdogError {
    #[error("cannot start the watchdog {}: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("{} does not answer as a watchdog: it must be this version of rehost-agent", program.display())]
    NotOne { program: PathBuf },
    #[error("the watchdog cannot lock its memory: {source}; the agent needs CAP_IPC_LOCK")]
    CannotLock { source: io::Error },
    #[error("the watchdog is gone or does not answer: {source}; the next freeze starts a new one")]
    Lost { source: Errno },
}

/// A running watchdog that holds nothing, or what is about to be frozen.
#[derive(Debug)]
pub(crate) struct Watchdog {
    /// Closed when this is dropped: the end of it is what the process waits for.
    socket: Option<OwnedFd>,
    process: Child,
    /// Not even one that hangs may be killed: something is frozen, and nobody else will thaw it.
    is_abandoned: bool,
    is_spared: bool,
}

impl Watchdog {
    /// Starts `{program} thaw-watchdog` and waits until it has protected itself.
    pub(crate) fn start(program: &Path) -> Result<Self, WatchdogError> {
        let (socket, process) =
            spawn(program).map_err(|source| WatchdogError::Start { program: program.to_owned(), source })?;
        let mut watchdog = Self { socket: Some(socket), process, is_abandoned: false, is_spared: false };
        match watchdog.hear(START_PATIENCE) {
            Ok(Answer::Hello(errno)) => {
                watchdog.is_spared = errno == 0;
                Ok(watchdog)
            }
            Ok(Answer::CannotLock(errno)) => {
                let source = io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or_default());
                Err(WatchdogError::CannotLock { source })
            }
            Ok(_) | Err(_) => Err(WatchdogError::NotOne { program: program.to_owned() }),
        }
    }

    /// Its process.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Whether the OOM killer passes it by.
    pub(crate) fn is_spared(&self) -> bool {
        self.is_spared
    }

    /// Hands over what is about to be frozen, and the time limit that begins with the first [`Watchdog::will_freeze`].
    pub(crate) fn arm<'a>(
        &self,
        filesystems: impl Iterator<Item = BorrowedFd<'a>>,
        limit: Duration,
    ) -> Result<(), WatchdogError> {
        let mut count = 0;
        for filesystem in filesystems {
            self.ask(Request::Add, Some(filesystem))?;
            count += 1;
        }
        self.ask(Request::Arm(u32::try_from(limit.as_millis()).unwrap_or(u32::MAX)), None)?;
        match self.hear(ANSWER_PATIENCE)? {
            Answer::Ready(held) if held == count => Ok(()),
            _ => Err(WatchdogError::Lost { source: Errno::PROTO }),
        }
    }

    /// To be said before each freeze: a freeze that nobody knows of would stay. Allocates nothing.
    pub(crate) fn will_freeze(&self, index: u32) -> Result<(), WatchdogError> {
        self.ask(Request::Try(index), None)
    }

    /// The freeze failed: should the filesystem be frozen, then it is somebody else's freeze. Allocates nothing.
    pub(crate) fn did_not_freeze(&self, index: u32) -> Result<(), WatchdogError> {
        self.ask(Request::NotMine(index), None)
    }

    /// Everything was thawed. Gives how many filesystems the watchdog had to thaw.
    pub(crate) fn disarm(&self) -> Result<u32, WatchdogError> {
        self.ask(Request::Disarm, None)?;
        match self.hear(ANSWER_PATIENCE)? {
            Answer::Done(thawed) => Ok(thawed),
            _ => Err(WatchdogError::Lost { source: Errno::PROTO }),
        }
    }

    /// Lets it alone with what it holds: it goes on until all of that is thawed.
    pub(crate) fn abandon(mut self) {
        self.is_abandoned = true;
    }

    fn ask(&self, request: Request, descriptor: Option<BorrowedFd<'_>>) -> Result<(), WatchdogError> {
        let socket = self.socket.as_ref().ok_or(WatchdogError::Lost { source: Errno::PIPE })?;
        ask(socket.as_fd(), request, descriptor).map_err(|source| WatchdogError::Lost { source })
    }

    fn hear(&self, patience: Duration) -> Result<Answer, WatchdogError> {
        let lost = |source| WatchdogError::Lost { source };
        let socket = self.socket.as_ref().ok_or(lost(Errno::PIPE))?;
        match receive(socket.as_fd(), Some(Instant::now() + patience)) {
            Ok(Received::Message(message, _)) => Answer::parse(message).ok_or(lost(Errno::PROTO)),
            Ok(Received::Nothing) => Err(lost(Errno::TIMEDOUT)),
            Ok(Received::End) => Err(lost(Errno::PIPE)),
            Err(error) => Err(lost(error)),
        }
    }
}

fn spawn(program: &Path) -> io::Result<(OwnedFd, Child)> {
    let (here, there) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut command = Command::new(program);
    let name = NAME.to_string_lossy();
    command.arg0(name.as_ref()).arg(name.as_ref()).env_clear();
    command.stdin(Stdio::from(there)).stdout(Stdio::null()).stderr(Stdio::null());
    // The command holds the other end of the socket: as long as it lived, the watchdog's death would go unnoticed.
    let process = command.spawn()?;
    drop(command);
    Ok((here, process))
}

impl Drop for Watchdog {
    /// Without its agent it ends by itself, once everything is thawed. One that holds nothing and yet does not end is killed, so
    /// that no process is left.
    fn drop(&mut self) {
        self.socket = None;
        let end = Instant::now() + END_PATIENCE;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < end {
            sleep(Duration::from_millis(2));
        }
        if !self.is_abandoned {
            // Of no use, but of no harm either, when it has ended.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}
