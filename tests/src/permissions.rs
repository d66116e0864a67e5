//! What the template's policies decide: a small reading of IAM's rules, for those parts of its language that the template uses.
//!
//! References become the names of what they refer to: the ARN of the bucket is `arn:Bucket`, a launch template's id its logical id.
//! A policy that uses anything that is not known here is an error, not a guess. Source: IAM's "Policy evaluation logic".

use serde_json::Value;

use crate::template::{Statement, Template};

/// Region and account in the ARNs of the template.
pub const REGION: &str = "us-east-1";
/// See [`REGION`].
pub const ACCOUNT: &str = "123456789012";
/// The stack's name.
pub const STACK: &str = "rehost";

/// A call as IAM sees it, for one of the resources that it touches.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub action: &'a str,
    pub resource: &'a str,
    /// Condition keys that the call has, and their values.
    pub context: &'a [(&'a str, &'a str)],
}

impl Template {
    /// Whether a role may do this: something allows it, and nothing denies it.
    ///
    /// # Errors
    /// A text, for what is not known here.
    pub fn permits(&self, role: &str, request: Request<'_>) -> Result<bool, String> {
        let mut allowed = false;
        for statement in self.statements(role) {
            if applies(&statement, request)? {
                if !statement.allows {
                    return Ok(false);
                }
                allowed = true;
            }
        }
        Ok(allowed)
    }
}

fn applies(statement: &Statement, request: Request<'_>) -> Result<bool, String> {
    if !statement.actions.contains(request.action) {
        return Ok(false);
    }
    let resources = statement.resources.iter().map(resolved).collect::<Result<Vec<_>, _>>()?;
    if !resources.iter().any(|pattern| matches(pattern, request.resource)) {
        return Ok(false);
    }
    for (operator, keys) in statement.condition.as_object().into_iter().flatten() {
        for (key, values) in keys.as_object().into_iter().flatten() {
            if !holds(operator, key, values, request.context)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// A key that the call does not have fails every operator used here.
fn holds(operator: &str, key: &str, values: &Value, context: &[(&str, &str)]) -> Result<bool, String> {
    let one = std::slice::from_ref(values);
    let values = values.as_array().map_or(one, Vec::as_slice).iter().map(resolved).collect::<Result<Vec<_>, _>>()?;
    let Some((_, actual)) = context.iter().find(|(name, _)| *name == key) else { return Ok(false) };
    match operator {
        "StringEquals" | "Bool" => Ok(values.iter().any(|value| value == actual)),
        "StringLike" | "ArnEquals" => Ok(values.iter().any(|pattern| matches(pattern, actual))),
        other => Err(format!("the condition operator {other} is not known here")),
    }
}

/// `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn resolved(value: &Value) -> Result<String, String> {
    let unknown = || format!("{value} is not known here");
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Object(members) => match members.iter().next() {
            Some((name, Value::String(target))) if name == "Ref" => Ok(named(target)),
            Some((name, Value::String(text))) if name == "Fn::Sub" => substituted(text),
            Some((name, Value::Array(parts))) if name == "Fn::GetAtt" => match parts.as_slice() {
                [Value::String(resource), Value::String(attribute)] => Ok(named(&format!("{resource}.{attribute}"))),
                _ => Err(unknown()),
            },
            _ => Err(unknown()),
        },
        _ => Err(unknown()),
    }
}

fn substituted(text: &str) -> Result<String, String> {
    let mut parts = text.split("${");
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').ok_or_else(|| format!("{text} lacks a brace"))?;
        whole += &named(name);
        whole += rest;
    }
    Ok(whole)
}

fn named(reference: &str) -> String {
    match reference {
        "AWS::Partition" => "aws".to_owned(),
        "AWS::Region" => REGION.to_owned(),
        "AWS::AccountId" => ACCOUNT.to_owned(),
        "AWS::StackName" => STACK.to_owned(),
        other => other.strip_suffix(".Arn").map_or_else(|| other.to_owned(), |resource| format!("arn:{resource}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("a*c", "abc", true),
            ("a*c", "ab", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
