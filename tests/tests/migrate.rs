//! The whole path in the local region: a server that cannot boot on NVMe is replicated, converted, launched, cut over,
//! finalized and archived, and its copies answer.

use std::time::Duration;

use rehost_tests::journey::{Journey, Source};
use rehost_tests::machine::{Controller, Firmware};
use rehost_tests::negative::{copy_sparse, fails_on_target};
use rehost_tests::{LocalAgent, Region, Result, SmallLinux, Workspace};
use serde_json::Value;

/// Many times what it takes: the machine may be shared.
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn qemu_migrate_bios_mbr() -> Result<()> {
    migrate(SmallLinux::default(), Firmware::Bios)
}

#[test]
fn qemu_migrate_uefi_gpt() -> Result<()> {
    migrate(SmallLinux::default().firmware(Firmware::Uefi).controller(Controller::Pvscsi), Firmware::Uefi)
}

fn migrate(image: SmallLinux, firmware: Firmware) -> Result<()> {
    let space = Workspace::new("migrate")?;
    let source = Source::build(image.root_wait(2), space.folder())?;
    // The control: without conversion this disk does not boot there, so that booting proves the conversion.
    let (unconverted, folder) = (space.path("unconverted.img"), space.path("control"));
    copy_sparse(&source.disk, &unconverted)?;
    let control = (firmware == Firmware::Bios)
        .then(|| std::thread::spawn(move || fails_on_target(&unconverted, &folder, PATIENCE).map(drop)));
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let mut agent = LocalAgent::install(&region, &source.disk, &space.path("agent"))?;
    agent.start()?;
    let way = Journey::new(&region, agent.server(), PATIENCE).go(&source, |what| println!("{what}"))?;
    if let Some(control) = control {
        control.join().expect("the control ran to its end")?;
    }
    assert_only_the_copy_is_left(&region, &way.server)
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
