//! `rehost-agent uninstall`: tells the control plane, and removes everything that `install` put on the server.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rehost_link::control_client::{ControlError, Proof};
use rehost_link::identity::{Identity, IdentityError, StateDir};
use rehost_model::link::{AGENT_POLL_PATH, AgentDirective, AgentPhase, AgentReport};
use tokio::time::timeout;

use crate::VERSION;
use crate::fence::{FENCE_FILE, FENCE_LOCK_FILE};
use crate::run::tracker_options;
use crate::service::{ServiceError, ServiceLayout};
use crate::settings::{AgentSettings, StateError, installed};
use crate::status::StatusFile;
use crate::tracker;

/// How long the control plane is waited for; without it the rest is done all the same.
const PATIENCE: Duration = Duration::from_secs(20);

/// The files that an agent keeps in its state directory: nothing else is ever removed there.
const STATE_FILES: &[&str] = &["agent.json", "key.pem", "certificate.pem", "ca.pem", FENCE_FILE, FENCE_LOCK_FILE];

/// Why something could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    #[error("removing the agent needs root: run it with sudo")]
    NotRoot,
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("cannot remove {}: {source}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// What to uninstall.
#[derive(Debug, Clone)]
pub struct UninstallOptions {
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    /// The agent was installed with `--no-service`: there is neither unit nor program to remove.
    pub no_service: bool,
}

/// Removes the agent; every line of what it does goes to `say`.
///
/// # Errors
/// [`UninstallError`], for what could not be removed; it can be run again.
pub async fn uninstall(
    options: &UninstallOptions,
    layout: &ServiceLayout,
    say: &mut dyn FnMut(&str),
) -> Result<(), UninstallError> {
    if !options.no_service && !rustix::process::geteuid().is_root() {
        return Err(UninstallError::NotRoot);
    }
    let state = StateDir::new(&options.state_dir);
    // First, so that the daemon does not contradict what the control plane is told next.
    if !options.no_service && layout.remove_unit()? {
        say("service stopped and removed");
    }
    match installed(&state) {
        Ok((settings, identity)) => tell_control_plane(&settings, &identity, say).await,
        Err(error) => say(&format!("warning: the control plane is not told: {error}")),
    }
    forget_marks(&state, say);
    StatusFile::new(&options.runtime_dir, &options.state_dir).remove();
    say_what_stays_fenced(&state, say);
    remove_state(&state)?;
    say(&format!("identity removed from {}", options.state_dir.display()));
    if !options.no_service {
        layout.remove_binary()?;
        say("program removed");
    }
    Ok(())
}

/// Nothing goes on marking what is written. The server's name is enough for that: its identity may be damaged.
fn forget_marks(state: &StateDir, say: &mut dyn FnMut(&str)) {
    let forgotten = match AgentSettings::load(state) {
        Ok(Some(settings)) => tracker::forget(&tracker_options(&settings.source_server_id)).map_err(|e| e.to_string()),
        Ok(None) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = forgotten {
        say(&format!("warning: marks of changes stay in the kernel's memory until the next boot: {error}"));
    }
}

/// After a cutover the source is meant to stay out of use; who wants it back must know how, as the record goes.
fn say_what_stays_fenced(state: &StateDir, say: &mut dyn FnMut(&str)) {
    if state.path().join(FENCE_FILE).exists() {
        say("note: the quiesce scripts have run here; to use this source again, run those of unquiesce.d by hand");
    }
}

/// Tells the control plane that this agent goes for good; a failure is said, and no more.
pub(crate) async fn tell_control_plane(settings: &AgentSettings, identity: &Identity, say: &mut dyn FnMut(&str)) {
    let told = timeout(PATIENCE, farewell(settings, identity)).await;
    let problem = match told {
        Ok(Ok(())) => return say(&format!("{} told that the agent goes", settings.endpoint)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("{} did not answer within {} s", settings.endpoint, PATIENCE.as_secs()),
    };
    say(&format!(
        "warning: the control plane was not told ({problem}); disconnect {} there, so that its staging resources go",
        settings.source_server_id
    ));
}

async fn farewell(settings: &AgentSettings, identity: &Identity) -> Result<(), StateError> {
    let client = settings.client(identity)?;
    let signer = identity.signer()?;
    let report = AgentReport {
        agent_version: VERSION.to_owned(),
        phase: AgentPhase::Stopped,
        uninstalling: true,
        ..AgentReport::default()
    };
    let answer: Result<AgentDirective, ControlError> =
        client.post(AGENT_POLL_PATH, &report, &Proof::Certificate(&signer)).await;
    answer.map(|_| ()).map_err(StateError::from)
}

/// Removes the agent's files, and their directory when nothing else is in it.
pub(crate) fn remove_state(state: &StateDir) -> Result<(), UninstallError> {
    for name in STATE_FILES {
        let path = state.path().join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(UninstallError::Remove { path, source });
            }
            _ => {}
        }
    }
    match fs::remove_dir(state.path()) {
        // Somebody else's files keep the directory.
        Err(source) if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(UninstallError::Remove { path: state.path().to_owned(), source })
        }
        _ => Ok(()),
    }
}

impl From<IdentityError> for UninstallError {
    fn from(error: IdentityError) -> Self {
        Self::State(error.into())
    }
}
