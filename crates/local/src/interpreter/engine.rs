//! Runs executions: an agenda of when each goes on, one task for each that is on its way, and a bound on running steps.
//!
//! What waits is a line in the agenda and a row in the database; nothing else of it exists.

mod tokens;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rehost_control::ports::{Clock, ExecutionStatus, PortResult, TaskOutcome, Workflows};
use rehost_control::{PortError, PortErrorKind};
use rehost_model::{ExecutionId, TaskToken, Timestamp};
use serde_json::Value;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{self, AbortHandle, JoinError, JoinHandle, JoinSet};

use super::asl::Machine;
use super::errors::{TASK_FAILED, TIMEOUT, TaskError};
use super::journal::{HistoryEntry, Journal};
use super::transition::{self, Action, Record, Status, callback};
use crate::database::Database;

/// The scheduler looks at the clock at least this often: the machine's own timers stand still while it is suspended.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// After the database refused, an execution is tried again this much later.
const TROUBLE_DELAY_MS: u64 = 5000;
/// How long running steps may take to end at a shutdown; then they are cut off, and run again at the next start.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// The longest name of an execution, as with Step Functions.
const MAX_NAME: usize = 80;

/// Runs the steps of tasks.
#[async_trait]
pub trait TaskHandler: Send + Sync {
    /// Whether there is such a step; a machine with an unknown one is refused before anything runs.
    fn knows(&self, step: &str) -> bool;

    /// Runs a step. May be dropped at any point, and called again with the same input.
    async fn run(&self, step: &str, input: Value) -> Result<Value, TaskError>;
}

/// What an [`Engine`] is made of.
pub struct EngineOptions {
    pub database: Database,
    pub clock: Arc<dyn Clock>,
    /// The state machines: name and definition.
    pub machines: Vec<(String, String)>,
    /// Steps that may run at once.
    pub max_running_steps: usize,
    /// Draws a number from 0 to 1.
    pub jitter: fn() -> f64,
}

/// The interpreter: [`Workflows`] on the region's database.
pub struct Engine {
    core: Arc<Core>,
    scheduler: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// An engine at rest: executions can be started, and begin when [`Self::resume`] is called.
    ///
    /// # Errors
    /// When a definition is refused; the message names the machine, the state and the field.
    pub fn new(options: EngineOptions) -> PortResult<Self> {
        let machines = options.machines.into_iter().map(loaded).collect::<PortResult<_>>()?;
        let core = Core {
            journal: Journal::new(options.database),
            machines,
            clock: options.clock,
            jitter: options.jitter,
            permits: Semaphore::new(options.max_running_steps),
            agenda: Mutex::default(),
            drivers: Mutex::default(),
            changed: Notify::new(),
            stopping: AtomicBool::new(false),
        };
        Ok(Self { core: Arc::new(core), scheduler: Mutex::default() })
    }

    /// Takes up every execution that is not over, and runs new ones as they are started.
    ///
    /// # Errors
    /// When a machine names a step that the handler does not know, or the database does not answer.
    pub async fn resume(&self, handler: Arc<dyn TaskHandler>) -> PortResult<()> {
        self.core.check_steps(&*handler)?;
        for (name, wake_at) in self.core.journal.running().await? {
            self.core.schedule(name, wake_at.unwrap_or_else(|| self.core.clock.now()));
        }
        self.core.stopping.store(false, Ordering::SeqCst);
        let scheduler = tokio::spawn(schedule(Arc::clone(&self.core), handler));
        if let Some(earlier) = locked(&self.scheduler).replace(scheduler) {
            earlier.abort();
        }
        Ok(())
    }

    /// Stops running executions. Steps that run get a few seconds to end; what is cut off is run again after the next
    /// [`Self::resume`].
    pub async fn shutdown(&self) {
        self.core.stopping.store(true, Ordering::SeqCst);
        self.core.changed.notify_one();
        let scheduler = locked(&self.scheduler).take();
        if let Some(scheduler) = scheduler
            && let Err(error) = scheduler.await
        {
            tracing::error!(%error, "the scheduler of the state machines ended badly");
        }
    }

    /// Looks at the clock again; for clocks that do not run by themselves.
    pub fn wake(&self) {
        self.core.changed.notify_one();
    }

    /// What happened in an execution, oldest first; the newest 2000 events are kept. Empty when there is none of that name.
    ///
    /// # Errors
    /// When the database does not answer or a row is damaged.
    pub async fn history(&self, execution: &ExecutionId) -> PortResult<Vec<HistoryEntry>> {
        self.core.journal.history(&execution.0).await
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(scheduler) = locked(&self.scheduler).take() {
            scheduler.abort();
        }
    }
}

#[async_trait]
impl Workflows for Engine {
    async fn start(&self, machine: &str, execution: &ExecutionId, input: Value) -> PortResult<()> {
        check_name(&execution.0)?;
        let definition = self.core.machines.get(machine).ok_or_else(|| self.core.no_machine(machine))?;
        let now = self.core.clock.now();
        let (record, happenings) =
            transition::begin(&execution.0, machine, &definition.text, &definition.machine, input, now);
        let wake_at = record.wake_at.unwrap_or(now);
        if self.core.journal.create(record, happenings).await? {
            self.core.schedule(execution.0.clone(), wake_at);
        }
        Ok(())
    }

    async fn stop(&self, execution: &ExecutionId, cause: &str) -> PortResult<()> {
        let name = &execution.0;
        loop {
            let record = self.core.journal.load(name).await?;
            let record = record.ok_or_else(|| PortError::not_found(format!("there is no execution `{name}`")))?;
            if record.status != Status::Running {
                return Ok(());
            }
            let machine = self.core.machine_of(&record)?;
            let now = self.core.clock.now();
            if self.core.commit(record, |record| transition::abort(&machine, record, cause, now), now).await? {
                self.core.cut_off(name);
                return Ok(());
            }
        }
    }

    async fn status(&self, execution: &ExecutionId) -> PortResult<Option<ExecutionStatus>> {
        Ok(self.core.journal.load(&execution.0).await?.map(status_of))
    }

    async fn report(&self, token: &TaskToken, outcome: TaskOutcome) -> PortResult<()> {
        self.core.report(token, outcome).await
    }

    async fn heartbeat(&self, token: &TaskToken) -> PortResult<()> {
        self.core.heartbeat(token).await
    }
}

fn status_of(record: Record) -> ExecutionStatus {
    match record.status {
        Status::Running => ExecutionStatus::Running,
        Status::Succeeded => ExecutionStatus::Succeeded(record.output.unwrap_or(Value::Null)),
        Status::Aborted => ExecutionStatus::Aborted,
        Status::Failed | Status::TimedOut => {
            let TaskError { error, cause } =
                record.error.unwrap_or_else(|| TaskError::new(TASK_FAILED, "the reason was not recorded"));
            ExecutionStatus::Failed { error, cause }
        }
    }
}

fn check_name(name: &str) -> PortResult<()> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    if !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(allowed) {
        return Ok(());
    }
    let why = format!("`{name}` is no name of an execution: 1 to {MAX_NAME} characters of `A-Z a-z 0-9 - _`");
    Err(PortError::invalid(why))
}

/// A definition's text and what it says.
struct Definition {
    text: String,
    machine: Arc<Machine>,
}

fn loaded((name, text): (String, String)) -> PortResult<(String, Definition)> {
    let machine = Machine::parse(&text)
        .map_err(|e| PortError::invalid(format!("the definition of the state machine `{name}` is refused: {e}")))?;
    Ok((name, Definition { text, machine: Arc::new(machine) }))
}

struct Core {
    journal: Journal,
    machines: BTreeMap<String, Definition>,
    clock: Arc<dyn Clock>,
    jitter: fn() -> f64,
    permits: Semaphore,
    agenda: Mutex<BTreeSet<(Timestamp, String)>>,
    drivers: Mutex<HashMap<String, AbortHandle>>,
    changed: Notify,
    stopping: AtomicBool,
}

/// What one turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turned {
    /// It committed a transition, or found that another had been committed.
    On,
    Sleeping(Timestamp),
    Over,
}

impl Core {
    fn check_steps(&self, handler: &dyn TaskHandler) -> PortResult<()> {
        for (name, definition) in &self.machines {
            if let Some(step) = definition.machine.steps().into_iter().find(|step| !handler.knows(step)) {
                return Err(PortError::invalid(format!("the state machine `{name}` runs the unknown step `{step}`")));
            }
        }
        Ok(())
    }

    fn no_machine(&self, name: &str) -> PortError {
        let known = self.machines.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        PortError::not_found(format!("there is no state machine `{name}`; there are: {known}"))
    }

    /// The machine of an execution, by the definition that it was started with.
    fn machine_of(&self, record: &Record) -> PortResult<Arc<Machine>> {
        if let Some(current) = self.machines.get(&record.machine).filter(|current| current.text == record.definition) {
            return Ok(Arc::clone(&current.machine));
        }
        let named = || format!("the definition of the execution `{}` is refused", record.name);
        Machine::parse(&record.definition).map(Arc::new).map_err(|e| PortError::invalid(format!("{}: {e}", named())))
    }

    fn schedule(&self, name: String, at: Timestamp) {
        locked(&self.agenda).insert((at, name));
        self.changed.notify_one();
    }

    /// Takes the executions out of the agenda that are due.
    fn due(&self) -> Vec<String> {
        let now = self.clock.now();
        let mut agenda = locked(&self.agenda);
        let mut names = Vec::new();
        while agenda.first().is_some_and(|(at, _)| *at <= now) {
            names.extend(agenda.pop_first().map(|(_, name)| name));
        }
        names
    }

    fn time_to_next(&self) -> Duration {
        let now = self.clock.now();
        let next = locked(&self.agenda).first().map(|(at, _)| Duration::from_millis(at.ms_since(now)));
        next.map_or(LONGEST_SLEEP, |next| next.min(LONGEST_SLEEP))
    }

    fn cut_off(&self, name: &str) {
        if let Some(driver) = locked(&self.drivers).get(name) {
            driver.abort();
        }
        locked(&self.agenda).retain(|(_, scheduled)| scheduled != name);
    }

    /// Lets an execution go on at `at` instead of when it would have.
    fn reschedule(&self, name: &str, at: Timestamp) {
        locked(&self.agenda).retain(|(_, scheduled)| scheduled != name);
        self.schedule(name.to_owned(), at);
    }

    async fn commit(
        &self,
        mut record: Record,
        change: impl FnOnce(&mut Record) -> Vec<transition::Happening>,
        now: Timestamp,
    ) -> PortResult<bool> {
        let happenings = change(&mut record);
        self.journal.commit(record, happenings, now).await
    }

    /// Carries an execution on by one transition.
    async fn turn(&self, handler: &Arc<dyn TaskHandler>, name: &str) -> PortResult<Turned> {
        let Some(record) = self.journal.load(name).await? else { return Ok(Turned::Over) };
        let machine = self.machine_of(&record)?;
        let now = self.clock.now();
        match transition::action(&machine, &record, now) {
            Action::Over => return Ok(Turned::Over),
            Action::Sleep(until) => return Ok(Turned::Sleeping(until)),
            Action::Turn => {
                self.commit(record, |record| transition::turn(&machine, record, now), now).await?;
            }
            Action::Issue => {
                let (token, jitter) = (tokens::issue(name)?, (self.jitter)());
                self.commit(record, |r| callback::issue(&machine, r, token, now, jitter), now).await?;
            }
            Action::Expire(error) => {
                let jitter = (self.jitter)();
                let change = |record: &mut Record| transition::task_ended(&machine, record, Err(error), now, jitter);
                self.commit(record, change, now).await?;
            }
            Action::Run { .. } => self.run_task(handler, &machine, record).await?,
        }
        Ok(Turned::On)
    }

    async fn run_task(&self, handler: &Arc<dyn TaskHandler>, machine: &Machine, record: Record) -> PortResult<()> {
        let _permit = self.permits.acquire().await.map_err(PortError::unavailable)?;
        // Waiting for the permit took its time: the deadline counts from here.
        let begun = self.clock.now();
        let Action::Run { step, input, deadline } = transition::action(machine, &record, begun) else { return Ok(()) };
        let limit = deadline.map(|deadline| Duration::from_millis(deadline.ms_since(begun)));
        let result = run_step(handler, step, input, limit).await;
        let (now, jitter) = (self.clock.now(), (self.jitter)());
        let change = |record: &mut Record| match (&record.awaited, result) {
            (Some(_), Ok(_)) => callback::submitted(machine, record, now),
            // When its time was up while the step ran, it is told by which clock.
            (Some(_), Err(error)) if error.error == TIMEOUT => {
                let expired = match transition::action(machine, record, now) {
                    Action::Expire(expired) => expired,
                    _ => error,
                };
                transition::task_ended(machine, record, Err(expired), now, jitter)
            }
            (_, result) => transition::task_ended(machine, record, result, now, jitter),
        };
        self.commit(record, change, now).await.map(|_| ())
    }

    /// Carries an execution on as far as it goes without waiting; gives when it goes on.
    async fn drive(&self, handler: &Arc<dyn TaskHandler>, name: &str) -> Option<Timestamp> {
        while !self.stopping.load(Ordering::SeqCst) {
            match self.turn(handler, name).await {
                Ok(Turned::On) => {}
                Ok(Turned::Sleeping(until)) => return Some(until),
                Ok(Turned::Over) => return None,
                Err(error) => return self.after_trouble(name, &error),
            }
        }
        None
    }

    fn after_trouble(&self, name: &str, error: &PortError) -> Option<Timestamp> {
        if error.kind == PortErrorKind::Invalid {
            tracing::error!(execution = name, %error, "the execution cannot go on");
            return None;
        }
        tracing::warn!(execution = name, %error, "the execution is tried again in {TROUBLE_DELAY_MS} ms");
        Some(self.clock.now().plus_ms(TROUBLE_DELAY_MS))
    }
}

/// Runs a step as a task of its own, so that a panic in it is an error like others; it ends when this future is dropped.
async fn run_step(
    handler: &Arc<dyn TaskHandler>,
    step: String,
    input: Value,
    limit: Option<Duration>,
) -> Result<Value, TaskError> {
    let (handler, name) = (Arc::clone(handler), step.clone());
    let mut running = JoinSet::new();
    running.spawn(async move { handler.run(&name, input).await });
    let ended = match limit {
        None => running.join_next().await,
        Some(limit) => match tokio::time::timeout(limit, running.join_next()).await {
            Ok(ended) => ended,
            Err(_) => {
                let cause = format!("the step `{step}` took longer than {} s", limit.as_secs());
                return Err(TaskError::new(TIMEOUT, cause));
            }
        },
    };
    match ended {
        Some(Ok(result)) => result,
        Some(Err(error)) => {
            Err(TaskError::new(TASK_FAILED, format!("the step `{step}` panicked: {}", panic_text(error))))
        }
        None => Err(TaskError::new(TASK_FAILED, format!("the step `{step}` did not run"))),
    }
}

fn panic_text(error: JoinError) -> String {
    match error.try_into_panic() {
        Err(error) => error.to_string(),
        Ok(panic) => match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (None, Some(text)) => (*text).to_owned(),
            (None, None) => "without a message".to_owned(),
        },
    }
}

/// The scheduler: starts what is due, and enters into the agenda what drivers say.
async fn schedule(core: Arc<Core>, handler: Arc<dyn TaskHandler>) {
    let mut running: JoinSet<Option<Timestamp>> = JoinSet::new();
    let mut names: HashMap<task::Id, String> = HashMap::new();
    // What became due while it was driven: its driver may have seen it as it was before.
    let mut missed: HashSet<String> = HashSet::new();
    while !core.stopping.load(Ordering::SeqCst) {
        for name in core.due() {
            if names.values().any(|driven| *driven == name) {
                missed.insert(name);
            } else {
                spawn_driver(&core, &handler, name, &mut running, &mut names);
            }
        }
        tokio::select! {
            () = core.changed.notified() => {}
            () = tokio::time::sleep(core.time_to_next()) => {}
            Some(ended) = running.join_next_with_id() => {
                if let Some(name) = driver_ended(&core, &mut names, ended).filter(|name| missed.remove(name)) {
                    core.schedule(name, core.clock.now());
                }
            }
        }
    }
    let ended = tokio::time::timeout(SHUTDOWN_GRACE, async { while running.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!("{} running steps are cut off; they run again at the next start", running.len());
    }
    running.shutdown().await;
    locked(&core.drivers).clear();
}

fn spawn_driver(
    core: &Arc<Core>,
    handler: &Arc<dyn TaskHandler>,
    name: String,
    running: &mut JoinSet<Option<Timestamp>>,
    names: &mut HashMap<task::Id, String>,
) {
    let driver = {
        let (core, handler, name) = (Arc::clone(core), Arc::clone(handler), name.clone());
        running.spawn(async move { core.drive(&handler, &name).await })
    };
    names.insert(driver.id(), name.clone());
    locked(&core.drivers).insert(name, driver);
}

/// Takes a driver out of the lists; the name of what it drove.
fn driver_ended(
    core: &Core,
    names: &mut HashMap<task::Id, String>,
    ended: Result<(task::Id, Option<Timestamp>), JoinError>,
) -> Option<String> {
    let id = match &ended {
        Ok((id, _)) => *id,
        Err(error) => error.id(),
    };
    let name = names.remove(&id)?;
    locked(&core.drivers).remove(&name);
    match ended {
        Ok((_, Some(at))) => core.schedule(name.clone(), at),
        Ok((_, None)) => {}
        Err(error) if error.is_cancelled() => {}
        Err(error) => {
            tracing::error!(execution = name, %error, "the execution cannot go on: a defect of the interpreter");
        }
    }
    Some(name)
}

/// A number drawn from 0 to 1.
#[must_use]
pub fn random_jitter() -> f64 {
    // Without randomness there is no spreading of retries, and nothing worse.
    let drawn = getrandom::u32().unwrap_or(u32::MAX);
    f64::from(drawn) / f64::from(u32::MAX)
}

/// None of the locks is held while anything can fail: what a panic elsewhere left behind is whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
