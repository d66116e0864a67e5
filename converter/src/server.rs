//! A conversion server: the converter as one program among others on a machine that runs anyway, such as an EC2 instance.
//!
//! The request comes from a file and the report goes to one, whole or not at all. The volumes are NVMe disks whose serial numbers are
//! the volumes' ids; where an emulator has them as files of a directory instead, they are attached here as loop devices: one for the disk
//! and one for each partition, since not every kernel divides loop devices by itself.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rehost_model::conversion::{ConversionOutcome, ConversionReport, ConversionRequest, SCHEMA_VERSION};

use crate::attached::{self, Failure, Machine, machine_error, nvme_disks, plain};
use crate::disk::{Disk, Disks};

/// What a conversion server is told.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// A `ConversionRequest` as JSON.
    pub request: PathBuf,
    /// Where the `ConversionReport` goes, as JSON.
    pub report: PathBuf,
    /// Has the volumes as files named by their ids, in place of NVMe disks.
    pub disks: Option<PathBuf>,
    /// How long volumes are waited for.
    pub wait: Duration,
}

/// Converts, and writes the report whatever comes of it.
///
/// # Errors
/// When the report cannot be written.
pub fn run(options: &ServerOptions) -> io::Result<ConversionReport> {
    let started = Instant::now();
    let converted = panic::catch_unwind(AssertUnwindSafe(|| convert(options, started)));
    let mut report = match converted {
        Ok(Ok(report)) => report,
        Ok(Err(failure)) => failure.report(),
        Err(_) => {
            let finding = machine_error("the converter ended unexpectedly", "report this with the server's console");
            ConversionReport::ended(ConversionOutcome::Failed, finding)
        }
    };
    report.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    rustix::fs::sync();
    write_whole(&options.report, &serde_json::to_vec_pretty(&report)?)?;
    Ok(report)
}

fn convert(options: &ServerOptions, started: Instant) -> Result<ConversionReport, Failure> {
    let request = read_request(&options.request)?;
    let mut server = Server::new(options)?;
    attached::convert(&mut server, &request, started)
}

fn read_request(path: &Path) -> Result<ConversionRequest, Failure> {
    let unusable = |why: String| {
        machine_error(format!("the request {}: {why}", path.display()), "launch the conversion server again")
    };
    let bytes = fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let request: ConversionRequest = serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
    if request.schema_version != SCHEMA_VERSION {
        let why = format!("it has schema version {}, this converter knows {SCHEMA_VERSION}", request.schema_version);
        return Err(unusable(why).into());
    }
    if request.disks.is_empty() {
        // All disks there are would include the server's own.
        return Err(unusable("it names no disk".to_owned()).into());
    }
    Ok(request)
}

/// Under another name first, so that nobody ever sees a part of it.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let mut file = File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// The server, with what was made on it for the conversion.
struct Server {
    disks: Option<PathBuf>,
    wait: Duration,
    /// Has the mount point, and names for loop devices as the kernel would give them: `disk0`, `disk0p1`.
    work: PathBuf,
    mount_point: PathBuf,
    loops: Vec<PathBuf>,
    attached: usize,
}

impl Server {
    fn new(options: &ServerOptions) -> Result<Self, Failure> {
        let work = std::env::temp_dir().join(format!("rehost-conversion-{}", std::process::id()));
        let mount_point = work.join("guest");
        fs::create_dir_all(&mount_point).map_err(|error| {
            let cause = format!("cannot make {} to mount the guest at: {error}", mount_point.display());
            machine_error(cause, "run the converter as root; set TMPDIR to a directory that can be written")
        })?;
        let (disks, wait) = (options.disks.clone(), options.wait);
        Ok(Self { disks, wait, work, mount_point, loops: Vec::new(), attached: 0 })
    }

    fn attach_file(&mut self, directory: &Path, serial: &str) -> io::Result<Option<PathBuf>> {
        let names = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
        let is_it = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).map(plain) == Some(plain(serial));
        let Some(file) = names.into_iter().find(is_it) else { return Ok(None) };
        let disk = self.work.join(format!("disk{}", self.attached));
        self.attached += 1;
        self.attach_part(&file, 0, 0, &disk)?;
        let contents = Disk::read(&disk, None)?;
        for partition in contents.volumes.iter().map(|volume| &volume.partition).filter(|p| p.number > 0) {
            self.attach_part(&file, partition.start, partition.bytes, &contents.volume_node(partition.number))?;
        }
        Ok(Some(disk))
    }

    /// Attaches `bytes` bytes (0: all) of a file from `offset` on; `name` becomes a link to the device.
    fn attach_part(&mut self, file: &Path, offset: u64, bytes: u64, name: &Path) -> io::Result<()> {
        let (offset, limit) = (format!("--offset={offset}"), format!("--sizelimit={bytes}"));
        let device = PathBuf::from(losetup(&["--find", "--show", &offset, &limit], file)?.trim());
        self.loops.push(device.clone());
        symlink(device, name)
    }
}

impl Machine for Server {
    fn device(&mut self, serial: &str) -> io::Result<Option<PathBuf>> {
        match self.disks.clone() {
            Some(directory) => self.attach_file(&directory, serial),
            None => Ok(nvme_disks().into_iter().find(|(attached, _)| *attached == plain(serial)).map(|(_, d)| d)),
        }
    }

    fn prepare(&mut self, _: &Disks) {}

    fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    fn patience(&self) -> Duration {
        self.wait
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for device in &self.loops {
            if let Err(error) = losetup(&["--detach"], device) {
                println!("rehost-converter: {}: {error}", device.display());
            }
        }
        // Only if nothing is mounted there any more.
        let removed = fs::remove_dir(&self.mount_point).and_then(|()| fs::remove_dir_all(&self.work));
        if let Err(error) = removed {
            println!("rehost-converter: {}: {error}", self.work.display());
        }
    }
}

fn losetup(arguments: &[&str], file: &Path) -> io::Result<String> {
    let done = Command::new("losetup").args(arguments).arg(file).output()?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    Err(io::Error::other(format!("losetup: {}", String::from_utf8_lossy(&done.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use rehost_model::conversion::{ConversionTarget, RequestedDisk};
    use rehost_model::launch::BootMode;

    use super::*;

    fn options(folder: &Path) -> ServerOptions {
        ServerOptions {
            request: folder.join("request.json"),
            report: folder.join("report.json"),
            disks: Some(folder.to_owned()),
            wait: Duration::ZERO,
        }
    }

    fn request(folder: &Path, disks: Vec<RequestedDisk>) {
        let request = ConversionRequest::new(ConversionTarget::Ec2, BootMode::UseSource, disks);
        fs::write(folder.join("request.json"), serde_json::to_vec(&request).unwrap()).unwrap();
    }

    fn failure(folder: &Path) -> String {
        let report = run(&options(folder)).unwrap();
        assert_eq!(report.outcome, ConversionOutcome::Failed);
        let written = fs::read(folder.join("report.json")).unwrap();
        assert_eq!(serde_json::from_slice::<ConversionReport>(&written).unwrap(), report);
        report.failure().unwrap()
    }

    #[test]
    fn what_cannot_be_converted_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        assert!(failure(folder.path()).contains("request.json"));
        fs::write(folder.path().join("request.json"), "{").unwrap();
        assert!(failure(folder.path()).contains("EOF"));
        request(folder.path(), vec![]);
        assert!(failure(folder.path()).contains("names no disk"));
        let missing = RequestedDisk { serial: "vol0123456789abcdef0".to_owned(), source_device: None };
        request(folder.path(), vec![missing]);
        assert!(failure(folder.path()).contains("vol0123456789abcdef0 is not attached"));
    }
}
