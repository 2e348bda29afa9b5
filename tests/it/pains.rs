//! What users of other gateways suffered from, by the number it has in the list of fifty: each test fails if it comes back.
//!
//! Only those that have no test elsewhere. They look from the provider's side: what it was asked, what it was told, and
//! when its connection was closed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep};
use weighbridge::gateway::collector::Collector;
use weighbridge::upstream::breaker::State;

use crate::harness::forms::{BEGIN, Form, NATIVE, chunk};
use crate::harness::*;

const CHAT_ONLY: &str = r#""chat.completions""#;

/// A call in this form, streamed or whole.
fn ask(form: Form, model: &str, stream: bool) -> Request<Full<bytes::Bytes>> {
    let mut body = form.body(model);
    if !stream {
        let fields = body.as_object_mut().unwrap();
        fields.remove("stream");
        fields.remove("stream_options");
    }
    post(form.path(), SHOP, body.to_string())
}

/// Every form, asked of a provider that has it and of one that has only chat; and what the provider speaks then.
fn dialects() -> impl Iterator<Item = (Form, Form, &'static str)> {
    let native = Form::ALL.into_iter().map(|form| (form, form, NATIVE));
    native.chain([Form::Responses, Form::Messages].into_iter().map(|form| (form, Form::Chat, CHAT_ONLY)))
}

#[tokio::test(start_paused = true)]
async fn pain_5_a_route_that_allows_one_attempt_makes_one_however_far_the_stream_is() {
    let faults =
        ["refuse", "reset", "status:503", "status:429", "error-in-200:429", "empty", "stall", "stall:0", "cut:0"];
    for (form, _, offers) in dialects() {
        for (fault, stream) in faults.into_iter().flat_map(|fault| [(fault, true), (fault, false)]) {
            let one = "[model.duo]\nmax_attempts = 1";
            let world = World::with(&Plan { alpha_offers: offers, ..Plan::replacing("[model.duo]", one) });
            world.fault("alpha", fault);
            let answer = world.call(ask(form, "duo", stream)).await;
            let what = format!("{form:?} with {offers}, {fault}, stream {stream}: {}", answer.text());
            assert!(answer.status >= 429, "{what}");
            assert_eq!(world.net.dialled("beta"), 0, "{what}");
            assert!(world.net.dialled("alpha") <= 1 && world.counts()[0] <= 1, "{what}");
            world.assert_idle();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pain_5_a_callers_deadline_holds_in_mid_stream_in_every_dialect() {
    for (form, _, offers) in dialects() {
        let world = World::with(&Plan { alpha_offers: offers, ..Plan::default() });
        world.fault("alpha", "stall:3");
        let mut request = ask(form, "duo", true);
        request.headers_mut().insert("wb-timeout-ms", "1000".parse().unwrap());
        let answer = world.call(request).await;
        assert_eq!(answer.status, 200, "{form:?}: {}", answer.text());
        assert!(answer.text().contains("deadline_exceeded"), "{form:?}: {}", answer.text());
        assert!(answer.took <= Duration::from_millis(1_010), "{form:?}: {:?}", answer.took);
        sleep(Duration::from_millis(10)).await;
        assert!(world.seen("alpha")[0].cancelled && world.counts() == [1, 0, 0], "{form:?}");
        world.assert_idle();
    }
}

/// A provider that begins to answer in its form, says two words or half of a whole answer, then nothing; it notes when it
/// was left.
fn falls_silent(form: Form, stream: bool, left: &Arc<Mutex<Vec<Instant>>>) -> Link {
    let left = Arc::clone(left);
    peer(move |mut io: DuplexStream| {
        let left = Arc::clone(&left);
        async move {
            read_request(&mut io).await;
            if stream {
                let words = [form.opening(), &form.word("one"), &form.word("two")].map(|event| chunk(event.as_bytes()));
                io.write_all(&[BEGIN.as_bytes(), &words.concat()].concat()).await.unwrap();
            } else {
                let whole = http_reply("200 OK", "", &json!({ "choices": ["x".repeat(500)] }).to_string());
                io.write_all(&whole.as_bytes()[..whole.len() / 2]).await.unwrap();
            }
            let mut rest = Vec::new();
            let _ = io.read_to_end(&mut rest).await;
            left.lock().unwrap().push(Instant::now());
        }
    })
}

#[tokio::test(start_paused = true)]
async fn pains_14_15_16_a_client_that_leaves_ends_the_call_frees_its_place_and_is_settled_in_every_dialect() {
    for ((form, speaks, offers), stream) in dialects().flat_map(|dialect| [(dialect, true), (dialect, false)]) {
        let what = format!("{form:?} over {speaks:?}, stream {stream}");
        let budget = "tenant = \"shop-eu\"\nbudget = { amount = \"1.00 USD\", per = \"day\" }";
        let routes = Plan::replacing("tenant = \"shop-eu\"", budget);
        // One place: a call that kept it would refuse the next.
        let world = World::with(&Plan { alpha_offers: offers, provider_in_flight: 1, ..routes });
        let left = Arc::default();
        world.net.always("alpha", falls_silent(speaks, stream, &left));
        let spent = || {
            let snapshot = world.live.load();
            let live = snapshot.live_callers().find(|live| live.caller.id.as_str() == "shop").unwrap();
            live.quota.as_ref().unwrap().spending(&live.caller)[0].sums
        };
        for number in 1..=8_usize {
            let before = spent();
            let went = tokio::time::timeout(Duration::from_millis(300), async {
                let mut open = Open::new(world.client().await, ask(form, "solo", stream)).await;
                assert_eq!(open.response.status(), 200, "{what}");
                open.rest().await;
            });
            assert!(went.await.is_err(), "{what}: it did not wait");
            let gone = Instant::now();
            sleep(Duration::from_millis(200)).await;
            let closed = left.lock().unwrap().clone();
            assert_eq!(closed.len(), number, "{what}: the provider's connection is closed");
            assert!(closed[number - 1] <= gone + Duration::from_millis(200), "{what}");
            let after = spent();
            assert!(after.spent > before.spent && after.reserved == 0, "{what}: {after:?}");
            assert_eq!(after.spent - before.spent, after.estimated - before.estimated, "{what}: nobody counted");
        }
        assert_eq!(world.breaker("alpha/fast"), State::Closed, "{what}");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn pain_20_no_provider_is_asked_anything_that_no_caller_asked_for() {
    let world = World::new();
    world.fault("alpha", "status:503");
    for _ in 0..10 {
        assert_eq!(world.chat(&chat("duo")).await.header("wb-provider"), "beta");
    }
    assert_ne!(world.breaker("alpha/fast"), State::Closed);
    world.faults.clear("alpha");
    let seen = || (world.counts(), LLMS.map(|provider| world.net.dialled(provider)));
    let before = seen();
    // Through every cool-down, a day, and a new configuration.
    for _ in 0..24 {
        sleep(Duration::from_secs(3_600)).await;
    }
    world.reload(&Plan::default());
    sleep(Duration::from_secs(86_400)).await;
    assert_eq!(seen(), before, "health is what callers' own calls show");
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert_eq!(world.counts().iter().sum::<usize>(), before.0.iter().sum::<usize>() + 1, "one call, one request");
}

#[tokio::test(start_paused = true)]
async fn pain_42_a_collector_that_takes_half_a_minute_is_not_waited_for() {
    const COLLECTOR: &str = "10.8.8.8";
    let traces = format!("[traces]\notlp = \"http://{COLLECTOR}:4318/otlp\"\nsample = 1\nqueue = 16\n\n[risk]");
    let (plain, traced) = (World::new(), World::with(&Plan::replacing("[risk]", &traces)));
    traced.net.always(
        COLLECTOR,
        peer(|mut io: DuplexStream| async move {
            read_request(&mut io).await;
            sleep(Duration::from_secs(30)).await;
            let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }),
    );
    let (_stop, stopped) = tokio::sync::oneshot::channel();
    let _sending = tokio::spawn(Collector::new(&traced.live, &traced.shared).run(stopped));
    for number in 0..4 {
        for (form, _, _) in dialects() {
            let (usual, with) = (plain.call(ask(form, "duo", true)).await, traced.call(ask(form, "duo", true)).await);
            assert_eq!((with.status, with.took), (200, usual.took), "{form:?}, call {number}");
        }
    }
    traced.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn pain_42_a_webhook_that_takes_half_a_minute_is_not_waited_for() {
    const HOOK: &str = "10.9.9.9";
    let webhook = format!(
        "[[webhook]]\ntenant = \"shop-eu\"\nurl = \"http://{HOOK}/hook\"\nallow_private = true\n\
         auth = {{ kind = \"di-hmac\", key_id = \"hook-1\", secret_env = \"ALIPAY_KEY\", secret_encoding = \"hex\" }}\n\n[risk]"
    );
    let (plain, hooked) = (World::new(), World::with(&Plan::replacing("[risk]", &webhook)));
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    hooked.net.always(
        HOOK,
        peer(move |mut io: DuplexStream| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                read_request(&mut io).await;
                sleep(Duration::from_secs(30)).await;
            }
        }),
    );
    for number in 0..8 {
        let mut took = Vec::new();
        for world in [&plain, &hooked] {
            // The verdict comes too late and is worse than what was given, so the webhook is to hear of it.
            world.faults("alipay", &["delay:2s"]);
            let late = world.assess(&payment(&format!("T{number}"), "1.91")).await;
            assert_eq!(late.json()["source"], "fallback");
            sleep(Duration::from_secs(2)).await;
            let live = world.assess(&payment(&format!("L{number}"), "88.13")).await;
            let chat = world.chat(&chat("duo")).await;
            assert_eq!((live.status, chat.status), (200, 200));
            took.push([late.took, live.took, chat.took]);
        }
        assert_eq!(took[0], took[1], "call {number}");
    }
    assert!(told.load(Ordering::Relaxed) > 0, "the webhook was never called");
}

#[tokio::test(start_paused = true)]
async fn pain_43_whatever_is_broken_behind_the_proxy_a_valid_key_stays_valid() {
    let links = [Link::Refused, Link::BlackHole, says(""), says("nonsense")];
    let statuses = ["status:401", "status:403", "status:429", "status:500", "status:503", "error-in-200:401"];
    let broken = |world: &World, link: Option<&Link>, fault: Option<&str>| {
        for provider in LLMS {
            link.into_iter().for_each(|link| world.net.always(provider, link.clone()));
            fault.into_iter().for_each(|fault| world.fault(provider, fault));
        }
    };
    let all = links.iter().map(|link| (Some(link), None)).chain(statuses.into_iter().map(|fault| (None, Some(fault))));
    for (link, fault) in all {
        for (form, _, offers) in dialects() {
            let world = World::with(&Plan { alpha_offers: offers, ..Plan::default() });
            broken(&world, link, fault);
            // Often enough for breakers to open and pauses to begin.
            for _ in 0..8 {
                let answer = world.call(ask(form, "trio", true)).await;
                let limited = fault == Some("status:429") && answer.status == 429;
                assert!(answer.status >= 500 || limited, "{form:?} {fault:?}: {} {}", answer.status, answer.text());
                assert!(!answer.text().contains("authentication_error"), "{form:?} {fault:?}: {}", answer.text());
            }
            let asked: usize = world.counts().iter().sum();
            let mut wrong = ask(form, "trio", true);
            wrong.headers_mut().insert("authorization", "Bearer wb-test-wrong-0123456789abcdef".parse().unwrap());
            assert_eq!(world.call(wrong).await.status, 401, "{form:?} {fault:?}: and a wrong one wrong");
            assert_eq!(world.counts().iter().sum::<usize>(), asked);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pain_43_a_process_that_is_full_says_503_to_a_valid_key() {
    let world = World::with(&Plan::replacing("[limits]", "[limits]\nin_flight = 2"));
    world.fault("alpha", "stall");
    let mut held = Vec::new();
    for _ in 0..4 {
        let client = world.client().await;
        held.push(tokio::spawn(async move { Open::new(client, chat_request(SHOP, &streamed("solo"))).await }));
    }
    sleep(Duration::from_millis(100)).await;
    for (form, _, _) in dialects() {
        let refused = world.call(ask(form, "solo", true)).await;
        assert_eq!(refused.status, 503, "{form:?}: {}", refused.text());
    }
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

/// How many series there are.
fn series(world: &World) -> usize {
    world.metrics.render().lines().filter(|line| !line.starts_with('#')).count()
}

#[tokio::test(start_paused = true)]
async fn pain_32_nothing_a_caller_says_makes_a_series() {
    let world = World::with(&Plan { alpha_offers: NATIVE, ..Plan::default() });
    let calls = async |names: &str| {
        for (form, _, _) in dialects() {
            let mut body = form.body("duo");
            body["user"] = json!(names);
            body["metadata"] = json!({ "user_id": names, "end_user": names });
            body["service_tier"] = json!(names);
            let mut request = post(form.path(), SHOP, body.to_string());
            for name in
                ["user-agent", "wb-session", "wb-metadata", "x-stainless-lang", "openai-organization", "x-request-id"]
            {
                request.headers_mut().insert(name, names.parse().unwrap());
            }
            let _ = world.call(request).await;
            body["model"] = json!(names);
            assert_eq!(world.call(post(form.path(), SHOP, body.to_string())).await.status, 404);
        }
        assert_eq!(world.call(post(&format!("/v1/{names}"), SHOP, "{}")).await.status, 404);
        let key = format!("wb-{names}-0123456789abcdef");
        assert_eq!(world.call(post("/v1/chat/completions", &key, "{}")).await.status, 401);
    };
    for number in 0..3 {
        calls(&format!("first-{number}")).await;
    }
    let before = series(&world);
    for number in 0..30 {
        calls(&format!("end-user-{number}")).await;
    }
    assert_eq!(series(&world), before, "{}", world.metrics.render());
    assert!(!world.metrics.render().contains("end-user-"));
}

/// A call of about `bytes`.
fn large(form: Form, bytes: usize) -> Request<Full<bytes::Bytes>> {
    let mut body = form.body("duo");
    let text = "x".repeat(bytes);
    match form {
        Form::Responses => body["input"] = json!(text),
        _ => body["messages"][0]["content"] = json!(text),
    }
    body.as_object_mut().unwrap().remove("stream_options");
    body["stream"] = json!(false);
    post(form.path(), SHOP, body.to_string())
}

#[tokio::test(start_paused = true)]
async fn pain_33_one_limit_holds_for_bodies_and_what_is_over_it_is_a_413_in_the_callers_form() {
    for (form, _, offers) in dialects() {
        let world = World::with(&Plan { alpha_offers: offers, ..Plan::default() });
        // Other gateways end at 32 KiB, a megabyte or 4 MiB. Reading as much takes a while where nothing is optimised.
        let sizes: &[usize] = if form == Form::Chat { &[33 << 10, 1 << 20, 5 << 20] } else { &[33 << 10, 1 << 20] };
        for bytes in sizes {
            let answer = world.call(large(form, *bytes)).await;
            assert_eq!(answer.status, 200, "{form:?}, {bytes} bytes: {}", answer.text());
            assert!(world.seen("alpha").last().unwrap().body.len() > *bytes, "{form:?}: the provider had all of it");
        }
        let asked = world.counts();
        let mut request = large(form, 1);
        *request.body_mut() = Full::from(vec![b' '; (32 << 20) + 1]);
        let refused = world.call(request).await;
        assert_eq!(refused.status, 413, "{form:?}");
        if form == Form::Messages {
            let error = refused.json();
            assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!("request_too_large")));
        } else {
            refused.openai_error();
        }
        assert_eq!(world.counts(), asked, "{form:?}: nobody was asked");
    }
}

/// A provider that streams words in its form for ever and counts the bytes it could write.
fn endless(form: Form, written: &Arc<AtomicUsize>) -> Link {
    let written = Arc::clone(written);
    peer(move |mut io: DuplexStream| {
        let written = Arc::clone(&written);
        async move {
            read_request(&mut io).await;
            let begin = [BEGIN.as_bytes(), &chunk(form.opening().as_bytes())].concat();
            io.write_all(&begin).await.unwrap();
            let word = chunk(form.word(&"x".repeat(900)).as_bytes());
            while io.write_all(&word).await.is_ok() {
                written.fetch_add(word.len(), Ordering::SeqCst);
            }
        }
    })
}

#[tokio::test(start_paused = true)]
async fn pain_34_for_a_client_that_does_not_read_nothing_more_is_read_in_any_dialect() {
    for (form, speaks, offers) in dialects() {
        let routes = Plan::replacing("total = \"30s\"", "total = \"600s\"");
        let world = World::with(&Plan { upstream_pipe: 1_024, alpha_offers: offers, ..routes });
        let written = Arc::new(AtomicUsize::new(0));
        world.net.always("alpha", endless(speaks, &written));
        let (mut io, _end) = world.raw_with(1_024);
        let body = form.body("solo").to_string();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: proxy.test\r\nauthorization: Bearer {SHOP}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            form.path(),
            body.len()
        );
        io.write_all((head + &body).as_bytes()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let early = written.load(Ordering::SeqCst);
        assert!((1..400 * 1_024).contains(&early), "{form:?} over {speaks:?}: {early} bytes were read for nobody");
        sleep(Duration::from_secs(20)).await;
        assert_eq!(written.load(Ordering::SeqCst), early, "{form:?} over {speaks:?}");
    }
}

/// A chat provider that mixes the pieces of two tool calls.
fn mixes_calls() -> Link {
    let piece = |call: Value| {
        let delta = json!({ "choices": [{ "index": 0, "delta": { "tool_calls": [call] } }] });
        chunk(format!("data: {delta}\n\n").as_bytes())
    };
    let events = [
        piece(json!({ "index": 0, "id": "a", "function": { "name": "f", "arguments": "{\"x\"" } })),
        piece(json!({ "index": 1, "id": "b", "function": { "name": "g", "arguments": "{\"y\"" } })),
        piece(json!({ "index": 0, "function": { "arguments": ":1}" } })),
        piece(json!({ "index": 1, "function": { "arguments": ":2}" } })),
        chunk(b"data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n"),
        chunk(b"data: [DONE]\n\n"),
    ];
    says([BEGIN.as_bytes(), &events.concat(), b"0\r\n\r\n"].concat())
}

#[tokio::test(start_paused = true)]
async fn tool_calls_that_the_provider_mixes_arrive_whole_in_every_form() {
    for (form, whole) in [(Form::Messages, "message_stop"), (Form::Responses, "response.completed")] {
        let world = World::new();
        world.net.always("alpha", mixes_calls());
        let text = world.call(ask(form, "solo", true)).await.text();
        assert!(text.contains(&format!("event: {whole}")) && !text.contains("event: error"), "{form:?}: {text}");
        let mut arguments = [String::new(), String::new()];
        for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
            let event: Value = serde_json::from_str(data).unwrap();
            let place = event["index"].as_u64().or(event["output_index"].as_u64()).unwrap_or_default() as usize;
            let piece = event["delta"]["partial_json"].as_str().or(event["delta"].as_str()).unwrap_or_default();
            arguments[place].push_str(piece);
        }
        assert_eq!(arguments, ["{\"x\":1}", "{\"y\":2}"], "{form:?}: {text}");
        world.assert_idle();
    }
}
