//! Loop devices, mounts, and a replicator's storage whose power can be cut. Each is undone when it is dropped.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};
use rehost_tests::process::run;

/// A loop device over a file.
#[derive(Debug)]
pub(crate) struct Loop {
    device: PathBuf,
}

impl Loop {
    pub(crate) fn attach(file: &Path) -> Result<Self> {
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(file))
            .with_context(|| format!("attach {} to a loop device (this needs root)", file.display()))?;
        Ok(Self { device: PathBuf::from(device.trim()) })
    }

    pub(crate) fn device(&self) -> &Path {
        &self.device
    }

    /// Bytes that were written to it since it was attached.
    pub(crate) fn written_bytes(&self) -> Result<u64> {
        let fields = statistics(&self.device)?;
        let sectors = fields.get(6).context("the sectors written")?;
        Ok(sectors.parse::<u64>()? * 512)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).output();
    }
}

/// A mounted filesystem.
#[derive(Debug)]
pub(crate) struct Mount {
    at: PathBuf,
}

impl Mount {
    pub(crate) fn device(device: &Path, at: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(at)?;
        run(Command::new("mount").args(["-o", options]).arg(device).arg(at))?;
        Ok(Self { at: at.to_owned() })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What is frozen cannot be unmounted; this fails, harmlessly, on what is not.
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.at).output();
        let plain = Command::new("umount").arg(&self.at).output();
        if !plain.is_ok_and(|output| output.status.success()) {
            let _ = Command::new("umount").arg("-l").arg(&self.at).output();
        }
    }
}

/// Makes an ext4 filesystem that does nothing by itself in the background.
pub(crate) fn make_ext4(on: &Path) -> Result<()> {
    let background = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-b", "4096", "-m", "0", "-J", "size=4", "-E", background]).arg(on);
    run(&mut command)?;
    Ok(())
}

/// The storage of a replicator: a filesystem on a loop device. A power cut leaves of it what the device had got: the
/// page cache is lost.
#[derive(Debug)]
pub(crate) struct Home {
    mount: Option<Mount>,
    device: Option<Loop>,
    folder: PathBuf,
    generation: u32,
}

impl Home {
    /// One of `bytes` in `folder`, mounted at `folder/home`.
    pub(crate) fn make(folder: &Path, bytes: u64) -> Result<Self> {
        let mut home = Self { mount: None, device: None, folder: folder.to_owned(), generation: 0 };
        let image = home.image();
        File::create(&image)?.set_len(bytes)?;
        make_ext4(&image)?;
        home.attach()?;
        Ok(home)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("home")
    }

    /// A file that takes all the room there is. A power cut may undo its removal; then it is removed once more, rather than flushing the
    /// first time, which would flush what the replicator forgets to flush.
    pub(crate) fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// When the files with this extension were last written, and how long they are.
    pub(crate) fn stamps(&self, extension: &str) -> Vec<(PathBuf, Option<SystemTime>, u64)> {
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        let wanted = entries.filter(|path| path.extension().is_some_and(|found| found == extension));
        let stamp = |path: PathBuf| {
            let metadata = fs::metadata(&path).ok()?;
            Some((path, metadata.modified().ok(), metadata.len()))
        };
        wanted.filter_map(stamp).collect()
    }

    /// The journals.
    pub(crate) fn journals(&self) -> Vec<JournalFile> {
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.extension().is_some_and(|end| end == "journal")).map(JournalFile).collect()
    }

    /// Freezes in a file what the device has at this moment. Nobody may be writing; what the kernel itself writes back meanwhile makes
    /// this try again.
    pub(crate) fn capture(&self) -> Result<Captured> {
        let device = self.device.as_ref().context("a home that is attached")?;
        let (from, to) = (self.image(), self.image_of(self.generation + 1));
        for _ in 0..20 {
            let before = written(device.device())?;
            copy_data(&from, &to)?;
            if written(device.device())? == before {
                return Ok(Captured(()));
            }
        }
        anyhow::bail!("{} does not come to rest", device.device().display())
    }

    /// The power is back: what was captured is what there is.
    pub(crate) fn power_cycle(&mut self, _captured: Captured) -> Result<()> {
        self.mount = None;
        self.device = None;
        fs::remove_file(self.image())?;
        self.generation += 1;
        self.attach()?;
        let _ = fs::remove_file(self.filler());
        Ok(())
    }

    fn attach(&mut self) -> Result<()> {
        let device = Loop::attach(&self.image())?;
        self.mount = Some(Mount::device(device.device(), &self.path(), "noatime,commit=60")?);
        self.device = Some(device);
        Ok(())
    }

    fn image(&self) -> PathBuf {
        self.image_of(self.generation)
    }

    fn image_of(&self, generation: u32) -> PathBuf {
        self.folder.join(format!("home-{generation}.img"))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.mount = None;
        self.device = None;
    }
}

/// A replicator's journal; see `docs/journal.md` for its bytes.
#[derive(Debug)]
pub(crate) struct JournalFile(pub(crate) PathBuf);

impl JournalFile {
    /// Where its records begin.
    pub(crate) const RECORDS: u64 = 4096;
    /// Where its header ends.
    pub(crate) const HEADER: u64 = 88;
    const MARK: u64 = 64;

    /// Bytes of records that are durable.
    pub(crate) fn durable(&self) -> u64 {
        let mut mark = [0; 8];
        let read = File::open(&self.0).and_then(|file| file.read_exact_at(&mut mark, Self::MARK));
        read.map_or(0, |()| u64::from_be_bytes(mark).saturating_sub(Self::RECORDS))
    }
}

/// That [`Home::capture`] was done.
#[must_use]
pub(crate) struct Captured(());

/// Requests that a device has completed, and those under way: it rests while these stay the same.
fn written(device: &Path) -> Result<(Option<String>, Option<String>)> {
    let fields = statistics(device)?;
    Ok((fields.get(4).cloned(), fields.get(8).cloned()))
}

/// The fields of a device's `stat`, as the kernel documents them.
fn statistics(device: &Path) -> Result<Vec<String>> {
    let name = device.file_name().context("a device's name")?.to_string_lossy().into_owned();
    let text = fs::read_to_string(format!("/sys/block/{name}/stat"))?;
    Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
}

/// A copy with its holes.
fn copy_data(from: &Path, to: &Path) -> Result<()> {
    let (source, target) = (File::open(from)?, File::create(to)?);
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let (mut at, mut buffer) = (0, vec![0; 1 << 20]);
    while let Ok(data) = rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(data))?;
        at = data;
        while at < end {
            let length = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let piece = buffer.get_mut(..length).unwrap_or_default();
            source.read_exact_at(piece, at)?;
            target.write_all_at(piece, at)?;
            at += length as u64;
        }
    }
    Ok(())
}
