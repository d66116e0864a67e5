//! A process under GNU `time`, and medians.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// What a sync cost.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Measured {
    /// User and system time of both sides.
    pub(crate) cpu_seconds: f64,
    pub(crate) wall_seconds: f64,
    pub(crate) sender_peak_mib: f64,
    pub(crate) receiver_peak_mib: f64,
    /// Bytes of frames, as the sender counts them; none where the sender does not.
    pub(crate) wire_mb: Option<f64>,
}

/// What one process cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) cpu_seconds: f64,
    /// The user time of it.
    pub(crate) user_cpu_seconds: f64,
    pub(crate) peak_mib: f64,
}

/// A process under `time`.
pub(crate) struct Timed {
    child: Child,
    report: PathBuf,
    what: String,
}

impl Timed {
    /// Starts `program`; its own output goes nowhere, its errors to ours.
    pub(crate) fn start(report: &Path, program: &Path, arguments: &[&str]) -> Result<Self> {
        let what = program.display().to_string();
        let child = Command::new("time")
            .args(["-q", "-f", "%U %S %M", "-o"])
            .arg(report)
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {what} under time (Debian's package time)"))?;
        Ok(Self { child, report: report.to_owned(), what })
    }

    /// Asks the measured process (not `time`) to end.
    pub(crate) fn terminate(&self) -> Result<()> {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let pids = fs::read_to_string(&children).with_context(|| format!("read {children}"))?;
        for pid in pids.split_whitespace() {
            Command::new("kill").args(["-TERM", pid]).status()?;
        }
        Ok(())
    }

    /// Waits for the end; a failure counts unless it was asked to end.
    pub(crate) fn finish(mut self, may_fail: bool) -> Result<Cost> {
        let status = self.child.wait()?;
        if !status.success() && !may_fail {
            bail!("{} ended with {status}", self.what);
        }
        let text = fs::read_to_string(&self.report).with_context(|| format!("read {}", self.report.display()))?;
        let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match numbers.as_slice() {
            [user, system, kib] => {
                Ok(Cost { cpu_seconds: user + system, user_cpu_seconds: *user, peak_mib: kib / 1024.0 })
            }
            _ => bail!("time wrote `{text}` about {}", self.what),
        }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        // Only after a failure: a process that was waited for is not there any more.
        let _ = self.terminate();
    }
}

/// The medians, each figure by itself.
pub(crate) fn median(all: &[Measured]) -> Measured {
    let of = |figure: fn(&Measured) -> f64| {
        let mut figures: Vec<f64> = all.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or_default()
    };
    Measured {
        cpu_seconds: of(|m| m.cpu_seconds),
        wall_seconds: of(|m| m.wall_seconds),
        sender_peak_mib: of(|m| m.sender_peak_mib),
        receiver_peak_mib: of(|m| m.receiver_peak_mib),
        wire_mb: all.iter().all(|m| m.wire_mb.is_some()).then(|| of(|m| m.wire_mb.unwrap_or_default())),
    }
}

/// `USER_HZ`, which Linux has fixed for all that it shows (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time that a running process has used so far, and the user time of it.
pub(crate) fn cpu_seconds(pid: u32) -> Result<(f64, f64)> {
    cpu_seconds_of(&PathBuf::from(format!("/proc/{pid}")))
}

/// The same of the threads of this name that the process has now.
pub(crate) fn thread_cpu_seconds(pid: u32, name: &str) -> Result<(f64, f64)> {
    let mut sum = (0.0, 0.0);
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path();
        // A thread may end at any moment, and its time is its process's then.
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            let (all, user) = cpu_seconds_of(&path).unwrap_or_default();
            sum = (sum.0 + all, sum.1 + user);
        }
    }
    Ok(sum)
}

/// Of a process or of a thread.
fn cpu_seconds_of(proc: &Path) -> Result<(f64, f64)> {
    let stat = fs::read_to_string(proc.join("stat"))?;
    // The command's name may have spaces in it; `utime` and `stime` are the 12th and 13th field after it (proc(5)).
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let seconds = |at: usize| {
        let ticks = fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok());
        ticks.map(|ticks| ticks / TICKS_PER_SECOND).context("/proc/PID/stat")
    };
    let user = seconds(11)?;
    Ok((user + seconds(12)?, user))
}
