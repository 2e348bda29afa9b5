use http::HeaderMap;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::Instant;

use super::*;
use crate::domain::clock;
use crate::domain::decision::Score;
use crate::sandbox::serve_connection;
use crate::sign::di::{
    self, CONTENT_HEADER, MODEL_HEADER, REQUEST_HEADER, RESPONSE_HEADER, ReceivedResponse, RequestParts, SignError,
    TRACE_HEADER, WINDOW_MS,
};
use crate::sign::hmac::sha256_hex;
use crate::sign::keyring::Keyring;
use crate::wire::alipay::di as bodies;
use crate::wire::risk;

const SECRET: [u8; 32] = [7; 32];
const TOKEN_LIFE: Duration = Duration::from_secs(3_600);

fn sandbox() -> Alipay {
    Alipay::new(config())
}

fn config() -> AlipayConfig {
    let keys = vec![("k1".to_owned(), Secret::new(SECRET.to_vec())), ("k2".to_owned(), Secret::new(vec![8; 32]))];
    AlipayConfig { keys, faults: Faults::new(), token_life: TOKEN_LIFE }
}

/// One request, right unless a test bends it.
#[derive(Clone)]
struct Ask {
    path: &'static str,
    query: &'static str,
    key_id: &'static str,
    secret: [u8; 32],
    timestamp_ms: u64,
    nonce: String,
    token: String,
    sent_token: Option<String>,
    body: Vec<u8>,
    sent_body: Option<Vec<u8>>,
    headers: Vec<(&'static str, String)>,
    signature: Option<String>,
}

struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    nonce: String,
}

impl Ask {
    fn new(path: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            path,
            query: "",
            key_id: "k1",
            secret: SECRET,
            timestamp_ms: clock::unix_ms(),
            nonce: di::fresh_nonce().unwrap(),
            token: String::new(),
            sent_token: None,
            body: body.into(),
            sent_body: None,
            headers: Vec::new(),
            signature: None,
        }
    }

    fn token() -> Self {
        Self::new("/oauth2/token", bodies::token_request())
    }

    fn score(token: &str, amount: &str) -> Self {
        Self { token: token.to_owned(), ..Self::new("/gateway.do", payment("T0001", amount)) }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn header(&self) -> String {
        let parts = RequestParts {
            key_id: self.key_id,
            timestamp_ms: self.timestamp_ms,
            nonce: &self.nonce,
            method: "POST",
            host: "sandbox.local",
            path: self.path,
            query: self.query,
            token: self.token.as_bytes(),
            body: &self.body,
        };
        di::sign_request(&self.secret, &parts).unwrap().header_value()
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let uri = if self.query.is_empty() { self.path.to_owned() } else { format!("{}?{}", self.path, self.query) };
        let mut request = Request::post(uri).header("host", "Sandbox.Local:80");
        let signature = self.signature.clone().unwrap_or_else(|| self.header());
        if !signature.is_empty() {
            request = request.header(REQUEST_HEADER, signature);
        }
        let token = self.sent_token.as_ref().unwrap_or(&self.token);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let body = self.sent_body.as_ref().unwrap_or(&self.body).clone();
        request.body(Full::new(Bytes::from(body))).unwrap()
    }

    /// Sends it over a connection of its own. The error is the one a client sees.
    async fn send(&self, alipay: &Alipay) -> Result<Got, hyper::Error> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let alipay = alipay.clone();
        let server = serve_connection(far, move |request| {
            let alipay = alipay.clone();
            async move { alipay.handle(request).await }
        });
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await?;
        let (server, connection) = (tokio::spawn(server), tokio::spawn(connection));
        let response = sender.send_request(self.request()).await;
        let got = match response {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                let (status, headers) = (parts.status, parts.headers);
                body.collect().await.map(|body| Got {
                    status,
                    headers,
                    body: body.to_bytes(),
                    nonce: self.nonce.clone(),
                })
            }
            Err(err) => Err(err),
        };
        server.abort();
        connection.abort();
        got
    }

    async fn got(&self, alipay: &Alipay) -> Got {
        self.send(alipay).await.unwrap()
    }

    async fn status(&self, alipay: &Alipay) -> u16 {
        self.got(alipay).await.status.as_u16()
    }
}

impl Got {
    fn verify(&self) -> Result<di::Authentic<'_>, SignError> {
        let Self { status, headers, body, nonce } = self;
        let received = ReceivedResponse { request_nonce: nonce, status: *status, headers, body };
        di::verify_response(&Keyring::single("k1", Secret::new(SECRET.to_vec())), &received, clock::unix_ms())
    }

    fn answer(&self) -> bodies::Answer {
        assert_eq!(self.status, StatusCode::OK);
        self.verify().unwrap();
        bodies::decode_answer(&self.body).unwrap()
    }

    fn code(&self) -> String {
        bodies::decode_error(&self.body).unwrap()
    }
}

fn payment(out_trade_no: &str, amount: &str) -> String {
    format!(
        r#"{{"out_trade_no":"{out_trade_no}","total_amount":"{amount}","currency":"CNY","subject":"demo","merchant_id":"m1","user_id":"u1","features":[]}}"#
    )
}

async fn token(alipay: &Alipay) -> String {
    let got = Ask::token().got(alipay).await;
    assert_eq!(got.status, StatusCode::OK);
    got.verify().unwrap();
    let token = bodies::decode_token(&got.body).unwrap();
    assert_eq!(token.expires_in_s, 3_600);
    String::from_utf8(token.access_token.expose().to_vec()).unwrap()
}

async fn scored(amount: &str) -> Got {
    let alipay = sandbox();
    let token = token(&alipay).await;
    Ask::score(&token, amount).got(&alipay).await
}

#[tokio::test]
async fn a_signed_flow_from_token_to_verdict_works() {
    let alipay = sandbox();
    let token = token(&alipay).await;
    let request = risk::decode(
        br#"{"out_trade_no":"T0001","total_amount":"88.13","currency":"CNY","subject":"demo","merchant":{"id":"m1"},
             "user":{"id":"u1","country":"TH"},"device":{"ip":"203.0.113.7"},"features":["fx"],"metadata":{"a":1}}"#,
    );
    let body = bodies::encode_assess(&request.unwrap());
    let ask = Ask { token: token.clone(), ..Ask::new("/gateway.do", body.clone()) };
    let ask = ask.with(CONTENT_HEADER, sha256_hex(&body)).with("idempotency-key", "T0001");
    let got = ask.got(&alipay).await;
    let answer = got.answer();
    assert_eq!(answer.score, Score::parse("0.42"));
    assert_eq!(answer.recommendation.as_deref(), Some("REVIEW"));
    assert_eq!(answer.explanation.as_deref(), Some("suspicious device fingerprint mismatch"));
    let authentic = got.verify().unwrap();
    assert!(authentic.trace_id.unwrap().starts_with("tr-"));
    assert_eq!(authentic.model_version, Some(MODEL_VERSION));
    assert_eq!((alipay.tokens_issued(), alipay.billed()), (1, 1));

    let seen = alipay.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[0].path.as_str(), seen[0].token_ok), ("/oauth2/token", false));
    assert_eq!((seen[1].path.as_str(), seen[1].token_ok), ("/gateway.do", true));
    assert_eq!((seen[1].out_trade_no.as_str(), &seen[1].nonce, &seen[1].body), ("T0001", &ask.nonce, &body));
    assert_eq!((seen[1].timestamp_ms, seen[1].refusal), (ask.timestamp_ms, None));
    assert!(!format!("{seen:?}").contains("203.0.113.7"));
}

#[tokio::test]
async fn a_base_path_and_a_query_are_part_of_what_is_signed() {
    let alipay = sandbox();
    let token = token(&alipay).await;
    let ask = Ask { path: "/base/gateway.do", query: "b=2&a=%7e", ..Ask::score(&token, "1.00") };
    assert_eq!(ask.status(&alipay).await, 200);
    let moved = Ask { path: "/other/gateway.do", signature: Some(ask.header()), ..ask };
    assert_eq!(moved.status(&alipay).await, 401);
}

#[tokio::test]
async fn c2_a_request_sent_twice_is_answered_with_409_the_second_time() {
    let alipay = sandbox();
    let token = token(&alipay).await;
    let ask = Ask::score(&token, "1.00");
    assert_eq!(ask.status(&alipay).await, 200);
    let again = ask.got(&alipay).await;
    assert_eq!((again.status.as_u16(), again.code().as_str()), (409, "REPLAYED_NONCE"));
    again.verify().unwrap();
    assert_eq!((alipay.refused(Refusal::Replay), alipay.billed()), (1, 1));
}

#[tokio::test]
async fn c2_a_nonce_in_other_letters_is_another_request() {
    let alipay = sandbox();
    let ask = Ask { nonce: "AAECAwQFBgcICQoLDA0ODw".to_owned(), ..Ask::token() };
    assert_eq!(ask.status(&alipay).await, 200);
    let lower = ask.header().replace(&ask.nonce, &ask.nonce.to_ascii_lowercase());
    assert_eq!(Ask { signature: Some(lower), ..ask }.status(&alipay).await, 401);
}

#[tokio::test]
async fn c2_a_stranger_cannot_use_up_a_nonce() {
    let alipay = sandbox();
    let ask = Ask::token();
    assert_eq!(Ask { secret: [9; 32], ..ask.clone() }.status(&alipay).await, 401);
    assert_eq!(ask.status(&alipay).await, 200);
}

#[tokio::test]
async fn c2_without_room_for_a_nonce_the_answer_is_503() {
    let alipay = Alipay::with_nonce_room(config(), 1);
    assert_eq!(Ask::token().status(&alipay).await, 200);
    let got = Ask::token().got(&alipay).await;
    assert_eq!((got.status.as_u16(), got.code().as_str()), (503, "NONCE_STORE_FULL"));
}

#[tokio::test]
async fn c3_a_signature_older_or_newer_than_300_seconds_is_refused() {
    let alipay = sandbox();
    let now = clock::unix_ms();
    // A few seconds of room, because the other side reads its own clock.
    for (timestamp_ms, status) in [
        (now - WINDOW_MS + 5_000, 200),
        (now + WINDOW_MS - 5_000, 200),
        (now - WINDOW_MS - 1_000, 401),
        (now + WINDOW_MS + 5_000, 401),
        (now / 1_000, 401),
        (1, 401),
    ] {
        assert_eq!(Ask { timestamp_ms, ..Ask::token() }.status(&alipay).await, status, "{timestamp_ms}");
    }
    assert_eq!(alipay.refused(Refusal::Stale), 4);
}

#[tokio::test]
async fn c6_every_changed_part_is_refused_with_one_and_the_same_answer() {
    let alipay = sandbox();
    let token = token(&alipay).await;
    let good = Ask::score(&token, "1.00");
    let header = good.header();
    let signed = |ask: Ask| Ask { signature: Some(ask.header()), ..ask };
    let bent = [
        (Ask { signature: Some(String::new()), ..good.clone() }, Refusal::Header),
        (Ask { signature: Some(header.replace("v=1", "v=2")), ..good.clone() }, Refusal::Header),
        (Ask { signature: Some(header.replace("kid=k1,", "")), ..good.clone() }, Refusal::Header),
        (good.clone().with(REQUEST_HEADER, header.clone()), Refusal::Header),
        (good.clone().with("authorization", "Bearer other"), Refusal::Header),
        (Ask { key_id: "k9", ..good.clone() }, Refusal::Key),
        (Ask { key_id: "k2", ..good.clone() }, Refusal::Signature),
        (Ask { signature: Some(header.replace("kid=k1", "kid=k2")), ..good.clone() }, Refusal::Signature),
        (good.clone().with(CONTENT_HEADER, sha256_hex(b"other")), Refusal::Content),
        (Ask { sent_body: Some(payment("T0001", "0.01").into_bytes()), ..good.clone() }, Refusal::Signature),
        (Ask { sent_token: Some("tok_other".to_owned()), ..good.clone() }, Refusal::Signature),
        (Ask { query: "a=1", ..signed(good.clone()) }, Refusal::Signature),
        (Ask { secret: [9; 32], ..good.clone() }, Refusal::Signature),
    ];
    for (index, (ask, refusal)) in bent.into_iter().enumerate() {
        let before = alipay.refused(refusal);
        let got = ask.got(&alipay).await;
        assert_eq!(got.status, StatusCode::UNAUTHORIZED, "{index}");
        assert_eq!(got.body, r#"{"error":"unauthorized"}"#, "{index}");
        assert!(!got.headers.contains_key(RESPONSE_HEADER), "{index}");
        assert_eq!(alipay.refused(refusal), before + 1, "{index} {refusal:?}");
    }
    // None of them used the nonce up.
    assert_eq!(good.status(&alipay).await, 200);
}

#[tokio::test]
async fn c11_both_keys_of_a_client_are_accepted_and_a_token_belongs_to_one() {
    let alipay = sandbox();
    let token = token(&alipay).await;
    assert_eq!(Ask { key_id: "k2", secret: [8; 32], ..Ask::token() }.status(&alipay).await, 200);
    let borrowed = Ask { key_id: "k2", secret: [8; 32], ..Ask::score(&token, "1.00") };
    assert_eq!(borrowed.got(&alipay).await.code(), "invalid_token");
}

#[tokio::test]
async fn a_missing_withdrawn_or_expired_token_is_401_invalid_token_and_signed() {
    let alipay = Alipay::new(AlipayConfig { token_life: Duration::from_millis(1), ..config() });
    for expired in ["", "tok_made_up"] {
        let got = Ask::score(expired, "1.00").got(&alipay).await;
        assert_eq!((got.status.as_u16(), got.code().as_str()), (401, "invalid_token"));
        assert_eq!(got.headers["www-authenticate"], r#"Bearer error="invalid_token""#);
        got.verify().unwrap();
    }
    let got = Ask::token().got(&alipay).await;
    let short = bodies::decode_token(&got.body).unwrap();
    let short = String::from_utf8(short.access_token.expose().to_vec()).unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(Ask::score(&short, "1.00").got(&alipay).await.code(), "invalid_token");

    let alipay = sandbox();
    let token = token(&alipay).await;
    alipay.revoke_tokens();
    assert_eq!(Ask::score(&token, "1.00").got(&alipay).await.code(), "invalid_token");
    assert_eq!(alipay.seen().last().unwrap().refusal, Some(Refusal::Token));
    assert!(!alipay.seen().last().unwrap().token_ok);
}

#[tokio::test]
async fn only_the_client_credentials_grant_with_known_scopes_gives_a_token() {
    let alipay = sandbox();
    for (form, code) in [
        ("", "invalid_request"),
        ("grant_type=client_credentials&grant_type=client_credentials", "invalid_request"),
        ("grant_type=password", "unsupported_grant_type"),
        ("grant_type=client_credentials&scope=risk:all", "invalid_scope"),
        ("grant_type=client_credentials&scope=", "invalid_scope"),
    ] {
        let got = Ask::new("/oauth2/token", form).got(&alipay).await;
        assert_eq!((got.status.as_u16(), got.code().as_str()), (400, code), "{form}");
    }
    for form in ["grant_type=client_credentials", "scope=risk:score+risk%3Areport&grant_type=client_credentials"] {
        assert_eq!(Ask::new("/oauth2/token", form).status(&alipay).await, 200, "{form}");
    }
    let got = Ask::new("/oauth2/token", "grant_type=client_credentials&scope=risk:report").got(&alipay).await;
    let answer: Value = serde_json::from_slice(&got.body).unwrap();
    let got = Ask::score(answer["access_token"].as_str().unwrap(), "1.00").got(&alipay).await;
    assert_eq!((got.status.as_u16(), got.code().as_str()), (403, "insufficient_scope"));
    assert_eq!(alipay.tokens_issued(), 3);
}

#[tokio::test]
async fn c12_the_same_key_and_body_is_one_verdict_and_another_body_is_409() {
    let alipay = sandbox();
    let token = token(&alipay).await;
    let ask = || Ask { nonce: di::fresh_nonce().unwrap(), ..Ask::score(&token, "88.13") };
    let first = ask().got(&alipay).await;
    let asks: Vec<Ask> = (0..20).map(|_| ask().with("idempotency-key", "T0001")).collect();
    let repeats = futures_util::future::join_all(asks.iter().map(|ask| ask.got(&alipay))).await;
    assert!(repeats.iter().all(|got| got.body == first.body && got.verify().is_ok()));
    assert_eq!(alipay.billed(), 1);
    let other = Ask::score(&token, "88.14").got(&alipay).await;
    assert_eq!((other.status.as_u16(), other.code().as_str()), (409, "REPEAT_REQ_INCONSISTENT"));
    other.verify().unwrap();
    assert_eq!((alipay.refused(Refusal::Reused), alipay.billed()), (1, 1));
    let elsewhere = Ask::score(&token, "88.14").with("idempotency-key", "T0001-b");
    assert_eq!(elsewhere.status(&alipay).await, 200);
    for bad in ["", "a b", &"x".repeat(65)] {
        let got = Ask::score(&token, "88.13").with("idempotency-key", bad).got(&alipay).await;
        assert_eq!(got.code(), "invalid_idempotency_key", "{bad:?}");
    }
}

#[tokio::test]
async fn a_body_the_dialect_does_not_allow_is_400_and_signed() {
    let alipay = sandbox();
    let token = token(&alipay).await;
    let good = payment("T0001", "88.88");
    let bad = [
        String::new(),
        "[]".to_owned(),
        good.replace("88.88", "88.8"),
        good.replace("88.88", "+88.88"),
        good.replace(r#""88.88""#, "88.88"),
        good.replace("CNY", "cny"),
        good.replace("T0001", ""),
        good.replace("T0001", "T 1"),
        good.replace("u1", ""),
        good.replace(r#","features":[]"#, ""),
        good.replace('{', r#"{"user_id":"u2","#),
        good.replace("[]", r#"[],"metadata":{"sandbox_fault":"explode"}"#),
    ];
    for body in bad {
        let got = Ask { token: token.clone(), ..Ask::new("/gateway.do", body.clone()) }.got(&alipay).await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST, "{body}");
        got.verify().unwrap();
    }
}

#[tokio::test]
async fn unknown_paths_other_methods_and_large_bodies_are_refused() {
    let alipay = sandbox();
    assert_eq!(Ask::new("/gateway", "").status(&alipay).await, 404);
    assert_eq!(Ask::new("/gateway.do", vec![b' '; LARGEST_BODY + 1]).status(&alipay).await, 413);
    assert!(alipay.seen().is_empty());
}

#[tokio::test]
async fn magic_amounts_give_their_verdicts() {
    for (amount, score, word) in [
        ("88.88", "0.12", "PASS"),
        ("88.00", "0.12", "PASS"),
        ("88.13", "0.42", "REVIEW"),
        ("88.30", "0.3", "PASS"),
        ("88.49", "0.5", "CHALLENGE"),
        ("88.91", "0.91", "REJECT"),
        ("88.58", "0.05", "APPROVE"),
    ] {
        let answer = scored(amount).await.answer();
        assert_eq!((answer.score, answer.recommendation.as_deref()), (Score::parse(score), Some(word)), "{amount}");
    }
}

#[tokio::test]
async fn c8_magic_amounts_give_scores_that_are_none() {
    let answer = scored("88.53").await.answer();
    assert!(answer.score.is_none() && answer.score_was_invalid);
    let answer = scored("88.57").await.answer();
    assert!(answer.score.is_none() && !answer.score_was_invalid && answer.recommendation.is_some());
    for not_json in ["88.54", "88.60"] {
        let got = scored(not_json).await;
        got.verify().unwrap();
        assert!(bodies::decode_answer(&got.body).is_err(), "{not_json}");
    }
}

#[tokio::test]
async fn c7_magic_amounts_give_answers_that_are_not_authentic() {
    assert_eq!(scored("88.51").await.verify().err(), Some(SignError::Missing));
    assert_eq!(scored("88.52").await.verify().err(), Some(SignError::Mismatch));
}

#[tokio::test(start_paused = true)]
async fn magic_amounts_give_slow_broken_and_missing_answers() {
    let start = Instant::now();
    scored("88.50").await.answer();
    assert_eq!(start.elapsed().as_secs(), 2);
    let got = scored("88.55").await;
    assert_eq!(got.status, StatusCode::SERVICE_UNAVAILABLE);
    got.verify().unwrap();
    let alipay = sandbox();
    let token = token(&alipay).await;
    assert!(Ask::score(&token, "88.56").send(&alipay).await.is_err());
    assert!(tokio::time::timeout(Duration::from_secs(60), scored("88.59")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_request_can_ask_for_its_own_fault() {
    let alipay = sandbox();
    let token = token(&alipay).await;
    let ask = |number: &str, fault: &str| {
        let metadata = format!(r#"[],"metadata":{{"sandbox_fault":"{fault}"}}"#);
        let body = payment(number, "88.88").replace("[]", &metadata);
        Ask { token: token.clone(), ..Ask::new("/gateway.do", body) }
    };
    let got = ask("T1", "status:429;retry-after=2").got(&alipay).await;
    assert_eq!((got.status.as_u16(), &got.headers["retry-after"]), (429, &http::HeaderValue::from(2)));
    assert!(ask("T2", "empty").got(&alipay).await.body.is_empty());
    assert_eq!(ask("T3", "error-in-200:500").got(&alipay).await.code(), "sandbox_fault");
    assert!(ask("T4", "cut:5").send(&alipay).await.is_err());
    assert!(ask("T5", "cut:9999").send(&alipay).await.is_err());
    assert!(ask("T6", "reset").send(&alipay).await.is_err());
    let stalled = tokio::time::timeout(Duration::from_secs(60), ask("T7", "stall").send(&alipay)).await;
    assert!(stalled.is_err());
}

#[tokio::test]
async fn a_script_goes_first_and_is_used_up_by_admitted_requests_only() {
    let alipay = sandbox();
    let faults = alipay.shared.faults.clone();
    faults.set(TOKEN_FAULTS, vec![Fault::parse("status:503").unwrap()]);
    assert_eq!(Ask { secret: [9; 32], ..Ask::token() }.status(&alipay).await, 401);
    assert_eq!(Ask::token().status(&alipay).await, 503);
    let token = token(&alipay).await;
    faults.set(GATEWAY_FAULTS, vec![Fault::Unsigned, Fault::BadSignature]);
    let ask = || Ask::score(&token, "88.55");
    assert_eq!(ask().got(&alipay).await.verify().err(), Some(SignError::Missing));
    assert_eq!(ask().got(&alipay).await.verify().err(), Some(SignError::Mismatch));
    assert_eq!(ask().status(&alipay).await, 503);
}

#[tokio::test]
async fn every_signed_answer_names_its_trace_and_model() {
    let (a, b) = (scored("88.88").await, scored("88.88").await);
    assert_eq!(a.headers[MODEL_HEADER], MODEL_VERSION);
    assert_eq!(a.headers[TRACE_HEADER], b.headers[TRACE_HEADER]);
    assert_eq!(a.body, b.body);
}
