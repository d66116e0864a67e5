use std::collections::VecDeque;
use std::time::Duration;

use rehost_link::identity::PrivateKey;
use rehost_model::VolumeId;
use rehost_model::link::{DiskTarget, FenceId, FenceState};
use rehost_model::replication::TrackerKind;

use super::*;
use crate::fake_control::{FakeControl, directive};
use crate::uninstall::{UninstallOptions, uninstall};

fn options(root: &std::path::Path) -> RunOptions {
    RunOptions { state_dir: root.join("state"), runtime_dir: root.join("run"), hooks_dir: root.join("hooks") }
}

/// An agent that was installed with `control`.
struct Installed {
    root: tempfile::TempDir,
    options: RunOptions,
}

impl Installed {
    fn with(control: &FakeControl) -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = options(root.path());
        let state = StateDir::new(&options.state_dir);
        state.create().unwrap();
        let key = PrivateKey::generate().unwrap();
        state.save(&Identity::new(&key, &control.issue(&key.signing_request().unwrap())).unwrap()).unwrap();
        let settings = AgentSettings {
            source_server_id: control.server.clone(),
            endpoint: format!("https://{}", control.address),
            ca_fingerprint: Some(control.fingerprint()),
            all_disks: true,
        };
        settings.save(&state).unwrap();
        Self { root, options }
    }

    fn status(&self) -> Option<AgentStatus> {
        StatusFile::new(&self.options.runtime_dir, &self.options.state_dir).read()
    }

    /// A command to replicate an image to an address where nobody listens.
    fn replicate(&self, address: &str) -> AgentCommand {
        let disk = self.root.path().join("disk.img");
        std::fs::write(&disk, vec![1; 8192]).unwrap();
        AgentCommand::Replicate {
            replicator_addresses: vec![address.to_owned()],
            disks: vec![DiskTarget {
                disk_index: 0,
                device_name: disk.display().to_string(),
                size_bytes: 8192,
                volume: VolumeId::generate(),
            }],
            checkpoint: Epoch(3),
            throttle_bytes_per_second: 1000,
            checkpoints: CheckpointSettings::default(),
            fence: None,
        }
    }

    async fn run(&self) -> RunEnd {
        timeout(Duration::from_secs(30), run(&self.options)).await.unwrap().unwrap()
    }
}

fn script(control: &FakeControl, directives: impl Into<VecDeque<AgentDirective>>) {
    control.script.lock().unwrap().directives = directives.into();
}

/// Waits until `ready` of the reports so far.
async fn until(control: &FakeControl, ready: impl Fn(&[AgentReport]) -> bool) {
    let seen = async {
        while !ready(&control.script.lock().unwrap().reports) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), seen).await.expect("the agent reports it in time");
}

#[tokio::test]
async fn a_disconnected_agent_confirms_and_ends() {
    let control = FakeControl::start().await;
    let agent = Installed::with(&control);
    script(&control, [directive(AgentCommand::Wait, false), directive(AgentCommand::Disconnect, false)]);
    assert_eq!(agent.run().await, RunEnd::Disconnected);
    let phases: Vec<_> = control.script.lock().unwrap().reports.iter().map(|r| r.phase).collect();
    assert_eq!(phases, [AgentPhase::Waiting, AgentPhase::Waiting, AgentPhase::Stopped]);
    assert_eq!(agent.status().unwrap().phase, AgentPhase::Stopped);
}

#[tokio::test]
async fn a_certificate_is_renewed_when_asked() {
    let control = FakeControl::start().await;
    let agent = Installed::with(&control);
    let state = StateDir::new(&agent.options.state_dir);
    let first = state.identity().unwrap().unwrap().certificate_pem().to_owned();
    script(&control, [directive(AgentCommand::Wait, true), directive(AgentCommand::Disconnect, false)]);
    agent.run().await;
    assert_eq!(control.script.lock().unwrap().renewals, 1);
    assert_ne!(state.identity().unwrap().unwrap().certificate_pem(), first);
}

#[tokio::test]
async fn a_closed_port_1500_is_reported_with_its_address() {
    let control = FakeControl::start().await;
    let agent = Installed::with(&control);
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    script(&control, [directive(agent.replicate(&free), false)]);
    let reported = until(&control, |reports| reports.iter().any(|r| r.error.is_some()));
    tokio::select! {
        end = agent.run() => panic!("{end:?}"),
        () = reported => {}
    }
    let error = control.script.lock().unwrap().reports.iter().find_map(|r| r.error.clone()).unwrap();
    assert_eq!(error.code, "ReplicatorUnreachable");
    assert!(error.message.contains(&free) && error.message.contains("firewall"), "{}", error.message);
    let status = agent.status().unwrap();
    assert_eq!((status.checkpoint_requested, status.throttle_bytes_per_second), (Epoch(3), 1000));
    assert_eq!(status.replicator, [free]);
}

#[tokio::test]
async fn the_agent_outlives_an_absent_control_plane() {
    let control = FakeControl::start().await;
    let agent = Installed::with(&control);
    control.script.lock().unwrap().refuse = Some((503, "later"));
    let absent = async {
        while agent.status().is_none_or(|s| s.control_plane_error.is_none()) {
            sleep(Duration::from_millis(20)).await;
        }
        let seen = agent.status().unwrap().control_plane_error.unwrap();
        assert!(seen.contains("later"), "{seen}");
        control.script.lock().unwrap().refuse = None;
        until(&control, |reports| !reports.is_empty()).await;
        while agent.status().is_none_or(|s| s.control_plane_error.is_some()) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        end = agent.run() => panic!("{end:?}"),
        () = absent => {}
    }
}

#[tokio::test]
async fn a_wait_stops_replication_and_a_new_target_replaces_it() {
    let control = FakeControl::start().await;
    let agent = Installed::with(&control);
    let command = agent.replicate("127.0.0.1:9");
    script(&control, [directive(command, false)]);
    let changes = async {
        until(&control, |r| r.iter().any(|r| r.phase == AgentPhase::Connecting)).await;
        script(&control, [directive(agent.replicate("127.0.0.1:10"), false)]);
        while agent.status().is_none_or(|s| s.replicator != ["127.0.0.1:10"]) {
            sleep(Duration::from_millis(20)).await;
        }
        script(&control, [directive(AgentCommand::Wait, false)]);
        until(&control, |r| r.last().is_some_and(|r| r.phase == AgentPhase::Waiting && r.error.is_none())).await;
    };
    tokio::select! {
        end = agent.run() => panic!("{end:?}"),
        () = changes => {}
    }
}

#[tokio::test]
async fn a_pause_is_shown_and_ends() {
    let control = FakeControl::start().await;
    let agent = Installed::with(&control);
    let command = agent.replicate("127.0.0.1:9");
    script(&control, [directive(command.clone(), false)]);
    let changes = async {
        until(&control, |r| r.iter().any(|r| r.phase == AgentPhase::Connecting && r.tracker.is_some())).await;
        script(&control, [directive(AgentCommand::Pause, false)]);
        until(&control, |r| r.last().is_some_and(|r| r.phase == AgentPhase::Paused)).await;
        let paused = control.script.lock().unwrap().reports.last().cloned().unwrap();
        assert_eq!((paused.error, paused.tracker), (None, Some(TrackerKind::Rescan)));
        script(&control, [directive(command, false)]);
        until(&control, |r| r.last().is_some_and(|r| r.phase == AgentPhase::Connecting)).await;
    };
    tokio::select! {
        end = agent.run() => panic!("{end:?}"),
        () = changes => {}
    }
    let status = agent.status().unwrap();
    assert!(!status.trackers[0].notes.is_empty(), "{status:?}");
}

#[tokio::test]
async fn a_disk_that_grew_is_reported() {
    let control = FakeControl::start().await;
    let agent = Installed::with(&control);
    script(&control, [directive(agent.replicate("127.0.0.1:9"), false)]);
    let disk = std::fs::File::options().write(true).open(agent.root.path().join("disk.img")).unwrap();
    disk.set_len(16_384).unwrap();
    let grown = until(&control, |r| r.iter().any(|r| r.inventory.iter().any(|disk| disk.size_bytes == 16_384)));
    tokio::select! {
        end = agent.run() => panic!("{end:?}"),
        () = grown => {}
    }
}

#[tokio::test]
async fn a_fence_is_followed_and_let_go() {
    let control = FakeControl::start().await;
    let agent = Installed::with(&control);
    let id = FenceId("job-1".to_owned());
    let open = agent.replicate("127.0.0.1:9");
    let mut fenced = open.clone();
    if let AgentCommand::Replicate { fence, .. } = &mut fenced {
        *fence = Some(id.clone());
    }
    script(&control, [directive(fenced, false)]);
    let changes = async {
        let closed = FenceState::Fenced { fence: id };
        until(&control, |r| r.last().is_some_and(|r| r.fence == closed)).await;
        script(&control, [directive(open, false)]);
        until(&control, |r| r.last().is_some_and(|r| r.fence == FenceState::Open)).await;
    };
    tokio::select! {
        end = agent.run() => panic!("{end:?}"),
        () = changes => {}
    }
}

#[tokio::test]
async fn uninstalling_tells_the_control_plane_and_removes_the_state() {
    let control = FakeControl::start().await;
    let agent = Installed::with(&control);
    let options = UninstallOptions {
        state_dir: agent.options.state_dir.clone(),
        runtime_dir: agent.options.runtime_dir.clone(),
        no_service: true,
    };
    let layout = service::tests::layout(agent.root.path(), "none");
    let mut said = Vec::new();
    uninstall(&options, &layout, &mut |line| said.push(line.to_owned())).await.unwrap();
    assert!(control.script.lock().unwrap().reports[0].uninstalling);
    assert!(!options.state_dir.exists());
    // Once more, with nothing there: a warning and no error.
    uninstall(&options, &layout, &mut |line| said.push(line.to_owned())).await.unwrap();
    assert!(said.iter().any(|line| line.starts_with("warning: the control plane is not told")), "{said:?}");
}

/// Marks are named by the settings alone: a damaged certificate does not keep them, settings that are damaged do, and that is said.
#[tokio::test]
async fn what_is_damaged_is_uninstalled_all_the_same() {
    let control = FakeControl::start().await;
    for (damaged, marks_stay) in [("certificate.pem", false), ("agent.json", true)] {
        let agent = Installed::with(&control);
        let RunOptions { state_dir, runtime_dir, .. } = agent.options.clone();
        std::fs::write(state_dir.join(damaged), "no more").unwrap();
        let layout = service::tests::layout(agent.root.path(), "none");
        let options = UninstallOptions { state_dir: state_dir.clone(), runtime_dir, no_service: true };
        let mut said = Vec::new();
        uninstall(&options, &layout, &mut |line| said.push(line.to_owned())).await.unwrap();
        assert!(said.iter().any(|line| line.starts_with("warning: the control plane is not told")), "{said:?}");
        // Who is not root may be refused to look whether there are any.
        let is_said = said.iter().any(|line| line.contains("marks of changes stay"));
        assert!(is_said == marks_stay || !rustix::process::geteuid().is_root(), "{said:?}");
        assert!(!state_dir.exists());
    }
}

#[tokio::test]
async fn without_an_installation_there_is_nothing_to_run() {
    let root = tempfile::tempdir().unwrap();
    let options = options(root.path());
    assert!(matches!(run(&options).await, Err(StateError::NotInstalled { .. })));
}
