//! The Debian server of the demo: it starts, lets its administrator in, and is idle when nobody asks.

use std::time::Duration;

use rehost_tests::negative::{GAVE_UP, fails_on_target};
use rehost_tests::{DebianServer, MachineSpec, Result, Ssh, Workspace};

const PATIENCE: Duration = Duration::from_secs(300);

#[test]
#[ignore = "bootstraps Debian: more than a minute, and `scripts/install-deps demo`"]
fn qemu_debian_server_answers_and_is_idle() -> Result<()> {
    let space = Workspace::new("debian")?;
    let disk = space.path("disk.img");
    let key = DebianServer::default().build(&disk)?;
    let mut source = MachineSpec::source(&disk).memory(1024).start(&space.path("source"))?;
    assert!(source.wait_http(80, "/", PATIENCE)?.text().contains("first page"));

    let ssh = Ssh::new(source.port(22)?, key);
    ssh.wait(PATIENCE)?;
    let page = space.path("page.html");
    std::fs::write(&page, "second page\n").expect("the workspace is writable");
    ssh.copy(&page, "/var/www/html/index.html")?;
    assert_eq!(source.wait_http(80, "/", PATIENCE)?.text(), "second page\n");

    // Write requests that the disk completed, fifteen seconds apart, after the login's own traces are down.
    let writes = ssh.run(
        "sync; sleep 20; sync; for i in 1 2; do awk '$3 == \"sda\" { print $8 }' /proc/diskstats; sleep 15; done",
    )?;
    let counts: Vec<_> = writes.lines().collect();
    assert_eq!(counts.first(), counts.last(), "an idle server writes: {counts:?}");
    Ok(())
}

#[test]
#[ignore = "bootstraps Debian: more than a minute, and `scripts/install-deps demo`"]
fn qemu_debian_server_does_not_boot_on_nvme() -> Result<()> {
    let space = Workspace::new("debian-control")?;
    let disk = space.path("disk.img");
    DebianServer::default().build(&disk)?;
    let screen = fails_on_target(&disk, &space.path("control"), PATIENCE)?;
    assert!(screen.contains(GAVE_UP) && screen.contains("/dev/sda1"), "{screen}");
    Ok(())
}
