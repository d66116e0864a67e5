//! The small source servers boot on the hardware they were made for and, unconverted, not on the target's.

use std::time::Duration;

use rehost_tests::machine::{Controller, Firmware, MachineSpec, Nic};
use rehost_tests::negative::{GAVE_UP, fails_on_target};
use rehost_tests::{Guest, Result, SmallLinux, Workspace};

/// Many times what it takes: the machine may be shared.
const PATIENCE: Duration = Duration::from_secs(150);

#[test]
fn qemu_small_linux_answers_at_home_and_not_on_nvme() -> Result<()> {
    let space = Workspace::new("control")?;
    let disk = SmallLinux::default().page("first page").root_wait(3).build(&space.path("disk.img"))?;
    let screen = fails_on_target(&disk, &space.path("control"), PATIENCE)?;
    assert!(screen.contains(GAVE_UP) && screen.contains("/dev/sda1 does not exist"), "{screen}");

    let mut source = MachineSpec::source(&disk).start(&space.path("source"))?;
    assert_eq!(source.wait_http(80, "/", PATIENCE)?.text(), "first page\n");
    let guest = Guest::new(source.port(8022)?);
    guest.set_page("second page")?;
    assert_eq!(source.wait_http(80, "/", PATIENCE)?.text(), "second page\n");
    Ok(())
}

#[test]
fn qemu_small_linux_on_vmware_like_hardware() -> Result<()> {
    let space = Workspace::new("pvscsi")?;
    let disk = SmallLinux::default().controller(Controller::Pvscsi).page("pvscsi").build(&space.path("disk.img"))?;
    let spec = MachineSpec::source(&disk).controller(Controller::Pvscsi).nic(Nic::Vmxnet3);
    let mut source = spec.start(&space.path("source"))?;
    assert_eq!(source.wait_http(80, "/", PATIENCE)?.text(), "pvscsi\n");
    Ok(())
}

#[test]
fn qemu_small_linux_on_uefi() -> Result<()> {
    let space = Workspace::new("uefi")?;
    let disk = SmallLinux::default().firmware(Firmware::Uefi).page("uefi").build(&space.path("disk.img"))?;
    let mut source = MachineSpec::source(&disk).firmware(Firmware::Uefi).start(&space.path("source"))?;
    assert_eq!(source.wait_http(80, "/", PATIENCE)?.text(), "uefi\n");
    Ok(())
}
