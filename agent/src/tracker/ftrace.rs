//! The tracker for kernels without BTF: a private ftrace instance reports completed requests, and marks are kept in memory.
//!
//! An instance has a ring buffer of its own, which nobody else reads or fills. A thread empties it, and so does whoever wants
//! to know what is marked *now*. What the ring could not take, the kernel counts. Marks do not outlive the agent.

mod event;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use rehost_model::replication::TrackerKind;
use rehost_protocol::Lineage;
use rustix::fs::OFlags;

use self::event::{Event, Report};
use super::{
    ByteRange, DiskTracker, MarksLost, Pass, TrackedDisk, TrackerOptions, device::BlockDevice, geometry::Geometry,
    marks::Marks, mounts::TRACEFS,
};
use crate::system::{names, text};

const TRACING: &str = "/sys/kernel/tracing";
/// Where older kernels have it.
const OLD_TRACING: &str = "/sys/kernel/debug/tracing";

/// KiB of ring buffers of all CPUs together, and at least this much for each. An event takes some 60 bytes.
const RING_KIB: u64 = 16 * 1024;
const LEAST_RING_KIB: u64 = 256;

/// How often the ring is emptied.
const PERIOD: Duration = Duration::from_millis(100);

const READ_BYTES: usize = 64 * 1024;

/// Why there is no such tracker.
#[derive(Debug, thiserror::Error)]
pub(super) enum FtraceError {
    #[error("the disk has no request queue, and its bios cannot be followed without eBPF")]
    NoRequests,
    #[error("{path} cannot be used: {source}")]
    Instance { path: String, source: io::Error },
}

/// Marks of one disk, set by what an ftrace instance reports.
#[derive(Debug)]
pub(super) struct FtraceTracker {
    ring: Arc<Mutex<Ring>>,
    covered: Option<Lineage>,
    /// Dropped first: it ends the thread.
    stop: Option<mpsc::Sender<()>>,
    reader: Option<JoinHandle<()>>,
    /// Removed last, when nobody has a file of it open.
    _instance: Instance,
}

impl FtraceTracker {
    pub(super) fn open(
        disk: &TrackedDisk,
        device: &BlockDevice,
        options: &TrackerOptions,
    ) -> Result<Self, FtraceError> {
        if !device.has_requests {
            return Err(FtraceError::NoRequests);
        }
        let name = format!("{}{}", prefix(options), disk.volume.as_str());
        let path = tracing().join("instances").join(name);
        let failed = |source| FtraceError::Instance { path: path.display().to_string(), source };
        let instance = Instance::make(&path, device).map_err(failed)?;
        let ring = Ring::open(disk, device, &path, options.map_bytes).map_err(failed)?;
        let ring = Arc::new(Mutex::new(ring));
        let (stop, stopped) = mpsc::channel();
        let reader = thread::Builder::new().name("ftrace".to_owned());
        let reader = reader.spawn({
            let ring = Arc::clone(&ring);
            move || {
                while stopped.recv_timeout(PERIOD) == Err(mpsc::RecvTimeoutError::Timeout) {
                    lock(&ring).drain();
                }
            }
        });
        let reader = Some(reader.map_err(failed)?);
        Ok(Self { ring, covered: None, stop: Some(stop), reader, _instance: instance })
    }

    /// The ring, emptied.
    fn now(&mut self) -> Result<MutexGuard<'_, Ring>, MarksLost> {
        let mut ring = lock(&self.ring);
        ring.drain();
        match ring.check() {
            Ok(()) => Ok(ring),
            Err(lost) => {
                self.covered = None;
                Err(lost)
            }
        }
    }
}

impl Drop for FtraceTracker {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A reader that panicked has nothing to say; the instance goes as well when its files are closed.
        let _ = self.reader.take().map(JoinHandle::join);
        lock(&self.ring).pipe = None;
    }
}

impl DiskTracker for FtraceTracker {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Ftrace
    }

    fn granule_bytes(&self) -> u64 {
        lock(&self.ring).marks.geometry().granule_bytes()
    }

    fn covers(&self, lineage: &Lineage) -> bool {
        self.covered.as_ref() == Some(lineage)
    }

    fn cover(&mut self, lineage: &Lineage) {
        self.covered = Some(*lineage);
    }

    fn uncover(&mut self) {
        self.covered = None;
    }

    fn collect(&mut self, pass: Pass) -> Result<(), MarksLost> {
        self.now()?.marks.collect(pass);
        Ok(())
    }

    fn pending(&self) -> Vec<ByteRange> {
        lock(&self.ring).marks.pending()
    }

    fn settle(&mut self, range: ByteRange, pass: Pass) {
        lock(&self.ring).marks.settle(range, pass);
    }

    fn is_quiet(&mut self) -> Result<bool, MarksLost> {
        Ok(self.now()?.marks.is_quiet())
    }

    fn backlog_bytes(&self) -> u64 {
        lock(&self.ring).marks.backlog_bytes()
    }
}

/// Removes what agents that were killed left of this server, and tracefs if one of them mounted it.
pub(super) fn forget(options: &TrackerOptions) {
    let instances = tracing().join("instances");
    for name in names(&instances).iter().filter(|name| name.starts_with(&prefix(options))) {
        Instance(instances.join(name)).remove();
    }
    TRACEFS.release(Path::new(TRACING));
}

/// The disks of this server of which an agent that was killed left something.
pub(super) fn volumes(options: &TrackerOptions) -> Vec<rehost_model::VolumeId> {
    let volume = |name: &String| name.strip_prefix(&prefix(options))?.parse().ok();
    names(tracing().join("instances")).iter().filter_map(volume).collect()
}

/// Removes what an agent that was killed left of one disk.
pub(super) fn forget_volume(options: &TrackerOptions, volume: &rehost_model::VolumeId) {
    let name = format!("{}{}", prefix(options), volume.as_str());
    Instance(tracing().join("instances").join(name)).remove();
}

fn prefix(options: &TrackerOptions) -> String {
    format!("rehost-{}-", options.server.as_str())
}

fn tracing() -> PathBuf {
    let (new, old) = (Path::new(TRACING), Path::new(OLD_TRACING));
    if !TRACEFS.is_at(new) && old.join("instances").exists() { old.into() } else { new.into() }
}

/// A directory of tracefs that stands for a private ring buffer; it goes when this is dropped.
#[derive(Debug)]
struct Instance(PathBuf);

impl Instance {
    fn make(path: &Path, device: &BlockDevice) -> io::Result<Self> {
        if path.starts_with(TRACING) {
            TRACEFS.ensure(Path::new(TRACING))?;
        }
        let instance = Self(path.to_owned());
        // One that is there was left by an agent that was killed.
        instance.remove();
        fs::create_dir(path)?;
        let cpus = names(path.join("per_cpu")).len() as u64;
        let ring = (RING_KIB / cpus.max(1)).max(LEAST_RING_KIB);
        instance.set("buffer_size_kb", &ring.to_string())?;
        // Without it every line begins with the name of a process, which takes room. It is no harm.
        let _ = instance.set("options/context-info", "0");
        let number = device.major << 20 | device.minor;
        let filter = format!("dev == {number} && nr_sector != 0 && !(rwbs ~ \"R*\")");
        instance.set("events/block/block_rq_complete/filter", &filter)?;
        instance.set("events/block/block_rq_complete/enable", "1")?;
        Ok(instance)
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.0.join(file), value)
    }

    fn remove(&self) {
        if self.0.exists() {
            // What cannot be removed, since somebody reads it, is at least silent.
            let _ = self.set("events/enable", "0");
            let _ = fs::remove_dir(&self.0);
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The reading end of the instance, and the marks that come of it.
#[derive(Debug)]
struct Ring {
    disk: String,
    device: BlockDevice,
    /// None when it is closed.
    pipe: Option<File>,
    cpus: Vec<PathBuf>,
    marks: Marks<Box<[AtomicU64]>>,
    /// What was read of a line that is not whole yet.
    partial: Vec<u8>,
    /// Events that the kernel dropped, as counted when the marks were last known to be whole.
    dropped: u64,
    /// Something happened after which marks may be missing.
    fault: Option<String>,
}

impl Ring {
    fn open(disk: &TrackedDisk, device: &BlockDevice, instance: &Path, map_bytes: u64) -> io::Result<Self> {
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let pipe = OpenOptions::new().read(true).custom_flags(nonblocking).open(instance.join("trace_pipe"))?;
        let cpus =
            names(instance.join("per_cpu")).into_iter().map(|cpu| instance.join("per_cpu").join(cpu).join("stats"));
        Ok(Self {
            disk: disk.path.display().to_string(),
            device: device.clone(),
            pipe: Some(pipe),
            cpus: cpus.collect(),
            marks: Marks::in_memory(Geometry::fitting(disk.size_bytes, map_bytes)),
            partial: Vec::new(),
            dropped: 0,
            fault: None,
        })
    }

    /// Marks what was reported until now. (Not what is reported meanwhile: a busy disk would keep it here.)
    fn drain(&mut self) {
        let mut expected = self.count(&["entries"]);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let read = self.pipe.as_ref().map_or(Ok(0), |mut pipe| pipe.read(&mut buffer));
            match read {
                Ok(0) => return,
                Ok(length) => {
                    let lines = self.take(buffer.get(..length).unwrap_or_default());
                    expected = expected.saturating_sub(lines);
                    if expected == 0 {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.fault = Some(format!("the trace cannot be read: {error}"));
                    return;
                }
            }
        }
    }

    /// Takes a piece of the trace; says how many lines it completed.
    fn take(&mut self, piece: &[u8]) -> u64 {
        let mut text = std::mem::take(&mut self.partial);
        text.extend_from_slice(piece);
        let mut lines = 0;
        let mut rest = text.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            self.line(&String::from_utf8_lossy(line));
            rest = after.get(1..).unwrap_or_default();
            lines += 1;
        }
        self.partial = rest.to_vec();
        lines
    }

    fn line(&mut self, line: &str) {
        match Report::parse(line) {
            Report::Completed(event) => self.completed(event),
            Report::Other => {}
            Report::Unknown => self.fault = Some(format!("the trace says {line:?}")),
        }
    }

    fn completed(&mut self, Event { major, minor, is_discard, range }: Event) {
        if (major, minor) != (self.device.major, self.device.minor) {
            return;
        }
        if is_discard && self.device.discards_many() {
            self.fault = Some("of a discard of many places only the first is reported".to_owned());
        }
        self.marks.mark(range);
    }

    /// Fails if an event may have been missed since this was asked last.
    fn check(&mut self) -> Result<(), MarksLost> {
        let dropped = self.count(&["overrun", "commit overrun", "dropped events"]);
        let before = std::mem::replace(&mut self.dropped, dropped);
        let overrun = || (dropped != before).then(|| format!("{} events were dropped", dropped.wrapping_sub(before)));
        match self.fault.take().or_else(overrun) {
            Some(reason) => Err(MarksLost { disk: self.disk.clone(), reason }),
            None => Ok(()),
        }
    }

    /// The sum of these counts over all CPUs.
    fn count(&self, counts: &[&str]) -> u64 {
        let stats = self.cpus.iter().filter_map(text);
        stats.map(|stats| event::counts(&stats, counts)).fold(0, u64::saturating_add)
    }
}

/// A thread that panicked left the marks as they were.
fn lock(ring: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}
