//! What EC2 and EBS do beside answering: the emulator keeps the books, and this keeps the bytes and runs the machines.
//!
//! It hangs on the proxy as a [`Hook`] and acts on what was asked and answered:
//!
//! | call | what happens |
//! |---|---|
//! | `CreateVolume`, `ModifyVolume`, `DeleteVolume` | a sparse file named by the volume's id is made, grown, removed |
//! | `CreateSnapshot(s)`, `DeleteSnapshot` | the volume's file is copied as it is at that moment; the copy is removed |
//! | `RunInstances` with the replicator's user data | the program in the bucket runs with the configuration in the user data |
//! | `RunInstances` with the converter's user data | once its volumes are attached, a machine with them as NVMe devices converts them for real, its report goes to the bucket, and the instance ends |
//! | `RunInstances` of a registered image | a machine boots from files with the image's snapshots; its ports are those of an address of its own |
//! | `TerminateInstances` | the process or the machine ends; its disks are removed |
//! | `GetConsoleOutput`, `DescribeInstances` | the machine's serial line, and the loopback address by which it is reached |
//!
//! Every instance has a loopback address of its own in 127.64.0.0/10. The machines are QEMU's: no emulator boots anything.

mod disks;
mod servers;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::calls::Call;
use super::proxy::{Answer, Hook};
use super::wire::{Wire, all, first};
use crate::error::{Context, Error, Result};
use disks::Disks;
use servers::{Image, Server};

/// Where the emulators are of which the plane is a part.
#[derive(Debug, Clone, Copy)]
pub struct Emulators {
    /// The one that plays EC2.
    pub ec2: Wire,
    /// The one that plays S3.
    pub s3: Wire,
}

/// The plane. When it is dropped every process of it ends; its files stay in its folder.
#[derive(Debug)]
pub struct Plane {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    emulators: Emulators,
    disks: Disks,
    servers: Mutex<BTreeMap<String, Server>>,
    images: Mutex<BTreeMap<String, Image>>,
    /// The emulator's private addresses, and those that take their place.
    addresses: Mutex<BTreeMap<String, Ipv4Addr>>,
}

impl Plane {
    /// A plane whose files are in `folder`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(folder: &Path, emulators: Emulators) -> Result<Self> {
        let inner = Inner {
            folder: folder.to_owned(),
            emulators,
            disks: Disks::new(folder)?,
            servers: Mutex::default(),
            images: Mutex::default(),
            addresses: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the proxy needs of it.
    #[must_use]
    pub fn hook(&self) -> Arc<dyn Hook> {
        Arc::new(Follower { inner: Arc::clone(&self.inner) })
    }

    /// The file of a volume.
    #[must_use]
    pub fn volume(&self, id: &str) -> PathBuf {
        self.inner.disks.volume(id)
    }

    /// The instances that have a process or a machine.
    #[must_use]
    pub fn instances(&self) -> Vec<String> {
        self.inner.servers().keys().cloned().collect()
    }

    /// The files of volumes and snapshots that there are.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.inner.disks.left()
    }

    /// The disks of a launched copy, the first one first; none when there is no such copy.
    #[must_use]
    pub fn disks_of_copy(&self, instance: &str) -> Vec<PathBuf> {
        self.inner.servers().get(instance).map(Server::disks).unwrap_or_default()
    }

    /// Where an instance's ports are.
    #[must_use]
    pub fn address(&self, instance: &str) -> Ipv4Addr {
        loopback(instance)
    }

    /// What it did, a line each.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.inner.log_file()).unwrap_or_default()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        // Whoever holds the hook still may call it: there is nothing left to find for it.
        let servers = std::mem::take(&mut *self.inner.servers());
        drop(servers);
    }
}

struct Follower {
    inner: Arc<Inner>,
}

#[async_trait]
impl Hook for Follower {
    async fn after(&self, call: &Call, answer: &mut Answer) {
        if call.service != "ec2" || !answer.status.is_success() {
            return;
        }
        let (inner, call, text) = (Arc::clone(&self.inner), call.clone(), answer.text());
        let followed = tokio::task::spawn_blocking(move || inner.follow(&call, text)).await;
        match followed {
            Ok(Ok(text)) => answer.body = text.into(),
            Ok(Err(error)) => *answer = failure(&error.to_string()),
            Err(error) => *answer = failure(&error.to_string()),
        }
    }
}

fn failure(message: &str) -> Answer {
    let message = message.replace('&', "&amp;").replace('<', "&lt;");
    let error = format!("<Error><Code>InternalError</Code><Message>{message}</Message></Error>");
    let body =
        format!("<?xml version=\"1.0\"?><Response><Errors>{error}</Errors><RequestID>plane</RequestID></Response>");
    Answer::new(500, "text/xml", body)
}

impl Inner {
    /// Does what the answered call means; gives the answer as it is to be.
    fn follow(self: &Arc<Self>, call: &Call, answer: String) -> Result<String> {
        let form = call.form();
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        match call.action.as_str() {
            "CreateVolume" => self.create_volume(&form, &answer)?,
            "ModifyVolume" => self.disks.grow(field("VolumeId"), field("Size").parse().unwrap_or(0))?,
            "DeleteVolume" => self.disks.delete_volume(field("VolumeId")),
            "CreateSnapshot" | "CreateSnapshots" => self.take_snapshots(&answer)?,
            "DeleteSnapshot" => self.disks.delete_snapshot(field("SnapshotId")),
            "AttachVolume" => self.attached(field("InstanceId"), field("VolumeId"))?,
            "DetachVolume" => self.detached(first(&answer, "instanceId").unwrap_or_default(), field("VolumeId")),
            "RegisterImage" => self.register_image(&form, &answer)?,
            "RunInstances" => self.launch(&form, &answer)?,
            "TerminateInstances" => all(&answer, "instanceId").into_iter().for_each(|id| self.end(id)),
            "GetConsoleOutput" => return Ok(self.with_console(field("InstanceId"), answer)),
            _ => {}
        }
        Ok(self.readdressed(answer))
    }

    fn create_volume(&self, form: &BTreeMap<String, String>, answer: &str) -> Result<()> {
        let id = first(answer, "volumeId").ok_or_else(|| Error::Unexpected(format!("no volume's id: {answer}")))?;
        let gib = first(answer, "size").and_then(|size| size.parse().ok()).unwrap_or(0);
        let snapshot = form.get("SnapshotId").map(String::as_str);
        self.disks.create(id, gib, snapshot)?;
        self.say(&format!("{id}: {gib} GiB{}", snapshot.map(|id| format!(" from {id}")).unwrap_or_default()));
        Ok(())
    }

    fn take_snapshots(&self, answer: &str) -> Result<()> {
        // One answer names one snapshot and its volume, or several in items.
        let (snapshots, volumes) = (all(answer, "snapshotId"), all(answer, "volumeId"));
        for (snapshot, volume) in snapshots.into_iter().zip(volumes) {
            self.disks.take(volume, snapshot)?;
            self.say(&format!("{snapshot}: of {volume}"));
        }
        Ok(())
    }

    /// The emulator's addresses lead nowhere.
    fn readdressed(&self, mut answer: String) -> String {
        for (theirs, ours) in lock(&self.addresses).iter() {
            answer = answer.replace(&format!(">{theirs}<"), &format!(">{ours}<"));
        }
        answer
    }

    fn with_console(&self, instance: &str, answer: String) -> String {
        let console = self.servers().get(instance).and_then(Server::console);
        let (Some(console), Some(shown)) = (console, first(&answer, "output")) else { return answer };
        answer.replace(&format!("<output>{shown}</output>"), &format!("<output>{}</output>", BASE64.encode(console)))
    }

    fn servers(&self) -> MutexGuard<'_, BTreeMap<String, Server>> {
        lock(&self.servers)
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("plane.log")
    }

    fn say(&self, what: &str) {
        // The log explains; nothing depends on it.
        if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(self.log_file()) {
            let _ = writeln!(file, "{what}");
        }
    }

    fn instance_folder(&self, id: &str) -> Result<PathBuf> {
        let folder = self.folder.join("instances").join(id);
        std::fs::create_dir_all(&folder).context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An instance's own address: the same for the same id, in a block that nothing else uses.
fn loopback(instance: &str) -> Ipv4Addr {
    let digits: String = instance.chars().filter(char::is_ascii_hexdigit).collect();
    let tail = digits.get(digits.len().saturating_sub(6)..).unwrap_or_default();
    let [_, a, b, c] = u32::from_str_radix(tail, 16).unwrap_or(1).to_be_bytes();
    Ipv4Addr::new(127, 64 + a % 64, b, 1 + c % 254)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_stable_and_stay_in_their_block() {
        let address = loopback("i-0123456789abcdef0");
        assert_eq!(address, loopback("i-0123456789abcdef0"));
        assert_ne!(address, loopback("i-0123456789abcdef1"));
        for id in ["i-0123456789affffff", "i-00000000000000000", "i-", ""] {
            let [first, second, _, last] = loopback(id).octets();
            assert!(first == 127 && (64..128).contains(&second) && (1..255).contains(&last), "{id}");
        }
    }
}
