//! Requests, streams and whole answers in the shapes that clients and providers send, written by hand, carried over and
//! back. The expected text lies beside each file; after an intended change `INSTA_UPDATE=always` writes it anew. What
//! is expected here was checked against the types of the official Python package.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::wire::sse::{Decoder, Event, Limits};

fn compare(folder: &str, path: &Path, seen: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.remove_snapshot_suffix();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    settings.bind(|| insta::assert_snapshot!(name, seen));
}

/// What all answers here are answers to.
fn echo() -> Echo {
    let body = r#"{
        "model": "summary", "input": "x", "instructions": "Be\nbrief.", "temperature": 1.50E-1, "text": {"verbosity": "low"},
        "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object", "x": "a  b"}, "strict": true}]
    }"#;
    to_chat(body.as_bytes(), HostedTools::Refuse).unwrap().echo
}

fn events(text: &[u8]) -> Vec<Event> {
    let mut decoder = Decoder::new(Limits::default());
    decoder.feed(Bytes::copy_from_slice(text));
    std::iter::from_fn(|| decoder.next().unwrap()).collect()
}

fn facts(event: &Event) -> String {
    let facts = peek_event(event);
    let mut words = Vec::new();
    words.extend(facts.content.then(|| "content".to_owned()));
    words.extend(facts.ending.map(|ending| format!("{ending:?}")));
    words.extend(facts.usage.map(|usage| format!("{:?} in {:?} out", usage.input_tokens, usage.output_tokens)));
    words.extend(facts.error.map(|error| format!("error {:?} {:?}", error.status, error.code)));
    if words.is_empty() { "silent".to_owned() } else { words.join(", ") }
}

#[test]
fn golden_requests_become_the_same_chat_requests() {
    insta::glob!("../../../tests/golden/responses/requests", "*.json", |path| {
        let body = std::fs::read(path).unwrap();
        let mut seen = format!("{:?}\n", peek_request(&body, 64).unwrap());
        let strict = to_chat(&body, HostedTools::Refuse);
        if let Err(error) = &strict {
            writeln!(seen, "--- refused: {:?}, {}, {error}; else", error.kind, error.param).unwrap();
        }
        let Translated { body, model_at, left_out, .. } =
            strict.or_else(|_| to_chat(&body, HostedTools::LeaveOut)).unwrap();
        let text = std::str::from_utf8(&body).unwrap();
        let model = model_at.map(|at| &text[at]);
        writeln!(seen, "--- model at {model:?}, left out {left_out:?}\n{text}").unwrap();
        compare("../../../tests/golden/responses/requests", path, &seen);
    });
}

#[test]
fn golden_chat_streams_become_the_same_events() {
    insta::glob!("../../../tests/golden/responses/streams", "*.txt", |path| {
        let mut stream = StreamFromChat::new(Arc::new(echo()), "resp_1", 1_763_800_000);
        let mut seen = String::new();
        let mut drain = |stream: &mut StreamFromChat| {
            while let Some(event) = stream.next() {
                writeln!(seen, "# {}\n{}", facts(&event), std::str::from_utf8(event.raw()).unwrap().trim_end())
                    .unwrap();
            }
            writeln!(seen).unwrap();
        };
        for event in events(&std::fs::read(path).unwrap()) {
            if let Err(error) = stream.push(&event) {
                stream.fail(&error.to_string(), "upstream_failed");
            }
            drain(&mut stream);
        }
        assert!(stream.is_over());
        compare("../../../tests/golden/responses/streams", path, &seen);
    });
}

#[test]
fn golden_chat_answers_become_the_same_responses() {
    insta::glob!("../../../tests/golden/responses/whole", "*.json", |path| {
        let body = from_chat(&std::fs::read(path).unwrap(), &echo(), "resp_1", 1_763_800_000).unwrap();
        let seen = format!("{:?}\n{}\n", peek_reply(&body).unwrap(), std::str::from_utf8(&body).unwrap());
        compare("../../../tests/golden/responses/whole", path, &seen);
    });
}
