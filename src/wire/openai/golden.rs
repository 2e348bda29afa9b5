//! Streams and requests in the shapes that providers and clients send, written by hand, read and rewritten. The expected
//! text lies beside each file; after an intended change `INSTA_UPDATE=always` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;

use super::{ChunkFacts, peek_chunk, peek_request};
use crate::wire::json_edit::{NullUsage, UsageRequest, rewrite_chunk, rewrite_request};
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

fn facts(facts: &ChunkFacts) -> String {
    let mut words = Vec::new();
    let mut say = |holds: bool, word: &str| words.extend(holds.then(|| word.to_owned()));
    say(!facts.json, "not-json");
    say(facts.content, "content");
    say(facts.finished, "finished");
    say(facts.usage_only, "usage-only");
    if let Some(usage) = facts.usage {
        words.push(format!("usage {:?} in {:?} out", usage.input_tokens, usage.output_tokens));
    }
    if let Some(error) = &facts.error {
        words.push(format!("error {:?} {:?} {:?}", error.status, error.code, error.message));
    }
    if words.is_empty() { "silent".to_owned() } else { words.join(", ") }
}

fn line(event: &Event) -> String {
    let kind = event.event_type().map(|kind| format!("[{kind}] ")).unwrap_or_default();
    let Some(data) = event.data() else {
        return format!("{} bytes: {}", event.raw().len(), if event.is_comment() { "comment" } else { "no data" });
    };
    if event.is_done() {
        return format!("{} bytes: {kind}done", event.raw().len());
    }
    let edited = rewrite_chunk(&data, Some("alias"), NullUsage::Drop).map_or(0, |edited| edited.len());
    format!(
        "{} bytes: {kind}{}; as alias without null usage {edited} bytes",
        event.raw().len(),
        facts(&peek_chunk(&data))
    )
}

#[test]
fn p4_golden_streams_decode_to_the_same_events_and_facts_in_any_chunks() {
    insta::glob!("../../../tests/golden/sse", "*.txt", |path| {
        let text = std::fs::read(path).unwrap();
        let decode = |size: usize| {
            let mut decoder = Decoder::new(Limits::default());
            let mut lines = String::new();
            for chunk in text.chunks(size) {
                decoder.feed(Bytes::copy_from_slice(chunk));
                while let Some(event) = decoder.next().unwrap() {
                    writeln!(lines, "{}", line(&event)).unwrap();
                }
            }
            while let Some(event) = decoder.finish().unwrap() {
                writeln!(lines, "at the end, {}", line(&event)).unwrap();
            }
            lines
        };
        let seen = decode(7);
        assert_eq!(seen, decode(1));
        compare("../../../tests/golden/sse", path, &seen);
    });
}

#[test]
fn golden_requests_are_read_and_rewritten_the_same() {
    insta::glob!("../../../tests/golden/openai", "*.json", |path| {
        let body = Bytes::from(std::fs::read(path).unwrap());
        let mut seen = String::new();
        match peek_request(&body, 64) {
            Ok(facts) => {
                writeln!(seen, "{facts:?}").unwrap();
                for usage in [UsageRequest::AsIs, UsageRequest::Ask, UsageRequest::Remove] {
                    let edited = rewrite_request(&body, "up/stream", usage).unwrap();
                    writeln!(seen, "--- {usage:?}\n{}", std::str::from_utf8(&edited).unwrap()).unwrap();
                }
            }
            Err(error) => writeln!(seen, "refused: {error}; {:?} {:?}", error.param, error.position).unwrap(),
        }
        compare("../../../tests/golden/openai", path, &seen);
    });
}
