//! Small files that survive a power cut, and errors that name the file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rehost_control::ports::PortResult;
use rehost_control::{PortError, PortErrorKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Ends the name of a file that is being written; it never counts.
pub(super) const PARTIAL: &str = ".partial";

/// Only the region's own user may read what is written.
const PRIVATE: u32 = 0o600;

/// The error of `doing` something with `path`: what, where, and how to mend it.
pub(super) fn io_error(doing: &str, path: &Path, error: &io::Error) -> PortError {
    use io::ErrorKind;
    let path = path.display();
    let (kind, remedy) = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            (PortErrorKind::Full, "free space on its file system, then try again")
        }
        ErrorKind::FileTooLarge => {
            (PortErrorKind::Quota, "put the region's home on a file system that allows larger files")
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            (PortErrorKind::Denied, "run `rehost serve` as the user who owns the region's home")
        }
        _ => (PortErrorKind::Unavailable, "check the disk that holds the region's home"),
    };
    PortError::new(kind, format!("cannot {doing} {path}: {error}; {remedy}"))
}

/// Reads `length` bytes from `offset` on.
pub(super) fn read_at(path: &Path, offset: u64, length: usize) -> PortResult<Vec<u8>> {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = vec![0; length];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, offset));
    read.map(|()| bytes).map_err(|e| io_error("read", path, &e))
}

/// Writes a file whole or not at all, durably: contents, then name.
pub(super) fn write_durable(path: &Path, bytes: &[u8]) -> PortResult<()> {
    let partial = with_suffix(path, PARTIAL);
    let written = write_new(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    if let Err(error) = written {
        // Half a file is of no use to anybody; the first error is the one to tell.
        let _ = fs::remove_file(&partial);
        return Err(io_error("write", path, &error));
    }
    sync_parent(path)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// [`write_durable`] of a value as JSON.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> PortResult<()> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| PortError::invalid(format!("{}: {e}", path.display())))?;
    write_durable(path, &bytes)
}

/// A value from a JSON file; `None` when there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> PortResult<Option<T>> {
    let Some(bytes) = read_if_there(path)? else { return Ok(None) };
    let damaged = |e| {
        let path = path.display();
        PortError::invalid(format!("{path} cannot be understood: {e}; restore it, or remove it with what it describes"))
    };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// A file's bytes; `None` when there is no such file.
pub(super) fn read_if_there(path: &Path) -> PortResult<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("read", path, &e)),
    }
}

/// The names in a directory that end in `suffix`, without it, in order.
pub(super) fn names_with_suffix(directory: &Path, suffix: &str) -> PortResult<Vec<String>> {
    let mut names: Vec<String> =
        names(directory)?.iter().filter_map(|name| name.strip_suffix(suffix).map(str::to_owned)).collect();
    names.sort();
    Ok(names)
}

/// The names in a directory; none when it does not exist.
pub(super) fn names(directory: &Path) -> PortResult<Vec<String>> {
    let failed = |e: io::Error| io_error("list", directory, &e);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let name = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(failed)
    };
    entries.map(name).collect()
}

/// Removes a file; a success when there is none.
pub(super) fn remove_file(path: &Path) -> PortResult<()> {
    ignore_missing(fs::remove_file(path)).map_err(|e| io_error("remove", path, &e))
}

/// Removes a directory with all that is in it; a success when there is none.
pub(super) fn remove_tree(path: &Path) -> PortResult<()> {
    ignore_missing(fs::remove_dir_all(path)).map_err(|e| io_error("remove", path, &e))?;
    sync_parent(path)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a directory that only the region's user may enter, and those above it.
pub(super) fn make_directory(path: &Path) -> PortResult<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| io_error("make", path, &e))
}

/// Makes the names in the directory of `path` durable.
pub(super) fn sync_parent(path: &Path) -> PortResult<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(|e| io_error("sync", parent, &e))
}

/// Makes a file larger, durably; what is new of it is a hole.
pub(super) fn grow(path: &Path, size_bytes: u64) -> PortResult<()> {
    let grown = File::options().write(true).open(path).and_then(|file| {
        if file.metadata()?.len() < size_bytes {
            file.set_len(size_bytes)?;
        }
        file.sync_all()
    });
    grown.map_err(|e| io_error("grow", path, &e))
}

/// Makes a file's contents durable, whoever wrote them.
pub(super) fn sync_file(path: &Path) -> PortResult<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| io_error("sync", path, &e))
}

/// `path` with `suffix` after its last character.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes what an earlier run left half-written in a directory.
pub(super) fn remove_partial(directory: &Path) -> PortResult<()> {
    for name in names_with_suffix(directory, PARTIAL)? {
        remove_file(&directory.join(format!("{name}{PARTIAL}")))?;
    }
    Ok(())
}
