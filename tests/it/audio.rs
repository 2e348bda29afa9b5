//! Audio: forms that hold a file, answers that are sound, and what becomes of both when something breaks in the middle.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use weighbridge::upstream::breaker::State;

use crate::harness::*;

const AUDIO: &str = r#""chat.completions", "audio.transcriptions", "audio.translations", "audio.speech""#;
const BOUNDARY: &str = "------------------------d74496d66958873e";
const TRANSCRIPTIONS: &str = "/v1/audio/transcriptions";

fn world() -> World {
    World::with(&Plan { alpha_offers: AUDIO, beta_offers: AUDIO, ..Plan::default() })
}

fn field(name: &str, value: &str) -> Vec<u8> {
    format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").into_bytes()
}

fn file(content: &[u8]) -> Vec<u8> {
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
         Content-Type: audio/x-wav\r\n\r\n"
    );
    [head.as_bytes(), content, b"\r\n"].concat()
}

fn form(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), format!("--{BOUNDARY}--\r\n").into_bytes()].concat()
}

/// What no text is: all bytes, line ends among them.
fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7919 + at / 251) % 256).unwrap()).collect()
}

fn upload(path: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
    let mut request = post(path, SHOP, body);
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    request.headers_mut().insert("content-type", kind.parse().unwrap());
    request
}

fn small(model: &str) -> Vec<u8> {
    form(&[field("model", model), file(&noise(5_000))])
}

fn large(model: &str) -> Vec<u8> {
    form(&[field("model", model), file(&noise(3 << 20))])
}

/// The head of an upload whose body the test writes itself.
fn head(length: Option<usize>) -> String {
    let framing = length.map_or("transfer-encoding: chunked".to_owned(), |length| format!("content-length: {length}"));
    format!(
        "POST {TRANSCRIPTIONS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SHOP}\r\n\
         content-type: multipart/form-data; boundary={BOUNDARY}\r\n{framing}\r\n\r\n"
    )
}

async fn answer_of(io: &mut DuplexStream) -> String {
    let mut answer = Vec::new();
    while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_secs(2), io.read_buf(&mut answer)).await {}
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(start_paused = true)]
async fn a_form_reaches_the_provider_with_its_model_and_every_other_byte_as_sent() {
    let world = world();
    let tail = field("timestamp_granularities[]", "word");
    for path in [TRANSCRIPTIONS, "/v1/audio/translations"] {
        for size in [0, 5_000, 3 << 20] {
            let parts = |model: &str| {
                let (model, file, tail) = (field("model", model), file(&noise(size)), tail.clone());
                [vec![model.clone(), file.clone(), tail.clone()], vec![file, tail, model]]
            };
            for (sent, expected) in parts("duo").iter().zip(parts("alpha-fast-1")) {
                let answer = world.call(upload(path, form(sent))).await;
                assert_eq!(answer.status, 200, "{path} {size}: {}", answer.text());
                assert_eq!((answer.header("wb-provider"), answer.header("wb-cache")), ("alpha", "bypass"));
                assert!(answer.json()["text"].as_str().unwrap().ends_with(&format!("I heard {size} bytes.")));
                let seen = world.seen("alpha").pop().unwrap();
                assert_eq!((seen.path.as_str(), seen.model.as_str()), (&*format!("/alpha{path}"), "alpha-fast-1"));
                let expected = form(&expected);
                assert_eq!(seen.header("content-length"), Some(&*expected.len().to_string()), "{path} {size}");
                assert!(seen.body == expected, "{path} {size}: {} and {}", seen.body.len(), expected.len());
            }
        }
    }
    assert!(world.seen("beta").is_empty());
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_transcript_comes_in_every_format() {
    let mut world = world();
    for (format, starts) in
        [("json", "{"), ("verbose_json", "{"), ("text", "This is"), ("srt", "1\n00:"), ("vtt", "WEBVTT")]
    {
        let body = form(&[file(b"RIFF"), field("response_format", format), field("model", "duo")]);
        let answer = world.call(upload(TRANSCRIPTIONS, body)).await;
        assert_eq!(answer.status, 200, "{format}");
        assert!(answer.text().starts_with(starts) && answer.text().contains("alpha"), "{format}: {}", answer.text());
        let kind = if starts == "{" { "application/json" } else { "text/plain; charset=utf-8" };
        assert_eq!(answer.header("content-type"), kind);
        // Seconds are not tokens.
        let cost = if format == "json" { "0.000034 USD" } else { "unknown" };
        assert_eq!(answer.header("wb-cost"), cost, "{format}");
    }
    let line = world.log().remove(0);
    assert_eq!((&line["operation"], &line["tokens_in"]), (&json!("audio.transcriptions"), &json!(10)), "{line}");
}

#[tokio::test(start_paused = true)]
async fn f7_a_streamed_transcript_ends_in_its_own_event_or_in_one_error_event() {
    let body = || form(&[field("model", "duo"), field("stream", "true"), file(b"RIFF")]);
    let world = world();
    let answer = world.call(upload(TRANSCRIPTIONS, body())).await;
    assert!(answer.header("content-type").starts_with("text/event-stream"));
    let last: Value = serde_json::from_str(answer.events().last().unwrap()).unwrap();
    assert_eq!(last["type"], "transcript.text.done");
    world.fault("alpha", "cut:3");
    let text = world.call(upload(TRANSCRIPTIONS, body())).await.text();
    assert!(text.contains("upstream_truncated") && !text.contains("transcript.text.done"), "{text}");
    world.fault("alpha", "cut:0");
    let moved = world.call(upload(TRANSCRIPTIONS, body())).await;
    assert_eq!(moved.header("wb-provider"), "beta", "before its first word it moves on");
    world.fault("alpha", "stall:3");
    let text = world.call(upload(TRANSCRIPTIONS, body())).await.text();
    assert!(text.contains("upstream_stalled"), "{text}");
    world.assert_idle();
}

fn speech(model: &str, extra: &Value) -> Request<Full<Bytes>> {
    let mut body = json!({"model": model, "input": "hello there", "voice": "alloy"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    post("/v1/audio/speech", SHOP, body.to_string())
}

#[tokio::test(start_paused = true)]
async fn speech_comes_as_the_provider_says_it_and_costs_nobody_knows_what() {
    let world = world();
    for (format, kind) in [("mp3", "audio/mpeg"), ("wav", "audio/wav")] {
        let answer = world.call(speech("duo", &json!({"response_format": format}))).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, kind));
        assert!(answer.body.starts_with(b"SOUND of alpha, simulating alpha-fast-1 "));
        assert_eq!(answer.body.len(), 12 * 2_048 + "SOUND of alpha, simulating alpha-fast-1 ".len());
    }
    assert!(world.metric("weighbridge_unpriced_requests_total", &[]) > 1.9);
    let events = world.call(speech("duo", &json!({"stream_format": "sse"}))).await.events();
    assert_eq!(events.len(), 13);
    assert!(events[12].contains("speech.audio.done"));
    assert!(world.metric("weighbridge_tokens_total", &["type=\"output\""]) > 59.9, "events say what they cost");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn f7_speech_that_breaks_off_never_looks_whole() {
    for (fault, outcome) in [("cut:3", "truncated"), ("stall:3", "idle")] {
        let world = world();
        world.fault("alpha", fault);
        let mut open = Open::new(world.client().await, speech("duo", &json!({}))).await;
        assert_eq!(open.response.status(), 200);
        let mut frames = 0;
        let broken = loop {
            match open.response.body_mut().frame().await {
                Some(Ok(_)) => frames += 1,
                end => break end,
            }
        };
        assert!(frames >= 1 && matches!(broken, Some(Err(_))), "{fault}: the body ended well after {frames}");
        drop(open);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let outcome = format!("outcome=\"{outcome}\"");
        assert!(world.metric("weighbridge_stream_outcomes_total", &[&outcome]) > 0.9, "{fault}");
        assert!(world.seen("beta").is_empty());
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn speech_ends_with_the_calls_time_and_with_its_listener() {
    let world = World::with(&Plan { alpha_offers: AUDIO, pace: Duration::from_secs(5), ..Plan::default() });
    let mut request = speech("duo", &json!({}));
    request.headers_mut().insert("wb-timeout-ms", "8000".parse().unwrap());
    let mut open = Open::new(world.client().await, request).await;
    while let Some(Ok(_)) = open.response.body_mut().frame().await {}
    assert!(world.metric("weighbridge_requests_total", &["outcome=\"timeout\""]) > 0.9);
    drop(open);
    let mut open = Open::new(world.client().await, speech("duo", &json!({}))).await;
    open.response.body_mut().frame().await.unwrap().unwrap();
    drop(open);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(world.seen("alpha").pop().unwrap().cancelled, "nobody listens, so the provider may stop");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn f1_f11_a_small_upload_and_a_speech_fail_over_like_any_call() {
    for fault in ["status:503", "status:429", "empty", "garbage", "error-in-200:500", "reset", "refuse", "stall"] {
        let world = world();
        world.fault("alpha", fault);
        let answer = world.call(upload(TRANSCRIPTIONS, small("duo"))).await;
        assert_eq!((answer.status, answer.header("wb-provider")), (200, "beta"), "{fault}");
        assert!(answer.json()["text"].as_str().unwrap().ends_with("I heard 5000 bytes."), "{fault}");
        let answer = world.call(speech("duo", &json!({}))).await;
        assert_eq!((answer.status, answer.header("wb-provider")), (200, "beta"), "{fault}");
        assert!(answer.body.starts_with(b"SOUND of beta"), "{fault}");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_too_large_to_be_kept_is_tried_once_and_its_caller_is_told() {
    let world = world();
    world.fault("alpha", "status:503");
    let answer = world.call(upload(TRANSCRIPTIONS, large("duo"))).await;
    assert_eq!((answer.status, answer.openai_error()), (503, "upstream_unavailable".to_owned()));
    assert!(answer.text().contains("too large to be kept"), "{}", answer.text());
    assert_eq!(answer.headers.get("x-should-retry"), None, "the caller has the file and may send it again");
    assert_eq!(world.counts(), [1, 0, 0]);
    // With the file before the model all of it had to be read to know where it goes, so that it can go elsewhere too.
    let body = form(&[file(&noise(3 << 20)), field("model", "duo")]);
    assert_eq!(world.call(upload(TRANSCRIPTIONS, body)).await.header("wb-provider"), "beta");
    // A call that is compared with its repetition is kept, too.
    let mut keyed = upload(TRANSCRIPTIONS, large("duo"));
    keyed.headers_mut().insert("idempotency-key", "k-1".parse().unwrap());
    assert_eq!(world.call(keyed).await.header("wb-provider"), "beta");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_large_upload_of_which_nothing_is_gone_yet_moves_on() {
    let world = world();
    world.net.always("alpha", Link::Refused);
    let answer = world.call(upload(TRANSCRIPTIONS, large("duo"))).await;
    assert_eq!((answer.status, answer.header("wb-provider")), (200, "beta"), "{}", answer.text());
    assert_eq!(world.seen("beta")[0].body.len(), large("beta-fast-1").len());
}

#[tokio::test(start_paused = true)]
async fn s10_p7_a_second_model_behind_the_kept_beginning_never_arrives() {
    let world = world();
    let twice = form(&[field("model", "duo"), file(&noise(3 << 20)), field("model", "alpha-dear-1")]);
    let answer = world.call(upload(TRANSCRIPTIONS, twice)).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(answer.json()["error"]["param"], "model");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(world.seen("alpha").is_empty(), "no provider saw a whole form");
    assert_eq!(world.breaker("alpha/fast"), State::Closed);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn p1_p5_an_upload_that_is_too_large_or_falls_silent_or_breaks_off_is_the_callers() {
    let begun = [field("model", "duo"), file(&noise(2 << 20))].concat();
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    for (more, silence, close, status) in [
        (noise(40 << 20), false, false, "413"),
        (Vec::new(), true, false, "408"),
        (Vec::new(), false, true, "400"),
        (b"zz\r\n".to_vec(), false, false, "400"),
    ] {
        let world = world();
        let (io, _end) = world.raw();
        let (mut read, mut write) = tokio::io::split(io);
        let bytes = if more.starts_with(b"zz") { more } else { chunk(&more) };
        let sent = [head(None).as_bytes(), &chunk(&begun)].concat();
        let writer = tokio::spawn(async move {
            let _ = write.write_all(&sent).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if close {
                return drop(write.shutdown().await);
            }
            if !silence {
                let _ = write.write_all(&bytes).await;
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
        });
        let mut answer = vec![0; 4096];
        let length = tokio::time::timeout(Duration::from_secs(30), read.read(&mut answer)).await.unwrap().unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        // Who closed its side does not always hear the answer.
        if !(close && answer.is_empty()) {
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
        }
        writer.abort();
        drop(read);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(world.seen("alpha").is_empty(), "{status}: no provider saw a whole form");
        assert_eq!(world.breaker("alpha/fast"), State::Closed, "{status}");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_reads_nothing_stops_the_caller_from_sending() {
    let world = world();
    world.net.always(
        "alpha",
        peer(|io| async move {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            drop(io);
        }),
    );
    let body = form(&[field("model", "duo"), file(&noise(20 << 20))]);
    let sent = [head(Some(body.len())).into_bytes(), body].concat();
    let (mut io, _end) = world.raw();
    let mut written = 0;
    while let Ok(Ok(count)) = tokio::time::timeout(Duration::from_secs(1), io.write(&sent[written..])).await {
        written += count;
    }
    assert!(written > 1 << 20, "the beginning is taken: {written}");
    assert!(written < 3 << 20, "the rest waits with its caller: {written}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_slow_to_send_is_not_the_providers_failure() {
    let world = world();
    let (mut io, _end) = world.raw();
    let begun = [field("model", "duo"), file(&noise(2 << 20))].concat();
    io.write_all(&[head(Some(begun.len() + 1_000)).as_bytes(), &begun].concat()).await.unwrap();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let _ = io.write_all(b"x").await;
    }
    let answer = answer_of(&mut io).await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(world.metric("weighbridge_upstream_attempts_total", &["reason=\"deadline_passed\""]) > 0.9);
    assert_eq!(world.breaker("alpha/fast"), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_early_refusal_reaches_a_caller_who_is_still_sending() {
    let world = world();
    world.net.always(
        "alpha",
        peer(|mut io| async move {
            let mut some = vec![0; 2_000];
            io.read_exact(&mut some).await.unwrap();
            io.write_all(http_reply("400 Bad Request", "", r#"{"error":{"message":"no such language"}}"#).as_bytes())
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
        }),
    );
    let answer = world.call(upload(TRANSCRIPTIONS, large("duo"))).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("no such language"));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn p3_what_is_no_form_or_names_no_model_of_the_callers_is_refused_in_openais_shape() {
    let world = world();
    let asked = |body: Vec<u8>| upload(TRANSCRIPTIONS, body);
    let no_boundary = {
        let mut request = asked(small("duo"));
        request.headers_mut().insert("content-type", "multipart/form-data".parse().unwrap());
        request
    };
    let cases = [
        (post(TRANSCRIPTIONS, SHOP, r#"{"model":"duo"}"#), 415),
        (no_boundary, 400),
        (asked(form(&[file(b"RIFF")])), 400),
        (asked(form(&[field("model", "duo"), field("model", "duo")])), 400),
        (asked(small("duo")[..200].to_vec()), 400),
        (asked(small("nobody")), 404),
        (asked(small("duo\n")), 400),
        (post("/v1/audio/speech", SHOP, "voice=alloy"), 400),
        (upload("/v1/audio/speech", small("duo")), 415),
        (upload("/v1/chat/completions", small("duo")), 415),
        (asked(form(&[field("model", "duo"), field("language", "en")])), 400),
    ];
    for (number, (request, status)) in cases.into_iter().enumerate() {
        let answer = world.call(request).await;
        assert_eq!(answer.status, status, "{number}: {}", answer.text());
        answer.openai_error();
    }
    let only_alpha = World::with(&Plan { alpha_offers: r#""chat.completions""#, ..Plan::default() });
    let answer = only_alpha.call(upload(TRANSCRIPTIONS, small("duo"))).await;
    assert_eq!(answer.openai_error(), "unsupported_operation");
    assert_eq!(only_alpha.counts(), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn neither_sound_nor_recordings_are_cached() {
    let world = world();
    for _ in 0..2 {
        for request in [speech("kept", &json!({})), upload(TRANSCRIPTIONS, small("kept"))] {
            let answer = world.call(request).await;
            assert_eq!((answer.status, answer.header("wb-cache")), (200, "bypass"));
        }
    }
    assert_eq!(world.counts(), [4, 0, 0]);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn c12_the_same_key_gets_the_same_sound_and_the_same_transcript() {
    let world = world();
    let keyed = |mut request: Request<Full<Bytes>>, key: &str| {
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        request
    };
    let ask = |model: &str| [speech(model, &json!({})), upload(TRANSCRIPTIONS, large(model))];
    for (number, model) in ["duo", "kept"].into_iter().enumerate() {
        for (key, (first, again)) in ["s", "t"].iter().zip(ask(model).into_iter().zip(ask(model))) {
            let key = format!("{key}-{model}");
            let (first, again) = (world.call(keyed(first, &key)).await, world.call(keyed(again, &key)).await);
            assert_eq!((first.status, again.status), (200, 200), "{key}: {}", again.text());
            assert_eq!((first.header("idempotent-replayed"), again.header("idempotent-replayed")), ("", "true"));
            assert!(first.body == again.body && !first.body.is_empty(), "{key}");
            assert_eq!(first.header("content-type"), again.header("content-type"));
        }
        assert_eq!(world.counts()[0], 2 * (number + 1));
    }
    let body = form(&[field("model", "duo"), file(&noise(5_001))]);
    let other = world.call(keyed(upload(TRANSCRIPTIONS, body), "t-duo")).await;
    assert_eq!((other.status, other.openai_error().as_str()), (409, "idempotency_key_reused"));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn c12_f7_sound_under_a_key_that_breaks_off_is_an_error_for_everyone_and_not_kept() {
    let pace = Duration::from_millis(100);
    let world = World::with(&Plan { alpha_offers: AUDIO, pace, ..Plan::default() });
    world.fault("alpha", "cut:3");
    let request = || {
        let mut request = speech("solo", &json!({}));
        request.headers_mut().insert("idempotency-key", "k".parse().unwrap());
        request
    };
    let (one, two) = tokio::join!(world.call(request()), world.call(request()));
    assert_eq!((one.status, two.status), (502, 502), "{}", one.text());
    assert_eq!(world.counts(), [2, 0, 0], "who joined tries once alone, as after any failure");
    world.faults.clear("alpha");
    let whole = world.call(request()).await;
    assert_eq!((whole.status, whole.header("idempotent-replayed")), (200, ""));
    assert!(whole.body.starts_with(b"SOUND of alpha"));
    world.assert_idle();
}
