//! JSON as templates see it: keys keep their order.

use std::fmt;
use std::str::FromStr;

use minijinja::Value;
use minijinja::value::{Kwargs, ValueKind};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::python;
use crate::error::{Error, Result};

/// A JSON value whose objects keep the order of their keys, since templates write them out in it.
///
/// # Examples
///
/// ```
/// use trueshot::Json;
///
/// let arguments: Json = r#"{"city": "Paris", "days": 3}"#.parse()?;
/// assert_eq!(arguments.to_string(), r#"{"city": "Paris", "days": 3}"#);
/// assert_eq!(Json::new(&[1, 2])?.to_string(), "[1, 2]");
/// # Ok::<(), trueshot::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json(Value);

impl Json {
    /// The JSON of anything that can be serialised.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for what JSON does not have: a map whose keys are no text.
    pub fn new(value: &impl Serialize) -> Result<Json> {
        serde_json::to_string(value).map_err(invalid)?.parse()
    }

    /// The object that a text spells.
    pub(super) fn of_text(&self) -> Option<Json> {
        let json: Json = self.0.as_str()?.parse().ok()?;
        (json.0.kind() == ValueKind::Map).then_some(json)
    }

    /// The same value with each text, keys too, replaced by what `change` makes of it.
    pub(super) fn map_text(&self, change: &mut impl FnMut(&str) -> String) -> Json {
        Json(map_text(&self.0, change))
    }
}

fn map_text(value: &Value, change: &mut impl FnMut(&str) -> String) -> Value {
    let items = || value.try_iter().into_iter().flatten();
    match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => change(text).into(),
        (ValueKind::Seq, _) => items().map(|item| map_text(&item, change)).collect(),
        (ValueKind::Map, _) => {
            let entries = items().map(|key| {
                let item = value.get_item(&key).unwrap_or_default();
                (map_text(&key, change), map_text(&item, change))
            });
            Value::from_pairs(entries.collect::<Vec<_>>())
        }
        _ => value.clone(),
    }
}

fn invalid(error: serde_json::Error) -> Error {
    Error::InvalidArgument {
        name: "json",
        message: error.to_string(),
    }
}

impl FromStr for Json {
    type Err = Error;

    fn from_str(text: &str) -> Result<Json> {
        serde_json::from_str(text).map_err(invalid)
    }
}

/// As Python's `json.dumps` writes it.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = python::tojson(&self.0, Kwargs::from_iter([] as [(&str, Value); 0]))
            .map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        Value::deserialize(deserializer).map(Json)
    }
}

macro_rules! json_from {
    ($($type:ty),*) => {$(
        impl From<$type> for Json {
            fn from(value: $type) -> Json {
                Json(value.into())
            }
        }
    )*};
}

json_from!(bool, i64, u64, f64, &str, String);
