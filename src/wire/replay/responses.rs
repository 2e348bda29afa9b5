//! The events of a response. The last one holds it whole, so nothing needs to be put together.

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::MapAccess;
use serde_json::value::RawValue;

use super::Ending;
use super::parts::{Parts, elements, is_empty, written};
use super::pieces::pieces;
use crate::wire::json_read;
use crate::wire::object::{Object, text};
use crate::wire::openai::lenient::{Lenient, Loose, Shape};
use crate::wire::responses::{self, peek_reply};
use crate::wire::sse::Event;

pub(super) fn assemble(events: &[Event]) -> Option<Bytes> {
    let (last, rest) = events.split_last()?;
    let data = last.data()?;
    let object = Object::read(&data).ok()?;
    let response = object.get("response").filter(|_| is_last(last))?;
    // Some servers leave the items out of the last event, because they were told already.
    let done = rest.iter().filter(|event| event.event_type() == Some("response.output_item.done")).count();
    let items = elements(Object::of(response).ok()?.get("output")?)?.len();
    (items == done).then(|| Bytes::copy_from_slice(response.get().as_bytes()))
}

fn is_last(event: &Event) -> bool {
    matches!(event.event_type(), Some("response.completed" | "response.incomplete"))
}

/// Events with their numbers.
#[derive(Default)]
struct Told(Vec<Event>);

impl Told {
    fn push(&mut self, kind: &str, members: &[(&str, String)]) {
        let mut event = Parts::default();
        event.put("type", kind);
        event.put("sequence_number", self.0.len());
        for (key, value) in members {
            event.set(key, value.as_str());
        }
        self.0.push(Event::named(kind, event.json().as_bytes()));
    }
}

pub(super) fn replay(whole: &[u8]) -> Option<Vec<Event>> {
    let response = Object::read(whole).ok()?;
    let whole = std::str::from_utf8(whole).ok()?;
    let mut begun = Parts::default();
    for (key, value) in response.iter() {
        match key {
            "status" => begun.put(key, "in_progress"),
            "output" => begun.set(key, "[]"),
            "usage" | "completed_at" | "incomplete_details" => begun.set(key, "null"),
            // The convenience of some clients, not of the form.
            "output_text" => {}
            _ => begun.set(key, value.get()),
        }
    }
    let mut told = Told::default();
    for kind in ["response.created", "response.in_progress"] {
        told.push(kind, &[("response", begun.json())]);
    }
    for (number, item) in elements(response.get("output")?)?.into_iter().enumerate() {
        tell(number, item, &mut told)?;
    }
    let last = match text(response.get("status")?)?.as_str() {
        "completed" => "response.completed",
        "incomplete" => "response.incomplete",
        _ => return None,
    };
    told.push(last, &[("response", whole.to_owned())]);
    Some(told.0)
}

/// One item of the output: it begins empty, its parts follow, then it is repeated whole.
fn tell(number: usize, item: &RawValue, told: &mut Told) -> Option<()> {
    let object = Object::of(item).ok()?;
    let place = [("output_index", written(number))];
    let kind = text(object.get("type")?)?;
    let id = object.get("id").map_or_else(|| "\"\"".to_owned(), |id| id.get().to_owned());
    let whose = [("item_id", id), place[0].clone()];
    let with = |more: &[(&'static str, String)]| [&whose, more].concat();
    let mut empty = Parts::default();
    for (key, value) in object.iter() {
        match key {
            "status" => empty.put(key, "in_progress"),
            "content" | "summary" if !is_empty(value.get()) => empty.set(key, "[]"),
            "arguments" => empty.set(key, "\"\""),
            _ => empty.set(key, value.get()),
        }
    }
    told.push("response.output_item.added", &[place[0].clone(), ("item", empty.json())]);
    match kind.as_str() {
        "message" => tell_parts(&object, "content", &CONTENT, &mut |kind, more| told.push(kind, &with(more)))?,
        // Its text beside the summary has no events that all clients know.
        "reasoning" if object.get("content").is_none_or(|content| is_empty(content.get())) => {
            tell_parts(&object, "summary", &SUMMARY, &mut |kind, more| told.push(kind, &with(more)))?;
        }
        "function_call" => {
            let arguments = object.get("arguments")?;
            for piece in pieces(&text(arguments)?) {
                told.push("response.function_call_arguments.delta", &with(&[("delta", written(piece))]));
            }
            let name = object.get("name").map_or("null", RawValue::get).to_owned();
            let whole = [("name", name), ("arguments", arguments.get().to_owned())];
            told.push("response.function_call_arguments.done", &with(&whole));
        }
        _ => return None,
    }
    told.push("response.output_item.done", &[place[0].clone(), ("item", item.get().to_owned())]);
    Some(())
}

/// What the events about the parts of an item are called.
struct Names {
    index: &'static str,
    added: &'static str,
    done: &'static str,
}

const CONTENT: Names =
    Names { index: "content_index", added: "response.content_part.added", done: "response.content_part.done" };
const SUMMARY: Names = Names {
    index: "summary_index",
    added: "response.reasoning_summary_part.added",
    done: "response.reasoning_summary_part.done",
};

/// Of a kind of part: the member with its text, and the events that tell it.
const KINDS: [(&str, &str, &str, &str); 3] = [
    ("output_text", "text", "response.output_text.delta", "response.output_text.done"),
    ("refusal", "refusal", "response.refusal.delta", "response.refusal.done"),
    ("summary_text", "text", "response.reasoning_summary_text.delta", "response.reasoning_summary_text.done"),
];

type Push<'p> = &'p mut dyn FnMut(&str, &[(&'static str, String)]);

fn tell_parts(item: &Object<'_>, list_of: &str, names: &Names, push: Push<'_>) -> Option<()> {
    for (number, part) in item.get(list_of).map_or(Some(Vec::new()), elements)?.into_iter().enumerate() {
        let object = Object::of(part).ok()?;
        let kind = text(object.get("type")?)?;
        let (_, member, delta, done) = KINDS.iter().find(|(known, ..)| *known == kind)?;
        let said = object.get(member)?;
        let place = (names.index, written(number));
        let mut empty = Parts::default();
        for (key, value) in object.iter() {
            match key {
                _ if key == *member => empty.set(key, "\"\""),
                "annotations" | "logprobs" if value.get() != "null" => empty.set(key, "[]"),
                _ => empty.set(key, value.get()),
            }
        }
        let of_text = |member: &'static str, value: String| {
            let mut members = vec![place.clone(), (member, value)];
            // Only what the model says has probabilities.
            if kind == "output_text" {
                members.push(("logprobs", "[]".to_owned()));
            }
            members
        };
        push(names.added, &[place.clone(), ("part", empty.json())]);
        for piece in pieces(&text(said)?) {
            push(delta, &of_text("delta", written(piece)));
        }
        push(done, &of_text(member, said.get().to_owned()));
        push(names.done, &[place.clone(), ("part", part.get().to_owned())]);
    }
    Some(())
}

pub(super) fn ending(whole: &[u8]) -> Ending {
    match peek_reply(whole).and_then(|facts| facts.ending) {
        Some(responses::Ending::Completed) => Ending::Complete,
        Some(responses::Ending::Incomplete) if is_cut_by_length(whole) => Ending::ByLength,
        _ => Ending::Otherwise,
    }
}

fn is_cut_by_length(whole: &[u8]) -> bool {
    matches!(json_read::from_slice::<Lenient<'_, Details>>(whole), Ok(Lenient::Map(Details(true))))
}

/// Whether a response was cut by the token limit.
#[derive(Default)]
struct Details(bool);

impl<'de> Shape<'de> for Details {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "incomplete_details" => {
                if let Lenient::Map(Self(cut)) = map.next_value::<Lenient<'_, Self>>()? {
                    self.0 = cut;
                }
            }
            "reason" => self.0 = map.next_value::<Loose<'_>>()?.text().as_deref() == Some("max_output_tokens"),
            _ => map.next_value::<Loose<'_>>().map(drop)?,
        }
        Ok(())
    }
}
