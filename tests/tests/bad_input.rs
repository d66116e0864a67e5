//! What is wrong is named where the user looks, can be mended, and loses nothing: each test breaks one thing, sees cause
//! and remedy, mends it where that is cheap, and sees the migration go on.
//!
//! Elsewhere, closer to the code: certificates of another region, of another server and without the volume
//! (`the_certificate_of_another_server_is_refused` and its neighbours in `agent/src/sync/tests/faults.rs`), a clock that is off in
//! TLS (`a_clock_that_is_off_is_named` in `crates/link`) and in an agent's poll (`crates/api/src/tests.rs`).

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rehost_tests::agent::{install_command, server_id};
use rehost_tests::disk::{first_difference, write_random};
use rehost_tests::error::Context;
use rehost_tests::forward::Link;
use rehost_tests::process::run;
use rehost_tests::region::InstallKey;
use rehost_tests::{
    Error, Forwarder, LocalAgent, Region, Result, SmallLinux, Tmpfs, Workspace, free_port, paths, sweep,
};
use serde_json::Value;

/// Many times what anything takes: the machine may be shared.
const PATIENCE: Duration = Duration::from_secs(180);

/// The words of a command that must fail; its exit code is not 0.
fn failure(command: &mut Command) -> String {
    match run(command) {
        Ok(output) => panic!("{command:?} succeeded: {output}"),
        Err(error @ Error::Failed { .. }) => error.to_string(),
        Err(error) => panic!("{command:?} could not be run: {error}"),
    }
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

/// The server's `rawError`, once it holds `word`.
fn wait_error(region: &Region, id: &str, word: &str) -> Result<(String, String)> {
    let error = |server: &Value| server["dataReplicationInfo"]["dataReplicationError"].clone();
    let holds = |server: &Value| error(server)["rawError"].as_str().is_some_and(|raw| raw.contains(word));
    let server = region.wait_server(id, &format!("the error {word}"), PATIENCE, holds)?;
    let text = |name: &str| error(&server)[name].as_str().unwrap_or_default().to_owned();
    Ok((text("error"), text("rawError")))
}

/// Waits until `rehost-agent status` shows this trouble: the control plane may know it first.
fn wait_status(agent: &LocalAgent, code: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let status = agent.status()?;
        if status["status"]["error"]["code"] == code {
            return Ok(());
        }
        assert!(started.elapsed() < PATIENCE, "the agent does not show {code}: {status:#}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until the server is ready, has no error any more, and its volume is as its source.
fn assert_synced(region: &Region, id: &str, source: &Path) -> Result<()> {
    region.wait_server(id, "READY_FOR_TEST without an error", PATIENCE, |server| {
        server["lifeCycle"]["state"] == "READY_FOR_TEST"
            && server["dataReplicationInfo"]["dataReplicationError"].is_null()
    })?;
    let volumes = region.volumes()?;
    let [volume] = volumes.as_slice() else { panic!("one staging volume expected: {volumes:?}") };
    assert_eq!(first_difference(source, volume)?, None, "{id}: the volume differs from its source");
    Ok(())
}

/// Ends the replication and sees that nothing is left of it.
fn assert_ends_clean(region: &Region, id: &str) -> Result<()> {
    region.rehost(&["disconnect", id, "--wait"])?;
    assert_nothing_left(region)
}

fn assert_nothing_left(region: &Region) -> Result<()> {
    let started = Instant::now();
    loop {
        let (files, processes) = (region.leftovers()?, region.processes());
        if files.is_empty() && processes.is_empty() {
            return Ok(());
        }
        assert!(started.elapsed() < PATIENCE, "left: files {files:?}, processes {processes:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// A region, a random disk of `mib` MiB and its agent, installed and not started.
fn installed(space: &Workspace, host: &str, mib: usize) -> Result<(Region, PathBuf, LocalAgent)> {
    let region = Region::start(space.folder(), &[host])?;
    let disk = space.path("source.img");
    write_random(&disk, mib, 1)?;
    let agent = LocalAgent::install(&region, &disk, &space.path("agent"))?;
    Ok((region, disk, agent))
}

#[test]
fn an_installation_that_cannot_be_says_why_and_leaves_nothing() -> Result<()> {
    let space = Workspace::new("install")?;
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let (disk, state) = (space.path("source.img"), space.path("agent"));
    write_random(&disk, 1, 1)?;
    let (key, endpoint) = (region.install_key()?, format!("https://127.0.0.1:{}", region.port()));
    let try_it = |endpoint: &str, key: &InstallKey, disk: &Path, words: &[&str]| -> Result<()> {
        let said = failure(&mut install_command(endpoint, key, disk, &state)?);
        println!("{said}");
        assert_says(&said, words);
        assert!(!said.contains(&key.secret_access_key), "the secret was printed: {said}");
        assert!(!state.exists(), "{} was left behind", state.display());
        assert_eq!(region.json(&["servers"])?["items"], Value::Array(vec![]), "after: {said}");
        Ok(())
    };

    let unknown = InstallKey { access_key_id: "AKIAUNKNOWNUNKNOWN00".to_owned(), ..key.clone() };
    try_it(&endpoint, &unknown, &disk, &["access key", "403"])?;
    let wrong_secret = InstallKey { secret_access_key: "not-the-secret".repeat(3), ..key.clone() };
    try_it(&endpoint, &wrong_secret, &disk, &["secret", "403"])?;
    let other_ca = InstallKey { ca_fingerprint: format!("sha256:{}", "0".repeat(64)), ..key.clone() };
    try_it(&endpoint, &other_ca, &disk, &["--ca-fingerprint", "rehost init"])?;
    let refused = format!("https://127.0.0.1:{}", free_port()?);
    try_it(&refused, &key, &disk, &["connection refused", "--endpoint"])?;
    try_it("https://nowhere.invalid", &key, &disk, &["nowhere.invalid", "DNS", "--endpoint"])?;
    let stranger = web_server()?;
    try_it(&format!("https://127.0.0.1:{stranger}"), &key, &disk, &["does not speak TLS", "--endpoint"])?;
    try_it(&format!("http://127.0.0.1:{}", region.port()), &key, &disk, &["https"])?;
    try_it(&endpoint, &key, &space.path("missing.img"), &["missing.img"])?;
    let odd = space.path("odd.img");
    fs::write(&odd, [1; 700]).context(|| "write an odd image".to_owned())?;
    try_it(&endpoint, &key, &odd, &["odd.img", "700"])?;

    // Nothing of it stands in the way of the right one.
    let installed = run(&mut install_command(&endpoint, &key, &disk, &state)?)?;
    let id = server_id(&installed)?;
    assert_eq!(region.json(&["servers"])?["items"][0]["sourceServerID"], id.as_str());
    assert_ends_clean(&region, &id)
}

/// Answers everything with a page, for as long as the test runs.
fn web_server() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(|| "listen".to_owned())?;
    let port = listener.local_addr().context(|| "listen".to_owned())?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    Ok(port)
}

/// Signs with the AWS CLI's own signer, ten minutes ago: the agent has no knob for its clock, and should have none.
const SIGN_AS_OF_TEN_MINUTES_AGO: &str = r#"
import datetime, sys, urllib.request, urllib.error
from awscli.botocore import auth, awsrequest, credentials
then = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=10)
auth.get_current_datetime = lambda remove_tzinfo=True: then.replace(tzinfo=None)
url, key, secret = sys.argv[1:]
request = awsrequest.AWSRequest("POST", url, data=b"{}", headers={"content-type": "application/json"})
auth.SigV4Auth(credentials.Credentials(key, secret), "mgn", "local").add_auth(request)
headers = dict(request.prepare().headers.items())
try:
    print(urllib.request.urlopen(urllib.request.Request(url, b"{}", headers)).status)
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"#;

#[test]
fn a_clock_that_is_off_is_named_with_the_difference() -> Result<()> {
    let space = Workspace::new("clock")?;
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let key = region.install_key()?;
    let mut python = Command::new(paths::cache().join("venv/bin/python"));
    let url = format!("http://127.0.0.1:{}/rehost/v1/enrol", region.port());
    let said = run(python.args(["-c", SIGN_AS_OF_TEN_MINUTES_AGO, &url, &key.access_key_id, &key.secret_access_key]))?;
    assert_says(&said, &["403", "clock off by 60", "behind", "NTP"]);
    assert_nothing_left(&region)
}

#[test]
fn a_closed_replication_port_is_named_and_replication_begins_once_it_is_open() -> Result<()> {
    let space = Workspace::new("closed")?;
    // The replication server listens on 127.0.0.1: where agents are told to go, nobody is.
    let (region, disk, mut agent) = installed(&space, "127.0.0.3", 4)?;
    let id = agent.server().to_owned();
    agent.start()?;
    let port = region.wait_replication_port(PATIENCE)?;
    let (kind, raw) = wait_error(&region, &id, "ReplicatorUnreachable")?;
    assert_eq!(kind, "FAILED_TO_CONNECT_AGENT_TO_REPLICATION_SERVER");
    assert_says(&raw, &[&format!("127.0.0.3:{port}"), "firewall"]);
    wait_status(&agent, "ReplicatorUnreachable")?;
    assert_says(&agent.output(), &["ReplicatorUnreachable"]);
    assert_eq!(region.server(&id)?["lifeCycle"]["state"], "NOT_READY");

    let here = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 3), port));
    let _open = Forwarder::start_at(here, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Link::default())?;
    assert_synced(&region, &id, &disk)?;
    assert_ends_clean(&region, &id)
}

/// A sync that takes long enough to fall into: 24 MiB at 2 MB/s.
fn slow_sync(space: &Workspace) -> Result<(Region, PathBuf, LocalAgent)> {
    let (region, disk, mut agent) = installed(space, "127.0.0.1", 24)?;
    region.rehost(&["server", "set", agent.server(), "--bandwidth", "16"])?;
    agent.start()?;
    let begun = |server: &Value| {
        let disk = &server["dataReplicationInfo"]["replicatedDisks"][0];
        disk["replicatedStorageBytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20)
    };
    region.wait_server(agent.server(), "the first MiB", PATIENCE, begun)?;
    Ok((region, disk, agent))
}

#[test]
fn a_disk_that_vanishes_is_named_and_replication_goes_on_when_it_is_back() -> Result<()> {
    let space = Workspace::new("vanish")?;
    let (region, disk, mut agent) = slow_sync(&space)?;
    let id = agent.server().to_owned();
    let away = space.path("away.img");
    fs::rename(&disk, &away).context(|| "take the disk away".to_owned())?;
    region.rehost(&["server", "set", &id, "--bandwidth", "0"])?;
    let (kind, raw) = wait_error(&region, &id, "DiskVanished")?;
    assert_eq!(kind, "UNSUPPORTED_VM_CONFIGURATION");
    assert_says(&raw, &["source.img", "bring it back"]);
    wait_status(&agent, "DiskVanished")?;
    let server = region.server(&id)?;
    assert_eq!(server["dataReplicationInfo"]["dataReplicationState"], "STALLED");
    assert_eq!(server["lifeCycle"]["state"], "NOT_READY", "no checkpoint without the disk");
    agent.process().map_or(Ok(()), rehost_tests::Running::check)?;

    fs::rename(&away, &disk).context(|| "bring the disk back".to_owned())?;
    assert_synced(&region, &id, &disk)?;
    assert_ends_clean(&region, &id)
}

#[test]
fn a_disk_that_shrinks_is_named_and_not_taken_for_zeros() -> Result<()> {
    let space = Workspace::new("shrink")?;
    let (region, disk, mut agent) = slow_sync(&space)?;
    let id = agent.server().to_owned();
    let whole = space.path("whole.img");
    fs::copy(&disk, &whole).context(|| "keep a copy of the disk".to_owned())?;
    let open = || OpenOptions::new().write(true).open(&disk).context(|| "open the disk".to_owned());
    open()?.set_len(8 << 20).context(|| "shrink the disk".to_owned())?;
    let (kind, raw) = wait_error(&region, &id, "DiskResized")?;
    assert_eq!(kind, "UNSUPPORTED_VM_CONFIGURATION");
    assert_says(&raw, &["source.img", "25165824", "8388608", "disconnect"]);
    let server = region.server(&id)?;
    assert_eq!(server["lifeCycle"]["state"], "NOT_READY");
    let copied = server["dataReplicationInfo"]["replicatedDisks"][0]["replicatedStorageBytes"].as_u64();
    assert!(copied.is_some_and(|bytes| bytes <= 8 << 20), "what is gone counts as copied: {server:#}");

    let mut bytes = File::open(&whole).context(|| "open the copy".to_owned())?;
    std::io::copy(&mut bytes, &mut open()?).context(|| "bring the bytes back".to_owned())?;
    region.rehost(&["server", "set", &id, "--bandwidth", "0"])?;
    // It would try again by itself, within half a minute.
    agent.kill();
    agent.start()?;
    assert_synced(&region, &id, &disk)?;
    assert_ends_clean(&region, &id)
}

#[test]
fn a_full_staging_area_is_named_and_replication_goes_on_when_there_is_room() -> Result<()> {
    let space = Workspace::new("full")?;
    let small = space.path("small");
    let room = match Tmpfs::mount(&small, 64) {
        Ok(room) => room,
        Err(error) => {
            println!("skipped: a small file system needs the right to mount ({error})");
            return Ok(());
        }
    };
    let disk = space.path("source.img");
    write_random(&disk, 96, 1)?;
    let region = Region::start(&small, &["127.0.0.1"])?;
    let mut agent = LocalAgent::install(&region, &disk, &space.path("agent"))?;
    let id = agent.server().to_owned();
    agent.start()?;
    let (kind, raw) = wait_error(&region, &id, "NoSpace")?;
    assert_eq!(kind, "FAILED_TO_START_DATA_TRANSFER");
    assert_says(&raw, &["/volumes/vol-", "make room"]);
    wait_status(&agent, "NoSpace")?;
    assert_eq!(region.server(&id)?["lifeCycle"]["state"], "NOT_READY");

    room.resize(256)?;
    assert_synced(&region, &id, &disk)?;
    assert_ends_clean(&region, &id)
}

#[test]
fn a_staging_disk_that_cannot_be_made_is_named_until_it_can() -> Result<()> {
    let space = Workspace::new("provision")?;
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let volumes = region.home().join("volumes");
    let replace =
        |by: &str, result: std::io::Result<()>| result.context(|| format!("put {by} at {}", volumes.display()));
    replace("nothing", if volumes.exists() { fs::remove_dir(&volumes) } else { Ok(()) })?;
    replace("a file", fs::write(&volumes, "in the way"))?;
    let disk = space.path("source.img");
    write_random(&disk, 4, 1)?;
    let mut agent = LocalAgent::install(&region, &disk, &space.path("agent"))?;
    agent.start()?;
    let id = agent.server().to_owned();
    let (kind, raw) = wait_error(&region, &id, "volumes")?;
    assert_eq!(kind, "FAILED_TO_CREATE_STAGING_DISKS", "{raw}");
    // The agent reports every second, and has no trouble of its own: that is no reason to forget this one.
    thread::sleep(Duration::from_secs(4));
    let info = region.server(&id)?["dataReplicationInfo"].clone();
    assert_eq!(info["dataReplicationState"], "STALLED", "{info:#}");
    assert_eq!(info["dataReplicationError"]["error"], "FAILED_TO_CREATE_STAGING_DISKS", "{info:#}");
    assert!(info["dataReplicationInitiation"]["nextAttemptDateTime"].is_string(), "{info:#}");

    replace("nothing", fs::remove_file(&volumes))?;
    replace("a folder", fs::create_dir(&volumes))?;
    assert_synced(&region, &id, &disk)?;
    assert_ends_clean(&region, &id)
}

#[test]
fn an_agent_cannot_write_as_another_server() -> Result<()> {
    let space = Workspace::new("stranger")?;
    let (region, disk, mut agent) = installed(&space, "127.0.0.1", 4)?;
    let other_disk = space.path("other.img");
    write_random(&other_disk, 4, 2)?;
    let other = LocalAgent::install(&region, &other_disk, &space.path("other"))?;
    let id = agent.server().to_owned();
    let settings = agent.state().join("agent.json");
    let own = fs::read_to_string(&settings).context(|| "read the agent's settings".to_owned())?;
    assert!(own.contains(&id), "{own}");
    let write = |text: &str| fs::write(&settings, text).context(|| "write the agent's settings".to_owned());
    write(&own.replace(&id, other.server()))?;
    agent.start()?;
    let (kind, raw) = wait_error(&region, &id, "NotAuthorised")?;
    assert_eq!(kind, "FAILED_TO_PAIR_REPLICATION_SERVER_WITH_AGENT");
    assert_says(&raw, &["certificate"]);
    for volume in region.volumes()? {
        let bytes = fs::read(&volume).context(|| format!("read {}", volume.display()))?;
        assert!(bytes.iter().all(|byte| *byte == 0), "{} was written", volume.display());
    }

    agent.kill();
    write(&own)?;
    agent.start()?;
    region.wait_state(&id, "READY_FOR_TEST", PATIENCE)?;
    let same = region.volumes()?.iter().filter(|v| first_difference(&disk, v).ok() == Some(None)).count();
    assert_eq!(same, 1, "one volume is as the agent's disk");
    assert_eq!(region.server(other.server())?["lifeCycle"]["state"], "NOT_READY");
    region.rehost(&["disconnect", other.server(), "--wait"])?;
    assert_ends_clean(&region, &id)
}

#[test]
fn garbage_on_the_replication_port_disturbs_nobody() -> Result<()> {
    let space = Workspace::new("garbage")?;
    let (region, disk, mut agent) = installed(&space, "127.0.0.1", 4)?;
    let id = agent.server().to_owned();
    let port = region.wait_replication_port(PATIENCE)?;
    let started = Instant::now();
    let first = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => break stream,
            Err(_) if started.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(50)),
            Err(error) => panic!("nothing listens on the replication port: {error}"),
        }
    };
    let mut silent = vec![first];
    let noise = fs::read(&disk).context(|| "read the noise".to_owned())?;
    for garbage in [&noise[..65536], b"GET / HTTP/1.1\r\n\r\n", &[0x16, 3, 1, 0xff, 0xff, 0, 0], &[0; 4096]] {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context(|| "connect".to_owned())?;
        // The other side may hang up before all of it is written: that is what it should do.
        let _ = stream.write_all(garbage);
        silent.push(stream);
    }
    agent.start()?;
    assert_synced(&region, &id, &disk)?;
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(30))).context(|| "wait for the end".to_owned())?;
        // An alert may come before the end.
        let ended = stream.read_to_end(&mut Vec::new());
        assert!(!matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock), "kept open: {ended:?}");
    }
    assert_ends_clean(&region, &id)
}

#[test]
fn a_region_is_served_once() -> Result<()> {
    let space = Workspace::new("twice")?;
    let mut region = Region::start(space.folder(), &["127.0.0.1"])?;
    let pid = region.serve_pid().unwrap_or_default().to_string();
    let said = failure(&mut region.command(&["serve"])?);
    assert_says(&said, &["already served", &pid, "stop that one first"]);
    assert_eq!(region.json(&["servers"])?["items"], Value::Array(vec![]), "the first one answers on");
    region.kill_serve();
    let down = failure(&mut region.command(&["servers"])?);
    assert_says(&down, &["rehost serve"]);
    region.serve()?;
    assert_nothing_left(&region)
}

/// The `rawError` of an event in a job's log.
fn raw_error(job: &Value, event: &str) -> String {
    let items = job["log"].as_array().cloned().unwrap_or_default();
    let errors = items.iter().filter(|item| item["event"] == event);
    let raw = errors.filter_map(|item| item["eventData"]["rawError"].as_str()).next_back();
    raw.unwrap_or_else(|| panic!("no {event} with an error in {job:#}")).to_owned()
}

/// A test that must fail: the command's words and the job. Afterwards the server is where it was, and what its job made is
/// gone; its snapshot stays, which is the server's own until newer ones take its place.
fn failing_test(region: &Region, id: &str, disk: &Path) -> Result<(String, Value)> {
    assert_synced(region, id, disk)?;
    let made = |region: &Region| -> Result<Vec<PathBuf>> {
        let snapshots = region.home().join("snapshots");
        Ok(region.leftovers()?.into_iter().filter(|path| !path.starts_with(&snapshots)).collect())
    };
    let before = made(region)?;
    let said = failure(&mut region.command(&["test", id, "--wait", "--timeout", "400"])?);
    let job = newest_job(region)?;
    assert_eq!(job["status"], "COMPLETED", "{job:#}");
    assert_eq!(job["participatingServers"][0]["launchStatus"], "FAILED", "{job:#}");
    let server = region.server(id)?;
    assert_eq!(server["lifeCycle"]["state"], "READY_FOR_TEST", "{server:#}");
    assert!(server["launchedInstance"].is_null(), "{server:#}");
    assert_eq!(made(region)?, before, "what the job made is gone");
    let replicators = sweep::processes_naming(&region.home().join("replicators"));
    assert_eq!(region.processes(), replicators, "only the replication server runs");
    assert_synced(region, id, disk)?;
    Ok((said, job))
}

fn newest_job(region: &Region) -> Result<Value> {
    let jobs = region.json(&["jobs"])?;
    region.json(&["job", "show", jobs["items"][0]["jobID"].as_str().unwrap_or_default()])
}

#[test]
fn qemu_a_disk_that_is_no_linux_is_replicated_and_its_conversion_says_so() -> Result<()> {
    let space = Workspace::new("nolinux")?;
    let (region, disk, mut agent) = installed(&space, "127.0.0.1", 8)?;
    let id = agent.server().to_owned();
    agent.start()?;
    let (said, job) = failing_test(&region, &id, &disk)?;
    assert_says(&said, &["no bootable Linux", "boot disk"]);
    let raw = raw_error(&job, "CONVERSION_FAIL");
    assert_says(&raw, &["no bootable Linux", "check that the boot disk is among the replicated disks"]);
    assert_ends_clean(&region, &id)
}

#[test]
fn qemu_a_guest_that_cannot_be_converted_says_what_is_missing() -> Result<()> {
    let space = Workspace::new("nogrub")?;
    let disk = SmallLinux::default().build(&space.path("source.img"))?;
    // Its only file system begins at 1 MiB.
    let root = format!("{}?offset=1048576", disk.display());
    run(Command::new("debugfs").args(["-w", "-R", "rm /boot/grub/grub.cfg", &root]))?;
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let mut agent = LocalAgent::install(&region, &disk, &space.path("agent"))?;
    let id = agent.server().to_owned();
    agent.start()?;
    let (said, job) = failing_test(&region, &id, &disk)?;
    assert_says(&said, &["/boot/grub/grub.cfg", "install GRUB on the source"]);
    assert_says(&raw_error(&job, "CONVERSION_FAIL"), &["/boot/grub/grub.cfg", "replicate the disk with /boot"]);
    assert_ends_clean(&region, &id)
}

#[test]
fn qemu_a_copy_that_never_answers_its_probe_is_taken_back() -> Result<()> {
    let space = Workspace::new("silent")?;
    let disk = SmallLinux::default().build(&space.path("source.img"))?;
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let mut agent = LocalAgent::install(&region, &disk, &space.path("agent"))?;
    let id = agent.server().to_owned();
    agent.start()?;
    // The server's page is on port 80.
    region.rehost(&["server", "set", &id, "--probe", "http:81", "--verify-timeout", "10"])?;
    let (said, job) = failing_test(&region, &id, &disk)?;
    assert_says(&said, &["VerifyFailed", "http:81"]);
    assert_says(&raw_error(&job, "LAUNCH_FAILED"), &["VerifyFailed", "probe http:81"]);

    region.rehost(&["server", "set", &id, "--probe", "http:80", "--verify-timeout", "240"])?;
    region.rehost(&["test", &id, "--wait"])?;
    assert_eq!(newest_job(&region)?["participatingServers"][0]["launchStatus"], "LAUNCHED");
    region.rehost(&["revert", &id, "--wait"])?;
    assert_ends_clean(&region, &id)
}
