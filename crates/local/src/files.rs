//! Files that are whole after a crash: written beside their place, synced, then moved there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rehost_control::{PortError, PortErrorKind};

/// Files for this user alone.
pub(crate) const PRIVATE: u32 = 0o600;
/// Folders for this user alone.
pub(crate) const PRIVATE_FOLDER: u32 = 0o700;

/// Writes a file whole, readable by this user alone, replacing what was there; durable when this returns.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = draft_path(path)?;
    let written = write_new(&draft, bytes).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // Best effort: the draft's name is its own, it is in nobody's way.
        let _ = fs::remove_file(&draft);
    }
    written?;
    sync_folder_of(path)
}

fn draft_path(path: &Path) -> io::Result<PathBuf> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file stands in a folder"))?;
    let unique = getrandom::u64().map_err(io::Error::other)?;
    Ok(folder.join(format!(".draft-{unique:016x}")))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a change of names in the file's folder durable.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// What failed on which file, and how to mend it.
pub(crate) fn file_error(doing: &str, path: &Path, error: &io::Error) -> PortError {
    use io::ErrorKind as E;
    let (kind, remedy) = match error.kind() {
        E::StorageFull | E::QuotaExceeded => (PortErrorKind::Full, "; make room there"),
        E::PermissionDenied => (PortErrorKind::Denied, "; give this user the right to it"),
        E::ReadOnlyFilesystem => (PortErrorKind::Denied, "; its file system is mounted read-only"),
        E::NotFound => (PortErrorKind::NotFound, "; check that it and its folder exist"),
        E::NotADirectory | E::IsADirectory | E::InvalidInput | E::InvalidFilename => (PortErrorKind::Invalid, ""),
        _ => (PortErrorKind::Unavailable, "; check the disk and the system's log"),
    };
    PortError::new(kind, format!("cannot {doing} {}: {error}{remedy}", path.display()))
}

/// Runs file work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PortError> + Send + 'static,
) -> Result<T, PortError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(PortError::unavailable(format!("file work was cut off: {e}"))))
}
