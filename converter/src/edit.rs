//! Edits: what the rules ask for, and the one place where the guest is changed.
//!
//! Rules return edits as data, so that a dry run can say exactly what would be done. Each edit says the state that it wants;
//! a rule asks for none where the guest is in that state already, which is what makes a second run find nothing to do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rehost_model::conversion::{Action, Finding, Severity};

use crate::root::Root;

/// A change of one file. Paths are the guest's, absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// The file has these contents. Owner, mode and extended attributes of an existing file stay.
    Write { path: String, contents: Vec<u8> },
    /// There is nothing of this name; the original is kept as a backup.
    Retire { path: String },
    /// There is nothing of this name, nor anything below; nothing is kept.
    Remove { path: String },
    /// The name is a symbolic link to `target`.
    Link { path: String, target: String },
    /// `tail` follows the first `keep` bytes of the file. The original is what remains when the tail is cut off: no copy is
    /// kept of what may be the largest files of a small `/boot`.
    Append { path: String, keep: u64, tail: Vec<u8> },
}

impl Edit {
    /// The file that is changed.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Write { path, .. }
            | Self::Retire { path }
            | Self::Remove { path }
            | Self::Link { path, .. }
            | Self::Append { path, .. } => path,
        }
    }

    /// Where the original will be kept, if there is one to keep.
    fn backup(&self, root: &Root) -> Option<String> {
        let keeps = matches!(self, Self::Write { .. } | Self::Retire { .. });
        (keeps && root.exists(self.path())).then(|| backup_path(self.path()))
    }
}

/// What a rule proposes.
#[derive(Debug, Default)]
pub struct Proposal {
    /// In the order in which they are to be carried out.
    pub edits: Vec<Planned>,
    pub findings: Vec<Finding>,
}

/// An edit with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub rule: &'static str,
    pub description: String,
    pub edit: Edit,
}

impl Planned {
    /// For the report.
    #[must_use]
    pub fn action(&self, root: &Root) -> Action {
        Action {
            rule: self.rule.to_owned(),
            description: self.description.clone(),
            path: self.edit.path().to_owned(),
            backup: self.edit.backup(root),
        }
    }
}

/// A proposal seen by one rule: it adds in its own name.
pub(crate) struct Proposer<'a> {
    pub(crate) rule: &'static str,
    pub(crate) root: &'a Root,
    pub(crate) proposal: &'a mut Proposal,
}

impl Proposer<'_> {
    pub(crate) fn edit(&mut self, edit: Edit, description: impl Into<String>) {
        self.proposal.edits.push(Planned { rule: self.rule, description: description.into(), edit });
    }

    /// Asks for these contents, unless the file has them.
    pub(crate) fn write(&mut self, path: &str, contents: impl Into<Vec<u8>>, description: impl Into<String>) {
        let contents = contents.into();
        if self.root.read(path).ok().flatten().as_ref() != Some(&contents) {
            self.edit(Edit::Write { path: path.to_owned(), contents }, description);
        }
    }

    /// Asks that the file goes, original kept, if it is there.
    pub(crate) fn retire(&mut self, path: &str, description: impl Into<String>) {
        if self.root.has_name(path) {
            self.edit(Edit::Retire { path: path.to_owned() }, description);
        }
    }

    /// Asks that the file or directory goes for good, if it is there.
    pub(crate) fn remove(&mut self, path: &str, description: impl Into<String>) {
        if self.root.has_name(path) {
            self.edit(Edit::Remove { path: path.to_owned() }, description);
        }
    }

    /// Asks for a symbolic link, if nothing has its name.
    pub(crate) fn link(&mut self, path: &str, target: &str, description: impl Into<String>) {
        if !self.root.has_name(path) {
            self.edit(Edit::Link { path: path.to_owned(), target: target.to_owned() }, description);
        }
    }

    pub(crate) fn info(&mut self, cause: impl Into<String>, remedy: impl Into<String>) {
        self.finding(Severity::Info, cause, remedy);
    }

    pub(crate) fn warning(&mut self, cause: impl Into<String>, remedy: impl Into<String>) {
        self.finding(Severity::Warning, cause, remedy);
    }

    pub(crate) fn error(&mut self, cause: impl Into<String>, remedy: impl Into<String>) {
        self.finding(Severity::Error, cause, remedy);
    }

    fn finding(&mut self, severity: Severity, cause: impl Into<String>, remedy: impl Into<String>) {
        self.proposal.findings.push(Finding::new(severity, self.rule, cause, remedy));
    }
}

/// An edit that could not be carried out.
#[derive(Debug, thiserror::Error)]
#[error("cannot change {path}: {source}")]
pub struct EditError {
    pub path: String,
    pub source: io::Error,
}

/// Carries out one edit.
///
/// # Errors
/// [`EditError`]; the file is then as it was, or as it was asked for.
pub fn apply(root: &Root, edit: &Edit) -> Result<(), EditError> {
    let done = match edit {
        Edit::Write { path, contents } => write(root, path, contents),
        Edit::Retire { path } => keep_original(root, path).and_then(|()| remove(root, path)),
        Edit::Remove { path } => remove(root, path),
        Edit::Link { path, target } => link(root, path, target),
        Edit::Append { path, keep, tail } => append(root, path, *keep, tail),
    };
    done.map_err(|source| EditError { path: edit.path().to_owned(), source })
}

/// Where the original of a file is kept: beside it, with `.rehost-orig`. In directories whose every file is read as configuration
/// (`interfaces.d`, `conf.d`, …) the name also begins with a dot, which shells' and daemons' wildcards pass over.
#[must_use]
pub fn backup_path(path: &str) -> String {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let hidden = if directory.ends_with(".d") { "." } else { "" };
    format!("{directory}/{hidden}{name}.rehost-orig")
}

/// The first original is kept: that of an earlier conversion is older than what is there now.
fn keep_original(root: &Root, path: &str) -> io::Result<()> {
    let backup = backup_path(path);
    if !root.exists(path) || root.has_name(&backup) {
        return Ok(());
    }
    let source = root.resolve(path)?;
    let mut original = File::open(&source)?;
    replace(&root.resolve_parent(&backup)?, Some(&source), |file| io::copy(&mut original, file).map(drop))
}

fn write(root: &Root, path: &str, contents: &[u8]) -> io::Result<()> {
    keep_original(root, path)?;
    let target = root.resolve(path)?;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let like = target.exists().then(|| target.clone());
    replace(&target, like.as_deref(), |file| file.write_all(contents))
}

/// Writes a file whole or not at all: under another name, then renamed. Owner, mode and attributes are those of `like`.
fn replace(target: &Path, like: Option<&Path>, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".rehost-new");
    let temporary = target.with_file_name(name);
    let _ = fs::remove_file(&temporary);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
        fill(&mut file)?;
        if let Some(like) = like {
            copy_attributes(like, &file, &temporary)?;
        }
        file.sync_all()?;
        fs::rename(&temporary, target)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn copy_attributes(like: &Path, file: &File, path: &Path) -> io::Result<()> {
    let metadata = like.metadata()?;
    let now = file.metadata()?;
    if (metadata.uid(), metadata.gid()) != (now.uid(), now.gid()) {
        std::os::unix::fs::fchown(file, Some(metadata.uid()), Some(metadata.gid()))?;
    }
    if metadata.mode() != now.mode() {
        file.set_permissions(fs::Permissions::from_mode(metadata.mode()))?;
    }
    copy_extended_attributes(like, path);
    Ok(())
}

/// Labels and ACLs, as far as the file system takes them: vfat has none.
fn copy_extended_attributes(from: &Path, to: &Path) {
    let mut names = vec![0u8; 64 << 10];
    let Ok(length) = rustix::fs::listxattr(from, &mut names) else { return };
    for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0u8; 64 << 10];
        if let Ok(length) = rustix::fs::getxattr(from, name, &mut value) {
            let value = value.get(..length).unwrap_or_default();
            let _ = rustix::fs::setxattr(to, name, value, rustix::fs::XattrFlags::empty());
        }
    }
}

fn remove(root: &Root, path: &str) -> io::Result<()> {
    let path = root.resolve_parent(path)?;
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

fn link(root: &Root, path: &str, target: &str) -> io::Result<()> {
    let path: PathBuf = root.resolve_parent(path)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let _ = fs::remove_file(&path);
    std::os::unix::fs::symlink(target, path)
}

/// What follows a file's name while something is appended to it: a file with the length that it had before. A machine that is cut
/// off leaves it, and whoever comes next knows where the original ends.
const UNFINISHED: &str = ".rehost-append";

/// The length that a file had before an append that was cut off.
pub(crate) fn length_before_append(root: &Root, path: &str) -> Option<u64> {
    root.text(&format!("{path}{UNFINISHED}"))?.trim().parse().ok()
}

fn append(root: &Root, path: &str, keep: u64, tail: &[u8]) -> io::Result<()> {
    let note = root.resolve_parent(&format!("{path}{UNFINISHED}"))?;
    replace(&note, None, |file| file.write_all(keep.to_string().as_bytes()))?;
    append_tail(root, path, keep, tail)?;
    fs::remove_file(note)
}

fn append_tail(root: &Root, path: &str, keep: u64, tail: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(root.resolve(path)?)?;
    let before = file.metadata()?.len();
    file.set_len(keep)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(keep))?;
    let written = file.write_all(tail).and_then(|()| file.sync_all());
    if written.is_err() && before == keep {
        file.set_len(keep)?;
    }
    written
}

#[cfg(test)]
mod tests;
