use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A directory of hooks whose scripts write what they do to a file.
struct Hooks {
    root: tempfile::TempDir,
    set: HookSet,
}

impl Hooks {
    fn new() -> Self {
        Self::patient(Duration::from_secs(20))
    }

    fn patient(timeout: Duration) -> Self {
        let root = tempfile::tempdir().unwrap();
        let set = HookSet::new(root.path(), "s-0123456789abcdef0".parse().unwrap(), timeout);
        Self { root, set }
    }

    fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A script that notes its own name and then goes on with `body`.
    fn noting(&self, name: &str, body: &str) {
        self.script(name, &format!("echo {name} >> {}\n{body}", self.noted_file().display()));
    }

    fn noted_file(&self) -> PathBuf {
        self.root.path().join("noted")
    }

    fn noted(&self) -> Vec<String> {
        fs::read_to_string(self.noted_file()).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

#[test]
fn nothing_to_run_is_well() {
    let hooks = Hooks::new();
    assert_eq!(hooks.set.run(Hook::PreFreeze).unwrap(), 0);
    fs::create_dir(hooks.root.path().join("pre-freeze.d")).unwrap();
    assert_eq!(hooks.set.run(Hook::PreFreeze).unwrap(), 0);
}

#[test]
fn scripts_run_in_order_with_their_environment_and_nothing_else_runs() {
    let hooks = Hooks::new();
    hooks.noting("quiesce.d/20-b", "");
    hooks.noting("quiesce.d/10-a", "env | sort > \"$(dirname $0)/env\"");
    let readme = hooks.script("quiesce.d/README", "exit 1");
    fs::set_permissions(readme, fs::Permissions::from_mode(0o644)).unwrap();
    fs::create_dir(hooks.root.path().join("quiesce.d/15-directory")).unwrap();
    assert_eq!(hooks.set.run(Hook::Quiesce).unwrap(), 2);
    assert_eq!(hooks.noted(), ["quiesce.d/10-a", "quiesce.d/20-b"]);
    let environment = fs::read_to_string(hooks.root.path().join("quiesce.d/env")).unwrap();
    assert!(environment.contains("REHOST_HOOK=quiesce\n"), "{environment}");
    assert!(environment.contains("REHOST_SERVER=s-0123456789abcdef0\n"), "{environment}");
    assert!(!environment.contains("CARGO"), "{environment}");
}

#[test]
fn a_failure_ends_the_run_and_carries_the_end_of_the_output() {
    let hooks = Hooks::new();
    hooks.noting("quiesce.d/1", "seq 1 5000; echo the database is busy >&2; exit 3");
    hooks.noting("quiesce.d/2", "");
    let error = hooks.set.run(Hook::Quiesce).unwrap_err();
    assert_eq!(hooks.noted(), ["quiesce.d/1"]);
    let text = error.to_string();
    assert!(text.contains("quiesce.d/1 failed (exit status: 3)") && text.ends_with("the database is busy"), "{text}");
    assert!(text.len() < OUTPUT_BYTES + 500, "{}", text.len());
}

#[test]
fn what_puts_back_goes_on_after_a_failure() {
    let hooks = Hooks::new();
    hooks.noting("unquiesce.d/1", "exit 1");
    hooks.noting("unquiesce.d/2", "");
    let error = hooks.set.run(Hook::Unquiesce).unwrap_err().to_string();
    assert!(error.contains("unquiesce.d/1 failed"), "{error}");
    assert_eq!(hooks.noted(), ["unquiesce.d/1", "unquiesce.d/2"]);
}

#[test]
fn a_script_that_takes_too_long_is_killed_with_what_it_started() {
    let hooks = Hooks::patient(Duration::from_millis(300));
    let children = hooks.root.path().join("children");
    let body = format!("sleep 600 & echo $! > {}; echo waiting; wait", children.display());
    hooks.script("pre-freeze.d/slow", &body);
    let error = hooks.set.run(Hook::PreFreeze).unwrap_err();
    assert!(matches!(&error, HookError::TimedOut { .. }), "{error}");
    assert!(error.to_string().ends_with(": waiting"), "{error}");
    let child = fs::read_to_string(children).unwrap();
    // It takes a moment to die, and may not be reaped by whoever is the reaper here.
    let is_gone =
        || fs::read_to_string(format!("/proc/{}/stat", child.trim())).map_or(true, |stat| stat.contains(") Z"));
    let end = Instant::now() + Duration::from_secs(60);
    while !is_gone() {
        assert!(Instant::now() < end, "it lives on");
        sleep(TICK);
    }
}

#[test]
fn what_stays_in_the_background_with_the_output_open_is_not_waited_for() {
    let hooks = Hooks::patient(Duration::from_secs(60));
    let child = hooks.root.path().join("child");
    hooks.script("pre-freeze.d/lock", &format!("sleep 600 & echo $! > {}", child.display()));
    hooks.set.run(Hook::PreFreeze).unwrap();
    let child: i32 = fs::read_to_string(child).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn what_goes_on_writing_in_the_background_is_not_listened_to_for_ever() {
    let hooks = Hooks::patient(Duration::from_secs(60));
    // It ends when nobody has the other end of its output open any more.
    hooks.script("pre-freeze.d/chatter", "while :; do echo again; done &");
    hooks.set.run(Hook::PreFreeze).unwrap();
    hooks.script("pre-freeze.d/chatter", "yes &\nexit 3");
    assert!(matches!(hooks.set.run(Hook::PreFreeze), Err(HookError::Failed { .. })));
}

#[test]
fn what_others_could_have_written_is_refused() {
    let hooks = Hooks::new();
    let script = hooks.script("pre-freeze.d/1", "exit 0");
    for mode in [0o775, 0o757] {
        fs::set_permissions(&script, fs::Permissions::from_mode(mode)).unwrap();
        let error = hooks.set.run(Hook::PreFreeze).unwrap_err();
        assert!(matches!(error, HookError::Untrusted { fault: "others may write to it", .. }), "{error}");
    }
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    hooks.set.run(Hook::PreFreeze).unwrap();
    fs::set_permissions(script.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(hooks.set.run(Hook::PreFreeze), Err(HookError::Untrusted { .. })));
}

#[test]
fn what_belongs_to_somebody_else_is_refused() {
    let hooks = Hooks::new();
    let script = hooks.script("pre-freeze.d/1", "exit 0");
    if !geteuid().is_root() {
        return;
    }
    std::os::unix::fs::chown(script, Some(65534), None).unwrap();
    let error = hooks.set.run(Hook::PreFreeze).unwrap_err();
    assert!(error.to_string().contains("does not belong to the agent's user"), "{error}");
}

#[test]
fn the_scripts_after_a_freeze_run_whatever_happened() {
    let hooks = Hooks::new();
    hooks.noting("post-freeze.d/1", "");
    hooks.set.pause().unwrap().resume().unwrap();
    assert_eq!(hooks.noted().len(), 1);
    drop(hooks.set.pause().unwrap());
    assert_eq!(hooks.noted().len(), 2);
    hooks.script("pre-freeze.d/1", "exit 1");
    assert!(hooks.set.pause().is_err());
    assert_eq!(hooks.noted().len(), 3);
}
