//! Edits of JSON bodies that leave every other byte alone.
//!
//! Unknown fields, the spelling of numbers, the order of keys and the white space survive, because the body is never
//! turned into values and written again: the members in question are found by serde's own parser, and the bytes around
//! them are copied once. Only top-level members can be edited, and those of `stream_options`.

mod shape;

use std::fmt;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

pub use self::shape::{Added, RESERVED, Shape, Shaped};

/// What a request is to say about the chunk with the token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageRequest {
    /// What the caller said.
    AsIs,
    /// `stream_options.include_usage` becomes true; other stream options stay.
    Ask,
    /// `stream_options` goes as a whole, for providers that refuse it.
    Remove,
}

/// What happens to `"usage":null` in a chunk, which only callers that asked for usage expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NullUsage {
    /// It stays.
    Keep,
    /// The member goes.
    Drop,
}

/// Why a request cannot be edited. [`super::openai::peek_request`] refuses all of these before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The body is no JSON object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// There is no `model` to replace.
    #[error("the body has no model")]
    NoModel,
    /// A member to be edited is there more than once, so readers differ in which one counts.
    #[error("a member to be edited appears more than once")]
    Twice,
    /// `stream_options` is neither an object nor null.
    #[error("stream_options is not an object")]
    StreamOptions,
}

/// Replaces the value of the top-level member `key` by a string, wherever it appears; the key may be written with
/// escapes. `None` if the body is no JSON object or has no such member.
pub fn set_string(body: &Bytes, key: &str, value: &str) -> Option<Bytes> {
    let object = Object::read(body)?;
    let mut edits = Edits::new(body);
    let mut found = false;
    for member in object.named(key) {
        edits.set_string(member, value);
        found = true;
    }
    found.then(|| edits.apply())
}

/// Puts `value` where `span` of `body` holds the inside of a string. `None` if `value` would need escapes, or the span is
/// none of the body's. The body is copied once, or not at all if it says that already.
pub fn splice_plain(body: &Bytes, span: Range<usize>, value: &str) -> Option<Bytes> {
    let (before, after) = (body.get(..span.start)?, body.get(span.end..)?);
    if body.get(span)? == value.as_bytes() {
        return Some(body.clone());
    }
    is_plain(value).then(|| Bytes::from([before, value.as_bytes(), after].concat()))
}

/// As [`splice_plain`], as three pieces of which the long ones are parts of `body`: for bodies that are costly to copy.
pub fn splice_pieces(body: &Bytes, span: Range<usize>, value: &str) -> Option<[Bytes; 3]> {
    if !is_plain(value) || span.start > span.end || span.end > body.len() {
        return None;
    }
    Some([body.slice(..span.start), Bytes::copy_from_slice(value.as_bytes()), body.slice(span.end..)])
}

/// Means itself within the quotes of a JSON string.
fn is_plain(value: &str) -> bool {
    value.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\')
}

/// Makes a caller's request the provider's: its model name, and whether token counts are asked for. The body is copied
/// once, or not at all if it says all that already.
///
/// # Errors
///
/// When the body is no JSON object, lacks a model, or has a member to be edited twice or of the wrong type.
pub fn rewrite_request(body: &Bytes, model: &str, usage: UsageRequest) -> Result<Bytes, EditError> {
    let object = Object::read(body).ok_or(EditError::NotAnObject)?;
    let mut edits = Edits::new(body);
    edits.set_string(object.only("model")?.ok_or(EditError::NoModel)?, model);
    match usage {
        UsageRequest::AsIs => {}
        UsageRequest::Ask => ask_usage(&object, &mut edits)?,
        UsageRequest::Remove => {
            if let Some(member) = object.only("stream_options")? {
                edits.remove(&object, member);
            }
        }
    }
    Ok(edits.apply())
}

/// Makes a provider's chunk, or whole answer, the caller's. `None` if nothing changes, so that an event can leave as
/// the very bytes that came, and if `data` is no JSON object.
pub fn rewrite_chunk(data: &[u8], model: Option<&str>, usage: NullUsage) -> Option<Bytes> {
    if model.is_none() && usage == NullUsage::Keep {
        return None;
    }
    let object = Object::read(data)?;
    let mut edits = Edits { body: data, whole: None, list: Vec::new() };
    for member in model.iter().flat_map(|_| object.named("model")) {
        edits.set_string(member, model.unwrap_or_default());
    }
    if usage == NullUsage::Drop
        && let Ok(Some(member)) = object.only("usage")
        && member.text == "null"
    {
        edits.remove(&object, member);
    }
    (!edits.list.is_empty()).then(|| edits.apply())
}

fn ask_usage(object: &Object<'_>, edits: &mut Edits<'_>) -> Result<(), EditError> {
    const ASK: &str = r#""include_usage":true"#;
    let Some(member) = object.only("stream_options")? else {
        let text = format!(r#","stream_options":{{{ASK}}}"#);
        let end = object.members.last().map_or(0, |last| last.value.end);
        edits.put(end..end, text);
        return Ok(());
    };
    if member.text == "null" {
        edits.put(member.value.clone(), format!("{{{ASK}}}"));
        return Ok(());
    }
    let options = Object::read(member.text.as_bytes()).ok_or(EditError::StreamOptions)?;
    let start = member.value.start;
    match options.only("include_usage")? {
        Some(option) if option.text == "true" => {}
        Some(option) => edits.put(start + option.value.start..start + option.value.end, "true".to_owned()),
        None => {
            let comma = if options.members.is_empty() { "" } else { "," };
            edits.put(start + 1..start + 1, format!("{ASK}{comma}"));
        }
    }
    Ok(())
}

/// A JSON object's members and where they lie.
struct Object<'b> {
    members: Vec<Member<'b>>,
}

struct Member<'b> {
    /// The key as written, quotes included.
    name: &'b str,
    key: Range<usize>,
    /// The value as written.
    text: &'b str,
    value: Range<usize>,
}

impl<'b> Object<'b> {
    fn read(body: &'b [u8]) -> Option<Self> {
        let Members(pairs) = serde_json::from_str(std::str::from_utf8(body).ok()?).ok()?;
        // The texts are slices of the body, so the difference of the addresses is the position.
        let range = |text: &str| {
            let start = text.as_ptr().addr().checked_sub(body.as_ptr().addr())?;
            Some(start..start.checked_add(text.len())?)
        };
        let members = pairs.into_iter().map(|(key, value)| {
            let (name, text) = (key.get(), value.get());
            Some(Member { name, key: range(name)?, text, value: range(text)? })
        });
        Some(Self { members: members.collect::<Option<_>>()? })
    }

    fn named(&self, key: &str) -> impl Iterator<Item = &Member<'b>> {
        self.members.iter().filter(move |member| is_named(member.name, key))
    }

    fn only(&self, key: &str) -> Result<Option<&Member<'b>>, EditError> {
        let mut named = self.named(key);
        let first = named.next();
        if named.next().is_some() { Err(EditError::Twice) } else { Ok(first) }
    }
}

/// Compares a key as written with a decoded one.
fn is_named(written: &str, key: &str) -> bool {
    if written.contains('\\') {
        return serde_json::from_str::<String>(written).is_ok_and(|decoded| decoded == key);
    }
    written.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) == Some(key)
}

struct Members<'b>(Vec<(&'b RawValue, &'b RawValue)>);

impl<'b> Deserialize<'b> for Members<'b> {
    fn deserialize<D: Deserializer<'b>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(AnyMembers)
    }
}

struct AnyMembers;

impl<'b> Visitor<'b> for AnyMembers {
    type Value = Members<'b>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(16);
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
}

/// Replacements that do not overlap, to be made in one copy.
struct Edits<'b> {
    body: &'b [u8],
    /// The body again, if handing it out unchanged need not copy it.
    whole: Option<&'b Bytes>,
    list: Vec<(Range<usize>, String)>,
}

impl<'b> Edits<'b> {
    fn new(body: &'b Bytes) -> Self {
        Self { body, whole: Some(body), list: Vec::new() }
    }

    fn put(&mut self, at: Range<usize>, text: String) {
        self.list.push((at, text));
    }

    fn set_string(&mut self, member: &Member<'_>, value: &str) {
        // A string always serialises.
        let text = serde_json::to_string(value).unwrap_or_default();
        if text != member.text {
            self.put(member.value.clone(), text);
        }
    }

    /// Removes a member with the comma before it, or if it is the first, the comma after it.
    fn remove(&mut self, object: &Object<'_>, member: &Member<'_>) {
        let before = object.members.iter().rev().find(|other| other.value.end <= member.key.start);
        let after = object.members.iter().find(|other| other.key.start >= member.value.end);
        let range = match (before, after) {
            (Some(before), _) => before.value.end..member.value.end,
            (None, Some(after)) => member.key.start..after.key.start,
            (None, None) => member.key.start..member.value.end,
        };
        self.put(range, String::new());
    }

    fn apply(mut self) -> Bytes {
        if let (true, Some(whole)) = (self.list.is_empty(), self.whole) {
            return whole.clone();
        }
        self.list.sort_by_key(|(at, _)| at.start);
        let added: usize = self.list.iter().map(|(_, text)| text.len()).sum();
        let mut edited = BytesMut::with_capacity(self.body.len() + added);
        let mut done = 0;
        for (at, text) in &self.list {
            edited.put_slice(self.body.get(done..at.start).unwrap_or_default());
            edited.put_slice(text.as_bytes());
            done = at.end;
        }
        edited.put_slice(self.body.get(done..).unwrap_or_default());
        edited.freeze()
    }
}

#[cfg(test)]
mod tests;
