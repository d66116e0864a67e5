//! The whole path in the local region: a server that cannot boot on NVMe is replicated, converted, launched, cut over,
//! finalized and archived, and its copies answer.

use std::time::Duration;

use rehost_tests::machine::{Controller, Firmware};
use rehost_tests::negative::{copy_sparse, fails_on_target};
use rehost_tests::{LocalAgent, Region, Result, SmallLinux, Workspace, http_get};
use serde_json::Value;

/// Many times what it takes: the machine may be shared.
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn qemu_migrate_bios_mbr() -> Result<()> {
    migrate(SmallLinux::default().root_wait(2), Firmware::Bios)
}

#[test]
fn qemu_migrate_uefi_gpt() -> Result<()> {
    migrate(SmallLinux::default().firmware(Firmware::Uefi).controller(Controller::Pvscsi), Firmware::Uefi)
}

fn migrate(image: SmallLinux, firmware: Firmware) -> Result<()> {
    let space = Workspace::new("migrate")?;
    let disk = image.page("first page").build(&space.path("source.img"))?;
    // The control: without conversion this disk does not boot there, so that booting proves the conversion.
    let (unconverted, folder) = (disk.clone(), space.path("control"));
    let control = (firmware == Firmware::Bios)
        .then(|| std::thread::spawn(move || fails_on_target(&unconverted, &folder, PATIENCE).map(drop)));
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let mut agent = LocalAgent::install(&region, &disk, &space.path("agent"))?;
    agent.start()?;
    let id = agent.server().to_owned();
    region.wait_state(&id, "READY_FOR_TEST", PATIENCE)?;
    region.rehost(&["server", "set", &id, "--probe", "http:80"])?;
    if let Some(control) = control {
        control.join().expect("the control ran to its end")?;
    }

    region.rehost(&["test", &id, "--wait"])?;
    assert_eq!(page(&region, &id)?, "first page\n");
    region.rehost(&["ready", &id])?;
    region.wait_server(&id, "the end of the test instance", PATIENCE, |s| s["launchedInstance"].is_null())?;

    // What is written after the test must be in the cutover: another disk with another page takes the place of the source.
    let changed = SmallLinux::default().firmware(firmware).page("second page").root_wait(2);
    let changed = changed.build(&space.path("changed.img"))?;
    overwrite(&changed, &disk)?;
    region.rehost(&["cutover", &id, "--wait"])?;
    assert_eq!(page(&region, &id)?, "second page\n");

    region.rehost(&["finalize", &id, "--wait"])?;
    region.rehost(&["archive", &id])?;
    let server = region.server(&id)?;
    assert_eq!((&server["lifeCycle"]["state"], &server["isArchived"]), (&Value::from("CUTOVER"), &Value::from(true)));
    assert_only_the_copy_is_left(&region, &server)
}

/// The page that the launched copy answers.
fn page(region: &Region, id: &str) -> Result<String> {
    let server = region.server(id)?;
    let endpoint = server["launchedInstance"]["endpoints"]["80"].as_str().unwrap_or_default().to_owned();
    let port = endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_default();
    Ok(http_get(port, "/", Duration::from_secs(10))?.text())
}

/// Replaces the bytes of `to`, which stays the same file: the agent has it open.
fn overwrite(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let fresh = to.with_extension("fresh");
    copy_sparse(from, &fresh)?;
    let mut dd = std::process::Command::new("dd");
    dd.arg(format!("if={}", fresh.display())).arg(format!("of={}", to.display()));
    rehost_tests::process::run(dd.args(["bs=1M", "conv=notrunc,fsync", "status=none"]))?;
    Ok(())
}

/// After finalize: the cutover instance, its volume, and nothing else; no process but the instance's.
fn assert_only_the_copy_is_left(region: &Region, server: &Value) -> Result<()> {
    let instance = server["launchedInstance"]["ec2InstanceID"].as_str().unwrap_or_default();
    let left = region.leftovers()?;
    let strange: Vec<_> = left
        .iter()
        .filter(|path| {
            !path.ends_with(format!("instances/{instance}")) && !path.to_string_lossy().contains("/volumes/vol-")
        })
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    let images = left.iter().filter(|path| path.extension().is_some_and(|e| e == "img")).count();
    assert_eq!(images, 1, "one volume, the copy's: {left:?}");
    assert_eq!(region.processes().len(), 1, "one process, the copy's");
    Ok(())
}
