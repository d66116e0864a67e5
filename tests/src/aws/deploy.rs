//! The deployment's template, put on ministack as CloudFormation would take it from the AWS CLI.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::emulators::{MiniStack, credentials};
use super::wire::Wire;
use crate::error::{Context, Error, Result};
use crate::paths;
use crate::process::run;

/// How long the emulator may take to make a stack.
const LIMIT: Duration = Duration::from_secs(120);

/// The bucket of what is deployed.
const CODE: &str = "rehost-code";

/// What is deployed, and how.
#[derive(Debug, Clone)]
pub struct Deployment<'a> {
    /// The stack's name.
    pub stack: &'a str,
    /// The folder with a zip for each function.
    pub functions: &'a Path,
    /// Parameters of the template.
    pub parameters: BTreeMap<&'a str, String>,
    /// Variables of the functions' environment in place of the template's, or beside them: where the emulators are.
    pub environment: BTreeMap<String, String>,
    /// For what is made on the way.
    pub folder: &'a Path,
}

/// What a deployment came to.
#[derive(Debug)]
pub struct Deployed {
    /// The stack's outputs.
    pub outputs: BTreeMap<String, String>,
    /// How many resources there are.
    pub resources: usize,
    /// Resources that the emulator does not know and that were left out, each with its reason.
    pub left_out: Vec<String>,
}

impl Deployment<'_> {
    /// Packages and deploys.
    ///
    /// # Errors
    /// When the AWS CLI is missing or the emulator cannot make the stack: with the reasons that it gives.
    pub fn on(&self, ministack: &MiniStack) -> Result<Deployed> {
        let wire = Wire::to(ministack.port());
        wire.create_bucket(CODE)?;
        self.upload_functions(wire)?;
        let mut template = self.packaged(ministack)?;
        let left_out = without_unknown(&mut template);
        self.extend_environment(&mut template);
        wire.put_object(CODE, "template.json", template.to_string().as_bytes())?;
        self.create(ministack)?;
        let described = self.wait(ministack)?;
        let resources = self.cli(ministack, &["list-stack-resources", "--stack-name", self.stack])?;
        let resources = resources["StackResourceSummaries"].as_array().map_or(0, Vec::len);
        Ok(Deployed { outputs: outputs(&described), resources, left_out })
    }

    fn upload_functions(&self, wire: Wire) -> Result<()> {
        let what = || format!("read {}", self.functions.display());
        for entry in fs::read_dir(self.functions).context(what)? {
            let path = entry.context(what)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.extension().is_some_and(|extension| extension == "zip") {
                let zip = fs::read(&path).context(|| format!("read {}", path.display()))?;
                wire.put_object(CODE, &format!("functions/{name}"), &zip)?;
            }
        }
        Ok(())
    }

    /// The template with its state machines in the bucket, as JSON.
    fn packaged(&self, ministack: &MiniStack) -> Result<Value> {
        let out = self.folder.join("template.json");
        let template = paths::repository().join("infra/template.yaml");
        let mut command = aws(ministack)?;
        command.args(["cloudformation", "package", "--use-json", "--s3-bucket", CODE, "--template-file"]);
        run(command.arg(&template).arg("--output-template-file").arg(&out))?;
        let text = fs::read_to_string(&out).context(|| format!("read {}", out.display()))?;
        serde_json::from_str(&text).map_err(|e| Error::Unexpected(format!("{}: {e}", out.display())))
    }

    fn extend_environment(&self, template: &mut Value) {
        let variables = &mut template["Globals"]["Function"]["Environment"]["Variables"];
        for (name, value) in &self.environment {
            variables[name] = json!(value);
        }
    }

    fn create(&self, ministack: &MiniStack) -> Result<()> {
        let fixed = [("CodeBucket", CODE.to_owned()), ("CodePrefix", "functions/".to_owned())];
        let all = fixed.into_iter().chain(self.parameters.iter().map(|(name, value)| (*name, value.clone())));
        let parameters: Vec<Value> =
            all.map(|(name, value)| json!({"ParameterKey": name, "ParameterValue": value})).collect();
        let url = format!("{}/{CODE}/template.json", ministack.endpoint());
        let parameters = Value::from(parameters).to_string();
        let base = ["create-stack", "--stack-name", self.stack, "--template-url", &url, "--parameters", &parameters];
        let capabilities = ["--capabilities", "CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"];
        let arguments: Vec<&str> = base.into_iter().chain(capabilities).collect();
        self.cli(ministack, &arguments).map(drop)
    }

    fn wait(&self, ministack: &MiniStack) -> Result<Value> {
        let started = Instant::now();
        loop {
            let described = self.cli(ministack, &["describe-stacks", "--stack-name", self.stack])?;
            match described["Stacks"][0]["StackStatus"].as_str().unwrap_or_default() {
                "CREATE_COMPLETE" => return Ok(described),
                "CREATE_IN_PROGRESS" if started.elapsed() < LIMIT => thread::sleep(Duration::from_millis(200)),
                other => return Err(self.failed(ministack, other)),
            }
        }
    }

    fn failed(&self, ministack: &MiniStack, status: &str) -> Error {
        // The emulator's events lose the reason when it rolls back; its log keeps it.
        let log = ministack.output();
        let reasons: Vec<&str> =
            log.lines().filter(|line| line.contains("cloudformation") && line.contains("ERROR")).collect();
        Error::Unexpected(format!("the stack {} ended as {status}: {}", self.stack, reasons.join("; ")))
    }

    fn cli(&self, ministack: &MiniStack, arguments: &[&str]) -> Result<Value> {
        let text = run(aws(ministack)?.arg("cloudformation").args(arguments).args(["--output", "json"]))?;
        serde_json::from_str(&text)
            .map_err(|e| Error::Unexpected(format!("aws {arguments:?} printed no JSON: {e}: {text}")))
    }
}

/// Takes out what the emulator refuses.
fn without_unknown(template: &mut Value) -> Vec<String> {
    let Some(resources) = template["Resources"].as_object_mut() else { return Vec::new() };
    let unknown = |resource: &Value| {
        resource["Type"] == "AWS::CloudWatch::Alarm" && resource["Properties"].get("Metrics").is_some()
    };
    let names: Vec<String> = resources.iter().filter(|(_, r)| unknown(r)).map(|(name, _)| name.clone()).collect();
    for name in &names {
        resources.remove(name);
    }
    names.into_iter().map(|name| format!("{name}: ministack refuses alarms on metric math")).collect()
}

fn outputs(described: &Value) -> BTreeMap<String, String> {
    let outputs = described["Stacks"][0]["Outputs"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    outputs.iter().map(|output| (text(&output["OutputKey"]), text(&output["OutputValue"]))).collect()
}

/// The AWS CLI, talking to the emulator.
fn aws(ministack: &MiniStack) -> Result<Command> {
    let program: PathBuf = paths::cache().join("venv/bin/aws");
    if !program.is_file() {
        return Err(Error::Unexpected("the AWS CLI is not installed: run scripts/install-deps aws".to_owned()));
    }
    let mut command = Command::new(program);
    command.env_clear().envs(std::env::vars().filter(|(name, _)| !name.starts_with("AWS_"))).envs(credentials());
    command.env("AWS_ENDPOINT_URL", ministack.endpoint()).env("AWS_PAGER", "");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_emulator_refuses_is_left_out_and_told() {
        let alarm = json!({"Type": "AWS::CloudWatch::Alarm", "Properties": {"Metrics": []}});
        let plain = json!({"Type": "AWS::CloudWatch::Alarm", "Properties": {"MetricName": "x"}});
        let mut template = json!({"Resources": {"A": alarm, "B": plain}});
        let told = without_unknown(&mut template);
        assert!(told.len() == 1 && told[0].starts_with("A: "), "{told:?}");
        assert!(template["Resources"].get("B").is_some() && template["Resources"].get("A").is_none());
    }
}
