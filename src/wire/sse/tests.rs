use std::borrow::Cow;

use proptest::prelude::*;

use super::*;

/// What a test compares of an event: raw bytes, data, type, comment.
type Seen = (Vec<u8>, Option<Vec<u8>>, Option<String>, bool);

fn seen(event: &Event) -> Seen {
    (event.raw().to_vec(), event.data().map(Cow::into_owned), event.event_type().map(str::to_owned), event.is_comment())
}

fn decode<'c>(chunks: impl IntoIterator<Item = &'c [u8]>, limits: Limits) -> (Vec<Seen>, Option<SseError>) {
    let mut decoder = Decoder::new(limits);
    let mut events = Vec::new();
    for chunk in chunks {
        decoder.feed(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next() {
                Ok(Some(event)) => events.push(seen(&event)),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
    }
    loop {
        match decoder.finish() {
            Ok(Some(event)) => events.push(seen(&event)),
            Ok(None) => return (events, None),
            Err(error) => return (events, Some(error)),
        }
    }
}

fn whole(text: &[u8]) -> Vec<Seen> {
    let (events, error) = decode([text], Limits::default());
    assert_eq!(error, None);
    events
}

fn data(text: &[u8]) -> Vec<Option<String>> {
    whole(text).into_iter().map(|seen| seen.1.map(|data| String::from_utf8(data).unwrap())).collect()
}

/// The rules once more, written for clarity and for whole inputs only.
fn oracle(text: &[u8]) -> Vec<Seen> {
    let mut lines: Vec<(&[u8], &[u8])> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| b"\r\n".contains(byte)).unwrap_or(rest.len());
        let length = if rest[end..].starts_with(b"\r\n") { end + 2 } else { (end + 1).min(rest.len()) };
        lines.push((&rest[..end], &rest[..length]));
        rest = &rest[length..];
    }
    if let Some(first) = lines.first_mut() {
        first.0 = first.0.strip_prefix(BOM).unwrap_or(first.0);
    }
    let mut events = Vec::new();
    let mut open: Seen = (Vec::new(), None, None, true);
    for (line, raw) in lines {
        open.0.extend(raw);
        if line.is_empty() {
            events.push(std::mem::replace(&mut open, (Vec::new(), None, None, true)));
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = colon.map_or((line, &b""[..]), |at| (&line[..at], &line[at + 1..]));
        let value = value.strip_prefix(b" ").unwrap_or(value);
        open.3 &= colon == Some(0);
        match name {
            b"data" => match &mut open.1 {
                Some(data) => data.extend([b"\n", value].concat()),
                None => open.1 = Some(value.to_vec()),
            },
            b"event" => open.2 = String::from_utf8(value.to_vec()).ok(),
            _ => {}
        }
    }
    if !open.0.is_empty() {
        events.push(open);
    }
    events
}

#[test]
fn p4_every_line_end_separates_events() {
    for text in [
        "data: a\n\ndata: b\n\n",
        "data: a\r\n\r\ndata: b\r\n\r\n",
        "data: a\r\rdata: b\r\r",
        "data: a\r\n\rdata: b\n\r\n",
    ] {
        assert_eq!(data(text.as_bytes()), [Some("a".to_owned()), Some("b".to_owned())], "{text:?}");
    }
}

#[test]
fn p4_data_lines_are_joined_and_the_space_after_the_colon_is_optional() {
    assert_eq!(data(b"data:a\ndata:  b\ndata\n\n"), [Some("a\n b\n".to_owned())]);
    assert_eq!(data(b"data:\n\n"), [Some(String::new())]);
    assert_eq!(data(b"database: x\n\n"), [None]);
}

#[test]
fn p4_a_byte_order_mark_counts_only_at_the_start() {
    assert_eq!(data(b"\xef\xbb\xbfdata: a\n\n"), [Some("a".to_owned())]);
    assert_eq!(data(b"data: a\n\n\xef\xbb\xbfdata: b\n\n"), [Some("a".to_owned()), None]);
    assert_eq!(data(b"\xef\xbb\xbf\n\xef\xbb\xbf\n"), [None, None]);
}

#[test]
fn p4_nul_and_split_utf8_pass_through() {
    let text = "data: a\0ü\n\n".as_bytes();
    let (events, _) = decode(text.chunks(1), Limits::default());
    assert_eq!(events, whole(text));
    assert_eq!(events[0].1.as_deref(), Some("a\0ü".as_bytes()));
}

#[test]
fn comments_and_blank_lines_are_comments_and_other_fields_are_not() {
    let events = whole(b": ping\n\n\nevent: x\n\nid: 1\n: note\ndata: y\n\n");
    let comments: Vec<bool> = events.iter().map(|event| event.3).collect();
    assert_eq!(comments, [true, true, false, false]);
    assert_eq!(events[2].2.as_deref(), Some("x"));
}

#[test]
fn a_last_event_without_its_blank_line_comes_at_the_end() {
    let mut decoder = Decoder::new(Limits::default());
    decoder.feed(Bytes::from_static(b"data: a\n\ndata: [DONE]"));
    assert!(decoder.next().unwrap().is_some());
    assert!(decoder.next().unwrap().is_none());
    let last = decoder.finish().unwrap().unwrap();
    assert!(last.is_done());
    assert_eq!(last.closed().raw().as_ref(), b"data: [DONE]\n\n");
    assert!(decoder.finish().unwrap().is_none());
}

#[test]
fn a_closed_event_ends_with_a_blank_line_whatever_it_ended_with() {
    for text in
        ["data: a", "data: a\n", "data: a\r", "data: a\r\n", "data: a\n\n", "data: a\r\n\r\n", "data: a\r\r", "\n"]
    {
        let mut decoder = Decoder::new(Limits::default());
        decoder.feed(Bytes::copy_from_slice(text.as_bytes()));
        let event = decoder.finish().unwrap().unwrap().closed();
        let mut again = Decoder::new(Limits::default());
        again.feed(event.raw().clone());
        again.feed(Bytes::from_static(b"x"));
        assert!(again.next().unwrap().is_some(), "{text:?}");
    }
}

#[test]
fn an_event_inside_one_chunk_is_not_copied() {
    let chunk = Bytes::from_static(b"data: a\n\ndata: b\n\n");
    let mut decoder = Decoder::new(Limits::default());
    decoder.feed(chunk.clone());
    for offset in [0, 9] {
        assert_eq!(decoder.next().unwrap().unwrap().raw().as_ptr(), chunk[offset..].as_ptr());
    }
}

#[test]
fn events_we_make_read_back_as_what_they_were_made_of() {
    assert!(Event::done().is_done());
    assert_eq!(Event::from_data(b"{}").raw().as_ref(), b"data: {}\n\n");
    for json in [&b"{}"[..], b"{\n}", b"{\r\n}"] {
        let event = Event::from_data(json);
        assert_eq!(whole(event.raw()), [seen(&event)]);
        let mut decoder = Decoder::new(Limits::default());
        decoder.feed(Bytes::from_static(b"event: delta\r\ndata: old\r\n\r\n"));
        let edited = decoder.next().unwrap().unwrap().with_data(json);
        assert_eq!(whole(edited.raw()), [seen(&edited)]);
        assert_eq!((edited.event_type(), edited.data()), (Some("delta"), event.data()));
    }
}

#[test]
fn p4_a_line_without_end_is_stopped_at_its_limit() {
    let limits = Limits { line_bytes: 8, ..Limits::default() };
    let (events, error) = decode([&b"data: ok\n\ndata: far\n\n"[..]], limits);
    assert_eq!((events.len(), error), (1, Some(SseError::LineTooLong)));
    let mut decoder = Decoder::new(Limits::default());
    let block = Bytes::from(vec![b'x'; 64 << 10]);
    let fed = (0..2_000).take_while(|_| {
        decoder.feed(block.clone());
        decoder.next().is_ok()
    });
    assert_eq!(fed.count(), 16, "1 MiB in blocks of 64 KiB");
    assert_eq!(decoder.finish(), Err(SseError::LineTooLong));
}

#[test]
fn p4_an_event_without_end_is_stopped_at_its_limit() {
    let line = [b"data: ".as_slice(), &vec![b'x'; 100_000], b"\n"].concat();
    let (events, error) = decode(std::iter::repeat_n(line.as_slice(), 100), Limits::default());
    assert_eq!((events.len(), error), (0, Some(SseError::EventTooLong)));
}

#[test]
fn p4_a_million_empty_data_lines_are_stopped_by_their_number() {
    let (events, error) = decode(std::iter::repeat_n(&b"data:\n"[..], 1_000_000), Limits::default());
    assert_eq!((events.len(), error), (0, Some(SseError::TooManyLines)));
}

#[test]
fn p4_a_mebibyte_fed_byte_by_byte_is_read_once() {
    let text = [b"data: ".as_slice(), &vec![b'x'; (1 << 20) - 6], b"\n\n"].concat();
    let (events, error) = decode(text.chunks(1), Limits::default());
    assert_eq!((events.len(), error), (1, None));
}

#[test]
fn p4_all_chunkings_of_a_short_stream_give_the_same_events() {
    let texts: [&[u8]; 4] =
        [b"data:\r\n\r\nx\r\r\n", b"\xef\xbb\xbfdata: a\n\n", b":\n\ndata:a\rid\n", b"\r\n\r\n\n\r:\r\n\r"];
    for text in texts {
        let expected = oracle(text);
        for cuts in 0..1_u32 << (text.len() - 1) {
            let mut chunks = Vec::new();
            let mut start = 0;
            for at in 1..text.len() {
                if cuts >> (at - 1) & 1 == 1 {
                    chunks.push(&text[start..at]);
                    start = at;
                }
            }
            chunks.push(&text[start..]);
            assert_eq!(decode(chunks, Limits::default()).0, expected, "{text:?} {cuts:b}");
        }
    }
}

#[test]
fn debug_output_shows_no_content() {
    assert!(!format!("{:?}", Event::from_data(b"CANARY")).contains("CANARY"));
}

fn transcripts() -> impl Strategy<Value = Vec<u8>> {
    let pieces = vec![
        "data", "data: ", "event:", ":", " ", "\r", "\n", "\r\n", "\n\n", "\r\n\r\n", "\u{feff}", "ü漢", "\0",
        "[DONE]", "{}",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn p4_any_chunking_gives_the_same_events_and_every_byte(
        text in transcripts(),
        sizes in prop::collection::vec(1_usize..9, 1..400),
    ) {
        let mut rest = text.as_slice();
        let mut chunks = Vec::new();
        for size in sizes {
            let (chunk, tail) = rest.split_at(size.min(rest.len()));
            chunks.push(chunk);
            rest = tail;
        }
        chunks.push(rest);
        let (events, error) = decode(chunks, Limits::default());
        prop_assert_eq!(error, None);
        prop_assert_eq!(&events, &oracle(&text));
        let raw: Vec<u8> = events.into_iter().flat_map(|event| event.0).collect();
        prop_assert_eq!(raw, text);
    }

    #[test]
    fn p4_a_limit_stops_every_chunking_after_the_same_events(text in transcripts(), size in 1_usize..9) {
        let limits = Limits { line_bytes: 12, event_bytes: 40, lines_per_event: 3 };
        let (events, error) = decode([text.as_slice()], limits);
        let (again, error_again) = decode(text.chunks(size), limits);
        prop_assert_eq!(events, again);
        prop_assert_eq!(error.is_some(), error_again.is_some());
    }
}
