//! The harness's own calls of emulators, which check no signatures: what an instance would ask of S3, and what prepares EC2.

use std::time::Duration;

use serde_json::Value;

use super::emulators::REGION;
use crate::error::{Error, Result};
use crate::net::{Answer, http_request};

/// How long one answer may take; a program goes through S3 in one piece.
const PATIENCE: Duration = Duration::from_secs(60);

/// Calls to one emulator, by its port on the loopback interface.
#[derive(Debug, Clone, Copy)]
pub struct Wire {
    port: u16,
}

impl Wire {
    /// Calls to what listens on this port.
    #[must_use]
    pub fn to(port: u16) -> Self {
        Self { port }
    }

    /// A call of EC2; gives the answer's XML.
    ///
    /// # Errors
    /// When it is refused: with EC2's words.
    pub fn ec2(&self, action: &str, fields: &[(&str, &str)]) -> Result<String> {
        self.query(("ec2", "2016-11-15"), action, fields)
    }

    /// A call of IAM; gives the answer's XML.
    ///
    /// # Errors
    /// When it is refused: with IAM's words.
    pub fn iam(&self, action: &str, fields: &[(&str, &str)]) -> Result<String> {
        self.query(("iam", "2010-05-08"), action, fields)
    }

    /// A call of a service (its name, and its API's version) that takes forms and answers with XML.
    fn query(&self, (service, version): (&str, &str), action: &str, fields: &[(&str, &str)]) -> Result<String> {
        let pairs = [("Action", action), ("Version", version)].into_iter().chain(fields.iter().copied());
        let form: Vec<String> = pairs.map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        let kind = ("content-type", "application/x-www-form-urlencoded".to_owned());
        let answer = self.ask("POST", "/", service, vec![kind], form.join("&").as_bytes())?;
        expect(answer, &format!("{service}:{action}")).map(|answer| answer.text())
    }

    /// A call of a service that speaks JSON; `target` is its `x-amz-target`.
    ///
    /// # Errors
    /// When it is refused: with the service's words.
    pub fn json(&self, service: &str, target: &str, body: &Value) -> Result<Value> {
        let headers =
            vec![("content-type", "application/x-amz-json-1.0".to_owned()), ("x-amz-target", target.to_owned())];
        let answer = self.ask("POST", "/", service, headers, body.to_string().as_bytes())?;
        let text = expect(answer, target)?.text();
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|e| Error::Unexpected(format!("{target} answered no JSON: {e}: {text}")))
    }

    /// Makes a bucket.
    ///
    /// # Errors
    /// When S3 refuses.
    pub fn create_bucket(&self, bucket: &str) -> Result<()> {
        let body = format!(
            "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
        );
        let answer = self.ask("PUT", &format!("/{bucket}"), "s3", Vec::new(), body.as_bytes())?;
        expect(answer, "s3:CreateBucket").map(drop)
    }

    /// Writes an object.
    ///
    /// # Errors
    /// When S3 refuses.
    pub fn put_object(&self, bucket: &str, key: &str, bytes: &[u8]) -> Result<()> {
        let answer = self.ask("PUT", &format!("/{bucket}/{key}"), "s3", Vec::new(), bytes)?;
        expect(answer, &format!("s3:PutObject {key}")).map(drop)
    }

    /// Reads an object; `None` when there is none.
    ///
    /// # Errors
    /// When S3 refuses.
    pub fn object(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>> {
        let answer = self.ask("GET", &format!("/{bucket}/{key}"), "s3", Vec::new(), b"")?;
        if answer.status == 404 {
            return Ok(None);
        }
        expect(answer, &format!("s3:GetObject {key}")).map(|answer| Some(answer.body))
    }

    fn ask(
        &self,
        method: &str,
        path: &str,
        service: &str,
        mut headers: Vec<(&str, String)>,
        body: &[u8],
    ) -> Result<Answer> {
        let scope = format!("Credential=test/20260101/{REGION}/{service}/aws4_request");
        let signature = format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0");
        headers.push(("authorization", signature));
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        http_request(self.port, method, path, &headers, body, PATIENCE)
    }
}

fn expect(answer: Answer, what: &str) -> Result<Answer> {
    if (200..300).contains(&answer.status) {
        return Ok(answer);
    }
    let text: String = answer.text().chars().take(2000).collect();
    Err(Error::Unexpected(format!("{what} was answered with {}: {text}", answer.status)))
}

fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(one).collect()
}

/// The content of the first element of this name in an XML answer.
#[must_use]
pub fn first<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    all(xml, name).into_iter().next()
}

/// The contents of all elements of this name, which must not contain one another.
#[must_use]
pub fn all<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let parts = xml.split(open.as_str()).skip(1);
    parts.filter_map(|part| part.split_once(close.as_str()).map(|(content, _)| content)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_encoded_and_xml_is_read() {
        assert_eq!(encoded("a/b c=ä"), "a%2Fb%20c%3D%C3%A4");
        let xml = "<x><id>1</id><item><id>2</id></item><id></id></x>";
        assert_eq!(all(xml, "id"), ["1", "2", ""]);
        assert_eq!((first(xml, "item"), first(xml, "none")), (Some("<id>2</id>"), None));
    }
}
