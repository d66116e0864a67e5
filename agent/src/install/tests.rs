use std::fs;
use std::path::Path;

use clap::Parser;

use super::*;
use crate::fake_control::FakeControl;
use crate::service;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: InstallArgs,
}

/// A server with one image as its disk, and where the agent would be installed.
struct Source {
    root: tempfile::TempDir,
    layout: ServiceLayout,
    said: Vec<String>,
}

impl Source {
    fn new(systemctl_refuses: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("disk.img"), vec![0; 4096]).unwrap();
        let layout = service::tests::layout(root.path(), systemctl_refuses);
        Self { root, layout, said: Vec::new() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    async fn install(&mut self, control: &FakeControl, more: &[&str]) -> Result<ServerId, InstallError> {
        let (disk, state) = (self.path("disk.img").display().to_string(), self.path("state").display().to_string());
        let (endpoint, pin) = (format!("https://{}", control.address), control.fingerprint().to_string());
        let mut arguments =
            vec!["install", "--no-prompt", "--aws-access-key-id", "AKID", "--aws-secret-access-key", "s3cret"];
        arguments.extend(["--devices", &disk, "--state-dir", &state, "--endpoint", &endpoint]);
        if !more.contains(&"--ca-fingerprint") {
            arguments.extend(["--ca-fingerprint", &pin]);
        }
        let args = Command::parse_from(arguments.into_iter().chain(more.iter().copied())).args;
        let said = &mut self.said;
        install(&args, &System::default(), &self.layout, &mut |line| said.push(line.to_owned())).await
    }

    fn left_behind(&self) -> Vec<&Path> {
        let parts = [self.layout.unit.as_path(), self.layout.binary.as_path()];
        parts.into_iter().filter(|p| p.exists()).collect()
    }
}

#[tokio::test]
async fn an_installation_enrols_and_sets_up_the_service() {
    let (control, mut source) = (FakeControl::start().await, Source::new("none"));
    let id = source.install(&control, &["--tags", "a=b", "c=d=e", "--user-provided-id", "mine"]).await.unwrap();
    assert_eq!(id, control.server);
    let request = control.script.lock().unwrap().enrolments.remove(0);
    assert_eq!((request.source_server_id, request.replicate), (None, true));
    assert_eq!(request.user_provided_id.as_deref(), Some("mine"));
    assert_eq!((request.tags["a"].as_str(), request.tags["c"].as_str()), ("b", "d=e"));
    assert_eq!(request.disks.len(), 1);
    assert!(request.disks[0].is_boot_disk && request.disks[0].size_bytes == 4096);
    assert_eq!(source.left_behind().len(), 2);
    assert_eq!(source.said.last().unwrap(), &format!("Source server ID: {id}"));
    assert!(source.said.iter().all(|line| !line.contains("s3cret")));
}

#[tokio::test]
async fn an_enrolment_behind_a_gateway_is_signed_for_it() {
    let (control, mut source) = (FakeControl::start().await, Source::new("none"));
    for (more, scope) in [
        (&["--no-service"][..], "/local/mgn/"),
        (&["--no-service", "--signing-service", "execute-api", "--region", "eu-west-1"], "/eu-west-1/execute-api/"),
    ] {
        source.install(&control, more).await.unwrap();
        let signed = control.script.lock().unwrap().signatures.pop().unwrap();
        assert!(signed.contains(scope), "{signed}");
    }
    let token = ["--no-service", "--aws-session-token", "a-token"];
    source.install(&control, &token).await.unwrap();
    let signed = control.script.lock().unwrap().signatures.pop().unwrap();
    assert!(signed.contains("x-amz-security-token"), "{signed}");
}

#[tokio::test]
async fn installing_again_keeps_key_and_identity() {
    let (control, mut source) = (FakeControl::start().await, Source::new("none"));
    let id = source.install(&control, &["--no-service"]).await.unwrap();
    let state = StateDir::new(source.path("state"));
    let key = state.key().unwrap().unwrap().to_pem();
    assert_eq!(source.install(&control, &["--no-service", "--no-replication"]).await.unwrap(), id);
    assert_eq!(state.key().unwrap().unwrap().to_pem(), key);
    let again = control.script.lock().unwrap().enrolments.remove(1);
    assert_eq!((again.source_server_id, again.replicate), (Some(id), false));
    assert!(source.left_behind().is_empty());
}

#[tokio::test]
async fn a_refused_enrolment_leaves_nothing() {
    let (control, mut source) = (FakeControl::start().await, Source::new("none"));
    control.script.lock().unwrap().refuse = Some((403, "the security token is invalid"));
    let error = source.install(&control, &[]).await.unwrap_err().to_string();
    assert!(error.contains("the security token is invalid"), "{error}");
    assert!(!source.path("state").exists() && source.left_behind().is_empty());
}

#[tokio::test]
async fn another_authority_than_the_pinned_one_gets_no_key() {
    let (control, other, mut source) = (FakeControl::start().await, FakeControl::start().await, Source::new("none"));
    let pin = other.fingerprint().to_string();
    let error = source.install(&control, &["--ca-fingerprint", &pin]).await.unwrap_err().to_string();
    assert!(error.contains(&pin) && error.contains(&control.fingerprint().to_string()), "{error}");
    assert!(control.script.lock().unwrap().enrolments.is_empty() && !source.path("state").exists());
}

#[tokio::test]
async fn a_service_that_does_not_start_is_taken_back() {
    let (control, mut source) = (FakeControl::start().await, Source::new("restart"));
    let error = source.install(&control, &[]).await.unwrap_err().to_string();
    assert!(error.contains("systemctl restart"), "{error}");
    assert!(!source.path("state").exists() && source.left_behind().is_empty());
    assert!(control.script.lock().unwrap().reports[0].uninstalling);
}

#[tokio::test]
async fn wrong_options_are_refused_before_anything_happens() {
    let (control, mut source) = (FakeControl::start().await, Source::new("none"));
    let refused = source.install(&control, &["--tags", "novalue"]).await;
    assert!(matches!(refused, Err(InstallError::Tag(_))));
    fs::write(source.path("disk.img"), [0; 700]).unwrap();
    let refused = source.install(&control, &[]).await;
    assert!(matches!(refused, Err(InstallError::Disk(DiskError::Size { .. }))));
    assert!(control.script.lock().unwrap().enrolments.is_empty());
}
