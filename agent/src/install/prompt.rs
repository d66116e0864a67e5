//! Questions to the user at the terminal.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// The user's terminal, whatever standard input and output are.
pub(super) struct Terminal(File);

impl Terminal {
    /// The terminal; `None` when there is none, as under a configuration tool.
    pub(super) fn open() -> Option<Self> {
        OpenOptions::new().read(true).write(true).open("/dev/tty").ok().map(Self)
    }

    /// Asks, and reads a line.
    pub(super) fn ask(&self, question: &str) -> io::Result<String> {
        write!(&self.0, "{question}: ")?;
        let mut line = String::new();
        BufReader::new(&self.0).read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Asks, and reads a line that is not shown.
    pub(super) fn ask_secret(&self, question: &str) -> io::Result<Zeroizing<String>> {
        let hidden = Hidden::on(&self.0)?;
        let answer = self.ask(question).map(Zeroizing::new);
        drop(hidden);
        writeln!(&self.0)?;
        answer
    }
}

/// Echo is off as long as this lives.
struct Hidden<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Hidden<'a> {
    fn on(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &hidden)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        // Without a terminal there is no echo to bring back.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}
