//! Waiting for what the service does in the background.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use aws_sdk_mgn::types::{DataReplicationState, Job, JobLog, JobStatus, LaunchStatus, SourceServer};

use super::{jobs, out};
use crate::client::{Mgn, Shown};

/// How often the service is asked.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// For how long a service that does not answer is asked again: it may just be restarting.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again; an error counts once it has lasted.
pub(super) struct Patience {
    give_up: Instant,
    timeout: Duration,
    failing_since: Option<Instant>,
}

impl Patience {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { give_up: Instant::now() + timeout, timeout, failing_since: None }
    }

    /// The answer, or `None` when it is worth asking again.
    pub(super) fn tolerate<T>(&mut self, answer: Result<T>) -> Result<Option<T>> {
        match answer {
            Ok(value) => {
                self.failing_since = None;
                Ok(Some(value))
            }
            Err(error) if self.failing_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Waits before the next question.
    pub(super) async fn pause(&self, what: &str) -> Result<()> {
        if Instant::now() > self.give_up {
            bail!(
                "{what} was not over after {} s; it goes on, ask again or wait longer with --timeout",
                self.timeout.as_secs()
            );
        }
        tokio::time::sleep(INTERVAL).await;
        Ok(())
    }
}

/// Waits until the job is completed; prints its log as it grows if `live`.
pub(super) async fn for_job(mgn: &Mgn, id: &str, timeout: Duration, live: bool) -> Result<Shown<Job>> {
    let mut patience = Patience::new(timeout);
    let mut printed = 0;
    loop {
        let job = patience.tolerate(mgn.job(id).await)?;
        if live && let Some(log) = patience.tolerate(mgn.job_log(id).await)? {
            for item in log.value.iter().skip(printed) {
                out(format_args!("  {}\n", jobs::log_line(item)))?;
            }
            printed = printed.max(log.value.len());
        }
        if let Some(job) = job
            && job.value.status() == Some(&JobStatus::Completed)
        {
            return Ok(job);
        }
        patience.pause(id).await?;
    }
}

/// Waits until no job is at work on the server; fails if one of them fails.
pub(super) async fn for_jobs_of(mgn: &Mgn, server: &str, timeout: Duration) -> Result<()> {
    let at_work = |job: &&Job| {
        let takes_part = job.participating_servers().iter().any(|p| p.source_server_id() == server);
        takes_part && job.status() != Some(&JobStatus::Completed)
    };
    for job in mgn.jobs(None).await?.value.iter().filter(at_work) {
        let over = for_job(mgn, job.job_id(), timeout, false).await?;
        verdict(mgn, &over.value).await?;
    }
    Ok(())
}

/// Waits until nothing is left of the server's replication.
pub(super) async fn for_disconnection(mgn: &Mgn, id: &str, timeout: Duration) -> Result<Shown<SourceServer>> {
    let mut patience = Patience::new(timeout);
    loop {
        if let Some(server) = patience.tolerate(mgn.server(id).await)? {
            let info = server.value.data_replication_info();
            if info.and_then(|i| i.data_replication_state()) == Some(&DataReplicationState::Disconnected) {
                return Ok(server);
            }
        }
        patience.pause(id).await?;
    }
}

/// An error with its reasons when a server of the job failed.
pub(super) async fn verdict(mgn: &Mgn, job: &Job) -> Result<()> {
    let failed: BTreeSet<_> = job
        .participating_servers()
        .iter()
        .filter(|p| p.launch_status() == Some(&LaunchStatus::Failed))
        .map(|p| p.source_server_id().to_owned())
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    let log = mgn.job_log(job.job_id()).await?.value;
    let reasons: Vec<_> = failed.iter().map(|server| format!("{server}: {}", reason(&log, server))).collect();
    bail!("{} failed: {}", job.job_id(), reasons.join("; "))
}

/// The last error that the log has of the server, or of no server in particular.
fn reason(log: &[JobLog], server: &str) -> String {
    let error = |item: &JobLog| {
        let data = item.event_data()?;
        let concerns = data.source_server_id().is_none_or(|id| id == server);
        data.raw_error().filter(|_| concerns).map(str::to_owned)
    };
    log.iter().rev().find_map(error).unwrap_or_else(|| "the job's log gives no reason".to_owned())
}

#[cfg(test)]
mod tests {
    use aws_sdk_mgn::types::JobLogEventData;

    use super::*;

    fn item(server: &str, error: Option<&str>) -> JobLog {
        let data = JobLogEventData::builder().source_server_id(server).set_raw_error(error.map(str::to_owned));
        JobLog::builder().event_data(data.build()).build()
    }

    #[test]
    fn the_reason_is_the_servers_own_latest() {
        let log =
            [item("s-1", Some("first")), item("s-1", Some("second")), item("s-2", Some("other")), item("s-1", None)];
        assert_eq!(reason(&log, "s-1"), "second");
        assert_eq!(reason(&log, "s-3"), "the job's log gives no reason");
    }

    #[tokio::test]
    async fn errors_count_once_they_have_lasted() {
        let mut patience = Patience::new(Duration::from_secs(60));
        assert!(patience.tolerate::<()>(Err(anyhow::anyhow!("down"))).unwrap().is_none());
        assert_eq!(patience.tolerate(Ok(1)).unwrap(), Some(1));
        patience.failing_since = Instant::now().checked_sub(PATIENCE + Duration::from_secs(1));
        assert!(patience.tolerate::<()>(Err(anyhow::anyhow!("down"))).is_err());
    }

    #[tokio::test]
    async fn waiting_ends_with_what_to_do() {
        let patience = Patience::new(Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let error = patience.pause("mgnjob-1").await.unwrap_err().to_string();
        assert!(error.contains("mgnjob-1 was not over after 0 s"), "{error}");
    }
}
