//! Tests with real machines: their name tells the test runner to run them one by one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

use rehost_control::PortErrorKind;
use rehost_control::ports::{ConversionProgress, InstanceState};
use rehost_model::conversion::{
    ConversionOutcome, ConversionReport, ConversionRequest, ConversionTarget, RequestedDisk,
};
use rehost_model::launch::BootMode;
use rehost_model::link::BootFirmware;
use rustix::process::Signal;

use super::contract_tests::{tags, token};
use super::machine::Life;
use super::tests::{Region, copy_of};
use super::*;

#[test]
fn a_machine_starts_is_adopted_and_terminated() {
    let mut region = Region::new();
    let disk = region.volume("disk", 1 << 20);
    let spec = copy_of(std::slice::from_ref(&disk));
    let id = region.engine.run_instance(&spec, &token(&["run"])).unwrap();
    assert_eq!(region.engine.run_instance(&spec, &token(&["run"])).unwrap(), id);
    let described = region.engine.instance(&id).unwrap().unwrap();
    assert_eq!(described.state, InstanceState::Running);
    assert_eq!(described.endpoints.keys().copied().collect::<Vec<_>>(), [22, 80]);
    assert_eq!(region.engine.delete_volume(&disk).unwrap_err().kind, PortErrorKind::Conflict);
    let second = region.engine.run_instance(&spec, &token(&["second"])).unwrap_err();
    assert_eq!(second.kind, PortErrorKind::Conflict, "{second}");

    region.reopen();
    assert_eq!(region.engine.instance(&id).unwrap().unwrap(), described);
    // As if the server had been killed between the start and its note.
    fs::remove_file(region.engine.process_file(&id)).unwrap();
    region.reopen();
    assert_eq!(region.engine.instance(&id).unwrap().unwrap().state, InstanceState::Running);

    let machine = region.engine.machine(&id).unwrap().unwrap();
    let Life::Running(process) = region.engine.life(&machine).unwrap() else { panic!("it runs") };
    region.engine.terminate_instance(&id).unwrap();
    assert!(!process.is_alive());
    assert_eq!(region.engine.instance(&id).unwrap().unwrap().state, InstanceState::Terminated);
    region.engine.terminate_instance(&id).unwrap();
    assert_eq!(region.engine.run_instance(&spec, &token(&["run"])).unwrap(), id, "a late repetition starts nothing");
    assert!(region.left_in("instances").is_empty());
    region.engine.delete_volume(&disk).unwrap();
    assert!(region.left_in("volumes").is_empty());
}

#[test]
fn a_termination_that_was_cut_off_is_finished() {
    let mut region = Region::new();
    let disk = region.volume("disk", 1 << 20);
    let id = region.engine.run_instance(&copy_of(&[disk]), &token(&["run"])).unwrap();
    let machine = region.engine.machine(&id).unwrap().unwrap();
    let Life::Running(process) = region.engine.life(&machine).unwrap() else { panic!("it runs") };
    region.engine.record(&machine::Machine { terminating: true, ..machine }).unwrap();
    assert_eq!(region.engine.instance(&id).unwrap().unwrap().state, InstanceState::ShuttingDown);
    region.reopen();
    assert!(!process.is_alive());
    assert!(region.left_in("instances").is_empty());
}

#[test]
fn a_machine_that_died_says_why() {
    let region = Region::new();
    let disk = region.volume("disk", 1 << 20);
    let id = region.engine.run_instance(&copy_of(&[disk]), &token(&["run"])).unwrap();
    qmp::execute(&region.engine.layout.instance(&id), "quit", &serde_json::json!({})).unwrap();
    let machine = region.engine.machine(&id).unwrap().unwrap();
    let ended = || region.engine.life(&machine).unwrap() == Life::Ended;
    assert!((0..100).any(|_| ended() || {
        std::thread::sleep(Duration::from_millis(100));
        false
    }));
    let described = region.engine.instance(&id).unwrap().unwrap();
    assert_eq!(described.state, InstanceState::Stopped);
    assert!(described.state_reason.unwrap().contains("ended"));
}

#[test]
fn a_machine_that_cannot_start_leaves_nothing() {
    let region = Region::new();
    let disk = region.volume("disk", 1 << 20);
    fs::write(region.image(&disk), "").unwrap();
    fs::remove_file(region.image(&disk)).unwrap();
    let refused = region.engine.run_instance(&copy_of(std::slice::from_ref(&disk)), &token(&["run"])).unwrap_err();
    assert!(refused.message.contains("No such file"), "{refused}");
    assert!(region.left_in("instances").is_empty());
    region.engine.delete_volume(&disk).unwrap();
}

#[tokio::test]
async fn tcp_needs_the_guest_itself() {
    let region = Region::new();
    let disk = region.volume("disk", 1 << 20);
    let id = region.engine.run_instance(&copy_of(&[disk]), &token(&["run"])).unwrap();
    let compute = LocalCompute { engine: Arc::clone(&region.engine) };
    // QEMU accepts for a guest that does not even boot.
    for probe in ["tcp:22", "http:80/", "boot"] {
        let outcome = compute.probe(&id, &probe.parse().unwrap()).await.unwrap();
        assert!(!outcome.passed, "{probe}: {outcome:?}");
    }
    let unknown = compute.probe(&id, &Probe::Tcp { port: 443 }).await;
    assert_eq!(unknown.unwrap_err().kind, PortErrorKind::Invalid);
}

/// The converter, as built for these tests; it is built where only this package was.
fn converter() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let folder = this.ancestors().nth(2).unwrap();
    let converter = folder.join("rehost-converter");
    if !converter.exists() {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let mut command = Command::new(cargo);
        command.args(["build", "--quiet", "-p", "rehost-converter"]).current_dir(package());
        assert!(command.status().unwrap().success(), "rehost-converter cannot be built");
    }
    converter
}

/// This package's folder. What was compiled in may be that of another clone, which shares the build output.
fn package() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
}

/// A source server's disk that boots on a SATA controller only.
fn source_disk(folder: &Path, firmware: &str) -> PathBuf {
    let script = package().join("../../tests/images/small-linux");
    let image = folder.join("source.img");
    let arguments = ["--firmware", firmware, "--page", "a page", "--root-wait", "2"];
    assert!(Command::new(script).args(arguments).arg(&image).status().unwrap().success(), "no image");
    image
}

fn conversion_of(disk: &VolumeId, boot_mode: BootMode) -> ConversionSpec {
    let requested = RequestedDisk { serial: disk.nvme_serial(), source_device: Some("/dev/sda".to_owned()) };
    let request = ConversionRequest::new(ConversionTarget::Qemu, boot_mode, vec![requested]);
    let (staging_subnet_id, tags) = (String::new(), tags(&ServerId::generate()));
    ConversionSpec { volumes: vec![disk.clone()], request, staging_subnet_id, security_group: None, tags }
}

fn await_report(region: &Region, id: &InstanceId) -> ConversionReport {
    loop {
        match region.engine.conversion_progress(id).unwrap() {
            ConversionProgress::Running => std::thread::sleep(Duration::from_millis(100)),
            ConversionProgress::Reported(report) => return *report,
            ConversionProgress::Died(why) => panic!("{why}"),
        }
    }
}

fn convert(region: &Region, disk: &VolumeId, boot_mode: BootMode) -> ConversionReport {
    let spec = conversion_of(disk, boot_mode);
    let began = Instant::now();
    let id = region.engine.start_conversion(&spec, &token(&["convert"])).unwrap();
    assert_eq!(region.engine.start_conversion(&spec, &token(&["convert"])).unwrap(), id);
    let report = await_report(region, &id);
    eprintln!("converted in {:.1} s", began.elapsed().as_secs_f32());
    region.engine.terminate_instance(&id).unwrap();
    let again = region.engine.conversion_progress(&id).unwrap();
    assert_eq!(again, ConversionProgress::Reported(Box::new(report.clone())), "a step that was cut off asks again");
    report
}

async fn passes(region: &Region, id: &InstanceId, probe: &str, limit: Duration) -> ProbeOutcome {
    let compute = LocalCompute { engine: Arc::clone(&region.engine) };
    let began = Instant::now();
    loop {
        let outcome = compute.probe(id, &probe.parse().unwrap()).await.unwrap();
        if outcome.passed || began.elapsed() > limit {
            eprintln!("{probe} after {:.1} s: {}", began.elapsed().as_secs_f32(), outcome.detail);
            return outcome;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn travels(firmware: BootFirmware, boot_mode: BootMode, name: &str) {
    let region = converting_region();
    let folder = tempfile::tempdir().unwrap();
    let source = source_disk(folder.path(), name);
    let disk = region.volume("disk", fs::metadata(&source).unwrap().len());
    fs::copy(&source, region.image(&disk)).unwrap();

    let report = convert(&region, &disk, boot_mode);
    assert_eq!(report.outcome, ConversionOutcome::Converted, "{report:?}");
    let spec = InstanceSpec { firmware, cpus: 2, ..copy_of(std::slice::from_ref(&disk)) };
    let id = region.engine.run_instance(&spec, &token(&["launch"])).unwrap();
    for probe in ["http:80/", "tcp:80", "boot"] {
        let outcome = passes(&region, &id, probe, Duration::from_secs(120)).await;
        assert!(outcome.passed, "{probe}: {outcome:?}; {}", region.engine.console_output(&id).unwrap());
    }
    let nobody_listens = passes(&region, &id, "tcp:22", Duration::ZERO).await;
    assert_eq!((nobody_listens.passed, nobody_listens.detail.as_str()), (false, "connection refused"));
    assert!(region.engine.console_output(&id).unwrap().contains("login:"));
    region.engine.terminate_instance(&id).unwrap();
    region.engine.delete_volume(&disk).unwrap();
    assert!(region.left_in("instances").is_empty() && region.left_in("volumes").is_empty());
}

#[tokio::test]
async fn a_bios_server_is_converted_and_answers() {
    travels(BootFirmware::Bios, BootMode::LegacyBios, "bios").await;
}

#[tokio::test]
async fn a_uefi_server_is_converted_and_answers() {
    travels(BootFirmware::Uefi, BootMode::Uefi, "uefi").await;
}

/// A region that converts for real.
fn converting_region() -> Region {
    Region::with(|config| LocalComputeConfig {
        converter_binary: converter(),
        conversion_cache: default_cache(),
        ..config
    })
}

#[test]
fn a_conversion_machine_that_hangs_is_started_again() {
    let region = converting_region();
    let folder = tempfile::tempdir().unwrap();
    let source = source_disk(folder.path(), "bios");
    let disk = region.volume("disk", fs::metadata(&source).unwrap().len());
    fs::copy(&source, region.image(&disk)).unwrap();
    let spec = conversion_of(&disk, BootMode::LegacyBios);
    let id = region.engine.start_conversion(&spec, &token(&["convert"])).unwrap();
    let machine = region.engine.machine(&id).unwrap().unwrap();
    let running = || match region.engine.life(&machine).unwrap() {
        Life::Running(process) => process,
        Life::NotStarted | Life::Ended => panic!("it runs"),
    };
    let (first, folder) = (running(), region.engine.layout.instance(&id));
    let console = folder.join(qemu::CONSOLE);
    while fs::metadata(&console).map_or(0, |console| console.len()) == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    first.signal(Signal::STOP).unwrap();
    assert_eq!(region.engine.conversion_progress(&id).unwrap(), ConversionProgress::Running);
    assert_eq!(running(), first, "it was heard of a moment ago");
    let long_ago = SystemTime::now() - Duration::from_secs(600);
    for file in [region.engine.process_file(&id), console, folder.join(qemu::REPORT)] {
        fs::File::options().append(true).open(file).unwrap().set_modified(long_ago).unwrap();
    }
    assert_eq!(region.engine.conversion_progress(&id).unwrap(), ConversionProgress::Running);
    assert!(!first.is_alive());
    assert_ne!(running(), first);
    let report = await_report(&region, &id);
    assert_eq!(report.outcome, ConversionOutcome::Converted, "{report:?}");
    region.engine.terminate_instance(&id).unwrap();
}

#[test]
fn a_disk_without_a_server_is_reported() {
    let region = converting_region();
    let disk = region.volume("disk", 8 << 20);
    let report = convert(&region, &disk, BootMode::LegacyBios);
    assert!(!report.outcome.is_launchable(), "{report:?}");
    assert!(report.failure().is_some(), "{report:?}");
}

#[test]
fn the_accelerator_is_decided_once_and_works() {
    let mut region =
        Region::with(|config| LocalComputeConfig { accelerator: None, conversion_cache: default_cache(), ..config });
    region.engine.prepare_assets().unwrap();
    let chosen = region.engine.accelerator().unwrap();
    region.reopen();
    let began = Instant::now();
    assert_eq!(region.engine.accelerator().unwrap(), chosen);
    assert!(began.elapsed() < Duration::from_secs(1), "it is known from the first time");
    let disk = region.volume("disk", 1 << 20);
    let id = region.engine.run_instance(&copy_of(&[disk]), &token(&["run"])).unwrap();
    assert_eq!(region.engine.instance(&id).unwrap().unwrap().state, InstanceState::Running);
    eprintln!("{chosen:?}: {:?}", fs::read_to_string(region.engine.layout.cache().join("accel.json")));
}
