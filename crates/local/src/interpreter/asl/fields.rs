//! The members of one object of a definition: each is taken once, and what is left over is refused by name.

use serde_json::{Map, Value};

use super::AslError;
use crate::interpreter::path::Path;

/// An object of a definition, and where it stands.
pub(super) struct Fields {
    place: String,
    members: Map<String, Value>,
}

impl Fields {
    pub(super) fn new(place: impl Into<String>, value: Value) -> Result<Self, AslError> {
        let place = place.into();
        match value {
            Value::Object(members) => Ok(Self { place, members }),
            _ => Err(AslError::new(place, "must be an object")),
        }
    }

    pub(super) fn error(&self, field: &str, why: impl std::fmt::Display) -> AslError {
        AslError::new(self.place.clone(), format!("field `{field}`: {why}"))
    }

    pub(super) fn value(&mut self, field: &str) -> Option<Value> {
        self.members.remove(field)
    }

    pub(super) fn required(&mut self, field: &str) -> Result<Value, AslError> {
        self.value(field).ok_or_else(|| self.error(field, "is missing"))
    }

    pub(super) fn text(&mut self, field: &str) -> Result<Option<String>, AslError> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(field, "must be a string")),
        }
    }

    pub(super) fn required_text(&mut self, field: &str) -> Result<String, AslError> {
        self.text(field)?.ok_or_else(|| self.error(field, "is missing"))
    }

    pub(super) fn flag(&mut self, field: &str) -> Result<Option<bool>, AslError> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.error(field, "must be true or false")),
        }
    }

    pub(super) fn integer(&mut self, field: &str, least: u64, most: u64) -> Result<Option<u64>, AslError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(self.error(field, format!("must be an integer from {least} to {most}"))),
        }
    }

    /// A number of at least 1.
    pub(super) fn rate(&mut self, field: &str) -> Result<Option<f64>, AslError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        match value.as_f64() {
            Some(rate) if rate >= 1.0 && rate.is_finite() => Ok(Some(rate)),
            _ => Err(self.error(field, "must be a number of at least 1.0")),
        }
    }

    pub(super) fn path(&mut self, field: &str) -> Result<Option<Path>, AslError> {
        let Some(text) = self.text(field)? else { return Ok(None) };
        Path::parse(&text).map(Some).map_err(|why| self.error(field, why))
    }

    pub(super) fn list(&mut self, field: &str) -> Result<Option<Vec<Value>>, AslError> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Array(values)) if !values.is_empty() => Ok(Some(values)),
            Some(_) => Err(self.error(field, "must be a list with at least one element")),
        }
    }

    /// A member that is an object, knowing its place.
    pub(super) fn object(&mut self, field: &str) -> Result<Self, AslError> {
        let value = self.required(field)?;
        Self::new(format!("{}, {field}", self.place), value)
    }

    /// The elements of a list of objects, each knowing its place.
    pub(super) fn objects(&mut self, field: &str) -> Result<Vec<Self>, AslError> {
        let values = self.list(field)?.unwrap_or_default();
        let place = |index| format!("{}, {field}[{index}]", self.place);
        values.into_iter().enumerate().map(|(index, value)| Self::new(place(index), value)).collect()
    }

    /// Refuses what nobody took. A `Comment` may stand anywhere.
    pub(super) fn finish(mut self) -> Result<(), AslError> {
        self.text("Comment")?;
        match self.members.keys().next() {
            None => Ok(()),
            Some(field) => Err(self.error(field, "is not supported here")),
        }
    }
}
