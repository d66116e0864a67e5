//! The canonical form of a request: what both sides of a SigV4 signature put into the hash.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};
use axum::http::HeaderMap;

/// What is signed of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Canonical<'a> {
    pub(super) method: &'a str,
    /// As it stood in the request line.
    pub(super) path: &'a str,
    /// As it stood in the request line, without the `?`.
    pub(super) query: &'a str,
    pub(super) headers: &'a HeaderMap,
    /// Lower-case names in their order.
    pub(super) signed_headers: &'a [&'a str],
    pub(super) body: &'a [u8],
}

impl Canonical<'_> {
    /// The canonical request; `None` when a header that is said to be signed is missing or not text.
    pub(super) fn text(&self) -> Option<String> {
        let mut text = format!("{}\n{}\n{}\n", self.method, canonical_path(self.path), canonical_query(self.query));
        for name in self.signed_headers {
            text.push_str(&format!("{name}:{}\n", header_value(self.headers, name)?));
        }
        text.push_str(&format!("\n{}\n{}", self.signed_headers.join(";"), sha256_hex(self.body)));
        Some(text)
    }
}

/// The lower-case hexadecimal SHA-256.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

/// The values of a header, each trimmed and its runs of spaces made one, joined by commas.
fn header_value(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut values = Vec::new();
    for value in headers.get_all(name) {
        let words: Vec<_> = std::str::from_utf8(value.as_bytes()).ok()?.split_whitespace().collect();
        values.push(words.join(" "));
    }
    if values.is_empty() { None } else { Some(values.join(",")) }
}

/// Every service but S3 signs the path encoded once more than it travels.
fn canonical_path(path: &str) -> String {
    if path.is_empty() { "/".to_owned() } else { encode(path.as_bytes(), true) }
}

fn canonical_query(query: &str) -> String {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (encode(&decode(name), false), encode(&decode(value), false))
    };
    // Equal pairs count as often as they stand there, hence a list that is sorted and not a set.
    let mut pairs: Vec<_> = query.split('&').filter(|part| !part.is_empty()).map(pair).collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

fn encode(bytes: &[u8], keep_slash: bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || (keep_slash && *byte == b'/');
        if plain {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| *first == b'%').and_then(|pair| hex::decode(pair).ok());
        match escaped {
            Some(byte) => {
                bytes.extend(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Whether names are lower-case, sorted and without repetition, as the signature's header demands.
pub(super) fn well_ordered(names: &[&str]) -> bool {
    let set: BTreeSet<_> = names.iter().copied().collect();
    set.len() == names.len()
        && set.iter().zip(names).all(|(a, b)| a == b)
        && names.iter().all(|n| !n.is_empty() && !n.bytes().any(|b| b.is_ascii_uppercase()))
}
