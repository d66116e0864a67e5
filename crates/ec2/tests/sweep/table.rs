//! The whole table, without what is by chance: identifiers, times, keys.

use std::collections::BTreeMap;

use rehost_control::Ports;
use rehost_control::ports::Kind;
use serde_json::{Map, Value};

const KINDS: [Kind; 7] = [
    Kind::SourceServer,
    Kind::Job,
    Kind::SnapshotSet,
    Kind::ReplicationServer,
    Kind::ReplicationTemplate,
    Kind::Ledger,
    Kind::Lock,
];

/// Members that count attempts or events, or are times as numbers: a failure that is shown and mended leaves its trace there.
const BY_CHANCE: [&str; 2] = ["eventSequence", "certificateSerials"];

/// Items by their keys.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Table(BTreeMap<String, Vec<String>>);

impl Table {
    pub(crate) async fn read(ports: &Ports) -> Self {
        let mut items: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for kind in KINDS {
            for item in ports.store.list(kind, "").await.unwrap() {
                let body = serde_json::to_string_pretty(&plain(item.body)).unwrap();
                items.entry(plain_text(&item.key.to_string())).or_default().push(body);
            }
        }
        for bodies in items.values_mut() {
            bodies.sort();
        }
        Self(items)
    }

    /// The lines in which the other differs.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let lines = |table: &Self, key: &String| table.0.get(key).map(|bodies| bodies.join("\n")).unwrap_or_default();
        let keys: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let mut differences = Vec::new();
        for key in keys {
            let (ours, theirs) = (lines(self, key), lines(other, key));
            if ours != theirs {
                differences.push(format!("{key}:"));
                differences.extend(lost(&ours, &theirs).map(|line| format!("- {line}")));
                differences.extend(lost(&theirs, &ours).map(|line| format!("+ {line}")));
            }
        }
        differences
    }
}

/// Lines that come more often in the one than in the other.
fn lost<'a>(of: &'a str, from: &'a str) -> impl Iterator<Item = &'a str> {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for line in from.lines() {
        *left.entry(line).or_default() += 1;
    }
    of.lines().filter(move |line| match left.get_mut(line) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    })
}

fn plain(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(name, value)| !is_by_chance(name, value));
            Value::Object(kept.map(|(name, value)| (plain_text(&name), plain(value))).collect::<Map<_, _>>())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(plain).collect()),
        Value::String(text) => Value::String(plain_text(&text)),
        other => other,
    }
}

/// Besides, what was used of a kind of resource, as `instance.t3.small`, is told in seconds.
fn is_by_chance(name: &str, value: &Value) -> bool {
    BY_CHANCE.contains(&name) || (name.contains('.') && value.is_number())
}

/// Times become `<time>`, and words with a digit and more than eight characters `#`: identifiers, hashes, keys.
pub(crate) fn plain_text(text: &str) -> String {
    let is_time =
        text.len() >= 20 && text.ends_with('Z') && text.get(4..5) == Some("-") && text.get(10..11) == Some("T");
    if is_time {
        return "<time>".to_owned();
    }
    let by_chance = |word: &str| word.len() > 8 && word.bytes().any(|c| c.is_ascii_digit());
    let mut plain = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_alphanumeric() {
            word.push(c);
            continue;
        }
        plain += if by_chance(&word) { "#" } else { &word };
        word.clear();
        plain.extend((c != '\0').then_some(c));
    }
    plain
}

#[test]
fn what_is_by_chance_is_left_out() {
    assert_eq!(plain_text("launch-mgnjob-0123456789abcdef0-2"), "launch-mgnjob-#-2");
    assert_eq!(plain_text("2026-01-02T03:04:05.678Z"), "<time>");
    assert_eq!(plain_text("INITIAL_SYNC"), "INITIAL_SYNC");
}
