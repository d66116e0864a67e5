//! The store on one DynamoDB table.
//!
//! | attribute | type | |
//! |---|---|---|
//! | `kind` | S | partition key: [`Kind::as_str`] |
//! | `id` | S | sort key: the item's id; a parent's children have ids that begin with `parent/` |
//! | `version` | N | 1 when it was created, one more with every write |
//! | `body` | S | the aggregate as JSON |
//! | `write` | S | which call wrote it, at random |
//!
//! All reads are strongly consistent, and every write is conditional on the version. When the answer to a write is lost and
//! the SDK asks again, the condition fails because of the write itself: DynamoDB gives back the item that stood in the way,
//! and its `write` tells that it is this call's own.

use std::collections::HashMap;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};
use rehost_control::PortError;
use rehost_control::ports::{Item, ItemKey, Kind, PortResult, Store, Version};
use serde_json::Value;

use crate::RegionConfig;
use crate::error::{deployed, failed};

const KIND: &str = "kind";
const ID: &str = "id";
const VERSION: &str = "version";
const BODY: &str = "body";
const WRITE: &str = "write";

/// The most that DynamoDB keeps in one item: names and values; bytes ("Quotas in Amazon DynamoDB").
const MAX_ITEM: usize = 400 << 10;

/// More than all names, the version and the write's id take; bytes.
const BESIDE_KEY_AND_BODY: usize = 128;

type Attributes = HashMap<String, AttributeValue>;

/// [`Store`] on DynamoDB.
#[derive(Debug, Clone)]
pub struct DynamoStore {
    client: Client,
    table: String,
}

impl DynamoStore {
    /// The store of this region.
    #[must_use]
    pub fn new(config: &RegionConfig, sdk: &SdkConfig) -> Self {
        Self { client: Client::new(sdk), table: config.table.clone() }
    }

    fn decode(&self, key: ItemKey, attributes: &Attributes) -> PortResult<Item> {
        let broken = |why: String| {
            let place = format!("the item {key} in the table {}", self.table);
            PortError::invalid(format!("{place} is damaged ({why}); restore it from a backup"))
        };
        let version = version_of(attributes).ok_or_else(|| broken("it has no version".to_owned()))?;
        let body = attributes.get(BODY).and_then(|body| body.as_s().ok());
        let body = body.ok_or_else(|| broken("it has no body".to_owned()))?;
        let body = serde_json::from_str(body).map_err(|e| broken(format!("its body is not JSON: {e}")))?;
        Ok(Item { key, version, body })
    }

    /// Whether the write `write` did succeed although its condition failed in the end; else what stood in the way.
    fn judge_put(
        &self,
        key: &ItemKey,
        expected: Option<Version>,
        write: &str,
        error: &SdkError<PutItemError>,
    ) -> PortResult<()> {
        let Some(PutItemError::ConditionalCheckFailedException(refusal)) = error.as_service_error() else {
            return Err(deployed(failed("dynamodb:PutItem", key, error)));
        };
        let present = refusal.item();
        let written = present.and_then(|item| item.get(WRITE)).and_then(|id| id.as_s().ok());
        if written.is_some_and(|written| written == write) {
            return Ok(());
        }
        Err(conflict(key, expected, present.and_then(version_of)))
    }
}

#[async_trait]
impl Store for DynamoStore {
    async fn get(&self, key: &ItemKey) -> PortResult<Option<Item>> {
        let call = self.client.get_item().table_name(&self.table).set_key(Some(key_of(key))).consistent_read(true);
        let answer = call.send().await.map_err(|e| deployed(failed("dynamodb:GetItem", key, &e)))?;
        answer.item.map(|attributes| self.decode(key.clone(), &attributes)).transpose()
    }

    async fn put(&self, key: &ItemKey, body: Value, expected: Option<Version>) -> PortResult<Version> {
        let (version, write, body) = (expected.unwrap_or(0).saturating_add(1), random_id()?, body.to_string());
        check_size(key, &body)?;
        let mut item = key_of(key);
        item.insert(VERSION.to_owned(), number(version));
        item.insert(BODY.to_owned(), AttributeValue::S(body));
        item.insert(WRITE.to_owned(), AttributeValue::S(write.clone()));
        let call = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(item))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let call = match expected {
            None => call.condition_expression("attribute_not_exists(#kind)").expression_attribute_names("#kind", KIND),
            Some(expected) => call
                .condition_expression("#version = :expected")
                .expression_attribute_names("#version", VERSION)
                .expression_attribute_values(":expected", number(expected)),
        };
        match call.send().await {
            Ok(_) => Ok(version),
            Err(error) => self.judge_put(key, expected, &write, &error).map(|()| version),
        }
    }

    async fn delete(&self, key: &ItemKey, expected: Version) -> PortResult<()> {
        let call = self
            .client
            .delete_item()
            .table_name(&self.table)
            .set_key(Some(key_of(key)))
            .condition_expression("attribute_not_exists(#kind) OR #version = :expected")
            .expression_attribute_names("#kind", KIND)
            .expression_attribute_names("#version", VERSION)
            .expression_attribute_values(":expected", number(expected))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let Err(error) = call.send().await else { return Ok(()) };
        match error.as_service_error() {
            Some(DeleteItemError::ConditionalCheckFailedException(refusal)) => {
                Err(conflict(key, Some(expected), refusal.item().and_then(version_of)))
            }
            _ => Err(deployed(failed("dynamodb:DeleteItem", key, &error))),
        }
    }

    async fn list(&self, kind: Kind, prefix: &str) -> PortResult<Vec<Item>> {
        let call = self
            .client
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .expression_attribute_names("#kind", KIND)
            .expression_attribute_values(":kind", AttributeValue::S(kind.as_str().to_owned()));
        let call = if prefix.is_empty() {
            call.key_condition_expression("#kind = :kind")
        } else {
            call.key_condition_expression("#kind = :kind AND begins_with(#id, :prefix)")
                .expression_attribute_names("#id", ID)
                .expression_attribute_values(":prefix", AttributeValue::S(prefix.to_owned()))
        };
        let subject = || ItemKey::new(kind, format_args!("{prefix}*"));
        let mut pages = call.into_paginator().items().send();
        let mut items = Vec::new();
        while let Some(attributes) = pages.next().await {
            let attributes = attributes.map_err(|e| deployed(failed("dynamodb:Query", subject(), &e)))?;
            let id = attributes.get(ID).and_then(|id| id.as_s().ok()).cloned().unwrap_or_default();
            items.push(self.decode(ItemKey::new(kind, id), &attributes)?);
        }
        Ok(items)
    }
}

fn key_of(key: &ItemKey) -> Attributes {
    HashMap::from([
        (KIND.to_owned(), AttributeValue::S(key.kind.as_str().to_owned())),
        (ID.to_owned(), AttributeValue::S(key.id.clone())),
    ])
}

fn number(version: Version) -> AttributeValue {
    AttributeValue::N(version.to_string())
}

fn version_of(attributes: &Attributes) -> Option<Version> {
    attributes.get(VERSION)?.as_n().ok()?.parse().ok()
}

fn random_id() -> PortResult<String> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|e| PortError::unavailable(format!("the kernel gives no random numbers: {e}")))?;
    Ok(format!("{:032x}", u128::from_be_bytes(id)))
}

fn check_size(key: &ItemKey, body: &str) -> PortResult<()> {
    let size = key.kind.as_str().len() + key.id.len() + body.len() + BESIDE_KEY_AND_BODY;
    if size <= MAX_ITEM {
        return Ok(());
    }
    Err(PortError::invalid(format!(
        "{key} has {size} bytes, but DynamoDB keeps at most {MAX_ITEM} in one item; remove what it need not hold (old \
         snapshots, log lines of old jobs, tags) and try again"
    )))
}

fn conflict(key: &ItemKey, expected: Option<Version>, present: Option<Version>) -> PortError {
    let present = present.map_or_else(|| "does not exist".to_owned(), |version| format!("has version {version}"));
    let wanted = expected.map_or_else(|| "it was to be new".to_owned(), |v| format!("version {v} was expected"));
    PortError::conflict(format!("{key} {present}, but {wanted}: read it again"))
}

#[cfg(test)]
mod tests {
    use rehost_control::PortErrorKind;

    use super::*;

    #[test]
    fn an_item_at_the_limit_is_written_and_one_beyond_it_is_explained() {
        let key = ItemKey::new(Kind::Job, "mgnjob-1");
        let room = MAX_ITEM - BESIDE_KEY_AND_BODY - "JOB".len() - key.id.len();
        check_size(&key, &"x".repeat(room)).unwrap();
        let error = check_size(&key, &"x".repeat(room + 1)).unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid);
        assert!(error.message.contains("JOB#mgnjob-1") && error.message.contains("409600"), "{error}");
    }

    #[test]
    fn what_stands_beside_key_and_body_fits_its_allowance() {
        let names = [KIND, ID, VERSION, BODY, WRITE].iter().map(|name| name.len()).sum::<usize>();
        // A number takes about a byte for two digits, and one more.
        let version = u64::MAX.to_string().len() / 2 + 2;
        assert!(names + version + random_id().unwrap().len() <= BESIDE_KEY_AND_BODY);
    }
}
