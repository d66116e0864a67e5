//! The AWS region, shown without AWS: the deployment's template and the Lambda zips on two emulators, and a whole migration
//! through them, from the agent's installation to the archive, with a real agent, replicator and converter.
//!
//! `AWS_DEMO_FUNCTIONS` names the folder with the zips.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use rehost_tests::aws::deploy::{Deployed, Deployment};
use rehost_tests::aws::front::Front;
use rehost_tests::aws::plane::Emulators;
use rehost_tests::aws::wire::{all, first};
use rehost_tests::aws::{MiniStack, Moto, Plane, Proxy, Routes, Wire, emulators, stack};
use rehost_tests::process::{Running, last_lines, run};
use rehost_tests::{Error, Result, SmallLinux, Workspace, agent, paths};
use serde_json::{Value, json};

/// Many times what it takes: the machine may be shared, and without KVM.
const PATIENCE: Duration = Duration::from_secs(900);
const STACK: &str = "rehost-demo";
const FIRST_PAGE: &str = "this page was there before the migration";
const CHANGED_PAGE: &str = "this page was changed between the test and the cutover";
/// The routes of the installation policy and of the operator policy, as the template's outputs name them.
const INSTALLER: (&str, &str) = ("installer", "InstallationPolicyArn");
const OPERATOR: (&str, &str) = ("operator", "OperatorPolicyArn");

fn main() -> ExitCode {
    let show = Show { started: Instant::now() };
    println!(
        "rehost aws-demo: migrates a server through the AWS region, on emulators; nothing has ever run on AWS here."
    );
    println!("  needs about 4 GiB of disk and 3 GiB of memory; everything is removed at the end");
    match demo(&show) {
        Ok(facts) => {
            println!("aws-demo: OK {facts} seconds={}", show.started.elapsed().as_secs());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("aws-demo: FAILED after {} s: {error}", show.started.elapsed().as_secs());
            ExitCode::FAILURE
        }
    }
}

/// Says what happens, with the time since the start.
struct Show {
    started: Instant,
}

impl Show {
    fn step(&self, what: impl Display) {
        let seconds = self.started.elapsed().as_secs();
        println!("[{:02}:{:02}] {what}", seconds / 60, seconds % 60);
    }

    /// What an emulator cannot do, and what is done instead.
    fn instead(&self, what: impl Display) {
        println!("        emulated otherwise: {what}");
    }
}

fn demo(show: &Show) -> Result<String> {
    let space = Workspace::new("aws-demo")?;
    let disk = SmallLinux::default().page(FIRST_PAGE).root_wait(2).build(&space.path("source.img"))?;
    show.step("source: a small Linux on a disk that boots from SATA alone, with a static address");
    let cloud = Cloud::start(show, &space)?;
    let outcome = migrate(show, &space, &cloud, &disk);
    if let Err(error) = &outcome {
        cloud.explain(error);
    }
    outcome
}

fn migrate(show: &Show, space: &Workspace, cloud: &Cloud, disk: &Path) -> Result<String> {
    let (id, _agent) = install(show, space, cloud, disk)?;
    let mut states = States::default();
    cloud.wait_state(&id, "READY_FOR_TEST", &mut states)?;
    show.step("replication: the first copy is durable and the first launchable snapshot exists");
    cloud.rehost(&["server", "set", &id, "--probe", "http:80"])?;
    cloud.rehost(&["test", &id, "--wait"])?;
    states.see(&cloud.server(&id)?);
    expect_page(cloud, &id, FIRST_PAGE)?;
    show.step("test: converted for EC2, imaged, launched; the copy boots and serves the page");
    change_page(space, disk)?;
    cloud.rehost(&["ready", &id])?;
    cloud.wait_server(&id, "the end of the test instance", &mut states, |s| s["launchedInstance"].is_null())?;
    show.step("ready for cutover: the test instance is gone; the source's page is changed");
    cloud.rehost(&["cutover", &id, "--wait"])?;
    states.see(&cloud.server(&id)?);
    expect_page(cloud, &id, CHANGED_PAGE)?;
    show.step("cutover: from a fresh checkpoint; the copy serves the changed page");
    cloud.rehost(&["finalize", &id, "--wait"])?;
    cloud.rehost(&["archive", &id])?;
    let server = cloud.server(&id)?;
    states.see(&server);
    if server["isArchived"] != true {
        return Err(Error::Unexpected(format!("the server is not archived: {server}")));
    }
    let leftovers = cloud.leftovers(&server)?;
    show.step(format!("finalize and archive: done; left beside the cutover instance: {}", leftovers.len()));
    cloud.tell_calls(show);
    if leftovers.is_empty() {
        return Ok(format!("states={} leftovers=0", states.text()));
    }
    Err(Error::Unexpected(format!("left over: {leftovers:?}")))
}

/// The lifecycle's states in their order.
#[derive(Default)]
struct States(Vec<String>);

impl States {
    fn see(&mut self, server: &Value) {
        let state = server["lifeCycle"]["state"].as_str().unwrap_or_default();
        let archived = if server["isArchived"] == true { "ARCHIVED" } else { state };
        if self.0.last().map(String::as_str) != Some(archived) {
            self.0.push(archived.to_owned());
        }
    }

    fn text(&self) -> String {
        self.0.join(",")
    }
}

/// Two emulators, what stands before and behind them, and the stack. Fields are dropped in this order.
struct Cloud {
    front: Front,
    proxy: Proxy,
    plane: Plane,
    ministack: MiniStack,
    moto: Moto,
    deployed: Deployed,
    keys: BTreeMap<&'static str, (String, String)>,
}

impl Cloud {
    fn start(show: &Show, space: &Workspace) -> Result<Self> {
        let functions = functions()?;
        let ministack = MiniStack::start(space.folder(), &[])?;
        let moto = Moto::start(space.folder())?;
        let ends = Emulators { ec2: Wire::to(moto.port()), s3: Wire::to(ministack.port()) };
        let plane = Plane::new(&space.path("plane"), ends)?;
        let routes = ["ec2", "ebs", "ssm"]
            .iter()
            .fold(Routes::to(&ministack.endpoint()), |routes, service| routes.with(service, &moto.endpoint()));
        let proxy = Proxy::start(routes)?;
        proxy.add_hook(plane.hook());
        let front = Front::start(ministack.port())?;
        show.step("emulators: ministack (everything but EC2, EBS and SSM) and moto (those), a proxy, an HTTPS front");
        show.instead("EC2's instances: processes and QEMU machines here; volumes and snapshots: sparse files");
        show.instead("API Gateway's TLS and its check of signatures: a front with rehost-api's own check");
        let deployed = deploy(show, space, &functions, &front, &proxy, &ministack, &moto)?;
        let mut cloud = Self { front, proxy, plane, ministack, moto, deployed, keys: BTreeMap::new() };
        cloud.keys = [INSTALLER, OPERATOR]
            .iter()
            .map(|(user, policy)| Ok((*user, cloud.user(user, policy)?)))
            .collect::<Result<_>>()?;
        let keys: Vec<_> = cloud.keys.values().cloned().collect();
        cloud.front.open(cloud.output("ApiId")?, &keys);
        cloud.upload_software(space)?;
        Ok(cloud)
    }

    fn output(&self, name: &str) -> Result<&str> {
        let found = self.deployed.outputs.get(name).map(String::as_str);
        found.ok_or_else(|| Error::Unexpected(format!("the stack has no output {name}: {:?}", self.deployed.outputs)))
    }

    /// A user with a policy of the stack, and the user's access key.
    fn user(&self, name: &str, policy: &str) -> Result<(String, String)> {
        let wire = Wire::to(self.ministack.port());
        wire.iam("CreateUser", &[("UserName", name)])?;
        let policy = self.output(policy)?;
        wire.iam("AttachUserPolicy", &[("UserName", name), ("PolicyArn", policy)])?;
        let key = wire.iam("CreateAccessKey", &[("UserName", name)])?;
        let part = |element| first(&key, element).map(str::to_owned);
        part("AccessKeyId")
            .zip(part("SecretAccessKey"))
            .ok_or_else(|| Error::Unexpected(format!("no access key: {key}")))
    }

    fn upload_software(&self, space: &Workspace) -> Result<()> {
        let (wire, bucket) = (Wire::to(self.ministack.port()), self.output("BucketName")?);
        for name in ["rehost-replicator", "rehost-converter"] {
            let program = paths::binary(name)?;
            let bytes = fs::read(&program).map_err(|e| Error::Unexpected(format!("{}: {e}", program.display())))?;
            let digest =
                run(Command::new("sha256sum").arg(name).current_dir(program.parent().unwrap_or(space.folder())))?;
            wire.put_object(bucket, &format!("software/{name}"), &bytes)?;
            wire.put_object(bucket, &format!("software/{name}.sha256"), digest.as_bytes())?;
        }
        Ok(())
    }

    /// Runs `rehost` as the operator.
    fn rehost(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(paths::binary("rehost")?);
        command
            .args(["--endpoint-url", &self.front.plain_endpoint(), "--signing-service", "execute-api"])
            .args(["--region", emulators::REGION])
            .args(arguments);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        let (id, secret) = self.keys.get(OPERATOR.0).cloned().unwrap_or_default();
        run(command
            .env("AWS_ACCESS_KEY_ID", id)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("AWS_EC2_METADATA_DISABLED", "true"))
    }

    fn server(&self, id: &str) -> Result<Value> {
        let text = self.rehost(&["server", "show", id, "--json"])?;
        serde_json::from_str(&text).map_err(|e| Error::Unexpected(format!("rehost server show --json: {e}: {text}")))
    }

    fn wait_state(&self, id: &str, state: &str, states: &mut States) -> Result<Value> {
        self.wait_server(id, &format!("lifecycle state {state}"), states, |server| {
            server["lifeCycle"]["state"] == state
        })
    }

    fn wait_server(&self, id: &str, what: &str, states: &mut States, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let started = Instant::now();
        loop {
            let server = self.server(id)?;
            states.see(&server);
            if is_so(&server) {
                return Ok(server);
            }
            if started.elapsed() > PATIENCE {
                let seen = format!("{} {}", server["lifeCycle"]["state"], server["dataReplicationInfo"]);
                return Err(Error::Timeout { what: what.to_owned(), after: PATIENCE, seen });
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// Everything but the cutover instance: in the ledger, in EC2's books, and in the plane.
    fn leftovers(&self, server: &Value) -> Result<Vec<String>> {
        let copy = server["launchedInstance"]["ec2InstanceID"].as_str().unwrap_or_default();
        let mut left = self.ledger()?;
        left.extend(self.books(copy)?);
        left.extend(self.plane.instances().into_iter().filter(|id| id != copy).map(|id| format!("process of {id}")));
        left.extend(self.plane.files().into_iter().map(|path| path.display().to_string()));
        Ok(left)
    }

    fn ledger(&self) -> Result<Vec<String>> {
        let query = json!({
            "TableName": self.output("TableName")?,
            "KeyConditionExpression": "kind = :kind",
            "ExpressionAttributeValues": {":kind": {"S": "LEDGER"}},
        });
        let answer = Wire::to(self.ministack.port()).json("dynamodb", "DynamoDB_20120810.Query", &query)?;
        let items = answer["Items"].as_array().cloned().unwrap_or_default();
        Ok(items.iter().map(|item| format!("ledger {}", item["body"]["S"])).collect())
    }

    fn books(&self, copy: &str) -> Result<Vec<String>> {
        let wire = Wire::to(self.moto.port());
        let ours = [("Filter.1.Name", "tag:rehost:stack"), ("Filter.1.Value.1", STACK)];
        let alive = [
            ("Filter.2.Name", "instance-state-name"),
            ("Filter.2.Value.1", "pending"),
            ("Filter.2.Value.2", "running"),
            ("Filter.2.Value.3", "stopped"),
        ];
        let alive: Vec<_> = ours.into_iter().chain(alive).collect();
        let mut left = items(&wire.ec2("DescribeInstances", &alive)?, "instanceId");
        left.retain(|id| id != copy);
        for volume in items(&wire.ec2("DescribeVolumes", &ours)?, "volumeId") {
            let is_the_copys = wire.ec2("DescribeVolumes", &[("VolumeId.1", &volume)])?.contains(copy);
            left.extend((!is_the_copys).then_some(volume));
        }
        left.extend(items(&wire.ec2("DescribeSnapshots", &ours)?, "snapshotId"));
        left.extend(items(&wire.ec2("DescribeImages", &ours)?, "imageId"));
        Ok(left)
    }

    fn tell_calls(&self, show: &Show) {
        let mut services: BTreeMap<String, usize> = BTreeMap::new();
        for (name, count) in self.proxy.counts() {
            *services.entry(name.split(':').next().unwrap_or_default().to_owned()).or_default() += count;
        }
        let told: Vec<String> = services.iter().map(|(service, count)| format!("{service} {count}")).collect();
        show.step(format!("calls of the functions: {}", told.join(", ")));
    }

    /// What may explain a failure.
    fn explain(&self, error: &Error) {
        eprintln!("{error}");
        eprintln!("--- the plane:\n{}", last_lines(&self.plane.log(), 40));
        let log = self.ministack.output();
        let telling: Vec<&str> = log.lines().filter(|l| ["WARN", "ERROR"].iter().any(|w| l.contains(w))).collect();
        eprintln!("--- ministack:\n{}", last_lines(&telling.join("\n"), 40));
        eprintln!("--- functions:\n{}", last_lines(&self.function_logs().unwrap_or_default(), 60));
    }

    fn function_logs(&self) -> Result<String> {
        let request = json!({"logGroupName": format!("/rehost/{STACK}/functions")});
        let answer = Wire::to(self.ministack.port()).json("logs", "Logs_20140328.FilterLogEvents", &request)?;
        let events = answer["events"].as_array().cloned().unwrap_or_default();
        let lines: Vec<String> = events.iter().filter_map(|e| e["message"].as_str().map(str::to_owned)).collect();
        Ok(lines
            .into_iter()
            .filter(|line| line.contains("WARN") || line.contains("ERROR"))
            .collect::<Vec<_>>()
            .join("\n"))
    }
}

/// The distinct contents of an element.
fn items(xml: &str, name: &str) -> Vec<String> {
    let mut found: Vec<String> = all(xml, name).into_iter().map(str::to_owned).collect();
    found.sort();
    found.dedup();
    found
}

fn functions() -> Result<PathBuf> {
    let folder = std::env::var_os("AWS_DEMO_FUNCTIONS").map(PathBuf::from);
    folder.filter(|folder| folder.is_dir()).ok_or_else(|| {
        Error::Unexpected(
            "AWS_DEMO_FUNCTIONS does not name the folder with the functions' zips: run `make aws-demo`".to_owned(),
        )
    })
}

fn deploy(
    show: &Show,
    space: &Workspace,
    functions: &Path,
    front: &Front,
    proxy: &Proxy,
    ministack: &MiniStack,
    moto: &Moto,
) -> Result<Deployed> {
    let network = stack::make(moto.port())?;
    let of_moto = |name: &str| (name.to_owned(), network.get(name).cloned().unwrap_or_default());
    let named =
        ["REHOST_STAGING_SECURITY_GROUP", "REHOST_STAGING_LAUNCH_TEMPLATE", "REHOST_CONVERSION_LAUNCH_TEMPLATE"];
    let mut environment: BTreeMap<String, String> = named.iter().map(|name| of_moto(name)).collect();
    environment.insert("AWS_ENDPOINT_URL".to_owned(), proxy.endpoint());
    let parameters = BTreeMap::from([
        ("Network", "GIVEN".to_owned()),
        ("GivenVpc", "vpc-00000000".to_owned()),
        ("GivenStagingSubnet", of_moto("REHOST_STAGING_SUBNET").1),
        ("GivenTargetSubnet", of_moto("REHOST_TARGET_SUBNET").1),
        ("MakeInstaller", "false".to_owned()),
        ("PollSeconds", "2".to_owned()),
        ("ApiEndpoint", front.endpoint()),
        ("CaFingerprint", front.fingerprint().to_owned()),
    ]);
    let folder = space.folder();
    let deployed = Deployment { stack: STACK, functions, parameters, environment, folder }.on(ministack)?;
    show.step(format!("stack: infra/template.yaml on ministack's CloudFormation, {} resources", deployed.resources));
    for left_out in &deployed.left_out {
        show.instead(left_out);
    }
    show.instead(
        "AWS::IAM::Group (MakeInstaller): unknown to ministack; the demo makes two users with the stack's policies",
    );
    show.instead("subnets, security group and launch templates of EC2: made in moto by hand, named in the functions' environment");
    Ok(deployed)
}

/// Enrols and starts the agent on the image.
fn install(show: &Show, space: &Workspace, cloud: &Cloud, disk: &Path) -> Result<(String, Running)> {
    let (id, secret) = cloud.keys.get(INSTALLER.0).cloned().unwrap_or_default();
    let state = space.path("agent");
    let mut install = Command::new(paths::binary("rehost-agent")?);
    install
        .args(["install", "--no-prompt", "--no-service", "--signing-service", "execute-api"])
        .args(["--endpoint", &cloud.front.endpoint(), "--ca-fingerprint", cloud.front.fingerprint()])
        .args(["--region", emulators::REGION, "--aws-access-key-id", &id])
        .env("AWS_SECRET_ACCESS_KEY", secret)
        .arg("--devices")
        .arg(disk)
        .arg("--state-dir")
        .arg(&state);
    let server = agent::server_id(&run(&mut install)?)?;
    let mut start = Command::new(paths::binary("rehost-agent")?);
    start.arg("run").arg("--state-dir").arg(&state).arg("--runtime-dir").arg(space.path("agent.run"));
    let running = Running::start(&mut start, &space.path("agent.log"))?;
    show.step(format!("agent: enrolled through the API as {server}, running; its event starts the state machine"));
    Ok((server, running))
}

/// Another disk with another page takes the place of the source: what is written after the test must be in the cutover.
fn change_page(space: &Workspace, disk: &Path) -> Result<()> {
    let changed = SmallLinux::default().page(CHANGED_PAGE).root_wait(2).build(&space.path("changed.img"))?;
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", changed.display())).arg(format!("of={}", disk.display()));
    run(dd.args(["bs=1M", "conv=notrunc,fsync", "status=none"])).map(drop)
}

fn expect_page(cloud: &Cloud, id: &str, page: &str) -> Result<()> {
    let server = cloud.server(id)?;
    let instance = server["launchedInstance"]["ec2InstanceID"].as_str().unwrap_or_default();
    let url = format!("http://{}/", cloud.plane.address(instance));
    let served = run(Command::new("curl").args(["--silent", "--show-error", "--max-time", "30", &url]))?;
    if served.trim_end() == page {
        return Ok(());
    }
    Err(Error::Unexpected(format!("the copy {instance} at {url} serves {served:?} instead of {page:?}")))
}
