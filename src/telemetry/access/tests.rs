use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::domain::currency::Currency;
use crate::domain::decision::FallbackReason;
use crate::domain::outcome::FailureClass;

fn line(format: LogFormat, record: &AccessRecord<'_>) -> String {
    let mut out = Vec::new();
    write_record(format, record, &mut out);
    String::from_utf8(out).unwrap()
}

fn full<'a>(attempts: &'a [AttemptNote<'a>]) -> AccessRecord<'a> {
    AccessRecord {
        status: 200,
        caller: Some("shop"),
        tenant: Some("acme"),
        route: Some("chat"),
        operation: Some("chat.completions"),
        attempts,
        provider: Some("openrouter"),
        model: Some("deepseek-chat"),
        cache: Some("miss"),
        duration: Duration::from_micros(12_034_005),
        overhead: Duration::from_micros(310),
        bytes_in: 1_024,
        bytes_out: 2_048,
        usage: Usage { input_tokens: Some(10), output_tokens: None, ..Usage::default() },
        cost: Some(Cost { micro: 20_000, currency: Currency::parse("CNY").unwrap() }),
        stream_end: Some(End::Complete),
        decision: Some((Action::Review, DecisionSource::Fallback(FallbackReason::Deadline))),
        config_version: Some("abcdef012345"),
        client_retries: Some(1),
        ..AccessRecord::new("req_1", RequestOutcome::Ok)
    }
}

const ATTEMPTS: [AttemptNote<'static>; 2] = [
    AttemptNote { upstream: "tokenmix/deepseek-chat", outcome: AttemptOutcome::Failed(FailureClass::Overloaded) },
    AttemptNote { upstream: "openrouter/deepseek-chat", outcome: AttemptOutcome::Ok },
];

#[test]
fn a_json_line_says_everything_once() {
    let text = line(LogFormat::Json, &full(&ATTEMPTS));
    assert!(text.ends_with("}\n") && text.matches('\n').count() == 1);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["target"], "access");
    assert_eq!(value["attempts"], "tokenmix/deepseek-chat:overloaded,openrouter/deepseek-chat:ok");
    assert_eq!(value["duration_ms"], 12_034.005);
    assert_eq!(value["overhead_us"], 310);
    assert_eq!(value["cost"], "0.02 CNY");
    assert_eq!(value["decision.source"], "fallback");
    assert_eq!(value["tokens_in"], 10);
    assert_eq!(value.get("tokens_out"), None, "not reported is not zero");
    assert_eq!(value["timestamp"].as_str().unwrap().len(), "2026-11-22T10:00:00.123Z".len());
    let fields = value.as_object().unwrap();
    assert_eq!(text.matches("\":").count(), fields.len(), "no field twice");
}

#[test]
fn a_text_line_is_for_people() {
    let text = line(LogFormat::Text, &full(&ATTEMPTS));
    assert!(text.contains(" INFO access: call.id=req_1 caller.id=shop "), "{text}");
    assert!(text.contains(" status=200 outcome=ok ") && text.contains(" cost=\"0.02 CNY\" "), "{text}");
}

#[test]
fn s12_nothing_in_a_field_can_steer_a_terminal_or_forge_a_line() {
    let evil = "a\u{1b}[31m\r\n{\"x\":1}\u{2028}\u{202e}\u{9b}\u{feff}\u{7f}\\";
    for format in [LogFormat::Json, LogFormat::Text] {
        let record = AccessRecord { model: Some(evil), ..AccessRecord::new("c", RequestOutcome::Ok) };
        let text = line(format, &record);
        let body = text.strip_suffix('\n').unwrap();
        assert!(!body.chars().any(|c| c.is_control() || steers_text(c)), "{text:?}");
    }
}

#[test]
fn s12_a_megabyte_in_a_field_becomes_a_kilobyte() {
    let long = "é".repeat(500_000);
    let record = AccessRecord { model: Some(&long), ..AccessRecord::new("c", RequestOutcome::Ok) };
    let text = line(LogFormat::Json, &record);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["model"].as_str().unwrap().len(), LONGEST_FIELD);
    let many = vec![ATTEMPTS[0]; 10_000];
    let record = AccessRecord { attempts: &many, ..AccessRecord::new("c", RequestOutcome::Ok) };
    let value: Value = serde_json::from_str(&line(LogFormat::Json, &record)).unwrap();
    let attempts = value["attempts"].as_str().unwrap();
    assert!(attempts.len() <= LONGEST_FIELD && attempts.ends_with(":overloaded"));
}

proptest! {
    #[test]
    fn any_text_survives_the_json_line(model in ".{0,200}", caller in any::<String>()) {
        let record = AccessRecord { model: Some(&model), caller: Some(&caller), ..AccessRecord::new("c", RequestOutcome::Ok) };
        let value: Value = serde_json::from_str(&line(LogFormat::Json, &record)).unwrap();
        prop_assert_eq!(value["model"].as_str().unwrap(), cut(&model, LONGEST_FIELD));
        prop_assert_eq!(value["caller.id"].as_str().unwrap(), cut(&caller, LONGEST_FIELD));
    }
}
