//! The whole way of a source server, from the agent's first words to the archive, by the command `rehost` alone: the same in
//! every region.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::image::SmallLinux;
use crate::negative::copy_sparse;
use crate::process::run;

const FIRST_PAGE: &str = "this page was there before the migration";
const CHANGED_PAGE: &str = "this page was changed between the test and the cutover";

/// A region as its operator sees it.
pub trait Site {
    /// Runs `rehost` and gives what it printed.
    ///
    /// # Errors
    /// With its words.
    fn rehost(&self, arguments: &[&str]) -> Result<String>;

    /// What the web server of a source server's launched copy answers.
    ///
    /// # Errors
    /// When it does not.
    fn page(&self, server: &Value) -> Result<String>;
}

/// A source: an image whose page can be changed.
#[derive(Debug)]
pub struct Source {
    image: SmallLinux,
    /// The agent reads it.
    pub disk: PathBuf,
}

impl Source {
    /// Builds it in `folder`.
    ///
    /// # Errors
    /// When the image cannot be built.
    pub fn build(image: SmallLinux, folder: &Path) -> Result<Self> {
        let disk = image.clone().page(FIRST_PAGE).build(&folder.join("source.img"))?;
        Ok(Self { image, disk })
    }

    /// Another disk with another page takes the place of the source's, which stays the same file: the agent has it open.
    fn change_page(&self) -> Result<()> {
        let changed = self.image.clone().page(CHANGED_PAGE).build(&self.disk.with_extension("changed"))?;
        let fresh = self.disk.with_extension("fresh");
        copy_sparse(&changed, &fresh)?;
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", fresh.display())).arg(format!("of={}", self.disk.display()));
        run(dd.args(["bs=1M", "conv=notrunc,fsync", "status=none"]))?;
        for copy in [changed, fresh] {
            fs::remove_file(&copy).map_err(|e| Error::Unexpected(format!("{}: {e}", copy.display())))?;
        }
        Ok(())
    }
}

/// The states of a server's lifecycle, each as it was seen first, and the server at the end.
#[derive(Debug)]
pub struct Way {
    pub states: Vec<String>,
    pub server: Value,
}

/// A server on its way.
pub struct Journey<'a, S> {
    site: &'a S,
    id: &'a str,
    /// How long one wait may last.
    patience: Duration,
    states: Vec<String>,
}

impl<'a, S: Site> Journey<'a, S> {
    /// The way of the server `id`, whose agent runs.
    pub fn new(site: &'a S, id: &'a str, patience: Duration) -> Self {
        Self { site, id, patience, states: Vec::new() }
    }

    /// Goes it to the end: what is done is told.
    ///
    /// # Errors
    /// What `rehost` says; when a copy serves another page than the source; when the server does not end archived after its cutover.
    pub fn go(mut self, source: &Source, told: impl Fn(&str)) -> Result<Way> {
        self.wait("lifecycle state READY_FOR_TEST", |server| server["lifeCycle"]["state"] == "READY_FOR_TEST")?;
        told("replication: the first copy is durable and the first launchable snapshot exists");
        self.rehost(&["server", "set", self.id, "--probe", "http:80"])?;
        self.rehost(&["test", self.id, "--wait"])?;
        self.expect_page(FIRST_PAGE)?;
        told("test: converted and launched; the copy boots and serves the page");
        source.change_page()?;
        self.rehost(&["ready", self.id, "--wait"])?;
        self.wait("the end of the test instance", |server| server["launchedInstance"].is_null())?;
        told("ready for cutover: the test instance is gone; the source's page is changed");
        self.rehost(&["cutover", self.id, "--wait"])?;
        self.expect_page(CHANGED_PAGE)?;
        told("cutover: from a fresh checkpoint; the copy serves the changed page");
        self.rehost(&["finalize", self.id, "--wait"])?;
        self.look()?;
        self.rehost(&["archive", self.id])?;
        let server = self.look()?;
        if server["lifeCycle"]["state"] != "CUTOVER" || server["isArchived"] != true {
            return Err(Error::Unexpected(format!("the server is not archived after its cutover: {server}")));
        }
        told("finalize and archive: done");
        Ok(Way { states: self.states, server })
    }

    fn rehost(&self, arguments: &[&str]) -> Result<()> {
        self.site.rehost(arguments).map(drop)
    }

    fn look(&mut self) -> Result<Value> {
        let text = self.site.rehost(&["server", "show", self.id, "--json"])?;
        let server: Value = serde_json::from_str(&text)
            .map_err(|e| Error::Unexpected(format!("rehost server show --json: {e}: {text}")))?;
        let state = server["lifeCycle"]["state"].as_str().unwrap_or_default();
        let state = if server["isArchived"] == true { "ARCHIVED" } else { state };
        if self.states.last().map(String::as_str) != Some(state) {
            self.states.push(state.to_owned());
        }
        Ok(server)
    }

    fn wait(&mut self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let server = self.look()?;
            if is_so(&server) {
                return Ok(());
            }
            if started.elapsed() > self.patience {
                let seen = format!("{} {}", server["lifeCycle"]["state"], server["dataReplicationInfo"]);
                return Err(Error::Timeout { what: what.to_owned(), after: self.patience, seen });
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    fn expect_page(&mut self, page: &str) -> Result<()> {
        let server = self.look()?;
        let served = self.site.page(&server)?;
        if served.trim_end() == page {
            return Ok(());
        }
        Err(Error::Unexpected(format!("the copy {} serves {served:?} instead of {page:?}", server["launchedInstance"])))
    }
}
