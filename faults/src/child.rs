//! A role in a process of its own: it is told what to do by lines on its input, and says how it is by lines of JSON.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rehost_tests::process::last_lines;
use serde::de::DeserializeOwned;

use crate::failure::Outcome;
use crate::interrupt::wait;

/// A running role. It is killed when this is dropped, and ends by itself when its input ends.
pub(crate) struct Role<S> {
    name: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    newest: Arc<Mutex<Option<String>>>,
    log: PathBuf,
    status: PhantomData<S>,
}

impl<S: DeserializeOwned> Role<S> {
    /// Starts `faults NAME FOLDER ARGUMENTS`. Its errors are added to `FOLDER/NAME.log`.
    pub(crate) fn start(
        name: &'static str,
        folder: &Path,
        arguments: &[String],
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let errors = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(name).arg(folder).args(arguments).env_remove("REHOST_PLANTED");
        command.env_remove("REHOST_PLANTED_IO").envs(environment.iter().map(|(name, value)| (name, value)));
        // A group of its own: Ctrl-C is for the conductor, which ends its roles in order.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().with_context(|| format!("start the {name}"))?;
        let newest = Arc::new(Mutex::new(None));
        let output = child.stdout.take().context("a piped output")?;
        thread::spawn({
            let newest = Arc::clone(&newest);
            move || follow(output, &newest)
        });
        let input = child.stdin.take();
        Ok(Self { name, child, input, newest, log, status: PhantomData })
    }

    /// The newest thing it said.
    pub(crate) fn status(&self) -> Option<S> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        serde_json::from_str(&newest).ok()
    }

    /// Tells it something. If it is dead, nothing happens.
    pub(crate) fn tell(&mut self, words: &str) {
        if let Some(input) = &mut self.input {
            let _ = writeln!(input, "{words}").and_then(|()| input.flush());
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("the {} with {status}", self.name)),
            Err(error) => Some(format!("the {}: {error}", self.name)),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it where it is, and waits until all of its threads stand still.
    pub(crate) fn stop_still(&self) -> Outcome {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::STOP).map_err(std::io::Error::from)?;
        }
        let still = || Ok(self.stands_still().then_some(()));
        wait("the standstill of a stopped process", Duration::from_secs(10), still, || self.name.to_owned())
    }

    /// Whether it is stopped, with all of its threads.
    pub(crate) fn stands_still(&self) -> bool {
        threads_still(self.pid())
    }

    /// SIGKILL, and reaps it.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Lets it end by itself.
    pub(crate) fn finish(&mut self, patience: Duration) -> Outcome {
        self.input = None;
        let what = format!("the end of the {}", self.name);
        let (child, log) = (&mut self.child, &self.log);
        wait(&what, patience, || Ok(child.try_wait()?), || tail(log)).map(drop)
    }

    /// What it said last, for a report.
    pub(crate) fn last_words(&self) -> String {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = tail(&self.log);
        format!("{} says {} {text}", self.name, newest.unwrap_or_else(|| "nothing".to_owned()))
    }
}

impl<S> Drop for Role<S> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(output: ChildStdout, newest: &Mutex<Option<String>>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        *newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
    }
}

fn tail(log: &Path) -> String {
    last_lines(&String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()), 6)
}

fn threads_still(pid: u32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The state follows the name, which is in parentheses and may hold anything.
        stat.rsplit_once(')').is_none_or(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('T' | 'X' | 'Z')))
    })
}
