//! The command as a user runs it: a region is made, served, asked and stopped. No machine is started.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const REHOST: &str = env!("CARGO_BIN_EXE_rehost");

/// A region in a folder of its own, which goes with it.
struct Region {
    folder: TempDir,
}

impl Region {
    fn new() -> Self {
        let region = Self { folder: tempfile::tempdir().unwrap() };
        // No server is enrolled here, so neither program is ever started.
        fs::create_dir(region.programs()).unwrap();
        for name in ["rehost-replicator", "rehost-converter"] {
            let path = region.programs().join(name);
            fs::write(&path, "#!/bin/false\n").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let made = region.run(&["init", "--listen", "127.0.0.1:0"]);
        assert!(made.status.success(), "{made:?}");
        region
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn programs(&self) -> PathBuf {
        self.folder.path().join("programs")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(REHOST);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.args(arguments).env("REHOST_HOME", self.home()).env("REHOST_PROGRAMS", self.programs());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fail(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error.lines().count(), 1, "one line: {error}");
        error
    }

    /// The service, once it says that it is ready.
    fn serve(&self) -> Service {
        let mut child = self.command(&["serve"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let service = Service(child);
        let said = format!("home={}\n", self.home().display());
        assert!(line.starts_with("rehost: serving on 127.0.0.1:") && line.ends_with(&said), "{line:?}");
        service
    }
}

/// Killed at the end, whatever happens.
struct Service(Child);

impl Service {
    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn ended(&mut self) -> std::process::ExitStatus {
        let give_up = Instant::now() + Duration::from_secs(20);
        while Instant::now() < give_up {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the service did not stop");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn secret(home: &Path) -> String {
    let text = fs::read_to_string(home.join("credentials")).unwrap();
    let line = text.lines().rfind(|l| l.starts_with("aws_secret_access_key")).unwrap();
    line.split_once('=').unwrap().1.trim().to_owned()
}

#[test]
fn a_region_is_made_served_asked_and_stopped() {
    let region = Region::new();
    assert!(region.fail(&["servers"]).contains("rehost serve"));
    let mut service = region.serve();
    assert!(region.succeed(&["servers"]).contains("install-command"));
    assert_eq!(json(&region.succeed(&["servers", "--json"]))["items"], Value::Array(vec![]));
    assert_eq!(json(&region.succeed(&["jobs", "--json"]))["items"], Value::Array(vec![]));
    assert!(region.fail(&["server", "show", "web-1"]).contains("no server is called `web-1`"));
    let absent = "s-00000000000000000";
    assert!(region.fail(&["test", absent]).contains("ResourceNotFoundException"));
    assert!(region.fail(&["server", "set", absent, "--auto-test"]).contains("ResourceNotFoundException"));
    assert!(region.fail(&["serve"]).contains(&service.0.id().to_string()), "who serves it is told");
    service.send(Signal::TERM);
    assert!(service.ended().success());
    assert!(!region.home().join("serve.json").exists());
    assert!(region.fail(&["servers"]).contains("is not running"));
}

#[test]
fn the_template_is_shown_changed_deleted_and_made() {
    let region = Region::new();
    let _service = region.serve();
    let shown = region.succeed(&["template", "show"]);
    assert!(shown.contains("t3.small") && shown.contains("no limit"), "{shown}");
    let set =
        ["template", "set", "--throttle", "50", "--security-group", "sg-0123456789abcdef0", "--staging-tag", "a=b"];
    assert!(region.succeed(&set).contains("50 Mbit/s"));
    let first = json(&region.succeed(&["template", "show", "--json"]));
    assert_eq!(first["replicationServersSecurityGroupsIDs"][0], "sg-0123456789abcdef0", "{first}");
    assert_eq!((&first["stagingAreaTags"]["a"], &first["bandwidthThrottling"]), (&"b".into(), &50.into()));
    region.succeed(&["template", "set", "--security-group", "", "--dedicated"]);
    let second = json(&region.succeed(&["template", "show", "--json"]));
    assert_eq!(second["replicationServersSecurityGroupsIDs"], Value::Array(vec![]), "{second}");
    assert_eq!((&second["bandwidthThrottling"], &second["useDedicatedReplicationServer"]), (&50.into(), &true.into()));
    for _ in 0..2 {
        assert!(region.succeed(&["template", "delete"]).contains("no template"));
    }
    assert_eq!(json(&region.succeed(&["template", "show", "--json"])), Value::Null);
    let made = json(&region.succeed(&["template", "set", "--large-disk-type", "st1", "--json"]));
    assert_eq!((&made["defaultLargeStagingDiskType"], &made["bandwidthThrottling"]), (&"ST1".into(), &0.into()));
    assert!(region.fail(&["template", "set", "--throttle", "10001"]).contains("bandwidthThrottling"));
    assert!(
        region.fail(&["template", "set", "--security-group", "web"]).contains("replicationServersSecurityGroupsIDs")
    );
}

#[test]
fn a_killed_service_is_started_again() {
    let region = Region::new();
    let mut service = region.serve();
    service.send(Signal::KILL);
    assert!(!service.ended().success());
    assert!(region.fail(&["servers"]).contains("cannot reach the region"));
    let _service = region.serve();
    region.succeed(&["servers"]);
}

#[test]
fn a_foreign_key_and_the_installation_key_are_told_apart() {
    let region = Region::new();
    let _service = region.serve();
    let serving = json(&fs::read_to_string(region.home().join("serve.json")).unwrap());
    let url = format!("http://127.0.0.1:{}", serving["port"]);
    let ask = |id: &str, secret: &str| {
        let mut command = region.command(&["servers", "--endpoint-url", &url, "--region", "local"]);
        let output = command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let installation =
        json(&region.succeed(&["install-command", "--json"]))["accessKeyId"].as_str().unwrap().to_owned();
    assert!(ask("AKIANOBODY", "x").contains("UnrecognizedClientException"));
    assert!(ask(&installation, "x").contains("InvalidSignatureException"));
    assert!(ask(&installation, &secret(&region.home())).contains("AccessDeniedException"));
}

#[test]
fn the_install_command_shows_the_secret_only_when_asked_to() {
    let region = Region::new();
    let secret = secret(&region.home());
    let quiet = region.run(&["install-command"]);
    let shown = [quiet.stdout.clone(), quiet.stderr].concat();
    assert!(!String::from_utf8(shown).unwrap().contains(&secret));
    let command = String::from_utf8(quiet.stdout).unwrap();
    assert!(command.starts_with("rehost-agent install --endpoint https://127.0.0.1:"), "{command}");
    assert!(command.contains(" --ca-fingerprint sha256:"), "{command}");
    assert!(region.succeed(&["install-command", "--show-secret"]).contains(&secret));
}
