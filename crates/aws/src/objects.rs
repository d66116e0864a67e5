//! Objects in one S3 bucket.
//!
//! Keys are what every region accepts: relative paths of the characters `A-Z a-z 0-9 . _ - = + @ :`, at most 1024 of them and
//! 255 in one segment, no segment empty or beginning with a dot. The bucket encrypts by itself. Without `s3:ListBucket` S3
//! answers `AccessDenied` for what does not exist; the role needs it.

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use rehost_control::PortError;
use rehost_control::ports::{Objects, PortResult};

use crate::RegionConfig;
use crate::error::{code, deployed, failed};

const MAX_KEY: usize = 1024;
const MAX_SEGMENT: usize = 255;

/// [`Objects`] on S3.
#[derive(Debug, Clone)]
pub struct S3Objects {
    client: Client,
    bucket: String,
}

impl S3Objects {
    /// The objects of this region.
    #[must_use]
    pub fn new(config: &RegionConfig, sdk: &SdkConfig) -> Self {
        Self { client: Client::new(sdk), bucket: config.bucket.clone() }
    }

    fn subject(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }
}

#[async_trait]
impl Objects for S3Objects {
    async fn put(&self, key: &str, bytes: Vec<u8>) -> PortResult<()> {
        check(key)?;
        let call = self.client.put_object().bucket(&self.bucket).key(key).body(ByteStream::from(bytes));
        call.send().await.map_err(|e| deployed(failed("s3:PutObject", self.subject(key), &e)))?;
        Ok(())
    }

    async fn get(&self, key: &str) -> PortResult<Option<Vec<u8>>> {
        check(key)?;
        let answer = match self.client.get_object().bucket(&self.bucket).key(key).send().await {
            Err(e) if code(&e) == Some("NoSuchKey") => return Ok(None),
            answer => answer.map_err(|e| deployed(failed("s3:GetObject", self.subject(key), &e)))?,
        };
        let broken = |e| PortError::unavailable(format!("s3:GetObject for {} was cut off: {e}", self.subject(key)));
        Ok(Some(answer.body.collect().await.map_err(broken)?.to_vec()))
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        check(key)?;
        let call = self.client.delete_object().bucket(&self.bucket).key(key);
        call.send().await.map_err(|e| deployed(failed("s3:DeleteObject", self.subject(key), &e)))?;
        Ok(())
    }
}

fn check(key: &str) -> PortResult<()> {
    if key.len() <= MAX_KEY && key.split('/').all(is_segment) {
        return Ok(());
    }
    let shown: String = key.chars().take(80).collect();
    let expected = "a relative path of letters, digits and `._-=+@:`";
    Err(PortError::invalid(format!("{shown:?} is no key of an object: {expected}")))
}

fn is_segment(segment: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._-=+@:".contains(&c);
    !segment.is_empty() && segment.len() <= MAX_SEGMENT && !segment.starts_with('.') && segment.bytes().all(allowed)
}
