//! The template of the AWS region against what it deploys: functions, state machines, routes, and the permissions of each.
//!
//! What needs programs of others (cfn-lint, checkov and so on) is `make check-infra`.
#![allow(clippy::unwrap_used)] // What cannot be read fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rehost_tests::paths;
use rehost_tests::template::{Statement, Template, name_after_stack};
use serde_json::Value;

/// What a managed policy may have; characters without white space ("IAM and STS quotas").
const POLICY_LIMIT: usize = 6144;

/// Managed policies that a role may have unless its account asked for more.
const POLICIES_OF_ROLE: usize = 10;

fn template() -> Template {
    Template::load(paths::repository()).unwrap()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = paths::repository().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What stands between `before` and `after`, everywhere in a text.
fn between<'a>(text: &'a str, before: &str, after: &str) -> BTreeSet<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split_once(after)).map(|(found, _)| found).collect()
}

fn machines() -> BTreeMap<String, Value> {
    let folder = fs::read_dir(paths::repository().join("statemachine")).unwrap();
    let files = folder.map(|entry| entry.unwrap().path());
    let machines = files.filter_map(|path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".asl.json")?.to_owned();
        Some((name, serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap()))
    });
    machines.collect()
}

/// The tasks of a state machine: the logical id of the function that each calls, and its `TimeoutSeconds`.
fn tasks(machine: &Value) -> Vec<(String, u64)> {
    let states = machine["States"].as_object().unwrap().values();
    let tasks = states.filter(|state| state["Type"] == "Task").map(|state| {
        let called = state["Parameters"]["FunctionName"].as_str().or_else(|| state["Resource"].as_str()).unwrap();
        let placeholder = called.strip_prefix("${").and_then(|name| name.strip_suffix("Arn}"));
        let function = placeholder.unwrap_or_else(|| panic!("{called} is no function of the template")).to_owned();
        (function, state["TimeoutSeconds"].as_u64().unwrap())
    });
    tasks.collect()
}

/// `begin-job` for `BeginJobFunction`.
fn program(id: &str) -> String {
    let mut name = String::new();
    for c in id.strip_suffix("Function").unwrap().chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

#[test]
fn every_program_is_a_function_and_every_function_a_program() {
    let manifest = read("functions/Cargo.toml");
    let programs = between(&manifest, "[[bin]]\nname = \"", "\"");
    let functions = template().functions();
    assert_eq!(functions.keys().map(String::as_str).collect::<BTreeSet<_>>(), programs);
    for (name, function) in &functions {
        assert_eq!((program(&function.id), function.zip.clone()), (name.clone(), format!("{name}.zip")));
    }
}

#[test]
fn every_task_has_its_function_and_the_right_to_call_it() {
    let template = template();
    let deployed: BTreeMap<_, _> = template
        .resources("AWS::Serverless::StateMachine")
        .map(|(id, properties)| (name_after_stack(&properties["Name"]), (id, properties)))
        .collect();
    for (name, machine) in machines() {
        let (id, properties) = deployed.get(&name).unwrap_or_else(|| panic!("{name} is not in the template"));
        assert_eq!(properties["DefinitionUri"], format!("../statemachine/{name}.asl.json"));
        let called: BTreeSet<String> = tasks(&machine).into_iter().map(|(function, _)| function).collect();
        let arns = called.iter().map(|function| (format!("{function}Arn"), attribute(function, "Arn"))).collect();
        assert_eq!(properties["DefinitionSubstitutions"], Value::Object(arns), "{name}");
        let statements = template.statements(&format!("{id}Role"));
        let invokes = statements.iter().find(|s| s.actions.contains("lambda:InvokeFunction")).unwrap();
        let invoked: BTreeSet<String> =
            invokes.resources.iter().map(|arn| arn["Fn::GetAtt"][0].as_str().unwrap().to_owned()).collect();
        assert_eq!(invoked, called, "{name}");
    }
}

fn attribute(resource: &str, name: &str) -> Value {
    serde_json::json!({"Fn::GetAtt": [resource, name]})
}

/// Otherwise the state machine would tell of a timeout, and not of what the function knows.
#[test]
fn functions_end_before_the_tasks_that_call_them() {
    let functions = template().functions();
    for (machine, definition) in machines() {
        for (id, seconds) in tasks(&definition) {
            let own = functions[&program(&id)].timeout_seconds;
            assert!(own > 0 && own < seconds, "{id} in {machine}: {own} s, its task {seconds} s");
        }
    }
}

#[test]
fn functions_get_the_variables_that_they_read() {
    let source = read("crates/aws/src/config.rs");
    let read: BTreeSet<&str> = between(&source, ": &str = \"REHOST_", "\"").into_iter().collect();
    let template = template();
    let given = template.environment().as_object().unwrap().keys().map(|name| name.strip_prefix("REHOST_").unwrap());
    assert_eq!(given.collect::<BTreeSet<_>>(), read);
}

/// Agents and replicators sign with certificates, which API Gateway knows nothing of; everything else is IAM's to allow.
#[test]
fn every_path_has_its_route() {
    let template = template();
    let routes: BTreeMap<&str, (&Value, &Value)> = template
        .resources("AWS::ApiGatewayV2::Route")
        .map(|(_, route)| {
            (route["RouteKey"].as_str().unwrap(), (&route["AuthorizationType"], &route["Target"]["Fn::Sub"]))
        })
        .collect();
    let link = read("crates/model/src/link.rs");
    let paths = between(&link, "_PATH: &str = \"", "\"");
    assert!(paths.len() >= 7, "{paths:?}");
    for path in &paths {
        let (authorisation, target) = if path.ends_with("/v1/enrol") {
            ("AWS_IAM", "integrations/${EnrolIntegration}")
        } else {
            ("NONE", "integrations/${AgentIntegration}")
        };
        let route = routes.get(format!("POST {path}").as_str()).unwrap_or_else(|| panic!("{path} has no route"));
        assert_eq!((route.0, route.1), (&Value::from(authorisation), &Value::from(target)), "{path}");
    }
    let open = routes.iter().filter(|(_, route)| route.0 != "AWS_IAM").count();
    assert_eq!(open, paths.len() - 1, "routes without IAM: {routes:?}");
    for rest in ["POST /{operation}", "POST /rehost/v1/{operation+}"] {
        assert_eq!(routes[rest], (&Value::from("AWS_IAM"), &Value::from("integrations/${OperationsIntegration}")));
    }
}

fn roles(template: &Template) -> Vec<(String, Vec<Statement>)> {
    let roles = template.resources("AWS::IAM::Role");
    roles.map(|(id, _)| (id.to_owned(), template.statements(id))).collect()
}

#[test]
fn no_role_may_do_everything_of_a_kind() {
    let template = template();
    let roles = roles(&template);
    assert!(roles.len() > 30);
    for (role, statements) in &roles {
        for action in statements.iter().filter(|s| s.allows).flat_map(|s| &s.actions) {
            assert!(!action.contains('*') && action.contains(':'), "{role} may {action}");
        }
    }
}

/// What makes, changes or removes something in EC2 is bound to the stack's tag, to a launch template of the stack, or to the call
/// that makes a thing with that tag. What is not, is what a copy's launch template names, and the network of a security group.
#[test]
fn what_changes_ec2_is_bound_to_the_stack() {
    let template = template();
    for (id, policy) in template.resources("AWS::IAM::ManagedPolicy") {
        for statement in policy["PolicyDocument"]["Statement"].as_array().unwrap() {
            let (text, condition) = (statement.to_string(), statement["Condition"].to_string());
            let changes = text.contains("\"ec2:") && !text.contains("\"ec2:Describe") && statement["Effect"] == "Allow";
            let bound = ["/rehost:stack\"", "\"ec2:CreateAction\"", "\"ec2:LaunchTemplate\""];
            let excepted = [":key-pair/*", "}:vpc/*"].iter().any(|resource| text.contains(resource));
            assert!(!changes || excepted || bound.iter().any(|key| condition.contains(key)), "{id}: {text}");
        }
    }
}

#[test]
fn every_call_of_the_ports_is_allowed_to_somebody() {
    let template = template();
    let allowed: BTreeSet<String> =
        roles(&template).into_iter().flat_map(|(_, s)| s).filter(|s| s.allows).flat_map(|s| s.actions).collect();
    let mut called = BTreeSet::new();
    for folder in ["crates/aws/src", "crates/ec2/src"] {
        for entry in fs::read_dir(paths::repository().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "rs") {
                let source = fs::read_to_string(path).unwrap();
                called.extend(between(&source, "failed(\"", "\"").into_iter().map(str::to_owned));
            }
        }
    }
    assert!(called.len() > 30, "{called:?}");
    // Nothing stops executions yet.
    called.remove("states:StopExecution");
    assert_eq!(called.difference(&allowed).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn policies_and_roles_stay_within_their_quotas() {
    let template = template();
    for (id, policy) in template.resources("AWS::IAM::ManagedPolicy") {
        // References become longer than their names: a region's, an account's, a resource's.
        let length = policy["PolicyDocument"].to_string().len();
        assert!(length < POLICY_LIMIT * 9 / 10, "{id}: {length}");
    }
    for (role, _) in template.resources("AWS::IAM::Role") {
        assert!(template.policies_of(role).len() <= POLICIES_OF_ROLE, "{role}");
    }
}

#[test]
fn prices_have_their_source_and_date() {
    let prices: Value = serde_json::from_str(&read("infra/prices.json")).unwrap();
    assert_eq!((&prices["region"], &prices["currency"]), (&Value::from("us-east-1"), &Value::from("USD")));
    let list = prices["prices"].as_array().unwrap();
    for price in list {
        let text = |name: &str| price[name].as_str().unwrap_or_else(|| panic!("{name} of {price}")).to_owned();
        assert!(price["price"].as_f64().is_some_and(|value| value >= 0.0), "{price}");
        assert!(text("source").starts_with("https://") && text("date").len() == "2026-01-31".len(), "{price}");
        assert!(!text("unit").is_empty() && !text("id").is_empty());
    }
    let ids: BTreeSet<_> = list.iter().map(|price| price["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), list.len(), "an id stands twice");
}
