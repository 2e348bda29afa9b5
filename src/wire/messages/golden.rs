//! Requests, answers and streams as clients and providers send them, written by hand, and what they become. The expected
//! text lies beside each file; after an intended change `INSTA_UPDATE=always` writes it anew.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;

use super::{Failure, StreamFromChat, from_chat, peek_reply, peek_request, to_chat};
use crate::wire::openai;
use crate::wire::sse::{Decoder, Limits};

fn compare(folder: &str, path: &Path, seen: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(format!("../../../tests/golden/messages/{folder}"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.remove_snapshot_suffix();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    settings.bind(|| insta::assert_snapshot!(name, seen));
}

#[test]
fn golden_requests_become_the_same_chat_requests() {
    insta::glob!("../../../tests/golden/messages/to_chat", "*.json", |path| {
        let body = std::fs::read(path).unwrap();
        assert!(peek_request(&body, 64).unwrap().needs_max_tokens().is_ok());
        let seen = match to_chat(&body) {
            Ok(chat) => {
                let facts = openai::peek_request(&chat.body, 64).unwrap();
                assert_eq!(chat.model_at, facts.model_at(&chat.body));
                assert_eq!(facts.include_usage, facts.stream);
                format!("dropped {:?}\n{}", chat.dropped, std::str::from_utf8(&chat.body).unwrap())
            }
            Err(refusal) => format!("refused for {}: {refusal}", refusal.param),
        };
        compare("to_chat", path, &seen);
    });
}

#[test]
fn golden_answers_become_the_same_messages() {
    insta::glob!("../../../tests/golden/messages/from_chat", "*.json", |path| {
        let reply = std::fs::read(path).unwrap();
        let message = from_chat(&reply, "narrative", "msg_1");
        let seen = message.map_or("none".to_owned(), |message| {
            format!("{}\n{:?}", std::str::from_utf8(&message).unwrap(), peek_reply(&message).unwrap())
        });
        compare("from_chat", path, &seen);
    });
}

#[test]
fn golden_streams_become_the_same_events() {
    insta::glob!("../../../tests/golden/messages/stream", "*.txt", |path| {
        let mut decoder = Decoder::new(Limits::default());
        decoder.feed(Bytes::from(std::fs::read(path).unwrap()));
        let (mut stream, mut events, mut seen) =
            (StreamFromChat::new("narrative", "msg_1"), VecDeque::new(), String::new());
        while let Some(event) = decoder.next().unwrap() {
            if let Err(error) = stream.push(&event, &mut events) {
                events.push_back(stream.fail(&Failure::of(502, &error.to_string(), "req_1")));
            }
            for event in events.drain(..) {
                seen.push_str(std::str::from_utf8(event.raw()).unwrap());
            }
        }
        writeln!(seen, "-- the end").unwrap();
        compare("stream", path, &seen);
    });
}
