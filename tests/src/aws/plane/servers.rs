//! Instances: replication servers as processes, conversion servers and copies as machines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use super::super::wire::first;
use super::{Inner, lock, loopback};
use crate::accelerator::Accelerator;
use crate::error::{Context, Error, Result};
use crate::machine::{Firmware, Machine, MachineSpec};
use crate::negative::copy_sparse;
use crate::paths;
use crate::process::{Running, on_one_cpu, run};

/// How long a conversion may take, on a busy host without KVM.
const CONVERSION_LIMIT: Duration = Duration::from_secs(900);

const REPORT_BEGINS: &str = "-----BEGIN REHOST REPORT-----";
const REPORT_ENDS: &str = "-----END REHOST REPORT-----";

/// What an instance is made of.
#[derive(Debug)]
pub(super) enum Server {
    Replication { _process: Running },
    Conversion(Conversion),
    Copy(Copy),
}

/// A conversion server: it waits for its volumes, then works in a thread.
#[derive(Debug)]
pub(super) struct Conversion {
    bucket: String,
    prefix: String,
    wanted: BTreeSet<String>,
    attached: BTreeSet<String>,
    stop: Arc<AtomicBool>,
    work: Option<JoinHandle<()>>,
}

/// A launched copy and its disks.
#[derive(Debug)]
pub(super) struct Copy {
    machine: Option<Machine>,
    disks: Vec<PathBuf>,
}

/// A registered image, of which the emulator forgets most.
#[derive(Debug, Clone)]
pub(super) struct Image {
    snapshots: Vec<PathBuf>,
    firmware: Firmware,
}

impl Server {
    pub(super) fn disks(&self) -> Vec<PathBuf> {
        if let Self::Copy(copy) = self { copy.disks.clone() } else { Vec::new() }
    }

    pub(super) fn console(&self) -> Option<String> {
        if let Self::Copy(Copy { machine: Some(machine), .. }) = self { Some(machine.serial_text()) } else { None }
    }
}

impl Drop for Conversion {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Its own thread ends the instance when it is done: it cannot wait for itself.
        let other = |work: &JoinHandle<()>| work.thread().id() != thread::current().id();
        if let Some(work) = self.work.take().filter(other) {
            let _ = work.join();
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.machine = None;
        for disk in &self.disks {
            let _ = fs::remove_file(disk);
        }
    }
}

impl Inner {
    pub(super) fn launch(self: &Arc<Self>, form: &BTreeMap<String, String>, answer: &str) -> Result<()> {
        let id = first(answer, "instanceId").ok_or_else(|| Error::Unexpected(format!("no instance's id: {answer}")))?;
        if let Some(theirs) = first(answer, "privateIpAddress") {
            lock(&self.addresses).insert(theirs.to_owned(), loopback(id));
        }
        let user_data = form.get("UserData").and_then(|text| BASE64.decode(text).ok()).unwrap_or_default();
        let user_data = String::from_utf8_lossy(&user_data);
        let image = form.get("ImageId").and_then(|id| lock(&self.images).get(id).cloned());
        let server = if user_data.contains("CONFIG_BASE64=") {
            self.replication_server(id, &user_data)?
        } else if user_data.contains("PREFIX='conversions/") {
            self.conversion_server(id, &user_data)?
        } else if let Some(image) = image {
            self.copy(id, &image)?
        } else {
            return Ok(());
        };
        self.servers().insert(id.to_owned(), server);
        Ok(())
    }

    pub(super) fn end(&self, id: &str) {
        let ended = self.servers().remove(id);
        if ended.is_some() {
            self.say(&format!("{id}: ends"));
        }
        // Not under the lock: a conversion's thread may be waiting for it.
        drop(ended);
        let _ = fs::remove_dir_all(self.folder.join("instances").join(id));
    }

    /// As its user data: the program from the bucket, its digest checked, and the configuration.
    fn replication_server(&self, id: &str, user_data: &str) -> Result<Server> {
        let folder = self.instance_folder(id)?;
        let program = self.program(&folder, assigned(user_data, "BUCKET")?, "rehost-replicator")?;
        let config = folder.join("config.json");
        write_secret(&config, &self.replicator_config(id, &folder, user_data)?)?;
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(&config).current_dir(&folder);
        let process = Running::start(&mut command, &folder.join("replicator.log"))?;
        self.say(&format!("{id}: replication server at {}, process {}", loopback(id), process.pid()));
        Ok(Server::Replication { _process: process })
    }

    /// What differs from the instance's own: an address of its own in place of all addresses, a folder in place of NVMe devices.
    fn replicator_config(&self, id: &str, folder: &Path, user_data: &str) -> Result<String> {
        let unfit = |e: String| Error::Unexpected(format!("the replicator's configuration in the user data: {e}"));
        let text = BASE64.decode(assigned(user_data, "CONFIG_BASE64")?).map_err(|e| unfit(e.to_string()))?;
        let mut config: Value = serde_json::from_slice(&text).map_err(|e| unfit(e.to_string()))?;
        let port = config["listen"].as_str().and_then(|listen| listen.rsplit(':').next()).unwrap_or("1500").to_owned();
        let state = folder.join("state");
        fs::create_dir_all(&state).context(|| format!("create {}", state.display()))?;
        config["listen"] = format!("{}:{port}", loopback(id)).into();
        config["stateDir"] = state.display().to_string().into();
        config["volumesDirectory"] = self.disks.volumes().display().to_string().into();
        Ok(config.to_string())
    }

    fn program(&self, folder: &Path, bucket: &str, name: &str) -> Result<PathBuf> {
        for file in [name.to_owned(), format!("{name}.sha256")] {
            let key = format!("software/{file}");
            let bytes = self.emulators.s3.object(bucket, &key)?;
            let bytes = bytes.ok_or_else(|| Error::Unexpected(format!("there is no object {key} in {bucket}")))?;
            let path = folder.join(&file);
            fs::write(&path, bytes).context(|| format!("write {}", path.display()))?;
        }
        let mut check = Command::new("sha256sum");
        run(check.args(["--check", "--strict", "--quiet", &format!("{name}.sha256")]).current_dir(folder))?;
        let program = folder.join(name);
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&program, executable).context(|| format!("prepare {}", program.display()))?;
        Ok(program)
    }

    fn conversion_server(&self, id: &str, user_data: &str) -> Result<Server> {
        let (bucket, prefix) = (assigned(user_data, "BUCKET")?.to_owned(), assigned(user_data, "PREFIX")?.to_owned());
        let wanted = self.task(&bucket, &prefix)?["volumes"].as_array().cloned().unwrap_or_default();
        let wanted = wanted.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        self.say(&format!("{id}: conversion server for {prefix}"));
        Ok(Server::Conversion(Conversion {
            bucket,
            prefix,
            wanted,
            attached: BTreeSet::new(),
            stop: Arc::default(),
            work: None,
        }))
    }

    fn task(&self, bucket: &str, prefix: &str) -> Result<Value> {
        let key = format!("{prefix}/spec.json");
        let bytes = self.emulators.s3.object(bucket, &key)?;
        let bytes = bytes.ok_or_else(|| Error::Unexpected(format!("there is no object {key} in {bucket}")))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Unexpected(format!("{key}: {e}")))
    }

    pub(super) fn attached(self: &Arc<Self>, instance: &str, volume: &str) -> Result<()> {
        let mut servers = self.servers();
        let Some(Server::Conversion(conversion)) = servers.get_mut(instance) else { return Ok(()) };
        conversion.attached.insert(volume.to_owned());
        if conversion.work.is_some() || !conversion.wanted.is_subset(&conversion.attached) {
            return Ok(());
        }
        let (inner, id, stop) = (Arc::clone(self), instance.to_owned(), Arc::clone(&conversion.stop));
        let (bucket, prefix) = (conversion.bucket.clone(), conversion.prefix.clone());
        let work = move || {
            let converted = inner.convert(&id, &bucket, &prefix, &stop);
            inner.say(&match &converted {
                Ok(()) => format!("{id}: converted, its report is in the bucket"),
                Err(error) => format!("{id}: the conversion failed: {error}"),
            });
            inner.shut_down(&id);
        };
        let name = format!("conversion {instance}");
        let work = thread::Builder::new().name(name).spawn(work).context(|| "start a conversion".to_owned())?;
        conversion.work = Some(work);
        Ok(())
    }

    pub(super) fn detached(&self, instance: &str, volume: &str) {
        if let Some(Server::Conversion(conversion)) = self.servers().get_mut(instance) {
            conversion.attached.remove(volume);
        }
    }

    /// Boots the converter on the volumes, under the serial numbers that they have on Nitro instances.
    fn convert(&self, id: &str, bucket: &str, prefix: &str, stop: &AtomicBool) -> Result<()> {
        let folder = self.instance_folder(id)?;
        let task = self.task(bucket, prefix)?;
        let program = self.program(&folder, bucket, "rehost-converter")?;
        let mut command = self.conversion_machine(&folder, &program, &task)?;
        let mut machine = Running::start(&mut command, &folder.join("qemu.log"))?;
        let started = std::time::Instant::now();
        while machine.try_wait()?.is_none() {
            if stop.load(Ordering::Relaxed) || started.elapsed() > CONVERSION_LIMIT {
                return Err(Error::Unexpected("it was ended before it left a report".to_owned()));
            }
            thread::sleep(Duration::from_millis(100));
        }
        let report = self.report(&folder)?;
        self.emulators.s3.put_object(bucket, &format!("{prefix}/report.json"), report.as_bytes())
    }

    fn conversion_machine(&self, folder: &Path, converter: &Path, task: &Value) -> Result<Command> {
        let package = conversion_kernel()?;
        let initramfs = folder.join("initramfs");
        let mut build = Command::new(converter);
        run(build.arg("build-initramfs").arg("--kernel").arg(&package).arg("--output").arg(&initramfs))?;
        let mut request = task.clone();
        if let Some(members) = request.as_object_mut() {
            members.remove("volumes");
        }
        // On one processor, as the local region does it and for the same reason (crates/local/src/compute/conversion.rs).
        let mut command = on_one_cpu("qemu-system-x86_64");
        command
            .args(Accelerator::choose().arguments())
            .args(["-M", "q35", "-smp", "1", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-kernel"])
            .arg(kernel_in(&package)?)
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 no_timer_check rehost.request={}", hex(&request))])
            .args(["-serial", &format!("file:{}", folder.join("console.log").display())])
            .args(["-serial", &format!("file:{}", folder.join("report.log").display())]);
        let volumes = task["volumes"].as_array().cloned().unwrap_or_default();
        for (index, volume) in volumes.iter().filter_map(Value::as_str).enumerate() {
            let file = self.disks.volume(volume);
            let drive = format!("file={},format=raw,if=none,id=disk{index},cache=unsafe", file.display());
            let device = format!("nvme,drive=disk{index},serial={}", volume.replace('-', ""));
            command.args(["-drive", &drive, "-device", &device]);
        }
        Ok(command)
    }

    fn report(&self, folder: &Path) -> Result<String> {
        let read = |name: &str| String::from_utf8_lossy(&fs::read(folder.join(name)).unwrap_or_default()).into_owned();
        let printed = read("report.log");
        let frame = printed.split_once(REPORT_BEGINS).and_then(|(_, rest)| rest.split_once(REPORT_ENDS));
        let report = frame.and_then(|(frame, _)| frame.lines().map(str::trim).find(|line| line.starts_with('{')));
        report.map(str::to_owned).ok_or_else(|| {
            let console = crate::process::last_lines(&read("console.log"), 8);
            Error::Unexpected(format!("the machine left no report; its console ends with: {console}"))
        })
    }

    /// As an instance of the conversion template does: it is terminated.
    fn shut_down(&self, id: &str) {
        if let Err(error) = self.emulators.ec2.ec2("TerminateInstances", &[("InstanceId.1", id)]) {
            self.say(&format!("{id}: could not be ended: {error}"));
        }
    }

    pub(super) fn register_image(&self, form: &BTreeMap<String, String>, answer: &str) -> Result<()> {
        let Some(id) = first(answer, "imageId") else { return Ok(()) };
        let snapshots = (1..).map_while(|n| form.get(&format!("BlockDeviceMapping.{n}.Ebs.SnapshotId")));
        let uefi = form.get("BootMode").is_some_and(|mode| mode == "uefi");
        let image = Image {
            snapshots: snapshots.map(|snapshot| self.disks.snapshot(snapshot)).collect(),
            firmware: if uefi { Firmware::Uefi } else { Firmware::Bios },
        };
        self.say(&format!("{id}: image of {} snapshots, {:?}", image.snapshots.len(), image.firmware));
        lock(&self.images).insert(id.to_owned(), image);
        self.tag_image(id, form)
    }

    /// The emulator forgets an image's tags.
    fn tag_image(&self, id: &str, form: &BTreeMap<String, String>) -> Result<()> {
        let tag = |n: usize, part: &str| form.get(&format!("TagSpecification.1.Tag.{n}.{part}")).cloned();
        let tags = (1..).map_while(|n| Some((tag(n, "Key")?, tag(n, "Value").unwrap_or_default())));
        let mut fields = vec![("ResourceId.1".to_owned(), id.to_owned())];
        for (n, (key, value)) in tags.enumerate() {
            fields.extend([(format!("Tag.{}.Key", n + 1), key), (format!("Tag.{}.Value", n + 1), value)]);
        }
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        if fields.len() < 3 { Ok(()) } else { self.emulators.ec2.ec2("CreateTags", &fields).map(drop) }
    }

    /// Boots a machine from the image's snapshots, as EC2 does; its disks go with it.
    fn copy(&self, id: &str, image: &Image) -> Result<Server> {
        let folder = self.instance_folder(id)?;
        let mut copy = Copy { machine: None, disks: Vec::new() };
        for (index, snapshot) in image.snapshots.iter().enumerate() {
            let disk = folder.join(format!("disk{index}.img"));
            copy_sparse(snapshot, &disk)?;
            copy.disks.push(disk);
        }
        let (boot, more) =
            copy.disks.split_first().ok_or_else(|| Error::Unexpected("the image has no disks".to_owned()))?;
        let spec = more.iter().fold(MachineSpec::target(boot), |spec, disk| spec.disk(disk));
        let spec = spec.firmware(image.firmware).reached_at(loopback(id), &[80]);
        copy.machine = Some(spec.start(&folder)?);
        self.say(&format!("{id}: copy at {}", loopback(id)));
        Ok(Server::Copy(copy))
    }
}

/// The value of `readonly NAME='…'` in a script.
fn assigned<'a>(script: &'a str, name: &str) -> Result<&'a str> {
    let value = script.split_once(&format!("{name}='")).and_then(|(_, rest)| rest.split_once('\''));
    value.map(|(value, _)| value).ok_or_else(|| Error::Unexpected(format!("the user data sets no {name}")))
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).context(what)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).context(what)
}

/// The folder with the kernel of conversion machines, fetched if need be.
fn conversion_kernel() -> Result<PathBuf> {
    let path = run(&mut Command::new(paths::repository().join("tests/images/conversion-kernel")))?;
    Ok(PathBuf::from(path.trim()))
}

fn kernel_in(package: &Path) -> Result<PathBuf> {
    let boot = package.join("boot");
    let entries = fs::read_dir(&boot).context(|| format!("read {}", boot.display()))?.flatten();
    let mut kernels = entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/vmlinuz-"));
    kernels.next().ok_or_else(|| Error::Unexpected(format!("there is no kernel in {}", boot.display())))
}

fn hex(request: &Value) -> String {
    request.to_string().bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_tell_what_they_set() {
        let script = "readonly BUCKET='b-1'\nreadonly PREFIX='conversions/t'\n";
        assert_eq!(assigned(script, "BUCKET").unwrap(), "b-1");
        assert_eq!(assigned(script, "PREFIX").unwrap(), "conversions/t");
        assert!(assigned(script, "CONFIG_BASE64").is_err());
    }
}
