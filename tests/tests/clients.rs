//! MGN's own clients work against the region, and the state machines are what Step Functions accepts.

use std::process::Command;
use std::time::Duration;

use rehost_tests::process::run;
use rehost_tests::{LocalAgent, Region, Result, SmallLinux, Workspace, paths};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn the_aws_cli_describes_and_is_refused_in_its_own_words() -> Result<()> {
    let space = Workspace::new("clients")?;
    let disk = SmallLinux::default().build(&space.path("source.img"))?;
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let mut agent = LocalAgent::install(&region, &disk, &space.path("agent"))?;
    agent.start()?;
    let id = agent.server().to_owned();

    let listed: Value =
        serde_json::from_str(&run(&mut aws(&region, &["describe-source-servers"]))?).unwrap_or_default();
    assert_eq!(listed["items"][0]["sourceServerID"], id.as_str(), "{listed}");
    assert_eq!(listed["items"][0]["replicationType"], "AGENT_BASED");

    let refused = run(&mut aws(&region, &["start-cutover", "--source-server-ids", &id])).unwrap_err().to_string();
    assert!(refused.contains("ConflictException"), "{refused}");
    let unknown = run(&mut aws(&region, &["mark-as-archived", "--source-server-id", "s-00000000000000000"]));
    let unknown = unknown.unwrap_err().to_string();
    assert!(unknown.contains("ResourceNotFoundException"), "{unknown}");

    let mut wrong = aws(&region, &["describe-source-servers"]);
    wrong.env("AWS_SECRET_ACCESS_KEY", "wrong").env("AWS_ACCESS_KEY_ID", access_key_id(&region)?);
    wrong.env_remove("AWS_PROFILE");
    let wrong = run(&mut wrong).unwrap_err().to_string();
    assert!(wrong.contains("signature") || wrong.contains("Signature"), "{wrong}");

    let templates: Value =
        serde_json::from_str(&run(&mut aws(&region, &["describe-replication-configuration-templates"]))?)
            .unwrap_or_default();
    let template = templates["items"][0]["replicationConfigurationTemplateID"].as_str().unwrap_or_default().to_owned();
    let update = ["update-replication-configuration-template", "--replication-configuration-template-id", &template];
    let changed = run(&mut aws(&region, &[&update[..], &["--bandwidth-throttling", "50"]].concat()))?;
    let changed: Value = serde_json::from_str(&changed).unwrap_or_default();
    assert_eq!(changed["bandwidthThrottling"], 50, "{changed}");

    region.wait_state(&id, "READY_FOR_TEST", PATIENCE)?;
    Ok(())
}

fn aws(region: &Region, arguments: &[&str]) -> Command {
    let mut command = Command::new(paths::cache().join("venv/bin/aws"));
    command
        .args(["mgn", "--region", "local", "--endpoint-url", &format!("http://127.0.0.1:{}", region.port())])
        .args(arguments)
        .env("AWS_SHARED_CREDENTIALS_FILE", region.home().join("credentials"))
        .env("AWS_PROFILE", "default")
        .env("AWS_PAGER", "")
        .env("AWS_MAX_ATTEMPTS", "1")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

/// The admin key's id, from the credentials file.
fn access_key_id(region: &Region) -> Result<String> {
    let text = std::fs::read_to_string(region.home().join("credentials")).unwrap_or_default();
    let default = text.split("[default]").nth(1).unwrap_or_default();
    let id = default.lines().find_map(|line| line.split_once('=').filter(|(k, _)| k.trim() == "aws_access_key_id"));
    Ok(id.map(|(_, value)| value.trim().to_owned()).unwrap_or_default())
}

#[test]
fn asl_validator_accepts_every_state_machine() -> Result<()> {
    let validator = paths::cache().join("npm/node_modules/.bin/asl-validator");
    let mut seen = 0;
    let folder = paths::repository().join("statemachine");
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        run(Command::new(&validator).arg("--json-path").arg(entry.path()))?;
        seen += 1;
    }
    assert_eq!(seen, 6, "migrate, provision, snapshot, launch, terminate, finalize");
    Ok(())
}
