//! Who decides a payment: policies by condition, lists, and what is answered without a verdict.

use std::fs;

use serde_json::{Value, json};

use crate::harness::*;
use crate::process::{Client, PATIENCE, Sandbox, Site, repository, run, wait_until, weighbridge};

/// The two examples that the project began with.
const SHOPS: &str = r#"
[[risk.policy]]
name = "high-value electronics"
when = 'merchant.category == "electronics" && amount >= money("500.00 CNY")'
bands = { reject_from = 0.5 }

[[risk.policy]]
name = "digital goods"
when = 'merchant.category == "digital"'
bands = { pass_below = 0.8 }
"#;

/// The usual routes with more text in `[risk]`, in place of its failure mode.
fn world(risk: &str) -> World {
    World::with(&Plan::replacing("on_exhausted = \"review\"", risk))
}

/// The provider's next answer.
fn scored(world: &World, score: &str, word: &str) {
    let body = format!(r#"status:200;body={{"risk_score":{score},"recommendation":"{word}"}}"#);
    world.faults("alipay", &[&body]);
}

/// A payment of this category.
fn of(category: &str, number: &str, amount: &str) -> Value {
    let mut body = payment(number, amount);
    body["merchant"] = json!({ "id": "m1", "category": category });
    body
}

async fn decide(world: &World, body: &Value) -> (String, String) {
    let answer = world.assess(body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let decision = answer.json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    assert_eq!(decision["policy"]["version"], answer.header("wb-config"));
    (text(&decision["action"]), text(&decision["policy"]["rule"]))
}

fn is(found: &(String, String), action: &str, rule: &str) {
    assert_eq!((found.0.as_str(), found.1.as_str()), (action, rule));
}

#[tokio::test(start_paused = true)]
async fn a_score_of_0_6_rejects_a_phone_and_passes_an_e_book() {
    let world = world(SHOPS);
    let cases = [
        ("electronics", "900.00", "REJECT", "high-value electronics"),
        ("electronics", "500.00", "REJECT", "high-value electronics"),
        ("electronics", "499.99", "CHALLENGE", "default"),
        ("digital", "900.00", "PASS", "digital goods"),
        ("groceries", "900.00", "CHALLENGE", "default"),
    ];
    for (number, (category, amount, action, rule)) in cases.into_iter().enumerate() {
        scored(&world, "0.6", "PASS");
        is(&decide(&world, &of(category, &format!("T{number}"), amount)).await, action, rule);
    }
    // 600 of another currency is not compared with 500 yuan, and nothing is converted.
    scored(&world, "0.6", "PASS");
    let mut dollars = of("electronics", "T9", "900.00");
    dollars["currency"] = json!("USD");
    is(&decide(&world, &dollars).await, "CHALLENGE", "default");
    assert_eq!(world.scorings(), 6);
}

#[tokio::test(start_paused = true)]
async fn the_answer_says_which_thresholds_were_applied() {
    let world = world(SHOPS);
    scored(&world, "0.6", "PASS");
    let decision = world.assess(&of("electronics", "T1", "900.00")).await.json();
    assert_eq!(decision["policy"]["bands"], json!({ "pass_below": 0.3, "review_from": 0.5, "reject_from": 0.5 }));
    assert_eq!(decision["reasons"], json!([]));
    scored(&world, "0.8", "PASS");
    is(&decide(&world, &of("digital", "T2", "1.00")).await, "REVIEW", "digital goods");
    scored(&world, "0.799999", "PASS");
    is(&decide(&world, &of("digital", "T3", "1.00")).await, "PASS", "digital goods");
}

#[tokio::test(start_paused = true)]
async fn the_providers_word_is_a_floor_unless_a_policy_says_advisory() {
    let world = world(
        r#"
[[risk.policy]]
name = "own judgement"
when = 'merchant.id == "m2"'
vendor_action = "advisory"
[[risk.policy]]
name = "never at once"
when = 'merchant.id == "m3"'
action = "CHALLENGE"
"#,
    );
    let to = |merchant: &str, number: &str| {
        let mut body = payment(number, "1.00");
        body["merchant"]["id"] = json!(merchant);
        body
    };
    for (merchant, word, action, rule) in [
        ("m1", "REJECT", "REJECT", "default"),
        ("m2", "REJECT", "PASS", "own judgement"),
        ("m3", "PASS", "CHALLENGE", "never at once"),
        ("m3", "REVIEW", "REVIEW", "never at once"),
    ] {
        scored(&world, "0.1", word);
        is(&decide(&world, &to(merchant, &format!("{merchant}{word}"))).await, action, rule);
    }
    scored(&world, "0.1", "PASS");
    let reasons = world.assess(&to("m3", "T9")).await.json()["reasons"].clone();
    assert_eq!(reasons[0]["code"], "policy");
    assert!(reasons[0]["text"].as_str().unwrap().contains("\"never at once\" asks for CHALLENGE"), "{reasons}");
}

const LISTS: &str = r#"
[[risk.list]]
name = "friends"
kind = "allow"
by = "user"
values = ["friend-CANARY", "both-CANARY"]
[[risk.list]]
name = "stolen cards"
kind = "block"
by = "bin"
values = ["621234"]
[[risk.list]]
name = "noisy networks"
kind = "review"
by = "ip"
values = ["203.0.113.0/24"]
"#;

#[tokio::test(start_paused = true)]
async fn lists_beat_the_score_and_block_beats_review_beats_allow() {
    let mut world = world(LISTS);
    let from = |number: &str, user: &str, bin: &str, ip: &str| {
        let mut body = payment(number, "1.00");
        body["user"]["id"] = json!(user);
        body["instrument"] = json!({ "bin": bin });
        body["device"] = json!({ "ip": ip });
        body
    };
    let (card, home) = ("55554444", "198.51.100.1");
    let cases = [
        ("friend-CANARY", card, home, "0.95", "REJECT", "PASS", Some("allow_list")),
        ("friend-CANARY", card, "203.0.113.9", "0.1", "PASS", "REVIEW", Some("review_list")),
        ("both-CANARY", "62123499", "203.0.113.9", "0.1", "PASS", "REJECT", Some("block_list")),
        ("nobody", card, "203.0.113.9", "0.1", "REJECT", "REJECT", Some("review_list")),
        ("nobody", card, home, "0.1", "PASS", "PASS", None),
    ];
    for (number, (user, bin, ip, score, word, action, code)) in cases.into_iter().enumerate() {
        scored(&world, score, word);
        let answer = world.assess(&from(&format!("T{number}"), user, bin, ip)).await;
        let decision = answer.json();
        assert_eq!(decision["action"], action, "{decision}");
        assert_eq!(decision["reasons"].get(0).map(|reason| reason["code"].as_str().unwrap()), code);
        assert!(
            !decision["reasons"].to_string().contains("CANARY") && !decision["reasons"].to_string().contains("6212")
        );
    }
    assert_eq!(world.scorings(), 5, "whoever is listed is scored all the same");
    let log = world.log_text();
    assert!(!log.contains("CANARY") && !log.contains("621234") && !log.contains("203.0.113"), "{log}");
    assert!(!world.metrics.render().contains("CANARY"));
}

const MODES: &str = r#"on_exhausted = { deadline = { accept_up_to = "50.00 CNY" }, not_authentic = "reject" }
[[risk.policy]]
name = "never wait"
when = 'merchant.category == "digital"'
on_exhausted = "error"
[[risk.policy]]
name = "large"
when = 'amount > money("1000.00 CNY")'
on_exhausted = { default = "reject", no_verdict = "review" }
[[risk.policy]]
name = "friends may"
when = 'merchant.category == "club"'
on_exhausted = "local_rules"
[[risk.list]]
name = "friends"
kind = "allow"
by = "user"
values = ["u1"]
[[risk.list]]
name = "blocked"
kind = "block"
by = "device"
values = ["d1"]
"#;

#[tokio::test(start_paused = true)]
async fn without_a_verdict_each_policy_and_each_cause_has_its_mode() {
    let (late, away, forged, empty) = ("delay:2s", "status:503", "bad-signature", "status:200;body={}");
    let table = [
        // The route's own: small amounts pass if the provider is late, and only then.
        ("toys", "49.00", late, Some("PASS")),
        ("toys", "51.00", late, Some("REVIEW")),
        ("toys", "49.00", away, Some("REVIEW")),
        ("toys", "49.00", forged, Some("REJECT")),
        ("toys", "49.00", "unsigned", Some("REJECT")),
        ("toys", "49.00", empty, Some("REVIEW")),
        // By merchant.
        ("digital", "49.00", late, None),
        ("digital", "49.00", forged, None),
        // By amount.
        ("toys", "1000.01", late, Some("REJECT")),
        ("toys", "1000.01", away, Some("REJECT")),
        ("toys", "1000.01", empty, Some("REVIEW")),
        // By lists alone, and never after an answer that proves nothing.
        ("club", "49.00", late, Some("PASS")),
        ("club", "49.00", away, Some("PASS")),
        ("club", "49.00", forged, Some("REVIEW")),
        ("club", "49.00", empty, Some("REVIEW")),
    ];
    for (category, amount, fault, action) in table {
        let world = world(MODES);
        world.faults("alipay", &[fault]);
        let answer = world.assess(&of(category, "T1", amount)).await;
        let Some(action) = action else {
            assert_eq!(answer.status, 503, "{category} {amount} {fault}");
            continue;
        };
        let decision = answer.json();
        assert_eq!(
            (&decision["action"], &decision["source"]),
            (&json!(action), &json!("fallback")),
            "{category} {fault}"
        );
        assert_eq!(world.scorings(), 1, "{category} {amount} {fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_blocked_is_rejected_also_when_nobody_answers() {
    for category in ["toys", "digital", "club"] {
        let world = world(MODES);
        world.faults("alipay", &["delay:2s"]);
        let mut body = of(category, "T1", "1.00");
        body["device"] = json!({ "id": "d1" });
        let decision = world.assess(&body).await.json();
        assert_eq!((&decision["action"], &decision["source"]), (&json!("REJECT"), &json!("fallback")));
        let codes: Vec<&str> =
            decision["reasons"].as_array().unwrap().iter().map(|r| r["code"].as_str().unwrap()).collect();
        assert_eq!(codes, ["deadline_passed", "block_list"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_verdict_is_decided_by_the_policy_of_its_payment() {
    let world = world(SHOPS);
    world.faults("alipay", &["delay:2s"]);
    is(&decide(&world, &of("digital", "T1", "88.49")).await, "REVIEW", "digital goods");
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    // 0.5 is below 0.8, and the provider's CHALLENGE is a floor.
    is(&decide(&world, &of("digital", "T1", "88.49")).await, "CHALLENGE", "digital goods");
}

// --- with the built program ---

fn routes_with(risk: &str) -> String {
    format!("{}\n{risk}", fs::read_to_string(repository().join("routes.toml")).unwrap())
}

fn action(sandbox: &Sandbox, user: &str, number: usize) -> String {
    let mut body = payment(&format!("{user}-{number}"), "1.00");
    body["user"]["id"] = json!(user);
    let headers = [("authorization".to_owned(), format!("Bearer {}", sandbox.key))];
    let answer = Client::to(sandbox.data).call("POST", "/v1/risk/assessments", &headers, &body.to_string()).unwrap();
    answer.json()["action"].as_str().unwrap_or_else(|| panic!("{}", answer.body)).to_owned()
}

#[test]
fn a_list_s_file_is_hot_and_a_broken_one_changes_nothing() {
    let site = Site::new();
    let list = "[[risk.list]]\nname = \"blocked\"\nkind = \"block\"\nby = \"user\"\nfile = \"lists/blocked.txt\"\n";
    let networks = "[[risk.list]]\nname = \"networks\"\nkind = \"review\"\nby = \"ip\"\nfile = \"networks.txt\"\n";
    site.write("routes.toml", &routes_with(&format!("{list}{networks}")));
    fs::create_dir(site.path("lists")).unwrap();
    site.write("lists/blocked.txt", "# nobody yet\n");
    site.write("networks.txt", "203.0.113.0/24\n");
    let sandbox = Sandbox::start(&site, &[]);
    let before = sandbox.version();
    assert_eq!(action(&sandbox, "eve", 0), "PASS");
    site.write("lists/blocked.txt", "eve # since today\n");
    wait_until(PATIENCE, "the list to be read again", || sandbox.version() != before);
    assert_eq!((action(&sandbox, "eve", 1), action(&sandbox, "adam", 1)), ("REJECT".to_owned(), "PASS".to_owned()));

    let failures = || sandbox.metric(r#"weighbridge_config_reloads_total{result="failure"}"#);
    site.write("networks.txt", "203.0.113.0/24\nCANARY\n");
    wait_until(PATIENCE, "the mistake to be told", || failures() > 0.0);
    let told = sandbox.status()["last_reload"].to_string();
    assert!(told.contains("networks.txt") && told.contains("\"line\":2") && !told.contains("CANARY"), "{told}");
    assert_eq!(action(&sandbox, "eve", 2), "REJECT", "the configuration in force stays");
    fs::remove_file(site.path("networks.txt")).unwrap();
    wait_until(PATIENCE, "the missing file to be told", || {
        sandbox.status()["last_reload"].to_string().contains("there is no such file")
    });
    site.write("networks.txt", "203.0.113.0/24\n");
    site.write("lists/blocked.txt", "");
    wait_until(PATIENCE, "eve to be free", || {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(3);
        action(&sandbox, "eve", NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) == "PASS"
    });
    let log = sandbox.log();
    assert!(log.contains("~ list blocked: values") && !log.contains("CANARY"), "{log}");
}

#[test]
fn check_shows_policies_as_they_come_out_and_mistakes_at_their_column() {
    let site = Site::new();
    site.write(
        "routes.toml",
        &routes_with(&format!("{SHOPS}{LISTS}\n[[risk.policy]]\nname = \"rest\"\n[[risk.policy]]\nname = \"last\"\n")),
    );
    let check = || run(weighbridge().current_dir(site.path("")).args(["check", "--allow-missing-secrets"]));
    let good = check();
    assert_eq!(good.code, Some(0), "{}", good.err);
    assert!(good.out.contains("policy high-value electronics"), "{}", good.out);
    assert!(good.out.contains("pass below 0.3, review from 0.5, reject from 0.5"), "{}", good.out);
    assert!(good.out.contains("block by bin, 1 values") && !good.out.contains("621234"), "{}", good.out);
    assert!(good.err.contains("policy \"last\" never decides: \"rest\" before it matches everything"), "{}", good.err);

    site.write("routes.toml", &routes_with("[[risk.policy]]\nname = \"a\"\nwhen = 'merchant.categry == \"CANARY\"'\n"));
    let bad = check();
    let text = fs::read_to_string(site.path("routes.toml")).unwrap();
    let line = text.lines().position(|line| line.starts_with("when = ")).unwrap() + 1;
    assert_eq!(bad.code, Some(1));
    assert!(bad.err.contains(&format!("--> routes.toml:{line}:9\n")), "{}", bad.err);
    assert!(bad.err.contains("when = 'merchant.categry == …'") && bad.err.contains("did you mean"), "{}", bad.err);
    assert!(!bad.err.contains("CANARY"), "{}", bad.err);
}

/// The examples people copy: the README's, those of its page about payments, and the ones behind `#` in `routes.toml`.
#[test]
fn the_documented_policies_and_lists_compile() {
    let read = |name: &str| fs::read_to_string(repository().join(name)).unwrap();
    let first_example_of = |page: &str| {
        let text = read(page);
        let (_, rest) = text.split_once("## Policies and lists").unwrap();
        let (_, example) = rest.split_once("```toml\n").unwrap();
        example.split_once("```").unwrap().0.to_owned()
    };
    let (short, example) = (first_example_of("README.md"), first_example_of("docs/risk.md"));
    assert!(short.contains("[[risk.policy]]"));
    assert!(example.contains("[[risk.policy]]") && example.contains("[[risk.list]]"));
    let routes = read("routes.toml");
    let (_, commented) = routes.split_once("# [[risk.policy]]").unwrap();
    let (commented, _) = commented.split_once("\n# --- ").unwrap();
    let commented: String = format!("# [[risk.policy]]{commented}")
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or_default()))
        .collect();
    for example in [short, example, commented] {
        let example = example.replace("file = \"blocked-cards.txt\"", "values = []");
        let site = Site::new();
        site.write("routes.toml", &routes_with(&example));
        let checked = run(weighbridge().current_dir(site.path("")).args(["check", "--allow-missing-secrets"]));
        assert_eq!(checked.code, Some(0), "{example}\n{}", checked.err);
        assert!(checked.out.contains("policy "), "{}", checked.out);
    }
}
