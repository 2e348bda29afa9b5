//! S15: a secret anywhere in a file appears in no message, and no text whatsoever makes the compiler panic.

use proptest::prelude::*;

use super::*;
use crate::config::{Style, render_all};

const CANARY: &str = "sk-CANARY-7f3a9c2e51d84b06";

/// Everything that could be shown of the mistakes in some text.
fn everything_shown(routes: &str, providers: &[&str]) -> String {
    let Err(errors) = compiled(routes, providers) else { return String::new() };
    let json = serde_json::to_string(&errors).unwrap();
    format!(
        "{}\n{}\n{json}\n{errors:?}\n{}",
        lines(&errors),
        render_all(&errors, Style::Plain),
        render_all(&errors, Style::Coloured)
    )
}

fn assert_silent(routes: &str, providers: &[&str], what: &str) {
    let shown = everything_shown(routes, providers);
    assert!(!shown.to_lowercase().contains("canary"), "{what}\n{shown}");
    assert!(!shown.contains("7f3a9c2e"), "{what}\n{shown}");
}

#[test]
fn s15_a_secret_in_any_place_of_any_file_is_never_repeated() {
    let places = [
        "KEY = 1",
        "\"KEY\" = 1",
        "'KEY' = 1",
        "a = KEY",
        "a = \"KEY",
        "a = \"\"\"KEY",
        "a = '''\nKEY\n",
        "KEY",
        "[KEY]",
        "[[KEY]]",
        "[model.KEY]",
        "[model.\"KEY\"]\ncandidates = []",
        "[model.KEY]\ncandidates = [\"agg/KEY\"]",
        "a = [\"KEY\"",
        "a = [KEY]",
        "a = { KEY = 1 }",
        "a = { b = KEY",
        "KEY.KEY = 1",
        "model.KEY.order = \"KEY\"",
        "version = \"KEY\"",
        "version = { KEY = \"KEY\" }",
        "limits = { body = \"KEY\" }",
        "limits = \"KEY\"",
        "limits = { KEY = \"KEY\" }",
        "[limits]\nin_flight = \"KEY\"",
        "# KEY\n= 1",
        "[[caller]]\nid = \"KEY\"\nkey_digest = \"KEY\"\nallow = [\"KEY\", \"agg/KEY\", \"KEY/*\", \"KEY/fast\"]\ntenant = \"KEY\"",
        "[[caller]]\nid = [\"KEY\"]\nkey_digest = { KEY = 1 }\nallow = \"KEY\"\nKEY = \"KEY\"",
        "[model.m]\norder = \"KEY\"\ncandidates = [\"KEY\", \"KEY/KEY\", \"agg/KEY\"]\ntimeouts = { total = \"KEY\", KEY = \"1s\" }",
        "[risk]\ncandidates = [\"KEY\", \"agg\"]\ndeadline = \"KEY\"\nbands = { pass_below = \"KEY\", review_from = 2 }\non_exhausted = \"KEY\"",
        "[risk]\ncandidates = [\"judge/KEY\"]\non_exhausted = { accept_up_to = \"KEY\" }\nvendor_action = \"KEY\"\nbands = { KEY = 0.1 }",
        "[risk]\non_exhausted = { accept_up_to = \"1.00 KEY\" }",
        "[risk]\non_exhausted = { KEY = \"KEY\", deadline = \"KEY\", not_authentic = { accept_up_to = \"KEY\" } }",
        "[[risk.policy]]\nname = \"KEY KEY\"\nwhen = 'KEY'\naction = \"KEY\"\nbands = { KEY = 1, pass_below = \"KEY\" }",
        "[[risk.policy]]\nname = \"KEY\"\nwhen = 'KEY == \"KEY\" && user.KEY > KEY(\"KEY\") KEY'",
        "[[risk.policy]]\nname = \"a\"\nwhen = 'user.country == \"KEY\" || device.ip in [\"KEY\"] || in_list(\"KEY\")'",
        "[[risk.policy]]\nname = \"a\"\nwhen = \"\"\"\namount > money('KEY')\n&& user.id == 'KEY\"\"\"",
        "[[risk.policy]]\nname = \"a\"\nwhen = 'subject.KEY(\"KEY\") && KEY.x'\nKEY = 1",
        "[[risk.list]]\nname = \"KEY\"\nkind = \"KEY\"\nby = \"KEY\"\nfile = \"KEY\"",
        "[[risk.list]]\nname = \"a\"\nkind = \"block\"\nby = \"ip\"\nvalues = [\"KEY\"]",
        "id = \"KEY\"",
        "protocol = \"KEY\"",
        "base_url = \"https://KEY@agg.example\"",
        "base_url = \"https://agg.example/?key=KEY\"",
        "base_url = \"KEY\"",
        "source = { url = \"KEY\", checked = \"KEY\" }",
        "source = \"KEY\"",
        "auth = { kind = \"KEY\" }",
        "auth = { kind = \"bearer\", secret_env = \"KEY\" }",
        "auth = \"KEY\"",
        "auth = { KEY = \"KEY\" }",
        "auth = { kind = \"bearer\", secret = \"KEY\" }",
        "auth = { kind = \"bearer\", secret_file = \"/KEY\", secret_env = \"KEY\" }",
        "auth = { kind = \"header\", name = \"KEY\", secret_file = \"KEY\" }",
        "auth = { kind = \"none\", key_id = \"KEY\" }",
        "auth = { kind = \"di-hmac\", key_id = \"KEY KEY\", secret_encoding = \"KEY\", secret_env = \"KEY\" }",
        "operations = [\"KEY\"]",
        "headers = { authorization = \"Bearer KEY\" }",
        "headers = { x-a = \"KEY\" }",
        "headers = { KEY = \"KEY\" }",
        "quota_group = \"KEY KEY\"",
        "[errors]\n\"KEY\" = \"KEY\"",
        "[errors]\nKEY = 1",
        "[[model]]\nid = \"KEY KEY\"\nname = \"KEY KEY\"\nprice = \"KEY\"",
        "[[model]]\nid = \"KEY\"\n[[model]]\nid = \"KEY\"",
        "[[model]]\nid = \"a\"\nprice = { KEY = \"KEY\", source = \"KEY\" }",
        "price = { standard = \"KEY\", features = { KEY = \"KEY\" } }",
        "price = { standard = \"1 CNY\", features = { \"KEY KEY\" = \"1 USD\" } }",
        "stream_usage = \"KEY\"",
        "allow_private = \"KEY\"",
        "a = 2026-11-KEY",
        "a = \"\\KEY\"",
        "a = 1KEY",
        "a = 1 KEY",
        "KEY = KEY = KEY",
    ];
    for place in places {
        for secret in [CANARY.to_owned(), CANARY.to_uppercase().replace('-', "_"), CANARY.to_lowercase()] {
            let text = place.replace("KEY", &secret);
            assert_silent(&text, &[LLM, RISK], place);
            assert_silent(&format!("{text}\n{ROUTES}"), &[LLM, RISK], place);
            assert_silent(&format!("{ROUTES}{text}"), &[LLM, RISK], place);
            assert_silent(ROUTES, &[&text, RISK], place);
            assert_silent(ROUTES, &[&format!("{text}\n{LLM}"), &format!("{RISK}{text}")], place);
        }
    }
}

#[test]
fn s15_every_value_of_a_good_file_can_be_a_secret() {
    for text in [LLM, RISK, ROUTES] {
        let quoted = text.split('"').count();
        for index in (1..quoted).step_by(2) {
            let replaced: Vec<&str> =
                text.split('"').enumerate().map(|(at, part)| if at == index { CANARY } else { part }).collect();
            let replaced = replaced.join("\"");
            match text {
                LLM => assert_silent(ROUTES, &[&replaced, RISK], &replaced),
                RISK => assert_silent(ROUTES, &[LLM, &replaced], &replaced),
                _ => assert_silent(&replaced, &[LLM, RISK], &replaced),
            }
        }
    }
}

#[test]
fn s15_a_missing_secret_s_place_is_shown_only_if_it_is_a_name() {
    let sources = sources(ROUTES, &[&with(LLM, "AGG_API_KEY", "SK_CANARY_7F3A9C2E51D84B06"), RISK]);
    let shown = lines(&compile_with(&sources, &only(&[]), None).unwrap_err());
    assert!(shown.contains("the environment variable named here is not set or empty"), "{shown}");
    assert!(!shown.contains("CANARY"), "{shown}");
}

#[test]
fn a_file_that_is_wrong_everywhere_gives_a_bounded_report() {
    let text = (0..20_000).map(|index| format!("[model.m{index}]\nordr = 1\n")).collect::<String>();
    let errors = compiled(&text, &[LLM, RISK]).unwrap_err();
    assert!(errors.len() <= 200);
    assert!(errors.last().unwrap().hint.as_ref().unwrap().contains("more mistakes are not shown"));
}

#[test]
fn deep_nesting_is_refused_without_exhausting_the_stack() {
    for text in [
        "[".repeat(100_000),
        format!("a = {}", "[".repeat(100_000)),
        format!("a = {}", "{a=".repeat(100_000)),
        "a.".repeat(100_000),
    ] {
        assert!(compiled(&text, &[LLM, RISK]).is_err());
        assert!(compiled(ROUTES, &[&text, RISK]).is_err());
    }
    let deep = (0..2_000).map(|depth| format!("[{}x{depth}]\n", "a.".repeat(60))).collect::<String>();
    assert!(compiled(&deep, &[LLM, RISK]).is_err());
}

proptest! {
    #[test]
    fn no_text_makes_the_compiler_panic(routes in "\\PC{0,200}", provider in "\\PC{0,200}") {
        let _ = everything_shown(&routes, &[&provider]);
    }

    #[test]
    fn no_mixture_of_toml_pieces_makes_the_compiler_panic(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "[", "]", "[[", "]]", "{", "}", "=", ".", ",", "\"", "'", "\"\"\"", "\n", " ", "#", "é", "\u{feff}", "\r\n", "\\",
            "model", "caller", "risk", "limits", "version", "id", "candidates", "bands", "auth", "price", "1", "0.5", "true",
            "2026-11-22", "agg/fast", "headers", "errors", "timeouts", "\"5s\"", "inf", "nan", "0x1f",
        ]), 0..80),
    ) {
        let text = pieces.concat();
        let _ = everything_shown(&text, &[&text, RISK]);
    }

    #[test]
    fn no_damage_to_a_good_file_makes_the_compiler_panic(
        which in 0usize..3, at in any::<prop::sample::Index>(), length in 0usize..40, insert in "\\PC{0,12}",
    ) {
        let damage = |text: &str| {
            let chars: Vec<char> = text.chars().collect();
            let start = at.index(chars.len());
            let end = (start + length).min(chars.len());
            chars[..start].iter().chain(insert.chars().collect::<Vec<_>>().iter()).chain(&chars[end..]).collect::<String>()
        };
        let (routes, llm, risk) = match which {
            0 => (damage(ROUTES), LLM.to_owned(), RISK.to_owned()),
            1 => (ROUTES.to_owned(), damage(LLM), RISK.to_owned()),
            _ => (ROUTES.to_owned(), LLM.to_owned(), damage(RISK)),
        };
        let _ = everything_shown(&routes, &[&llm, &risk]);
    }
}
