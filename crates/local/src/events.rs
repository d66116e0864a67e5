//! The event log: `events.jsonl`, one event a line, only ever appended to.
//!
//! An event is on the disk before its publishing succeeds. A crash in the middle of a write leaves a torn last line, and a
//! power cut may leave zeros or rubbish there: whatever follows the last whole event is cut off when the log is opened. A
//! write that fails (a full disk) is undone at once; when even that fails, nothing is published any more until the log is
//! opened anew, because a reader would take the torn line and the next one for one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rehost_control::PortError;
use rehost_control::ports::{Events, PortResult};
use rehost_model::event::Event;

use crate::files::{PRIVATE, blocking, file_error, sync_folder_of};

/// No event is longer; bytes. The end of the log that is looked at when it is opened is twice as long.
const MAX_EVENT: u64 = 1 << 20;

/// [`Events`] in a file.
#[derive(Clone)]
pub struct EventLog {
    log: Arc<Mutex<Log>>,
    path: Arc<Path>,
}

struct Log {
    file: File,
    /// Bytes of whole events.
    length: u64,
    /// A failed write could not be undone.
    torn: bool,
}

impl EventLog {
    /// Opens the log, making it if need be, and cuts off a torn end.
    ///
    /// # Errors
    /// When the file cannot be opened or repaired.
    pub fn open(path: PathBuf) -> PortResult<Self> {
        let log = open(&path).map_err(|e| file_error("open the event log", &path, &e))?;
        Ok(Self { log: Arc::new(Mutex::new(log)), path: Arc::from(path) })
    }
}

#[async_trait]
impl Events for EventLog {
    async fn publish(&self, event: &Event) -> PortResult<()> {
        let mut line =
            serde_json::to_vec(event).map_err(|e| PortError::invalid(format!("cannot write an event: {e}")))?;
        line.push(b'\n');
        if line.len() as u64 > MAX_EVENT {
            return Err(PortError::invalid(format!(
                "an event of {} bytes is too long: at most {MAX_EVENT}",
                line.len()
            )));
        }
        let (log, path) = (Arc::clone(&self.log), Arc::clone(&self.path));
        blocking(move || {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.append(&line).map_err(|e| file_error("append to the event log", &path, &e))
        })
        .await
    }
}

impl Log {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            return Err(io::Error::other("an earlier write was cut off and could not be undone; restart the service"));
        }
        match self.file.write_all(line).and_then(|()| self.file.sync_data()) {
            Ok(()) => {
                self.length += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.torn = self.file.set_len(self.length).and_then(|()| self.file.sync_data()).is_err();
                Err(error)
            }
        }
    }
}

fn open(path: &Path) -> io::Result<Log> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(PRIVATE).open(path)?;
    sync_folder_of(path)?;
    let found = file.metadata()?.len();
    let length = whole_length(&mut file, found)?;
    if length < found {
        tracing::warn!(log = %path.display(), bytes = found - length, "the torn end of the event log is cut off");
        file.set_len(length)?;
        file.sync_all()?;
    }
    Ok(Log { file, length, torn: false })
}

/// The length up to the end of the last whole event.
fn whole_length(file: &mut File, length: u64) -> io::Result<u64> {
    let from = length.saturating_sub(2 * MAX_EVENT);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.take(length - from).read_to_end(&mut tail)?;
    let mut end = tail.len();
    while let Some(newline) = tail.get(..end).and_then(|kept| kept.iter().rposition(|b| *b == b'\n')) {
        let start = tail.get(..newline).and_then(|kept| kept.iter().rposition(|b| *b == b'\n')).map_or(0, |at| at + 1);
        let line = tail.get(start..newline).unwrap_or_default();
        if serde_json::from_slice::<Event>(line).is_ok() {
            return Ok(from + newline as u64 + 1);
        }
        end = newline;
    }
    if from == 0 {
        Ok(0)
    } else {
        Err(io::Error::other("its last 2 MiB hold no whole event: it is damaged, move it away"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rehost_model::event::{EVENT_VERSION, EventDetail, EventType};
    use rehost_model::{ServerId, Timestamp};

    use super::*;

    fn event(sequence: u64) -> Event {
        let detail = EventDetail {
            version: EVENT_VERSION,
            source_server_id: ServerId::generate(),
            sequence,
            data: serde_json::Map::new(),
        };
        let time = Timestamp::from_unix_ms(1);
        Event { source: "rehost".to_owned(), detail_type: EventType::Registered, time, detail }
    }

    fn sequences(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().detail.sequence).collect()
    }

    #[tokio::test]
    async fn events_stand_in_the_order_of_their_publishing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        for start in [1, 4] {
            let log = EventLog::open(path.clone()).unwrap();
            for sequence in start..start + 3 {
                log.publish(&event(sequence)).await.unwrap();
            }
        }
        assert_eq!(sequences(&path), [1, 2, 3, 4, 5, 6]);
    }

    #[tokio::test]
    async fn a_torn_end_is_cut_off_wherever_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let log = EventLog::open(path.clone()).unwrap();
        log.publish(&event(1)).await.unwrap();
        let whole = fs::read(&path).unwrap();
        log.publish(&event(2)).await.unwrap();
        let both = fs::read(&path).unwrap();
        for cut in whole.len()..both.len() {
            fs::write(&path, &both[..cut]).unwrap();
            EventLog::open(path.clone()).unwrap().publish(&event(3)).await.unwrap();
            assert_eq!(sequences(&path), [1, 3], "cut at {cut}");
        }
        for rubbish in [&b"\0\0\0\0"[..], b"\0\0\n", b"{}\n\n\n", b"\xff\xfe\n{\"a\":"] {
            fs::write(&path, [&whole, rubbish].concat()).unwrap();
            EventLog::open(path.clone()).unwrap().publish(&event(3)).await.unwrap();
            assert_eq!(sequences(&path), [1, 3], "{rubbish:?}");
        }
        for cut in 0..whole.len() - 1 {
            fs::write(&path, &whole[..cut]).unwrap();
            EventLog::open(path.clone()).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"");
        }
    }

    #[tokio::test]
    async fn a_failed_write_leaves_the_log_whole_or_refuses_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let log = EventLog::open(path.clone()).unwrap();
        // A handle that cannot write: appending fails, and so does undoing it.
        log.log.lock().unwrap().file = File::open(&path).unwrap();
        log.publish(&event(1)).await.unwrap_err();
        let error = log.publish(&event(2)).await.unwrap_err();
        assert!(error.message.contains("restart"), "{error}");
        EventLog::open(path.clone()).unwrap().publish(&event(3)).await.unwrap();
        assert_eq!(sequences(&path), [3]);
    }
}
