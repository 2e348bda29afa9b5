//! What a planned restart must not forget: how often somebody tried, what merchants spent, and whose reused decisions
//! disagreed.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::process::{Client, PATIENCE, Sandbox, Site, wait_until};
use crate::takeover::{KEY, Served};

const COUNTER: &str = "\n[[risk.velocity]]\nname = \"tries\"\nby = \"user\"\nmeasure = \"count\"\nwindow = \"1h\"\n\
                       limit = 3\nover = \"REJECT\"\n";

fn pay(served: &Served, number: u32) -> Value {
    let body = json!({
        "out_trade_no": format!("p{number}"), "total_amount": "1.13", "currency": "CNY", "subject": "a",
        "merchant": { "id": "m1" }, "user": { "id": "u1" },
    });
    let key = [("authorization".to_owned(), format!("Bearer {KEY}"))];
    let answer = Client::to(served.data).call("POST", "/v1/risk/assessments", &key, &body.to_string()).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn is_over(answer: &Value) -> bool {
    answer["reasons"].to_string().contains("velocity.tries")
}

#[test]
fn row_43_velocity_counters_outlive_a_takeover_and_a_restart_but_no_crash() {
    let upstream = Sandbox::start(&Site::new(), &[]);
    let site = Served::site(&upstream);
    let routes = fs::read_to_string(site.path("routes.toml")).unwrap();
    site.write("routes.toml", &format!("{routes}{COUNTER}"));
    let kept = site.path("data/velocity.bin");
    let start = || Served::start(&site, &upstream, &["--takeover", "takeover"]);

    let first = start();
    for number in 1..=3 {
        assert!(!is_over(&pay(&first, number)), "{number}");
    }
    let second = start();
    assert!(!kept.exists(), "nobody goes on from it twice");
    assert!(!is_over(&pay(&second, 3)), "asked again, and not counted again");
    assert!(is_over(&pay(&second, 4)), "the fourth");
    first.stop();
    second.stop();
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);

    let third = start();
    wait_until(PATIENCE, "the log", || third.log().contains("velocity counters go on"));
    assert!(!kept.exists() && is_over(&pay(&third, 5)), "the fifth");
    third.signal("KILL");
    drop(third);
    let fourth = start();
    assert!(!is_over(&pay(&fourth, 6)), "a crash leaves nothing");
    fourth.stop();

    // A file of somebody else stops nothing.
    fs::write(&kept, "nothing of the kind").unwrap();
    let fifth = start();
    assert!(!is_over(&pay(&fifth, 7)) && !kept.exists());
    wait_until(PATIENCE, "the log", || fifth.log().contains("the file of the last ones is broken"));
    fifth.stop();
}

#[test]
fn row_43_what_callers_and_merchants_spent_outlives_a_takeover_and_a_restart() {
    let upstream = Sandbox::start(&Site::new(), &[]);
    let site = Served::site(&upstream);
    let routes = fs::read_to_string(site.path("routes.toml")).unwrap();
    let budget = "\n[[risk.budget]]\nmerchant = \"m1\"\ntenant = \"shop\"\namount = \"100 CNY\"\nper = \"month\"\n\
                  when_spent = \"score\"\n";
    let routes =
        routes.replace("allow = [\"*\"]", "allow = [\"*\"]\nbudget = { amount = \"500.00 CNY\", per = \"month\" }");
    site.write("routes.toml", &format!("{routes}{budget}"));
    let spent = |served: &Served| {
        let status = served.status();
        let of = |list: &str| status[list][0].clone();
        let caller = of("callers")["budgets"][0]["spent"].clone();
        (caller, of("merchant_budgets")["spent"].clone())
    };
    let start = || Served::start(&site, &upstream, &["--takeover", "takeover"]);
    let first = start();
    (1..=5).for_each(|number| drop(pay(&first, number)));
    let before = spent(&first);
    assert!(before.0.is_string() && before.1.is_string() && before.1 != "0 CNY", "{before:?} {}", first.status());
    let second = start();
    assert_eq!(spent(&second), before);
    first.stop();
    second.stop();
    let third = start();
    assert_eq!(spent(&third), before);
    third.stop();
}

fn metric(served: &Served, sample: &str) -> f64 {
    let text = Client::to(served.admin).call("GET", "/metrics", &[], "").unwrap().body;
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

/// The same payer, card and device every time.
fn pay_again(served: &Served, number: u32, amount: &str, action: &str) {
    let body = json!({
        "out_trade_no": format!("a{number}"), "total_amount": amount, "currency": "CNY", "subject": "a",
        "merchant": { "id": "m1" }, "user": { "id": "u1" },
        "instrument": { "type": "card", "fingerprint": "f1", "bin": "621234", "last4": "1234" },
        "device": { "id": "d1", "ip": "203.0.113.7", "known_since": "2025-06-01T00:00:00Z" },
    });
    let key = [("authorization".to_owned(), format!("Bearer {KEY}"))];
    let answer = Client::to(served.data).call("POST", "/v1/risk/assessments", &key, &body.to_string()).unwrap();
    assert_eq!((answer.json()["action"].as_str(), answer.json()["source"].as_str()), (Some(action), Some("live")));
}

#[test]
fn row_43_a_merchant_whose_reused_decisions_disagreed_stays_off_over_a_takeover_and_a_restart() {
    let upstream = Sandbox::start(&Site::new(), &[]);
    let site = Served::site(&upstream);
    let routes = fs::read_to_string(site.path("routes.toml")).unwrap();
    let reuse = "reuse = { mode = \"first\", max_amount = \"200.00 CNY\", self_audit = 1.0 }\n[model.steady]";
    site.write("routes.toml", &routes.replace("[model.steady]", reuse));
    let kept = site.path("data/reuse.json");
    let start = || Served::start(&site, &upstream, &["--takeover", "takeover"]);
    let off = |served: &Served| metric(served, "weighbridge_reuse_merchants_off");
    let refused = |served: &Served| metric(served, "weighbridge_reuse_refused_total{guard=\"disagreement\"}");

    let first = start();
    for (number, amount, action) in
        [(1, "100.00", "PASS"), (2, "100.13", "REVIEW"), (3, "100.00", "PASS"), (4, "100.91", "REJECT")]
    {
        pay_again(&first, number, amount, action);
    }
    assert_eq!(off(&first), 1.0);
    let second = start();
    assert!(!kept.exists(), "nobody goes on from it twice");
    assert_eq!(off(&second), 1.0);
    // Decisions themselves are not carried over: the first one is only learnt from.
    pay_again(&second, 5, "100.00", "PASS");
    assert_eq!(refused(&second), 0.0);
    pay_again(&second, 6, "100.00", "PASS");
    assert_eq!(refused(&second), 1.0);
    first.stop();
    second.stop();
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);

    let third = start();
    assert_eq!((kept.exists(), off(&third)), (false, 1.0));
    third.signal("KILL");
    drop(third);
    let fourth = start();
    assert_eq!(off(&fourth), 0.0, "a crash leaves nothing");
    fourth.stop();

    fs::write(&kept, "nothing of the kind").unwrap();
    let fifth = start();
    wait_until(PATIENCE, "the log", || fifth.log().contains("the file of it is broken"));
    assert_eq!((kept.exists(), off(&fifth)), (false, 0.0));
    fifth.stop();
}
