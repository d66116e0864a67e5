//! QEMU's control socket, as far as the harness needs it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// An open QMP session.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to a machine's socket and greets it.
    ///
    /// # Errors
    /// When the socket is not there or does not speak QMP.
    pub fn connect(socket: &Path) -> Result<Self> {
        let what = || format!("connect to {}", socket.display());
        let stream = UnixStream::connect(socket).context(what)?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).context(what)?;
        let mut session = Self { reader: BufReader::new(stream) };
        session.message()?;
        session.execute("qmp_capabilities", &json!({}))?;
        Ok(session)
    }

    /// Executes a command and gives its return value. Events in between are skipped.
    ///
    /// # Errors
    /// When QEMU refuses the command or the connection breaks.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.reader.get_mut().write_all(line.as_bytes()).context(|| format!("send {command} to QEMU"))?;
        loop {
            let mut answer = self.message()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(Error::Unexpected(format!("QEMU refused {command}: {error}")));
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).context(|| "read from QEMU".to_owned())?;
        serde_json::from_str(&line).map_err(|error| Error::Unexpected(format!("QEMU said {line:?}: {error}")))
    }
}
