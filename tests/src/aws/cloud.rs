//! The AWS region without AWS: the deployment's template and the Lambda zips on two emulators, what stands before and behind them,
//! and the command and the agent as a user would call them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::deploy::{Deployed, Deployment};
use super::front::Front;
use super::plane::Emulators;
use super::wire::{all, first};
use super::{Answer, Call, Hook, MiniStack, Moto, Plane, Proxy, Routes, Wire, emulators, stack};
use crate::error::{Error, Result};
use crate::journey::Site;
use crate::process::{Running, last_lines, run};
use crate::region::InstallKey;
use crate::show::Show;
use crate::workspace::Workspace;
use crate::{agent, paths};

const STACK: &str = "rehost-demo";
/// Users, and the outputs of the template with the policies that they have.
const INSTALLER: (&str, &str) = ("installer", "InstallationPolicyArn");
const OPERATOR: (&str, &str) = ("operator", "OperatorPolicyArn");

/// Two emulators, what stands before and behind them, and the stack. Fields are dropped in this order.
pub struct Cloud {
    front: Front,
    proxy: Proxy,
    plane: Plane,
    ministack: MiniStack,
    moto: Moto,
    deployed: Deployed,
    published: Arc<Published>,
    keys: BTreeMap<&'static str, (String, String)>,
}

/// Events on their way to the bus.
#[derive(Default)]
struct Published(Mutex<Vec<Value>>);

#[async_trait]
impl Hook for Published {
    async fn after(&self, call: &Call, answer: &mut Answer) {
        if call.action != "PutEvents" || !answer.status.is_success() {
            return;
        }
        let entries = call.json()["Entries"].as_array().cloned().unwrap_or_default();
        let event = |entry: Value| {
            let detail: Value = serde_json::from_str(entry["Detail"].as_str()?).ok()?;
            Some(json!({"source": entry["Source"], "detail-type": entry["DetailType"], "detail": detail}))
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(entries.into_iter().filter_map(event));
    }
}

impl Cloud {
    /// Starts the emulators, deploys the stack with the functions' zips of the folder `functions`, and uploads the programs. What
    /// stands in the place of what is told.
    ///
    /// # Errors
    /// When an emulator does not start, or refuses something.
    pub fn start(show: &Show, space: &Workspace, functions: &Path) -> Result<Self> {
        let ministack = MiniStack::start(space.folder(), &[])?;
        let moto = Moto::start(space.folder())?;
        let ends = Emulators { ec2: Wire::to(moto.port()), s3: Wire::to(ministack.port()) };
        let plane = Plane::new(&space.path("plane"), ends)?;
        let routes = ["ec2", "ebs", "ssm"]
            .iter()
            .fold(Routes::to(&ministack.endpoint()), |routes, service| routes.with(service, &moto.endpoint()));
        let proxy = Proxy::start(routes)?;
        proxy.add_hook(plane.hook());
        let published = Arc::new(Published::default());
        proxy.add_hook(published.clone());
        let front = Front::start(ministack.port())?;
        show.step("emulators: ministack (everything but EC2, EBS and SSM) and moto (those), a proxy, an HTTPS front");
        show.instead("EC2's instances: processes and QEMU machines here; volumes and snapshots: sparse files");
        show.instead("API Gateway's TLS and its check of signatures: a front with rehost-api's own check");
        let deployed = deploy(show, space, functions, &front, &proxy, &ministack, &moto)?;
        let mut cloud = Self { front, proxy, plane, ministack, moto, deployed, published, keys: BTreeMap::new() };
        cloud.keys = [INSTALLER, OPERATOR]
            .iter()
            .map(|(user, policy)| Ok((*user, cloud.user(user, policy)?)))
            .collect::<Result<_>>()?;
        let keys: Vec<_> = cloud.keys.values().cloned().collect();
        cloud.front.open(cloud.output("ApiId")?, &keys);
        cloud.upload_software(space)?;
        Ok(cloud)
    }

    /// Enrols an agent for the image `disk` as an installer would, and starts it. Gives the source server's id.
    ///
    /// # Errors
    /// When the installation fails: with its words.
    pub fn install_agent(&self, space: &Workspace, disk: &Path) -> Result<(String, Running)> {
        let (access_key_id, secret_access_key) = self.keys.get(INSTALLER.0).cloned().unwrap_or_default();
        let ca_fingerprint = self.front.fingerprint().to_owned();
        let key = InstallKey { access_key_id, secret_access_key, ca_fingerprint };
        let state = space.path("cloud-agent");
        let mut install = agent::install_command(&self.front.endpoint(), &key, disk, &state)?;
        install.args(["--region", emulators::REGION, "--signing-service", "execute-api"]);
        let server = agent::server_id(&run(&mut install)?)?;
        let mut start = Command::new(paths::binary("rehost-agent")?);
        start.arg("run").arg("--state-dir").arg(&state).arg("--runtime-dir").arg(space.path("cloud-agent.run"));
        Ok((server, Running::start(&mut start, &space.path("cloud-agent.log"))?))
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

    /// Everything but the cutover instance: in the ledger, in EC2's books, and in the plane.
    ///
    /// # Errors
    /// When an emulator does not tell.
    pub fn leftovers(&self, server: &Value) -> Result<Vec<String>> {
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

    /// How many calls the functions made of each service.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<String, usize> {
        let mut services: BTreeMap<String, usize> = BTreeMap::new();
        for (name, count) in self.proxy.counts() {
            *services.entry(name.split(':').next().unwrap_or_default().to_owned()).or_default() += count;
        }
        services
    }

    /// The events that were published, in EventBridge's envelope.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.published.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Prints what may explain a failure.
    pub fn explain(&self) {
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

impl Site for Cloud {
    /// As the operator.
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

    fn page(&self, server: &Value) -> Result<String> {
        let instance = server["launchedInstance"]["ec2InstanceID"].as_str().unwrap_or_default();
        let url = format!("http://{}/", self.plane.address(instance));
        run(Command::new("curl").args(["--silent", "--show-error", "--max-time", "30", &url]))
    }
}

/// The distinct contents of an element.
fn items(xml: &str, name: &str) -> Vec<String> {
    let mut found: Vec<String> = all(xml, name).into_iter().map(str::to_owned).collect();
    found.sort();
    found.dedup();
    found
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
