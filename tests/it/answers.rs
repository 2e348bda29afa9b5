//! Answers that are none (rows 6, 7 and 17 to 19 of the fault matrix, and row 21 for payments): in every form, whole and
//! streamed, where another provider can answer and where nobody can.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::sleep;
use weighbridge::upstream::breaker::State;

use crate::harness::forms::{BEGIN, Form, NATIVE, chunk};
use crate::harness::*;

fn native() -> World {
    World::with(&Plan { alpha_offers: NATIVE, ..Plan::default() })
}

async fn ask(world: &World, form: Form, model: &str, stream: bool) -> Answer {
    let mut body = form.body(model);
    if !stream {
        body["stream"] = json!(false);
        body.as_object_mut().unwrap().remove("stream_options");
    }
    world.call(post(form.path(), SHOP, body.to_string())).await
}

/// The event after which a stream of this form is complete.
fn terminal(form: Form) -> &'static str {
    match form {
        Form::Chat => "data: [DONE]",
        Form::Responses => "event: response.completed",
        Form::Messages => "event: message_stop",
    }
}

/// Fails unless it is one whole answer of `beta`, which knows nothing of what the first provider said.
fn assert_from_beta(form: Form, answer: &Answer, what: &str) {
    let text = answer.text();
    assert_eq!((answer.status, answer.header("wb-provider")), (200, "beta"), "{form:?}, {what}: {text}");
    assert_eq!(answer.header("wb-attempts"), "2", "{form:?}, {what}");
    assert!(text.contains("beta") && !text.contains("ALPHA"), "{form:?}, {what}: {text}");
    if answer.header("content-type").starts_with("text/event-stream") {
        let first = match form {
            Form::Chat => "\"role\":\"assistant\"",
            Form::Responses => "event: response.created",
            Form::Messages => "event: message_start",
        };
        assert_eq!((text.matches(first).count(), text.matches(terminal(form)).count()), (1, 1), "{what}: {text}");
    } else {
        assert!(answer.header("content-type").starts_with("application/json"), "{form:?}, {what}");
        answer.json();
    }
}

/// A provider that says this after the request, and then nothing; or closes, where `closes`.
fn falls_silent(text: impl Into<Vec<u8>>, closes: bool) -> Link {
    let text: Arc<[u8]> = text.into().into();
    peer(move |mut io: DuplexStream| {
        let text = Arc::clone(&text);
        async move {
            read_request(&mut io).await;
            io.write_all(&text).await.unwrap();
            if !closes {
                while !read_request(&mut io).await.is_empty() {}
            }
        }
    })
}

/// Everything that comes before content and is none, in pieces.
fn openings(form: Form) -> Vec<&'static str> {
    let mut pieces = vec!["", ": ALPHA is thinking\n\n", "\n\n\n", "id: ALPHA\n\n", "data: \n\n"];
    pieces.push(form.opening());
    match form {
        Form::Chat => pieces.extend([
            "data: {\"id\":\"ALPHA\",\"choices\":[]}\n\n",
            "data: {\"id\":\"ALPHA\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}],\"usage\":null}\n\n",
            "data: {\"id\":\"ALPHA\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
            "data: {\"id\":\"ALPHA\",\"choices\":[{\"delta\":{\"content\":\"half an ev",
        ]),
        Form::Responses => pieces.push("event: response.in_progress\ndata: {\"type\":\"response.in_progress\"}\n\n"),
        Form::Messages => pieces.push("event: ping\ndata: {\"type\":\"ping\",\"by\":\"ALPHA\"}\n\n"),
    }
    pieces
}

#[tokio::test(start_paused = true)]
async fn row_6_whatever_came_before_content_is_forgotten_when_nothing_or_nonsense_follows() {
    for form in Form::ALL {
        let mut said = String::new();
        for piece in openings(form) {
            said.push_str(piece);
            for closes in [false, true] {
                let reply =
                    [BEGIN.as_bytes(), &if said.is_empty() { Vec::new() } else { chunk(said.as_bytes()) }].concat();
                let world = native();
                world.net.always("alpha", falls_silent(reply, closes));
                let answer = ask(&world, form, "duo", true).await;
                assert_from_beta(form, &answer, &said);
                let waited = if closes { Duration::ZERO } else { Duration::from_secs(5) };
                assert!(answer.took >= waited && answer.took < waited + Duration::from_secs(2), "{:?}", answer.took);
                assert_eq!((world.net.dialled("alpha"), world.seen("beta").len()), (1, 1));
                world.assert_idle();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_7_wherever_a_stream_is_cut_it_is_another_providers_or_ends_in_one_error_event() {
    for form in Form::ALL {
        let words = ["ALPHA-1", "ALPHA-2", "ALPHA-3"].map(|word| form.word(word));
        let sent = [form.opening(), &words.concat(), form.ending()].concat();
        let content = form.opening().len() + words[0].len();
        for cut in (0..sent.len()).step_by(37).chain([content, sent.len() - 1, sent.len()]) {
            let reply =
                [BEGIN.as_bytes(), &if cut == 0 { Vec::new() } else { chunk(&sent.as_bytes()[..cut]) }].concat();
            let mut world = native();
            world.net.always("alpha", falls_silent(reply, true));
            let answer = ask(&world, form, "duo", true).await;
            if answer.header("wb-provider") == "beta" {
                assert!(cut < content, "{form:?} at {cut}: content was taken back");
                assert_from_beta(form, &answer, &cut.to_string());
                continue;
            }
            let text = answer.text();
            let start = if form == Form::Chat { "data: {\"error\"" } else { "event: error" };
            let (before, error) = text.split_once(start).unwrap_or((&text, ""));
            assert!(sent.starts_with(before.trim_end()), "{form:?} at {cut}: {text}");
            assert!(before.contains("ALPHA-1") && world.seen("beta").is_empty(), "{form:?} at {cut}: {text}");
            let complete = before.contains(terminal(form));
            assert_eq!(complete, error.is_empty(), "{form:?} at {cut}: {text}");
            assert!(complete || error.contains("upstream_truncated") && !error.contains(terminal(form)), "{text}");
            let line = &world.log()[0];
            assert_eq!(line["stream.end"], if complete { "complete" } else { "truncated" }, "{line}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_7_what_is_known_of_a_cut_streams_usage_is_recorded_and_the_rest_is_called_unknown() {
    for (form, input) in [(Form::Chat, 0.0), (Form::Messages, 3.0)] {
        let mut world = native();
        let sent = [form.opening(), &form.word("one"), &form.word("two")].concat();
        world.net.always("alpha", falls_silent([BEGIN.as_bytes(), &chunk(sent.as_bytes())].concat(), true));
        assert_eq!(ask(&world, form, "duo", true).await.status, 200);
        let tokens = world.metric("weighbridge_tokens_total", &["provider=\"alpha\"", "type=\"input\""]);
        assert!((tokens - input).abs() < f64::EPSILON, "{form:?}: {tokens}");
        let unpriced = world.metric("weighbridge_unpriced_requests_total", &[]);
        let priced = world.metric("weighbridge_cost_micro_total", &["provider=\"alpha\""]);
        assert!(form != Form::Chat || (unpriced - 1.0).abs() < f64::EPSILON && priced.abs() < f64::EPSILON);
        assert_eq!(world.log()[0]["stream.end"], "truncated");
    }
}

fn reply(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

const HTML: &str = "<html><body>ALPHA works!</body></html>";
const AS_JSON: &str = "content-type: application/json\r\n";
const AS_EVENTS: &str = "content-type: text/event-stream\r\n";
const AS_HTML: &str = "content-type: text/html\r\n";

/// 200s that are no whole answers in any form.
fn no_answers(form: Form) -> Vec<String> {
    let bodies = [
        HTML,
        "",
        "null",
        "{}",
        "[]",
        "7",
        "\"ALPHA\"",
        "ALPHA",
        "{\"ALPHA\":",
        "{} {}",
        "{\"choices\":[],\"output\":[],\"content\":[]}",
        "{\"choices\":null,\"output\":null,\"content\":null}",
        "{\"error\":\"ALPHA\"}",
        "{\"error\":{\"message\":\"ALPHA\",\"type\":\"server_error\",\"code\":500}}",
        "{\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"ALPHA\"}}",
        "{\"object\":\"error\",\"message\":\"ALPHA\",\"code\":50000}",
        "data: {\"choices\":[{\"delta\":{\"content\":\"ALPHA\"}}]}\n\ndata: [DONE]\n\n",
    ];
    let mut replies: Vec<String> = bodies.iter().map(|body| reply(AS_JSON, body)).collect();
    replies.extend([reply(AS_HTML, HTML), reply("", HTML), reply(AS_EVENTS, &form.word("ALPHA"))]);
    replies.push(reply(AS_JSON, &String::from_utf8_lossy(&[b'{'; 100_000])));
    replies
}

/// 200s that are no streams in any form.
fn no_streams(form: Form) -> Vec<String> {
    let whole = "{\"choices\":[{\"message\":{\"content\":\"ALPHA\"},\"finish_reason\":\"stop\"}]}";
    let stream = [form.opening(), &form.word("ALPHA"), form.ending()].concat();
    let mut replies: Vec<String> = [AS_JSON, AS_HTML, "", "content-type: text/plain\r\n"]
        .iter()
        .flat_map(|kind| [reply(kind, HTML), reply(kind, whole), reply(kind, &stream), reply(kind, "")])
        .collect();
    let bodies = [
        "",
        HTML,
        whole,
        "\n\n\n\n",
        ": ALPHA\n\n",
        "data: \n\n",
        "data: ALPHA\n\ndata: [DONE]\n\n",
        "data: [DONE]\n\n",
        "data: {\"error\":{\"message\":\"ALPHA\"}}\n\n",
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"ALPHA\"}}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"error\"}],\"error\":{\"code\":502,\"message\":\"ALPHA\"}}\n\n",
        "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\
         \"error\":{\"message\":\"ALPHA\"}}}\n\n",
    ];
    replies.extend(bodies.iter().map(|body| reply(AS_EVENTS, body)));
    replies
}

#[tokio::test(start_paused = true)]
async fn row_17_a_200_that_is_no_answer_is_another_providers_answer_or_an_error_and_never_shown() {
    for form in Form::ALL {
        for (stream, replies) in [(false, no_answers(form)), (true, no_streams(form))] {
            for reply in replies {
                let world = native();
                world.net.always("alpha", says(reply.clone()));
                assert_from_beta(form, &ask(&world, form, "duo", stream).await, &reply);
                if form != Form::Chat && reply.contains("{") {
                    continue;
                }
                let alone = ask(&world, form, "solo", stream).await;
                assert!(alone.status >= 400, "{form:?}, {reply}: {}", alone.text());
                assert!(alone.header("content-type").starts_with("application/json"), "{reply}");
                assert!(!alone.text().contains("<html>"), "{form:?}, {reply}: {}", alone.text());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_17_a_good_answer_under_a_wrong_name_gets_its_right_one() {
    let body = r#"{"id":"x","choices":[{"message":{"content":"right"},"finish_reason":"stop"}]}"#;
    for kind in ["content-type: text/plain\r\n", "content-type: text/html; charset=utf-8\r\n", ""] {
        let world = World::new();
        world.net.always("alpha", says(reply(kind, body)));
        let answer = world.chat(&chat("duo")).await;
        assert_eq!((answer.said().as_str(), answer.header("content-type")), ("right", "application/json"), "{kind}");
    }
}

/// A provider that sends this head and then zeros for ever, and counts them.
fn endless(head: &'static str, written: &Arc<AtomicUsize>) -> Link {
    let written = Arc::clone(written);
    peer(move |mut io: DuplexStream| {
        let written = Arc::clone(&written);
        async move {
            read_request(&mut io).await;
            io.write_all(head.as_bytes()).await.unwrap();
            while io.write_all(&[0; 64 * 1024]).await.is_ok() {
                written.fetch_add(64 * 1024, Ordering::SeqCst);
            }
        }
    })
}

#[tokio::test(start_paused = true)]
async fn row_18_what_is_compressed_unasked_is_not_unpacked_and_not_even_read() {
    let heads = [
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\ncontent-encoding: identity\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip, gzip, gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: br\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: zstd\r\n\r\n",
    ];
    for head in heads {
        for form in Form::ALL {
            let (world, written) = (native(), Arc::new(AtomicUsize::new(0)));
            world.net.always("alpha", endless(head, &written));
            let stream = head.contains("event-stream");
            assert_from_beta(form, &ask(&world, form, "duo", stream).await, head);
            assert!(written.load(Ordering::SeqCst) <= 1 << 20, "{head}: {written:?} bytes were taken");
            let alone = ask(&world, form, "solo", stream).await;
            assert_eq!(alone.status, 502, "{head}: {}", alone.text());
        }
    }
    let world = native();
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert_eq!(world.seen("alpha")[0].header("accept-encoding"), Some("identity"), "nobody is asked to compress");
}

#[tokio::test(start_paused = true)]
async fn row_18_an_answer_without_end_is_given_up_within_its_limits() {
    let heads = [
        ("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n", chat("duo"), 33 << 20),
        ("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", streamed("duo"), 2 << 20),
        ("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n", streamed("duo"), 1 << 20),
        ("HTTP/1.1 500 No\r\ncontent-type: application/json\r\n\r\n", chat("duo"), 1 << 20),
    ];
    for (head, body, most) in heads {
        let (world, written) = (World::new(), Arc::new(AtomicUsize::new(0)));
        world.net.always("alpha", endless(head, &written));
        world.chat(&body).await.assert_served("beta", 2);
        let taken = written.load(Ordering::SeqCst);
        assert!(taken <= most, "{head}: {taken} bytes were taken");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn row_19_interim_responses_are_ignored_as_long_as_an_answer_follows_in_time() {
    let good =
        http_reply("200 OK", "", r#"{"id":"x","choices":[{"message":{"content":"after"},"finish_reason":"stop"}]}"#);
    for interim in [
        "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(3),
        "HTTP/1.1 100 Continue\r\n\r\n".to_owned(),
        "HTTP/1.1 102 Processing\r\n\r\n".repeat(16),
    ] {
        let world = World::new();
        world.net.always("alpha", says(interim + &good));
        let answer = world.chat(&chat("duo")).await;
        assert_eq!((answer.said().as_str(), answer.header("wb-provider")), ("after", "alpha"));
        assert!(!answer.headers.contains_key("link"));
    }
}

#[tokio::test(start_paused = true)]
async fn row_19_interim_responses_with_no_answer_after_them_cost_the_limit_of_an_attempt_and_no_more() {
    for body in [chat("duo"), streamed("duo")] {
        let (world, written) = (World::new(), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&written);
        world.net.always(
            "alpha",
            peer(move |mut io: DuplexStream| {
                let written = Arc::clone(&counter);
                async move {
                    read_request(&mut io).await;
                    // The sixteen that are ignored, over almost all the time there is.
                    for _ in 0..16 {
                        if io.write_all(b"HTTP/1.1 103 Early Hints\r\nx-hint: ALPHA\r\n\r\n").await.is_ok() {
                            written.fetch_add(1, Ordering::SeqCst);
                        }
                        sleep(Duration::from_millis(300)).await;
                    }
                    while io.write_all(b"").await.is_ok() && io.read_u8().await.is_ok() {}
                }
            }),
        );
        let answer = world.chat(&body).await;
        answer.assert_served("beta", 2);
        // A stream is given its first content's time, a whole answer its share of all.
        let limit = if body["stream"] == true { 5 } else { 15 };
        assert_eq!(answer.took.as_secs(), limit);
        assert_eq!(written.load(Ordering::SeqCst), 16);
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn row_21_a_payment_on_a_kept_connection_that_dies_is_sent_once_unless_nothing_was_sent() {
    let source = |answer: &Answer| answer.json()["source"].clone();
    // The connection was closed while it was idle: nothing of the payment was sent, so another one is tried.
    let world = World::new();
    assert_eq!(source(&world.assess(&payment("T0", "1.00")).await), "live");
    let dialled = world.net.dialled("alipay");
    sleep(Duration::from_secs(51)).await;
    assert_eq!(source(&world.assess(&payment("T1", "1.00")).await), "live");
    assert_eq!((world.scorings(), world.net.dialled("alipay")), (2, dialled + 1));
    // It dies under the payment: whether that was read nobody knows, so it is not sent again.
    for fault in ["refuse", "reset"] {
        let world = World::new();
        world.assess(&payment("T0", "1.00")).await;
        world.faults("alipay", &[fault]);
        let answer = world.assess(&payment("T1", "1.00")).await;
        assert_eq!((source(&answer), world.scorings(), answer.header("wb-attempts")), (json!("fallback"), 2, "1"));
        assert_eq!(world.breaker("alipay"), State::Closed);
    }
}

/// The same for what may be repeated, of every kind: it is, once, and neither the client nor the breaker hears of it.
#[tokio::test(start_paused = true)]
async fn row_21_what_may_be_repeated_is_sent_once_more_on_a_new_connection_and_only_once() {
    let good =
        http_reply("200 OK", "", r#"{"id":"x","choices":[{"message":{"content":"kept"},"finish_reason":"stop"}]}"#);
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    // Every connection answers once and dies under its second request.
    let dies = peer(move |mut io: DuplexStream| {
        let (good, sent) = (good.clone(), Arc::clone(&counter));
        async move {
            for answered in [true, false] {
                if read_request(&mut io).await.is_empty() {
                    return;
                }
                sent.fetch_add(1, Ordering::SeqCst);
                if answered {
                    io.write_all(good.as_bytes()).await.unwrap();
                }
            }
        }
    });
    let world = World::new();
    world.net.always("alpha", dies);
    for number in 1..=20 {
        let answer = world.chat(&chat("solo")).await;
        assert_eq!((answer.said().as_str(), answer.header("wb-attempts")), ("kept", "1"));
        assert_eq!((world.net.dialled("alpha"), sent.load(Ordering::SeqCst)), (number, 2 * number - 1));
    }
    assert_eq!(world.breaker("alpha/fast"), State::Closed);
    let value: Value = json!(world.metric("weighbridge_upstream_attempts_total", &["outcome=\"failed\""]));
    assert_eq!(value, json!(0.0));
}
