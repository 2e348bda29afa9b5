use http::StatusCode;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::decision::{
    Action, Decision, DecisionSource, FallbackReason, Priced, ProviderReference, Reason, Score, Verdict,
};
use crate::domain::id::{DecisionId, ProviderId};
use crate::domain::money::Cost;
use crate::domain::policy::Applied;

fn full() -> Value {
    json!({
        "out_trade_no": "T0001", "total_amount": "88.8", "currency": "CNY", "subject": "demo 支付",
        "merchant": { "id": "m1", "category": "electronics", "country": "CN" },
        "user": { "id": "u1", "country": "TH", "email": "a@example.com", "phone": "+66 2 000 0000",
                  "registered_at": "2025-01-31T00:00:00Z" },
        "instrument": { "type": "card", "fingerprint": "fp", "bin": "621234", "last4": "1234" },
        "device": { "id": "d1", "ip": "203.0.113.7", "known_since": "2025-06-01T02:00:00.5+02:00" },
        "features": ["fx", "receipt_ocr"], "metadata": { "b": [1.50, null], "a": {} }
    })
}

fn least() -> Value {
    json!({ "out_trade_no": "T0001", "total_amount": "88.88", "currency": "CNY", "subject": "demo",
            "merchant": { "id": "m1" }, "user": { "id": "u1" } })
}

/// [`least`] with the value at `pointer` replaced or added.
fn with(pointer: &str, value: Value) -> String {
    let mut request = least();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let (_, top) = parent.split_once('/').unwrap_or_default();
    let section = if top.is_empty() { &mut request } else { &mut request[top] };
    section[name] = value;
    request.to_string()
}

fn pointers(body: &str) -> Vec<String> {
    let errors = decode(body.as_bytes()).expect_err("refused");
    errors.into_iter().map(|error| error.pointer).collect()
}

#[test]
fn a_full_request_is_read_field_by_field() {
    let body = full().to_string();
    let read = decode(body.as_bytes()).unwrap();
    assert_eq!((read.out_trade_no.as_str(), read.subject.as_str()), ("T0001", "demo 支付"));
    assert_eq!((read.amount.minor(), read.amount_text.as_str(), read.currency().code()), (8880, "88.8", "CNY"));
    assert_eq!((read.merchant.id.as_str(), read.merchant.category.as_deref()), ("m1", Some("electronics")));
    assert_eq!((read.merchant.country.as_deref(), read.user.country.as_deref()), (Some("CN"), Some("TH")));
    assert_eq!((read.user.id.as_str(), read.user.phone.as_deref()), ("u1", Some("+66 2 000 0000")));
    assert_eq!((read.user.email.as_deref(), read.instrument.kind.as_deref()), (Some("a@example.com"), Some("card")));
    assert_eq!((read.instrument.bin.as_deref(), read.instrument.last4.as_deref()), (Some("621234"), Some("1234")));
    assert_eq!((read.device.id.as_deref(), read.device.ip.as_deref()), (Some("d1"), Some("203.0.113.7")));
    assert_eq!(read.user.registered_at.unwrap().unix_ms, 1_738_281_600_000);
    let known_since = read.device.known_since.unwrap();
    assert_eq!((known_since.unix_ms, known_since.text.as_str()), (1_748_736_000_500, "2025-06-01T02:00:00.5+02:00"));
    assert_eq!(read.features, ["fx", "receipt_ocr"]);
    assert_eq!(read.metadata.as_deref(), Some(r#"{"b":[1.5,null],"a":{}}"#));
}

#[test]
fn the_least_request_is_read_and_null_is_absent() {
    let read = decode(least().to_string().as_bytes()).unwrap();
    assert!(read.instrument == Instrument::default() && read.device == Device::default());
    assert_eq!((read.features, read.metadata), (Vec::new(), None));
    for optional in ["/instrument", "/device", "/features", "/metadata", "/user/email", "/merchant/country"] {
        assert!(decode(with(optional, Value::Null).as_bytes()).is_ok(), "{optional}");
    }
}

#[test]
fn every_missing_field_is_named_at_once() {
    let required =
        ["/out_trade_no", "/currency", "/total_amount", "/subject", "/merchant/id", "/user/id"].map(str::to_owned);
    assert_eq!(pointers("{}"), required);
    assert_eq!(pointers(r#"{"merchant":{},"user":null}"#), required);
}

#[test]
fn every_bad_field_is_named_at_once() {
    let body = json!({
        "out_trade_no": "a b", "total_amount": "1.234", "currency": "CNY", "subject": "", "colour": 1,
        "merchant": { "id": 7, "country": "China", "x": 1 }, "user": [],
        "instrument": { "type": "\u{0}", "fingerprint": "f".repeat(257), "bin": "12345", "last4": "12a4" },
        "device": { "id": {}, "ip": "203.0.113", "known_since": "yesterday" },
        "features": ["fx", 1, "", "fx", "a b"], "metadata": []
    });
    let mut found = pointers(&body.to_string());
    found.sort();
    let mut expected = [
        "/out_trade_no",
        "/total_amount",
        "/subject",
        "/colour",
        "/merchant/id",
        "/merchant/country",
        "/merchant/x",
        "/user",
        "/instrument/type",
        "/instrument/fingerprint",
        "/instrument/bin",
        "/instrument/last4",
        "/device/id",
        "/device/ip",
        "/device/known_since",
        "/features/1",
        "/features/2",
        "/features/3",
        "/features/4",
        "/metadata",
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn each_bad_value_is_the_only_mistake_of_an_otherwise_good_request() {
    let cases = [
        ("/out_trade_no", json!("")),
        ("/out_trade_no", json!("x".repeat(65))),
        ("/out_trade_no", json!("é")),
        ("/total_amount", json!(88.88)),
        ("/total_amount", json!("88,88")),
        ("/subject", json!("x".repeat(257))),
        ("/subject", json!("two\nlines")),
        ("/subject", json!(null)),
        ("/merchant", json!("m1")),
        ("/merchant/id", json!("")),
        ("/merchant/country", json!("cn")),
        ("/user/country", json!("XX")),
        ("/user/registered_at", json!("2025-01-31")),
        ("/user/registered_at", json!("2025-02-30T00:00:00Z")),
        ("/user/registered_at", json!(1_738_281_600)),
        ("/instrument", json!(["card"])),
        ("/device", json!(true)),
        ("/features", json!("fx")),
        ("/features", json!(vec!["x"; 33])),
        ("/metadata", json!("{}")),
        ("/metadata", json!({ "long": "x".repeat(33_000) })),
    ];
    for (pointer, value) in cases {
        assert_eq!(pointers(&with(pointer, value.clone())), [pointer], "{value}");
    }
}

#[test]
fn lengths_are_counted_in_characters() {
    assert!(decode(with("/subject", json!("支".repeat(256))).as_bytes()).is_ok());
    assert_eq!(pointers(&with("/subject", json!("支".repeat(257)))), ["/subject"]);
}

#[test]
fn c9_amounts_follow_their_currency() {
    let cases = [("1.0", "JPY", false), ("1", "JPY", true), ("0.001", "KWD", true), ("0.001", "CNY", false)];
    for (amount, currency, good) in cases {
        let body = least().to_string().replace("88.88", amount).replace("CNY", currency);
        assert_eq!(decode(body.as_bytes()).is_ok(), good, "{amount} {currency}");
    }
    for hostile in ["0", "0.00", "-1", "+1", "1e3", "1,000.00", "01", " 1", "١", "NaN", "10000000000000.01"] {
        assert_eq!(pointers(&least().to_string().replace("88.88", hostile)), ["/total_amount"], "{hostile}");
    }
}

#[test]
fn c9_without_a_currency_only_what_is_wrong_in_all_of_them_is_held_against_the_amount() {
    let body = |amount: &str| least().to_string().replace("CNY", "XXX").replace("88.88", amount);
    assert_eq!(pointers(&body("1.234")), ["/currency"]);
    assert_eq!(pointers(&body("1.23456")), ["/currency"]);
    assert_eq!(pointers(&body("1,234")), ["/currency", "/total_amount"]);
    assert_eq!(pointers(&body("0.00")), ["/currency", "/total_amount"]);
}

#[test]
fn an_unknown_currency_or_country_alone_is_422_and_anything_else_is_400() {
    let status = |body: String| status_of(&decode(body.as_bytes()).unwrap_err());
    assert_eq!(status(with("/currency", json!("XXX"))), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(status(with("/user/country", json!("UK"))), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(status(with("/currency", json!("cny"))), StatusCode::BAD_REQUEST);
    assert_eq!(status(with("/user/country", json!("U"))), StatusCode::BAD_REQUEST);
    assert_eq!(status(with("/currency", json!("XXX")).replace("demo", "")), StatusCode::BAD_REQUEST);
    assert_eq!(status("nope".to_owned()), StatusCode::BAD_REQUEST);
}

#[test]
fn what_is_no_json_object_is_one_mistake_of_the_whole_body() {
    let deep = format!(r#"{{"metadata":{}1{}}}"#, r#"{"a":"#.repeat(64), "}".repeat(64));
    for body in ["", "nope", "[]", "null", "{\"a\":1", "{} {}", deep.as_str()] {
        assert_eq!(pointers(body), [""], "{body:?}");
    }
    assert_eq!(decode(b"{\"subject\":\"\xff\"}").unwrap_err().len(), 1);
    let allowed = format!("{}1{}", r#"{"a":"#.repeat(63), "}".repeat(63));
    assert!(decode(with("/metadata", serde_json::from_str(&allowed).unwrap()).as_bytes()).is_ok());
}

#[test]
fn s10_a_key_that_comes_twice_is_refused_at_every_level() {
    let twice = |from: &str, to: &str| pointers(&least().to_string().replacen(from, to, 1));
    assert_eq!(twice("{", r#"{"total_amount":"0.01","#), ["/total_amount"]);
    assert_eq!(twice(r#"{"id":"m1"#, r#"{"id":"m2","id":"m1"#), ["/merchant/id"]);
    assert_eq!(twice("{", r#"{"metadata":{"a":1,"\u0061":2},"#), ["/metadata"]);
}

#[test]
fn metadata_no_later_reader_could_read_is_refused() {
    let metadata = |value: &str| least().to_string().replacen('{', &format!(r#"{{"metadata":{value},"#), 1);
    assert_eq!(pointers(&metadata(r#"{"a":1e999}"#)), ["/metadata"]);
    assert_eq!(pointers(&metadata(r#"{"a":"\ud800"}"#)), ["/metadata"]);
    assert!(decode(metadata(r#"{"a":1.50,"b":"\ud83d\uded2"}"#).as_bytes()).is_ok());
}

#[test]
fn s11_no_value_and_no_suspicious_name_is_ever_repeated() {
    let pan = "4111111111111111";
    let body = json!({ "out_trade_no": format!("{pan}!"), "total_amount": format!("{pan}.123"), "currency": pan,
        "subject": [pan], pan: 1, format!("card_{pan}"): 1, "a/b~c": 1, "x".repeat(41): 1, "émigré": 1,
        "merchant": { "id": { pan: pan }, "country": pan, pan: 1 }, "user": pan, "features": [pan, pan, { pan: 1 }],
        "instrument": { "bin": pan, "last4": pan }, "device": { "ip": pan, "known_since": pan }, "metadata": pan });
    let errors = decode(body.to_string().as_bytes()).unwrap_err();
    let shown = format!("{errors:?}");
    assert!(!shown.contains("4111"), "{shown}");
    assert!(!shown.contains("a/b~c") && !shown.contains(&"x".repeat(41)) && !shown.contains("émigré"));
    assert!(errors.iter().any(|error| error.pointer.is_empty()));
    assert!(errors.iter().any(|error| error.pointer == "/merchant"));
}

#[test]
fn s11_debug_output_of_a_request_shows_no_person() {
    let shown = format!("{:?}", decode(full().to_string().as_bytes()).unwrap());
    assert_eq!(shown, r#"Assessment { out_trade_no: "T0001", .. }"#);
}

#[test]
fn a_body_of_ten_thousand_unknown_fields_gets_a_short_answer() {
    let fields: Vec<String> = (0..10_000).map(|index| format!(r#""a{index}":1"#)).collect();
    let errors = decode(format!("{{{}}}", fields.join(",")).as_bytes()).unwrap_err();
    assert_eq!(errors.len(), 101);
    assert_eq!(errors.last().unwrap().message, "has 9906 more mistakes that are not listed");
}

fn score(text: &str) -> Score {
    Score::parse(text).unwrap()
}

fn decision() -> Decision {
    let provider = ProviderReference {
        id: ProviderId::new("alipay"),
        trace_id: Some("tr-0001".to_owned()),
        model_version: Some("di-2026.01.0".to_owned()),
        latency_ms: 41,
    };
    let verdict = Verdict {
        score: Some(score("0.42")),
        recommendation: Some("REVIEW".to_owned()),
        explanation: Some("suspicious device fingerprint mismatch".to_owned()),
        provider,
        cost: Some(Cost { micro: 20_000, currency: Currency::parse("CNY").unwrap() }),
        priced: Some(Priced { version: "2026-11".into(), features: Vec::new() }),
        features_dropped: Vec::new(),
    };
    Decision {
        id: DecisionId::new("ra_1"),
        action: Action::Review,
        source: DecisionSource::Live,
        verdict: Some(verdict),
        reasons: vec![Reason { code: "device_mismatch".to_owned(), text: "\"quoted\"".to_owned() }],
        applied: Applied::sample(),
        late_verdict_expected: false,
        reused: None,
        created_at_ms: 1_795_341_600_123,
    }
}

fn encoded(decision: &Decision) -> String {
    let view = DecisionView { out_trade_no: "T0001", decision };
    String::from_utf8(encode_decision(&view).to_vec()).unwrap()
}

#[test]
fn a_live_decision_is_written_as_the_contract_has_it() {
    let expected = concat!(
        r#"{"id":"ra_1","out_trade_no":"T0001","action":"REVIEW","recommendation":"REVIEW","risk_score":0.42,"#,
        r#""source":"live","degraded":false,"late_verdict_expected":false,"#,
        r#""reasons":[{"code":"device_mismatch","text":"\"quoted\""}],"#,
        r#""explanation":{"staff":"suspicious device fingerprint mismatch","#,
        r#""customer":"Your payment is being checked. We will tell you the result as soon as we have it."},"#,
        r#""step_up":null,"policy":{"rule":"default","version":"3f9a12c0ffee","#,
        r#""bands":{"pass_below":0.3,"review_from":0.7,"reject_from":null}},"#,
        r#""provider":{"id":"alipay","trace_id":"tr-0001","model_version":"di-2026.01.0","latency_ms":41},"#,
        r#""cost":{"amount":"0.02","currency":"CNY"},"created_at":"2026-11-22T10:00:00.123Z"}"#,
    );
    assert_eq!(encoded(&decision()), expected);
}

#[test]
fn a_fallback_says_that_nobody_evaluated() {
    let source = DecisionSource::Fallback(FallbackReason::Deadline);
    let fallback = Decision { source, verdict: None, late_verdict_expected: true, ..decision() };
    let answer: Value = serde_json::from_str(&encoded(&fallback)).unwrap();
    assert_eq!(answer["source"], "fallback");
    assert_eq!(answer["degraded"], true);
    assert_eq!(answer["late_verdict_expected"], true);
    for absent in ["risk_score", "recommendation", "provider", "cost", "step_up"] {
        assert_eq!(answer[absent], Value::Null, "{absent}");
    }
    assert_eq!(answer["explanation"]["staff"], "the risk provider did not answer within the deadline");
}

#[test]
fn the_customer_text_follows_the_action_and_never_the_reasons() {
    for action in [Action::Pass, Action::Challenge, Action::Review, Action::Reject] {
        let answer: Value = serde_json::from_str(&encoded(&Decision { action, ..decision() })).unwrap();
        let text = answer["explanation"]["customer"].as_str().unwrap();
        for hint in ["device", "fingerprint", "score", "risk", "fraud", "suspicious", "amount"] {
            assert!(!text.to_ascii_lowercase().contains(hint), "{action:?}: {text}");
        }
    }
}

#[test]
fn a_verdict_without_an_explanation_has_none() {
    let mut silent = decision();
    silent.verdict.as_mut().unwrap().explanation = None;
    assert!(encoded(&silent).contains(r#""explanation":null"#));
}

#[test]
fn a_problem_names_its_type_and_every_field() {
    let errors = decode(with("/subject", json!(1)).as_bytes()).unwrap_err();
    let body = problem(StatusCode::BAD_REQUEST, "A field is not valid", "correct the fields listed", "req_1", &errors);
    let expected = concat!(
        r#"{"type":"https://weighbridge.invalid/problems/bad-field","title":"A field is not valid","status":400,"#,
        r#""detail":"correct the fields listed","instance":"req_1","#,
        r#""errors":[{"pointer":"/subject","message":"must be a string"}]}"#,
    );
    assert_eq!(body, expected.as_bytes());
    let body = problem(StatusCode::IM_A_TEAPOT, "t", "d", "i", &[]);
    assert_eq!(body, r#"{"type":"about:blank","title":"t","status":418,"detail":"d","instance":"i"}"#.as_bytes());
}

proptest! {
    #[test]
    fn no_bytes_make_decode_panic_and_no_refusal_is_empty(body: Vec<u8>) {
        prop_assert!(decode(&body).is_err_and(|errors| !errors.is_empty()));
    }

    #[test]
    fn no_cut_or_changed_byte_makes_decode_panic(cut in 0usize..800, at in 0usize..800, byte: u8) {
        let mut body = full().to_string().into_bytes();
        let length = body.len();
        body[at % length] = byte;
        body.truncate(length.saturating_sub(cut / 4));
        prop_assert!(decode(&body).map_or_else(|errors| !errors.is_empty(), |_| true));
    }

    #[test]
    fn a_score_is_written_with_its_own_decimals(micro in 0u32..=1_000_000) {
        let mut live = decision();
        let score = Score::from_micro(micro).unwrap();
        live.verdict.as_mut().unwrap().score = Some(score);
        let body = encoded(&live);
        let number = body.split(r#""risk_score":"#).nth(1).unwrap().split(',').next().unwrap();
        prop_assert_eq!(Score::parse(number), Some(score));
        prop_assert!(!number.contains('e') && !number.ends_with(".0"));
    }
}
