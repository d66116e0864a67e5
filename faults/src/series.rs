//! Runs of rows, one after the other, and what came of them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rehost_tests::random::{self, Random};
use serde::Serialize;

use crate::failure::{Failure, Kind};
use crate::interrupt::interrupted;
use crate::plan::{Figures, Setting};
use crate::rows::{Planted, ROWS, Row};
use crate::spec::Authority;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this row; all without
    #[arg(long, env = "ROW", value_name = "NAME")]
    row: Vec<String>,
    /// Runs of each row
    #[arg(long, env = "RUNS", default_value_t = 25)]
    runs: u64,
    /// The first run's seed, from which those of the others follow; random without
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Plant each row's bugs, one after the other, and succeed only if the row catches each of them
    #[arg(long)]
    planted: bool,
    /// With `--planted`: only this bug
    #[arg(long, value_name = "NAME")]
    bug: Option<String>,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// List the rows and their bugs
    #[arg(long)]
    list: bool,
}

/// The results of one row.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    row: &'static str,
    bug: Option<&'static str>,
    seed: u64,
    runs: u64,
    failed: u64,
    faults: u64,
    verified: u64,
    unpromised: u64,
    most_sent: u64,
    seconds: f64,
    /// Failures: seed, kind and what was seen.
    failures: Vec<(u64, Kind, String)>,
    /// With a planted bug: the run that caught it.
    caught: Option<u64>,
}

/// Runs what was asked for.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    let rows = chosen(&options.row)?;
    let authority = Authority::generate()?;
    let seed = options.seed.unwrap_or_else(random::seed);
    println!("SEED={seed} RUNS={}", options.runs);
    let mut summaries = Vec::new();
    for row in rows {
        if options.planted {
            let bugs = row.planted.iter().filter(|bug| options.bug.as_deref().is_none_or(|name| name == bug.name));
            summaries.extend(bugs.map(|bug| hunt(row, bug, seed, options.runs, &authority)));
        } else {
            summaries.push(repeat(row, seed, options.runs, &authority));
        }
    }
    ensure!(!summaries.is_empty(), "no such bug in these rows; see --list");
    show(&summaries);
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&summaries)?)
            .with_context(|| format!("write {}", file.display()))?;
    }
    let good = !interrupted() && summaries.iter().all(Summary::good);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Summary {
    fn good(&self) -> bool {
        match self.bug {
            Some(_) => self.caught.is_some(),
            None => self.failed == 0 && self.runs > 0,
        }
    }

    fn add(&mut self, seed: u64, result: &Result<Figures, Failure>) {
        self.runs += 1;
        match result {
            Ok(figures) => {
                self.faults += figures.faults;
                self.verified += figures.verified;
                self.unpromised += figures.unpromised;
                self.most_sent = self.most_sent.max(figures.sent);
            }
            Err(failure) => {
                self.failed += 1;
                self.failures.push((seed, failure.kind, failure.detail.clone()));
            }
        }
    }
}

fn list() {
    for row in ROWS {
        println!("{:<18}{}", row.name, row.about);
        for bug in row.planted {
            let kinds: Vec<_> = bug.kinds.iter().map(ToString::to_string).collect();
            println!("  bug {:<32}fails as {}", bug.name, kinds.join(" or "));
        }
    }
}

fn chosen(names: &[String]) -> Result<Vec<&'static Row>> {
    let names: Vec<_> = names.iter().filter(|name| !name.is_empty()).collect();
    if names.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    let find = |name: &String| match ROWS.iter().find(|row| row.name == *name) {
        Some(row) => Ok(row),
        None => bail!("there is no row {name}; see --list"),
    };
    names.into_iter().map(find).collect()
}

/// The seed of a run. The first run has the series' own, so that a run is repeated by its seed and `RUNS=1`.
fn seed_of(seed: u64, run: u64) -> u64 {
    match run {
        0 => seed,
        _ => Random::new(seed ^ run << 32).next_u64() >> 16,
    }
}

/// Runs of a row as it is: each must succeed.
fn repeat(row: &'static Row, seed: u64, runs: u64, authority: &Authority) -> Summary {
    let started = Instant::now();
    let mut summary = Summary { row: row.name, seed, ..Summary::default() };
    for run in 0..runs {
        if interrupted() {
            break;
        }
        let setting = Setting { authority, seed: seed_of(seed, run), planted: None };
        let (result, took) = one(row, setting);
        summary.add(setting.seed, &result);
        match &result {
            Ok(figures) => println!("{} {}/{runs}: ok in {took:.1?}, {}", row.name, run + 1, told(figures)),
            Err(failure) => println!(
                "{} {}/{runs}: FAILED {failure}\n  again: make faults ROW={} SEED={} RUNS=1",
                row.name,
                run + 1,
                row.name,
                setting.seed
            ),
        }
    }
    summary.seconds = started.elapsed().as_secs_f64();
    summary
}

/// Runs of a row with a bug, until one fails as it must.
fn hunt(row: &'static Row, bug: &'static Planted, seed: u64, runs: u64, authority: &Authority) -> Summary {
    let started = Instant::now();
    let mut summary = Summary { row: row.name, bug: Some(bug.name), seed, ..Summary::default() };
    for run in 0..runs {
        if interrupted() {
            break;
        }
        let setting = Setting { authority, seed: seed_of(seed, run), planted: Some(bug.name) };
        let (result, _) = one(row, setting);
        summary.add(setting.seed, &result);
        let Err(failure) = result else { continue };
        let right = bug.kinds.contains(&failure.kind);
        let verdict = if right { "caught" } else { "failed for another reason" };
        println!("{} with {}: {verdict} in run {} (seed {}): {failure}", row.name, bug.name, run + 1, setting.seed);
        if right {
            summary.caught = Some(run + 1);
            break;
        }
    }
    if summary.caught.is_none() {
        println!("{} with {}: NOT caught in {} runs", row.name, bug.name, summary.runs);
    }
    summary.seconds = started.elapsed().as_secs_f64();
    summary
}

fn one(row: &Row, setting: Setting<'_>) -> (Result<Figures, Failure>, Duration) {
    let started = Instant::now();
    let result = (row.run)(setting);
    (result, started.elapsed())
}

fn told(figures: &Figures) -> String {
    format!(
        "{} faults, {} states verified, {} not promised, {} KiB sent of {} allowed",
        figures.faults,
        figures.verified,
        figures.unpromised,
        figures.sent / 1024,
        figures.allowed / 1024
    )
}

fn show(summaries: &[Summary]) {
    println!(
        "\n{:<18}{:<32}{:>6}{:>8}{:>8}{:>10}{:>9}  seed",
        "row", "bug", "runs", "failed", "faults", "verified", "seconds"
    );
    for summary in summaries {
        let bug = summary.bug.unwrap_or("-");
        println!(
            "{:<18}{bug:<32}{:>6}{:>8}{:>8}{:>10}{:>9.1}  {}{}",
            summary.row,
            summary.runs,
            summary.failed,
            summary.faults,
            summary.verified,
            summary.seconds,
            summary.seed,
            match (summary.bug, summary.caught) {
                (None, _) => String::new(),
                (Some(_), Some(run)) => format!("  caught by run {run}"),
                (Some(_), None) => "  NOT CAUGHT".to_owned(),
            }
        );
    }
    for (seed, kind, detail) in summaries.iter().filter(|summary| summary.bug.is_none()).flat_map(|s| &s.failures) {
        println!("seed {seed}: {kind}: {detail}");
    }
}
