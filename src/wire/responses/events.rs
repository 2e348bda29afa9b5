//! The events of a response, in the names and members of the official types.

use serde::Serialize;

use super::echo::{ItemView, PartView, ResponseView};
use super::output::{At, Item, ItemKind, Part, PartKind};
use crate::wire::sse::Event;

/// Every member an event may have. All events have the first two; which others depends on the first.
#[derive(Serialize, Default)]
struct Members<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    sequence_number: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<ResponseView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item: Option<ItemView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<PartView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<[(); 0]>,
}

impl Members<'_> {
    fn event(&self) -> Event {
        // Strings, numbers and JSON under string keys always serialise.
        Event::named(self.kind, &serde_json::to_vec(self).unwrap_or_default())
    }
}

/// An event about the response as a whole.
pub(super) fn lifecycle(kind: &'static str, sequence_number: u64, response: ResponseView<'_>) -> Event {
    Members { kind, sequence_number, response: Some(response), ..Members::default() }.event()
}

/// An item begins.
pub(super) fn item_added(sequence_number: u64, index: usize, item: &Item) -> Event {
    let kind = "response.output_item.added";
    let item = Some(ItemView::empty(item));
    Members { kind, sequence_number, output_index: Some(index), item, ..Members::default() }.event()
}

/// An item is over.
pub(super) fn item_done(sequence_number: u64, index: usize, item: &Item) -> Event {
    let kind = "response.output_item.done";
    let item = Some(ItemView::so_far(item));
    Members { kind, sequence_number, output_index: Some(index), item, ..Members::default() }.event()
}

/// A part begins, empty.
pub(super) fn part_added(sequence_number: u64, at: At, item: &Item, part: &Part) -> Event {
    let kind = match item.kind {
        ItemKind::Reasoning => "response.reasoning_summary_part.added",
        _ => "response.content_part.added",
    };
    Members { kind, sequence_number, part: Some(PartView::with(part.kind, "")), ..of_part(at, item) }.event()
}

/// A part is over.
pub(super) fn part_done(sequence_number: u64, at: At, item: &Item, part: &Part) -> Event {
    let kind = match item.kind {
        ItemKind::Reasoning => "response.reasoning_summary_part.done",
        _ => "response.content_part.done",
    };
    Members { kind, sequence_number, part: Some(PartView::whole(part)), ..of_part(at, item) }.event()
}

/// A part grows.
pub(super) fn delta(sequence_number: u64, at: At, item: &Item, grown: (PartKind, &str)) -> Event {
    let (part, text) = grown;
    let kind = match part {
        PartKind::Summary => "response.reasoning_summary_text.delta",
        PartKind::Text => "response.output_text.delta",
        PartKind::Refusal => "response.refusal.delta",
        PartKind::Arguments => "response.function_call_arguments.delta",
    };
    let logprobs = (part == PartKind::Text).then_some([]);
    Members { kind, sequence_number, delta: Some(text), logprobs, ..of_part(at, item) }.event()
}

/// A part's text is whole.
pub(super) fn text_done(sequence_number: u64, at: At, item: &Item, part: &Part) -> Event {
    let text = Some(part.text.as_str());
    let members = Members { sequence_number, ..of_part(at, item) };
    match part.kind {
        PartKind::Summary => Members { kind: "response.reasoning_summary_text.done", text, ..members },
        PartKind::Text => Members { kind: "response.output_text.done", text, logprobs: Some([]), ..members },
        PartKind::Refusal => Members { kind: "response.refusal.done", refusal: text, ..members },
        // Package 2.54 requires the name, 3.54 has it no longer.
        PartKind::Arguments => {
            let (kind, name) = ("response.function_call_arguments.done", Some(item.name.as_str()));
            Members { kind, arguments: text, name, ..members }
        }
    }
    .event()
}

/// Whose part an event is about. A call has one part, and it is not numbered.
fn of_part(at: At, item: &Item) -> Members<'_> {
    Members {
        item_id: Some(&item.id),
        output_index: Some(at.item),
        content_index: (item.kind == ItemKind::Message).then_some(at.part),
        summary_index: (item.kind == ItemKind::Reasoning).then_some(at.part),
        ..Members::default()
    }
}
