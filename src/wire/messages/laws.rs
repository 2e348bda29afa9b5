//! What holds of any stream, whatever was said and however it was cut into pieces.

use std::collections::VecDeque;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{StreamFromChat, from_chat, is_last_event, peek_event};
use crate::wire::sse::Event;

/// A client's view: the blocks as the official SDKs put them together, and the ending.
fn gathered(events: &VecDeque<Event>) -> (Vec<Value>, Value) {
    let (mut blocks, mut partial, mut ending) = (Vec::<Value>::new(), Vec::<String>::new(), Value::Null);
    let mut open = None;
    for event in events {
        let value: Value = serde_json::from_slice(&event.data().unwrap()).unwrap();
        assert_eq!(value["type"], event.event_type().unwrap());
        let index = value["index"].as_u64().map(|index| usize::try_from(index).unwrap());
        match value["type"].as_str().unwrap() {
            "content_block_start" => {
                assert!(open.is_none() && index == Some(blocks.len()));
                open = index;
                blocks.push(value["content_block"].clone());
                partial.push(String::new());
            }
            "content_block_delta" => {
                assert!(open.is_some() && open == index && peek_event(event).content);
                let block = &mut blocks[index.unwrap()];
                let (kind, delta) = (block["type"].as_str().unwrap().to_owned(), &value["delta"]);
                match kind.as_str() {
                    "tool_use" => partial[index.unwrap()].push_str(delta["partial_json"].as_str().unwrap()),
                    kind => {
                        block[kind] = json!([block[kind].as_str().unwrap(), delta[kind].as_str().unwrap()].concat())
                    }
                }
            }
            "content_block_stop" => {
                assert!(open.take() == index);
                let text = &partial[index.unwrap()];
                if !text.is_empty() {
                    blocks[index.unwrap()]["input"] = serde_json::from_str(text).unwrap();
                }
            }
            "message_delta" => ending = value,
            _ => {}
        }
    }
    assert!(open.is_none());
    (blocks, ending)
}

fn chunk(delta: &Value) -> Event {
    Event::from_data(json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]}).to_string().as_bytes())
}

/// `text` in pieces of the given numbers of characters.
fn pieces(text: &str, sizes: &[usize]) -> Vec<String> {
    let mut rest = text.chars().peekable();
    let mut sizes = sizes.iter().cycle();
    let mut pieces = Vec::new();
    while rest.peek().is_some() {
        pieces.push(rest.by_ref().take(*sizes.next().unwrap()).collect());
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_pieces_of_the_same_answer_make_the_message_that_the_whole_answer_makes(
        thinking in "\\PC{0,20}", text in "\\PC{0,40}", city in proptest::option::of("\\PC{0,20}"),
        sizes in proptest::collection::vec(1_usize..9, 1..6),
    ) {
        let arguments = city.map(|city| json!({"city": city}).to_string());
        let call = |arguments: &str| json!([{"index": 0, "id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": arguments}}]);
        let mut chunks = vec![chunk(&json!({"role": "assistant", "content": ""}))];
        chunks.extend(pieces(&thinking, &sizes).iter().map(|piece| chunk(&json!({"reasoning_content": piece}))));
        chunks.extend(pieces(&text, &sizes).iter().map(|piece| chunk(&json!({"content": piece}))));
        if let Some(arguments) = &arguments {
            chunks.push(chunk(&json!({"tool_calls": call("")})));
            let piece = |piece| chunk(&json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}));
            chunks.extend(pieces(arguments, &sizes).into_iter().map(piece));
        }
        let usage = json!({"prompt_tokens": 7, "completion_tokens": 3});
        chunks.push(Event::from_data(json!({"choices": [], "usage": usage}).to_string().as_bytes()));
        chunks.push(Event::done());

        let (mut stream, mut events) = (StreamFromChat::new("m", "msg_1"), VecDeque::new());
        chunks.iter().try_for_each(|chunk| stream.push(chunk, &mut events)).unwrap();
        prop_assert!(is_last_event(events.back().unwrap()) && peek_event(events.back().unwrap()).terminal);
        let (blocks, ending) = gathered(&events);

        let mut message = json!({"role": "assistant", "content": text, "reasoning_content": thinking});
        if let Some(arguments) = &arguments {
            message["tool_calls"] = call(arguments);
        }
        let reply = json!({"choices": [{"index": 0, "message": message}], "usage": usage}).to_string();
        let whole: Value = serde_json::from_slice(&from_chat(reply.as_bytes(), "m", "msg_1").unwrap()).unwrap();
        prop_assert_eq!(Value::Array(blocks), whole["content"].clone());
        prop_assert_eq!(&ending["delta"]["stop_reason"], &whole["stop_reason"]);
        prop_assert_eq!(&ending["usage"], &whole["usage"]);
    }

    #[test]
    fn every_piece_leaves_with_the_chunk_it_came_in(text in "\\PC{1,40}", sizes in proptest::collection::vec(1_usize..9, 1..6)) {
        let (mut stream, mut events) = (StreamFromChat::new("m", "msg_1"), VecDeque::new());
        for piece in pieces(&text, &sizes) {
            stream.push(&chunk(&json!({"content": piece})), &mut events).unwrap();
            let last: Value = serde_json::from_slice(&events.back().unwrap().data().unwrap()).unwrap();
            prop_assert_eq!(&last["delta"]["text"], &json!(piece));
            events.clear();
        }
    }

    #[test]
    fn however_the_pieces_of_several_calls_are_mixed_the_message_is_the_same(
        cities in proptest::collection::vec(proptest::option::of(r#"[a-z\\{}"\[\] é]{0,12}"#), 1..5),
        sizes in proptest::collection::vec(1_usize..9, 1..6),
        turns in proptest::collection::vec(any::<proptest::sample::Index>(), 1..40),
        told_apart_by in prop_oneof![Just(("index", 1)), Just(("id", 1)), Just(("id", 0))],
    ) {
        let calls: Vec<Vec<Event>> = cities.iter().enumerate().map(|(number, city)| call(number, city.as_deref(), &sizes, told_apart_by)).collect();
        let (apart, ending) = told(calls.concat());
        prop_assert_eq!(apart.len(), cities.len());
        let (mixed, mixed_ending) = told(mix(calls, &turns));
        prop_assert_eq!(mixed, apart);
        prop_assert_eq!(mixed_ending, ending);
    }
}

/// The chunks of one call. Providers tell calls apart by their index, or by an id that each piece repeats, with an index
/// that is always the same or none.
fn call(number: usize, city: Option<&str>, sizes: &[usize], told_apart_by: (&str, usize)) -> Vec<Event> {
    let id = format!("call_{number}");
    let piece = |arguments: &str| match told_apart_by {
        ("index", _) => json!({"index": number, "function": {"arguments": arguments}}),
        (_, 1) => json!({"index": 0, "id": id, "function": {"arguments": arguments}}),
        _ => json!({"id": id, "function": {"arguments": arguments}}),
    };
    let mut first = piece("");
    first["id"] = json!(id);
    first["function"]["name"] = json!(format!("tool_{number}"));
    let arguments = city.map(|city| json!({"city": city, "more": {"n": [1]}}).to_string()).unwrap_or_default();
    let rest = pieces(&arguments, sizes);
    let rest: Vec<_> = rest.iter().map(|arguments| piece(arguments)).collect();
    std::iter::once(first).chain(rest).map(|piece| chunk(&json!({"tool_calls": [piece]}))).collect()
}

/// Takes a chunk now of this call, now of that. They begin in their order.
fn mix(calls: Vec<Vec<Event>>, turns: &[proptest::sample::Index]) -> Vec<Event> {
    let mut rest: Vec<_> = calls.into_iter().map(VecDeque::from).collect();
    let (mut begun, mut mixed) = (0, Vec::new());
    for turn in turns.iter().cycle() {
        let open: Vec<_> = (0..rest.len().min(begun + 1)).filter(|call| !rest[*call].is_empty()).collect();
        if open.is_empty() {
            break;
        }
        let call = *turn.get(&open);
        begun = begun.max(call + 1);
        mixed.extend(rest[call].pop_front());
    }
    mixed
}

fn told(chunks: Vec<Event>) -> (Vec<Value>, Value) {
    let (mut stream, mut events) = (StreamFromChat::new("m", "msg_1"), VecDeque::new());
    let ends = Event::from_data(br#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#);
    for chunk in chunks.iter().chain([&ends, &Event::done()]) {
        stream.push(chunk, &mut events).unwrap();
    }
    gathered(&events)
}
