//! The conversion machine: the converter as its first and only program (`/init`).
//!
//! The request stands on the kernel's command line, the volumes are NVMe disks whose serial numbers are the volumes' ids, the
//! report goes to the second serial line (`ttyS1`; see [`rehost_model::conversion`]). Whatever happens, it ends with a report and with
//! the power off: nobody is there to type at a prompt.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rehost_model::conversion::{ConversionOutcome, ConversionReport, ConversionRequest, RequestedDisk, frame_report};
use rustix::mount::{MountFlags, mount};

use crate::attached::{self, Failure, Machine, machine_error, nvme_disks, plain};
use crate::disk::{Content, Disks};
use crate::initramfs::MODULE_DIRECTORY;

const GUEST: &str = "/guest";
const REPORT_LINE: &str = "/dev/ttyS1";
const DISK_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// How often the machine shows that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Whether this process is a machine's first program.
#[must_use]
pub fn is_init() -> bool {
    std::process::id() == 1 && std::env::args().next().as_deref() == Some("/init")
}

/// Converts, reports, powers off.
pub fn run() -> ! {
    let started = Instant::now();
    // Who waits for the report tells by this that the machine has booted.
    println!("rehost-converter: begins");
    let converted = panic::catch_unwind(AssertUnwindSafe(|| {
        mount_kernel_file_systems()?;
        alive_while(|| convert(started))
    }));
    let mut report = match converted {
        Ok(Ok(report)) => report,
        Ok(Err(failure)) => failure.report(),
        Err(_) => {
            let finding = machine_error("the converter ended unexpectedly", "report this with the machine's console");
            ConversionReport::ended(ConversionOutcome::Failed, finding)
        }
    };
    report.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if let Err(error) = deliver(&report) {
        println!("rehost-converter: the report could not be written: {error}");
    }
    rustix::fs::sync();
    loop {
        let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
        thread::sleep(Duration::from_secs(1));
    }
}

fn mount_kernel_file_systems() -> Result<(), Failure> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = fs::create_dir(target);
        mount(kind, target, kind, MountFlags::empty(), None)
            .map_err(|error| machine_error(format!("cannot mount {target}: {error}"), "use Debian's cloud kernel"))?;
    }
    Ok(())
}

/// Writes newlines to the report's line while `work` goes on. Under emulation a machine now and then waits for ever for a timer that
/// was lost; whoever waits for the report knows by this that it does not.
fn alive_while<T>(work: impl FnOnce() -> T) -> T {
    let (working, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut line = OpenOptions::new().write(true).open(REPORT_LINE).ok();
            while ended.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                let _ = line.as_mut().map(|line| line.write_all(b"\n"));
            }
        });
        let done = work();
        drop(working);
        done
    })
}

fn convert(started: Instant) -> Result<ConversionReport, Failure> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut request = ConversionRequest::from_kernel_command_line(&line)
        .map_err(|error| machine_error(error.to_string(), "launch the conversion machine again"))?;
    if request.disks.is_empty() {
        request.disks = all_disks()?;
    }
    attached::convert(&mut Init, &request, started)
}

/// All disks that there are: with a request that names none.
fn all_disks() -> Result<Vec<RequestedDisk>, Failure> {
    let deadline = Instant::now() + DISK_TIMEOUT;
    loop {
        let disks = nvme_disks();
        if !disks.is_empty() {
            return Ok(disks.into_iter().map(|(serial, _)| RequestedDisk { serial, source_device: None }).collect());
        }
        if Instant::now() >= deadline {
            return Err(machine_error("no disk is attached", "attach the server's volumes as NVMe disks").into());
        }
        thread::sleep(POLL);
    }
}

/// The machine whose first program this is.
struct Init;

impl Machine for Init {
    fn device(&mut self, serial: &str) -> io::Result<Option<PathBuf>> {
        let found = nvme_disks().into_iter().find(|(attached, _)| *attached == plain(serial));
        Ok(found.map(|(_, device)| device))
    }

    fn prepare(&mut self, disks: &Disks) {
        if disks.volumes().any(|(_, volume)| volume.holds(Content::Vfat)) {
            load_modules();
        }
    }

    fn mount_point(&self) -> &Path {
        Path::new(GUEST)
    }

    fn patience(&self) -> Duration {
        DISK_TIMEOUT
    }
}

/// Loads the modules of the EFI system partition's file system. If one fails, so will the mount, which says so.
fn load_modules() {
    let order = fs::read_to_string(format!("{MODULE_DIRECTORY}/order")).unwrap_or_default();
    for name in order.lines() {
        let loaded = File::open(format!("{MODULE_DIRECTORY}/{name}"))
            .and_then(|file| rustix::system::finit_module(&file, c"", 0).map_err(io::Error::from));
        if let Err(error) = loaded {
            println!("rehost-converter: module {name}: {error}");
        }
    }
}

/// To the second serial line; where there is none, to the console among its messages.
fn deliver(report: &ConversionReport) -> io::Result<()> {
    let framed = frame_report(report).map_err(io::Error::other)?;
    let Ok(mut line) = OpenOptions::new().write(true).open(REPORT_LINE) else {
        return io::stdout().write_all(framed.as_bytes());
    };
    if let Err(error) = line.write_all(framed.as_bytes()).and_then(|()| Ok(rustix::termios::tcdrain(&line)?)) {
        println!("rehost-converter: {REPORT_LINE}: {error}");
        return io::stdout().write_all(framed.as_bytes());
    }
    println!("rehost-converter: {:?} in {} ms, {} edits", report.outcome, report.duration_ms, report.actions.len());
    Ok(())
}
