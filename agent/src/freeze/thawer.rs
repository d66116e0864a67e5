//! The watchdog itself: the process behind `rehost-agent thaw-watchdog`.
//!
//! It holds descriptors of what the agent is about to freeze, and thaws them when the time is over or the agent is gone.
//! Everything that could keep it from that is dealt with before it says hello: its memory is locked and stays so, the OOM killer
//! passes it by (where it may say so), it has a session of its own and lets every polite signal pass by. Once armed it allocates
//! nothing, opens nothing and writes nothing; its name is not the agent's, so that `pkill -9 rehost-agent` does not take both.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::stdio::stdin;

use super::MAX_FILESYSTEMS;
use super::wire::{Answer, Received, Request, answer, receive};
use crate::sys;

/// Its name in the process list, and its first argument.
pub(crate) const NAME: &std::ffi::CStr = c"thaw-watchdog";

/// Between two attempts to thaw, when the time is over and the agent may still be about to freeze.
const RETRY: Duration = Duration::from_millis(10);

/// Attempts for a filesystem that cannot be thawed although it is frozen, before it is left alone.
const LAST_ATTEMPTS: u32 = 60_000;

/// Serves the agent at the other end of standard input until it is gone, and everything that it froze is thawed.
#[must_use]
pub fn run_thaw_watchdog() -> ExitCode {
    let socket = stdin();
    let hello = protect_itself();
    let told = answer(socket, hello);
    if !matches!(hello, Answer::Hello(_)) || told.is_err() {
        return ExitCode::FAILURE;
    }
    let mut thawer = Thawer::new(socket);
    thawer.serve();
    thawer.thaw_to_the_end();
    ExitCode::SUCCESS
}

fn protect_itself() -> Answer {
    // None of these is vital. A terminal or a process group that ends must not take the watchdog along.
    let _ = rustix::process::setsid();
    let _ = rustix::process::set_parent_process_death_signal(None);
    let _ = rustix::process::chdir("/");
    let _ = rustix::thread::set_name(NAME);
    let _ = rustix::process::nice(-20);
    let _ = sys::freeze::ignore_polite_signals();
    let spared = fs::write("/proc/self/oom_score_adj", "-1000");
    match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        Ok(()) => {
            Answer::Hello(spared.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO).unsigned_abs(), |()| 0))
        }
        Err(error) => Answer::CannotLock(error.raw_os_error().unsigned_abs()),
    }
}

struct Held {
    filesystem: OwnedFd,
    /// The agent froze it, or was about to.
    is_agents: bool,
}

struct Thawer<'a> {
    socket: BorrowedFd<'a>,
    held: Vec<Held>,
    limit: Duration,
    /// Set from the first freeze on.
    deadline: Option<Instant>,
    thawed: u32,
}

impl<'a> Thawer<'a> {
    fn new(socket: BorrowedFd<'a>) -> Self {
        let held = Vec::with_capacity(MAX_FILESYSTEMS);
        Self { socket, held, limit: Duration::ZERO, deadline: None, thawed: 0 }
    }

    /// Returns when the agent is gone.
    fn serve(&mut self) {
        // Past the deadline it looks again and again: the agent may be inside a freeze that ends only later.
        while let Ok(received) = receive(self.socket, self.next_look()) {
            match received {
                Received::Message(message, descriptor) => match Request::parse(message) {
                    Some(request) => self.follow(request, descriptor),
                    None => return,
                },
                Received::Nothing => self.thaw(),
                Received::End => return,
            }
        }
    }

    fn next_look(&self) -> Option<Instant> {
        self.deadline.map(|deadline| if self.is_late() { Instant::now() + RETRY } else { deadline })
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    fn follow(&mut self, request: Request, descriptor: Option<OwnedFd>) {
        match (request, descriptor) {
            (Request::Add, Some(filesystem)) if self.held.len() < MAX_FILESYSTEMS => {
                self.held.push(Held { filesystem, is_agents: false });
            }
            (Request::Arm(limit), _) => {
                self.limit = Duration::from_millis(limit.into());
                self.tell(Answer::Ready(u32::try_from(self.held.len()).unwrap_or(u32::MAX)));
            }
            (Request::Try(index), _) => {
                self.deadline.get_or_insert_with(|| Instant::now() + self.limit);
                self.mark(index, true);
            }
            (Request::NotMine(index), _) => self.mark(index, false),
            (Request::Disarm, _) => self.disarm(),
            (Request::Add, _) => {}
        }
    }

    fn mark(&mut self, index: u32, is_agents: bool) {
        let held = usize::try_from(index).ok().and_then(|index| self.held.get_mut(index));
        if let Some(held) = held {
            held.is_agents = is_agents;
        }
    }

    fn disarm(&mut self) {
        let thawed = std::mem::take(&mut self.thawed);
        self.held.clear();
        self.deadline = None;
        self.tell(Answer::Done(thawed));
    }

    /// An agent that does not listen is noticed by its end.
    fn tell(&self, news: Answer) {
        let _ = answer(self.socket, news);
    }

    /// Thaws what the agent froze, in the opposite order; once, for the next freeze may be somebody else's.
    fn thaw(&mut self) {
        for held in self.held.iter_mut().rev().filter(|held| held.is_agents) {
            if sys::freeze::thaw(held.filesystem.as_fd()).is_ok() {
                held.is_agents = false;
                self.thawed = self.thawed.saturating_add(1);
            }
        }
    }

    /// The agent is gone, and with it every freeze that was under way: what can be thawed now stays thawed.
    fn thaw_to_the_end(&mut self) {
        self.held.retain(|held| held.is_agents);
        for _ in 0..LAST_ATTEMPTS {
            self.held.retain(|held| !is_thawed(held));
            if self.held.is_empty() {
                return;
            }
            sleep(RETRY);
        }
    }
}

/// Thaws it; `EINVAL` says that it is not frozen.
fn is_thawed(held: &Held) -> bool {
    matches!(sys::freeze::thaw(held.filesystem.as_fd()), Ok(()) | Err(Errno::INVAL))
}
