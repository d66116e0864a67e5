//! Objects as files below one folder; the key is the path.
//!
//! Keys are relative paths of the characters `A-Z a-z 0-9 . _ - = + @ :`, at most 1024 of them and 255 in one segment; no
//! segment is empty or begins with a dot. So no key leaves the folder, and none meets the drafts of objects being written.
//! No key may be a parent of another (`a` and `a/b`).

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rehost_control::PortError;
use rehost_control::ports::{Objects, PortResult};

use crate::files::{PRIVATE_FOLDER, blocking, file_error, sync_folder_of, write_private};

const MAX_KEY: usize = 1024;
const MAX_SEGMENT: usize = 255;

/// [`Objects`] in a folder.
#[derive(Debug, Clone)]
pub struct FileObjects {
    root: PathBuf,
}

impl FileObjects {
    /// Objects below this folder, which is made when the first object is written.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn path(&self, key: &str) -> PortResult<PathBuf> {
        let sound = key.len() <= MAX_KEY && key.split('/').all(is_segment);
        if sound { Ok(self.root.join(key)) } else { Err(refused(key)) }
    }
}

fn is_segment(segment: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._-=+@:".contains(&c);
    !segment.is_empty() && segment.len() <= MAX_SEGMENT && !segment.starts_with('.') && segment.bytes().all(allowed)
}

fn refused(key: &str) -> PortError {
    let shown: String = key.chars().take(80).collect();
    PortError::invalid(format!("{shown:?} is no key of an object: a relative path of letters, digits and `._-=+@:`"))
}

#[async_trait]
impl Objects for FileObjects {
    async fn put(&self, key: &str, bytes: Vec<u8>) -> PortResult<()> {
        let path = self.path(key)?;
        blocking(move || put(&path, &bytes).map_err(|e| file_error("write the object", &path, &e))).await
    }

    async fn get(&self, key: &str) -> PortResult<Option<Vec<u8>>> {
        let path = self.path(key)?;
        blocking(move || unless_absent(fs::read(&path)).map_err(|e| file_error("read the object", &path, &e))).await
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        let path = self.path(key)?;
        blocking(move || delete(&path).map_err(|e| file_error("delete the object", &path, &e))).await
    }
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(folder)?;
    }
    write_private(path, bytes)
}

fn delete(path: &Path) -> io::Result<()> {
    match unless_absent(fs::remove_file(path))? {
        Some(()) => sync_folder_of(path),
        None => Ok(()),
    }
}

/// `None` for what does not exist; also where a file stands in the place of a folder of the key.
fn unless_absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rehost_control::contract;

    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        contract::objects::suite(&FileObjects::new(folder.path().join("objects"))).await;
    }

    #[tokio::test]
    async fn objects_are_private_and_drafts_do_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let objects = FileObjects::new(folder.path().join("objects"));
        objects.put("ca/key.sealed", vec![1]).await.unwrap();
        let names: Vec<_> =
            fs::read_dir(folder.path().join("objects/ca")).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(fs::metadata(&names[0]).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn drafts_cannot_be_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = FileObjects::new(folder.path().to_owned()).get(".draft-0").await.unwrap_err();
        assert!(error.message.contains(".draft-0"), "{error}");
    }

    #[tokio::test]
    async fn a_key_below_another_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let objects = FileObjects::new(folder.path().to_owned());
        objects.put("a", vec![1]).await.unwrap();
        assert!(objects.put("a/b", vec![2]).await.is_err());
        assert_eq!(objects.get("a").await, Ok(Some(vec![1])));
        assert_eq!(objects.get("a/b").await, Ok(None));
    }
}
