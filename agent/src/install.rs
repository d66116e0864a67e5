//! `rehost-agent install`: finds out what this server is, enrols it, and sets the agent up.
//!
//! Enrolment comes before anything is written, and whatever was written before a failure is taken back: an installation is
//! whole or not there. Installing again keeps the server's identity, which is its key.

use std::io;

use rehost_link::control_client::{CaFingerprint, ControlClient, ControlError, Endpoint, Proof, Trust};
use rehost_link::identity::{Identity, IdentityError, PrivateKey, StateDir};
use rehost_link::sigv4::{AccessKey, SigningScope};
use rehost_model::ServerId;
use rehost_model::link::{BootFirmware, ENROL_PATH, EnrolRequest, EnrolResponse, SourceDisk};

use crate::disks::{self, DiskError};
use crate::service::{ServiceError, ServiceLayout, UNIT};
use crate::settings::{AgentSettings, StateError};
use crate::system::System;
use crate::{VERSION, facts, text, uninstall};

mod args;
mod prompt;

pub use args::InstallArgs;

/// Why the agent was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("the agent reads whole disks and needs root: run it with sudo")]
    NotRoot,
    #[error("{option} is missing")]
    Missing { option: &'static str },
    #[error("the terminal cannot be read: {0}; give the options and --no-prompt")]
    Terminal(io::Error),
    #[error("`{0}` is no tag; give tags as KEY=VALUE")]
    Tag(String),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// Installs the agent; every line of what it does goes to `say`. Gives the source server's id.
///
/// # Errors
/// An [`InstallError`]; then nothing new is left on this server.
pub async fn install(
    args: &InstallArgs,
    system: &System,
    layout: &ServiceLayout,
    say: &mut dyn FnMut(&str),
) -> Result<ServerId, InstallError> {
    if !args.no_service && !rustix::process::geteuid().is_root() {
        return Err(InstallError::NotRoot);
    }
    let selection = disks::select(system, args.chosen_disks())?;
    show_disks(&selection.disks, say);
    selection.notes.iter().for_each(|note| say(&format!("note: {note}")));
    let enrolment = Enrolment::prepare(args, system, selection.disks)?;
    say(&format!("enrolling with {}", enrolment.client.endpoint()));
    let (settings, identity) = enrolment.carry_out().await?;
    let set_up = SetUp { args, layout, state: &enrolment.state, was_installed: enrolment.was_installed };
    if let Err(error) = set_up.write(&settings, &identity, say) {
        set_up.take_back(&settings, &identity, say).await;
        return Err(error);
    }
    say(&format!("Source server ID: {}", settings.source_server_id));
    Ok(settings.source_server_id)
}

fn show_disks(disks: &[SourceDisk], say: &mut dyn FnMut(&str)) {
    for disk in disks {
        let boot = if disk.is_boot_disk { ", boot disk" } else { "" };
        say(&format!("disk {} ({}{boot})", disk.device_name, text::bytes(disk.size_bytes)));
    }
}

/// Everything that the first request needs.
struct Enrolment {
    client: ControlClient,
    ca_fingerprint: Option<CaFingerprint>,
    access_key: AccessKey,
    scope: SigningScope,
    state: StateDir,
    was_installed: bool,
    all_disks: bool,
    key: PrivateKey,
    request: EnrolRequest,
}

impl Enrolment {
    fn prepare(args: &InstallArgs, system: &System, disks: Vec<SourceDisk>) -> Result<Self, InstallError> {
        let terminal = args.terminal();
        let endpoint: Endpoint = args.endpoint(terminal.as_ref())?.parse()?;
        let trust = args.ca_fingerprint.map_or(Trust::PublicRoots, Trust::Fingerprint);
        let scope = SigningScope::of(endpoint.host(), &args.region, args.signing_service);
        let client = ControlClient::new(endpoint, &trust)?;
        let access_key = args.access_key(terminal.as_ref())?;
        let state = StateDir::new(&args.state_dir);
        let earlier = earlier_installation(&state)?;
        let was_installed = earlier.is_some();
        let (source_server_id, key) = match earlier {
            Some((id, key)) => (Some(id), key),
            None => (None, PrivateKey::generate()?),
        };
        let properties = facts::collect(system, &disks);
        let request = EnrolRequest {
            csr: key.signing_request()?,
            source_server_id,
            user_provided_id: args.user_provided_id.clone(),
            tags: args.tags()?,
            properties,
            firmware: firmware(system, &disks),
            disks,
            replicate: !args.no_replication,
            agent_version: VERSION.to_owned(),
        };
        let all_disks = args.chosen_disks().is_none();
        Ok(Self {
            client,
            ca_fingerprint: args.ca_fingerprint,
            access_key,
            scope,
            state,
            was_installed,
            all_disks,
            key,
            request,
        })
    }

    async fn carry_out(&self) -> Result<(AgentSettings, Identity), InstallError> {
        let proof = Proof::AccessKey { key: &self.access_key, scope: &self.scope };
        let answer: EnrolResponse = self.client.post(ENROL_PATH, &self.request, &proof).await?;
        let identity = Identity::new(&self.key, &answer.issued)?;
        let settings = AgentSettings {
            source_server_id: answer.source_server_id,
            endpoint: self.client.endpoint().to_string(),
            ca_fingerprint: self.ca_fingerprint,
            all_disks: self.all_disks,
        };
        Ok((settings, identity))
    }
}

/// The identity of an earlier installation, if it is whole.
fn earlier_installation(state: &StateDir) -> Result<Option<(ServerId, PrivateKey)>, InstallError> {
    let (settings, key) = (AgentSettings::load(state)?, state.key()?);
    Ok(settings.zip(key).map(|(settings, key)| (settings.source_server_id, key)))
}

/// An image cannot be asked how its machine started: its boot disk's partitions tell.
fn firmware(system: &System, disks: &[SourceDisk]) -> BootFirmware {
    let boot = disks.iter().find(|d| d.is_boot_disk);
    let image = boot.filter(|d| std::path::Path::new(&d.device_name).is_file());
    match image.map(disks::is_for_uefi) {
        None => facts::firmware(system),
        Some(true) => BootFirmware::Uefi,
        Some(false) => BootFirmware::Bios,
    }
}

/// What an installation leaves on the server.
struct SetUp<'a> {
    args: &'a InstallArgs,
    layout: &'a ServiceLayout,
    state: &'a StateDir,
    was_installed: bool,
}

impl SetUp<'_> {
    fn write(
        &self,
        settings: &AgentSettings,
        identity: &Identity,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), InstallError> {
        self.state.create()?;
        self.state.save(identity)?;
        settings.save(self.state)?;
        say(&format!("identity in {}", self.state.path().display()));
        if self.args.no_service {
            say(&format!("run it with: rehost-agent run --state-dir {}", self.state.path().display()));
            return Ok(());
        }
        if self.layout.install_binary()? {
            say(&format!("program in {}", self.layout.binary.display()));
        }
        if self.layout.is_managed() {
            self.layout.enable(self.state)?;
            say(&format!("service {UNIT} enabled and started"));
        } else {
            let (binary, state) = (self.layout.binary.display(), self.state.path().display());
            say(&format!("no systemd here; run it with: {binary} run --state-dir {state}"));
        }
        Ok(())
    }

    /// Removes what a new installation wrote; an earlier one keeps what it had.
    async fn take_back(&self, settings: &AgentSettings, identity: &Identity, say: &mut dyn FnMut(&str)) {
        if self.was_installed {
            return;
        }
        uninstall::tell_control_plane(settings, identity, say).await;
        let removed = [
            self.layout.remove_unit().map(|_| ()).map_err(|e| e.to_string()),
            self.layout.remove_binary().map_err(|e| e.to_string()),
            uninstall::remove_state(self.state).map_err(|e| e.to_string()),
        ];
        let parts = if self.args.no_service { &removed[2..] } else { &removed[..] };
        for problem in parts.iter().filter_map(|r| r.as_ref().err()) {
            say(&format!("warning: {problem}"));
        }
    }
}

#[cfg(test)]
mod tests;
