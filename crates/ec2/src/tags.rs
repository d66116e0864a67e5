//! Tags: what every resource carries, and filters by them.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{Filter, ResourceType, Tag, TagSpecification};
use rehost_control::ledger::TOKEN_TAG;
use rehost_control::ports::{ClientToken, Tags};

/// The tag with the stack's name: several stacks may share an account.
pub const STACK_TAG: &str = "rehost:stack";

/// The tag with the guest's ports that probes must reach, separated by spaces.
pub(crate) const PORTS_TAG: &str = "rehost:ports";

/// AWS alone may write tags that begin so; a source's tags may have been copied from an instance that has some.
const RESERVED: &str = "aws:";

/// What AWS Backup and Data Lifecycle Manager write on the snapshots and images that they make.
const OF_OTHER_MAKERS: [&str; 2] = ["aws:backup:", "aws:dlm:"];

/// The name of a resource in the console.
const NAME: &str = "Name";

/// What every resource made with `token` carries.
pub(crate) fn complete(tags: &Tags, stack: &str, token: &ClientToken) -> Tags {
    let mut all: Tags = tags.clone().into_iter().filter(|(key, _)| !key.to_lowercase().starts_with(RESERVED)).collect();
    all.insert(STACK_TAG.to_owned(), stack.to_owned());
    all.insert(TOKEN_TAG.to_owned(), token.as_str().to_owned());
    all
}

/// The same with a name for the console, unless there is one.
pub(crate) fn named(mut tags: Tags, name: impl Into<String>) -> Tags {
    tags.entry(NAME.to_owned()).or_insert_with(|| name.into());
    tags
}

/// Tags for one kind of resource, as the creating calls take them.
pub(crate) fn specification(kind: ResourceType, tags: &Tags) -> TagSpecification {
    let tags = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
    TagSpecification::builder().resource_type(kind).set_tags(Some(tags.collect())).build()
}

/// Tags as they were read.
pub(crate) fn read(tags: &[Tag]) -> Tags {
    let pairs = tags.iter().filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())));
    pairs.collect::<BTreeMap<_, _>>()
}

/// Whether AWS Backup or a lifecycle policy made this, and copied our tags: it is its owner's, and not ours to remove or wait for.
pub(crate) fn are_of_another_maker(tags: &[Tag]) -> bool {
    let by_other = |key: &str| OF_OTHER_MAKERS.iter().any(|prefix| key.starts_with(prefix));
    tags.iter().filter_map(Tag::key).any(by_other)
}

/// Whatever has this tag.
pub(crate) fn with_tag(key: &str, value: &str) -> Filter {
    filter(format!("tag:{key}"), value)
}

/// Whatever has a tag of this name.
pub(crate) fn with_tag_key(key: &str) -> Filter {
    filter("tag-key", key)
}

/// What was made with a token.
pub(crate) fn made_with(token: &ClientToken) -> Filter {
    with_tag(TOKEN_TAG, token.as_str())
}

/// Any filter with one value.
pub(crate) fn filter(name: impl Into<String>, value: impl Into<String>) -> Filter {
    Filter::builder().name(name).values(value).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_carry_stack_and_token_and_no_reserved_tag() {
        let tags = Tags::from([("a".to_owned(), "1".to_owned()), ("AWS:x".to_owned(), "2".to_owned())]);
        let all = complete(&tags, "rehost", &ClientToken::derive(&["t"]));
        let expected = [("a", "1"), (STACK_TAG, "rehost"), (TOKEN_TAG, "t")];
        assert_eq!(all, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn copies_by_backups_and_lifecycle_policies_are_known_by_their_tags() {
        let tags = |key: &str| [STACK_TAG, key].map(|key| Tag::builder().key(key).value("v").build());
        for key in ["aws:backup:source-resource", "aws:dlm:lifecycle-policy-id"] {
            assert!(are_of_another_maker(&tags(key)), "{key}");
        }
        for key in [TOKEN_TAG, "aws:cloudformation:stack-name", "my:aws:backup:x"] {
            assert!(!are_of_another_maker(&tags(key)), "{key}");
        }
    }

    #[test]
    fn a_name_is_given_once() {
        let tags = named(Tags::new(), "first");
        assert_eq!(named(tags, "second")[NAME], "first");
    }

    #[test]
    fn tags_survive_the_way_to_ec2() {
        let tags = Tags::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())]);
        assert_eq!(read(specification(ResourceType::Volume, &tags).tags()), tags);
    }
}
