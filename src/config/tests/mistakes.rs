//! What is said about bad configurations: all of it at once, at the right place, with something to do.

use super::*;

#[test]
fn all_mistakes_of_all_files_are_shown_at_once_in_order() {
    let routes = with(&with(ROUTES, "cache = {", "cahce = {"), "\"agg/clever\"", "\"agg/clevr\"");
    let llm = with(LLM, "https://agg.example/v1", "http://agg.example/v1");
    let risk = with(RISK, "secret_encoding = \"hex\"", "secret_encoding = \"hax\"");
    let found = mistakes(&routes, &[&llm, &risk]);
    let expected = [
        "routes.toml:10:27: provider `agg` has no model `clevr` (model.summary.candidates); did you mean `agg/clever`?",
        "routes.toml:11:1: unknown key `cahce` (model.summary.cahce); did you mean `cache`?",
        "providers/p0.toml:4:12: plain http to a host that is not private (base_url); write https://; plain http is for private addresses only",
        "providers/p1.toml:6:90: not one of the known words (auth.secret_encoding); did you mean \"hex\"?",
    ];
    assert_eq!(found, expected.join("\n"));
}

#[test]
fn several_syntax_errors_of_one_file_are_all_shown() {
    let found = mistakes("version = \nx = 1 2\n[model\n", &[LLM]);
    assert!(found.lines().count() >= 3, "{found}");
}

#[test]
fn a_broken_provider_file_is_not_also_reported_by_the_routes_that_use_it() {
    let found = mistakes(ROUTES, &[&format!("{LLM}\nx = = 1\n"), RISK]);
    assert!(found.lines().all(|line| line.starts_with("providers/p0.toml")), "{found}");
    let found = mistakes(ROUTES, &[&with(LLM, "id = \"clever\"", "id = \"cl ever\""), RISK]);
    assert_eq!(found.lines().count(), 1, "{found}");
}

#[test]
fn an_unknown_name_is_answered_with_what_was_meant_or_what_is_there() {
    let candidates = |text: &str| mistakes(&with(ROUTES, r#"["agg/fast", "agg/clever"]"#, text), &[LLM, RISK]);
    assert!(
        candidates(r#"["agq/fast"]"#).contains("no provider `agq` (model.summary.candidates); did you mean `agg`?")
    );
    assert!(
        candidates(r#"["other/fast"]"#).contains("no provider `other` (model.summary.candidates); known: agg, judge")
    );
    let found = candidates(r#"["agg/other"]"#);
    assert!(found.contains("the provider defined at providers/p0.toml:2 has: fast, clever"), "{found}");
    assert!(candidates(r#"["fast"]"#).contains("a candidate is written provider/model"));
    assert!(candidates(r#"["agg/fast", "agg/fast"]"#).contains("the candidate occurs twice"));
    assert!(candidates("[]").contains("the list is empty"));
    assert!(candidates(r#"["judge/x"]"#).contains("the provider speaks di-hmac, which has no models"));
    let risk = |text: &str| mistakes(&with(ROUTES, r#"["judge"]"#, text), &[LLM, RISK]);
    assert!(risk(r#"["agg"]"#).contains("the provider speaks openai, which has no risk decisions"));
    assert!(risk(r#"["judge/x"]"#).contains("a risk candidate is a provider's id without a model"));
    let without = mistakes(ROUTES, &[&with(LLM, "chat.completions", "models.list"), RISK]);
    assert!(without.contains("the provider does not offer chat.completions"), "{without}");
}

#[test]
fn settings_that_cannot_both_hold_are_conflicts() {
    let risk = |extra: &str| mistakes(&format!("{ROUTES}{extra}\n"), &[LLM, RISK]);
    assert!(
        risk("deadline = \"4s\"\nhard_limit = \"3s\"").contains("longer than hard_limit, which is 3s (risk.deadline)")
    );
    assert!(risk("hard_limit = \"500ms\"").contains("shorter than the deadline, which is 800ms (risk.hard_limit)"));
    assert!(risk("connect = \"800ms\"").contains("connecting may take the whole deadline of 800ms (risk.connect)"));
    assert!(risk("deadline = \"0ms\"").contains("must be greater than zero (risk.deadline)"));
    let bands = |text: &str| mistakes(&with(ROUTES, "pass_below = 0.3, review_from = 0.7", text), &[LLM, RISK]);
    assert!(bands("pass_below = 0.7, review_from = 0.3").contains("the thresholds cross (risk.bands.review_from)"));
    assert!(bands("pass_below = 0.3, review_from = 0.7, reject_from = 0.5").contains("(risk.bands.reject_from)"));
    assert!(bands("pass_below = 0.3000001, review_from = 0.7").contains("at most 6 decimals"));
    assert!(bands("pass_below = 0.3, review_from = 1.1").contains("must be between 0 and 1"));
    let route = with(ROUTES, "cache = {", "timeouts = { total = \"5s\", first_content = \"6s\" }\ncache = {");
    assert!(
        mistakes(&route, &[LLM, RISK])
            .contains("longer than timeouts.total, which is 5s (model.summary.timeouts.first_content)")
    );
    let limits = format!("{ROUTES}[limits]\nbody = \"64MiB\"\nin_flight_bytes = \"32MiB\"\n");
    assert!(mistakes(&limits, &[LLM, RISK]).contains("one body could be larger"));
    let memory = format!("{ROUTES}[limits]\nmemory = \"1MiB\"\n");
    assert!(mistakes(&memory, &[LLM, RISK]).contains("(limits.memory)"));
}

#[test]
fn callers_are_unique_and_their_keys_real() {
    let digest = |text: &str| mistakes(&with(ROUTES, &"1".repeat(64), text), &[LLM, RISK]);
    assert!(digest("abc").contains("not sha256: followed by 64 hexadecimal digits"));
    assert!(digest("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855").contains("empty key"));
    let allow = |text: &str| mistakes(&with(ROUTES, r#"["risk", "summary"]"#, text), &[LLM, RISK]);
    assert!(allow("[]").contains("the list is empty"));
    assert!(allow(r#"["sumary"]"#).contains("no such route (caller.allow); did you mean `summary`?"));
    assert!(allow(r#"["nothing"]"#).contains("no such route (caller.allow); known: summary, risk"));
    assert!(allow(r#"["agg/nothing"]"#).contains("provider `agg` has no model `nothing`"));
    assert!(allow(r#"["risk", "risk"]"#).contains("the entry occurs twice"));
    assert!(allow("[\"risk\"]\nclass = \"low\"").contains("payments are a class of their own"));
    assert!(allow("[\"risk\"]\nclass = \"risk\"").contains("(caller.class)"));
}

#[test]
fn provider_files_are_checked_for_what_could_leak_or_mislead() {
    let llm = |from: &str, to: &str| mistakes(ROUTES, &[&with(LLM, from, to), RISK]);
    let headers = |text: &str| llm("operations", &format!("headers = {{ {text} }}\noperations"));
    assert!(headers("authorization = \"x\"").contains("headers must not carry credentials"));
    assert!(headers("X-Mode = \"x\"").contains("not a header name in lower case"));
    assert!(headers("connection = \"close\"").contains("this header cannot be set"));
    assert!(headers("x-forwarded-for = \"1.2.3.4\"").contains("this header cannot be set"));
    assert!(headers("x-mode = \"a\\r\\nb: c\"").contains("visible ASCII"));
    assert!(llm("https://agg.example/v1", "https://127.0.0.1/v1").contains("write allow_private = true"));
    assert!(llm("https://agg.example/v1", "https://u:p@agg.example").contains("must not contain a user name"));
    assert!(llm("1.20 USD", "1.20 CNY").contains("different currencies"));
    assert!(
        llm("secret_env = \"AGG_API_KEY\"", "secret_env = \"A\", secret_file = \"b\"")
            .contains("both secret_env and secret_file")
    );
    assert!(llm(", secret_env = \"AGG_API_KEY\"", "").contains("missing key `secret_env` or `secret_file`"));
    assert!(llm("kind = \"bearer\"", "kind = \"di-hmac\"").contains("protocol openai does not sign"));
    assert!(llm("checked = \"2026-11-22\" }\nauth", "checked = \"2026-02-30\" }\nauth").contains("write a day"));
    assert!(llm("\nsource =", "\n#source =").contains("missing key `source`"));
    let limits = |text: &str| llm("operations", &format!("limits = {{ {text} }}\noperations"));
    assert!(limits("in_flight = \"adaptiv\"").contains("a whole number or \"adaptive\""));
    assert!(limits("in_flight = 9, least = 2").contains("the limit is fixed"));
    assert!(limits("in_flight = \"adaptive\", least = 9, most = 8").contains("more than most, which is 8"));
    let errors = |text: &str| mistakes(ROUTES, &[&format!("{LLM}[errors]\n{text}\n"), RISK]);
    assert!(errors("\"402\" = \"quota-exausted\"").contains("did you mean \"quota-exhausted\"?"));
    assert!(errors("\"42\" = \"refused\"").contains("not an HTTP status"));
    let twice = compiled(ROUTES, &[LLM, LLM, RISK]).unwrap_err();
    assert!(lines(&twice).contains("provider `agg` exists already (id); first at providers/p0.toml:2"));
}

#[test]
fn planned_keys_are_not_called_unknown() {
    let found = mistakes(&with(ROUTES, "cache = {", "redact = [\"pan\"]\ncache = {"), &[LLM, RISK]);
    assert!(found.contains("`redact` is not supported by this version"), "{found}");
}

#[test]
fn the_version_of_the_format_must_be_known() {
    assert!(mistakes(&with(ROUTES, "version = 1", ""), &[LLM, RISK]).contains("missing key `version`"));
    assert!(mistakes(&with(ROUTES, "version = 1", "version = 2"), &[LLM, RISK]).contains("write version = 1"));
}

#[test]
fn two_spellings_of_one_digest_are_one_key() {
    let upper =
        format!("{ROUTES}[[caller]]\nid = \"b\"\nkey_digest = \"sha256:{}\"\nallow = [\"*\"]\n", "AB".repeat(32));
    let found = mistakes(&with(&upper, &"1".repeat(64), &"ab".repeat(32)), &[LLM, RISK]);
    assert!(found.contains("the key's digest occurs twice"), "{found}");
}

#[test]
fn s16_more_than_can_be_meant_is_refused() {
    let candidates = vec!["\"agg/fast\""; 33].join(", ");
    let found = mistakes(&with(ROUTES, r#""agg/fast", "agg/clever""#, &candidates), &[LLM, RISK]);
    assert!(found.contains("more than 32 candidates"), "{found}");
    let models: String = (0..501).map(|index| format!("[[model]]\nid = \"m{index}\"\n")).collect();
    assert!(mistakes(ROUTES, &[&format!("{LLM}{models}"), RISK]).contains("more than 500 models"));
    let routes: String = (0..501).map(|index| format!("[model.m{index}]\ncandidates = [\"agg/fast\"]\n")).collect();
    assert!(mistakes(&format!("version = 1\n{routes}"), &[LLM, RISK]).contains("more than 500 routes"));
}

#[test]
fn a_budget_that_could_not_count_a_candidate_is_refused() {
    let budget = "\n[[risk.budget]]\nmerchant = \"*\"\namount = \"5.00 CNY\"\nper = \"day\"\n";
    let routes = format!("{ROUTES}{budget}");
    assert!(compiled(&routes, &[LLM, RISK]).is_ok());
    let line = RISK.lines().find(|line| line.starts_with("price")).unwrap();
    let unpriced = compiled(&routes, &[LLM, &RISK.replace(line, "")]).unwrap_err();
    assert!(lines(&unpriced).contains("the price of judge is not known"), "{}", lines(&unpriced));
    let dollars = compiled(&routes, &[LLM, &RISK.replace("CNY", "USD")]).unwrap_err();
    assert!(lines(&dollars).contains("judge bills in USD, not in CNY"), "{}", lines(&dollars));
    let abroad = RISK.replace("cross_border = \"0.05 CNY\"", "cross_border_when = \"asked-or-abroad\"");
    let nothing = compiled(ROUTES, &[LLM, &abroad]).unwrap_err();
    assert!(lines(&nothing).contains("there is no cross-border price"), "{}", lines(&nothing));
}

#[test]
fn what_holds_for_nobody_or_saves_nothing_is_remarked() {
    let budget = "\n[[risk.budget]]\nmerchant = \"*\"\ntenant = \"nobody\"\namount = \"5.00 CNY\"\nper = \"day\"\n";
    let ladder = with(ROUTES, "[risk]", "[risk]\nladder = [\"receipt_ocr\", \"fx\", \"free\"]");
    let remarks = crate::config::remarks::remarks(&table(&format!("{ladder}{budget}")));
    assert_eq!(remarks.len(), 2, "{remarks:?}");
    assert!(remarks[0].contains("tenant nobody") && remarks[1].contains("charges for free"), "{remarks:?}");
}
