use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;

/// A source with scripts, whose agents come and go.
struct Source {
    root: tempfile::TempDir,
    boot: u32,
}

impl Source {
    fn new() -> Self {
        let source = Self { root: tempfile::tempdir().unwrap(), boot: 1 };
        fs::create_dir_all(source.path("proc/sys/kernel/random")).unwrap();
        source.booted(1);
        source.script("quiesce.d/1", "");
        source.script("unquiesce.d/1", "");
        source
    }

    fn booted(&self, boot: u32) {
        fs::write(self.path("proc/sys/kernel/random/boot_id"), format!("boot-{boot}\n")).unwrap();
    }

    fn reboot(&mut self) {
        self.boot += 1;
        self.booted(self.boot);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A script that notes its name.
    fn script(&self, name: &str, body: &str) {
        let path = self.path("hooks").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        let kind = name.split('.').next().unwrap();
        fs::write(&path, format!("#!/bin/sh\n{body}\necho {kind} >> {}\n", self.path("ran").display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What ran since the last look.
    fn ran(&self) -> Vec<String> {
        let ran = fs::read_to_string(self.path("ran")).unwrap_or_default();
        let _ = fs::remove_file(self.path("ran"));
        ran.lines().map(str::to_owned).collect()
    }

    fn hooks(&self) -> HookSet {
        HookSet::new(self.path("hooks"), "s-0123456789abcdef0".parse().unwrap(), Duration::from_secs(30))
    }

    fn state(&self) -> StateDir {
        let state = StateDir::new(self.path("state"));
        state.create().unwrap();
        state
    }

    fn agent(&self) -> Fence {
        Fence::open(&self.state(), self.hooks(), &System::under(self.root.path())).unwrap()
    }
}

fn id(name: &str) -> FenceId {
    FenceId(name.to_owned())
}

/// Tells the agent what is wanted, until the scripts that follow from it have ended.
fn wanted(fence: &mut Fence, id: Option<&FenceId>) -> FenceState {
    fence.follow(id);
    ended(fence)
}

fn ended(fence: &mut Fence) -> FenceState {
    if let Some(worker) = fence.worker.take() {
        worker.join().unwrap();
    }
    fence.state()
}

fn reason(state: &FenceState) -> &str {
    let FenceState::Failed { reason, .. } = state else { panic!("{state:?}") };
    reason
}

#[test]
fn a_fence_is_closed_once_and_opened_once() {
    let source = Source::new();
    let mut fence = source.agent();
    assert_eq!(wanted(&mut fence, None), FenceState::Open);
    for _ in 0..3 {
        assert_eq!(wanted(&mut fence, Some(&id("a"))), FenceState::Fenced { fence: id("a") });
    }
    assert_eq!(source.ran(), ["quiesce"]);
    for _ in 0..3 {
        assert_eq!(wanted(&mut fence, None), FenceState::Open);
    }
    assert_eq!(source.ran(), ["unquiesce"]);
    assert!(!source.path("state").join(FENCE_FILE).exists());
}

#[test]
fn scripts_run_beside_the_daemon_and_are_not_cut_short() {
    let source = Source::new();
    let gate = source.path("gate");
    source.script("quiesce.d/1", &format!("while [ ! -e {} ]; do sleep 0.02; done", gate.display()));
    let mut fence = source.agent();
    fence.follow(Some(&id("a")));
    assert_eq!(fence.state(), FenceState::Closing { fence: id("a") });
    // Not wanted any more: the scripts end first.
    fence.follow(None);
    assert!(matches!(unfence(&source.state(), source.hooks()), Err(FenceError::Busy) | Ok(_)));
    fs::write(gate, "").unwrap();
    assert_eq!(ended(&mut fence), FenceState::Fenced { fence: id("a") });
    assert_eq!(wanted(&mut fence, None), FenceState::Open);
}

#[test]
fn without_scripts_the_source_is_fenced_at_once() {
    let source = Source::new();
    fs::remove_dir_all(source.path("hooks")).unwrap();
    let mut fence = source.agent();
    assert_eq!(wanted(&mut fence, Some(&id("a"))), FenceState::Fenced { fence: id("a") });
}

#[test]
fn a_script_that_fails_is_undone_and_tried_again_for_another_cutover_alone() {
    let source = Source::new();
    source.script("quiesce.d/2", "echo no; exit 1");
    let mut fence = source.agent();
    for _ in 0..2 {
        let state = wanted(&mut fence, Some(&id("a")));
        assert!(reason(&state).ends_with("failed (exit status: 1): no"), "{state:?}");
    }
    assert_eq!(source.ran(), ["quiesce", "unquiesce"]);
    assert!(matches!(wanted(&mut fence, Some(&id("b"))), FenceState::Failed { fence, .. } if fence == id("b")));
    assert_eq!(source.ran(), ["quiesce", "unquiesce"]);
    source.script("quiesce.d/2", "");
    assert_eq!(wanted(&mut fence, Some(&id("c"))), FenceState::Fenced { fence: id("c") });
    assert_eq!(source.ran(), ["quiesce", "quiesce"]);
    assert_eq!(wanted(&mut fence, None), FenceState::Open);
}

#[test]
fn another_cutover_takes_over_a_source_that_is_fenced() {
    let source = Source::new();
    let mut fence = source.agent();
    wanted(&mut fence, Some(&id("a")));
    assert_eq!(wanted(&mut fence, Some(&id("b"))), FenceState::Fenced { fence: id("b") });
    assert_eq!(source.ran(), ["quiesce"]);
    drop(fence);
    assert_eq!(source.agent().state(), FenceState::Fenced { fence: id("b") });
}

#[test]
fn an_agent_that_comes_back_runs_nothing_twice() {
    let source = Source::new();
    wanted(&mut source.agent(), Some(&id("a")));
    let mut fence = source.agent();
    assert_eq!(fence.state(), FenceState::Fenced { fence: id("a") });
    assert_eq!(wanted(&mut fence, Some(&id("a"))), FenceState::Fenced { fence: id("a") });
    assert_eq!(source.ran(), ["quiesce"]);
    drop(fence);
    assert_eq!(wanted(&mut source.agent(), None), FenceState::Open);
    assert_eq!(source.ran(), ["unquiesce"]);
}

#[test]
fn an_agent_that_died_among_the_scripts_undoes_them() {
    let source = Source::new();
    let fence = source.agent();
    assert!(fence.keeper.announce(id("a")));
    drop(fence);
    let mut fence = source.agent();
    let state = ended(&mut fence);
    assert!(reason(&state).contains("agent was restarted"), "{state:?}");
    assert_eq!(source.ran(), ["unquiesce"]);
    assert_eq!(wanted(&mut fence, Some(&id("a"))), state);
    assert_eq!(wanted(&mut fence, None), FenceState::Open);
    assert!(source.ran().is_empty());
}

#[test]
fn an_agent_that_died_while_opening_goes_on() {
    let source = Source::new();
    let mut fence = source.agent();
    wanted(&mut fence, Some(&id("a")));
    fence.keeper.advance(Stage::Opening).unwrap();
    drop(fence);
    source.ran();
    let mut fence = source.agent();
    assert_eq!(fence.state(), FenceState::Closing { fence: id("a") });
    assert_eq!(wanted(&mut fence, None), FenceState::Open);
    assert_eq!(source.ran(), ["unquiesce"]);
}

#[test]
fn a_reboot_lifts_the_fence_and_it_has_failed() {
    let mut source = Source::new();
    wanted(&mut source.agent(), Some(&id("a")));
    source.reboot();
    source.ran();
    let mut fence = source.agent();
    let state = ended(&mut fence);
    assert!(reason(&state).contains("server was restarted"), "{state:?}");
    assert_eq!(source.ran(), ["unquiesce"]);
    source.reboot();
    drop(fence);
    let mut fence = source.agent();
    assert_eq!(ended(&mut fence), state);
    assert_eq!(wanted(&mut fence, None), FenceState::Open);
    assert!(source.ran().is_empty());
}

#[test]
fn a_source_that_cannot_be_opened_says_so_and_is_tried_again() {
    let source = Source::new();
    let mut fence = source.agent();
    wanted(&mut fence, Some(&id("a")));
    source.script("unquiesce.d/1", "echo stuck; exit 1");
    let state = wanted(&mut fence, None);
    assert!(reason(&state).contains("cannot be put back into use") && reason(&state).ends_with("stuck"), "{state:?}");
    source.script("unquiesce.d/1", "");
    // Not at once …
    assert_eq!(wanted(&mut fence, None), state);
    // … but after the pause.
    fence.retry = Some(Instant::now());
    assert_eq!(wanted(&mut fence, None), FenceState::Open);
    assert_eq!(source.ran(), ["quiesce", "unquiesce"]);
}

#[test]
fn a_person_opens_the_source_and_the_agent_hears_of_it() {
    let source = Source::new();
    let mut fence = source.agent();
    assert_eq!(unfence(&source.state(), source.hooks()).unwrap(), None);
    wanted(&mut fence, Some(&id("a")));
    assert_eq!(unfence(&source.state(), source.hooks()).unwrap(), Some(id("a")));
    assert_eq!(source.ran(), ["quiesce", "unquiesce"]);
    let state = wanted(&mut fence, Some(&id("a")));
    assert!(reason(&state).contains("by hand"), "{state:?}");
    assert_eq!(wanted(&mut fence, None), FenceState::Open);
    assert!(source.ran().is_empty());
}

#[test]
fn nothing_runs_that_cannot_be_written_down() {
    let source = Source::new();
    let mut fence = source.agent();
    fs::remove_dir_all(source.path("state")).unwrap();
    let state = wanted(&mut fence, Some(&id("a")));
    assert!(reason(&state).contains("cannot write"), "{state:?}");
    assert!(source.ran().is_empty());
    source.state();
    assert_eq!(wanted(&mut fence, None), FenceState::Open);
}

#[test]
fn a_damaged_record_is_named() {
    let source = Source::new();
    source.state().write(FENCE_FILE, b"{").unwrap();
    let error = Fence::open(&source.state(), source.hooks(), &System::default()).unwrap_err();
    assert!(error.to_string().contains("fence.json is damaged"), "{error}");
    assert!(Path::new(&source.path("state")).exists());
}
