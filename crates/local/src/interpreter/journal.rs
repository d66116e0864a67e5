//! Executions and their history in the database. Every transition is one transaction.

use rehost_control::PortError;
use rehost_control::ports::PortResult;
use rehost_model::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::errors::TaskError;
use super::transition::{Happening, Record, Status};
use crate::database::{Database, TransactionError, damaged};

/// An execution keeps this many events, the newest: a chain that polls for weeks must not fill the disk.
const HISTORY_LIMIT: u64 = 2000;

/// One event of an execution.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryEntry {
    /// From 1, without gaps.
    pub sequence: u64,
    pub time: Timestamp,
    /// Named as in Step Functions, such as `TaskStateEntered`.
    pub event: String,
    /// The state that it happened in; none for `ExecutionStarted`.
    pub state: Option<String>,
    pub detail: Value,
}

/// The tables `execution` and `history`.
#[derive(Clone)]
pub(super) struct Journal {
    database: Database,
}

impl Journal {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Writes a new execution; false, and nothing is written, when there is one of its name.
    pub(super) async fn create(&self, record: Record, happenings: Vec<Happening>) -> PortResult<bool> {
        self.database
            .transact(move |t| {
                let created = insert(t, &record)?;
                if created {
                    append(t, &record, &happenings, record.entered_at)?;
                }
                Ok(created)
            })
            .await
    }

    /// Writes what a transition made of an execution; false, and nothing is written, when it is no longer where the
    /// transition began (`revision` was another).
    pub(super) async fn commit(&self, record: Record, happenings: Vec<Happening>, now: Timestamp) -> PortResult<bool> {
        self.database
            .transact(move |t| {
                let current = update(t, &record)?;
                if current {
                    append(t, &record, &happenings, now)?;
                }
                Ok(current)
            })
            .await
    }

    pub(super) async fn load(&self, name: &str) -> PortResult<Option<Record>> {
        let wanted = name.to_owned();
        let row = self.database.transact(move |t| Ok(select(t, &wanted)?)).await?;
        let named = || format!("the execution `{name}`");
        row.map(|row| row.decode().map_err(|why| damaged(self.database.path(), &named(), why))).transpose()
    }

    /// The names of all executions that are not over, with the time at which they go on.
    pub(super) async fn running(&self) -> PortResult<Vec<(String, Option<Timestamp>)>> {
        self.database
            .transact(|t| {
                let mut query = t.prepare_cached("SELECT name, wake_at FROM execution WHERE status = 'RUNNING'")?;
                let rows = query.query_map([], |row| Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?)))?;
                let rows: Vec<(String, Option<i64>)> = rows.collect::<rusqlite::Result<_>>()?;
                Ok(rows.into_iter().map(|(name, at)| (name, at.map(Timestamp::from_unix_ms))).collect())
            })
            .await
    }

    pub(super) async fn history(&self, name: &str) -> PortResult<Vec<HistoryEntry>> {
        let wanted = name.to_owned();
        let rows = self.database.transact(move |t| Ok(entries(t, &wanted)?)).await?;
        let named = format!("the history of the execution `{name}`");
        rows.into_iter()
            .map(|row| decode_entry(row).map_err(|why| damaged(self.database.path(), &named, why)))
            .collect()
    }
}

fn insert(t: &Transaction<'_>, r: &Record) -> Result<bool, TransactionError> {
    let inserted = t
        .prepare_cached(
            "INSERT INTO execution (name, machine, definition, definition_hash, sequence, status, state, input,
                                    started_at, entered_at, attempts, wake_at, output, error, cause, revision, awaited)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            r.name,
            r.machine,
            r.definition,
            hash(&r.definition),
            column(r.sequence)?,
            r.status.as_str(),
            r.state,
            r.input.to_string(),
            r.started_at.unix_ms(),
            r.entered_at.unix_ms(),
            Value::from(r.attempts.clone()).to_string(),
            r.wake_at.map(Timestamp::unix_ms),
            r.output.as_ref().map(Value::to_string),
            r.error.as_ref().map(|e| &e.error),
            r.error.as_ref().map(|e| &e.cause),
            column(r.revision)?,
            awaited(r),
        ])?;
    Ok(inserted == 1)
}

/// Counts the revision up.
fn update(t: &Transaction<'_>, r: &Record) -> Result<bool, TransactionError> {
    let updated = t
        .prepare_cached(
            "UPDATE execution SET revision = ?2 + 1, sequence = ?3, status = ?4, state = ?5, input = ?6, entered_at = ?7,
                                  attempts = ?8, wake_at = ?9, output = ?10, error = ?11, cause = ?12, awaited = ?13
             WHERE name = ?1 AND revision = ?2",
        )?
        .execute(params![
            r.name,
            column(r.revision)?,
            column(r.sequence)?,
            r.status.as_str(),
            r.state,
            r.input.to_string(),
            r.entered_at.unix_ms(),
            Value::from(r.attempts.clone()).to_string(),
            r.wake_at.map(Timestamp::unix_ms),
            r.output.as_ref().map(Value::to_string),
            r.error.as_ref().map(|e| &e.error),
            r.error.as_ref().map(|e| &e.cause),
            awaited(r),
        ])?;
    Ok(updated == 1)
}

fn awaited(r: &Record) -> Option<String> {
    r.awaited.as_ref().and_then(|awaited| serde_json::to_string(awaited).ok())
}

/// Appends the events that led to the record's sequence.
fn append(t: &Transaction<'_>, r: &Record, happenings: &[Happening], now: Timestamp) -> Result<(), TransactionError> {
    let count = u64::try_from(happenings.len()).unwrap_or(u64::MAX);
    let first = r.sequence.saturating_sub(count) + 1;
    for (sequence, happening) in (first..).zip(happenings) {
        t.prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
            r.name,
            column(sequence)?,
            now.unix_ms(),
            happening.event,
            happening.state,
            happening.detail.to_string(),
        ])?;
    }
    t.prepare_cached("DELETE FROM history WHERE execution = ?1 AND seq <= ?2")?
        .execute(params![r.name, column(r.sequence.saturating_sub(HISTORY_LIMIT))?])?;
    Ok(())
}

/// A row of `execution` as it stands in the table.
struct RawRecord {
    name: String,
    machine: String,
    definition: String,
    definition_hash: String,
    sequence: i64,
    status: String,
    state: String,
    input: String,
    started_at: i64,
    entered_at: i64,
    attempts: String,
    wake_at: Option<i64>,
    output: Option<String>,
    error: Option<String>,
    cause: Option<String>,
    revision: i64,
    awaited: Option<String>,
}

fn select(t: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<RawRecord>> {
    t.prepare_cached("SELECT * FROM execution WHERE name = ?1")?.query_row([name], RawRecord::read).optional()
}

impl RawRecord {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: row.get("name")?,
            machine: row.get("machine")?,
            definition: row.get("definition")?,
            definition_hash: row.get("definition_hash")?,
            sequence: row.get("sequence")?,
            status: row.get("status")?,
            state: row.get("state")?,
            input: row.get("input")?,
            started_at: row.get("started_at")?,
            entered_at: row.get("entered_at")?,
            attempts: row.get("attempts")?,
            wake_at: row.get("wake_at")?,
            output: row.get("output")?,
            error: row.get("error")?,
            cause: row.get("cause")?,
            revision: row.get("revision")?,
            awaited: row.get("awaited")?,
        })
    }

    fn decode(self) -> Result<Record, String> {
        if self.definition_hash != hash(&self.definition) {
            return Err("its definition does not have the hash that it had".to_owned());
        }
        let output = self.output.as_deref().map(|output| json_column("output", output)).transpose()?;
        let awaited = self.awaited.as_deref().map(|awaited| json_column("awaited", awaited)).transpose()?;
        Ok(Record {
            sequence: u64::try_from(self.sequence).map_err(|_| format!("its sequence is {}", self.sequence))?,
            status: Status::parse(&self.status).ok_or_else(|| format!("its status is `{}`", self.status))?,
            input: json_column("input", &self.input)?,
            attempts: json_column("attempts", &self.attempts)?,
            output,
            error: self.error.map(|error| TaskError { error, cause: self.cause.unwrap_or_default() }),
            started_at: Timestamp::from_unix_ms(self.started_at),
            entered_at: Timestamp::from_unix_ms(self.entered_at),
            wake_at: self.wake_at.map(Timestamp::from_unix_ms),
            revision: u64::try_from(self.revision).map_err(|_| format!("its revision is {}", self.revision))?,
            awaited,
            name: self.name,
            machine: self.machine,
            definition: self.definition,
            state: self.state,
        })
    }
}

fn json_column<T: serde::de::DeserializeOwned>(column: &str, text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|e| format!("its {column} cannot be read: {e}"))
}

type RawEntry = (i64, i64, String, Option<String>, String);

fn entries(t: &Transaction<'_>, name: &str) -> rusqlite::Result<Vec<RawEntry>> {
    t.prepare_cached("SELECT seq, time, event, state, detail FROM history WHERE execution = ?1 ORDER BY seq")?
        .query_map([name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?
        .collect()
}

fn decode_entry((sequence, time, event, state, detail): RawEntry) -> Result<HistoryEntry, String> {
    let sequence = u64::try_from(sequence).map_err(|_| format!("its sequence is {sequence}"))?;
    Ok(HistoryEntry {
        sequence,
        time: Timestamp::from_unix_ms(time),
        event,
        state,
        detail: json_column("detail", &detail)?,
    })
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED_OUT",
            Self::Aborted => "ABORTED",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Succeeded, Self::Failed, Self::TimedOut, Self::Aborted]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

fn column(number: u64) -> Result<i64, PortError> {
    i64::try_from(number).map_err(|_| PortError::invalid("an execution has more events than can be counted"))
}

fn hash(definition: &str) -> String {
    hex::encode(Sha256::digest(definition.as_bytes()))
}
