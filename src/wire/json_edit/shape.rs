//! What one provider needs changed in every request: members it wants, members under another name, members it refuses.
//!
//! Made once from a provider file, applied in the one copy that renaming the model takes anyway. The caller's own word
//! wins over a member the file would add, and what is left out is told.

use bytes::Bytes;

use super::{EditError, Edits, Object, UsageRequest, ask_usage};

/// Members a provider file may not touch: the proxy itself reads or writes them.
pub const RESERVED: [&str; 5] = ["model", "messages", "input", "stream", "stream_options"];

/// The changes, in the file's words.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Shape {
    /// Members to add, each with its value as JSON, or with members to add to the object that is there.
    pub add: Vec<(String, Added)>,
    /// Old name, new name.
    pub rename: Vec<(String, String)>,
    /// Members to leave out.
    pub drop: Vec<String>,
}

/// What is added under a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Added {
    /// This JSON text, if there is no such member.
    Value(String),
    /// These members of an object, each if it has none of that name.
    Members(Vec<(String, String)>),
}

/// A request in a provider's shape.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shaped {
    /// The body.
    pub body: Bytes,
    /// How many of [`Shape::drop`] were there, by their place in that list.
    pub dropped: Vec<usize>,
}

impl Shape {
    /// True if it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.rename.is_empty() && self.drop.is_empty()
    }

    /// As [`super::rewrite_request`], with these changes.
    ///
    /// # Errors
    ///
    /// As there; also when a member to be changed is there twice.
    pub fn apply(&self, body: &Bytes, model: &str, usage: UsageRequest) -> Result<Shaped, EditError> {
        let object = Object::read(body).ok_or(EditError::NotAnObject)?;
        let mut edits = Edits::new(body);
        edits.set_string(object.only("model")?.ok_or(EditError::NoModel)?, model);
        let mut gone = vec![false; object.members.len()];
        if usage == UsageRequest::Remove {
            leave_out(&object, "stream_options", &mut gone)?;
        }
        let mut dropped = Vec::new();
        for (index, name) in self.drop.iter().enumerate() {
            if leave_out(&object, name, &mut gone)? {
                dropped.push(index);
            }
        }
        for (old, new) in &self.rename {
            if object.only(new)?.is_some() {
                leave_out(&object, old, &mut gone)?;
            } else if let Some(member) = object.only(old)? {
                edits.put(member.key.clone(), json_text(new));
            }
        }
        remove_runs(&object, &gone, &mut edits);
        // After the removals: what is added at the end stands behind them, and edits of one place keep their order.
        if usage == UsageRequest::Ask {
            ask_usage(&object, &mut edits)?;
        }
        for (name, added) in &self.add {
            add(&object, name, added, &mut edits)?;
        }
        Ok(Shaped { body: edits.apply(), dropped })
    }
}

fn leave_out(object: &Object<'_>, name: &str, gone: &mut [bool]) -> Result<bool, EditError> {
    let Some(member) = object.only(name)? else { return Ok(false) };
    let place = object.members.iter().position(|other| other.key == member.key);
    if let Some(gone) = place.and_then(|place| gone.get_mut(place)) {
        *gone = true;
    }
    Ok(true)
}

/// Removes members with their commas, neighbours together: cut one by one, they would share a comma.
fn remove_runs(object: &Object<'_>, gone: &[bool], edits: &mut Edits<'_>) {
    let members = &object.members;
    let mut index = 0;
    while let Some(from) = (index..members.len()).find(|at| gone.get(*at) == Some(&true)) {
        let after = (from..members.len()).find(|at| gone.get(*at) != Some(&true));
        let before = from.checked_sub(1).and_then(|at| members.get(at));
        let first = members.get(from).map_or(0, |first| first.key.start);
        let last = members.get(after.unwrap_or(members.len()) - 1).map_or(first, |last| last.value.end);
        let range = match (before, after.and_then(|at| members.get(at))) {
            (Some(before), _) => before.value.end..last,
            (None, Some(after)) => first..after.key.start,
            (None, None) => first..last,
        };
        edits.put(range, String::new());
        index = after.unwrap_or(members.len());
    }
}

fn add(object: &Object<'_>, name: &str, added: &Added, edits: &mut Edits<'_>) -> Result<(), EditError> {
    let there = object.only(name)?;
    let end = object.members.last().map_or(0, |last| last.value.end);
    match (added, there) {
        (Added::Value(_), Some(_)) => {}
        (Added::Value(value), None) => edits.put(end..end, format!(",{}:{value}", json_text(name))),
        (Added::Members(members), None) => {
            edits.put(end..end, format!(",{}:{{{}}}", json_text(name), listed(members.iter())));
        }
        (Added::Members(members), Some(member)) => {
            // What is no object is the caller's own business with the provider.
            let Some(inner) = Object::read(member.text.as_bytes()) else { return Ok(()) };
            let missing: Vec<_> = members.iter().filter(|(name, _)| inner.named(name).next().is_none()).collect();
            if !missing.is_empty() {
                let comma = if inner.members.is_empty() { "" } else { "," };
                let at = member.value.start + 1;
                edits.put(at..at, format!("{}{comma}", listed(missing.into_iter())));
            }
        }
    }
    Ok(())
}

fn listed<'m>(members: impl Iterator<Item = &'m (String, String)>) -> String {
    members.map(|(name, value)| format!("{}:{value}", json_text(name))).collect::<Vec<_>>().join(",")
}

/// A string always serialises.
fn json_text(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn shape() -> Shape {
        Shape {
            add: vec![
                ("disable_fallbacks".into(), Added::Value("true".into())),
                ("provider".into(), Added::Members(vec![("allow_fallbacks".into(), "false".into())])),
            ],
            rename: vec![("max_completion_tokens".into(), "max_tokens".into())],
            drop: vec!["logprobs".into(), "logit_bias".into()],
        }
    }

    fn shaped(body: &str) -> (String, Vec<usize>) {
        let Shaped { body, dropped } =
            shape().apply(&Bytes::copy_from_slice(body.as_bytes()), "theirs", UsageRequest::AsIs).unwrap();
        (String::from_utf8(body.to_vec()).unwrap(), dropped)
    }

    #[test]
    fn members_are_added_renamed_and_left_out_and_every_other_byte_stays() {
        let (body, dropped) = shaped(
            r#"{"logprobs":true, "logit_bias":{} , "model":"m",  "x":1.50,"max_completion_tokens":9,"provider":{ "order":["a"]}}"#,
        );
        assert_eq!(
            body,
            r#"{"model":"theirs",  "x":1.50,"max_tokens":9,"provider":{"allow_fallbacks":false, "order":["a"]},"disable_fallbacks":true}"#
        );
        assert_eq!(dropped, [0, 1]);
    }

    #[test]
    fn the_callers_own_word_wins() {
        let (body, dropped) = shaped(
            r#"{"model":"m","disable_fallbacks":false,"provider":{"allow_fallbacks":true},"max_tokens":1,"max_completion_tokens":2}"#,
        );
        assert_eq!(
            body,
            r#"{"model":"theirs","disable_fallbacks":false,"provider":{"allow_fallbacks":true},"max_tokens":1}"#
        );
        assert!(dropped.is_empty());
        let (body, _) = shaped(r#"{"model":"m","provider":"auto"}"#);
        assert_eq!(body, r#"{"model":"theirs","provider":"auto","disable_fallbacks":true}"#);
        let (body, _) = shaped(r#"{"model":"m","provider":{}}"#);
        assert_eq!(body, r#"{"model":"theirs","provider":{"allow_fallbacks":false},"disable_fallbacks":true}"#);
    }

    #[test]
    fn usage_is_asked_for_or_not_as_without_a_shape() {
        let apply = |body: &str, usage| {
            let body = Bytes::copy_from_slice(body.as_bytes());
            let shaped = Shape { drop: vec!["z".into()], ..Shape::default() }.apply(&body, "t", usage).unwrap().body;
            serde_json::from_slice::<Value>(&shaped).unwrap()
        };
        let asked = apply(r#"{"model":"m","z":1}"#, UsageRequest::Ask);
        assert_eq!(asked, json!({"model": "t", "stream_options": {"include_usage": true}}));
        let removed = apply(r#"{"stream_options":{},"z":1,"model":"m"}"#, UsageRequest::Remove);
        assert_eq!(removed, json!({"model": "t"}));
    }

    proptest! {
        #[test]
        fn whatever_is_there_in_whatever_order_what_comes_out_is_what_was_meant(
            names in prop::sample::subsequence(
                vec!["logprobs", "logit_bias", "max_completion_tokens", "max_tokens", "provider", "a", "b", "stream_options"], 0..=8),
            at in 0usize..9,
            order in any::<u64>(),
        ) {
            let mut names = names;
            names.insert(at.min(names.len()), "model");
            let shift = usize::try_from(order % names.len() as u64).unwrap();
            names.rotate_left(shift);
            let members: serde_json::Map<String, Value> =
                names.iter().map(|name| ((*name).to_owned(), json!({"v": *name}))).collect();
            let mut members = members;
            members.insert("model".to_owned(), json!("m"));
            let body = Bytes::from(serde_json::to_vec(&members).unwrap());
            let Shaped { body, dropped } = shape().apply(&body, "theirs", UsageRequest::Remove).unwrap();
            let found: serde_json::Map<String, Value> = serde_json::from_slice(&body).unwrap();
            let mut expected = members.clone();
            let absent: Vec<_> = ["logprobs", "logit_bias"].iter().filter(|name| members.contains_key(**name)).collect();
            prop_assert_eq!(dropped.len(), absent.len());
            for name in ["logprobs", "logit_bias", "stream_options"] { expected.remove(name); }
            expected.insert("model".into(), json!("theirs"));
            if let Some(limit) = expected.remove("max_completion_tokens") {
                expected.entry("max_tokens").or_insert(limit);
            }
            expected.insert("disable_fallbacks".into(), json!(true));
            let provider = expected.entry("provider").or_insert_with(|| json!({}));
            provider.as_object_mut().unwrap().insert("allow_fallbacks".into(), json!(false));
            prop_assert_eq!(Value::Object(found), Value::Object(expected));
        }
    }
}
