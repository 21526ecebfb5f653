//! A JSON document read with every mistake noted, each with the path of its field.

use serde_json::{Map, Value};
use std::cell::RefCell;
use std::fmt::Display;
use std::str::FromStr;

/// Mistakes told of one document; more would not help its writer, and the engine reads a pipe of bounded size.
const TOLD: usize = 10;
/// Bytes of one mistake.
const LONGEST: usize = 400;
/// Bytes of a wrong value that are quoted.
const QUOTED: usize = 60;

/// The mistakes found so far.
#[derive(Default)]
pub struct Mistakes(RefCell<Vec<String>>);

impl Mistakes {
    pub fn note(&self, path: &str, text: impl Display) {
        let mut mistake = format!("{path}: {text}");
        if mistake.len() > LONGEST {
            mistake = format!("{}…", mistake.chars().take(LONGEST).collect::<String>());
        }
        self.0.borrow_mut().push(mistake);
    }

    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    pub fn told(&self) -> String {
        let all = self.0.borrow();
        let mut text = all.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
        if all.len() > TOLD {
            text += &format!("; and {} more", all.len() - TOLD);
        }
        text
    }
}

/// A value and where it stands.
#[derive(Clone)]
pub struct Node<'a> {
    pub path: String,
    value: &'a Value,
    mistakes: &'a Mistakes,
}

impl<'a> Node<'a> {
    pub fn root(value: &'a Value, mistakes: &'a Mistakes) -> Self {
        Self { path: String::new(), value, mistakes }
    }

    /// Notes a mistake about this value.
    pub fn wrong(&self, text: impl Display) {
        self.mistakes.note(if self.path.is_empty() { "the document" } else { &self.path }, text);
    }

    fn expected(&self, what: &str) {
        self.wrong(format!("expected {what}, found {}", quoted(self.value)));
    }

    fn below(&self, key: &str, value: &'a Value) -> Self {
        let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        // Cut, as the mistake would be cut behind it.
        let key = if plain { cut(key) } else { format!("{:?}", cut(key)) };
        let path = if self.path.is_empty() { key } else { format!("{}.{key}", self.path) };
        Self { path, value, mistakes: self.mistakes }
    }

    fn map(&self) -> Option<&'a Map<String, Value>> {
        if let Value::Object(map) = self.value {
            return Some(map);
        }
        self.expected("an object");
        None
    }

    /// A field that may be absent; `null` is absent.
    pub fn opt(&self, key: &str) -> Option<Self> {
        self.map()?.get(key).filter(|v| !v.is_null()).map(|v| self.below(key, v))
    }

    /// A field that must be there.
    pub fn req(&self, key: &str) -> Option<Self> {
        let found = self.map()?.get(key).map(|v| self.below(key, v));
        if found.is_none() {
            self.below(key, self.value).wrong("it is missing");
        }
        found
    }

    /// Whether it is one; if not, that is noted.
    pub fn is_object(&self) -> bool {
        self.map().is_some()
    }

    pub fn is_array(&self) -> bool {
        self.value.is_array()
    }

    /// Keys and values in the order of the document.
    pub fn entries(&self) -> Vec<(&'a str, Self)> {
        let Some(map) = self.map() else { return Vec::new() };
        map.iter().map(|(k, v)| (k.as_str(), self.below(k, v))).collect()
    }

    pub fn items(&self) -> Vec<Self> {
        let Value::Array(items) = self.value else {
            self.expected("a list");
            return Vec::new();
        };
        let at = |i| format!("{}[{i}]", self.path);
        items.iter().enumerate().map(|(i, value)| Self { path: at(i), value, mistakes: self.mistakes }).collect()
    }

    /// The items of a list that may be absent.
    pub fn list(&self, key: &str) -> Vec<Self> {
        self.opt(key).map(|n| n.items()).unwrap_or_default()
    }

    pub fn text(&self) -> Option<&'a str> {
        if let Value::String(text) = self.value {
            return Some(text);
        }
        self.expected("a string");
        None
    }

    pub fn bool(&self) -> Option<bool> {
        if let Value::Bool(b) = self.value {
            return Some(*b);
        }
        self.expected("true or false");
        None
    }

    pub fn number<T: TryFrom<u64> + Display>(&self, most: T) -> Option<T> {
        let found = self.value.as_u64().and_then(|n| T::try_from(n).ok());
        if found.is_none() {
            self.expected(&format!("a whole number from 0 to {most}"));
        }
        found
    }

    /// A string that means something: `"10.89.0.300" is not an IP address`.
    pub fn parsed<T: FromStr>(&self, what: &str) -> Option<T> {
        let text = self.text()?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.wrong(format!("{:?} is not {what}", cut(text)));
        }
        parsed
    }

    /// As [`Node::parsed`], for types whose error says all.
    pub fn checked<T: FromStr<Err = String>>(&self) -> Option<T> {
        self.text()?.parse().map_err(|e: String| self.wrong(e)).ok()
    }
}

fn quoted(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => format!("{:?}", cut(text)),
        other => cut(&other.to_string()),
    }
}

/// As much of a text as is quoted.
pub fn cut(text: &str) -> String {
    if text.len() <= QUOTED {
        return text.to_owned();
    }
    let kept: String = text.chars().take(QUOTED).collect();
    format!("{kept}…")
}
