//! What an SDK asks for, read off its HTTP request: which service, which action, with which parameters.
//!
//! The service is in the scope of the signature. The action is where the service's protocol puts it: a header (JSON), a form
//! field (EC2, IAM, STS), the path (RPC over CBOR), or method and path (REST: S3, EBS's direct APIs, Lambda).

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method};
use serde_json::Value;

/// One request of an SDK.
#[derive(Debug, Clone)]
pub struct Call {
    /// How manieth call through this proxy it is, from 0.
    pub number: usize,
    /// As signed: `ec2`, `ebs`, `dynamodb`, `s3`, `states`, `events`, `kms`, `ssm`, `lambda`, …
    pub service: String,
    /// As in the API reference: `RunInstances`, `PutItem`, …
    pub action: String,
    pub method: Method,
    /// Without the query.
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    pub(crate) fn read(number: usize, parts: &Parts, body: Bytes) -> Self {
        let service = service_of(&parts.headers).unwrap_or_else(|| "unsigned".to_owned());
        let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
        let mut call = Self {
            number,
            service,
            action: String::new(),
            method: parts.method.clone(),
            path,
            query,
            headers: parts.headers.clone(),
            body,
        };
        call.action = call.find_action();
        call
    }

    /// `service:Action`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}:{}", self.service, self.action)
    }

    /// The fields of a form, as EC2's, IAM's and STS's calls are; of the query for others.
    #[must_use]
    pub fn form(&self) -> BTreeMap<String, String> {
        let text = if self.is_form() { String::from_utf8_lossy(&self.body) } else { Cow::from(self.query.as_str()) };
        text.split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decoded(name), decoded(value))
            })
            .collect()
    }

    /// The body as JSON; `Null` when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn is_form(&self) -> bool {
        self.header("content-type").is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"))
    }

    fn find_action(&self) -> String {
        let target = self.header("x-amz-target").and_then(|target| target.rsplit('.').next()).map(str::to_owned);
        let operation = || self.path.split_once("/operation/").map(|(_, operation)| operation.to_owned());
        let form = || self.form().remove("Action");
        target.or_else(operation).or_else(form).unwrap_or_else(|| self.rest_action())
    }

    fn rest_action(&self) -> String {
        let segments: Vec<&str> = self.path.split('/').filter(|segment| !segment.is_empty()).collect();
        let known = match self.service.as_str() {
            "s3" => s3_action(&self.method, segments.len(), &self.query),
            "ebs" => ebs_action(&self.method, &segments),
            "lambda" if segments.last() == Some(&"invocations") => Some("Invoke"),
            _ => None,
        };
        known.map_or_else(|| format!("{} {}", self.method, self.path), str::to_owned)
    }
}

/// `Credential=KEY/DATE/REGION/SERVICE/aws4_request` in the Authorization header.
fn service_of(headers: &HeaderMap) -> Option<String> {
    let authorization = headers.get("authorization")?.to_str().ok()?;
    let scope = authorization.split_once("Credential=")?.1.split(',').next()?;
    scope.split('/').nth(3).map(str::to_owned)
}

fn s3_action(method: &Method, segments: usize, query: &str) -> Option<&'static str> {
    let plain = query.is_empty() || query.starts_with("x-id=");
    Some(match (method.as_str(), segments) {
        ("GET", 0) => "ListBuckets",
        ("PUT", 1) if plain => "CreateBucket",
        ("DELETE", 1) if plain => "DeleteBucket",
        ("HEAD", 1) => "HeadBucket",
        ("GET", 1) if query.contains("list-type=2") => "ListObjectsV2",
        ("PUT", 2..) if plain => "PutObject",
        ("GET", 2..) if plain => "GetObject",
        ("DELETE", 2..) if plain => "DeleteObject",
        ("HEAD", 2..) => "HeadObject",
        _ => return None,
    })
}

fn ebs_action(method: &Method, segments: &[&str]) -> Option<&'static str> {
    Some(match (method.as_str(), segments) {
        ("POST", ["snapshots"]) => "StartSnapshot",
        ("POST", ["snapshots", "completion", _]) => "CompleteSnapshot",
        ("PUT", ["snapshots", _, "blocks", _]) => "PutSnapshotBlock",
        ("GET", ["snapshots", _, "blocks"]) => "ListSnapshotBlocks",
        ("GET", ["snapshots", _, "blocks", _]) => "GetSnapshotBlock",
        ("GET", ["snapshots", _, "changedblocks"]) => "ListChangedBlocks",
        _ => return None,
    })
}

/// Undoes the encoding of forms.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten();
        let escaped = escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = tail.get(if escaped.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn call(method: &str, uri: &str, service: &str, headers: &[(&str, &str)], body: &'static str) -> Call {
        let scope =
            format!("AWS4-HMAC-SHA256 Credential=test/20260101/eu-central-1/{service}/aws4_request, Signature=0");
        let mut request = Request::builder().method(method).uri(uri).header("authorization", scope);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Call::read(0, &parts, Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn calls_are_named_in_every_protocol() {
        let form = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
        let target = [("x-amz-target", "DynamoDB_20120810.PutItem")];
        let states = [("x-amz-target", "AWSStepFunctions.SendTaskSuccess")];
        let calls = [
            (call("POST", "/", "ec2", &form, "Action=RunInstances&MinCount=1"), "ec2:RunInstances"),
            (call("POST", "/", "dynamodb", &target, "{}"), "dynamodb:PutItem"),
            (call("POST", "/", "states", &states, "{}"), "states:SendTaskSuccess"),
            (call("POST", "/service/X/operation/PutEvents", "events", &[], ""), "events:PutEvents"),
            (call("PUT", "/bucket/a/b?x-id=PutObject", "s3", &[], "x"), "s3:PutObject"),
            (call("GET", "/bucket/a", "s3", &[], ""), "s3:GetObject"),
            (call("DELETE", "/bucket/a?x-id=DeleteObject", "s3", &[], ""), "s3:DeleteObject"),
            (call("PUT", "/bucket", "s3", &[], ""), "s3:CreateBucket"),
            (call("GET", "/bucket?list-type=2&prefix=a", "s3", &[], ""), "s3:ListObjectsV2"),
            (call("GET", "/snapshots/snap-1/blocks/0?blockToken=t", "ebs", &[], ""), "ebs:GetSnapshotBlock"),
            (call("GET", "/snapshots/snap-1/blocks", "ebs", &[], ""), "ebs:ListSnapshotBlocks"),
            (call("POST", "/2015-03-31/functions/f/invocations", "lambda", &[], "{}"), "lambda:Invoke"),
            (call("POST", "/schedules/x", "scheduler", &[], "{}"), "scheduler:POST /schedules/x"),
        ];
        for (call, name) in calls {
            assert_eq!(call.name(), name);
        }
    }

    #[test]
    fn forms_and_json_are_read() {
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let run = call("POST", "/", "ec2", &form, "Action=RunInstances&Tag.1.Value=a%2Fb+c%zz&Empty=");
        assert_eq!(run.form()["Tag.1.Value"], "a/b c%zz");
        assert_eq!(run.form()["Empty"], "");
        let put =
            call("POST", "/", "dynamodb", &[("x-amz-target", "DynamoDB_20120810.PutItem")], r#"{"TableName":"t"}"#);
        assert_eq!(put.json()["TableName"], "t");
        assert_eq!(run.json(), Value::Null);
    }
}
