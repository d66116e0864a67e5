//! Full sync of one image: rehost's engines against nbdcopy and nbdkit over TLS, on the same bytes in the same run. Then the
//! delta of a device of which 3 % changed, scattered: against rsync, where that is installed.
//!
//! Every side is a process of its own under `time`, so CPU seconds and peak memory are the kernel's numbers. A round that
//! does not count warms up the page cache and the memory of a virtual machine; then the order alternates, and medians are
//! over `RUNS` (3). Written to `bench/out/bench.json`, shown as a table. Apart from that, and only when asked for: an
//! agent that is idle, and how long freezes block writers.

mod delta;
mod device;
mod freeze;
mod idle;
mod image;
mod measure;
mod peer;
mod sides;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use measure::{Measured, median};
use serde_json::json;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["receive", folder] => sides::receive(Path::new(folder)),
        ["send", folder] => sides::send(Path::new(folder)),
        ["receive-delta", folder] => sides::receive_delta(Path::new(folder)),
        ["send-delta", folder] => sides::send_delta(Path::new(folder)),
        ["delta"] => only_delta(),
        ["idle"] => idle::measure(),
        ["freeze"] => freeze::measure(),
        ["churn", folder] => {
            freeze::churn(Path::new(folder));
            Ok(())
        }
        [] => compare(),
        other => anyhow::bail!("no such arguments: {other:?}; without any, everything is measured"),
    }
}

fn runs() -> usize {
    std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3).max(1)
}

/// Shown, and not written.
fn only_delta() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("rehost-bench-").tempdir()?;
    let image = folder.path().join("source.img");
    image::write(&image)?;
    measure_deltas(&image, folder.path(), runs()).map(|_| ())
}

fn compare() -> Result<()> {
    let runs = runs();
    let folder = tempfile::Builder::new().prefix("rehost-bench-").tempdir()?;
    let image = folder.path().join("source.img");
    println!("writing the image: 2 GiB, of it 700 MB of files, 400 MB random, the rest zeros");
    let data_bytes = image::write(&image)?;
    let (ours, theirs) = measure_all(&image, folder.path(), runs)?;
    let (ours, theirs) = (median(&ours), median(&theirs));
    show(&ours, &theirs);
    let deltas = measure_deltas(&image, folder.path(), runs)?;
    let document = json!({
        "work": {"imageBytes": image::IMAGE_BYTES, "dataBytes": data_bytes, "runs": runs, "link": "loopback"},
        "rehost": ours,
        "nbdcopy": theirs,
        "delta": deltas,
        "ratio": {
            "cpuSeconds": ours.cpu_seconds / theirs.cpu_seconds,
            "wallSeconds": ours.wall_seconds / theirs.wall_seconds,
        },
    });
    write_result("bench.json", &document)
}

/// Writes what was measured to `bench/out`.
fn write_result(name: &str, document: &serde_json::Value) -> Result<()> {
    let out = rehost_tests::paths::repository().join("bench/out");
    std::fs::create_dir_all(&out)?;
    let file: PathBuf = out.join(name);
    std::fs::write(&file, serde_json::to_vec_pretty(document)?).with_context(|| format!("write {}", file.display()))?;
    println!("written to {}", file.display());
    Ok(())
}

/// Every counted run of both.
fn measure_all(image: &Path, folder: &Path, runs: usize) -> Result<(Vec<Measured>, Vec<Measured>)> {
    println!("warming up");
    sides::measure(image, &folder.join("rehost"))?;
    peer::measure(image, &folder.join("nbd"))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        // Whoever comes second finds memory and disk as the first one left them: each does so in turn.
        let nbd_first = run % 2 == 1;
        if nbd_first {
            theirs.push(peer::measure(image, &folder.join(format!("nbd-{run}")))?);
        }
        ours.push(sides::measure(image, &folder.join(format!("rehost-{run}")))?);
        if !nbd_first {
            theirs.push(peer::measure(image, &folder.join(format!("nbd-{run}")))?);
        }
        if let (Some(ours), Some(theirs)) = (ours.last(), theirs.last()) {
            println!("run {run} of {runs}: {:.2} s, nbdcopy {:.2} s", ours.wall_seconds, theirs.wall_seconds);
        }
    }
    Ok((ours, theirs))
}

/// The medians of both, beside what they had to do; or why not.
fn measure_deltas(image: &Path, folder: &Path, runs: usize) -> Result<serde_json::Value> {
    if let Some(obstacle) = delta::obstacle() {
        println!("the delta is not measured: {obstacle}");
        return Ok(json!({"skipped": obstacle}));
    }
    let (mut first, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for run in 1..=runs {
        let mut deltas = delta::measure(image, &folder.join(format!("delta-{run}")))?.into_iter();
        first.extend(deltas.next());
        ours.extend(deltas);
        theirs.extend(delta::measure_peer(image, &folder.join(format!("rsync-{run}")))?);
    }
    let median = |all: &[delta::Delta], figure: fn(&delta::Delta) -> f64| {
        let mut figures: Vec<f64> = all.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied()
    };
    for (which, deltas) in [("first", &first), ("later", &ours)] {
        for delta in deltas {
            let sender = delta.sender_cpu_seconds.unwrap_or_default();
            let (all, user) = (delta.cpu_seconds, delta.user_cpu_seconds);
            println!("{which}, CPU s: {all:.2}, outside of the kernel {user:.2}; the sender {sender:.2} of it");
        }
    }
    let row = |name: &str, figure: fn(&delta::Delta) -> f64| {
        let (a, b) = (median(&ours, figure), median(&theirs, figure));
        let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        println!("{name:<30}{:>12}{:>12}", shown(a), shown(b));
        json!({"rehost": a, "rsync": b})
    };
    println!("{:<30}{:>12}{:>12}", "deltas of 3 % (medians)", "rehost", "rsync");
    let first = median(&first, |delta| delta.cpu_seconds);
    println!("{:<30}{:>12.2}{:>12}", "CPU s, the first after a copy", first.unwrap_or(f64::NAN), "-");
    Ok(json!({
        "changedBytes": delta::changed_bytes(),
        "firstCpuSeconds": first,
        "cpuSeconds": row("CPU s, those that follow", |delta| delta.cpu_seconds),
        "userCpuSeconds": row("CPU s, outside of the kernel", |delta| delta.user_cpu_seconds),
        "senderCpuSeconds": row("CPU s, sender", |delta| delta.sender_cpu_seconds.unwrap_or(f64::NAN)),
        "manifestCpuSeconds": row("CPU s, digests after it", |delta| delta.manifest_cpu_seconds.unwrap_or(f64::NAN)),
        "wallSeconds": row("wall s", |delta| delta.wall_seconds),
        "wireMb": row("wire MB", |delta| delta.wire_mb),
    }))
}

fn show(ours: &Measured, theirs: &Measured) {
    println!("{:<22}{:>12}{:>12}{:>10}", "full sync (medians)", "rehost", "nbdcopy", "ratio");
    let row = |name: &str, a: f64, b: f64| println!("{name:<22}{a:>12.2}{b:>12.2}{:>10.2}", a / b);
    row("CPU s, both sides", ours.cpu_seconds, theirs.cpu_seconds);
    row("wall s", ours.wall_seconds, theirs.wall_seconds);
    row("peak MiB, sender", ours.sender_peak_mib, theirs.sender_peak_mib);
    row("peak MiB, receiver", ours.receiver_peak_mib, theirs.receiver_peak_mib);
    println!("{:<22}{:>12.2}{:>12}{:>10}", "wire MB", ours.wire_mb.unwrap_or_default(), "-", "-");
}
