//! Client tokens: which resources a token stands for, written down before they are made.
//!
//! A crash between the two leaves a token whose resources do not exist and are not `completed`: the same call makes them then,
//! under the same ids. A token outlives its resources, as with EC2: a late repetition of a call must not make a second resource.

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use rehost_control::PortError;
use rehost_control::ports::{ClientToken, PortResult};
use rehost_model::id::InvalidId;
use serde::{Deserialize, Serialize};

use super::files;

/// How long a token is kept at least.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a token makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Made {
    Volume,
    Snapshots,
    ReplicationServer,
    ConversionServer,
    Copy,
}

/// The resources of a token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    made: Made,
    ids: Vec<String>,
    completed: bool,
}

/// The ids that a token stands for.
#[derive(Debug)]
pub(super) struct Reserved<T> {
    pub(super) ids: Vec<T>,
    /// They were made once: they are not made again, even if they are gone.
    pub(super) completed: bool,
}

/// The index of tokens.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    directory: PathBuf,
}

impl Tokens {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The `count` ids of `token`: those of an earlier call, else new ones, which are durable when this returns.
    /// The caller holds the token's lock.
    pub(super) fn reserve<T>(
        &self,
        token: &ClientToken,
        made: Made,
        count: usize,
        generate: fn() -> T,
    ) -> PortResult<Reserved<T>>
    where
        T: FromStr<Err = InvalidId> + ToString,
    {
        if let Some(entry) = files::read_json::<Entry>(&self.path(token)?)? {
            return parse(token, made, count, &entry);
        }
        let ids: Vec<T> = (0..count).map(|_| generate()).collect();
        let entry = Entry { made, ids: ids.iter().map(T::to_string).collect(), completed: false };
        files::write_json(&self.path(token)?, &entry)?;
        Ok(Reserved { ids, completed: false })
    }

    /// Notes that the resources of `token` were made.
    pub(super) fn complete(&self, token: &ClientToken) -> PortResult<()> {
        let path = self.path(token)?;
        match files::read_json::<Entry>(&path)? {
            Some(entry) if !entry.completed => files::write_json(&path, &Entry { completed: true, ..entry }),
            _ => Ok(()),
        }
    }

    /// Forgets old tokens of whose resources none exists.
    pub(super) fn sweep(&self, exists: impl Fn(&str) -> bool) -> PortResult<()> {
        for name in files::names_with_suffix(&self.directory, ".json")? {
            let path = self.directory.join(format!("{name}.json"));
            let age = fs::metadata(&path).and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
            let old = age.is_some_and(|age| age > KEPT);
            if old && files::read_json::<Entry>(&path)?.is_some_and(|e| !e.ids.iter().any(|id| exists(id))) {
                files::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn path(&self, token: &ClientToken) -> PortResult<PathBuf> {
        match token.as_str() {
            "" => Err(PortError::invalid("the client token is empty: derive it from what the call is for")),
            text => Ok(self.directory.join(format!("{text}.json"))),
        }
    }
}

fn parse<T>(token: &ClientToken, made: Made, count: usize, entry: &Entry) -> PortResult<Reserved<T>>
where
    T: FromStr<Err = InvalidId>,
{
    if entry.made != made || entry.ids.len() != count {
        let token = token.as_str();
        let message = format!("the client token `{token}` was used for another call: use one token for one call");
        return Err(PortError::invalid(message));
    }
    let ids = entry.ids.iter().map(|id| id.parse()).collect::<Result<_, _>>().map_err(PortError::invalid)?;
    Ok(Reserved { ids, completed: entry.completed })
}
