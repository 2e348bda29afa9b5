//! Golden explanations, and what none of them may show.

use std::path::Path;

use super::*;
use crate::config::{CompileOptions, SecretPolicy, Secrets, SourceFile, Sources, Style, builtin, compile, render_all};
use crate::domain::secret::{Secret, SecretSource};

struct Nothing;

impl SecretSource for Nothing {
    fn env(&self, _: &str) -> Option<Secret> {
        None
    }

    fn file(&self, _: &str) -> Option<Secret> {
        None
    }
}

fn golden() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/explain")
}

fn table() -> RoutingTable {
    let text = std::fs::read_to_string(golden().join("routes.toml")).unwrap();
    let routes = vec![SourceFile { name: "routes.toml".to_owned(), text }];
    let sources = Sources { routes, providers: builtin::providers(), ..Sources::default() };
    let secrets = Secrets { source: &Nothing, policy: SecretPolicy::AllowMissing };
    let compiled = compile(&sources, &CompileOptions { secrets, rewire: None });
    compiled.unwrap_or_else(|errors| panic!("{}", render_all(&errors, Style::Plain)))
}

fn answer(question: &str) -> Result<Explanation, Unanswerable> {
    explain(&table(), None, &Question::read(question.as_bytes())?)
}

#[test]
fn golden_explanations_say_who_is_asked_and_why() {
    insta::with_settings!({ snapshot_path => "../../../tests/golden/explain", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::glob!("../../../tests/golden/explain", "*.json", |path| {
            let told = answer(&std::fs::read_to_string(path).unwrap());
            let told = told.map_or_else(|error| format!("unanswerable: {error}\n"), |told| told.to_string());
            // Days go by.
            let told = told.lines().map(|line| line.split(" (user.registered_days is ").next().unwrap_or(line));
            insta::assert_snapshot!("told", told.collect::<Vec<_>>().join("\n"));
        });
    });
}

const PAYMENT: &str = r#"{"request": {"out_trade_no": "T-canary-0001", "total_amount": "900.00", "currency": "CNY",
    "subject": "for canary@example.com", "merchant": {"id": "m1", "category": "electronics", "country": "CN"},
    "user": {"id": "canary-user-77", "country": "TH", "email": "canary@example.com", "phone": "+66812345678"},
    "instrument": {"type": "card", "fingerprint": "canaryfingerprintcanary0", "bin": "62123499", "last4": "9876"},
    "device": {"id": "canary-device-1", "ip": "203.0.113.177"}}, "score": "0.6", "recommendation": "REVIEW"}"#;

#[test]
fn s11_an_explanation_shows_nobody() {
    let told = answer(PAYMENT).unwrap();
    let both = format!("{told}{}", serde_json::to_string(&told).unwrap());
    for secret in ["canary", "66812345678", "62123499", "9876", "203.0.113.177", "T-c"] {
        assert!(!both.contains(secret), "{secret}: {both}");
    }
    for shown in ["merchant.category is \\\"electronics\\\"", "203.0.113.0/24", "amount is 900.00 CNY"] {
        assert!(both.contains(shown), "{shown}: {both}");
    }
}

#[test]
fn s11_what_cannot_be_answered_repeats_nothing() {
    for question in [
        r#"{"model": "summary", "caller": "sk-canary"}"#,
        r#"{"model": "summary", "down": ["sk-canary"]}"#,
        r#"{"sk-canary": 1}"#,
        r#"{"request": {"total_amount": "sk-canary"}}"#,
        r#"{"model": "summary", "operation": "sk-canary"}"#,
        r#"{"request": {"model": "summary", "messages": [], "messages": ["sk-canary"]}}"#,
        "sk-canary",
        "{}",
    ] {
        let error = answer(question).map(|told| told.to_string()).unwrap_err().to_string();
        assert!(!error.contains("canary") && !error.is_empty(), "{question}: {error}");
    }
}

#[test]
fn the_action_of_an_explanation_is_the_one_a_test_of_the_configuration_sees() {
    let of = |more: &str| {
        let question = PAYMENT.replace("\"score\": \"0.6\", \"recommendation\": \"REVIEW\"", more);
        let told = answer(&question).unwrap();
        told.payment.map(|payment| (payment.action, payment.policy)).unwrap()
    };
    let electronics = "high-value electronics".to_owned();
    assert_eq!(of("\"score\": 0.6"), (Some("REJECT"), electronics.clone()));
    assert_eq!(of("\"score\": 0.1, \"recommendation\": \"REVIEW\""), (Some("REVIEW"), electronics.clone()));
    assert_eq!(of("\"score\": 0.1, \"velocity\": {\"cards\": 4}"), (Some("REVIEW"), electronics.clone()));
    assert_eq!(of("\"fails\": \"deadline\""), (Some("PASS"), electronics.clone()));
    assert_eq!(of("\"fails\": \"not_authentic\""), (None, electronics.clone()));
    let question =
        PAYMENT.replace("\"score\": \"0.6\", \"recommendation\": \"REVIEW\"", "\"fails\": \"not_authentic\"");
    assert_eq!(answer(&question).unwrap().error, Some("response_not_authentic"));
    assert_eq!(of("\"down\": [\"alipay\"], \"score\": 0.1"), (None, electronics));
}
