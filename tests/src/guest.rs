//! The tests' way into a running small Linux: scripts and files by HTTP, on a port beside its page.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::net::http_post;

/// A small Linux that has started, by the loopback port that leads to its port 8022.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    port: u16,
}

impl Guest {
    /// The guest behind `port` of the loopback interface.
    #[must_use]
    pub fn new(port: u16) -> Self {
        Self { port }
    }

    /// Runs a shell script as root and gives what it printed. A translated guest is slow: up to 120 s of silence.
    ///
    /// # Errors
    /// When the guest does not answer, or the script ends with another status than 0.
    pub fn sh(&self, script: &str) -> Result<String> {
        let answer = http_post(self.port, "/cgi-bin/sh", script.as_bytes(), Duration::from_secs(120))?;
        let text = answer.text();
        match text.trim_end().rsplit_once("exit=") {
            Some((output, "0")) => Ok(output.to_owned()),
            _ => Err(Error::Unexpected(format!("`{script}` failed in the guest: {text}"))),
        }
    }

    /// Copies a file into the guest, executable.
    ///
    /// # Errors
    /// When the file cannot be read or the guest cannot store it.
    pub fn put(&self, file: &Path, path: &str) -> Result<()> {
        let bytes = fs::read(file).context(|| format!("read {}", file.display()))?;
        let answer = http_post(self.port, &format!("/cgi-bin/put?{path}"), &bytes, Duration::from_secs(120))?;
        if answer.text().trim_end() == "exit=0" {
            return Ok(());
        }
        Err(Error::Unexpected(format!("the guest could not store {path}: {}", answer.text())))
    }

    /// Replaces the page that its web server answers, on the disk too.
    ///
    /// # Errors
    /// As [`Guest::sh`].
    pub fn set_page(&self, text: &str) -> Result<()> {
        self.sh(&format!("cat >/var/www/index.html <<'PAGE'\n{text}\nPAGE\nsync")).map(drop)
    }
}
