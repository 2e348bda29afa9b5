//! JSON objects read strictly, one level at a time.
//!
//! serde's own maps let a later key replace an earlier one and hide how deep a value is; where money is decided neither
//! may be left to chance. Values stay raw here, so a number keeps its own spelling. It deliberately does not say which
//! keys are allowed: each format does.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// How deep arrays and objects may be nested, the outermost included.
pub const DEEPEST: usize = 64;

/// Why bytes are not an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ObjectError {
    /// Not UTF-8 or not JSON.
    #[error("must be JSON in UTF-8")]
    NotJson,
    /// JSON, but an array, a text, a number.
    #[error("must be a JSON object")]
    NotAnObject,
    /// More than [`DEEPEST`] levels.
    #[error("must be nested at most 64 levels deep")]
    TooDeep,
}

/// One level of an object: its keys and raw values as they came, repeated keys included.
#[derive(Default)]
pub struct Object<'a> {
    entries: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Object<'a> {
    /// Reads a whole body.
    ///
    /// # Errors
    /// [`ObjectError`] if it is anything but one JSON object of at most [`DEEPEST`] levels.
    pub fn read(body: &'a [u8]) -> Result<Self, ObjectError> {
        let text = simdutf8::basic::from_utf8(body).map_err(|_| ObjectError::NotJson)?;
        if is_too_deep(body) {
            return Err(ObjectError::TooDeep);
        }
        if text.trim_ascii_start().starts_with('{') {
            return serde_json::from_str(text).map_err(|_| ObjectError::NotJson);
        }
        let other: Result<&RawValue, _> = serde_json::from_str(text);
        Err(other.map_or(ObjectError::NotJson, |_| ObjectError::NotAnObject))
    }

    /// Reads a value found inside another object.
    ///
    /// # Errors
    /// [`ObjectError`] as for [`Object::read`].
    pub fn of(value: &'a RawValue) -> Result<Self, ObjectError> {
        if !value.get().starts_with('{') {
            return Err(ObjectError::NotAnObject);
        }
        serde_json::from_str(value.get()).map_err(|_| ObjectError::NotJson)
    }

    /// The first value of a key; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a RawValue> {
        let value = self.entries.iter().find(|(name, _)| name == key).map(|(_, value)| *value);
        value.filter(|value| value.get() != "null")
    }

    /// Every key with its raw value, in the order they came, repeated keys and nulls included.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.entries.iter().map(|(key, value)| (key.as_ref(), *value))
    }

    /// Every key as it came.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.as_ref())
    }

    /// True if every key is one of `known` and comes once: then nobody need ask which do not.
    pub fn is_plain(&self, known: &[&str]) -> bool {
        let mut seen = 0u64;
        self.keys().all(|key| {
            let place = known.iter().position(|name| *name == key).filter(|place| *place < 64);
            place.is_some_and(|place| {
                let first = seen & (1 << place) == 0;
                seen |= 1 << place;
                first
            })
        })
    }

    /// Every key that came more than once, each named once.
    pub fn repeated(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.keys().collect();
        keys.sort_unstable();
        let mut repeated: Vec<&str> =
            keys.iter().zip(keys.iter().skip(1)).filter(|(a, b)| a == b).map(|(a, _)| *a).collect();
        repeated.dedup();
        repeated
    }
}

/// A value as text, `None` if it is no string of valid Unicode.
pub fn text(value: &RawValue) -> Option<String> {
    // A raw value is valid JSON: a text without escapes is what lies between its quotes.
    if let Some(plain) = value.get().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'))
        && !plain.contains('\\')
    {
        return Some(plain.to_owned());
    }
    serde_json::from_str(value.get()).ok()
}

/// Counts levels without reading values: a parser that skips a value does not limit how deep it is.
fn is_too_deep(body: &[u8]) -> bool {
    // Nearly always there are not as many brackets, wherever they are.
    if body.iter().filter(|byte| matches!(byte, b'{' | b'[')).count() <= DEEPEST {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return true;
        }
    }
    false
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut object = Object::default();
                while let Some((Key(key), value)) = map.next_entry()? {
                    object.entries.push((key, value));
                }
                Ok(object)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// A key as it lies in the body, or spelled out if it was escaped.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn repeated_keys_are_found_however_they_are_spelled() {
        let object = Object::read(br#"{"a":1,"b":2,"\u0061":3,"a":4}"#).unwrap();
        assert_eq!(object.repeated(), ["a"]);
        assert_eq!(object.get("a").unwrap().get(), "1");
    }

    #[test]
    fn plain_is_what_has_only_known_keys_and_each_once() {
        let plain = |body: &str| Object::read(body.as_bytes()).unwrap().is_plain(&["a", "b"]);
        assert!(plain("{}") && plain(r#"{"b":1,"a":2}"#) && plain(r#"{"\u0061":1}"#));
        assert!(!plain(r#"{"a":1,"c":2}"#) && !plain(r#"{"a":1,"b":2,"\u0061":3}"#));
    }

    #[test]
    fn a_text_is_what_a_reader_of_json_makes_of_it() {
        let read =
            |spelled: &str| Object::read(format!(r#"{{"a":{spelled}}}"#).as_bytes()).unwrap().get("a").and_then(text);
        assert_eq!(read(r#""x é \u00e9 \" ""#).as_deref(), Some("x é é \" "));
        assert_eq!(read(r#""""#).as_deref(), Some(""));
        assert_eq!(read(r#""plain""#).as_deref(), Some("plain"));
        assert_eq!((read("1"), read("[]"), read(r#""\ud800""#)), (None, None, None));
    }

    #[test]
    fn numbers_keep_their_spelling_and_null_is_absent() {
        let object = Object::read(br#"{ "n" : 1.50E-1 , "x":null }"#).unwrap();
        assert_eq!(object.get("n").unwrap().get(), "1.50E-1");
        assert!(object.get("x").is_none());
    }

    #[test]
    fn depth_is_counted_outside_of_texts_only() {
        let nested = |levels: usize| format!("{}{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        let filled = |levels: usize| nested(levels).replacen(":}", ":1}", 1);
        assert!(Object::read(filled(64).as_bytes()).is_ok());
        assert_eq!(Object::read(filled(65).as_bytes()).err(), Some(ObjectError::TooDeep));
        assert!(Object::read(format!(r#"{{"a":"{}\"{}"}}"#, "[".repeat(99), "{".repeat(99)).as_bytes()).is_ok());
    }

    #[test]
    fn what_is_no_object_says_so() {
        for body in
            ["", " ", "nope", "{", "{}x", r#"{"a":}"#, r#"{'a':1}"#, "\u{feff}{}", r#"{"a":01}"#, r#"{"a":NaN}"#]
        {
            assert_eq!(Object::read(body.as_bytes()).err(), Some(ObjectError::NotJson), "{body:?}");
        }
        assert_eq!(Object::read(b"{\"a\":\"\xff\"}").err(), Some(ObjectError::NotJson));
        for body in ["[]", "1", "\"{}\"", "null", "true"] {
            assert_eq!(Object::read(body.as_bytes()).err(), Some(ObjectError::NotAnObject), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body: Vec<u8>) {
            let _ = Object::read(&body).map(|object| object.repeated().len());
        }

        #[test]
        fn no_text_like_json_makes_it_panic(body in r#"[\{\}\[\]":,\\a0-9\. eu]{0,60}"#) {
            let _ = Object::read(body.as_bytes()).map(|object| object.repeated().len());
        }
    }
}
