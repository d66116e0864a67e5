//! The service's API through the official client, and how its errors are told.

mod capture;
mod endpoint;
mod replication;
mod servers;

use anyhow::{Context, Result, anyhow};
use aws_sdk_mgn::Client;
use aws_sdk_mgn::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_mgn::types::{ChangeServerLifeCycleStateSourceServerLifecycleState as Mark, Job, JobLog};
use rehost_link::sigv4::SigningService;
use serde_json::{Value, json};

use crate::target::Target;
use capture::Bodies;
use endpoint::GatewayEndpoint;

/// A client of the service at one endpoint.
pub(crate) struct Mgn {
    sdk: Client,
    bodies: Bodies,
    pub(crate) target: Target,
}

/// What the service said: as the client's types, and as it came.
pub(crate) struct Shown<T> {
    pub(crate) value: T,
    pub(crate) json: Value,
}

/// A job that is started for servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Launch {
    Test,
    Cutover,
    Terminate,
}

/// A change of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Mark(Mark),
    Finalize,
    Archive,
    Disconnect,
    Pause,
    Resume,
    Stop,
    Start,
    Retry,
}

impl Mgn {
    /// A client of the target.
    pub(crate) fn new(target: Target) -> Self {
        let bodies = Bodies::default();
        let mut config = aws_sdk_mgn::config::Builder::from(&target.config).interceptor(bodies.clone());
        if target.scope.service == SigningService::ExecuteApi {
            config = config.endpoint_resolver(GatewayEndpoint::of(&target));
        }
        Self { sdk: Client::from_conf(config.build()), bodies, target }
    }

    /// Starts a job; its state right after.
    pub(crate) async fn launch(&self, launch: Launch, servers: Vec<String>) -> Result<Shown<Job>> {
        let ids = Some(servers);
        let job = match launch {
            Launch::Test => self.told(self.sdk.start_test().set_source_server_ids(ids).send().await)?.job,
            Launch::Cutover => self.told(self.sdk.start_cutover().set_source_server_ids(ids).send().await)?.job,
            Launch::Terminate => {
                self.told(self.sdk.terminate_target_instances().set_source_server_ids(ids).send().await)?.job
            }
        };
        let value = job.context("the service accepted the request but named no job")?;
        Ok(Shown { value, json: self.bodies.last()["job"].take() })
    }

    /// Changes one server; gives it as it is then.
    pub(crate) async fn change(&self, server: &str, change: &Change) -> Result<Value> {
        use aws_sdk_mgn::types::ChangeServerLifeCycleStateSourceServerLifecycle as LifeCycle;
        match change {
            Change::Mark(state) => {
                let life_cycle = LifeCycle::builder().state(state.clone()).build()?;
                let call = self.sdk.change_server_life_cycle_state().source_server_id(server).life_cycle(life_cycle);
                self.told(call.send().await)?;
            }
            Change::Finalize => drop(self.told(self.sdk.finalize_cutover().source_server_id(server).send().await)?),
            Change::Archive => drop(self.told(self.sdk.mark_as_archived().source_server_id(server).send().await)?),
            Change::Disconnect => {
                self.told(self.sdk.disconnect_from_service().source_server_id(server).send().await)?;
            }
            Change::Pause => drop(self.told(self.sdk.pause_replication().source_server_id(server).send().await)?),
            Change::Resume => drop(self.told(self.sdk.resume_replication().source_server_id(server).send().await)?),
            Change::Stop => drop(self.told(self.sdk.stop_replication().source_server_id(server).send().await)?),
            Change::Start => drop(self.told(self.sdk.start_replication().source_server_id(server).send().await)?),
            Change::Retry => drop(self.told(self.sdk.retry_data_replication().source_server_id(server).send().await)?),
        }
        Ok(self.bodies.last())
    }

    /// All jobs, newest first; only those created at or after `from` if given.
    pub(crate) async fn jobs(&self, from: Option<String>) -> Result<Shown<Vec<Job>>> {
        let filters = aws_sdk_mgn::types::DescribeJobsRequestFilters::builder().set_from_date(from).build();
        let mut pages = self.sdk.describe_jobs().filters(filters).into_paginator().items().send();
        let mut value = Vec::new();
        while let Some(job) = pages.next().await {
            value.push(self.told(job)?);
        }
        Ok(Shown { value, json: self.bodies.items() })
    }

    /// One job.
    pub(crate) async fn job(&self, id: &str) -> Result<Shown<Job>> {
        let filters = aws_sdk_mgn::types::DescribeJobsRequestFilters::builder().job_ids(id).build();
        let jobs = self.told(self.sdk.describe_jobs().filters(filters).send().await)?.items.unwrap_or_default();
        let value =
            jobs.into_iter().next().with_context(|| format!("there is no job {id}; `rehost jobs` lists them"))?;
        Ok(Shown { value, json: self.bodies.last()["items"][0].take() })
    }

    /// The log of a job, oldest first.
    pub(crate) async fn job_log(&self, id: &str) -> Result<Shown<Vec<JobLog>>> {
        let mut pages = self.sdk.describe_job_log_items().job_id(id).into_paginator().items().send();
        let mut value = Vec::new();
        while let Some(item) = pages.next().await {
            value.push(self.told(item)?);
        }
        Ok(Shown { value, json: self.bodies.items() })
    }

    /// The id of the one job whose id begins with `text`.
    pub(crate) async fn resolve_job(&self, text: &str) -> Result<String> {
        if text.parse::<rehost_model::JobId>().is_ok() {
            return Ok(text.to_owned());
        }
        let jobs = self.jobs(None).await?.value;
        let mut fitting = jobs.iter().map(Job::job_id).filter(|id| {
            let suffix = id.strip_prefix(rehost_model::JobId::PREFIX).unwrap_or(id);
            id.starts_with(text) || suffix.starts_with(text)
        });
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => Ok(id.to_owned()),
            (Some(_), Some(_)) => Err(anyhow!("more than one job's id begins with `{text}`; write more of it")),
            _ => Err(anyhow!("no job's id begins with `{text}`; `rehost jobs` lists them")),
        }
    }

    /// The answer, or an error in one line: what, where, and how to mend it.
    fn told<T, E>(&self, answer: Result<T, SdkError<E>>) -> Result<T>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        answer.map_err(|error| match &error {
            SdkError::ServiceError(refused) => {
                let code = refused.err().code().unwrap_or("no code");
                let status = refused.raw().status().as_u16();
                let message = refused.err().message().map_or_else(|| format!("HTTP {status}"), str::to_owned);
                anyhow!("{message} ({code})")
            }
            SdkError::DispatchFailure(_) | SdkError::TimeoutError(_) => self.target.unreachable(&root(&error)),
            _ => anyhow!("{} does not answer as MGN does: {}", self.target.endpoint(), DisplayErrorContext(&error)),
        })
    }
}

/// The innermost cause: `connection refused` says more than `dispatch failure`.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// `{"items": […]}` of several pages as one.
fn merged(pages: Vec<Value>) -> Value {
    let items = |mut page: Value| match page["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    json!({ "items": pages.into_iter().flat_map(items).collect::<Vec<_>>() })
}
