//! What a stream looks like on its way through: nothing waits for what follows it, and nothing is changed but what is
//! listed here.
//!
//! A stream that the provider sends in the caller's own form arrives byte for byte, with these exceptions: (1) what held
//! no field, comments between events and surplus blank lines, stays here; (2) of a caller that did not ask for usage, the
//! usage event stays here and `"usage": null` is taken out of its chunk; (3) a last event that lacks its blank line gets
//! it; (4) nothing follows the last event of the form; (5) an error event becomes our one error event, which is the last.
//! What is carried over another form is written anew, event by event.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::runtime::Builder;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, timeout};

use crate::harness::forms::{BEGIN, Form, NATIVE, chunk};
use crate::harness::*;

const CHAT_ONLY: &str = r#""chat.completions""#;

/// What a client speaks.
#[derive(Clone, Copy, Debug)]
enum Speaks {
    Http1,
    Http2,
}

/// Asks, and returns the answer's body as it comes.
async fn ask(world: &World, speaks: Speaks, form: Form, model: &str) -> (Incoming, Box<dyn Send>) {
    let (io, _end) = world.raw();
    let body = form.body(model).to_string();
    match speaks {
        Speaks::Http1 => {
            let mut client = Client::over(io).await;
            let answer = client.sender.send_request(post(form.path(), SHOP, body)).await.unwrap();
            assert_eq!(answer.status(), 200, "{form:?}");
            (answer.into_body(), Box::new(client))
        }
        Speaks::Http2 => {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
            let driver = tokio::spawn(connection);
            let request = Request::post(format!("http://proxy.test{}", form.path()))
                .header("authorization", format!("Bearer {SHOP}"))
                .body(Full::<Bytes>::from(body))
                .unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.status(), 200, "{form:?}");
            (answer.into_body(), Box::new((sender, driver)))
        }
    }
}

const WORDS: usize = 40;

/// A provider that says its first words and then each further one only when the client has the one before.
fn waits_for_the_client(form: Form, confirmed: mpsc::UnboundedReceiver<()>) -> Link {
    let confirmed = std::sync::Arc::new(Mutex::new(confirmed));
    peer(move |mut io: DuplexStream| {
        let confirmed = std::sync::Arc::clone(&confirmed);
        async move {
            read_request(&mut io).await;
            let first = [BEGIN.as_bytes(), &chunk(form.opening().as_bytes())].concat();
            io.write_all(&first).await.unwrap();
            for number in 0..WORDS {
                io.write_all(&chunk(form.word(&format!("w{number}.")).as_bytes())).await.unwrap();
                confirmed.lock().await.recv().await.unwrap();
            }
            let last = [chunk(form.ending().as_bytes()), b"0\r\n\r\n".to_vec()].concat();
            io.write_all(&last).await.unwrap();
        }
    })
}

/// Reads until `whole` holds for what came so far.
async fn read_until(body: &mut Incoming, text: &mut String, whole: impl Fn(&str) -> bool) {
    while !whole(text) {
        let frame = timeout(Duration::from_secs(5), body.frame()).await;
        let frame = frame.unwrap_or_else(|_| panic!("what was sent is kept back after {text}"));
        let Some(frame) = frame else { panic!("it ended after {text}") };
        text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
    }
}

/// No clock is needed to see that nothing is buffered: the next event exists only once the last one has arrived.
#[tokio::test(start_paused = true)]
async fn each_event_arrives_before_the_next_one_is_written() {
    let ways = [(Speaks::Http1, "solo"), (Speaks::Http2, "solo"), (Speaks::Http1, "kept")];
    for (form, (speaks, model)) in Form::ALL.into_iter().flat_map(|form| ways.map(|way| (form, way))) {
        let (confirm, confirmed) = mpsc::unbounded_channel();
        let world = World::with(&Plan { alpha_offers: NATIVE, ..Plan::default() });
        world.net.always("alpha", waits_for_the_client(form, confirmed));
        let (mut body, _connection) = ask(&world, speaks, form, model).await;
        let (started, mut text, mut sent) = (Instant::now(), String::new(), form.opening().to_owned());
        for number in 0..WORDS {
            sent.push_str(&form.word(&format!("w{number}.")));
            read_until(&mut body, &mut text, |text| text.len() >= sent.len()).await;
            assert_eq!(text, sent, "{form:?} over {speaks:?}, {model}: nothing more, nothing less");
            confirm.send(()).unwrap();
        }
        sent.push_str(form.ending());
        read_until(&mut body, &mut text, |text| text.len() >= sent.len()).await;
        assert!(body.frame().await.is_none_or(|frame| frame.unwrap().into_data().unwrap().is_empty()));
        assert_eq!((text, started.elapsed()), (sent, Duration::ZERO), "{form:?} over {speaks:?}, {model}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_word_that_is_told_in_another_form_arrives_before_the_next_one_is_written() {
    for (form, speaks) in [Form::Responses, Form::Messages].into_iter().zip([Speaks::Http1, Speaks::Http2]) {
        let (confirm, confirmed) = mpsc::unbounded_channel();
        let world = World::with(&Plan { alpha_offers: CHAT_ONLY, ..Plan::default() });
        world.net.always("alpha", waits_for_the_client(Form::Chat, confirmed));
        let (mut body, _connection) = ask(&world, speaks, form, "solo").await;
        let mut text = String::new();
        for number in 0..WORDS {
            read_until(&mut body, &mut text, |text| text.contains(&format!("\"w{number}.\""))).await;
            assert!(!text.contains(&format!("w{}.", number + 1)) && text.ends_with("\n\n"), "{form:?}: {text}");
            confirm.send(()).unwrap();
        }
        let last = if form == Form::Responses { "event: response.completed" } else { "event: message_stop" };
        read_until(&mut body, &mut text, |text| text.contains(last) && text.ends_with("\n\n")).await;
    }
}

/// A stream as it is sent, and what of it the caller gets.
#[derive(Clone, Default, Debug)]
struct Stream {
    sent: Vec<u8>,
    kept: Vec<u8>,
}

impl Stream {
    fn keep(&mut self, text: &str) {
        self.sent.extend_from_slice(text.as_bytes());
        self.kept.extend_from_slice(text.as_bytes());
    }

    fn lose(&mut self, text: &str) {
        self.sent.extend_from_slice(text.as_bytes());
    }
}

/// What the data of an event may be; `¦` is where a line may end. None says that anything went wrong.
fn payloads(form: Form) -> Vec<&'static str> {
    let mut payloads = vec![
        "{\"x\":¦123456789012345678901234567890.5e+400 , \"y\" :[1.0,¦-0,1E5] }",
        "{¦\"a\":1,\"a\":2,\"é\":\"\\u00e9\\ud83d\\ude00\",\"b\":\"\u{1f600}\u{2028}\"¦}",
        "{\"error\":null,\"extra\":{\"error\":\"not ours\",\"deep\":[[[{}]]]}}",
        "{\"this is not\": json",
        "",
        "   ",
        "[DONE",
        "\u{0}\u{1}\u{7f}",
        "[1,¦2]",
    ];
    payloads.extend_from_slice(match form {
        Form::Chat => &[
            "{\"id\":\"s\",¦\"choices\":[{\"delta\":{\"content\":\"w\\n\\\"usage\\\": [DONE]\"}}]}",
            "{ \"choices\" : [ ¦{ \"delta\" : { \"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\"}}] } } ] }",
            "{\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}],¦\"usage\":null,\"obfuscation\":\"xyz\"}",
            "{\"choices\":[],¦\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,\"vendor\":1e2}}",
        ][..],
        Form::Responses => &[
            "{\"type\":\"response.output_text.delta\",¦\"delta\":\"word\",\"logprobs\":[]}",
            "{\"type\":\"response.something_new\",¦\"sequence_number\":7}",
        ],
        Form::Messages => &[
            "{\"type\":\"content_block_delta\",¦\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"word\"}}",
            "{\"type\":\"ping\"}",
            "{\"type\":\"something_new\",¦\"usage\":{\"output_tokens\":2}}",
        ],
    });
    payloads
}

/// An event written in any way that the format allows, and what comes after it that is no event.
fn written(form: Form) -> impl Strategy<Value = (String, String)> {
    let lines =
        select(vec!["id: 7", "retry:10", ": inside", "x_vendor: a:b", "data_: no", "event: some.thing", "event"]);
    let spacing = select(vec!["data: ", "data:", "data:  ", "data:\t"]);
    let around = (prop::collection::vec(lines, 0..3), any::<bool>(), select(vec!["\n", "\r\n", "\r"]));
    let noise = select(vec!["", "", "", "¶", "¶¶¶", ": keep-alive¶¶", ":¶: two¶¶", "\u{3a}OPENROUTER PROCESSING¶¶"]);
    (select(payloads(form)), spacing, any::<bool>(), around, noise).prop_map(
        |(payload, spacing, split, (lines, first, end), noise)| {
            let broken = if split { format!("{end}{spacing}") } else { String::new() };
            let data = format!("{spacing}{}{end}", payload.replace('¦', &broken));
            let others: String = lines.iter().map(|line| format!("{line}{end}")).collect();
            let event = if first { format!("{others}{data}{end}") } else { format!("{data}{others}{end}") };
            (event, noise.replace('¶', end))
        },
    )
}

/// A whole stream: it begins well, goes on in any way, and ends well.
fn streams() -> impl Strategy<Value = (Form, Stream)> {
    // How it ends, what is added to that, and what follows.
    let ends =
        [("\n\n", "", ""), ("\r\n\r\n", "", ""), ("\n\n", "", "data: late\n\n"), ("\n", "\n\n", ""), ("", "\n\n", "")];
    let ends = select(ends.to_vec());
    select(Form::ALL.to_vec()).prop_flat_map(move |form| {
        let middle = prop::collection::vec(written(form), 0..12);
        (any::<bool>(), middle, any::<bool>(), ends.clone()).prop_map(
            move |(marked, middle, spaced, (end, added, late))| {
                let mut stream = Stream::default();
                stream.keep(if marked { "\u{feff}" } else { "" });
                stream.keep(form.opening());
                stream.keep(&form.word("first"));
                for (event, noise) in &middle {
                    stream.keep(event);
                    stream.lose(noise);
                }
                match form {
                    Form::Chat => stream.keep(if spaced { "data: [DONE]" } else { "data:[DONE]" }),
                    _ => stream.keep(form.ending().trim_end()),
                }
                stream.keep(end);
                stream.kept.extend_from_slice(added.as_bytes());
                stream.lose(late);
                (form, stream)
            },
        )
    })
}

/// What such a stream is after its way through.
async fn relay(world: &World, (form, model): (Form, &str), sent: &[u8], cuts: &[usize]) -> Bytes {
    let mut reply = BEGIN.as_bytes().to_vec();
    let mut rest = sent;
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (part, tail) = rest.split_at((*cut).min(rest.len()));
        reply.extend(chunk(part));
        rest = tail;
    }
    reply.extend_from_slice(b"0\r\n\r\n");
    world.net.always("alpha", says(reply));
    let mut body = form.body(model);
    // A question of its own, so that no answer is given twice.
    body["metadata"] = json!({ "asked": cuts, "at": format!("{:?}", Instant::now()) });
    world.call(post(form.path(), SHOP, body.to_string())).await.body
}

#[test]
fn row_8_every_stream_arrives_byte_for_byte_however_it_is_written_and_cut() {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let _inside = runtime.enter();
    let world = World::with(&Plan { alpha_offers: NATIVE, ..Plan::default() });
    let cases = (streams(), select(vec!["solo", "kept"]), prop::collection::vec(1_usize..90, 1..8));
    let law = |((form, stream), model, cuts): ((Form, Stream), &str, Vec<usize>)| {
        let answer = runtime.block_on(relay(&world, (form, model), &stream.sent, &cuts));
        prop_assert_eq!(
            String::from_utf8_lossy(&answer),
            String::from_utf8_lossy(&stream.kept),
            "{:?}, {}",
            form,
            model
        );
        Ok(())
    };
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() });
    runner.run(&cases, law).unwrap();
    runtime.block_on(async { world.assert_idle() });
}

fn never_from_memory(body: &Value) -> Request<Full<Bytes>> {
    let mut request = chat_request(SHOP, body);
    request.headers_mut().insert("wb-cache", "no-cache".parse().unwrap());
    request
}

/// The two edits for callers that did not ask for usage, and nothing else in the same stream.
#[tokio::test(start_paused = true)]
async fn row_8_only_usage_is_taken_out_and_only_for_those_who_did_not_ask_for_it() {
    let (word, odd) = (Form::Chat.word("w"), "id: 1\ndata:  {\"choices\":[] ,\"x\":1e400}\r\n\r\n");
    let null = "data: {\"a\":1.0,\"usage\":null,\"choices\":[{\"delta\":{\"content\":\"v\"}}]}\n\n";
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n";
    let sent = [&word, odd, null, odd, usage, "data: [DONE]\n\n"].concat();
    let shown = [&word, odd, &null.replace("\"usage\":null,", ""), odd, "data: [DONE]\n\n"].concat();
    let world = World::new();
    let kept_too = Form::Chat.body("kept");
    world.net.always("alpha", says([BEGIN.as_bytes(), &chunk(sent.as_bytes()), b"0\r\n\r\n"].concat()));
    assert_eq!(world.chat(&streamed("solo")).await.text(), shown);
    assert_eq!(world.chat(&streamed("kept")).await.text(), shown);
    assert_eq!(world.chat(&Form::Chat.body("solo")).await.text(), sent);
    assert_eq!(world.call(never_from_memory(&kept_too)).await.text(), sent);
    let tokens = world.metric("weighbridge_tokens_total", &["provider=\"alpha\""]);
    assert!((tokens - 28.0).abs() < f64::EPSILON, "counted each time: {tokens}");
}
