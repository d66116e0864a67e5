//! A source with a filesystem that is always in use: numbered records are appended and synced one by one, other files come and go,
//! and one block is overwritten without a pause. It is never quiet, so its checkpoints need a freeze; a copy must mount, be clean,
//! and hold the records without a gap.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rehost_tests::process::run;
use rehost_tests::random::Random;

use crate::failure::{Failure, Kind, Outcome};
use crate::storage::{Loop, Mount};

const RECORD: usize = 4096;
/// The records, one after the other.
const RECORDS: &str = "records";
/// The number of the newest record, written and synced after it.
const NEWEST: &str = "newest";
/// Between two writes of the restless block: less than what reading a pass takes.
const RESTLESS: Duration = Duration::from_micros(120);
/// More do not fit beside the rest.
const MOST_RECORDS: usize = 1200;
/// So many other files come and go.
const OTHERS: u64 = 40;

/// A thread that writes to the filesystem.
pub(crate) struct FileWriter {
    shared: Arc<Shared>,
    folder: PathBuf,
    threads: Vec<JoinHandle<Result<()>>>,
}

struct Shared {
    seed: u64,
    /// Times that the restless block was overwritten.
    overwritten: AtomicU64,
    /// Records that are synced.
    done: AtomicUsize,
    stopping: AtomicBool,
}

impl FileWriter {
    /// Starts to write in `folder`.
    pub(crate) fn start(folder: &Path, seed: u64) -> Result<Self> {
        let shared = Arc::new(Shared {
            seed,
            overwritten: AtomicU64::new(0),
            done: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        let files = Files::open(folder)?;
        let restless = File::create_new(folder.join("restless"))?;
        let (one, other) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![thread::spawn(move || one.write(files)), thread::spawn(move || other.overwrite(&restless))];
        Ok(Self { shared, folder: folder.to_owned(), threads })
    }

    /// Records that are synced.
    pub(crate) fn done(&self) -> usize {
        self.shared.done.load(Ordering::SeqCst)
    }

    /// Stops it after the record that is under way.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let ended = self.threads.drain(..).map(JoinHandle::join).collect::<Vec<_>>();
        ended.into_iter().try_for_each(|ended| ended.map_err(|_| anyhow::anyhow!("a writer panicked"))?)
    }

    /// How often the restless block was overwritten: few of these times it has to travel.
    pub(crate) fn overwritten(&self) -> u64 {
        self.shared.overwritten.load(Ordering::SeqCst)
    }

    /// How many records a copy of the disk holds: from the first on, without a gap, each with every byte right.
    ///
    /// # Errors
    /// [`Kind::Torn`] if the copy's filesystem or its records are damaged; [`Kind::Lost`] if there are fewer than `least`.
    pub(crate) fn moment(&self, volume: &[u8], scratch: &Path, least: usize) -> Outcome<usize> {
        let image = scratch.join("copy.img");
        fs::write(&image, volume)?;
        let held = self.look(&image, &scratch.join("copy"));
        fs::remove_file(&image)?;
        let held = held?;
        match held >= least {
            true => Ok(held),
            false => {
                Err(Failure::new(Kind::Lost, format!("{held} records, but {least} are in an acknowledged checkpoint")))
            }
        }
    }

    fn look(&self, image: &Path, at: &Path) -> Outcome<usize> {
        let device = Loop::attach(image)?;
        let torn = |error: anyhow::Error| Failure::new(Kind::Torn, format!("the copy: {error:#}"));
        let mount = Mount::device(device.device(), at, "noatime").map_err(torn)?;
        let (records, newest) =
            (fs::read(at.join(RECORDS)).unwrap_or_default(), fs::read(at.join(NEWEST)).unwrap_or_default());
        drop(mount);
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(device.device())).map_err(|error| torn(error.into()))?;
        let held = records.len() / RECORD;
        let bad = records.chunks(RECORD).enumerate().position(|(at, found)| found != self.shared.record(at + 1));
        if let Some(at) = bad {
            return Err(Failure::new(
                Kind::Torn,
                format!("record {} of {held} in the copy is not what was written", at + 1),
            ));
        }
        let newest =
            newest.first_chunk::<8>().map_or(0, |bytes| usize::try_from(u64::from_le_bytes(*bytes)).unwrap_or(0));
        match newest <= held && held <= newest + 1 {
            true => Ok(held),
            false => Err(Failure::new(
                Kind::Torn,
                format!("{held} records in the copy, but the newest is said to be {newest}"),
            )),
        }
    }

    /// Whether a file can be written and synced now. Blocks for as long as the filesystem is frozen.
    pub(crate) fn probe(&self) -> JoinHandle<std::io::Result<()>> {
        let path = self.folder.join("probe");
        thread::spawn(move || {
            let mut file = File::create(&path)?;
            file.write_all(b"thawed")?;
            file.sync_all()
        })
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        // Whatever was done to the filesystem, a frozen one would never let the thread end.
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.folder).output();
        let _ = self.stop();
    }
}

struct Files {
    folder: PathBuf,
    records: File,
    newest: File,
}

impl Files {
    fn open(folder: &Path) -> Result<Self> {
        let open = |name: &str| {
            File::options()
                .create_new(true)
                .write(true)
                .open(folder.join(name))
                .with_context(|| format!("create {name}"))
        };
        fs::create_dir(folder.join("others"))?;
        Ok(Self { folder: folder.to_owned(), records: open(RECORDS)?, newest: open(NEWEST)? })
    }

    fn append(&self, number: usize, record: &[u8]) -> std::io::Result<()> {
        self.records.write_all_at(record, (number as u64 - 1) * RECORD as u64)?;
        self.records.sync_data()?;
        self.newest.write_all_at(&(number as u64).to_le_bytes(), 0)?;
        self.newest.sync_data()
    }

    /// Files come, grow, get other names and go, and nobody waits for them to be durable.
    fn stir(&self, random: &mut Random) -> std::io::Result<()> {
        let name = |number: u64| self.folder.join("others").join(number.to_string());
        let (one, other) = (name(random.below(OTHERS)), name(random.below(OTHERS)));
        match random.below(3) {
            0 if one.exists() => fs::remove_file(one),
            1 if one.exists() => fs::rename(one, other),
            _ => {
                let mut bytes = vec![0; usize::try_from(random.below(12_000)).unwrap_or(0)];
                random.fill(&mut bytes);
                fs::write(one, bytes)
            }
        }
    }
}

impl Shared {
    fn record(&self, number: usize) -> Vec<u8> {
        let mut record = vec![0; RECORD];
        Random::new(self.seed ^ (number as u64) << 20).fill(&mut record);
        record
    }

    fn overwrite(&self, file: &File) -> Result<()> {
        let mut block = vec![0; RECORD];
        while !self.stopping.load(Ordering::SeqCst) {
            let number = self.overwritten.fetch_add(1, Ordering::SeqCst);
            block.fill(number.to_le_bytes()[0]);
            file.write_all_at(&block, 0)?;
            file.sync_data()?;
            thread::sleep(RESTLESS);
        }
        Ok(())
    }

    fn write(&self, files: Files) -> Result<()> {
        let mut random = Random::new(self.seed);
        let mut number = 0;
        while !self.stopping.load(Ordering::SeqCst) {
            if number < MOST_RECORDS {
                number += 1;
                files.append(number, &self.record(number))?;
                self.done.store(number, Ordering::SeqCst);
            }
            files.stir(&mut random)?;
            // A run that takes long, on a busy machine, must not run out of records.
            let pace = 1 + number as u64 / 200;
            thread::sleep(Duration::from_micros(pace * (3000 + random.below(15_000))));
        }
        Ok(())
    }
}
