//! One process at a time serves a region.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rehost_control::PortError;
use rehost_control::ports::PortResult;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::files::{PRIVATE, file_error};

/// Holds the lock until it is dropped, or its process ends in whatever way.
#[derive(Debug)]
pub(super) struct RegionLock {
    _file: File,
}

impl RegionLock {
    pub(super) fn take(path: &Path) -> PortResult<Self> {
        let failed = |e: std::io::Error| file_error("lock the region with", path, &e);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(PRIVATE).open(path);
        let mut file = open.map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(held(path, &mut file)),
            Err(e) => return Err(failed(e.into())),
        }
        let noted = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        noted.map_err(failed)?;
        Ok(Self { _file: file })
    }
}

fn held(path: &Path, file: &mut File) -> PortError {
    let mut pid = String::new();
    // Only for the message; the holder may just be writing it.
    let _ = file.take(20).read_to_string(&mut pid);
    let holder = match pid.trim() {
        "" => "another process".to_owned(),
        pid => format!("the process {pid}"),
    };
    let home = path.parent().unwrap_or(path).display();
    PortError::conflict(format!("the region at {home} is already served by {holder}; stop that one first"))
}
