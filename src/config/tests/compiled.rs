//! What a good configuration becomes.

use std::time::Duration;

use super::*;
use crate::config::SecretPolicy;
use crate::config::table::{Auth, Unpriced};
use crate::domain::period::Period;
use crate::domain::policy::VendorAction;
use crate::domain::policy::{FailureModes, OnExhausted};

#[test]
fn an_ordinary_configuration_becomes_a_table_with_defaults() {
    let table = table(ROUTES);
    let caller = &table.callers()[0];
    assert_eq!((caller.id.as_str(), caller.tenant.as_str()), ("checkout", "checkout"));
    assert!(caller.may_use("risk") && caller.may_use("summary") && !caller.may_use("agg/fast"));
    assert_eq!(caller.key_digest, [0x11; 32]);

    let summary = &table.llm_routes()["summary"];
    let upstreams: Vec<&str> = summary.candidates.iter().map(|candidate| candidate.upstream.as_str()).collect();
    assert_eq!(upstreams, ["agg/fast", "agg/clever"]);
    assert_eq!(summary.candidates[0].model.as_ref().unwrap().name, "vendor/fast-2");
    assert_eq!(summary.candidates[1].model.as_ref().unwrap().price, None);
    assert_eq!((summary.timeouts.total, summary.max_attempts), (Duration::from_secs(600), 3));
    assert_eq!(summary.cache.unwrap().ttl, Duration::from_secs(600));

    let risk = table.risk_route().unwrap();
    assert_eq!(risk.candidates[0].upstream.as_str(), "judge");
    assert_eq!((risk.deadline, risk.hard_limit), (Duration::from_millis(800), Duration::from_secs(3)));
    assert_eq!((risk.connect, risk.max_attempts), (Duration::from_millis(150), 2));
    assert_eq!(
        (risk.ruling.vendor_action, risk.ruling.on_exhausted),
        (VendorAction::Floor, FailureModes::all(OnExhausted::Review))
    );
    assert_eq!(risk.ruling.applied.bands.pass_below().micro(), 300_000);
    assert_eq!(risk.candidates[0].provider.price.as_ref().unwrap().cross_border.unwrap().to_string(), "0.05 CNY");

    let limits = table.limits();
    assert_eq!((limits.body_bytes, limits.risk_body_bytes, limits.json_depth), (33_554_432, 65_536, 64));
    assert_eq!((limits.connections, limits.in_flight, limits.in_flight_bytes), (10_000, 2000, 536_870_912));
    assert_eq!(limits.memory, None);
    assert_eq!(table.facts()["agg"].model_prices["fast"].checked, "2026-11-22");
}

#[test]
fn a_caller_may_have_one_budget_or_several_and_none_unless_it_says_so() {
    let caller = |extra: &str| {
        let routes = with(ROUTES, "allow = [\"risk\"", &format!("{extra}\nallow = [\"risk\""));
        table(&routes).callers()[0].clone()
    };
    let plain = caller("");
    assert!(!plain.has_quota() && plain.budgets.is_empty() && plain.tokens_per_minute.is_none());
    let one = caller("budget = { amount = \"500.00 CNY\", per = \"day\" }");
    assert_eq!(
        (one.budgets[0].amount.micro, one.budgets[0].per, one.unpriced),
        (500_000_000, Period::Day, Unpriced::Allow)
    );
    let list = "budget = [{ amount = \"1 JPY\", per = \"day\" }, { amount = \"1 JPY\", per = \"month\" }]";
    let two = caller(&format!("limits = {{ tokens_per_minute = 1000 }}\n{list}\nunpriced = \"refuse\""));
    assert_eq!((two.budgets.len(), two.tokens_per_minute, two.unpriced), (2, Some(1_000), Unpriced::Refuse));
}

#[test]
fn thresholds_are_read_from_their_own_spelling() {
    let thresholds = |low: &str, high: &str| {
        let routes =
            with(ROUTES, "pass_below = 0.3, review_from = 0.7", &format!("pass_below = {low}, review_from = {high}"));
        let bands = table(&routes).risk_route().unwrap().ruling.applied.bands;
        (bands.pass_below().micro(), bands.review_from().micro())
    };
    assert_eq!(thresholds("0.1", "0.299999"), (100_000, 299_999));
    assert_eq!(thresholds("0", "1"), (0, 1_000_000));
    assert_eq!(thresholds("0.000_001", "1.0"), (1, 1_000_000));
}

#[test]
fn a_star_allows_all_public_routes_and_a_provider_star_its_models() {
    let allow = |entries: &str| {
        let table = table(&with(ROUTES, r#"["risk", "summary"]"#, entries));
        let names: Vec<String> = table.callers()[0].allow.iter().map(ToString::to_string).collect();
        (names.join(" "), table)
    };
    assert_eq!(allow(r#"["*"]"#).0, "risk summary");
    assert_eq!(allow(r#"["agg/*", "risk"]"#).0, "agg/clever agg/fast risk");
    let (names, table) = allow(r#"["agg/fast"]"#);
    assert_eq!(names, "agg/fast");
    let direct = &table.llm_routes()["agg/fast"];
    assert_eq!((direct.candidates.len(), direct.cache), (1, None));
    assert!(!table.llm_routes().contains_key("agg/clever"));
}

#[test]
fn a_failure_mode_can_accept_small_amounts() {
    let routes = format!("{ROUTES}on_exhausted = {{ accept_up_to = \"50.00 CNY\" }}\n");
    let table = table(&routes);
    let OnExhausted::AcceptUpTo(money) = table.risk_route().unwrap().ruling.on_exhausted.deadline else {
        panic!("not accepted")
    };
    assert_eq!(money.to_string(), "50.00 CNY");
}

#[test]
fn defaults_give_way_to_what_was_written() {
    let routes = with(ROUTES, "cache = {", "timeouts = { total = \"5s\" }\ncache = {");
    let timeouts = table(&routes).llm_routes()["summary"].timeouts;
    assert_eq!((timeouts.first_content, timeouts.idle), (Duration::from_secs(5), Duration::from_secs(5)));
    let risk = table(&format!("{ROUTES}deadline = \"5s\"\n")).risk_route().unwrap().clone();
    assert_eq!(risk.hard_limit, Duration::from_secs(5));
    let risk = table(&format!("{ROUTES}deadline = \"100ms\"\n")).risk_route().unwrap().clone();
    assert_eq!(risk.connect, Duration::from_millis(50));
}

#[test]
fn g7_every_missing_or_weak_secret_of_a_used_provider_is_named() {
    let sources = sources(ROUTES, &[LLM, RISK]);
    let found = |secrets: &[(&str, &str)]| lines(&compile_with(&sources, &only(secrets), None).unwrap_err());
    let missing = found(&[]);
    assert!(missing.contains("environment variable AGG_API_KEY is not set or empty"), "{missing}");
    assert!(missing.contains("environment variable JUDGE_SECRET is not set or empty"), "{missing}");
    let weak = found(&[("AGG_API_KEY", "short"), ("JUDGE_SECRET", "abcd")]);
    assert!(weak.contains("AGG_API_KEY is shorter than 8 characters"), "{weak}");
    assert!(weak.contains("JUDGE_SECRET is shorter than 32 bytes once decoded"), "{weak}");
    assert!(!weak.contains("short ") && !weak.contains("abcd"), "{weak}");
    assert!(found(&[("AGG_API_KEY", ""), ("JUDGE_SECRET", " ")]).contains("AGG_API_KEY is not set or empty"));
}

#[test]
fn g7_a_provider_that_no_route_uses_needs_no_secret() {
    let routes = "version = 1\n";
    let table = compile_with(&sources(routes, &[LLM, RISK]), &only(&[]), None).unwrap();
    assert_eq!(table.providers().len(), 2);
}

#[test]
fn a_check_may_do_without_secrets_but_not_with_weak_ones() {
    let sources = sources(ROUTES, &[LLM, RISK]);
    let check = |source: &Map| {
        let secrets = Secrets { source, policy: SecretPolicy::AllowMissing };
        compile(&sources, &CompileOptions { secrets, rewire: None })
    };
    assert!(check(&only(&[])).is_ok());
    assert!(check(&only(&[("JUDGE_SECRET", "abcd")])).is_err());
}

#[test]
fn a_signing_secret_is_decoded_as_its_file_says() {
    let table = table(ROUTES);
    let Auth::DiHmac { keys } = &table.providers()["judge"].auth else { panic!("not signed") };
    assert_eq!((keys.signer().id.as_str(), keys.signer().secret.expose()), ("k1", [0x4f; 32].as_slice()));
}

#[test]
fn c11_a_provider_may_have_several_keys_of_which_the_first_active_one_signs() {
    let one = "key_id = \"k1\", secret_env = \"JUDGE_SECRET\", secret_encoding = \"hex\"";
    let key = |id: &str, encoding: &str, state: &str| {
        format!("{{ id = \"{id}\", secret_env = \"S\", secret_encoding = \"{encoding}\", state = \"{state}\" }}")
    };
    let keys = [
        key("k4", "hex", "pending"),
        key("k3", "hex", "active"),
        key("k2", "raw", "active"),
        key("k1", "base64", "verify-only"),
    ];
    let risk = with(RISK, one, &format!("keys = [{}]", keys.join(", ")));
    let table = compile_with(&sources(ROUTES, &[LLM, &risk]), &Map::default(), None).unwrap();
    let Auth::DiHmac { keys } = &table.providers()["judge"].auth else { panic!("not signed") };
    assert_eq!((keys.signer().id.as_str(), keys.signer().secret.expose()), ("k3", [0x4f; 32].as_slice()));
    let believed = ["k4", "k3", "k2", "k1"].map(|id| keys.verifier(id).is_some());
    assert_eq!(believed, [false, true, true, true]);
    assert_eq!(keys.verifier("k2").unwrap().secret.expose().len(), 64, "raw");
}

#[test]
fn a_caller_must_sign_only_if_it_says_so_and_its_secret_is_part_of_the_version() {
    assert!(table(ROUTES).callers()[0].signature.is_none());
    let signature = "signature = { key_id = \"k1\", secret_env = \"CHECKOUT_SECRET\", secret_encoding = \"hex\" }";
    let routes = with(ROUTES, "allow = [\"risk\"", &format!("{signature}\nallow = [\"risk\""));
    let compiled = |secrets: &Map| compile_with(&sources(&routes, &[LLM, RISK]), secrets, None);
    let first = compiled(&Map::default()).unwrap();
    assert_eq!(first.callers()[0].signature.as_ref().unwrap().signer().id, "k1");
    let rotated = Map { known: [("CHECKOUT_SECRET".into(), "5e".repeat(32))].into(), strict: false };
    let second = compiled(&rotated).unwrap();
    assert_ne!(first.version(), second.version());
    let diff = crate::config::TableDiff::between(&first, &second).to_string();
    assert_eq!(diff, "~ caller checkout: signature\n");
    let missing =
        lines(&compiled(&only(&[("AGG_API_KEY", "sk-12345678"), ("JUDGE_SECRET", &"4f".repeat(32))])).unwrap_err());
    assert!(
        missing.contains("environment variable CHECKOUT_SECRET is not set or empty (caller.signature.secret_env)"),
        "{missing}"
    );
}

#[test]
fn a_secret_file_counts_wherever_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("caller"), "4f".repeat(32)).unwrap();
    std::fs::write(path("key"), "4f".repeat(32)).unwrap();
    let place = |name: &str| path(name).display().to_string();
    std::fs::write(
        path("routes.toml"),
        format!("[[caller]]\nsignature = {{ secret_file = \"{}\" }}\n", place("caller")),
    )
    .unwrap();
    std::fs::create_dir(path("providers")).unwrap();
    let provider = format!("[auth]\nkeys = [{{ id = \"k\", secret_file = \"{}\" }}]\n", place("key"));
    std::fs::write(path("providers/judge.toml"), provider).unwrap();
    let hash = || crate::config::content_hash(&path("routes.toml"), Some(&path("providers")));
    let first = hash();
    std::fs::write(path("key"), "5e".repeat(32)).unwrap();
    let second = hash();
    std::fs::write(path("caller"), "5e".repeat(32)).unwrap();
    assert!(first != second && second != hash());
}

#[test]
fn an_overlay_adds_its_sections() {
    let mut sources = sources(ROUTES, &[LLM, RISK]);
    let caller = "[[caller]]\nid = \"sandbox\"\nkey_digest = \"sha256:2222222222222222222222222222222222222222222222222222222222222222\"\nallow = [\"*\"]\n";
    sources.routes.push(file("sandbox overlay", caller));
    let table = compile_with(&sources, &Map::default(), None).unwrap();
    assert_eq!(table.callers().len(), 2);
    assert!(table.callers()[1].may_use("summary"));

    sources.routes.push(file("again", &format!("{caller}[model.summary]\ncandidates = [\"agg/fast\"]\n[risk]\ncandidates = [\"judge\"]\nbands = {{ pass_below = 0.3, review_from = 0.7 }}\n")));
    let found = lines(&compile_with(&sources, &Map::default(), None).unwrap_err());
    for expected in [
        "again:2:6: the caller's id occurs twice (caller.id); first at sandbox overlay:2",
        "again:3:14: the key's digest occurs twice (caller.key_digest); first at sandbox overlay:3",
        "again:5:8: the route occurs twice (model.summary); first at routes.toml:9",
        "again:7:1: [risk] occurs twice (risk); first at routes.toml:13",
    ] {
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn rewiring_replaces_every_address_and_permits_private_ones() {
    let table = compile_with(&sources(ROUTES, &[LLM, RISK]), &Map::default(), Some(&loopback)).unwrap();
    assert!(table.providers().values().all(|provider| provider.allow_private && provider.base_url.port == 9));
    assert_eq!(table.llm_routes()["summary"].candidates[0].provider.base_url.host, "127.0.0.1");
}

#[test]
fn the_version_changes_with_text_and_secrets_and_with_nothing_else() {
    let version =
        |routes: &str, secrets: &Map| compile_with(&sources(routes, &[LLM, RISK]), secrets, None).unwrap().version();
    let first = version(ROUTES, &Map::default());
    assert_eq!(first, version(ROUTES, &Map::default()));
    assert_eq!(first.to_string().len(), 12);
    assert_ne!(first, version(&format!("{ROUTES}# comment\n"), &Map::default()));
    let rotated = Map { known: [("AGG_API_KEY".into(), "another-key".into())].into(), strict: false };
    assert_ne!(first, version(ROUTES, &rotated));
}

#[test]
fn a_route_s_fingerprint_changes_with_what_shapes_its_answers() {
    let fingerprint =
        |routes: &str, llm: &str| compiled(routes, &[llm, RISK]).unwrap().llm_routes()["summary"].fingerprint;
    let first = fingerprint(ROUTES, LLM);
    assert_eq!(first, fingerprint(&with(ROUTES, "10m", "20m"), LLM));
    assert_eq!(first, fingerprint(ROUTES, &with(LLM, "0.30 USD", "0.40 USD")));
    assert_ne!(
        first,
        fingerprint(&with(ROUTES, r#"["agg/fast", "agg/clever"]"#, r#"["agg/clever", "agg/fast"]"#), LLM)
    );
    assert_ne!(first, fingerprint(ROUTES, &with(LLM, "vendor/fast-2", "vendor/fast-3")));
    assert_ne!(first, fingerprint(ROUTES, &with(LLM, "agg.example/v1", "agg.example/v2")));
    assert_ne!(first, fingerprint(ROUTES, &with(LLM, "operations", "headers = { x-mode = \"fast\" }\noperations")));
}

#[test]
fn what_a_provider_needs_changed_is_compiled_once() {
    use crate::wire::json_edit::Added;
    let llm = with(
        LLM,
        "operations = [\"chat.completions\"]",
        "operations = [\"chat.completions\", \"messages\"]\nbody = { n_retries = 0, ratio = 1.50, provider = { fallbacks = false } }\n\
         drop = [\"logprobs\"]\nrename = { old = \"new\" }\npaths = { messages = \"/other/messages\" }\n\
         error_codes = { Arrearage = \"quota-exhausted\" }\nlimits = { in_flight = \"adaptive\", most = 40 }",
    );
    let table = compiled(ROUTES, &[&llm, RISK]).unwrap();
    let agg = &table.providers()["agg"];
    let shape = agg.shape.as_deref().unwrap();
    assert_eq!(
        shape.add,
        [
            ("n_retries".to_owned(), Added::Value("0".to_owned())),
            ("provider".to_owned(), Added::Members(vec![("fallbacks".to_owned(), "false".to_owned())])),
            ("ratio".to_owned(), Added::Value("1.5".to_owned())),
        ]
    );
    assert_eq!(
        (&*shape.drop, &*shape.rename),
        (&["logprobs".to_owned()][..], &[("old".to_owned(), "new".to_owned())][..])
    );
    assert_eq!(agg.paths[&crate::domain::operation::Operation::Messages], "/other/messages");
    assert_eq!(agg.error_codes["Arrearage"], crate::domain::outcome::FailureClass::QuotaExhausted);
    assert_eq!((agg.in_flight, agg.adaptive_least), (40, Some(2)));
    assert_eq!(table.providers()["judge"].shape, None);
    let plain = compiled(ROUTES, &[LLM, RISK]).unwrap();
    assert_ne!(plain.llm_routes()["summary"].fingerprint, table.llm_routes()["summary"].fingerprint);
}
