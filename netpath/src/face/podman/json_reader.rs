//! Fields of JSON documents: lossless to read and write, checked when they are converted.
//!
//! Deserialising a document never fails on the type of a field: a value of another type stays in its [`Field`]. A
//! [`Node`] is a value with its path; reading a field of it records the field's mistakes, so that one pass over a
//! document finds all of them.

use indexmap::IndexMap;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::cell::RefCell;
use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::str::FromStr;

/// Number of mistakes reported for one document; the engine reads a pipe of bounded size.
const REPORTED: usize = 10;
/// Maximum length of one mistake, in characters.
const LONGEST: usize = 400;
/// Quoted characters of a wrong value.
const QUOTED: usize = 60;

/// The value of a document under a key.
#[derive(Clone, PartialEq, Default, Debug)]
pub(super) enum Field<T, const REQUIRED: bool> {
    #[default]
    Absent,
    Is(T),
    /// A value of another type, `null` among them.
    Other(Value),
}

/// A field that a document must have.
pub(super) type Required<T> = Field<T, true>;
/// A field that may be absent or `null`.
pub(super) type Optional<T> = Field<T, false>;
pub(super) type List<T> = Vec<Required<T>>;
/// Keys in the order of the document.
pub(super) type Map<T> = IndexMap<String, Required<T>>;

impl<T, const REQUIRED: bool> Field<T, REQUIRED> {
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Field::Absent)
    }

    /// Neither absent nor `null`.
    pub(super) fn is_given(&self) -> bool {
        !matches!(self, Field::Absent | Field::Other(Value::Null))
    }
}

impl<'de, T: Typed, const REQUIRED: bool> Deserialize<'de> for Field<T, REQUIRED> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor(PhantomData))
    }
}

/// Decides by the type of the value, so that lists and objects are deserialised in place.
struct FieldVisitor<T, const REQUIRED: bool>(PhantomData<T>);

impl<T: Typed, const REQUIRED: bool> FieldVisitor<T, REQUIRED> {
    /// `empty`: an empty value of the type of `found`.
    fn field<'de, D: Deserializer<'de>>(empty: &Value, found: D) -> Result<Field<T, REQUIRED>, D::Error> {
        if T::TYPE.holds(empty) {
            T::deserialize(found).map(Field::Is)
        } else {
            Value::deserialize(found).map(Field::Other)
        }
    }

    fn scalar<E: Error>(value: Value) -> Result<Field<T, REQUIRED>, E> {
        if T::TYPE.holds(&value) {
            T::deserialize(value).map(Field::Is).map_err(E::custom)
        } else {
            Ok(Field::Other(value))
        }
    }
}

macro_rules! scalars {
    ($($visit:ident($type:ty))*) => {$(
        fn $visit<E: Error>(self, value: $type) -> Result<Self::Value, E> {
            Self::scalar(value.into())
        }
    )*};
}

impl<'de, T: Typed, const REQUIRED: bool> Visitor<'de> for FieldVisitor<T, REQUIRED> {
    type Value = Field<T, REQUIRED>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::TYPE.fmt(f)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Self::field(&Value::Array(Vec::new()), SeqAccessDeserializer::new(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Self::Value, A::Error> {
        Self::field(&Value::Object(serde_json::Map::new()), MapAccessDeserializer::new(object))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Self::scalar(Value::Null)
    }

    scalars! { visit_bool(bool) visit_u64(u64) visit_i64(i64) visit_f64(f64) visit_str(&str) visit_string(String) }
}

impl<T: Serialize, const REQUIRED: bool> Serialize for Field<T, REQUIRED> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Field::Absent => serializer.serialize_none(),
            Field::Is(value) => value.serialize(serializer),
            Field::Other(value) => value.serialize(serializer),
        }
    }
}

/// The JSON type of a field's value.
#[derive(Clone, Copy)]
pub(super) enum Type {
    Text,
    Flag,
    /// A whole number from 0 to this maximum.
    Number(u64),
    List,
    Object,
    ListOrObject,
}

impl Type {
    fn holds(self, value: &Value) -> bool {
        match self {
            Type::Text => value.is_string(),
            Type::Flag => value.is_boolean(),
            Type::Number(max) => value.as_u64().is_some_and(|n| n <= max),
            Type::List => value.is_array(),
            Type::Object => value.is_object(),
            Type::ListOrObject => value.is_array() || value.is_object(),
        }
    }
}

impl Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Text => f.write_str("a string"),
            Type::Flag => f.write_str("true or false"),
            Type::Number(max) => write!(f, "a whole number from 0 to {max}"),
            Type::List => f.write_str("a list"),
            Type::Object | Type::ListOrObject => f.write_str("an object"),
        }
    }
}

/// Deserialises from every value of its JSON type.
pub(super) trait Typed: DeserializeOwned {
    const TYPE: Type;
}

impl Typed for String {
    const TYPE: Type = Type::Text;
}

impl Typed for bool {
    const TYPE: Type = Type::Flag;
}

impl Typed for u16 {
    const TYPE: Type = Type::Number(u16::MAX as u64);
}

impl Typed for u32 {
    const TYPE: Type = Type::Number(u32::MAX as u64);
}

impl<T: Typed> Typed for List<T> {
    const TYPE: Type = Type::List;
}

impl<T: Typed> Typed for Map<T> {
    const TYPE: Type = Type::Object;
}

/// The mistakes found so far.
#[derive(Default)]
pub(super) struct Mistakes(RefCell<Vec<String>>);

impl Mistakes {
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    pub(super) fn report(&self) -> String {
        let all = self.0.borrow();
        let mut text = all.iter().take(REPORTED).cloned().collect::<Vec<_>>().join("; ");
        if all.len() > REPORTED {
            text += &format!("; and {} more", all.len() - REPORTED);
        }
        text
    }
}

/// A value and its path in the document.
#[derive(Clone)]
pub(super) struct Node<'a, T> {
    path: String,
    pub value: &'a T,
    mistakes: &'a Mistakes,
}

impl<'a, T> Node<'a, T> {
    pub(super) fn root(value: &'a T, mistakes: &'a Mistakes) -> Self {
        Self { path: String::new(), value, mistakes }
    }

    /// Records a mistake in this value.
    pub(super) fn wrong(&self, text: impl Display) {
        let path = if self.path.is_empty() { "the document" } else { &self.path };
        let mut mistake = format!("{path}: {text}");
        if mistake.len() > LONGEST {
            mistake = format!("{}…", mistake.chars().take(LONGEST).collect::<String>());
        }
        self.mistakes.0.borrow_mut().push(mistake);
    }

    /// Another value at the same path.
    pub(super) fn with<U>(&self, value: &'a U) -> Node<'a, U> {
        self.at(self.path.clone(), value)
    }

    /// A value under `key` of this one.
    pub(super) fn below<U>(&self, key: &str, value: &'a U) -> Node<'a, U> {
        let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        // A long key would leave no room for the mistake itself.
        let key = if plain { cut(key) } else { format!("{:?}", cut(key)) };
        self.at(if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }, value)
    }

    fn at<U>(&self, path: String, value: &'a U) -> Node<'a, U> {
        Node { path, value, mistakes: self.mistakes }
    }
}

impl<'a, T: Typed, const REQUIRED: bool> Node<'a, Field<T, REQUIRED>> {
    /// The value, if it has the right type. Everything else is a mistake, except an absent optional value.
    pub(super) fn get(self) -> Option<Node<'a, T>> {
        match self.value {
            Field::Is(value) => return Some(self.with(value)),
            Field::Absent if REQUIRED => self.wrong("it is missing"),
            Field::Other(value) if REQUIRED || !value.is_null() => {
                self.wrong(format!("expected {}, found {}", T::TYPE, quoted(value)));
            }
            Field::Absent | Field::Other(_) => {}
        }
        None
    }
}

impl<'a, T> Node<'a, List<T>> {
    pub(super) fn fields(self) -> impl Iterator<Item = Node<'a, Required<T>>> {
        let list = self.value.iter().enumerate();
        list.map(move |(i, field)| self.at(format!("{}[{i}]", self.path), field))
    }
}

/// The items of a list that may be absent. Items of a wrong type are mistakes.
pub(super) fn items<'a, T: Typed>(list: Option<Node<'a, List<T>>>) -> impl Iterator<Item = Node<'a, T>> {
    list.into_iter().flat_map(Node::fields).filter_map(Node::get)
}

/// Keys and values of a map that may be absent.
pub(super) fn entries<'a, T>(map: Option<Node<'a, Map<T>>>) -> impl Iterator<Item = (&'a str, Node<'a, Required<T>>)> {
    map.into_iter().flat_map(|map| map.value.iter().map(move |(key, value)| (key.as_str(), map.below(key, value))))
}

impl<'a, T> Node<'a, Map<T>> {
    /// The value under a key; `null` is absent.
    pub(super) fn find(&self, key: &str) -> Option<Node<'a, Required<T>>> {
        self.value.get(key).filter(|v| v.is_given()).map(|v| self.below(key, v))
    }
}

impl<'a> Node<'a, String> {
    pub(super) fn text(&self) -> &'a str {
        self.value
    }

    pub(super) fn non_empty(&self) -> Option<&'a str> {
        if self.value.is_empty() {
            self.wrong("it is empty");
            return None;
        }
        Some(self.value)
    }

    /// Parses the string. Mistakes read `"10.89.0.300" is not an IP address: invalid IP address syntax`, with `expected` before the
    /// parser's own text.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&self, expected: &str) -> Option<T> {
        self.value.parse().map_err(|e| self.wrong(format!("{:?} is not {expected}: {e}", cut(self.value)))).ok()
    }

    /// As [`Node::parsed`], for types whose own error is a complete message.
    pub(super) fn checked<T: FromStr<Err = String>>(&self) -> Option<T> {
        self.value.parse().map_err(|e: String| self.wrong(e)).ok()
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

/// Shortens a text for a message.
pub(super) fn cut(text: &str) -> String {
    if text.len() <= QUOTED {
        return text.to_owned();
    }
    let kept: String = text.chars().take(QUOTED).collect();
    format!("{kept}…")
}
