//! A small disk of our own, in memory: a loop device over a memfd.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
/// The device lets go of its file when it is closed for the last time, also if we are killed.
const AUTOCLEAR: u32 = 4;
/// Somebody else may take the free device first.
const ATTEMPTS: u32 = 8;

/// The disk; it is gone when this and every other descriptor of it is closed.
#[derive(Debug)]
pub(crate) struct LoopDisk {
    path: PathBuf,
    file: File,
}

/// The kernel's `loop_config`, with the one member of `loop_info64` that is used.
#[repr(C)]
struct Configuration {
    file: u32,
    block_size: u32,
    places: [u64; 5],
    number_and_encryption: [u32; 3],
    flags: u32,
    names_and_keys: [u8; 160],
    init: [u64; 2],
    reserved: [u64; 8],
}

impl LoopDisk {
    /// A disk of zeros.
    ///
    /// # Errors
    /// No loop devices here, or no right to them.
    pub(crate) fn new(bytes: u64) -> io::Result<Self> {
        let memory = memfd_create("rehost-self-test", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, bytes)?;
        let mut failure = io::Error::from(io::ErrorKind::ResourceBusy);
        for _ in 0..ATTEMPTS {
            match Self::try_new(&memory) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => failure = error,
                done => return done,
            }
        }
        Err(failure)
    }

    /// Its path in `/dev`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Open for reading and writing.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    fn try_new(memory: &OwnedFd) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        // SAFETY: this request takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let configuration = Configuration {
            file: memory.as_raw_fd().cast_unsigned(),
            block_size: 0,
            places: [0; 5],
            number_and_encryption: [0; 3],
            flags: AUTOCLEAR,
            names_and_keys: [0; 160],
            init: [0; 2],
            reserved: [0; 8],
        };
        // SAFETY: the argument is a loop_config, which the kernel reads during the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), LOOP_CONFIGURE, &raw const configuration) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { path, file }) }
    }
}

/// What the kernel expects: 8 bytes, a loop_info64 of 232, 64 reserved.
const _: () = assert!(size_of::<Configuration>() == 304);
