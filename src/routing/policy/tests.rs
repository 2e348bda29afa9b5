//! Conditions against payment attempts, and which policy and list decide them.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::config::{CompileOptions, SecretPolicy, Secrets, SourceFile, Sources, builtin, compile};
use crate::domain::decision::{Action, Score};
use crate::domain::policy::{ListKind, decide};
use crate::domain::secret::{Secret, SecretSource};
use crate::wire::risk;

struct AnyKey;

impl SecretSource for AnyKey {
    fn env(&self, _: &str) -> Option<Secret> {
        Some(Secret::new("4f".repeat(32).into_bytes()))
    }

    fn file(&self, _: &str) -> Option<Secret> {
        None
    }
}

const RISK: &str = "version = 1\n[[caller]]\nid = \"checkout\"\ntenant = \"shop\"\nallow = [\"risk\"]\n\
                    key_digest = \"sha256:1111111111111111111111111111111111111111111111111111111111111111\"\n\
                    [risk]\ncandidates = [\"alipay\"]\nbands = { pass_below = 0.3, review_from = 0.7 }\n";

/// A risk route with more text, and the caller.
fn route(more: &str) -> (Arc<RiskRoute>, Arc<Caller>) {
    let routes = SourceFile { name: "routes.toml".into(), text: format!("{RISK}{more}") };
    let sources = Sources { routes: vec![routes], providers: builtin::providers(), ..Sources::default() };
    let secrets = Secrets { source: &AnyKey, policy: SecretPolicy::Required };
    let table = compile(&sources, &CompileOptions { secrets, rewire: None })
        .unwrap_or_else(|errors| panic!("{}", crate::config::render_all(&errors, crate::config::Style::Plain)));
    (Arc::clone(table.risk_route().unwrap()), Arc::clone(&table.callers()[0]))
}

/// A full attempt, the JSON fields of `more` put over it.
fn attempt(more: &str) -> Assessment {
    let mut body: serde_json::Value = serde_json::from_str(
        r#"{ "out_trade_no": "T1", "total_amount": "600.00", "currency": "CNY", "subject": "gift card",
             "merchant": { "id": "m1", "category": "electronics", "country": "CN" },
             "user": { "id": "u1", "country": "TH", "email": "A@Example.org", "registered_at": "2026-11-20T00:00:00Z" },
             "instrument": { "type": "card", "fingerprint": "f1", "bin": "62123456" },
             "device": { "id": "d1", "ip": "203.0.113.7", "known_since": "2026-11-23T11:00:00Z" },
             "features": ["fx"] }"#,
    )
    .unwrap();
    let more: serde_json::Value = serde_json::from_str(more).unwrap();
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    risk::decode(body.to_string().as_bytes()).unwrap()
}

/// 2026-11-23T12:00:00Z
const NOW: u64 = 1_795_435_200_000;

fn is_true(when: &str, payment: &Assessment) -> bool {
    let (route, caller) = route(&format!("[[risk.policy]]\nname = \"a\"\nwhen = '''{when}'''\n"));
    let input = Input { assessment: payment, caller: &caller, now_ms: NOW, counters: &no_counters, presumed: &[] };
    holds(route.rules.policies[0].when.as_ref().unwrap(), &input).unwrap()
}

#[test]
fn conditions_are_about_every_part_of_a_payment() {
    let payment = attempt("{}");
    let yes = [
        "merchant.category == \"electronics\" && amount >= money(\"600.00 CNY\")",
        "amount > money('599.99 CNY') && money('600.01 CNY') > amount && amount != money('1 CNY')",
        "user.country != merchant.country && user.country in ['CN', 'TH']",
        "user.registered_days == 3 && device.known_days == 0",
        "hour_utc == 12 && hour_utc in [11, 12] && hour_utc <= 12 && !(hour_utc < 12)",
        "'fx' in features && !('ocr' in features)",
        "subject.startsWith('gift') && subject.endsWith('card') && subject.contains('t c')",
        "device.ip in ['203.0.113.0/24'] && device.ip == '::ffff:203.0.113.7' && device.ip != '203.0.113.8'",
        "caller.id == 'checkout' && caller.tenant == 'shop' && currency == 'CNY'",
        "instrument.type == 'card' && instrument.bin in ['62123456'] && device.id == 'd1'",
        "out_trade_no == 'T1' && merchant.id == 'm1' && user.id != 'u2'",
        "has(user.country) && has(device.ip) && has(user.registered_days) && has(user.id)",
        "false || true && !false",
    ];
    for when in yes {
        assert!(is_true(when, &payment), "{when}");
        assert!(!is_true(&format!("!({when})"), &payment), "{when}");
    }
}

#[test]
fn what_a_caller_left_out_compares_with_nothing() {
    let bare = attempt(
        r#"{ "merchant": { "id": "m" }, "user": { "id": "u" }, "instrument": {}, "device": {}, "features": [] }"#,
    );
    let no = [
        "merchant.category == 'x'",
        "merchant.category != 'x'",
        "merchant.category in ['x']",
        "merchant.category.contains('')",
        "user.country == merchant.country",
        "user.country != merchant.country",
        "user.registered_days < 7",
        "user.registered_days >= 0",
        "device.known_days != 3",
        "device.ip == '203.0.113.7'",
        "device.ip != '203.0.113.7'",
        "has(device.ip) || has(user.country) || has(user.registered_days)",
        "'fx' in features",
    ];
    for when in no {
        assert!(!is_true(when, &bare), "{when}");
    }
}

#[test]
fn c9_amounts_of_two_currencies_compare_with_nothing() {
    let yen = attempt(r#"{ "total_amount": "60000", "currency": "JPY" }"#);
    for sign in ["<", "<=", ">", ">=", "==", "!="] {
        assert!(!is_true(&format!("amount {sign} money('500.00 CNY')"), &yen), "{sign}");
    }
    assert!(is_true("amount == money('60000 JPY')", &yen));
}

#[test]
fn a_moment_that_has_yet_to_come_is_days_before_now() {
    let future = attempt(r#"{ "user": { "id": "u", "registered_at": "2026-11-23T12:00:01Z" } }"#);
    assert!(is_true("user.registered_days == -1 && user.registered_days < 7", &future));
    let ancient = attempt(r#"{ "user": { "id": "u", "registered_at": "0001-01-01T00:00:00Z" } }"#);
    assert!(is_true("user.registered_days > 700000", &ancient));
}

fn ruling(more: &str, payment: &Assessment) -> Arc<Ruling> {
    let (route, caller) = route(more);
    let input = Input { assessment: payment, caller: &caller, now_ms: NOW, counters: &no_counters, presumed: &[] };
    ruling_for(&route, &input)
}

#[test]
fn the_first_policy_that_matches_decides_else_the_route() {
    let policy = |name: &str, when: &str| format!("[[risk.policy]]\nname = \"{name}\"\nwhen = '{when}'\n");
    let rules = policy("never", "hour_utc > 23") + &policy("a", "user.id == \"u1\"") + &policy("b", "true");
    assert_eq!(&*ruling(&rules, &attempt("{}")).applied.rule, "a");
    assert_eq!(&*ruling(&rules, &attempt(r#"{ "user": { "id": "u2" } }"#)).applied.rule, "b");
    assert_eq!(&*ruling(&policy("never", "false"), &attempt("{}")).applied.rule, "default");
    let without = ruling("[[risk.policy]]\nname = \"all\"\n", &attempt("{}"));
    assert_eq!(&*without.applied.rule, "all");
}

fn list(kind: &str, by: &str, value: &str) -> String {
    format!("[[risk.list]]\nname = \"{kind} {by}\"\nkind = \"{kind}\"\nby = \"{by}\"\nvalues = [\"{value}\"]\n")
}

#[test]
fn lists_find_their_own_part_of_a_payment() {
    let found = |kind, by, value| ruling(&list(kind, by, value), &attempt("{}")).listed.clone();
    for (by, value) in [
        ("user", "u1"),
        ("device", "d1"),
        ("ip", "203.0.113.0/24"),
        ("bin", "621234"),
        ("instrument", "f1"),
        ("merchant", "m1"),
        ("email", "a@example.org"),
        ("email", "@example.org"),
        ("country", "TH"),
        ("country", "CN"),
    ] {
        let listed = found("review", by, value).unwrap_or_else(|| panic!("{by} {value}"));
        assert_eq!((listed.kind, &*listed.list), (ListKind::Review, &*format!("review {by}")));
    }
    for (by, value) in
        [("user", "d1"), ("device", "u1"), ("merchant", "u1"), ("country", "US"), ("ip", "203.0.114.0/24")]
    {
        assert!(found("block", by, value).is_none(), "{by} {value}");
    }
}

#[test]
fn block_beats_review_and_review_beats_allow_in_whatever_order_they_are_written() {
    let (allow, review, block) =
        (list("allow", "user", "u1"), list("review", "device", "d1"), list("block", "ip", "203.0.113.7"));
    let kind = |lists: &str| ruling(lists, &attempt("{}")).listed.as_ref().map(|listed| listed.kind);
    assert_eq!(kind(&format!("{allow}{review}{block}")), Some(ListKind::Block));
    assert_eq!(kind(&format!("{allow}{review}")), Some(ListKind::Review));
    assert_eq!(kind(&allow), Some(ListKind::Allow));
}

#[test]
fn without_a_list_nothing_is_made_for_a_payment() {
    let (route, caller) = route("[[risk.policy]]\nname = \"a\"\n");
    let payment = attempt("{}");
    let input = Input { assessment: &payment, caller: &caller, now_ms: NOW, counters: &no_counters, presumed: &[] };
    assert!(Arc::ptr_eq(&ruling_for(&route, &input), &route.rules.policies[0].ruling));
}

/// A condition about counters, which this configuration cannot write yet.
fn counter(name: &str, by: crate::config::expr::Comparison, than: i64) -> Node {
    Node::Whole { left: Whole::Counter(name.into()), by, right: Whole::Literal(than) }
}

#[test]
fn a_counter_that_cannot_be_told_is_neither_true_nor_false() {
    use crate::config::expr::Comparison::More;
    let (_, caller) = route("");
    let payment = attempt("{}");
    let counters = |name: &str| (name == "told").then_some(6);
    let input = Input { assessment: &payment, caller: &caller, now_ms: NOW, counters: &counters, presumed: &[] };
    let evaluate = |node: &Node| evaluate(node, &input);
    assert_eq!((evaluate(&counter("told", More, 5)), evaluate(&counter("told", More, 6))), (Ok(true), Ok(false)));
    let unknown = || counter("untold", More, 5);
    assert_eq!(evaluate(&unknown()), Err(Unknown));
    assert_eq!(evaluate(&Node::Not(Box::new(unknown()))), Err(Unknown));
    let all = |other: bool| Node::All([unknown(), Node::Always(other)].into());
    let any = |other: bool| Node::Any([unknown(), Node::Always(other)].into());
    assert_eq!((evaluate(&all(false)), evaluate(&all(true))), (Ok(false), Err(Unknown)));
    assert_eq!((evaluate(&any(true)), evaluate(&any(false))), (Ok(true), Err(Unknown)));
}

#[test]
fn a_policy_that_cannot_be_evaluated_asks_for_a_review_whatever_else_matches() {
    use crate::config::expr::Comparison::More;
    let (route, caller) = route("[[risk.policy]]\nname = \"a\"\nwhen = 'true'\n[[risk.policy]]\nname = \"b\"\n");
    let mut route = RiskRoute::clone(&route);
    route.rules.policies[0].when = Some(Condition::of(counter("untold", More, 5)));
    let payment = attempt("{}");
    let input = Input { assessment: &payment, caller: &caller, now_ms: NOW, counters: &no_counters, presumed: &[] };
    let ruling = ruling_for(&route, &input);
    assert_eq!((&*ruling.applied.rule, ruling.unclear.as_deref()), ("b", Some("a")));
    assert_eq!(decide(&ruling, Score::from_micro(0), Some("PASS")), Some(Action::Review));
}

const WHEN: &str =
    "(merchant.category == 'a' || amount > money('9.99 CNY')) && !(hour_utc in [1, 2, 3]) || subject == 'x'";

/// Two policies, of which the second has the negation of the first one's condition.
static EITHER: LazyLock<(Arc<RiskRoute>, Arc<Caller>)> = LazyLock::new(|| {
    route(&format!(
        "[[risk.policy]]\nname = \"a\"\nwhen = \"{WHEN}\"\n[[risk.policy]]\nname = \"b\"\nwhen = \"!({WHEN})\"\n"
    ))
});

proptest! {
    #[test]
    fn a_condition_and_its_negation_never_agree(category in "[a-c]", amount in 1u32..2000, hours in 0u64..48) {
        let (route, caller) = &*EITHER;
        let more = format!(
            r#"{{ "total_amount": "{}.{:02}", "merchant": {{ "id": "m", "category": "{category}" }} }}"#,
            amount / 100, amount % 100,
        );
        let payment = attempt(&more);
        let now_ms = NOW + hours * HOUR_MS;
        let input = Input { assessment: &payment, caller, now_ms, counters: &no_counters, presumed: &[] };
        let hour = (12 + hours) % 24;
        let expected = (category == "a" || amount > 999) && !(1..=3).contains(&hour);
        let rule = Arc::clone(&ruling_for(route, &input).applied.rule);
        prop_assert_eq!(&*rule, if expected { "a" } else { "b" });
    }
}
