//! The store on SQLite: one row is one item, `(kind, id, version, body)`.

use async_trait::async_trait;
use rehost_control::PortError;
use rehost_control::ports::{Item, ItemKey, Kind, PortResult, Store, Version};
use rusqlite::{OptionalExtension, Transaction, params};
use serde_json::Value;

use crate::database::{Database, TransactionError, damaged};

/// [`Store`] on the region's database.
#[derive(Clone)]
pub struct SqliteStore {
    database: Database,
}

impl SqliteStore {
    /// The store in this database.
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    fn decode(&self, key: ItemKey, (version, body): (i64, String)) -> PortResult<Item> {
        let broken = |why: String| damaged(self.database.path(), &format!("the item {key}"), why);
        let version = Version::try_from(version).map_err(|_| broken(format!("its version is {version}")))?;
        let body = serde_json::from_str(&body).map_err(|e| broken(format!("its body is not JSON: {e}")))?;
        Ok(Item { key, version, body })
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &ItemKey) -> PortResult<Option<Item>> {
        let wanted = key.clone();
        let row = self.database.transact(move |t| Ok(read(t, &wanted)?)).await?;
        row.map(|row| self.decode(key.clone(), row)).transpose()
    }

    async fn put(&self, key: &ItemKey, body: Value, expected: Option<Version>) -> PortResult<Version> {
        let key = key.clone();
        self.database.transact(move |t| write(t, &key, &body, expected)).await
    }

    async fn delete(&self, key: &ItemKey, expected: Version) -> PortResult<()> {
        let key = key.clone();
        self.database.transact(move |t| delete(t, &key, expected)).await
    }

    async fn list(&self, kind: Kind, prefix: &str) -> PortResult<Vec<Item>> {
        let prefix = prefix.to_owned();
        let rows = self.database.transact(move |t| Ok(select(t, kind, &prefix)?)).await?;
        rows.into_iter().map(|(id, version, body)| self.decode(ItemKey::new(kind, id), (version, body))).collect()
    }
}

fn read(t: &Transaction<'_>, key: &ItemKey) -> rusqlite::Result<Option<(i64, String)>> {
    t.prepare_cached("SELECT version, body FROM item WHERE kind = ?1 AND id = ?2")?
        .query_row(params![key.kind.as_str(), key.id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

fn write(
    t: &Transaction<'_>,
    key: &ItemKey,
    body: &Value,
    expected: Option<Version>,
) -> Result<Version, TransactionError> {
    let changed = match expected {
        None => t
            .prepare_cached("INSERT INTO item VALUES (?1, ?2, 1, ?3) ON CONFLICT DO NOTHING")?
            .execute(params![key.kind.as_str(), key.id, body.to_string()])?,
        Some(version) => t
            .prepare_cached(
                "UPDATE item SET version = version + 1, body = ?3 WHERE kind = ?1 AND id = ?2 AND version = ?4",
            )?
            .execute(params![key.kind.as_str(), key.id, body.to_string(), column(version)])?,
    };
    if changed == 1 { Ok(expected.unwrap_or(0) + 1) } else { Err(conflict(t, key, expected)) }
}

fn delete(t: &Transaction<'_>, key: &ItemKey, expected: Version) -> Result<(), TransactionError> {
    let deleted = t
        .prepare_cached("DELETE FROM item WHERE kind = ?1 AND id = ?2 AND version = ?3")?
        .execute(params![key.kind.as_str(), key.id, column(expected)])?;
    if deleted == 0 && read(t, key)?.is_some() {
        return Err(conflict(t, key, Some(expected)));
    }
    Ok(())
}

fn select(t: &Transaction<'_>, kind: Kind, prefix: &str) -> rusqlite::Result<Vec<(String, i64, String)>> {
    // The range lets the primary key do the work; the comparison of the prefix itself makes it exact.
    let last = format!("{prefix}{}", char::MAX);
    t.prepare_cached(
        "SELECT id, version, body FROM item
         WHERE kind = ?1 AND id >= ?2 AND (id <= ?3 OR ?2 = '') AND substr(id, 1, length(?2)) = ?2 ORDER BY id",
    )?
    .query_map(params![kind.as_str(), prefix, last], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
    .collect()
}

/// A version as a column holds it. No item has a version that does not fit: it matches nothing, which is a conflict.
fn column(version: Version) -> i64 {
    i64::try_from(version).unwrap_or(-1)
}

fn conflict(t: &Transaction<'_>, key: &ItemKey, expected: Option<Version>) -> TransactionError {
    let present = match read(t, key) {
        Err(e) => return e.into(),
        Ok(Some((version, _))) => format!("has version {version}"),
        Ok(None) => "does not exist".to_owned(),
    };
    let wanted = expected.map_or_else(|| "it was to be new".to_owned(), |v| format!("version {v} was expected"));
    PortError::conflict(format!("{key} {present}, but {wanted}: read it again")).into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rehost_control::{PortErrorKind, contract};
    use tempfile::TempDir;

    use super::*;

    fn store() -> (TempDir, SqliteStore) {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("rehost.db")).unwrap();
        (folder, SqliteStore::new(database))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract() {
        let (_folder, store) = store();
        contract::store::suite(Arc::new(store)).await;
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_reopening() {
        let (folder, store) = store();
        let key = ItemKey::new(Kind::Lock, "a");
        store.put(&key, Value::from(7), None).await.unwrap();
        drop(store);
        let store = SqliteStore::new(Database::open(&folder.path().join("rehost.db")).unwrap());
        assert_eq!(store.get(&key).await.unwrap().unwrap().body, Value::from(7));
    }

    #[tokio::test]
    async fn a_damaged_row_is_named_and_harms_no_other() {
        let (_folder, store) = store();
        let (good, bad) = (ItemKey::new(Kind::Lock, "good"), ItemKey::new(Kind::Job, "bad"));
        store.put(&good, Value::from(1), None).await.unwrap();
        store.put(&bad, Value::from(1), None).await.unwrap();
        let broken =
            store.database.transact(|t| Ok(t.execute("UPDATE item SET body = '{' WHERE id = 'bad'", [])?)).await;
        assert_eq!(broken.unwrap(), 1);
        let error = store.get(&bad).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid);
        assert!(error.message.contains("JOB#bad") && error.message.contains("rehost.db"), "{error}");
        assert!(store.get(&good).await.unwrap().is_some());
    }
}
