//! Jobs and their logs.

use anyhow::Result;
use aws_sdk_mgn::types::{Job, JobLog, LaunchStatus};

use super::{out, out_json};
use crate::args::{JobArgs, JobsArgs};
use crate::client::Mgn;
use crate::show::{Facts, Table, brief, time};

/// How much of a list of servers is shown in a row.
const SERVERS_WIDTH: usize = 48;

/// Lists jobs.
pub(super) async fn list(mgn: &Mgn, args: JobsArgs, json: bool) -> Result<()> {
    let jobs = mgn.jobs(args.from).await?;
    if json {
        return out_json(&jobs.json);
    }
    if jobs.value.is_empty() {
        return out("There are no jobs. `rehost test SERVER` starts one.\n");
    }
    let mut table = Table::new(&["JOB", "TYPE", "BY", "STATUS", "RESULT", "CREATED", "SERVERS"]);
    for job in &jobs.value {
        let servers: Vec<_> = job.participating_servers().iter().map(|p| p.source_server_id()).collect();
        table.row(vec![
            job.job_id().to_owned(),
            text(job.r#type().map(|t| t.as_str())),
            text(job.initiated_by().map(|b| b.as_str())),
            text(job.status().map(|s| s.as_str())),
            result(job),
            job.creation_date_time().map(time).unwrap_or_default(),
            brief(&servers.join(" "), SERVERS_WIDTH),
        ]);
    }
    out(table)
}

/// Shows a job and its log.
pub(super) async fn show(mgn: &Mgn, args: &JobArgs, json: bool) -> Result<()> {
    let id = mgn.resolve_job(&args.job).await?;
    let mut job = mgn.job(&id).await?;
    let mut log = mgn.job_log(&id).await?;
    if json {
        job.json["log"] = log.json["items"].take();
        return out_json(&job.json);
    }
    out(format_args!("{}\n{}", facts(&job.value), servers(&job.value)))?;
    out("\nLOG\n")?;
    for item in &log.value {
        out(format_args!("{}\n", log_line(item)))?;
    }
    Ok(())
}

fn facts(job: &Job) -> Facts {
    let mut facts = Facts::default();
    facts.add("Job", job.job_id());
    facts.add_some("Type", job.r#type().map(|t| t.as_str()));
    facts.add_some("Initiated by", job.initiated_by().map(|b| b.as_str()));
    facts.add_some("Status", job.status().map(|s| s.as_str()));
    facts.add_some("Created", job.creation_date_time().map(time));
    facts.add_some("Ended", job.end_date_time().map(time));
    facts
}

fn servers(job: &Job) -> Table {
    let mut table = Table::new(&["SERVER", "STATUS", "INSTANCE"]);
    for participant in job.participating_servers() {
        table.row(vec![
            participant.source_server_id().to_owned(),
            text(participant.launch_status().map(|s| s.as_str())),
            participant.launched_ec2_instance_id().unwrap_or_default().to_owned(),
        ]);
    }
    table
}

/// One line of a log: when, what, of whom, and the error if there was one.
pub(super) fn log_line(item: &JobLog) -> String {
    let mut line = item.log_date_time().map(time).unwrap_or_default();
    line.push_str("  ");
    line.push_str(item.event().map_or("", |e| e.as_str()));
    let Some(data) = item.event_data() else { return line };
    let named = [data.source_server_id(), data.conversion_server_id(), data.target_instance_id()];
    for name in named.into_iter().flatten() {
        line.push(' ');
        line.push_str(name);
    }
    if let (Some(attempt), Some(of)) = (data.attempt_count(), data.max_attempts_count()) {
        line.push_str(&format!(" (attempt {attempt} of {of})"));
    }
    if let Some(error) = data.raw_error() {
        line.push_str("\n    ");
        line.push_str(&error.trim_end().replace('\n', "\n    "));
    }
    line
}

fn result(job: &Job) -> String {
    let count = |status| job.participating_servers().iter().filter(|p| p.launch_status() == Some(&status)).count();
    let counted = [
        (count(LaunchStatus::Launched), "launched"),
        (count(LaunchStatus::Terminated), "terminated"),
        (count(LaunchStatus::Failed), "failed"),
    ];
    let shown: Vec<_> = counted.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    shown.join(", ")
}

fn text(value: Option<&str>) -> String {
    value.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use aws_sdk_mgn::types::{JobLogEvent, JobLogEventData, ParticipatingServer};

    use super::*;

    #[test]
    fn a_log_line_tells_the_error_below() {
        let data = JobLogEventData::builder().source_server_id("s-1").raw_error("no boot loader\nrun grub-install\n");
        let item = JobLog::builder()
            .log_date_time("2026-01-31T12:00:00.000Z")
            .event(JobLogEvent::ConversionFail)
            .event_data(data.attempt_count(2).max_attempts_count(3).build())
            .build();
        assert_eq!(
            log_line(&item),
            "2026-01-31 12:00:00Z  CONVERSION_FAIL s-1 (attempt 2 of 3)\n    no boot loader\n    run grub-install"
        );
    }

    #[test]
    fn results_are_counted() {
        let of = |status| ParticipatingServer::builder().source_server_id("s-1").launch_status(status).build().unwrap();
        let servers = vec![of(LaunchStatus::Launched), of(LaunchStatus::Failed), of(LaunchStatus::Launched)];
        let job = Job::builder().job_id("mgnjob-1").set_participating_servers(Some(servers)).build().unwrap();
        assert_eq!(result(&job), "2 launched, 1 failed");
    }
}
