//! What the unit tests share, a region in a folder; and the contract between state machines, steps and programs.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use rehost_control::ports::Ports;
use rehost_control::{link, operations, steps};
use rehost_link::identity::PrivateKey;
use rehost_local::{InitOptions, LocalRegion, OpenOptions, init};
use rehost_model::SourceServer;
use rehost_model::link::EnrolRequest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::region::{Connected, Region};

/// The local region stands in for AWS: the same ports.
pub(crate) struct TestRegion {
    pub(crate) folder: TempDir,
    pub(crate) ports: Ports,
    _region: LocalRegion,
}

impl TestRegion {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("region");
        init(&home, &InitOptions::new(SocketAddr::from(([127, 0, 0, 1], 8443)))).await.unwrap();
        let [replicator_binary, converter_binary] = ["rehost-replicator", "rehost-converter"].map(PathBuf::from);
        let options = OpenOptions { replicator_binary, converter_binary, listen: None };
        let region = LocalRegion::open(&home, options).await.unwrap();
        Self { folder, ports: region.ports.clone(), _region: region }
    }

    /// It as a function finds it.
    pub(crate) async fn connected(&self) -> Region {
        let ports = self.ports.clone();
        Region::prepare(|| async { Ok(Connected { stack: "rehost".to_owned(), ports }) }).await
    }

    /// A server that has enrolled and does nothing yet.
    pub(crate) async fn server(&self) -> SourceServer {
        let (_, request) = enrolment();
        let id = link::enrol(&self.ports, &request).await.unwrap().source_server_id;
        let filter = operations::ServerFilter { ids: vec![id], ..operations::ServerFilter::default() };
        operations::describe_source_servers(&self.ports, &filter).await.unwrap().remove(0)
    }
}

/// A request to enrol, and the key that it is for.
pub(crate) fn enrolment() -> (PrivateKey, EnrolRequest) {
    let key = PrivateKey::generate().unwrap();
    let request = json!({
        "csr": key.signing_request().unwrap(),
        "properties": {"identificationHints": {"hostname": "web-1"}},
        "disks": [{"deviceName": "/dev/sda", "sizeBytes": 1 << 30, "isBootDisk": true, "partitionTable": "MBR"}],
        "firmware": "BIOS",
        "replicate": true,
        "agentVersion": "0.1.0",
    });
    (key, serde_json::from_value(request).unwrap())
}

/// `${LaunchTestFunctionArn}`, which the template of the deployment fills, is the program `launch-test`.
fn program_of(resource: &str) -> Option<String> {
    let name = resource.strip_prefix("${")?.strip_suffix("FunctionArn}")?;
    let mut program = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !program.is_empty() {
            program.push('-');
        }
        program.push(letter.to_ascii_lowercase());
    }
    Some(program)
}

/// The functions that the tasks of a state machine call, also inside Map and Parallel.
fn called(state: &Value, found: &mut BTreeSet<String>) {
    match state {
        Value::Object(members) => members.values().for_each(|member| called(member, found)),
        Value::Array(members) => members.iter().for_each(|member| called(member, found)),
        Value::String(text) => found.extend(program_of(text)),
        _ => {}
    }
}

fn programs() -> BTreeSet<String> {
    let manifest = include_str!("../Cargo.toml");
    let bins = manifest.split("[[bin]]").skip(1);
    bins.filter_map(|bin| Some(bin.split_once("name = \"")?.1.split_once('"')?.0.to_owned())).collect()
}

fn folder(name: &str) -> PathBuf {
    // Tests run in their package.
    PathBuf::from(name)
}

#[test]
fn every_task_of_a_state_machine_has_its_program() {
    let (programs, mut machines) = (programs(), 0);
    for file in std::fs::read_dir(folder("../statemachine")).unwrap() {
        let path = file.unwrap().path();
        let definition: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let mut functions = BTreeSet::new();
        called(&definition, &mut functions);
        assert!(!functions.is_empty(), "{}", path.display());
        for function in functions {
            assert!(programs.contains(&function), "{} calls {function}", path.display());
            assert!(steps::NAMES.contains(&function.as_str()), "{} calls {function}, which is no step", path.display());
        }
        machines += 1;
    }
    assert!(machines >= 6);
}

#[test]
fn every_step_has_its_program_and_every_program_is_the_one_it_is_called() {
    let programs = programs();
    for step in steps::NAMES {
        assert!(programs.contains(step), "{step}");
    }
    for program in &programs {
        let text = std::fs::read_to_string(folder("src/bin").join(format!("{program}.rs"))).unwrap();
        let is_step = steps::NAMES.contains(&program.as_str());
        assert_eq!(text.contains(&format!("Function::Step(\"{program}\")")), is_step, "{program}");
        assert!(text.lines().count() <= 30, "{program}");
    }
    assert_eq!(std::fs::read_dir(folder("src/bin")).unwrap().count(), programs.len());
}
