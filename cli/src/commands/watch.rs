//! Following servers as they replicate.

use std::collections::HashMap;
use std::io::IsTerminal;

use anyhow::{Result, bail};
use aws_sdk_mgn::types::{JobStatus, LifeCycleState, SourceServer};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use rehost_model::JobId;
use serde_json::json;

use super::wait::{Patience, verdict};
use super::{jobs, out};
use crate::args::WatchArgs;
use crate::client::{Mgn, Shown};
use crate::report;
use crate::show::{brief, percent};

/// Without a terminal a line is printed when this much more is done; percent.
const LINE_STEP: u64 = 5;

/// Room for a message at the end of a bar.
const MESSAGE_WIDTH: usize = 60;

/// Data replication states, by which `--until` may be meant as well as by a lifecycle state.
const REPLICATION_STATES: [&str; 10] = [
    "STOPPED",
    "INITIATING",
    "INITIAL_SYNC",
    "BACKLOG",
    "CREATING_SNAPSHOT",
    "CONTINUOUS",
    "PAUSED",
    "RESCAN",
    "STALLED",
    "DISCONNECTED",
];

/// When to stop.
#[derive(Debug, PartialEq, Eq)]
enum Until {
    Forever,
    State(String),
    Job(JobId),
}

impl Until {
    fn parse(text: Option<&str>) -> Result<Self> {
        let Some(text) = text else { return Ok(Self::Forever) };
        if let Ok(job) = text.parse() {
            return Ok(Self::Job(job));
        }
        let state = text.to_ascii_uppercase();
        if LifeCycleState::values().contains(&state.as_str()) || REPLICATION_STATES.contains(&state.as_str()) {
            return Ok(Self::State(state));
        }
        let states = LifeCycleState::values().join(", ");
        bail!("`{text}` is neither a job nor a state; states: {states}, {}", REPLICATION_STATES.join(", "))
    }

    fn reached_by(&self, servers: &[SourceServer]) -> bool {
        match self {
            Self::State(state) => {
                let there = |s| report::life_cycle(s) == state || report::replication(s) == state;
                !servers.is_empty() && servers.iter().all(there)
            }
            Self::Forever | Self::Job(_) => false,
        }
    }
}

/// Shows servers again and again until what `--until` names.
pub(super) async fn watch(mgn: &Mgn, args: &WatchArgs, json: bool) -> Result<()> {
    let until = Until::parse(args.until.as_deref())?;
    let only = match &args.server {
        Some(text) => Some(mgn.resolve(text).await?),
        None => None,
    };
    let mut view = View::of(json);
    let timeout = if until == Until::Forever { std::time::Duration::MAX / 4 } else { args.timeout };
    let mut patience = Patience::new(timeout);
    loop {
        if let Some(servers) = patience.tolerate(read(mgn, only.as_deref()).await)? {
            view.show(&servers)?;
            if until.reached_by(&servers.value) {
                return Ok(());
            }
        }
        if let Until::Job(id) = &until
            && job_is_over(mgn, id, &mut patience, &mut view).await?
        {
            return Ok(());
        }
        patience.pause("what --until names").await?;
    }
}

async fn read(mgn: &Mgn, only: Option<&str>) -> Result<Shown<Vec<SourceServer>>> {
    match only {
        Some(id) => {
            let server = mgn.server(id).await?;
            Ok(Shown { value: vec![server.value], json: json!({ "items": [server.json] }) })
        }
        None => mgn.servers(false, &[]).await,
    }
}

async fn job_is_over(mgn: &Mgn, id: &JobId, patience: &mut Patience, view: &mut View) -> Result<bool> {
    if let Some(log) = patience.tolerate(mgn.job_log(id.as_str()).await)? {
        view.log(log.value.iter().map(jobs::log_line).collect())?;
    }
    let job = patience.tolerate(mgn.job(id.as_str()).await)?;
    let Some(job) = job.filter(|job| job.value.status() == Some(&JobStatus::Completed)) else { return Ok(false) };
    verdict(mgn, &job.value).await?;
    Ok(true)
}

/// How changes are shown, and how much of a job's log was.
struct View {
    kind: Kind,
    logged: usize,
}

enum Kind {
    Bars { all: MultiProgress, by_server: HashMap<String, ProgressBar> },
    Lines { last: HashMap<String, String>, json: bool },
}

impl View {
    fn of(json: bool) -> Self {
        let live = !json && std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        let bars = || Kind::Bars { all: MultiProgress::new(), by_server: HashMap::new() };
        let lines = || Kind::Lines { last: HashMap::new(), json };
        Self { kind: if live { bars() } else { lines() }, logged: 0 }
    }

    fn show(&mut self, servers: &Shown<Vec<SourceServer>>) -> Result<()> {
        match &mut self.kind {
            Kind::Bars { all, by_server } => {
                for server in &servers.value {
                    let bar =
                        by_server.entry(report::id(server).to_owned()).or_insert_with(|| all.add(new_bar(server)));
                    update(bar, server);
                }
                Ok(())
            }
            Kind::Lines { last, json } => {
                for (server, raw) in servers.value.iter().zip(servers.json["items"].as_array().into_iter().flatten()) {
                    let seen = last.insert(report::id(server).to_owned(), change_key(server));
                    if seen.as_deref() == last.get(report::id(server)).map(String::as_str) {
                        continue;
                    }
                    if *json { out(format_args!("{raw}\n"))? } else { out(format_args!("{}\n", line(server)))? }
                }
                Ok(())
            }
        }
    }

    fn log(&mut self, lines: Vec<String>) -> Result<()> {
        let new = lines.into_iter().skip(self.logged).collect::<Vec<_>>();
        self.logged += new.len();
        for line in new {
            match &self.kind {
                Kind::Bars { all, .. } => all.println(line)?,
                Kind::Lines { json: false, .. } => out(format_args!("{line}\n"))?,
                Kind::Lines { json: true, .. } => {}
            }
        }
        Ok(())
    }
}

fn new_bar(server: &SourceServer) -> ProgressBar {
    let template = "{prefix:20!} {bar:24} {percent:>3} % {binary_bytes:>10}/{binary_total_bytes:10} {msg}";
    // The template is a constant; if a release of the library refused it, its default is shown.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let host = report::host(server);
    let name = if host.is_empty() { report::id(server) } else { host };
    ProgressBar::new(0).with_style(style.progress_chars("█▉▊▋▌▍▎▏ ")).with_prefix(name.to_owned())
}

fn update(bar: &ProgressBar, server: &SourceServer) {
    let progress = report::Progress::of(server);
    bar.set_length(progress.total);
    bar.set_position(progress.done);
    bar.set_message(message(server));
}

fn message(server: &SourceServer) -> String {
    let mut words = vec![report::life_cycle(server).to_owned(), report::replication(server).to_owned()];
    words.extend(report::lag(server).map(|lag| format!("lag {lag}")));
    words.extend(report::error(server));
    brief(&words.join("  "), MESSAGE_WIDTH)
}

/// What must differ for another line.
fn change_key(server: &SourceServer) -> String {
    let progress = report::Progress::of(server);
    let step = percent(progress.done, progress.total) / LINE_STEP;
    let (states, error) = ((report::life_cycle(server), report::replication(server)), report::error(server));
    format!("{states:?} {step} {error:?} {:?} {:?}", report::instance(server), current_step(server))
}

fn line(server: &SourceServer) -> String {
    let progress = report::Progress::of(server);
    let mut words = vec![report::id(server).to_owned(), report::host(server).to_owned()];
    words.extend([report::life_cycle(server).to_owned(), report::replication(server).to_owned()]);
    words.extend(current_step(server).map(|step| format!("({step})")));
    if progress.total > 0 {
        words.push(format!("{} of {}", progress.percent_text(), progress.total_text()));
    }
    words.extend(report::lag(server).map(|lag| format!("lag {lag}")));
    words.extend(report::instance(server).map(str::to_owned));
    words.extend(report::error(server));
    words.retain(|word| !word.is_empty());
    words.join("  ")
}

/// The step of the initiation that is under way or failed.
fn current_step(server: &SourceServer) -> Option<&str> {
    use aws_sdk_mgn::types::DataReplicationInitiationStepStatus as Status;
    let steps = server.data_replication_info()?.data_replication_initiation()?.steps();
    let step = steps.iter().find(|s| matches!(s.status(), Some(Status::InProgress | Status::Failed)))?;
    step.name().map(|name| name.as_str())
}

#[cfg(test)]
mod tests {
    use aws_sdk_mgn::types::{
        DataReplicationInfo, DataReplicationInfoReplicatedDisk as Disk, DataReplicationState, LifeCycle,
    };

    use super::*;

    fn server(state: LifeCycleState, replication: DataReplicationState, done: i64) -> SourceServer {
        let disk = Disk::builder().total_storage_bytes(1000).replicated_storage_bytes(done).build();
        let info = DataReplicationInfo::builder().data_replication_state(replication).replicated_disks(disk).build();
        let life_cycle = LifeCycle::builder().state(state).build();
        SourceServer::builder().source_server_id("s-1").life_cycle(life_cycle).data_replication_info(info).build()
    }

    #[test]
    fn the_end_is_a_job_or_a_state() {
        assert_eq!(Until::parse(None).unwrap(), Until::Forever);
        assert_eq!(Until::parse(Some("ready_for_test")).unwrap(), Until::State("READY_FOR_TEST".to_owned()));
        assert!(matches!(Until::parse(Some("mgnjob-0123456789abcdef0")).unwrap(), Until::Job(_)));
        assert!(Until::parse(Some("done")).unwrap_err().to_string().contains("READY_FOR_TEST"));
    }

    #[test]
    fn all_servers_must_be_there() {
        let until = Until::State("CONTINUOUS".to_owned());
        let ready = server(LifeCycleState::ReadyForTest, DataReplicationState::Continuous, 1000);
        let not_ready = server(LifeCycleState::NotReady, DataReplicationState::InitialSync, 10);
        assert!(until.reached_by(std::slice::from_ref(&ready)));
        assert!(!until.reached_by(&[ready.clone(), not_ready]));
        assert!(!until.reached_by(&[]));
        assert!(Until::State("READY_FOR_TEST".to_owned()).reached_by(&[ready]));
    }

    #[test]
    fn lines_are_printed_when_something_changed() {
        let at = |done| change_key(&server(LifeCycleState::NotReady, DataReplicationState::InitialSync, done));
        assert_eq!(at(100), at(149));
        assert_ne!(at(100), at(150));
        let text = line(&server(LifeCycleState::NotReady, DataReplicationState::InitialSync, 450));
        assert_eq!(text, "s-1  NOT_READY  INITIAL_SYNC  45 % of 1000 B");
    }
}
