//! Callers who must sign: one request, one time, whole.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use weighbridge::domain::clock;
use weighbridge::layer::verify_signature::Nonces;
use weighbridge::sign::di::{self, RequestParts};
use weighbridge::sign::hmac::sha256_hex;

use crate::harness::*;

const HOST: &str = "wb.test";
const SECRET: [u8; 32] = [0x4f; 32];
const NEXT: [u8; 32] = [0x5e; 32];

/// The shop signs with `k1`, may sign with `k0`, and not yet with `k2`.
const SIGNATURE: &str = r#"signature = { keys = [
  { id = "k2", secret_env = "ALIPAY_NEXT_KEY", secret_encoding = "hex", state = "pending" },
  { id = "k1", secret_env = "ALIPAY_KEY", secret_encoding = "hex", state = "active" },
  { id = "k0", secret_env = "ALIPAY_NEXT_KEY", secret_encoding = "hex", state = "verify-only" },
] }"#;

fn signing() -> Plan {
    Plan::replacing("tenant = \"shop-eu\"", &format!("tenant = \"shop-eu\"\n{SIGNATURE}"))
}

/// What is signed, and what becomes of it on the way.
struct Draft {
    key_id: &'static str,
    secret: [u8; 32],
    timestamp_ms: u64,
    nonce: String,
    method: &'static str,
    path: &'static str,
    query: &'static str,
    token: &'static str,
    body: Vec<u8>,
}

impl Draft {
    fn post(path: &'static str, body: &Value) -> Self {
        Self {
            key_id: "k1",
            secret: SECRET,
            timestamp_ms: clock::unix_ms(),
            nonce: di::fresh_nonce().unwrap(),
            method: "POST",
            path,
            query: "",
            token: SHOP,
            body: body.to_string().into_bytes(),
        }
    }

    fn pay(number: &str) -> Self {
        Self::post("/v1/risk/assessments", &payment(number, "1.00"))
    }

    fn signature(&self) -> String {
        let parts = RequestParts {
            key_id: self.key_id,
            timestamp_ms: self.timestamp_ms,
            nonce: &self.nonce,
            method: self.method,
            host: HOST,
            path: self.path,
            query: self.query,
            token: self.token.as_bytes(),
            body: &self.body,
        };
        di::sign_request(&self.secret, &parts).unwrap().header_value()
    }

    fn unsigned(&self) -> Request<Full<Bytes>> {
        let query = if self.query.is_empty() { String::new() } else { format!("?{}", self.query) };
        Request::builder()
            .method(self.method)
            .uri(format!("{}{query}", self.path))
            .header("host", HOST)
            .header("authorization", format!("Bearer {SHOP}"))
            .header("content-type", "application/json")
            .body(Full::from(self.body.clone()))
            .unwrap()
    }

    fn signed(&self) -> Request<Full<Bytes>> {
        self.with(&self.signature())
    }

    fn with(&self, signature: &str) -> Request<Full<Bytes>> {
        let mut request = self.unsigned();
        request.headers_mut().insert(di::REQUEST_HEADER, signature.parse().unwrap());
        request
    }
}

/// The status and what a client can tell the problem by.
fn problem(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.header("content-type"), "application/problem+json", "{}", answer.text());
    let problem = answer.json();
    assert_eq!(problem["status"], answer.status);
    let slug = problem["type"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    (answer.status, slug)
}

fn refused(world: &World, reason: &str) -> f64 {
    world.metric("weighbridge_signatures_refused_total", &[&format!("reason=\"{reason}\"")])
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_must_sign_is_served_when_it_does_and_others_need_not() {
    let world = World::with(&signing());
    let answer = world.call(Draft::pay("T1").signed()).await;
    assert_eq!((answer.status, &answer.json()["action"]), (200, &json!("PASS")), "{}", answer.text());
    let chat = world.call(Draft::post("/v1/chat/completions", &chat("solo")).signed()).await;
    chat.assert_served("alpha", 1);
    let mut list = Draft { method: "GET", body: Vec::new(), ..Draft::post("/v1/models", &json!({})) };
    list.query = "b=%7e&a=1";
    assert_eq!(world.call(list.signed()).await.status, 200, "the query is signed as it was sent");
    assert_eq!(world.call(chat_request(OFFICE, &crate::harness::chat("duo"))).await.status, 200);
    assert!(refused(&world, "").abs() < f64::EPSILON);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn c11_a_caller_may_sign_with_each_key_in_use_and_with_none_that_is_not() {
    let world = World::with(&signing());
    let signed = |key_id, secret| Draft { key_id, secret, ..Draft::pay("T1") }.signed();
    for (key_id, secret) in [("k1", SECRET), ("k0", NEXT)] {
        assert_eq!(world.call(signed(key_id, secret)).await.status, 200, "{key_id}");
    }
    for (key_id, secret) in [("k2", NEXT), ("k9", SECRET), ("k0", SECRET), ("k1", NEXT)] {
        let answer = world.call(signed(key_id, secret)).await;
        assert_eq!(problem(&answer), (401, "signature-not-accepted".to_owned()), "{key_id}");
    }
    assert_eq!((refused(&world, "key"), refused(&world, "mismatch")), (2.0, 2.0));
    assert_eq!(world.scorings(), 1);
}

#[tokio::test(start_paused = true)]
async fn c7_whatever_is_wrong_with_a_signature_the_answer_is_the_same() {
    let world = World::with(&signing());
    let draft = Draft::pay("T1");
    let right = draft.signature();
    let tampered = |change: fn(&mut Draft)| {
        let mut other = Draft::pay("T1");
        other.nonce.clone_from(&draft.nonce);
        other.timestamp_ms = draft.timestamp_ms;
        change(&mut other);
        other.with(&right)
    };
    let twice = {
        let mut request = draft.signed();
        request.headers_mut().append(di::REQUEST_HEADER, HeaderValue::from_str(&right).unwrap());
        request
    };
    let content = {
        let mut request = draft.signed();
        request.headers_mut().insert(di::CONTENT_HEADER, sha256_hex(b"").parse().unwrap());
        request
    };
    let cases = [
        ("header", draft.unsigned()),
        ("header", twice),
        ("header", draft.with(&right.replace("v=1", "v=none"))),
        ("header", draft.with(&right.replace("v=1", "V=1"))),
        ("header", draft.with(&right.replace("v=1", "v=0"))),
        ("header", draft.with(&format!("{right},x=1"))),
        ("header", draft.with("")),
        ("content", content),
        ("mismatch", tampered(|other| other.body = payment("T1", "1.01").to_string().into_bytes())),
        ("mismatch", tampered(|other| other.body.push(b' '))),
        ("mismatch", tampered(|other| other.query = "x=1")),
        ("mismatch", Draft { token: OFFICE, ..Draft::pay("T1") }.signed()),
        ("mismatch", Draft { token: "", ..Draft::pay("T1") }.signed()),
        ("mismatch", Draft { path: "/v1/chat/completions", ..Draft::pay("T1") }.with(&right)),
    ];
    let mut bodies = Vec::new();
    for (index, (reason, request)) in cases.into_iter().enumerate() {
        let before = refused(&world, reason);
        let answer = world.call(request).await;
        assert!((refused(&world, reason) - before - 1.0).abs() < f64::EPSILON, "{index} {reason}: {}", answer.text());
        assert_eq!((answer.status, answer.header("x-should-retry")), (401, "false"), "{index}");
        let mut body = answer.json();
        if let Some(body) = body.as_object_mut() {
            body.remove("instance");
        }
        bodies.push(body);
    }
    // The last one is on a path of another dialect.
    bodies.pop();
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:#?}");
    assert_eq!(world.scorings(), 0);
    // None of them used the nonce up.
    assert_eq!(world.call(draft.signed()).await.status, 200);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn c2_the_same_signed_request_is_accepted_once_also_after_a_reload() {
    let plan = signing();
    let world = World::with(&plan);
    let draft = Draft::pay("T1");
    assert_eq!(world.call(draft.signed()).await.status, 200);
    world.reload(&plan);
    assert_eq!(problem(&world.call(draft.signed()).await), (409, "replay".to_owned()));
    // Another spelling of the nonce is another request, and not signed.
    let swapped: String = draft
        .nonce
        .chars()
        .map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
        .collect();
    let other = world.call(draft.with(&draft.signature().replace(&draft.nonce, &swapped))).await;
    assert_eq!(problem(&other), (401, "signature-not-accepted".to_owned()));
    // A hundred at once: one of them.
    let draft = Arc::new(Draft::pay("T2"));
    let calls = (0..100).map(|_| world.call(draft.signed()));
    let statuses = futures_util::future::join_all(calls).await;
    assert_eq!(statuses.iter().filter(|answer| answer.status == 200).count(), 1);
    assert_eq!(statuses.iter().filter(|answer| answer.status == 409).count(), 99);
    assert_eq!((world.scorings(), refused(&world, "replay")), (2, 100.0));
}

#[tokio::test(start_paused = true)]
async fn c2_when_no_nonce_can_be_remembered_the_request_waits_outside() {
    let world = World::with(&Plan { nonces: Some(Nonces::with_room(1)), ..signing() });
    let first = Draft::pay("T1");
    assert_eq!(world.call(first.signed()).await.status, 200);
    let full = world.call(Draft::pay("T2").signed()).await;
    assert_eq!(problem(&full), (503, "unavailable".to_owned()));
    assert!(!full.header("retry-after").is_empty());
    assert_eq!(problem(&world.call(first.signed()).await).0, 409, "nothing was forgotten for it");
    // Those who do not sign are not held up.
    assert_eq!(world.call(chat_request(OFFICE, &chat("duo"))).await.status, 200);
    assert_eq!(world.scorings(), 1);
}

#[tokio::test(start_paused = true)]
async fn c2_a_replay_across_a_restart_is_still_one() {
    let folder = tempfile::tempdir().unwrap();
    let process = || World::with(&Plan { nonces: Some(Nonces::kept(folder.path())), ..signing() });
    let draft = Draft::pay("T1");
    // The first start knows nothing of what came before it, so it takes nothing from before it.
    let early = Draft { timestamp_ms: clock::unix_ms() - 1_000, ..Draft::pay("T0") };
    let first = process();
    assert_eq!(problem(&first.call(early.signed()).await), (401, "stale-timestamp".to_owned()));
    let draft = Draft { timestamp_ms: clock::unix_ms(), ..draft };
    assert_eq!(first.call(draft.signed()).await.status, 200);
    drop(first);
    let second = process();
    assert_eq!(problem(&second.call(draft.signed()).await), (409, "replay".to_owned()));
    let signed_before = Draft { timestamp_ms: draft.timestamp_ms - 1, ..Draft::pay("T3") };
    assert_eq!(second.call(signed_before.signed()).await.status, 200, "the files say what was used");
}

#[tokio::test(start_paused = true)]
async fn c3_a_time_outside_the_window_is_told_with_ours_and_inside_it_is_well() {
    // As a second process would be: it knows what was used.
    let folder = tempfile::tempdir().unwrap();
    let kept = || Some(Nonces::kept(folder.path()));
    let first = World::with(&Plan { nonces: kept(), ..signing() });
    assert_eq!(first.call(Draft::pay("T0").signed()).await.status, 200);
    let world = World::with(&Plan { nonces: kept(), ..signing() });
    let at = |offset: i64| {
        let timestamp_ms = clock::unix_ms().saturating_add_signed(offset);
        Draft { timestamp_ms, ..Draft::pay("T1") }.signed()
    };
    for inside in [-299_000, 0, 299_000] {
        assert_eq!(world.call(at(inside)).await.status, 200, "{inside}");
    }
    for outside in [-301_000, 301_000] {
        let before = clock::unix_ms();
        let answer = world.call(at(outside)).await;
        assert_eq!(problem(&answer), (401, "stale-timestamp".to_owned()), "{outside}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        let told =
            detail.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).find(|ms| *ms > 1_000_000_000_000);
        assert!(told.is_some_and(|told| (before..=clock::unix_ms()).contains(&told)), "{detail}");
    }
    // Seconds instead of milliseconds, and no number at all.
    let seconds = Draft { timestamp_ms: clock::unix_seconds(), ..Draft::pay("T1") };
    assert_eq!(problem(&world.call(seconds.signed()).await).1, "stale-timestamp");
    let draft = Draft::pay("T1");
    let negative = draft.signature().replace("ts=", "ts=-");
    assert_eq!(problem(&world.call(draft.with(&negative)).await).1, "signature-not-accepted");
    assert!((refused(&world, "stale") - 3.0).abs() < f64::EPSILON);
}

#[tokio::test(start_paused = true)]
async fn each_dialect_has_its_own_words_for_a_signature_that_is_not_accepted() {
    let world = World::with(&signing());
    let chat_draft = Draft::post("/v1/chat/completions", &chat("solo"));
    let openai = world.call(chat_draft.unsigned()).await;
    assert_eq!((openai.status, &openai.json()["error"]["code"]), (401, &json!("invalid_signature")));
    assert_eq!(openai.json()["error"]["type"], "invalid_request_error");
    let stale = Draft { timestamp_ms: 1, ..Draft::post("/v1/chat/completions", &chat("solo")) };
    assert_eq!(world.call(stale.signed()).await.json()["error"]["code"], "stale_timestamp");
    assert_eq!(world.call(chat_draft.signed()).await.status, 200);
    assert_eq!(world.call(chat_draft.signed()).await.json()["error"]["code"], "replay");

    let messages = json!({ "model": "solo", "max_tokens": 10, "messages": [{ "role": "user", "content": "hi" }] });
    let anthropic = world.call(Draft::post("/v1/messages", &messages).unsigned()).await;
    assert_eq!((anthropic.status, &anthropic.json()["type"]), (401, &json!("error")), "{}", anthropic.text());
    assert_eq!(anthropic.json()["error"]["type"], "authentication_error");
    // The key of this dialect may stand in a header of its own; it is what is signed.
    let draft = Draft::post("/v1/messages", &messages);
    let mut own = draft.signed();
    own.headers_mut().remove("authorization");
    own.headers_mut().insert("x-api-key", SHOP.parse().unwrap());
    assert_eq!(world.call(own).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_large_body_is_signed_like_a_small_one() {
    let world = World::with(&signing());
    let mut large = chat("solo");
    large["messages"][0]["content"] = json!("x".repeat(600_000));
    let draft = Draft::post("/v1/chat/completions", &large);
    let mut tampered = Draft::post("/v1/chat/completions", &large);
    tampered.body[1_000] ^= 1;
    let right = draft.signature();
    assert_eq!(world.call(tampered.with(&right)).await.status, 401);
    world.call(draft.signed()).await.assert_served("alpha", 1);
    assert_eq!(world.call(draft.signed()).await.status, 409);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_signature_goes_no_further_than_here_and_into_no_log() {
    let mut world = World::with(&signing());
    let draft = Draft::post("/v1/chat/completions", &chat("solo"));
    assert_eq!(world.call(draft.signed()).await.status, 200);
    assert_eq!(world.call(draft.signed()).await.status, 409);
    for seen in world.seen("alpha") {
        assert!(seen.headers.iter().all(|(name, _)| name != di::REQUEST_HEADER), "{:?}", seen.headers);
    }
    let log = world.log_text();
    assert!(log.contains("\"replay\"") && !log.contains(&draft.nonce), "{log}");
}
