//! Reference paths: `$` and `$.a.b`, each name made of letters, digits and underscores.

use std::fmt;

use serde_json::{Map, Value};

/// A place inside a JSON document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path(Vec<String>);

impl Path {
    /// Reads a path.
    ///
    /// # Errors
    /// The reason why the text is no path of the supported form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refused = || format!("`{text}` is not a path of the form `$` or `$.name.name`");
        let rest = text.strip_prefix('$').ok_or_else(refused)?;
        if rest.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let names = rest.strip_prefix('.').ok_or_else(refused)?.split('.');
        names.map(|name| is_name(name).then(|| name.to_owned()).ok_or_else(refused)).collect::<Result<_, _>>().map(Self)
    }

    /// The value at this place, if the document has one there.
    #[must_use]
    pub fn find<'v>(&self, document: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(document, |value, name| value.as_object()?.get(name))
    }

    /// The document with `value` at this place; objects on the way there are made if need be.
    ///
    /// # Errors
    /// When something on the way there is not an object.
    pub fn insert(&self, document: Value, value: Value) -> Result<Value, String> {
        let Some((last, parents)) = self.0.split_last() else { return Ok(value) };
        let mut document = document;
        let mut place = &mut document;
        for name in parents {
            let object = place.as_object_mut().ok_or_else(|| self.no_object(name))?;
            place = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
        }
        place.as_object_mut().ok_or_else(|| self.no_object(last))?.insert(last.clone(), value);
        Ok(document)
    }

    fn no_object(&self, name: &str) -> String {
        format!("cannot write to `{self}`: what should hold `{name}` is not an object")
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("$")?;
        self.0.iter().try_for_each(|name| write!(f, ".{name}"))
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(text: &str) -> Path {
        Path::parse(text).unwrap()
    }

    #[test]
    fn other_forms_are_refused() {
        for text in ["", "a", "$a", "$.", "$..a", "$.a.", "$.a b", "$$.a", "$.a[0]", "$['a']", "$.*", "$.a-b", "$.ä"] {
            let error = Path::parse(text).unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn values_are_found_where_they_are() {
        let document = json!({"a": {"b": 1, "n": null}});
        assert_eq!(path("$").find(&document), Some(&document));
        assert_eq!(path("$.a.b").find(&document), Some(&json!(1)));
        assert_eq!(path("$.a.n").find(&document), Some(&Value::Null));
        assert_eq!(path("$.a.c").find(&document), None);
        assert_eq!(path("$.a.b.c").find(&document), None);
    }

    #[test]
    fn inserting_replaces_or_makes_the_way() {
        assert_eq!(path("$").insert(json!({"a": 1}), json!(2)), Ok(json!(2)));
        assert_eq!(path("$.a").insert(json!({"a": 1, "b": 2}), json!(3)), Ok(json!({"a": 3, "b": 2})));
        assert_eq!(path("$.x.y").insert(json!({"a": 1}), json!(3)), Ok(json!({"a": 1, "x": {"y": 3}})));
    }

    #[test]
    fn inserting_below_what_is_no_object_fails() {
        for (at, document) in
            [("$.a", json!(1)), ("$.a.b", json!({"a": "text"})), ("$.a.b.c", json!({"a": {"b": null}}))]
        {
            let error = path(at).insert(document, json!(1)).unwrap_err();
            assert!(error.contains(at), "{error}");
        }
    }
}
