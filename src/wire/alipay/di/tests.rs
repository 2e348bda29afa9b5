use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::domain::decision::Action;
use crate::wire::risk;

fn cases(file: &str) -> Vec<Value> {
    let mut file: Value = serde_json::from_str(file).unwrap();
    serde_json::from_value(file["cases"].take()).unwrap()
}

#[test]
fn every_golden_answer_is_read_as_written_down() {
    for case in cases(include_str!("../../../../tests/golden/alipay/di_answers.json")) {
        let name = &case["name"];
        let read = decode_answer(case["body"].as_str().unwrap().as_bytes());
        match (read, case["error"].as_str()) {
            (Err(err), Some(expected)) => assert_eq!(err.to_string(), expected, "{name}"),
            (Ok(answer), None) => {
                let score = case["score_micro"].as_u64().map(|micro| u32::try_from(micro).unwrap());
                assert_eq!(answer.score.map(Score::micro), score, "{name}");
                assert_eq!(answer.score_was_invalid, case["score_was_invalid"].as_bool().unwrap(), "{name}");
                assert_eq!(answer.recommendation.as_deref(), case["recommendation"].as_str(), "{name}");
                assert_eq!(answer.explanation.as_deref(), case["explanation"].as_str(), "{name}");
            }
            (read, _) => panic!("{name}: {read:?}"),
        }
    }
}

#[test]
fn c5_every_golden_request_is_written_to_the_byte() {
    for case in cases(include_str!("../../../../tests/golden/alipay/di_assess.json")) {
        let assessment = risk::decode(case["request"].as_str().unwrap().as_bytes()).unwrap();
        let body = encode_assess(&assessment);
        assert_eq!(String::from_utf8_lossy(&body), case["body"].as_str().unwrap(), "{}", case["name"]);
        assert_eq!(encode_assess(&assessment), body);
    }
}

#[test]
fn c10_nothing_but_the_exact_word_reads_as_a_pass() {
    for recommendation in [r#"["PASS"]"#, r#""PASS ""#, r#""pass""#, "1", "true", "{}", r#""""#, r#"" PASS""#] {
        let answer = decode_answer(format!(r#"{{"recommendation":{recommendation}}}"#).as_bytes()).unwrap();
        assert_eq!(Action::of_recommendation(&answer.recommendation.unwrap()), Action::Review, "{recommendation}");
    }
}

#[test]
fn a_long_explanation_is_cut_between_characters() {
    let body = format!(r#"{{"explanation":"{}"}}"#, "险".repeat(5_000));
    assert_eq!(decode_answer(body.as_bytes()).unwrap().explanation.unwrap(), "险".repeat(1_024));
}

#[test]
fn a_token_is_read_and_does_not_show() {
    let token =
        decode_token(br#"{"access_token":"tok_1","token_type":"bearer","expires_in":3600,"scope":"x"}"#).unwrap();
    assert_eq!((token.access_token.expose(), token.expires_in_s), (&b"tok_1"[..], 3600));
    assert!(!format!("{token:?}").contains("tok_1"));
}

#[test]
fn a_token_that_lives_for_ever_is_believed_for_a_month() {
    let body = format!(r#"{{"access_token":"t","token_type":"Bearer","expires_in":{}}}"#, u64::MAX);
    assert_eq!(decode_token(body.as_bytes()).unwrap().expires_in_s, 2_592_000);
}

#[test]
fn a_token_that_could_not_be_used_is_refused() {
    let refused = |body: &str| decode_token(body.as_bytes()).unwrap_err();
    let good = r#"{"access_token":"tok_1","token_type":"Bearer","expires_in":3600}"#;
    for (from, to) in [("Bearer", "mac"), (r#","token_type":"Bearer""#, ""), (r#""Bearer""#, "1")] {
        assert_eq!(refused(&good.replace(from, to)), DecodeError::Field("token_type"), "{to}");
    }
    for token in ["", "a b", "a\\nb", "é", "a\\u0000", &"x".repeat(4_097)] {
        assert_eq!(refused(&good.replace("tok_1", token)), DecodeError::Field("access_token"), "{token}");
    }
    for life in ["0", "-1", "1.5", "\"3600\"", "null", "1e3", "99999999999999999999"] {
        assert_eq!(refused(&good.replace("3600", life)), DecodeError::Field("expires_in"), "{life}");
    }
    assert_eq!(refused(&good.replace('}', r#","access_token":"tok_2"}"#)), DecodeError::Repeated("access_token"));
    assert_eq!(refused("nope"), DecodeError::Body(ObjectError::NotJson));
}

#[test]
fn an_error_code_is_read_only_if_it_may_be_logged() {
    let code = |body: &str| decode_error(body.as_bytes());
    assert_eq!(code(r#"{"error":"invalid_token"}"#).as_deref(), Some("invalid_token"));
    assert_eq!(code(r#"{"code":"isv.invalid-signature"}"#).as_deref(), Some("isv.invalid-signature"));
    for body in ["", "[]", "{}", r#"{"error":1}"#, r#"{"error":"a b"}"#, r#"{"error":"a\nb"}"#, r#"{"error":""}"#] {
        assert_eq!(code(body), None, "{body}");
    }
    assert_eq!(code(&format!(r#"{{"error":"{}"}}"#, "x".repeat(65))), None);
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(body: Vec<u8>) {
        let _ = (decode_answer(&body), decode_token(&body), decode_error(&body));
    }

    #[test]
    fn no_answer_makes_the_decoder_panic_or_passes_its_bounds(
        score in "[-+0-9.eE\"a-z\\[\\]]{0,12}", word in "\\PC{0,90}", text in "\\PC{0,1200}",
    ) {
        let (word, text) = (Value::from(word), Value::from(text));
        let body = format!(r#"{{"risk_score":{score},"recommendation":{word},"explanation":{text}}}"#);
        if let Ok(answer) = decode_answer(body.as_bytes()) {
            prop_assert!(answer.recommendation.unwrap().chars().count() <= 64);
            prop_assert!(answer.explanation.unwrap().chars().count() <= 1_024);
            prop_assert!(!(answer.score.is_some() && answer.score_was_invalid));
        }
    }
}
