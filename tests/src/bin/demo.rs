//! The main job, shown: a Debian server that cannot boot on NVMe is migrated from inside its running machine to a verified
//! instance in a local region of its own, and nothing stays behind.
//!
//! `DISK=/path/to.img` takes a disk of the user's own instead (which is only read), with `PROBE` (`http:80`, `tcp:22` or `boot`).

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rehost_tests::negative::fails_on_target;
use rehost_tests::show::Show;
use rehost_tests::{
    DebianServer, Error, LocalAgent, Machine, MachineSpec, Region, Result, Ssh, Workspace, agent, http_get, paths,
};
use serde_json::Value;

/// Many times what it takes: the machine may be shared, and without KVM.
const PATIENCE: Duration = Duration::from_secs(900);
/// Where the guests of the source's network find this machine's loopback.
const GATEWAY: &str = "10.77.0.2";
const FIRST_PAGE: &str = "this page was there before the migration\n";
const CHANGED_PAGE: &str = "this page was changed between the test and the cutover\n";

fn main() -> ExitCode {
    let disk = std::env::var_os("DISK").filter(|disk| !disk.is_empty()).map(PathBuf::from);
    Show::of("demo", |show| match disk {
        Some(disk) => own_disk(show, &disk),
        None => debian_server(show),
    })
}

fn debian_server(show: &Show) -> Result<String> {
    println!("rehost demo: migrates a running Debian web server to a booted, verified instance in a local region.");
    println!("  needs about 8 GiB of disk, 3 GiB of memory, two processors; without KVM some ten minutes");
    println!(
        "  (the first run also bootstraps the source's disk: some minutes more); everything is removed at the end"
    );
    let space = Workspace::new("demo")?;
    show.step("source: making the disk of a Debian server (SATA, static address, boot and fstab by device name)");
    let disk = space.path("source.img");
    let key = DebianServer::default().build(&disk)?;
    let control = start_control(&disk, space.path("control"))?;
    show.step("source: starting its machine (QEMU, q35 with AHCI and e1000); beside it an unconverted copy on NVMe");
    let mut source = MachineSpec::source(&disk).memory(768).start(&space.path("source"))?;
    source.wait_http(80, "/", PATIENCE)?;
    let ssh = Ssh::new(source.port(22)?, key);
    ssh.wait(PATIENCE)?;
    set_page(&ssh, FIRST_PAGE)?;
    show.step("source: it answers over HTTP and ssh");
    let screen = control.join().map_err(|_| Error::Unexpected("the control panicked".to_owned()))??;
    show.step(format!("control: the unconverted copy does not boot on NVMe: {}", reason(&screen)));

    let region = Region::start(space.folder(), &[GATEWAY])?;
    show.step(format!("region: `rehost serve` on 127.0.0.1:{}", region.port()));
    let id = install(show, &region, &ssh)?;
    let test = test_launch(show, &region, &id, "http:80")?;
    expect_page(&region, &id, FIRST_PAGE)?;
    set_page(&ssh, CHANGED_PAGE)?;
    show.step("source: the page was changed on the running server");
    let cutover = cut_over(show, &region, &id)?;
    expect_page(&region, &id, CHANGED_PAGE)?;
    show.step("cutover: the copy serves the changed page");
    let leftovers = finish(show, &region, &id)?;
    expect_agent_gone(&ssh, &mut source)?;
    Ok(format!("test_http={test} cutover_http={cutover} changed_page=served leftovers={leftovers}"))
}

fn own_disk(show: &Show, disk: &Path) -> Result<String> {
    let probe = std::env::var("PROBE").ok().filter(|probe| !probe.is_empty()).unwrap_or_else(|| "boot".to_owned());
    println!("rehost demo: migrates the disk {} (only read) to a booted instance; probe {probe}", disk.display());
    println!("  needs four times the disk's used space, 2 GiB of memory; everything is removed at the end");
    let space = Workspace::new("demo")?;
    let disk = disk.canonicalize().map_err(|e| {
        Error::Unexpected(format!("DISK={}: {e}; give the path of a raw disk image or a block device", disk.display()))
    })?;
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    show.step(format!("region: `rehost serve` on 127.0.0.1:{}", region.port()));
    let mut agent = LocalAgent::install(&region, &disk, &space.path("agent"))?;
    agent.start()?;
    let id = agent.server().to_owned();
    show.step(format!("agent: runs here and reads the image; source server {id}"));
    follow(&region, &id)?;
    test_launch(show, &region, &id, &probe)?;
    cut_over(show, &region, &id)?;
    let leftovers = finish(show, &region, &id)?;
    Ok(format!("test={probe} cutover={probe} leftovers={leftovers}"))
}

/// The negative control runs beside the source: it mostly waits for a disk that never comes.
fn start_control(disk: &Path, folder: PathBuf) -> Result<thread::JoinHandle<Result<String>>> {
    let copy = disk.with_extension("control.img");
    rehost_tests::negative::copy_sparse(disk, &copy)?;
    Ok(thread::spawn(move || fails_on_target(&copy, &folder, PATIENCE)))
}

fn reason(screen: &str) -> &str {
    let line = screen.lines().rev().find(|line| line.contains("does not exist") || line.contains("Gave up"));
    line.unwrap_or("its screen says no more").trim()
}

fn set_page(ssh: &Ssh, page: &str) -> Result<()> {
    ssh.run(&format!("printf '%s' '{page}' >/var/www/html/index.html && sync")).map(drop)
}

/// Installs the agent inside the running machine, as an administrator would.
fn install(show: &Show, region: &Region, ssh: &Ssh) -> Result<String> {
    let key = region.install_key()?;
    ssh.copy(&paths::binary("rehost-agent")?, "/tmp/rehost-agent")?;
    show.step("agent: copied into the machine; installing");
    // The secret goes by the environment, so that it stands in no process list and no history.
    let output = ssh.run(&format!(
        "AWS_SECRET_ACCESS_KEY='{}' /tmp/rehost-agent install --endpoint https://{GATEWAY}:{} --ca-fingerprint {} \
         --aws-access-key-id {} --no-prompt && rm /tmp/rehost-agent",
        key.secret_access_key,
        region.port(),
        key.ca_fingerprint,
        key.access_key_id
    ))?;
    let id = agent::server_id(&output)?;
    show.step(format!("agent: installed and started; source server {id}"));
    follow(region, &id)?;
    show.step("replication: the first copy is durable and the first launchable snapshot exists");
    Ok(id)
}

/// Shows the replication until the server is ready for a test.
fn follow(region: &Region, id: &str) -> Result<()> {
    let watch = region.command(&["watch", id, "--until", "READY_FOR_TEST"])?.status();
    match watch {
        Ok(status) if status.success() => Ok(()),
        other => Err(Error::Unexpected(format!("rehost watch ended with {other:?}"))),
    }
    .and_then(|()| region.wait_state(id, "READY_FOR_TEST", Duration::from_secs(5)).map(drop))
}

/// What the probed port answered: an HTTP status for a web server, else that the probe passed.
fn test_launch(show: &Show, region: &Region, id: &str, probe: &str) -> Result<String> {
    region.rehost(&["server", "set", id, "--probe", probe])?;
    show.step("test: checkpoint, snapshot, conversion, launch on NVMe, verification");
    region.rehost(&["test", id, "--wait"])?;
    let answer = answer(region, id, probe)?;
    show.step(format!("test: the copy answers ({answer})"));
    Ok(answer)
}

fn cut_over(show: &Show, region: &Region, id: &str) -> Result<String> {
    let probe = probe_of(region, id)?;
    region.rehost(&["ready", id])?;
    region.wait_server(id, "the end of the test instance", PATIENCE, |server| server["launchedInstance"].is_null())?;
    show.step("ready for cutover: the test instance is gone; cutover from a fresh checkpoint");
    region.rehost(&["cutover", id, "--wait"])?;
    let answer = answer(region, id, &probe)?;
    show.step(format!("cutover: the copy answers ({answer})"));
    Ok(answer)
}

fn probe_of(region: &Region, id: &str) -> Result<String> {
    let endpoints = region.server(id)?["launchedInstance"]["endpoints"].clone();
    let web = endpoints.get("80").is_some();
    Ok(if web { "http:80" } else { "boot" }.to_owned())
}

fn answer(region: &Region, id: &str, probe: &str) -> Result<String> {
    if !probe.starts_with("http:") {
        return Ok("passed".to_owned());
    }
    Ok(http_get(copy_port(region, id)?, "/", Duration::from_secs(20))?.status.to_string())
}

fn copy_port(region: &Region, id: &str) -> Result<u16> {
    let server = region.server(id)?;
    let endpoints = server["launchedInstance"]["endpoints"].as_object().cloned().unwrap_or_default();
    let address = endpoints.values().next().and_then(Value::as_str).unwrap_or_default();
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
    port.ok_or_else(|| Error::Unexpected(format!("the launched copy has no address: {}", server["launchedInstance"])))
}

fn expect_page(region: &Region, id: &str, page: &str) -> Result<()> {
    let served = http_get(copy_port(region, id)?, "/", Duration::from_secs(20))?.text();
    if served == page {
        return Ok(());
    }
    Err(Error::Unexpected(format!("the copy serves {served:?} instead of {page:?}")))
}

/// Finalizes and archives; how many things are left that should not be.
fn finish(show: &Show, region: &Region, id: &str) -> Result<usize> {
    region.rehost(&["finalize", id, "--wait"])?;
    show.step("finalize: replication ended, staging volumes and snapshots are gone, the replication server too");
    region.rehost(&["archive", id])?;
    let server = region.server(id)?;
    let (state, archived) = (&server["lifeCycle"]["state"], &server["isArchived"]);
    if *state != "CUTOVER" || *archived != true {
        return Err(Error::Unexpected(format!("the server ended as {state}, archived: {archived}")));
    }
    let leftovers = leftovers(region, &server)?;
    show.step(format!("archive: done; left beside the cutover instance and its disks: {}", leftovers.len()));
    if leftovers.is_empty() { Ok(0) } else { Err(Error::Unexpected(format!("left over: {leftovers:?}"))) }
}

/// Files and processes that belong to neither the cutover instance nor its volumes.
fn leftovers(region: &Region, server: &Value) -> Result<Vec<String>> {
    let instance = server["launchedInstance"]["ec2InstanceID"].as_str().unwrap_or_default().to_owned();
    let machine = std::fs::read_to_string(region.home().join("instances").join(&instance).join("machine.json"));
    let machine = machine.unwrap_or_default();
    let volume = |path: &Path| path.file_stem().is_some_and(|stem| machine.contains(&*stem.to_string_lossy()));
    let mut left: Vec<_> = region.leftovers()?.into_iter().filter(|p| !p.ends_with(&instance) && !volume(p)).collect();
    let process = std::fs::read(region.home().join("instances").join(&instance).join("process.json"));
    let process: Value = serde_json::from_slice(&process.unwrap_or_default()).unwrap_or_default();
    let (copy, others): (Vec<_>, Vec<_>) = region.processes().into_iter().partition(|pid| process["pid"] == *pid);
    if copy.is_empty() {
        return Err(Error::Unexpected(format!("the cutover instance {instance} does not run any more")));
    }
    left.extend(others.into_iter().map(|pid| PathBuf::from(format!("/proc/{pid}"))));
    Ok(left.into_iter().map(|path| path.display().to_string()).collect())
}

/// After finalize the agent on the source has stopped for good, and the source goes on serving.
fn expect_agent_gone(ssh: &Ssh, source: &mut Machine) -> Result<()> {
    source.wait_http(80, "/", PATIENCE)?;
    let started = Instant::now();
    loop {
        let state = ssh.run("systemctl is-active rehost-agent; systemctl is-enabled rehost-agent; true")?;
        if state.split_whitespace().eq(["inactive", "disabled"]) {
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(60) {
            return Err(Error::Unexpected(format!(
                "the agent's unit on the source is {}",
                state.trim().replace('\n', ", ")
            )));
        }
        thread::sleep(Duration::from_secs(1));
    }
}
