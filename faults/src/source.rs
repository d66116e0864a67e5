//! The disks that are replicated and who writes to them: records on bare disks, or files on a filesystem.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rehost_model::VolumeId;

use crate::failure::Outcome;
use crate::files::FileWriter;
use crate::history::{BLOCK, History};
use crate::spec::DiskSpec;
use crate::storage::{Loop, Mount, make_ext4};
use crate::writer::{Pace, Writer};

const DISKS: usize = 2;
const DISK_BLOCKS: usize = (8 << 20) / BLOCK;

/// What is written to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Records on two bare disks, in bursts.
    Records(Pace),
    /// The same on image files, which cannot be tracked: they are compared by digests.
    Images(Pace),
    /// Files on one disk with ext4.
    Files,
}

/// The disks and their writer; the parts end in the order in which they stand here.
pub(crate) struct Source {
    writer: Activity,
    mount: Option<Mount>,
    images: Vec<PathBuf>,
    loops: Vec<Loop>,
}

enum Activity {
    Records(Writer),
    Files(FileWriter),
}

impl Source {
    /// Makes the disks in `folder`, their volumes in `folder/home`, and starts to write.
    pub(crate) fn start(folder: &Path, work: Work, seed: u64) -> Outcome<(Self, Vec<DiskSpec>)> {
        match work {
            Work::Records(pace) | Work::Images(pace) => {
                Self::records(folder, pace, matches!(work, Work::Records(_)), seed)
            }
            Work::Files => Self::files(folder, seed),
        }
    }

    fn records(folder: &Path, pace: Pace, devices: bool, seed: u64) -> Outcome<(Self, Vec<DiskSpec>)> {
        let history = History::new(seed, DISKS, DISK_BLOCKS);
        let mut images = Vec::new();
        for (at, bytes) in history.initial.iter().enumerate() {
            images.push(folder.join(format!("source-{at}.img")));
            fs::write(images.last().context("an image")?, bytes)?;
        }
        let loops = if devices { attach(&images)? } else { Vec::new() };
        let paths = if devices { paths(&loops) } else { images.clone() };
        let disks = make_volumes(folder, &paths, &images)?;
        let writer = Activity::Records(Writer::start(history, &paths, devices, pace, seed ^ 1)?);
        Ok((Self { writer, mount: None, images, loops }, disks))
    }

    fn files(folder: &Path, seed: u64) -> Outcome<(Self, Vec<DiskSpec>)> {
        let images = vec![folder.join("source-0.img")];
        let image = images.first().context("an image")?;
        // What no file uses is filled too: were everything sent again, it would show.
        fs::write(image, History::new(seed, 1, 2 * DISK_BLOCKS).initial.concat())?;
        make_ext4(image)?;
        let loops = attach(&images)?;
        let paths = paths(&loops);
        let disks = make_volumes(folder, &paths, &images)?;
        let at = folder.join("source");
        let mount = Mount::device(paths.first().context("a device")?, &at, "noatime")?;
        let writer = Activity::Files(FileWriter::start(&at, seed)?);
        Ok((Self { writer, mount: Some(mount), images, loops }, disks))
    }

    /// Writes that are durable.
    pub(crate) fn done(&self) -> usize {
        match &self.writer {
            Activity::Records(writer) => writer.done(),
            Activity::Files(writer) => writer.done(),
        }
    }

    /// Whether the writer pauses.
    pub(crate) fn rest(&self, rest: bool) {
        if let Activity::Records(writer) = &self.writer {
            writer.rest(rest);
        }
    }

    /// How many writes are in these volumes, which must be exactly one state of the source, with at least `least` of them.
    pub(crate) fn moment(&self, volumes: &[Vec<u8>], scratch: &Path, least: usize) -> Outcome<usize> {
        match &self.writer {
            Activity::Records(writer) => writer.history().moment(volumes, least),
            Activity::Files(writer) => writer.moment(volumes.first().context("a volume")?, scratch, least),
        }
    }

    /// The filesystem's writer, if there is a filesystem.
    pub(crate) fn file_writer(&self) -> Option<&FileWriter> {
        match &self.writer {
            Activity::Records(_) => None,
            Activity::Files(writer) => Some(writer),
        }
    }

    /// Stops writing, and lets nothing be left in memory.
    pub(crate) fn stop(&mut self) -> Outcome {
        match &mut self.writer {
            Activity::Records(writer) => drop(writer.stop()?),
            Activity::Files(writer) => writer.stop()?,
        }
        self.mount = None;
        Ok(())
    }

    /// Bytes written to the disks that must travel, each time that they are written.
    pub(crate) fn written(&self) -> Outcome<u64> {
        match &self.writer {
            Activity::Records(writer) => {
                Ok(writer.history().writes.iter().map(|write| (write.blocks * BLOCK) as u64).sum())
            }
            Activity::Files(writer) => {
                let all = self.loops.iter().map(Loop::written_bytes).sum::<Result<u64>>()?;
                Ok(all.saturating_sub(writer.overwritten() * BLOCK as u64))
            }
        }
    }

    /// How often one block was overwritten, which is not among these bytes.
    pub(crate) fn overwritten(&self) -> u64 {
        self.file_writer().map_or(0, FileWriter::overwritten)
    }

    /// What the disks are now.
    pub(crate) fn disks(&self) -> Outcome<Vec<Vec<u8>>> {
        self.images.iter().map(|image| Ok(fs::read(image)?)).collect()
    }
}

fn attach(images: &[PathBuf]) -> Result<Vec<Loop>> {
    images.iter().map(|image| Loop::attach(image)).collect()
}

fn paths(loops: &[Loop]) -> Vec<PathBuf> {
    loops.iter().map(|device| device.device().to_owned()).collect()
}

fn make_volumes(folder: &Path, sources: &[PathBuf], images: &[PathBuf]) -> Outcome<Vec<DiskSpec>> {
    let mut disks = Vec::new();
    for (at, (source, image)) in sources.iter().zip(images).enumerate() {
        let (target, size_bytes) = (folder.join(format!("home/volume-{at}.img")), fs::metadata(image)?.len());
        let file = fs::File::create(&target)?;
        file.set_len(size_bytes)?;
        // That the volumes exist is the control plane's word: it survives a power cut.
        file.sync_all()?;
        disks.push(DiskSpec { source: source.clone(), volume: VolumeId::generate(), size_bytes, target });
    }
    fs::File::open(folder.join("home"))?.sync_all()?;
    Ok(disks)
}
