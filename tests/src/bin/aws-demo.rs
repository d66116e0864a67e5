//! The AWS region, shown without AWS: a whole migration through the deployment's template and the Lambda zips on two emulators, from the
//! agent's installation to the archive, with a real agent, replicator and converter. Then the same commands in a local region: what
//! happened to the server must be the same.
//!
//! `AWS_DEMO_FUNCTIONS` names the folder with the zips.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rehost_tests::aws::Cloud;
use rehost_tests::history::{difference, history};
use rehost_tests::journey::{Journey, Source, Way};
use rehost_tests::show::Show;
use rehost_tests::{Error, LocalAgent, Region, Result, SmallLinux, Workspace};

/// Many times what it takes: the machine may be shared, and without KVM.
const PATIENCE: Duration = Duration::from_secs(900);

fn main() -> ExitCode {
    println!(
        "rehost aws-demo: migrates a server through the AWS region, on emulators; nothing has ever run on AWS here."
    );
    println!("  needs about 4 GiB of disk and 3 GiB of memory; everything is removed at the end");
    Show::of("aws-demo", demo)
}

fn demo(show: &Show) -> Result<String> {
    let space = Workspace::new("aws-demo")?;
    let (way, on_aws) = in_the_aws_region(show, &space)?;
    let locally = in_a_local_region(show)?;
    if let Some(difference) = difference(&on_aws, &locally) {
        eprintln!("--- on AWS:\n{}\n--- locally:\n{}", on_aws.join("\n"), locally.join("\n"));
        return Err(Error::Unexpected(format!("the histories of both regions differ, {difference}")));
    }
    show.step(format!("local region: the same history, event by event ({} of them)", locally.len()));
    Ok(format!("states={} leftovers=0", way.states.join(",")))
}

fn in_the_aws_region(show: &Show, space: &Workspace) -> Result<(Way, Vec<String>)> {
    let source = source(space)?;
    show.step("source: a small Linux on a disk that boots from SATA alone, with a static address");
    let cloud = Cloud::start(show, space, &functions()?)?;
    let outcome = migrate(show, space, &cloud, &source);
    if outcome.is_err() {
        cloud.explain();
    }
    outcome
}

fn migrate(show: &Show, space: &Workspace, cloud: &Cloud, source: &Source) -> Result<(Way, Vec<String>)> {
    let (id, _agent) = cloud.install_agent(space, &source.disk)?;
    show.step(format!("agent: enrolled through the API as {id}, running; its event starts the state machine"));
    let way = Journey::new(cloud, &id, PATIENCE).go(source, |what| show.step(what))?;
    let leftovers = cloud.leftovers(&way.server)?;
    show.step(format!("left beside the cutover instance and its disk: {}", leftovers.len()));
    let calls: Vec<String> = cloud.calls().iter().map(|(service, count)| format!("{service} {count}")).collect();
    show.step(format!("calls of the functions: {}", calls.join(", ")));
    if leftovers.is_empty() {
        return Ok((way, history(&cloud.events(), &id)));
    }
    Err(Error::Unexpected(format!("left over: {leftovers:?}")))
}

fn in_a_local_region(show: &Show) -> Result<Vec<String>> {
    let space = Workspace::new("aws-demo-local")?;
    let source = source(&space)?;
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let mut agent = LocalAgent::install(&region, &source.disk, &space.path("agent"))?;
    agent.start()?;
    show.step("local region: the same commands for another server");
    Journey::new(&region, agent.server(), PATIENCE).go(&source, |_| {})?;
    Ok(history(&region.events()?, agent.server()))
}

fn source(space: &Workspace) -> Result<Source> {
    Source::build(SmallLinux::default().root_wait(2), space.folder())
}

fn functions() -> Result<PathBuf> {
    let folder = std::env::var_os("AWS_DEMO_FUNCTIONS").map(PathBuf::from);
    folder.filter(|folder| folder.is_dir()).ok_or_else(|| {
        Error::Unexpected(
            "AWS_DEMO_FUNCTIONS does not name the folder with the functions' zips: run `make aws-demo`".to_owned(),
        )
    })
}
