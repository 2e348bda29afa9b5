//! Keys: who gets in, what a stranger learns, and where a secret never shows.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use weighbridge::sign::hmac::sha256_hex;

use crate::harness::*;

/// What of an answer does not change from one request to the next.
fn constant(answer: &Answer) -> (u16, Bytes, BTreeSet<String>) {
    let changing = ["x-request-id", "date", "wb-overhead-us", "server-timing"];
    let headers = answer.headers.iter().filter(|(name, _)| !changing.contains(&name.as_str()));
    (answer.status, answer.body.clone(), headers.map(|(name, value)| format!("{name}: {value:?}")).collect())
}

#[tokio::test(start_paused = true)]
async fn g1_a_hundred_hostile_keys_get_one_and_the_same_answer() {
    let world = World::new();
    let hostile = [
        "' UNION SELECT * FROM keys --",
        "' OR '1'='1",
        "admin",
        "null",
        "undefined",
        "../../etc/passwd",
        "${jndi:ldap://x}",
        "{{7*7}}",
        "%s%n%x",
        "*",
        "sk-",
        "true",
        "0",
        "-1",
        "[]",
        "{}",
        "\"",
        "\\",
        "%00",
        "a b",
    ];
    let mut keys: Vec<String> = hostile.iter().map(|key| (*key).to_owned()).collect();
    keys.extend(
        (0..40).map(|length| SHOP[..SHOP.len().min(length)].to_owned()).filter(|key| key != SHOP && !key.is_empty()),
    );
    keys.extend((1..=50).map(|number| format!("{SHOP}{}", "x".repeat(number))));
    keys.extend([SHOP.to_uppercase(), format!(" {SHOP}"), "x".repeat(500), "x".repeat(5_000)]);
    assert!(keys.len() >= 100);
    let expected = constant(&world.call(chat_request("wb-nobody-knows-this-key", &chat("duo"))).await);
    assert_eq!(expected.0, 401);
    for key in &keys {
        let answer = world.call(chat_request(key, &chat("duo"))).await;
        assert_eq!(constant(&answer), expected, "{key}");
        assert_eq!(answer.openai_error(), "invalid_api_key");
    }
    assert_eq!(world.net.hosts().len(), 0);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn g2_keys_that_begin_alike_are_different_keys() {
    let common = format!("wb-{}", "k".repeat(61));
    let (mine, other) = (format!("{common}A-mine"), format!("{common}B-other"));
    let mut plan = Plan::default();
    plan.routes = plan.routes.replace("SHOP_DIGEST", &sha256_hex(mine.as_bytes()));
    let world = World::with(&plan);
    for _ in 0..3 {
        world.call(chat_request(&mine, &chat("duo"))).await.assert_served("alpha", 1);
        assert_eq!(world.call(chat_request(&other, &chat("duo"))).await.status, 401);
        assert_eq!(world.call(chat_request(&common, &chat("duo"))).await.status, 401);
    }
    assert_eq!(world.counts(), [3, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn only_one_bearer_key_in_its_own_header_counts() {
    let world = World::new();
    let bare = |headers: &[(&str, String)]| {
        let mut request = Request::post(format!("/v1/chat/completions?api_key={SHOP}")).header("host", "a");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request.body(Full::<Bytes>::from(chat("duo").to_string())).unwrap()
    };
    let bearer = format!("Bearer {SHOP}");
    let refused: [&[(&str, String)]; 6] = [
        &[],
        &[("x-api-key", SHOP.to_owned())],
        &[("authorization", format!("Basic {SHOP}"))],
        &[("authorization", SHOP.to_owned())],
        &[("authorization", bearer.clone()), ("authorization", bearer.clone())],
        &[("proxy-authorization", bearer.clone()), ("cookie", bearer.clone())],
    ];
    for headers in refused {
        assert_eq!(world.call(bare(headers)).await.status, 401, "{headers:?}");
    }
    assert_eq!(world.call(bare(&[("authorization", format!("bearer {SHOP}"))])).await.status, 200);
    assert_eq!(world.counts(), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn g6_no_path_is_open_without_a_key_and_a_stranger_never_has_his_body_read() {
    let world = World::new();
    for path in ["/v1/models", "/v1/models/duo"] {
        assert_eq!(world.call(get(path, "wb-nobody-knows-this-key")).await.status, 401, "{path}");
    }
    for path in ["/v1/chat/completions", "/v1/risk/assessments"] {
        let (mut io, _end) = world.raw();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer x\r\ncontent-length: 1000\r\n\r\n");
        io.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = timeout(Duration::from_millis(10), io.read(&mut answer)).await.unwrap().unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 401"), "{path}");
    }
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn s11_no_secret_and_no_prompt_shows_in_a_log_a_metric_or_an_error() {
    let traced = Captured::default();
    let writer = traced.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());

    let caller = "wb-CANARY-caller-0123456789abcdef";
    let mut plan = Plan::default();
    plan.routes = plan.routes.replace("SHOP_DIGEST", &sha256_hex(caller.as_bytes()));
    let mut world = World::with(&plan);
    let echo = json!({ "error": {
        "message": format!("the key {0} is bad {1}{0}", provider_key("alpha"), "x".repeat(512 - 70)),
        "type": provider_key("alpha"), "param": null, "code": provider_key("alpha"),
    }});
    let faults = [
        "unsigned".to_owned(),
        "status:500".to_owned(),
        "refuse".to_owned(),
        "garbage".to_owned(),
        "empty".to_owned(),
        "error-in-200:500".to_owned(),
        "cut:2".to_owned(),
        "cut:0".to_owned(),
        "status:429;retry-after=0".to_owned(),
    ];
    let echoes = [400, 401, 403, 404, 429, 500, 200].map(|status| format!("status:{status};body={echo}"));
    let mut answers = Vec::new();
    for fault in faults.iter().chain(&echoes) {
        for model in ["solo", "duo", "kept"] {
            for mut body in [chat(model), streamed(model)] {
                body["messages"][0]["content"] = json!("PROMPT-CANARY of a person");
                world.faults("alpha", &[fault]);
                let answer = world.call(chat_request(caller, &body)).await;
                if answer.status != 200 || answer.text().contains("\"error\"") {
                    answers.push(format!("{:?} {}", answer.headers, answer.text()));
                }
                assert!(!answer.text().contains("sk-CANARY"), "{fault}: {}", answer.text());
                world.faults.clear("alpha");
            }
        }
    }
    for fault in faults.iter().chain(&echoes) {
        let fault = fault.replace(&provider_key("alpha"), &signing_secret());
        world.faults("alipay", &[&fault]);
        let mut body = payment(&format!("T{}", answers.len()), "1.00");
        body["user"] = json!({ "id": "u1", "email": "EMAIL-CANARY@example.org" });
        let answer = world.call(risk_request(caller, &body)).await;
        answers.push(format!("{:?} {}", answer.headers, answer.text()));
    }
    for body in ["{\"PROMPT-CANARY\"", "{\"model\":\"PROMPT-CANARY of a person\"}", "[\"PROMPT-CANARY\"]"] {
        for path in ["/v1/chat/completions", "/v1/risk/assessments"] {
            let answer = world.call(post(path, caller, body)).await;
            answers.push(format!("{:?} {}", answer.headers, answer.text()));
        }
    }
    answers.push(format!("{:?}", world.call(chat_request("wb-CANARY-wrong-key", &chat("duo"))).await));

    let metrics = world.metrics.render();
    let log = world.log_text();
    let traced = String::from_utf8(traced.0.lock().unwrap().clone()).unwrap();
    assert!(answers.len() > 30 && log.lines().count() > 100 && !metrics.is_empty());
    for (place, text) in
        [("an error", answers.join("\n")), ("the access log", log), ("metrics", metrics), ("the trace", traced)]
    {
        for secret in ["CANARY", &signing_secret(), "OOOOOOOO"] {
            let found = text.lines().find(|line| line.contains(secret));
            assert!(found.is_none(), "{secret} shows in {place}: {found:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn s12_s13_what_strangers_make_up_is_neither_a_series_nor_a_second_line() {
    let mut world = World::new();
    world.chat(&chat("dearest")).await;
    world.call(get("/warm-up", "wb-nobody")).await;
    world.assess(&payment("T0", "1.00")).await;
    let series = |world: &World| world.metrics.render().lines().count();
    let before = series(&world);
    for number in 0..80 {
        let mut body = chat(&format!("model-{number}\n\u{202e}\u{1b}[31m"));
        body["user"] = json!(format!("user-{number}"));
        let mut request = chat_request(if number % 2 == 0 { SHOP } else { "wb-nobody" }, &body);
        request.headers_mut().insert("user-agent", format!("agent-{number}").parse().unwrap());
        request.headers_mut().insert("host", format!("host-{number}").parse().unwrap());
        world.call(request).await;
        world.call(get(&format!("/path-{number}"), SHOP)).await;
        let mut paid = payment(&format!("T{number}"), "1.00");
        paid["merchant"] = json!({ "id": format!("m{number}"), "category": format!("category-{number}") });
        world.assess(&paid).await;
    }
    assert_eq!(series(&world), before);
    let log = world.log_text();
    assert!(log.lines().count() > 240);
    for line in log.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
        assert!(!line.contains('\u{1b}') && !line.contains('\u{202e}'), "{line}");
    }
}
