//! Runs inside the source server of the live tests: `run` writes records and small files without end, `kinds` writes in every
//! way for some seconds, `fill` makes a file of random bytes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rehost_tests::Result;
use rehost_tests::live::{load, writer};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match act(&words) {
        Some(Ok(said)) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Some(Err(error)) => {
            eprintln!("live-writer: {error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("usage: live-writer run LOG SECOND ACKNOWLEDGED CHURN PAUSE_MS CHURN_PAUSE_MS");
            eprintln!("       live-writer kinds FILE MIB SEED SECONDS");
            eprintln!("       live-writer fill FILE MIB SEED");
            ExitCode::from(2)
        }
    }
}

fn act(words: &[&str]) -> Option<Result<String>> {
    let number = |word: &str| word.parse::<u64>().ok();
    match words {
        ["run", log, second, acknowledged, churn, pause, churn_pause] => {
            let plan = writer::Plan {
                log: PathBuf::from(log),
                second: PathBuf::from(second),
                acknowledged: PathBuf::from(acknowledged),
                churn: PathBuf::from(churn),
                pause: Duration::from_millis(number(pause)?),
                churn_pause: Duration::from_millis(number(churn_pause)?),
            };
            Some(writer::run(&plan).map(|()| "stopped".to_owned()))
        }
        ["kinds", file, mib, seed, seconds] => {
            let time = Duration::from_secs(number(seconds)?);
            Some(
                load::every_kind(&PathBuf::from(file), number(mib)?, number(seed)?, time)
                    .map(|w| format!("{w} writes")),
            )
        }
        ["fill", file, mib, seed] => {
            let filled = load::fill(&PathBuf::from(file), number(mib)?, number(seed)?);
            Some(filled.map(|()| "filled".to_owned()))
        }
        _ => None,
    }
}
