//! Questions to a running machine through QEMU's monitor.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::qemu;

/// A monitor that takes longer is busy with somebody else.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers that are longer are not read on.
const MAX_MESSAGES: usize = 100;

/// Executes a command in the machine whose folder this is, and gives its `return` value.
pub(super) fn execute(folder: &Path, command: &str, arguments: &Value) -> io::Result<Value> {
    let stream = connect(folder)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    read_until(&mut reader, "QMP")?;
    for request in [json!({"execute": "qmp_capabilities"}), json!({"execute": command, "arguments": arguments})] {
        writer.write_all(format!("{request}\n").as_bytes())?;
        let answer = read_until(&mut reader, "return")?;
        if request.get("arguments").is_some() {
            return Ok(answer);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// The text that a command of the human monitor prints.
pub(super) fn human(folder: &Path, command: &str) -> io::Result<String> {
    let answer = execute(folder, "human-monitor-command", &json!({"command-line": command}))?;
    answer.as_str().map(str::to_owned).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Connects through the folder's descriptor: the path itself may be too long for a socket's address.
fn connect(folder: &Path) -> io::Result<UnixStream> {
    let folder = File::open(folder)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), qemu::QMP_SOCKET))
}

/// The member `key` of the next message that has it; events in between are passed over, errors are errors.
fn read_until(reader: &mut impl BufRead, key: &str) -> io::Result<Value> {
    for _ in 0..MAX_MESSAGES {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut message: Value = serde_json::from_str(&line)?;
        if let Some(error) = message.get("error") {
            return Err(io::Error::other(error.to_string()));
        }
        if let Some(value) = message.get_mut(key) {
            return Ok(value.take());
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}
