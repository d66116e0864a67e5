//! What a task that waits is called with: an object whose members are fixed, or taken from the input, or the task's token.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::interpreter::path::Path;

/// The path of the token in the context object.
const TOKEN: &str = "$$.Task.Token";

/// A value to be made. The names of members that end in `.$` lose that end, and their text is where the value is found.
#[derive(Debug, Clone, PartialEq)]
pub enum Template {
    Fixed(Value),
    At(Path),
    Token,
    Object(BTreeMap<String, Template>),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is not supported in it.
    pub(super) fn parse(value: Value) -> Result<Self, String> {
        match value {
            Value::Object(members) => object(members).map(Self::Object),
            Value::Array(elements) if elements.iter().any(has_paths) => {
                Err("a path inside a list is not supported".to_owned())
            }
            fixed => Ok(Self::Fixed(fixed)),
        }
    }

    /// Whether the token is part of it.
    #[must_use]
    pub fn names_token(&self) -> bool {
        match self {
            Self::Token => true,
            Self::Object(members) => members.values().any(Self::names_token),
            Self::Fixed(_) | Self::At(_) => false,
        }
    }

    /// The value for this input and token.
    ///
    /// # Errors
    /// The path at which the input has nothing.
    pub fn fill(&self, input: &Value, token: &str) -> Result<Value, String> {
        match self {
            Self::Fixed(value) => Ok(value.clone()),
            Self::Token => Ok(Value::from(token)),
            Self::At(path) => {
                path.find(input).cloned().ok_or_else(|| format!("field `Payload`: the input has no `{path}`"))
            }
            Self::Object(members) => {
                let filled = members.iter().map(|(name, value)| Ok((name.clone(), value.fill(input, token)?)));
                filled.collect::<Result<Map<_, _>, String>>().map(Value::Object)
            }
        }
    }
}

fn object(members: Map<String, Value>) -> Result<BTreeMap<String, Template>, String> {
    let mut made = BTreeMap::new();
    for (name, value) in members {
        let (name, template) = match name.strip_suffix(".$") {
            Some(bare) => (bare.to_owned(), found(&name, &value)?),
            None => (name, Template::parse(value)?),
        };
        if made.insert(name.clone(), template).is_some() {
            return Err(format!("`{name}` stands twice"));
        }
    }
    Ok(made)
}

fn found(name: &str, value: &Value) -> Result<Template, String> {
    match value.as_str() {
        Some(TOKEN) => Ok(Template::Token),
        Some(text) => Path::parse(text).map(Template::At),
        None => Err(format!("`{name}` must be a path")),
    }
}

fn has_paths(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(name, value)| name.ends_with(".$") || has_paths(value)),
        Value::Array(elements) => elements.iter().any(has_paths),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_fixed_or_found() {
        let template = json!({
            "token.$": "$$.Task.Token", "all.$": "$", "a.$": "$.x.y", "n": 1, "deep": {"t.$": "$$.Task.Token"}, "l": [1, {"k": 2}]
        });
        let template = Template::parse(template).unwrap();
        assert!(template.names_token());
        let input = json!({"x": {"y": [7]}});
        let expected = json!({"token": "T", "all": input, "a": [7], "n": 1, "deep": {"t": "T"}, "l": [1, {"k": 2}]});
        assert_eq!(template.fill(&input, "T"), Ok(expected));
        assert!(template.fill(&json!({"x": 1}), "T").unwrap_err().contains("`$.x.y`"));
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        for (template, part) in [
            (json!({"a.$": "$$.Execution.Id"}), "$$.Execution.Id"),
            (json!({"a.$": "States.UUID()"}), "States.UUID()"),
            (json!({"a.$": 1}), "must be a path"),
            (json!({"a": 1, "a.$": "$.a"}), "stands twice"),
            (json!({"a": [[{"b.$": "$.b"}]]}), "inside a list"),
        ] {
            let error = Template::parse(template).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
