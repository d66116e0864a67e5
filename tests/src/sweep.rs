//! Processes by a path of their command line: what a region started and nobody ended.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// The processes whose command line names something in `folder`, which must be unique to the test.
#[must_use]
pub fn processes_naming(folder: &Path) -> Vec<u32> {
    let needle = folder.as_os_str().as_encoded_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let names = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() && line.windows(needle.len()).any(|window| window == needle)
    };
    pids.filter(names).collect()
}

/// Kills them, and waits until they are gone (some seconds at most).
pub fn kill_naming(folder: &Path) {
    for _ in 0..50 {
        let pids = processes_naming(folder);
        if pids.is_empty() {
            return;
        }
        kill(&pids);
        thread::sleep(Duration::from_millis(100));
    }
}

/// Kills those that run now, without waiting; which these were.
pub fn kill_naming_once(folder: &Path) -> Vec<u32> {
    let pids = processes_naming(folder);
    kill(&pids);
    pids
}

fn kill(pids: &[u32]) {
    for pid in pids {
        // Not through a handle: they are nobody's children here. The path in their command line says that they are ours.
        let _ = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).output();
    }
}
