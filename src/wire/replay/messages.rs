//! The events of a message.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::Ending;
use super::parts::{Joined, Parts, elements, is_empty, list, written};
use super::pieces::pieces;
use crate::wire::messages::{is_last_event, peek_reply};
use crate::wire::object::{Object, text};
use crate::wire::openai::lenient::{Lenient, Loose, Shape};
use crate::wire::sse::Event;

/// A message being put together.
#[derive(Default)]
struct Draft {
    message: Option<Parts>,
    usage: Parts,
    blocks: Vec<Block>,
    over: bool,
}

#[derive(Default)]
struct Block {
    start: Parts,
    text: Joined,
    thinking: Joined,
    signature: Joined,
    input: Joined,
    citations: Vec<String>,
    over: bool,
}

pub(super) fn assemble(events: &[Event]) -> Option<Bytes> {
    let (last, rest) = events.split_last()?;
    if !is_last_event(last) {
        return None;
    }
    let mut draft = Draft::default();
    for event in rest {
        let data = event.data()?;
        let object = Object::read(&data).ok()?;
        draft.take(&text(object.get("type")?)?, &object)?;
    }
    draft.finish().map(Bytes::from)
}

impl Draft {
    fn take(&mut self, kind: &str, event: &Object<'_>) -> Option<()> {
        match kind {
            "ping" => Some(()),
            "message_start" if self.message.is_none() => self.start(&Object::of(event.get("message")?).ok()?),
            "content_block_start" => {
                let number: usize = event.get("index")?.get().parse().ok()?;
                let mut block = Block::default();
                Object::of(event.get("content_block")?)
                    .ok()?
                    .iter()
                    .for_each(|(key, value)| block.start.set(key, value.get()));
                (number == self.blocks.len()).then(|| self.blocks.push(block))
            }
            "content_block_delta" => self.open_block(event)?.grow(&Object::of(event.get("delta")?).ok()?),
            "content_block_stop" => {
                self.open_block(event)?.over = true;
                Some(())
            }
            "message_delta" => self.end(event),
            _ => None,
        }
    }

    fn start(&mut self, message: &Object<'_>) -> Option<()> {
        let mut parts = Parts::default();
        for (key, value) in message.iter() {
            match key {
                "content" if !is_empty(value.get()) => return None,
                "usage" => self.count(value)?,
                _ => {}
            }
            parts.set(key, value.get());
        }
        self.message = Some(parts);
        Some(())
    }

    fn open_block(&mut self, event: &Object<'_>) -> Option<&mut Block> {
        let number: usize = event.get("index")?.get().parse().ok()?;
        self.blocks.get_mut(number).filter(|block| !block.over)
    }

    /// What the ending says takes the place of what the start said.
    fn end(&mut self, event: &Object<'_>) -> Option<()> {
        for (key, value) in event.iter() {
            match key {
                "type" => {}
                "usage" => self.count(value)?,
                "delta" => {
                    let message = self.message.as_mut()?;
                    Object::of(value).ok()?.iter().for_each(|(key, value)| message.set(key, value.get()));
                    self.over = true;
                }
                _ => self.message.as_mut()?.set(key, value.get()),
            }
        }
        Some(())
    }

    /// Counts are running totals, and those left out still hold.
    fn count(&mut self, usage: &RawValue) -> Option<()> {
        if usage.get() != "null" {
            let usage = Object::of(usage).ok()?;
            usage
                .iter()
                .filter(|(_, count)| count.get() != "null")
                .for_each(|(key, count)| self.usage.set(key, count.get()));
        }
        Some(())
    }

    fn finish(self) -> Option<String> {
        let mut message = self.message.filter(|_| self.over)?;
        let blocks: Option<Vec<_>> = self.blocks.into_iter().map(Block::finish).collect();
        message.set("content", list(blocks?));
        message.set("usage", self.usage.json());
        Some(message.json())
    }
}

impl Block {
    fn grow(&mut self, delta: &Object<'_>) -> Option<()> {
        match text(delta.get("type")?)?.as_str() {
            "text_delta" => self.text.add(delta.get("text")?),
            "thinking_delta" => self.thinking.add(delta.get("thinking")?),
            "signature_delta" => self.signature.add(delta.get("signature")?),
            "input_json_delta" => self.input.add(delta.get("partial_json")?),
            "citations_delta" => {
                self.citations.push(delta.get("citation")?.get().to_owned());
                Some(())
            }
            _ => None,
        }
    }

    fn finish(mut self) -> Option<String> {
        if !self.over {
            return None;
        }
        for (key, grown) in [("text", &self.text), ("thinking", &self.thinking), ("signature", &self.signature)] {
            let Some(grown) = grown.text() else { continue };
            let begun: String =
                self.start.get(key).map_or(Some(String::new()), |begun| serde_json::from_str(begun).ok())?;
            self.start.put(key, begun + grown);
        }
        if let Some(input) = self.input.text().filter(|input| !input.trim().is_empty()) {
            let whole: &RawValue = serde_json::from_str(input).ok()?;
            self.start.set("input", whole.get());
        }
        if !self.citations.is_empty() {
            self.start.set("citations", list(&self.citations));
        }
        Some(self.start.json())
    }
}

pub(super) fn replay(whole: &[u8]) -> Option<Vec<Event>> {
    let message = Object::read(whole).ok()?;
    let mut events = vec![start(&message)];
    for (number, block) in elements(message.get("content")?)?.into_iter().enumerate() {
        tell(number, &Object::of(block).ok()?, &mut events)?;
    }
    let mut delta = Parts::default();
    delta.set("stop_reason", message.get("stop_reason")?.get());
    delta.set("stop_sequence", message.get("stop_sequence").map_or("null", RawValue::get));
    let mut end = of_type("message_delta");
    end.set("delta", delta.json());
    end.set("usage", message.get("usage").map_or("{}", RawValue::get));
    events.push(named("message_delta", &end));
    events.push(named("message_stop", &of_type("message_stop")));
    Some(events)
}

fn start(message: &Object<'_>) -> Event {
    let mut begun = Parts::default();
    for (key, value) in message.iter() {
        match key {
            "content" => begun.set(key, "[]"),
            "stop_reason" | "stop_sequence" => begun.set(key, "null"),
            _ => begun.set(key, value.get()),
        }
    }
    let mut event = of_type("message_start");
    event.set("message", begun.json());
    named("message_start", &event)
}

fn tell(number: usize, block: &Object<'_>, events: &mut Vec<Event>) -> Option<()> {
    let kind = text(block.get("type")?)?;
    // What grows, under its name in the block, the type of its delta and its name in there.
    let grows: &[(&str, &str, &str)] = match kind.as_str() {
        "text" => &[("text", "text_delta", "text"), ("citations", "citations_delta", "citation")],
        "thinking" => &[("thinking", "thinking_delta", "thinking"), ("signature", "signature_delta", "signature")],
        "tool_use" | "server_tool_use" | "mcp_tool_use" => &[("input", "input_json_delta", "partial_json")],
        _ => &[],
    };
    let mut begun = Parts::default();
    for (key, value) in block.iter() {
        let grown = grows.iter().any(|(name, ..)| *name == key) && value.get() != "null";
        match key {
            "input" if grown => begun.set(key, "{}"),
            "citations" if grown => begun.set(key, "[]"),
            _ if grown => begun.set(key, "\"\""),
            _ => begun.set(key, value.get()),
        }
    }
    let of_block = |kind: &str, member: &str, value: String| {
        let mut event = of_type(kind);
        event.put("index", number);
        if !member.is_empty() {
            event.set(member, value);
        }
        named(kind, &event)
    };
    events.push(of_block("content_block_start", "content_block", begun.json()));
    for (name, kind, member) in grows {
        let Some(value) = block.get(name) else { continue };
        for said in said(name, value)? {
            let mut delta = of_type(kind);
            delta.set(member, said);
            events.push(of_block("content_block_delta", "delta", delta.json()));
        }
    }
    events.push(of_block("content_block_stop", "", String::new()));
    Some(())
}

/// The values of the deltas that tell one part of a block.
fn said(name: &str, value: &RawValue) -> Option<Vec<String>> {
    Some(match name {
        "citations" => elements(value)?.into_iter().map(|citation| citation.get().to_owned()).collect(),
        "input" => pieces(value.get()).map(written).collect(),
        _ => pieces(&text(value)?).map(written).collect(),
    })
}

fn of_type(kind: &str) -> Parts {
    let mut event = Parts::default();
    event.put("type", kind);
    event
}

fn named(kind: &str, event: &Parts) -> Event {
    Event::named(kind, event.json().as_bytes())
}

pub(super) fn ending(whole: &[u8]) -> Ending {
    let by_length = || {
        let Ok(Lenient::Map(Reason(cut))) = crate::wire::json_read::from_slice::<Lenient<'_, Reason>>(whole) else {
            return false;
        };
        cut
    };
    match peek_reply(whole).and_then(|facts| facts.stop) {
        Some(crate::wire::messages::Stop::Complete) => Ending::Complete,
        Some(crate::wire::messages::Stop::CutOnPurpose) if by_length() => Ending::ByLength,
        _ => Ending::Otherwise,
    }
}

/// Whether a message was cut by the token limit.
#[derive(Default)]
struct Reason(bool);

impl<'de> Shape<'de> for Reason {
    fn field<A: serde::de::MapAccess<'de>>(
        &mut self,
        key: std::borrow::Cow<'de, str>,
        map: &mut A,
    ) -> Result<(), A::Error> {
        let value = map.next_value::<Loose<'_>>()?;
        if key == "stop_reason" {
            self.0 = value.text().as_deref() == Some("max_tokens");
        }
        Ok(())
    }
}
