//! The program that never stops writing; it runs inside the source server as `live-writer run`.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::load;
use super::record::{RECORD_BYTES, count, record};
use crate::error::{Context, Result};

/// The name of the file that is replaced by rename, beside the records.
pub const LATEST: &str = "latest";
/// Every so many records it is replaced.
pub const LATEST_EVERY: u64 = 10;

/// What to write, and where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The first file of records, on the root file system.
    pub log: PathBuf,
    /// The second file of records, on another file system of the same disk.
    pub second: PathBuf,
    /// Where the number of the newest acknowledged record is written; in memory.
    pub acknowledged: PathBuf,
    /// Where small files are made, renamed and removed.
    pub churn: PathBuf,
    /// Between two records.
    pub pause: Duration,
    /// Between two small files.
    pub churn_pause: Duration,
}

/// Writes until it is killed. What an earlier run left is continued.
///
/// # Errors
/// When a file cannot be written: nothing is written any more then.
pub fn run(plan: &Plan) -> Result<()> {
    let (churn, pause) = (plan.churn.clone(), plan.churn_pause);
    thread::spawn(move || load::small_files(&churn, pause));
    let (mut log, written) = open(&plan.log)?;
    let (mut second, behind) = open(&plan.second)?;
    if behind < written {
        append(&mut second, &plan.second, written)?;
    }
    for number in written + 1.. {
        append(&mut log, &plan.log, number)?;
        append(&mut second, &plan.second, number)?;
        if number % LATEST_EVERY == 0 {
            replace_latest(&plan.log, number)?;
        }
        // Memory, not disk: the test asks how far we are without adding to what is replicated.
        write_whole(&plan.acknowledged, number.to_string().as_bytes())?;
        thread::sleep(plan.pause);
    }
    Ok(())
}

/// Opens a file of records at its end, without what was not acknowledged; how many records it has.
fn open(path: &Path) -> Result<(File, u64)> {
    let what = || format!("open {}", path.display());
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).context(what)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).context(what)?;
    let records = count(&bytes)?;
    let end = records * u64::try_from(RECORD_BYTES).unwrap_or_default();
    file.set_len(end).context(what)?;
    file.seek(SeekFrom::Start(end)).context(what)?;
    Ok((file, records))
}

fn append(file: &mut File, path: &Path, number: u64) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = record(number, u64::try_from(now.as_millis()).unwrap_or_default());
    let what = || format!("append to {}", path.display());
    file.write_all(line.as_bytes()).context(what)?;
    file.sync_data().context(what)
}

/// Replaces `latest` beside the records: whole at any moment, the old one or the new one.
fn replace_latest(log: &Path, number: u64) -> Result<()> {
    let path = log.with_file_name(LATEST);
    let fresh = log.with_file_name("latest.new");
    let what = || format!("replace {}", path.display());
    let mut file = File::create(&fresh).context(what)?;
    file.write_all(record(number, 0).as_bytes()).context(what)?;
    file.sync_all().context(what)?;
    fs::rename(&fresh, &path).context(what)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).context(what)
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, path)).context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_run_goes_on_where_the_files_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let (mut file, begin) = open(&path).unwrap();
        assert_eq!(begin, 0);
        for number in 1..=3 {
            append(&mut file, &path, number).unwrap();
        }
        file.write_all(b"000000000004 17").unwrap();
        assert_eq!(open(&path).unwrap().1, 3);
        replace_latest(&path, 3).unwrap();
        assert!(fs::read_to_string(folder.path().join(LATEST)).unwrap().starts_with("000000000003 "));
    }
}
