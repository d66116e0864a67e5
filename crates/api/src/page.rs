//! Paging: `maxResults`, and a `nextToken` that names the last item of the page before.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::error::ApiError;

/// MGN's limits for `maxResults`.
const MAX_RESULTS: std::ops::RangeInclusive<i64> = 1..=1000;

/// Items of a page when the client does not say; a page of servers then stays well under a Lambda response's 6 MB.
const DEFAULT_RESULTS: usize = 200;

/// MGN's limit for a token.
const MAX_TOKEN_CHARS: usize = 2048;

/// What the client asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageRequest<'a> {
    pub(crate) max_results: Option<i64>,
    pub(crate) next_token: Option<&'a str>,
}

/// The answer: the items of the page that was asked for, each shown by `show`, and the token of the next one if there is any.
/// `key` tells items apart.
pub(crate) fn page<T>(
    items: &[T],
    request: PageRequest<'_>,
    key: impl Fn(usize, &T) -> String,
    show: impl Fn(&T) -> Value,
) -> Result<Value, ApiError> {
    let size = size(request.max_results)?;
    let start = match request.next_token {
        None | Some("") => 0,
        Some(token) => {
            let last = read_token(token)?;
            let position = items.iter().enumerate().position(|(i, item)| key(i, item) == last);
            position.ok_or_else(|| invalid_token("what it points to is gone"))? + 1
        }
    };
    let end = items.len().min(start.saturating_add(size));
    let shown: Vec<_> = items.get(start..end).unwrap_or_default().iter().map(show).collect();
    let mut answer = json!({ "items": shown });
    if end < items.len()
        && let Some(last) = items.get(end - 1)
    {
        answer["nextToken"] = URL_SAFE_NO_PAD.encode(key(end - 1, last)).into();
    }
    Ok(answer)
}

fn size(max_results: Option<i64>) -> Result<usize, ApiError> {
    match max_results {
        None => Ok(DEFAULT_RESULTS),
        Some(n) if MAX_RESULTS.contains(&n) => Ok(usize::try_from(n).unwrap_or(DEFAULT_RESULTS)),
        Some(n) => Err(ApiError::field("maxResults", format!("must be 1 to 1000, not {n}"))),
    }
}

fn read_token(token: &str) -> Result<String, ApiError> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok().filter(|_| token.len() <= MAX_TOKEN_CHARS);
    let text = bytes.and_then(|b| String::from_utf8(b).ok());
    text.ok_or_else(|| invalid_token("it is not a token of this service"))
}

fn invalid_token(why: &str) -> ApiError {
    ApiError::field("nextToken", format!("{why}; list again without it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(count: usize, size: i64) -> Vec<Vec<u64>> {
        let items: Vec<_> = (0..count).collect();
        let mut token: Option<String> = None;
        let mut pages = Vec::new();
        loop {
            let request = PageRequest { max_results: Some(size), next_token: token.as_deref() };
            let answer = page(&items, request, |_, n| format!("item-{n}"), |n| json!(n)).unwrap();
            pages.push(answer["items"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect());
            match answer.get("nextToken") {
                Some(next) => token = Some(next.as_str().unwrap().to_owned()),
                None => return pages,
            }
        }
    }

    #[test]
    fn pages_together_are_the_whole_list() {
        assert_eq!(pages(5, 2), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(pages(4, 2), [vec![0, 1], vec![2, 3]]);
        assert_eq!(pages(0, 2), [Vec::<u64>::new()]);
    }

    #[test]
    fn sizes_and_tokens_out_of_range_are_refused() {
        let items = [1, 2, 3];
        let ask = |max_results, next_token| {
            page(&items, PageRequest { max_results, next_token }, |_, n| n.to_string(), |n| json!(n))
        };
        for (size, token, member) in [
            (Some(0), None, "maxResults"),
            (Some(1001), None, "maxResults"),
            (None, Some("%%%"), "nextToken"),
            (None, Some("OTk"), "nextToken"),
        ] {
            let error = ask(size, token).unwrap_err();
            assert!(error.message().starts_with(member), "{error}");
        }
    }
}
