use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::domain::secret::Secret;
use crate::sign::keyring::{KeyState, SigningKey};

const SECRET: [u8; 32] = {
    let mut bytes = [0u8; 32];
    let mut index = 0;
    while index < 32 {
        bytes[index] = index as u8;
        index += 1;
    }
    bytes
};
const NONCE: &str = "AAECAwQFBgcICQoLDA0ODw";
const NOW: u64 = 1_767_323_045_000;

fn k1() -> Keyring {
    Keyring::single("k1", Secret::new(SECRET.to_vec()))
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../tests/golden/sign/di.json")).unwrap()
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap()
}

fn request_parts(case: &Value) -> RequestParts<'_> {
    RequestParts {
        key_id: text(case, "key_id"),
        timestamp_ms: case["timestamp_ms"].as_u64().unwrap(),
        nonce: text(case, "nonce"),
        method: text(case, "method"),
        host: text(case, "host"),
        path: text(case, "path"),
        query: text(case, "query"),
        token: text(case, "token").as_bytes(),
        body: text(case, "body").as_bytes(),
    }
}

fn response_parts(case: &Value) -> ResponseParts<'_> {
    ResponseParts {
        key_id: text(case, "key_id"),
        timestamp_ms: case["timestamp_ms"].as_u64().unwrap(),
        request_nonce: text(case, "request_nonce"),
        status: u16::try_from(case["status"].as_u64().unwrap()).unwrap(),
        trace_id: text(case, "trace_id"),
        model_version: text(case, "model_version"),
        body: text(case, "body").as_bytes(),
    }
}

fn demo() -> RequestParts<'static> {
    RequestParts {
        key_id: "k1",
        timestamp_ms: NOW,
        nonce: NONCE,
        method: "POST",
        host: "sandbox.local",
        path: "/gateway.do",
        query: "",
        token: b"tok_test_0001",
        body: br#"{"out_trade_no":"T0001","total_amount":"88.88","subject":"demo"}"#,
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: &'static [u8],
}

/// The published answer to [`demo`].
fn answer() -> Answer {
    let body =
        br#"{"risk_score":0.42,"recommendation":"REVIEW","explanation":"suspicious device fingerprint mismatch"}"#;
    let mut headers = HeaderMap::new();
    let signature = "v=1,kid=k1,ts=1767323045123,sig=ly/AqPcZyWh32NxgTGSQE9lT9Rw3BbKE2cGmXsl6yxg=";
    headers.insert(RESPONSE_HEADER, signature.parse().unwrap());
    headers.insert(TRACE_HEADER, "tr-0001".parse().unwrap());
    headers.insert(MODEL_HEADER, "di-2026.01.0".parse().unwrap());
    Answer { status: StatusCode::OK, headers, body }
}

impl Answer {
    fn verify(&self, now_ms: u64) -> Result<Authentic<'_>, SignError> {
        let Self { status, headers, body } = self;
        let received = ReceivedResponse { request_nonce: NONCE, status: *status, headers, body };
        verify_response(&k1(), &received, now_ms)
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().unwrap());
        self
    }
}

#[test]
fn every_request_vector_gives_its_text_and_its_tag() {
    for case in golden()["requests"].as_array().unwrap() {
        let (name, parts) = (text(case, "name"), request_parts(case));
        assert_eq!(request_string(&parts), text(case, "string_to_sign"), "{name}");
        assert_eq!(request_string(&parts).lines().count(), 10, "{name}");
        let signature = sign_request(&SECRET, &parts).unwrap();
        assert_eq!(signature.tag(), text(case, "sig"), "{name}");
        assert_eq!(signature.header_value(), text(case, "header"), "{name}");
        let header = parse_request_header(text(case, "header")).unwrap();
        let read =
            RequestParts { key_id: header.key_id, timestamp_ms: header.timestamp_ms, nonce: header.nonce, ..parts };
        assert_eq!(verify_request(&SECRET, &read, header.tag), Ok(()), "{name}");
    }
}

#[test]
fn c5_every_request_vector_has_a_tag_of_its_own() {
    let golden = golden();
    let tags: Vec<&str> = golden["requests"].as_array().unwrap().iter().map(|case| text(case, "sig")).collect();
    for (index, tag) in tags.iter().enumerate() {
        assert!(!tags[..index].contains(tag), "{index}");
    }
}

#[test]
fn every_response_vector_gives_its_text_and_its_header() {
    for case in golden()["responses"].as_array().unwrap() {
        let (name, parts) = (text(case, "name"), response_parts(case));
        assert_eq!(response_string(&parts), text(case, "string_to_sign"), "{name}");
        assert_eq!(sign_response(&SECRET, &parts).unwrap(), text(case, "header"), "{name}");
        assert!(text(case, "header").ends_with(text(case, "sig")), "{name}");
    }
}

#[test]
fn the_published_answer_is_authentic_and_hands_out_its_signed_headers() {
    let authentic = Authentic { trace_id: Some("tr-0001"), model_version: Some("di-2026.01.0") };
    assert_eq!(answer().verify(NOW), Ok(authentic));
}

#[test]
fn c7_an_unsigned_answer_is_refused() {
    let mut unsigned = answer();
    unsigned.headers.remove(RESPONSE_HEADER);
    assert_eq!(unsigned.verify(NOW), Err(SignError::Missing));
}

#[test]
fn c7_an_answer_with_two_signatures_trace_ids_or_models_is_refused() {
    for name in [RESPONSE_HEADER, TRACE_HEADER, MODEL_HEADER] {
        let mut twice = answer();
        let same = twice.headers[name].clone();
        twice.headers.append(name, same);
        assert_eq!(twice.verify(NOW), Err(SignError::Repeated), "{name}");
    }
}

#[test]
fn c7_an_answer_signed_with_another_key_version_or_scheme_is_refused() {
    let tag = "ly/AqPcZyWh32NxgTGSQE9lT9Rw3BbKE2cGmXsl6yxg=";
    let cases = [
        (format!("v=2,kid=k1,ts=1767323045123,sig={tag}"), SignError::Version),
        (format!("v=none,kid=k1,ts=1767323045123,sig={tag}"), SignError::Version),
        ("v=none".to_owned(), SignError::Version),
        (format!("v=1,kid=k2,ts=1767323045123,sig={tag}"), SignError::WrongKey),
        (format!("v=1,kid=,ts=1767323045123,sig={tag}"), SignError::Malformed),
        (format!("V=1,kid=k1,ts=1767323045123,sig={tag}"), SignError::Malformed),
        (format!("v=1, kid=k1,ts=1767323045123,sig={tag}"), SignError::Malformed),
        (format!("v=1,ts=1767323045123,kid=k1,sig={tag}"), SignError::Malformed),
        (format!("v=1,kid=k1,ts=01767323045123,sig={tag}"), SignError::Malformed),
        (format!("v=1,kid=k1,ts=1767323045123,sig={tag},sig={tag}"), SignError::Malformed),
        (format!("v=1,kid=k1,ts=1767323045123,nonce={NONCE},sig={tag}"), SignError::Malformed),
        ("v=1,kid=k1,ts=1767323045123,sig=".to_owned(), SignError::Malformed),
        ("v=1,kid=k1,ts=1767323045123,sig=AAAA".to_owned(), SignError::Malformed),
        (format!("v=1,kid=k1,ts=1767323045124,sig={tag}"), SignError::Mismatch),
        (format!("v=1,kid=k1,ts=1767323045123,sig={}=", "A".repeat(43)), SignError::Mismatch),
        (String::new(), SignError::Malformed),
    ];
    for (header, expected) in cases {
        assert_eq!(answer().with(RESPONSE_HEADER, &header).verify(NOW), Err(expected), "{header}");
    }
}

#[test]
fn c7_an_answer_to_another_request_status_body_or_with_other_headers_is_refused() {
    let mut other = answer();
    other.body = b"{}";
    assert_eq!(other.verify(NOW), Err(SignError::Mismatch));
    other = answer();
    other.status = StatusCode::ACCEPTED;
    assert_eq!(other.verify(NOW), Err(SignError::Mismatch));
    assert_eq!(answer().with(TRACE_HEADER, "tr-0002").verify(NOW), Err(SignError::Mismatch));
    assert_eq!(answer().with(MODEL_HEADER, "di-2026.01.1").verify(NOW), Err(SignError::Mismatch));
    let Answer { status, headers, body } = answer();
    let received = ReceivedResponse { request_nonce: "BBECAwQFBgcICQoLDA0ODw", status, headers: &headers, body };
    assert_eq!(verify_response(&k1(), &received, NOW), Err(SignError::Mismatch));
}

#[test]
fn c11_an_answer_is_believed_under_every_key_that_is_in_use_and_under_no_other() {
    let answer = answer();
    let received =
        ReceivedResponse { request_nonce: NONCE, status: answer.status, headers: &answer.headers, body: answer.body };
    let ring = |state| {
        let key = |id: &str, byte, state| SigningKey { id: id.to_owned(), secret: Secret::new(vec![byte; 32]), state };
        let old = SigningKey { id: "k1".to_owned(), secret: Secret::new(SECRET.to_vec()), state };
        Keyring::new(vec![key("k2", 9, KeyState::Active), old]).unwrap()
    };
    assert!(verify_response(&ring(KeyState::Active), &received, NOW).is_ok());
    assert!(verify_response(&ring(KeyState::VerifyOnly), &received, NOW).is_ok());
    assert_eq!(verify_response(&ring(KeyState::Pending), &received, NOW), Err(SignError::WrongKey));
    let other = Keyring::single("k1", Secret::new(vec![9; 32]));
    assert_eq!(verify_response(&other, &received, NOW), Err(SignError::Mismatch));
}

#[test]
fn c3_only_an_authentic_answer_says_when_it_was_signed() {
    let answer = answer();
    let received = |nonce| ReceivedResponse {
        request_nonce: nonce,
        status: answer.status,
        headers: &answer.headers,
        body: answer.body,
    };
    let signed = authenticate_response(&k1(), &received(NONCE)).unwrap();
    assert_eq!((signed.timestamp_ms, signed.within(0)), (NOW + 123, Err(SignError::Stale)));
    assert!(authenticate_response(&k1(), &received("BBECAwQFBgcICQoLDA0ODw")).is_err());
}

/// Tags are compared in one place, by a function that is made for it: no timing is measured here, because a machine that
/// is busy with other things would say nothing true.
#[test]
fn c1_no_tag_is_compared_but_in_constant_time() {
    let source = include_str!("../di.rs");
    assert_eq!(source.matches("verify(secret, message.as_bytes(), &tag)").count(), 1);
    assert!(!source.contains("tag ==") && !source.contains("== tag") && !source.contains("tag !="));
    assert!(include_str!("../hmac.rs").contains(".verify_slice(tag)"));
    assert!(include_str!("../../domain/secret.rs").contains(".ct_eq("), "secrets are compared alike");
}

#[test]
fn c5_texts_that_look_alike_are_different_bodies() {
    let alike = [
        "{\"subject\":\"é\"}",
        "{\"subject\":\"e\u{301}\"}",
        "{\"subject\":\"\\u00e9\"}",
        "{\"subject\":\"\u{202e}é\"}",
        "{\"a\":1,\"b\":2}",
        "{\"b\":2,\"a\":1}",
        "{\"a\":1.0}",
        "{\"a\":1.00}",
        "{\"a\":1e0}",
        "{\"a\":\"/\"}",
        "{\"a\":\"\\/\"}",
        "{\"a\": 1.0}",
        "{\"a\":\"👍\"}",
        "{\"a\":\"\\ud83d\\udc4d\"}",
    ];
    let tag =
        |body: &str| sign_request(&SECRET, &RequestParts { body: body.as_bytes(), ..demo() }).unwrap().tag().to_owned();
    let tags: std::collections::BTreeSet<String> = alike.iter().map(|body| tag(body)).collect();
    assert_eq!(tags.len(), alike.len());
}

#[test]
fn c3_an_answer_is_accepted_up_to_300_seconds_from_now_either_way() {
    let signed_at = NOW + 123;
    for inside in [signed_at - WINDOW_MS, signed_at, signed_at + WINDOW_MS] {
        assert!(answer().verify(inside).is_ok());
    }
    for outside in [signed_at - WINDOW_MS - 1, signed_at + WINDOW_MS + 1, 0, u64::MAX] {
        assert_eq!(answer().verify(outside), Err(SignError::Stale));
    }
}

#[test]
fn c6_a_field_that_could_move_a_separator_is_refused_when_signing_and_when_verifying() {
    let long = "k".repeat(65);
    let parts = demo();
    let ambiguous = [
        RequestParts { key_id: "k1\n1767323045000", ..parts },
        RequestParts { key_id: "k1,ts=1", ..parts },
        RequestParts { key_id: "", ..parts },
        RequestParts { key_id: &long, ..parts },
        RequestParts { nonce: "AAECAwQFBgcICQoL\nPOST\n", ..parts },
        RequestParts { nonce: "short", ..parts },
        RequestParts { method: "POST\nx", ..parts },
        RequestParts { host: "a\nb", ..parts },
        RequestParts { path: "/a\n/b", ..parts },
    ];
    for parts in ambiguous {
        assert_eq!(sign_request(&SECRET, &parts).err(), Some(SignError::Separator));
        let tag = STANDARD.encode(mac(&SECRET, &[request_string(&parts).as_bytes()]));
        assert_eq!(verify_request(&SECRET, &parts, &tag), Err(SignError::Separator));
    }
    let golden = golden();
    let response = response_parts(&golden["responses"][0]);
    let ambiguous = [
        ResponseParts { key_id: "k\n1", ..response },
        ResponseParts { request_nonce: "\n", ..response },
        ResponseParts { trace_id: "tr\n1", ..response },
        ResponseParts { model_version: "a\nb", ..response },
    ];
    for parts in ambiguous {
        assert_eq!(sign_response(&SECRET, &parts), Err(SignError::Separator));
    }
}

#[test]
fn a_request_header_follows_its_grammar_to_the_letter() {
    let tag = "eHFEh05D9ZMsDCPMfViVVX+9ktuzmjNvOvrrI5RR35Y=";
    let good = format!("v=1,kid=k1,ts=1767323045000,nonce={NONCE},sig={tag}");
    let header = parse_request_header(&good).unwrap();
    assert_eq!((header.key_id, header.timestamp_ms, header.nonce, header.tag), ("k1", NOW, NONCE, tag));
    let malformed = [
        String::new(),
        good.to_ascii_uppercase(),
        good.replace(',', ", "),
        good.replace(',', ";"),
        format!("{good},"),
        format!(" {good}"),
        format!("{good},v=1"),
        good.replace("kid=k1,", ""),
        good.replace("kid=k1", "kid=k1,kid=k1"),
        good.replace("kid=k1", "kid="),
        good.replace("kid=k1", "kid=k 1"),
        good.replace("kid=k1,ts=1767323045000", "ts=1767323045000,kid=k1"),
        good.replace("ts=1767323045000", "ts=-1767323045000"),
        good.replace("ts=1767323045000", "ts=+1767323045000"),
        good.replace("ts=1767323045000", "ts="),
        good.replace("ts=1767323045000", "ts=1.7e12"),
        good.replace("ts=1767323045000", "ts=99999999999999999999"),
        good.replace(NONCE, &NONCE[1..]),
        good.replace(NONCE, &format!("{NONCE}A")),
        good.replace(NONCE, "AAECAwQFBgcICQoLDA0OD="),
        good.replace(tag, ""),
        good.replace(tag, &tag[..43]),
        good.replace(tag, &tag.replace('+', "-")),
        // The last character has two spare bits: only one of its four spellings is the tag.
        good.replace("35Y=", "35Z="),
    ];
    for header in malformed {
        assert_eq!(parse_request_header(&header), Err(SignError::Malformed), "{header}");
    }
    assert_eq!(parse_request_header(&good.replace("v=1", "v=2")), Err(SignError::Version));
}

#[test]
fn c2_another_spelling_of_the_nonce_is_another_request() {
    let tag = sign_request(&SECRET, &demo()).unwrap();
    let lower = NONCE.to_ascii_lowercase();
    let parts = RequestParts { nonce: &lower, ..demo() };
    assert_eq!(verify_request(&SECRET, &parts, tag.tag()), Err(SignError::Mismatch));
}

#[test]
fn the_default_port_is_no_part_of_the_host() {
    assert_eq!(canonical_host("OpenAPI.Alipay.com:443", 443), "openapi.alipay.com");
    assert_eq!(canonical_host("openapi.alipay.com:80", 443), "openapi.alipay.com:80");
    assert_eq!(canonical_host("127.0.0.1:80", 80), "127.0.0.1");
    assert_eq!(canonical_host("[::1]:80", 80), "[::1]");
    assert_eq!(canonical_host("[::80]", 80), "[::80]");
    assert_eq!(canonical_host("localhost", 80), "localhost");
}

#[test]
fn c4_a_million_nonces_are_well_formed_and_differ() {
    // As many as the threat asks for; nothing is kept between two of them, so a restart or a copied machine changes nothing.
    let mut seen = std::collections::HashSet::with_capacity(1_000_000);
    for _ in 0..1_000_000 {
        let nonce = fresh_nonce().unwrap();
        assert!(is_nonce(&nonce), "{nonce}");
        let bytes: [u8; 16] = URL_SAFE_NO_PAD.decode(&nonce).unwrap().try_into().unwrap();
        assert!(seen.insert(u128::from_be_bytes(bytes)), "{nonce}");
    }
}

#[test]
fn s11_debug_output_shows_no_tag_and_no_nonce() {
    let signature = sign_request(&SECRET, &demo()).unwrap();
    let header = signature.header_value();
    let shown = format!("{signature:?} {:?}", parse_request_header(&header).unwrap());
    assert!(!shown.contains(NONCE) && !shown.contains(signature.tag()), "{shown}");
}

/// Owned parts, to draw two requests from.
#[derive(Clone, PartialEq, Debug)]
struct Drawn {
    key_id: String,
    timestamp_ms: u64,
    nonce: String,
    method: String,
    host: String,
    path: String,
    query: String,
    token: Vec<u8>,
    body: Vec<u8>,
}

impl Drawn {
    fn parts(&self) -> RequestParts<'_> {
        RequestParts {
            key_id: &self.key_id,
            timestamp_ms: self.timestamp_ms,
            nonce: &self.nonce,
            method: &self.method,
            host: &self.host,
            path: &self.path,
            query: &self.query,
            token: &self.token,
            body: &self.body,
        }
    }

    fn tag(&self) -> String {
        sign_request(&SECRET, &self.parts()).unwrap().tag().to_owned()
    }
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let ids = ("[a-b.]{1,3}", 1u64..20, "[ab_-]{22}", "GET|POST", "[a-b.]{1,3}", "/[ab/%]{0,3}", "[ab]{0,2}=[ab]{0,2}");
    let bytes = (prop::collection::vec(any::<u8>(), 0..4), prop::collection::vec(any::<u8>(), 0..4));
    (ids, bytes).prop_map(|((key_id, timestamp_ms, nonce, method, host, path, query), (token, body))| Drawn {
        key_id,
        timestamp_ms,
        nonce,
        method,
        host,
        path,
        query,
        token,
        body,
    })
}

/// Replaces one byte of one part by another of the same kind.
fn change(text: &mut String, at: usize) {
    let at = at % text.len();
    let other = if text.as_bytes()[at] == b'x' { "y" } else { "x" };
    text.replace_range(at..=at, other);
}

proptest! {
    #[test]
    fn c6_two_different_requests_never_share_a_signature(a in drawn(), b in drawn()) {
        prop_assert_eq!(a == b, a.tag() == b.tag());
    }

    #[test]
    fn c6_any_changed_byte_of_any_part_changes_the_signature(original in drawn(), part in 0usize..9, at in 0usize..100) {
        let mut changed = original.clone();
        match part {
            0 => change(&mut changed.key_id, at),
            1 => changed.timestamp_ms += 1,
            2 => change(&mut changed.nonce, at),
            3 => change(&mut changed.method, at),
            4 => change(&mut changed.host, at),
            5 => change(&mut changed.path, at),
            6 => change(&mut changed.query, 0),
            7 => changed.token.push(0),
            _ => changed.body.push(0),
        }
        prop_assert_ne!(original.tag(), changed.tag());
    }

    #[test]
    fn c7_every_single_bit_flip_of_the_tag_is_refused(original in drawn(), bit in 0usize..256) {
        let mut tag = mac(&SECRET, &[request_string(&original.parts()).as_bytes()]);
        prop_assert_eq!(verify_request(&SECRET, &original.parts(), &STANDARD.encode(tag)), Ok(()));
        tag[bit / 8] ^= 1 << (bit % 8);
        let refused = verify_request(&SECRET, &original.parts(), &STANDARD.encode(tag));
        prop_assert_eq!(refused, Err(SignError::Mismatch));
    }

    #[test]
    fn no_header_makes_the_parser_panic(header in "(v=1,)?(kid=)?.{0,40}(,ts=)?.{0,10}(,nonce=)?.{0,30}(,sig=)?.{0,50}") {
        let _ = parse_request_header(&header);
    }
}
