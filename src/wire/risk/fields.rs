//! Reads the fields of one object and remembers every mistake on the way.
//!
//! It knows how fields can be wrong, not which fields there are.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::value::RawValue;

use crate::wire::object::{Object, text};

/// Most mistakes named in one answer, so that a hostile body cannot order a huge one.
const MOST_ERRORS: usize = 100;
/// Longest name of an unknown field that is repeated.
const LONGEST_SHOWN_NAME: usize = 40;
/// More digits than this in a field's name could be a card number.
const MOST_SHOWN_DIGITS: usize = 8;

/// One bad field of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FieldError {
    /// Where, as an RFC 6901 pointer; empty for the whole body.
    pub pointer: String,
    /// What to do about it. Never holds a value of the request.
    pub message: String,
    /// What kind of mistake.
    pub kind: FieldErrorKind,
}

/// What kind of mistake a [`FieldError`] is; decides between 400 and 422.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldErrorKind {
    /// Missing, of the wrong type or form, too long.
    Malformed,
    /// Well formed, but no currency or country we know.
    Unknown,
}

/// Why one value is wrong.
pub(super) struct Complaint {
    message: Cow<'static, str>,
    kind: FieldErrorKind,
}

impl Complaint {
    pub(super) fn malformed(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), kind: FieldErrorKind::Malformed }
    }

    pub(super) fn unknown(message: &'static str) -> Self {
        Self { message: message.into(), kind: FieldErrorKind::Unknown }
    }
}

/// The mistakes found so far.
#[derive(Default)]
pub(super) struct Mistakes {
    found: Vec<FieldError>,
    unnamed: usize,
}

impl Mistakes {
    pub(super) fn add(&mut self, pointer: impl Into<String>, complaint: Complaint) {
        if self.found.len() == MOST_ERRORS {
            self.unnamed += 1;
            return;
        }
        let Complaint { message, kind } = complaint;
        self.found.push(FieldError { pointer: pointer.into(), message: message.into_owned(), kind });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn into_list(mut self) -> Vec<FieldError> {
        if self.unnamed > 0 {
            let message = format!("has {} more mistakes that are not listed", self.unnamed);
            self.found.push(FieldError { pointer: String::new(), message, kind: FieldErrorKind::Malformed });
        }
        self.found
    }
}

/// Where the fields of a [`Section`] come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// An object, or nothing at all: required fields are asked for.
    Read,
    /// Something else, already complained about: what it lacks is not a mistake of its own.
    Broken,
}

/// One object of the request and where it is.
pub(super) struct Section<'a> {
    pointer: String,
    object: Object<'a>,
    origin: Origin,
}

impl<'a> Section<'a> {
    /// The whole body; complains about every key that is not `known` or comes twice.
    pub(super) fn root(object: Object<'a>, known: &[&str], mistakes: &mut Mistakes) -> Self {
        Self { pointer: String::new(), object, origin: Origin::Read }.checked(known, mistakes)
    }

    /// An object inside this one; empty if it is absent or no object.
    pub(super) fn section(&self, name: &str, known: &[&str], mistakes: &mut Mistakes) -> Self {
        let pointer = self.pointer_to(name);
        let (object, origin) = match self.object.get(name).map(Object::of) {
            None => (Object::default(), self.origin),
            Some(Ok(object)) => (object, Origin::Read),
            Some(Err(err)) => {
                mistakes.add(pointer.as_str(), Complaint::malformed(err.to_string()));
                (Object::default(), Origin::Broken)
            }
        };
        Self { pointer, object, origin }.checked(known, mistakes)
    }

    fn checked(self, known: &[&str], mistakes: &mut Mistakes) -> Self {
        if self.object.is_plain(known) {
            return self;
        }
        let unknown: BTreeSet<&str> = self.object.keys().filter(|key| !known.contains(key)).collect();
        for name in unknown.iter().filter(|name| is_showable(name)) {
            mistakes.add(self.pointer_to(name), Complaint::malformed("is not a known field"));
        }
        if !unknown.into_iter().all(is_showable) {
            let message = "has fields that are not known and whose names are not repeated here";
            mistakes.add(self.pointer.as_str(), Complaint::malformed(message));
        }
        for name in self.object.repeated().into_iter().filter(|name| known.contains(name)) {
            mistakes.add(self.pointer_to(name), Complaint::malformed("must be there only once"));
        }
        self
    }

    /// Where a field of this object is. `name` must not need escaping, which plain identifiers do not.
    pub(super) fn pointer_to(&self, name: &str) -> String {
        [self.pointer.as_str(), "/", name].concat()
    }

    /// The raw value of a field; `null` counts as absent.
    pub(super) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.object.get(name)
    }

    /// A field that may be absent, as `rule` reads it.
    pub(super) fn optional<T>(
        &self,
        name: &str,
        rule: impl FnOnce(String) -> Result<T, Complaint>,
        mistakes: &mut Mistakes,
    ) -> Option<T> {
        let read = text(self.raw(name)?).ok_or(Complaint::malformed("must be a string")).and_then(rule);
        read.map_err(|complaint| mistakes.add(self.pointer_to(name), complaint)).ok()
    }

    /// A field that must be there, as `rule` reads it.
    pub(super) fn required<T>(
        &self,
        name: &str,
        rule: impl FnOnce(String) -> Result<T, Complaint>,
        mistakes: &mut Mistakes,
    ) -> Option<T> {
        if self.raw(name).is_none() && self.origin == Origin::Read {
            mistakes.add(self.pointer_to(name), Complaint::malformed("is required"));
        }
        self.optional(name, rule, mistakes)
    }
}

/// True if a field's name is plain and cannot itself be the secret: a card number can be sent as a key, too.
fn is_showable(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let starts_as_a_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let digits = name.bytes().filter(u8::is_ascii_digit).count();
    plain && starts_as_a_name && name.len() <= LONGEST_SHOWN_NAME && digits <= MOST_SHOWN_DIGITS
}
