//! What decisions cost: to the micro-unit, in every place that says so, and never more than a merchant's budget.
//!
//! A plain decision costs 0.02 CNY, one with `fx` 0.05; `receipt_ocr` is 0.01 on top, `wording` 0.005.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;
use weighbridge::gateway::build::build;

use crate::harness::*;
use crate::process::{Client as Wire, PATIENCE, Sandbox, Site};

const LADDER: &str = r#"ladder = ["receipt_ocr", "wording", "fx"]"#;

/// The usual routes with these budgets, each the inside of a table.
fn plan(risk: &str, budgets: &[&str]) -> Plan {
    let tables: String = budgets.iter().map(|budget| format!("\n[[risk.budget]]\n{budget}\n")).collect();
    Plan::replacing("on_exhausted = \"review\"\n", &format!("on_exhausted = \"review\"\n{risk}\n{tables}"))
}

fn world(budgets: &[&str]) -> World {
    World::with(&plan(LADDER, budgets))
}

fn asking(out_trade_no: &str, merchant: &str, features: &[&str]) -> Value {
    let mut body = payment(out_trade_no, "1.00");
    body["merchant"]["id"] = json!(merchant);
    body["features"] = json!(features);
    body
}

/// Spent, the estimated part of it, and held back, in micro-units of the budget at this place.
fn money(world: &World, place: usize) -> (i64, i64, i64) {
    let snapshot = world.live.load();
    let budgets = snapshot.table().risk_route().unwrap().budgets.clone().unwrap();
    let sums = snapshot.merchants().unwrap().spending(&budgets.all()[place]).sums;
    (sums.spent, sums.estimated, sums.reserved)
}

/// What an answer says it cost, in micro-units, read without the code under test.
fn cost(answer: &Answer) -> i64 {
    let decision = answer.json();
    assert_eq!(decision["cost"]["currency"], "CNY", "{decision}");
    let (whole, fraction) = decision["cost"]["amount"].as_str().unwrap().split_once('.').unwrap();
    assert_eq!(answer.header("wb-cost"), format!("{whole}.{fraction} CNY"));
    format!("{whole}{fraction:0<6}").parse().unwrap()
}

fn dropped(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().get("features_dropped").cloned().unwrap_or(Value::Null)
}

/// The features the provider was asked for last.
fn sent(world: &World) -> Value {
    let seen = world.alipay.seen();
    serde_json::from_slice::<Value>(&seen.last().unwrap().body).unwrap()["features"].clone()
}

fn outcomes(world: &World) -> [f64; 4] {
    ["full", "reduced", "overdrawn", "refused"]
        .map(|outcome| world.metric("weighbridge_merchant_budget_calls_total", &[&format!("outcome=\"{outcome}\"")]))
}

/// The acceptance mix: how many of a hundred calls ask for what, and what the published prices make of it, in fen.
const MIX: [(usize, &[&str], i64); 4] =
    [(70, &[], 2), (15, &["fx"], 5), (10, &["receipt_ocr"], 3), (5, &["fx", "receipt_ocr"], 6)];
/// A fiftieth of a day's: unoptimised, a call takes milliseconds. All 100,000 go through the release binary, with a sum made
/// in another language, in `tests/sdk/test_cost.py`.
const CALLS: usize = 2_000;
const CONNECTIONS: usize = 16;

fn asked_for(number: usize) -> (&'static [&'static str], i64) {
    let mut place = number % 100;
    for (share, features, fen) in MIX {
        if place < share {
            return (features, fen);
        }
        place -= share;
    }
    unreachable!("the shares sum up to a hundred")
}

#[tokio::test(start_paused = true)]
async fn c9_a_days_calls_cost_what_the_price_book_says_in_every_ledger() {
    let each = "merchant = \"*\"\namount = \"5000.00 CNY\"\nper = \"month\"";
    let budget = "tenant = \"shop-eu\"\nbudget = { amount = \"5000.00 CNY\", per = \"month\" }";
    let mut plan = plan(LADDER, &[each]);
    plan.routes = plan.routes.replace("tenant = \"shop-eu\"", budget);
    let world = World::with(&plan);
    let call = async |first: usize| {
        let (mut client, mut sum) = (world.client().await, 0);
        for number in (first..CALLS).step_by(CONNECTIONS) {
            let (features, _) = asked_for(number);
            let body = asking(&format!("T{number}"), &format!("m{}", number % 50), features);
            let answer = client.call(risk_request(SHOP, &body)).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            sum += cost(&answer);
        }
        sum
    };
    let answered: i64 = join_all((0..CONNECTIONS).map(call)).await.into_iter().sum();

    // Multiplied, not summed up call by call, and in fen: 2,750 CNY for 100,000.
    let hundreds = i64::try_from(CALLS / 100).unwrap();
    let independent: i64 =
        MIX.iter().map(|&(share, _, fen)| hundreds * i64::try_from(share).unwrap() * fen * 10_000).sum();
    let of_a_day = independent * 100_000 / i64::try_from(CALLS).unwrap();
    assert_eq!(of_a_day, 2_750_000_000);
    assert!((2_000_000_000..=5_000_000_000).contains(&of_a_day));
    assert_eq!(answered, independent, "the answers");
    assert_eq!(money(&world, 0), (independent, 0, 0), "the merchants' budgets");
    let snapshot = world.live.load();
    let live = snapshot.live_callers().find(|live| live.caller.id.as_str() == "shop").unwrap();
    let sums = live.quota.as_ref().unwrap().spending(&live.caller)[0].sums;
    assert_eq!((sums.spent, sums.estimated, sums.reserved), (independent, 0, 0), "the caller's budget");
    let counted = world.metric("weighbridge_cost_micro_total", &["provider=\"alipay\"", "currency=\"CNY\""]);
    assert_eq!(counted as i64, independent, "the metric");
    assert_eq!(world.alipay.billed(), CALLS as u64, "the provider's own count");
    assert_eq!(outcomes(&world), [CALLS as f64, 0.0, 0.0, 0.0]);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn features_are_given_up_in_the_order_of_the_ladder_and_the_score_last() {
    let all = ["fx", "unlisted", "receipt_ocr", "wording"];
    // What is left in the budget, what the provider is asked for then, what was left out, and what it costs.
    let table: [(&str, Value, Value, i64); 5] = [
        ("0.065", json!(all), Value::Null, 65_000),
        ("0.064", json!(["fx", "unlisted", "wording"]), json!(["receipt_ocr"]), 55_000),
        ("0.054", json!(["fx", "unlisted"]), json!(["receipt_ocr", "wording"]), 50_000),
        ("0.049", json!(["unlisted"]), json!(["receipt_ocr", "wording", "fx"]), 20_000),
        ("0.019", json!(["unlisted"]), json!(["receipt_ocr", "wording", "fx"]), 20_000),
    ];
    for (amount, asked, left_out, price) in table {
        let world = world(&[&format!("merchant = \"m1\"\namount = \"{amount} CNY\"\nper = \"day\"")]);
        let answer = world.assess(&asking("T1", "m1", &all)).await;
        assert_eq!((sent(&world), dropped(&answer), cost(&answer)), (asked, left_out, price), "{amount}");
        assert_eq!((&answer.json()["source"], world.scorings()), (&json!("live"), 1), "{amount}");
        assert_eq!(money(&world, 0), (price, 0, 0), "{amount}: what is bought beyond the budget is counted too");
        let expected = if amount == "0.065" { [1.0, 0.0, 0.0, 0.0] } else { [0.0, 1.0, 0.0, 0.0] };
        assert_eq!(outcomes(&world), if amount == "0.019" { [0.0, 0.0, 1.0, 0.0] } else { expected }, "{amount}");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn the_verdict_keeps_what_was_priced_and_a_replay_says_and_costs_the_same() {
    let world = world(&["merchant = \"m1\"\namount = \"0.05 CNY\"\nper = \"day\""]);
    let body = asking("T1", "m1", &["receipt_ocr", "fx"]);
    let first = world.assess(&body).await;
    assert_eq!((dropped(&first), cost(&first)), (json!(["receipt_ocr"]), 50_000));
    let again = world.assess(&body).await;
    assert_eq!((&again.json()["source"], dropped(&again)), (&json!("replayed"), json!(["receipt_ocr"])));
    assert_eq!((money(&world, 0), world.scorings()), ((50_000, 0, 0), 1));
    for feature in ["receipt_ocr", "fx"] {
        let counted = world.metric("weighbridge_features_dropped_total", &[&format!("feature=\"{feature}\"")]);
        assert_eq!(counted, f64::from(u8::from(feature == "receipt_ocr")), "{feature}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_spent_asks_nobody_where_it_says_so_and_never_becomes_a_pass() {
    let strict = "merchant = \"m1\"\namount = \"0.03 CNY\"\nper = \"day\"\nwhen_spent = \"fall_back\"";
    let modes = [
        ("\"review\"", 200, "REVIEW"),
        ("\"reject\"", 200, "REJECT"),
        ("{ accept_up_to = \"50.00 CNY\" }", 200, "REVIEW"),
        ("\"error\"", 503, ""),
    ];
    for (mode, status, action) in modes {
        let mut plan = plan(LADDER, &[strict]);
        plan.routes = plan.routes.replace("on_exhausted = \"review\"", &format!("on_exhausted = {mode}"));
        let world = World::with(&plan);
        assert_eq!(cost(&world.assess(&asking("T1", "m1", &[])).await), 20_000);
        let spent = world.assess(&asking("T2", "m1", &[])).await;
        assert_eq!((spent.status, world.scorings()), (status, 1), "{mode}: {}", spent.text());
        if status == 200 {
            let decision = spent.json();
            assert_eq!((&decision["action"], &decision["source"]), (&json!(action), &json!("fallback")), "{mode}");
            assert_eq!(decision["reasons"][0]["code"], "budget_spent");
            assert_eq!((&decision["cost"], &decision["provider"]), (&Value::Null, &Value::Null));
        }
        let other = world.assess(&asking("T3", "m2", &[])).await;
        assert_eq!((&other.json()["source"], money(&world, 0)), (&json!("live"), (20_000, 0, 0)), "{mode}");
        // A minute later it is another day, and another month.
        sleep(Duration::from_secs(61)).await;
        let next = world.assess(&asking("T2", "m1", &[])).await;
        assert_eq!((&next.json()["source"], money(&world, 0)), (&json!("live"), (20_000, 0, 0)), "{mode}: tomorrow");
        assert_eq!(outcomes(&world)[3], 1.0);
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn many_payments_at_once_cannot_promise_the_same_money_twice() {
    let world = world(&["merchant = \"*\"\namount = \"0.10 CNY\"\nper = \"day\"\nwhen_spent = \"fall_back\""]);
    world.fault("alipay", "delay:300ms");
    let bodies: Vec<_> = (0..20).map(|number| asking(&format!("T{number}"), "m1", &["receipt_ocr"])).collect();
    let answers = join_all(bodies.iter().map(|body| world.assess(body))).await;
    let live = answers.iter().filter(|answer| answer.json()["source"] == "live").collect::<Vec<_>>();
    // Three with their extra, and what is left of 0.10 is not enough for a fourth, with or without.
    assert_eq!((live.len(), world.scorings(), money(&world, 0)), (3, 3, (90_000, 0, 0)));
    let other = world.assess(&asking("T99", "m2", &["receipt_ocr"])).await;
    assert_eq!(cost(&other), 30_000, "another merchant has its own");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn what_never_reached_the_provider_costs_nothing_and_what_may_have_costs_its_estimate() {
    let budget = ["merchant = \"m1\"\namount = \"1.00 CNY\"\nper = \"day\""];
    type Prepare = fn(&World);
    let free: [(&str, Prepare); 4] = [
        ("nobody there", |world| world.net.always("alipay", Link::Refused)),
        ("no token", |world| world.fault("alipay.token", "status:500")),
        ("refused at the door", |world| world.fault("alipay", "status:403")),
        ("too many", |world| world.fault("alipay", "status:429")),
    ];
    for (what, prepare) in free {
        let world = world(&budget);
        prepare(&world);
        assert_eq!(world.assess(&asking("T1", "m1", &["fx"])).await.json()["source"], "fallback", "{what}");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(money(&world, 0), (0, 0, 0), "{what}");
        world.assert_idle();
    }
    for fault in ["status:500", "status:503", "reset", "stall", "cut:10", "unsigned", "garbage", "delay:5s"] {
        let world = world(&budget);
        world.fault("alipay", fault);
        let answer = world.assess(&asking("T1", "m1", &["fx"])).await;
        assert_eq!((&answer.json()["source"], &answer.json()["cost"]), (&json!("fallback"), &Value::Null), "{fault}");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(money(&world, 0), (50_000, 50_000, 0), "{fault}");
        let lost =
            world.metric("weighbridge_extra_cost_micro_total", &["purpose=\"no_verdict\"", "provider=\"alipay\""]);
        assert_eq!(lost, 50_000.0, "{fault}");
        world.assert_idle();
    }
    let world = world(&budget);
    world.faults("alipay", &["delay:1s"]);
    assert_eq!(world.assess(&asking("T1", "m1", &[])).await.json()["source"], "fallback");
    assert_eq!(money(&world, 0), (0, 0, 20_000), "held back while the late verdict may still come");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(money(&world, 0), (20_000, 0, 0), "and paid as what it cost");
}

#[tokio::test(start_paused = true)]
async fn a_category_shares_one_budget_and_a_tenants_budget_is_nobody_elses() {
    let budgets = [
        "category = \"travel\"\namount = \"0.05 CNY\"\nper = \"day\"\nwhen_spent = \"fall_back\"",
        "merchant = \"m1\"\ntenant = \"other\"\namount = \"0.01 CNY\"\nper = \"day\"\nwhen_spent = \"fall_back\"",
    ];
    let mut plan = plan("", &budgets);
    plan.routes = plan.routes.replace("allow = [\"duo\", \"kept\"]", "allow = [\"risk\"]");
    let world = World::with(&plan);
    let travel = |number: &str, merchant: &str| {
        let mut body = asking(number, merchant, &[]);
        body["merchant"]["category"] = json!("travel");
        body
    };
    for (number, merchant, source) in [("T1", "m1", "live"), ("T2", "m2", "live"), ("T3", "m3", "fallback")] {
        assert_eq!(world.assess(&travel(number, merchant)).await.json()["source"], source, "{number}");
    }
    assert_eq!(world.assess(&asking("T4", "m3", &[])).await.json()["source"], "live", "another category");
    let other = world.call(risk_request(OFFICE, &asking("T5", "m1", &[]))).await;
    assert_eq!(other.json()["source"], "fallback", "the other tenant's m1 has a budget of its own");
    assert_eq!((money(&world, 0), money(&world, 1)), ((40_000, 0, 0), (0, 0, 0)));
}

#[tokio::test(start_paused = true)]
async fn extras_stop_early_where_a_budget_keeps_its_rest_for_scores() {
    let world = world(&["merchant = \"m1\"\namount = \"0.10 CNY\"\nper = \"day\"\nladder_from = 0.5"]);
    let costs: BTreeMap<usize, i64> = {
        let mut costs = BTreeMap::new();
        for number in 0..4 {
            let answer = world.assess(&asking(&format!("T{number}"), "m1", &["receipt_ocr"])).await;
            costs.insert(number, cost(&answer));
        }
        costs
    };
    assert_eq!(costs.into_values().collect::<Vec<_>>(), [30_000, 20_000, 20_000, 20_000]);
    assert_eq!(outcomes(&world), [1.0, 3.0, 0.0, 0.0]);
}

#[tokio::test(start_paused = true)]
async fn a_reload_changes_limits_at_once_and_forgets_nothing() {
    let day = |amount: &str| {
        format!("merchant = \"m1\"\namount = \"{amount} CNY\"\nper = \"day\"\nwhen_spent = \"fall_back\"")
    };
    let world = world(&[&day("1.00")]);
    assert_eq!(cost(&world.assess(&asking("T1", "m1", &[])).await), 20_000);
    let reload = |budgets: &[&str]| {
        let before = world.live.load_full();
        world.live.store(std::sync::Arc::new(build(table(&plan(LADDER, budgets)), Some(&before), &world.shared)));
    };
    let limit = || world.metric("weighbridge_merchant_budget_limit_micro", &["name=\"m1\"", "whose=\"merchant\""]);
    reload(&[&day("0.03")]);
    assert_eq!((money(&world, 0), limit()), ((20_000, 0, 0), 30_000.0));
    assert_eq!(world.assess(&asking("T2", "m1", &[])).await.json()["source"], "fallback");
    reload(&[&day("2.00")]);
    assert_eq!(world.assess(&asking("T2", "m1", &[])).await.json()["source"], "live");
    assert_eq!(money(&world, 0), (40_000, 0, 0));
    world.live.store(std::sync::Arc::new({
        let before = world.live.load_full();
        build(table(&Plan::default()), Some(&before), &world.shared)
    }));
    assert_eq!(limit(), 0.0, "it limits nothing any more");
    assert_eq!(world.assess(&asking("T3", "m1", &[])).await.json()["source"], "live");
}

const CHECKOUT: &str = "wb-demo-checkout-0123456789abcdef";

fn site() -> Site {
    let site = Site::new();
    let routes = std::fs::read_to_string(crate::process::repository().join("routes.toml")).unwrap();
    let budgets = "\n[[risk.budget]]\nmerchant = \"m-1\"\namount = \"9.00 CNY\"\nper = \"month\"\n\
                   \n[[risk.budget]]\nmerchant = \"*\"\namount = \"1.00 CNY\"\nper = \"month\"\n";
    site.write("routes.toml", &format!("{routes}{budgets}"));
    site
}

fn assess(sandbox: &Sandbox, number: &str, merchant: &str) -> Value {
    let headers = [
        ("authorization".to_owned(), format!("Bearer {CHECKOUT}")),
        ("content-type".to_owned(), "application/json".to_owned()),
    ];
    let body = asking(number, merchant, &["fx"]).to_string();
    let answer = Wire::to(sandbox.data).call("POST", "/v1/risk/assessments", &headers, &body).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[test]
fn merchants_spending_is_on_the_status_page_without_their_names_and_outlives_a_restart() {
    let site = site();
    let spent = |sandbox: &Sandbox| {
        let status = sandbox.status();
        let budgets = status["merchant_budgets"].as_array().unwrap();
        assert!(!status.to_string().contains("m-secret"), "{status}");
        assert_eq!((&budgets[0]["whose"], &budgets[0]["name"]), (&json!("merchant"), &json!("m-1")));
        assert_eq!((&budgets[0]["limit"], &budgets[1]["name"]), (&json!("9.00"), &json!("*")));
        assert!(budgets[0]["resets_at"].as_str().unwrap().ends_with("-01T00:00:00.000Z"));
        let of = |place: usize| budgets[place]["spent"].as_str().unwrap().to_owned();
        (of(0), of(1), budgets[1]["merchants"].as_u64().unwrap())
    };
    let sandbox = Sandbox::start(&site, &["--data-dir", "kept"]);
    assert_eq!(spent(&sandbox), ("0.00".to_owned(), "0.00".to_owned(), 0));
    assert_eq!(assess(&sandbox, "T1", "m-1")["cost"]["amount"], "0.05");
    for number in ["T2", "T3"] {
        assess(&sandbox, number, "m-secret");
    }
    let after = ("0.05".to_owned(), "0.10".to_owned(), 1);
    assert_eq!(spent(&sandbox), after);
    sandbox.signal("TERM");
    assert!(sandbox.ended(PATIENCE).0.success());
    let file = std::fs::read_to_string(site.path("kept/spending.json")).unwrap();
    assert!(file.contains("\"merchants\"") && !file.contains("m-secret") && !file.contains("m-1\""), "{file}");

    let sandbox = Sandbox::start(&site, &["--data-dir", "kept"]);
    assert_eq!(spent(&sandbox), after);
    assess(&sandbox, "T4", "m-secret");
    assert_eq!(spent(&sandbox), ("0.05".to_owned(), "0.15".to_owned(), 1));
}
