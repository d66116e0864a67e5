//! Freezing and thawing a filesystem, and signals that are not to end the process.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

/// `_IOWR('X', 119, int)` of linux/fs.h; the argument is not looked at.
const FIFREEZE: Opcode = opcode::read_write::<libc::c_int>(b'X', 119);
/// `_IOWR('X', 120, int)`.
const FITHAW: Opcode = opcode::read_write::<libc::c_int>(b'X', 120);

/// Freezes the filesystem that the descriptor lies on: what is dirty is written, and who writes next waits.
///
/// # Errors
/// `EBUSY` when it is frozen already, `EOPNOTSUPP` when it cannot be.
pub(crate) fn freeze(filesystem: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // SAFETY: the kernel's handler takes no argument, so that there is nothing that it could read or write.
    unsafe { ioctl(filesystem, NoArg::<FIFREEZE>::new()) }
}

/// Thaws it again.
///
/// # Errors
/// `EINVAL` when it is not frozen.
pub(crate) fn thaw(filesystem: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // SAFETY: as above.
    unsafe { ioctl(filesystem, NoArg::<FITHAW>::new()) }
}

/// Lets the signals that ask a process to end pass by, for the rest of its life.
///
/// # Errors
/// The kernel's.
pub(crate) fn ignore_polite_signals() -> io::Result<()> {
    for signal in
        [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2]
    {
        // SAFETY: SIG_IGN runs no code of ours, and each number is that of a signal which may be ignored.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
