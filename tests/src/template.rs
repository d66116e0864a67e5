//! The deployment template, read as CloudFormation reads it: functions, and what their roles allow.
//!
//! `!Ref x` and its like become `{"Ref": x}`, `{"Fn::Sub": x}` and so on, the form that CloudFormation knows as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};
use serde_norway::Value as Yaml;

/// The template in the repository, below its root.
pub const TEMPLATE: &str = "infra/template.yaml";

/// A template.
#[derive(Debug, Clone)]
pub struct Template(Value);

/// A function, by what the template says of it.
#[derive(Debug, Clone)]
pub struct Function {
    /// Logical id, such as `BeginJobFunction`.
    pub id: String,
    /// Logical id of its role.
    pub role: String,
    pub timeout_seconds: u64,
    /// Key of its zip, after the prefix.
    pub zip: String,
}

/// A statement of a policy.
#[derive(Debug, Clone)]
pub struct Statement {
    pub allows: bool,
    pub actions: BTreeSet<String>,
    pub resources: Vec<Value>,
    pub condition: Value,
}

impl Template {
    /// Reads the template below `root`.
    ///
    /// # Errors
    /// A text that says what is wrong with it.
    pub fn load(root: &Path) -> Result<Self, String> {
        let path = root.join(TEMPLATE);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let yaml: Yaml = serde_norway::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        to_json(yaml).map(Self)
    }

    /// Every resource of a type, by its logical id.
    pub fn resources<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let all = self.0["Resources"].as_object().into_iter().flatten();
        all.filter(move |(_, resource)| resource["Type"] == kind)
            .map(|(id, resource)| (id.as_str(), &resource["Properties"]))
    }

    /// The properties of a resource; `Null` when there is none.
    #[must_use]
    pub fn properties(&self, id: &str) -> &Value {
        &self.0["Resources"][id]["Properties"]
    }

    /// The environment of every function.
    #[must_use]
    pub fn environment(&self) -> &Value {
        &self.0["Globals"]["Function"]["Environment"]["Variables"]
    }

    /// The functions by the names of their programs.
    #[must_use]
    pub fn functions(&self) -> BTreeMap<String, Function> {
        let functions = self.resources("AWS::Serverless::Function");
        functions
            .map(|(id, properties)| (name_after_stack(&properties["FunctionName"]), function(id, properties)))
            .collect()
    }

    /// All statements of a role: its own, and those of the policies of the template that it has.
    #[must_use]
    pub fn statements(&self, role: &str) -> Vec<Statement> {
        let properties = self.properties(role);
        let own = list(&properties["Policies"]).iter().map(|policy| &policy["PolicyDocument"]);
        let shared = self.policies_of(role).into_iter().map(|id| &self.properties(&id)["PolicyDocument"]);
        own.chain(shared).flat_map(|document| list(&document["Statement"])).map(statement).collect()
    }

    /// The logical ids of the managed policies of a role, also of those that it has under a condition.
    #[must_use]
    pub fn policies_of(&self, role: &str) -> Vec<String> {
        let policies = list(&self.properties(role)["ManagedPolicyArns"]).iter();
        let named = policies.map(|policy| policy["Fn::If"].get(1).unwrap_or(policy)["Ref"].as_str());
        named.flatten().map(str::to_owned).collect()
    }
}

fn function(id: &str, properties: &Value) -> Function {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let zip = text(&properties["CodeUri"]["Key"]["Fn::Sub"]);
    Function {
        id: id.to_owned(),
        role: text(&properties["Role"]["Fn::GetAtt"][0]),
        timeout_seconds: properties["Timeout"].as_u64().unwrap_or_default(),
        zip: zip.trim_start_matches("${CodePrefix}").to_owned(),
    }
}

/// What follows `${AWS::StackName}-` in a name.
#[must_use]
pub fn name_after_stack(name: &Value) -> String {
    let text = name["Fn::Sub"].as_str().unwrap_or_default();
    text.strip_prefix("${AWS::StackName}-").unwrap_or_default().to_owned()
}

fn statement(statement: &Value) -> Statement {
    Statement {
        allows: statement["Effect"] == "Allow",
        actions: list(&statement["Action"]).iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        resources: list(&statement["Resource"]).to_vec(),
        condition: statement["Condition"].clone(),
    }
}

/// What may stand alone or in a list.
fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        Value::Null => &[],
        one => std::slice::from_ref(one),
    }
}

fn to_json(yaml: Yaml) -> Result<Value, String> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => json!(value),
        Yaml::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => json!(value),
            (None, Some(value)) => json!(value),
            (None, None) => json!(number.as_f64()),
        },
        Yaml::String(text) => json!(text),
        Yaml::Sequence(items) => Value::Array(items.into_iter().map(to_json).collect::<Result<_, _>>()?),
        Yaml::Mapping(members) => Value::Object(members.into_iter().map(member).collect::<Result<Map<_, _>, _>>()?),
        Yaml::Tagged(tagged) => intrinsic(&tagged.tag.to_string(), to_json(tagged.value)?),
    })
}

fn member((key, value): (Yaml, Yaml)) -> Result<(String, Value), String> {
    match key {
        Yaml::String(key) => Ok((key, to_json(value)?)),
        other => Err(format!("{other:?} is no name of a member")),
    }
}

fn intrinsic(tag: &str, value: Value) -> Value {
    match (tag.trim_start_matches('!'), &value) {
        (name @ ("Ref" | "Condition"), _) => json!({name: value}),
        ("GetAtt", Value::String(text)) => {
            let (resource, attribute) = text.split_once('.').unwrap_or((text, ""));
            json!({"Fn::GetAtt": [resource, attribute]})
        }
        (name, _) => json!({format!("Fn::{name}"): value}),
    }
}
