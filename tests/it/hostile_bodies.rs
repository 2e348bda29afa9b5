//! What bodies cost that are written to be expensive: for every reader of them, in proportion to their length.
//!
//! Up to a quarter of a mebibyte of a body is read on the serving thread, and a stream always is, so whatever grew with the
//! square of the length would hold up everybody else.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use weighbridge::wire::object::Object;
use weighbridge::wire::sse::Event;
use weighbridge::wire::{json_read, messages, openai, responses, session};

const SMALL: usize = 16 * 1024;
const TIMES: usize = 16;
/// Four times in proportion, and a quarter of the square.
const MOST: u32 = 4 * TIMES as u32;
const DEPTH: usize = 64;

/// At least `size` bytes of pieces.
fn many(size: usize, piece: impl Fn(usize) -> String) -> String {
    let mut text = String::new();
    for number in 0.. {
        if text.len() >= size {
            break;
        }
        text = text + if number > 0 { "," } else { "" } + &piece(number);
    }
    text
}

type Shape = fn(usize) -> String;

fn said(content: &str) -> String {
    format!(r#"{{"model":"m","max_tokens":5,"input":"x","messages":[{{"role":"user","content":{content}}}]}}"#)
}

fn top(members: &str) -> String {
    format!(r#"{{"model":"m","max_tokens":5,"input":"x","messages":[{{"role":"user","content":"a"}}],{members}}}"#)
}

const SHAPES: [(&str, Shape); 25] = [
    ("escaped line ends", |size| said(&format!("\"{}\"", "\\n".repeat(size / 2)))),
    ("escaped letters", |size| said(&format!("\"{}\"", "\\u00e9".repeat(size / 6)))),
    ("escaped quotes", |size| said(&format!("\"{}\"", "\\\"".repeat(size / 2)))),
    ("half surrogates", |size| said(&format!("\"{}\"", "\\ud800".repeat(size / 6)))),
    ("empty strings", |size| said(&format!("[{}]", many(size, |_| "\"\"".to_owned())))),
    ("tiny blocks", |size| said(&format!("[{}]", many(size, |_| r#"{"type":"text","text":"a"}"#.to_owned())))),
    ("tiny turns", |size| {
        top(&format!("\"messages\":[{}]", many(size, |_| r#"{"role":"user","content":"a"}"#.to_owned()))).replacen(
            r#""messages":[{"role":"user","content":"a"}],"#,
            "",
            1,
        )
    }),
    ("tool uses", |size| {
        format!(
            r#"{{"model":"m","max_tokens":5,"messages":[{{"role":"assistant","content":[{}]}}]}}"#,
            many(size, |n| format!(r#"{{"type":"tool_use","id":"t{n}","name":"x","input":{{}}}}"#))
        )
    }),
    ("tool results", |size| {
        said(&format!(
            "[{}]",
            many(size, |n| format!(r#"{{"type":"tool_result","tool_use_id":"t{n}","content":"a"}}"#))
        ))
    }),
    ("tools", |size| {
        top(&format!(
            "\"tools\":[{}]",
            many(size, |n| format!(r#"{{"type":"function","name":"t{n}","input_schema":{{}},"parameters":{{}}}}"#))
        ))
    }),
    ("calls", |size| {
        format!(
            r#"{{"model":"m","input":[{}]}}"#,
            many(size, |n| format!(r#"{{"type":"function_call","call_id":"c{n}","name":"x","arguments":"{{}}"}}"#))
        )
    }),
    ("outputs", |size| {
        format!(
            r#"{{"model":"m","input":[{}]}}"#,
            many(size, |n| format!(r#"{{"type":"function_call_output","call_id":"c{n}","output":"x"}}"#))
        )
    }),
    ("keys", |size| top(&many(size, |n| format!("\"k{n}\":0")))),
    ("equal keys", |size| top(&many(size, |_| "\"k\":0".to_owned()))),
    ("escaped keys", |size| top(&many(size, |n| format!("\"\\u006b{n}\":0")))),
    ("keys below", |size| said(&format!("{{{}}}", many(size, |n| format!("\"k{n}\":0"))))),
    ("deep lists", |size| said(&format!("[{}]", many(size, |_| "[".repeat(50) + &"]".repeat(50))))),
    ("deep objects", |size| said(&format!("[{}]", many(size, |_| "{\"a\":".repeat(50) + "1" + &"}".repeat(50))))),
    ("far too deep", |size| said(&"[".repeat(size))),
    ("no end of a string", |size| format!("{{\"model\":\"{}", "a".repeat(size))),
    ("no end of escapes", |size| format!("{{\"model\":\"m\",\"input\":\"{}", "\\\\".repeat(size / 2))),
    ("spaces", |size| said(&(" ".repeat(size) + "1"))),
    ("a long number", |size| said(&"1".repeat(size))),
    ("a long fraction", |size| said(&format!("0.{}", "1".repeat(size)))),
    ("fractions", |size| said(&format!("[{}]", many(size, |n| format!("1.{n}e-300"))))),
];

type Reader = fn(&[u8]) -> bool;

const READERS: [(&str, Reader); 13] = [
    ("is_json", json_read::is_json),
    ("a chat", |body| openai::peek_request(body, DEPTH).is_ok()),
    ("a message", |body| messages::peek_request(body, DEPTH).is_ok()),
    ("a response", |body| responses::peek_request(body, DEPTH).is_ok()),
    ("the estimate", |body| messages::peek_request(body, DEPTH).is_ok() && messages::estimated_tokens(body).is_some()),
    ("a message as a chat", |body| messages::peek_request(body, DEPTH).is_ok() && messages::to_chat(body).is_ok()),
    ("a response as a chat", |body| {
        responses::peek_request(body, DEPTH).is_ok()
            && responses::to_chat(body, responses::HostedTools::LeaveOut).is_ok()
    }),
    ("the conversation", |body| session::conversation_of(body).is_some()),
    ("the key of the cache", |body| Object::read(body).is_ok()),
    ("a chat's answer", |body| {
        black_box(openai::peek_reply(body));
        true
    }),
    ("a message's answer", |body| {
        black_box(messages::peek_reply(body));
        true
    }),
    ("a chunk", |body| {
        black_box(openai::peek_chunk(body));
        true
    }),
    ("an error", |body| {
        black_box(openai::parse_error(body));
        true
    }),
];

/// What this thread has worked so far: what others do meanwhile does not count.
fn worked() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// The least it takes, of as many tries as it takes to be no more than `most`, but at most five.
fn takes(most: Duration, mut work: impl FnMut()) -> Duration {
    let mut least = Duration::MAX;
    for _ in 0..5 {
        let began = worked();
        work();
        least = least.min(worked().saturating_sub(began));
        if least <= most {
            break;
        }
    }
    least
}

/// Small works are too short to be compared with.
const NOTHING: Duration = Duration::from_micros(100);

fn grows_in_proportion(what: &str, mut small: impl FnMut(), large: impl FnMut()) {
    let small = takes(Duration::ZERO, &mut small).max(NOTHING);
    let large = takes(small * MOST, large);
    assert!(large <= small * MOST, "{what}: {small:?}, and {large:?} for {TIMES} times as much");
}

#[test]
fn p2_no_body_costs_more_than_in_proportion_to_its_length() {
    for (shape, body) in SHAPES {
        let (small, large) = (body(SMALL), body(SMALL * TIMES));
        for (reader, read) in READERS {
            let look = |body: &str| {
                black_box(read(body.as_bytes()));
            };
            grows_in_proportion(&format!("{shape}, read as {reader}"), || look(&small), || look(&large));
        }
    }
}

/// A stream that begins so many calls and then adds to each of them.
fn calls(count: usize, piece: impl Fn(usize) -> serde_json::Value) -> Vec<Event> {
    let chunk = |call| json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}).to_string();
    let begun = (0..count).map(|number| {
        let mut first = piece(number);
        first["function"] = json!({"name": "f", "arguments": "{"});
        first
    });
    let added = (0..count).map(|number| {
        let mut more = piece(number);
        more["function"] = json!({"arguments": " "});
        more
    });
    begun.chain(added).map(|call| Event::from_data(chunk(call).as_bytes())).collect()
}

#[test]
fn p2_no_stream_of_calls_costs_more_than_in_proportion_to_its_length() {
    let echo = || responses::to_chat(br#"{"model":"m","input":"x"}"#, responses::HostedTools::LeaveOut).unwrap().echo;
    let as_response = |events: &[Event]| {
        let mut told = responses::StreamFromChat::new(Arc::new(echo()), "resp_1", 1);
        for event in events {
            told.push(event).unwrap();
            while told.next().is_some() {}
        }
    };
    let as_message = |events: &[Event]| {
        let (mut told, mut out) = (messages::StreamFromChat::new("m", "msg_1"), VecDeque::new());
        for event in events {
            // Beyond what is held back, a piece of a call that was taken for whole ends it.
            if told.push(event, &mut out).is_err() {
                break;
            }
        }
    };
    type Piece = fn(usize) -> serde_json::Value;
    let shapes: [(&str, Piece); 3] = [
        ("by index", |n| json!({"index": n, "id": format!("c{n}")})),
        ("by id", |n| json!({"id": format!("c{n}")})),
        ("by a long id", |n| json!({"id": format!("{}{n:05}", "c".repeat(200))})),
    ];
    for (shape, piece) in shapes {
        let (small, large) = (calls(4_000 / TIMES, piece), calls(4_000, piece));
        grows_in_proportion(&format!("{shape}, as a response"), || as_response(&small), || as_response(&large));
        grows_in_proportion(&format!("{shape}, as a message"), || as_message(&small), || as_message(&large));
    }
}
