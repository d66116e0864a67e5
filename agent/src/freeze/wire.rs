//! What the agent and its watchdog tell each other: datagrams of eight bytes on a Unix socket.
//!
//! ```text
//!    0       1            4                8
//!   +-------+------------+----------------+
//!   | kind  | 0   0   0  | value, u32 LE  |    Add carries a descriptor besides
//!   +-------+------------+----------------+
//! ```
//! The socket keeps the bounds of messages, and the end of the agent, however it comes, closes it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

const MESSAGE_BYTES: usize = 8;

/// From the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Hold the filesystem of the descriptor that comes with this; its index is the number of those before it.
    Add,
    /// Nothing more is to be held; the time limit in milliseconds. Answered by [`Answer::Ready`].
    Arm(u32),
    /// I am about to freeze the filesystem of this index. The first one starts the clock.
    Try(u32),
    /// I did not freeze it after all.
    NotMine(u32),
    /// I thawed everything. Answered by [`Answer::Done`].
    Disarm,
}

/// From the watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It locked its memory. Comes once, first; 0 if it is out of reach of the OOM killer, else the error that prevents it.
    Hello(u32),
    /// It cannot do its work: `mlockall` failed with this error.
    CannotLock(u32),
    /// So many filesystems are held.
    Ready(u32),
    /// It has let go of everything; so many filesystems were thawed by it.
    Done(u32),
}

impl Request {
    fn parts(self) -> (u8, u32) {
        match self {
            Self::Add => (1, 0),
            Self::Arm(limit) => (2, limit),
            Self::Try(index) => (3, index),
            Self::NotMine(index) => (4, index),
            Self::Disarm => (5, 0),
        }
    }

    pub(crate) fn parse(message: [u8; MESSAGE_BYTES]) -> Option<Self> {
        let (kind, value) = split(message);
        match kind {
            1 => Some(Self::Add),
            2 => Some(Self::Arm(value)),
            3 => Some(Self::Try(value)),
            4 => Some(Self::NotMine(value)),
            5 => Some(Self::Disarm),
            _ => None,
        }
    }
}

impl Answer {
    fn parts(self) -> (u8, u32) {
        match self {
            Self::Hello(errno) => (129, errno),
            Self::CannotLock(errno) => (130, errno),
            Self::Ready(count) => (131, count),
            Self::Done(thawed) => (132, thawed),
        }
    }

    pub(crate) fn parse(message: [u8; MESSAGE_BYTES]) -> Option<Self> {
        let (kind, value) = split(message);
        match kind {
            129 => Some(Self::Hello(value)),
            130 => Some(Self::CannotLock(value)),
            131 => Some(Self::Ready(value)),
            132 => Some(Self::Done(value)),
            _ => None,
        }
    }
}

fn split(message: [u8; MESSAGE_BYTES]) -> (u8, u32) {
    let [kind, _, _, _, a, b, c, d] = message;
    (kind, u32::from_le_bytes([a, b, c, d]))
}

fn join((kind, value): (u8, u32)) -> [u8; MESSAGE_BYTES] {
    let [a, b, c, d] = value.to_le_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

/// Sends a request, without waiting for anything: a watchdog that takes no messages is as good as dead.
pub(crate) fn ask(
    socket: BorrowedFd<'_>,
    request: Request,
    descriptor: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<()> {
    send(socket, join(request.parts()), descriptor.as_slice())
}

/// Sends an answer.
pub(crate) fn answer(socket: BorrowedFd<'_>, answer: Answer) -> rustix::io::Result<()> {
    send(socket, join(answer.parts()), &[])
}

fn send(
    socket: BorrowedFd<'_>,
    message: [u8; MESSAGE_BYTES],
    descriptors: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::NOBUFS);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(&message)], &mut control, flags).map(|_| ())
}

/// What a socket had to say.
#[derive(Debug)]
pub(crate) enum Received {
    Message([u8; MESSAGE_BYTES], Option<OwnedFd>),
    /// Nothing came in time.
    Nothing,
    /// Nobody is there any more.
    End,
}

/// Waits for a message until `deadline`, or for ever; one of another length counts as the end.
pub(crate) fn receive(socket: BorrowedFd<'_>, deadline: Option<Instant>) -> rustix::io::Result<Received> {
    if !wait(socket, deadline)? {
        return Ok(Received::Nothing);
    }
    let mut message = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut control, flags);
    match received {
        Ok(received) if received.bytes == MESSAGE_BYTES => {}
        Ok(_) | Err(Errno::CONNRESET) => return Ok(Received::End),
        Err(error) => return Err(error),
    }
    let descriptor = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(Received::Message(message, descriptor))
}

/// Whether there is something to receive before `deadline`.
fn wait(socket: BorrowedFd<'_>, deadline: Option<Instant>) -> rustix::io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
        match poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], left.as_ref()) {
            Err(Errno::INTR) => {}
            other => return other.map(|ready| ready > 0),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), tv_nsec: duration.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn messages_come_as_they_were_sent() {
        let (here, there) = pair();
        for request in [Request::Add, Request::Arm(2000), Request::Try(1), Request::NotMine(u32::MAX), Request::Disarm]
        {
            ask(here.as_fd(), request, None).unwrap();
            let Received::Message(message, None) = receive(there.as_fd(), None).unwrap() else { panic!("no message") };
            assert_eq!((Request::parse(message), Answer::parse(message)), (Some(request), None));
        }
        for sent in [Answer::Hello(13), Answer::CannotLock(1), Answer::Ready(3), Answer::Done(1)] {
            answer(there.as_fd(), sent).unwrap();
            let Received::Message(message, None) = receive(here.as_fd(), None).unwrap() else { panic!("no message") };
            assert_eq!((Answer::parse(message), Request::parse(message)), (Some(sent), None));
        }
    }

    #[test]
    fn descriptors_travel_and_name_the_same_file() {
        let (here, there) = pair();
        let directory = tempfile::tempdir().unwrap();
        let opened = std::fs::File::open(directory.path()).unwrap();
        ask(here.as_fd(), Request::Add, Some(opened.as_fd())).unwrap();
        let Received::Message(_, Some(got)) = receive(there.as_fd(), None).unwrap() else { panic!("no descriptor") };
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(got.as_fd()), inode(opened.as_fd()));
    }

    #[test]
    fn silence_and_the_end_are_told_apart() {
        let (here, there) = pair();
        assert!(matches!(receive(there.as_fd(), Some(Instant::now())), Ok(Received::Nothing)));
        ask(here.as_fd(), Request::Disarm, None).unwrap();
        drop(here);
        assert!(matches!(receive(there.as_fd(), None), Ok(Received::Message(..))));
        assert!(matches!(receive(there.as_fd(), None), Ok(Received::End)));
    }

    #[test]
    fn nonsense_is_no_message() {
        assert_eq!(Request::parse([0; 8]), None);
        assert_eq!(Answer::parse([5, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
