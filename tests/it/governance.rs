//! Callers and their means: tokens a minute and budgets, held back before a call and settled with what it really cost.
//!
//! Every simulated model costs 1 USD a million tokens in and 2 USD out, so a token in is one micro-unit and one out two; a
//! decision costs 0.02 CNY.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::sleep;
use weighbridge::flight::arrival::LiveCaller;
use weighbridge::gateway::build::build;

use crate::harness::*;
use crate::process::{Client as Wire, PATIENCE, Sandbox, Site};

/// The shop with these further keys.
fn plan(keys: &str) -> Plan {
    Plan::replacing("tenant = \"shop-eu\"", &format!("tenant = \"shop-eu\"\n{keys}"))
}

fn world(keys: &str) -> World {
    World::with(&plan(keys))
}

fn shop(world: &World) -> Arc<LiveCaller> {
    Arc::clone(world.live.load().live_callers().find(|live| live.caller.id.as_str() == "shop").unwrap())
}

/// Spent, the estimated part of it, and held back, in micro-units of the shop's first budget.
fn money(world: &World) -> (i64, i64, i64) {
    let live = shop(world);
    let sums = live.quota.as_ref().unwrap().spending(&live.caller)[0].sums;
    (sums.spent, sums.estimated, sums.reserved)
}

fn tokens_left(world: &World) -> u32 {
    let live = shop(world);
    live.quota.as_ref().unwrap().room(live.caller.tokens_per_minute.unwrap()).remaining
}

/// What an answer really used: prompt and completion tokens.
fn used(answer: &Answer) -> (i64, i64) {
    let usage = &answer.json()["usage"];
    (usage["prompt_tokens"].as_i64().unwrap(), usage["completion_tokens"].as_i64().unwrap())
}

fn cost(answer: &Answer) -> i64 {
    let (input, output) = used(answer);
    input + 2 * output
}

/// What a chat request that sets no limit is taken to need.
fn estimate(body: &Value) -> i64 {
    i64::try_from(body.to_string().len().div_ceil(4)).unwrap() + 1_024
}

fn estimated_cost(body: &Value) -> i64 {
    estimate(body) + 1_024
}

/// What programs compare, wherever the dialect has it.
fn code(error: &Value) -> &Value {
    if error["code"].is_null() { &error["details"]["error_code"] } else { &error["code"] }
}

fn in_every_dialect() -> [(&'static str, Request<Full<bytes::Bytes>>); 3] {
    let ask = |path: &'static str, body: Value| (path, post(path, SHOP, body.to_string()));
    let messages = json!([{"role": "user", "content": "hello there"}]);
    [
        ask("/v1/chat/completions", json!({"model": "duo", "messages": messages})),
        ask("/v1/responses", json!({"model": "duo", "input": "hello there"})),
        ask("/v1/messages", json!({"model": "duo", "max_tokens": 1_024, "messages": messages})),
    ]
}

#[tokio::test(start_paused = true)]
async fn tokens_are_taken_before_a_call_settled_after_it_and_told_on_every_answer() {
    let world = world("limits = { tokens_per_minute = 6_000 }");
    let answer = world.chat(&chat("duo")).await;
    answer.assert_served("alpha", 1);
    let (input, output) = used(&answer);
    let left = (6_000 - input - output).to_string();
    assert_eq!(answer.header("x-ratelimit-limit-tokens"), "6000");
    assert_eq!(answer.header("x-ratelimit-remaining-tokens"), left);
    assert_eq!(answer.header("x-ratelimit-reset-tokens"), format!("{}ms", (input + output) * 10));
    assert_eq!(answer.header("x-ratelimit-limit-requests"), "", "no limit, no header of ours");

    let mut stream = world.open(&streamed("duo")).await;
    let held: i64 = stream.response.headers()["x-ratelimit-remaining-tokens"].to_str().unwrap().parse().unwrap();
    assert!((6_000 - 1_200..6_000 - 1_000).contains(&held), "{held}: the estimate is held back while it runs");
    stream.rest().await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(tokens_left(&world), 6_000);
    let others = world.call(chat_request(OFFICE, &chat("duo"))).await;
    assert_eq!(others.header("x-ratelimit-limit-tokens"), "");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_caller_over_its_tokens_is_refused_in_its_own_dialect_and_told_when_they_fit() {
    let world = world("limits = { tokens_per_minute = 2_000 }");
    let mut stream = world.open(&streamed("duo")).await;
    for (path, request) in in_every_dialect() {
        let refused = world.call(request).await;
        assert_eq!(refused.status, 429, "{path}");
        let error = &refused.json()["error"];
        assert_eq!(
            (code(error), &error["type"]),
            (&json!("rate_limit_exceeded"), &json!("rate_limit_error")),
            "{path}"
        );
        let wait: u64 = refused.header("retry-after-ms").parse().unwrap();
        assert!((1_000..5_000).contains(&wait), "{path}: {wait}");
        assert_eq!(refused.header("retry-after"), wait.div_ceil(1_000).to_string());
        assert_eq!((refused.header("x-should-retry"), refused.header("x-ratelimit-limit-tokens")), ("", "2000"));
        let left: u64 = refused.header("x-ratelimit-remaining-tokens").parse().unwrap();
        assert!(left < 1_000, "{path}: {left}");
    }
    assert_eq!(world.counts(), [1, 0, 0], "nobody was asked");
    assert!(
        (world.metric("weighbridge_quota_refused_total", &["caller=\"shop\"", "tokens_per_minute"]) - 3.0).abs() < 0.1
    );
    let refused = world.chat(&chat("duo")).await;
    stream.rest().await;
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    // Also without that refund, the wait that was told would have been enough.
    assert!(refused.header("retry-after-ms").parse::<u64>().unwrap() < 60_000);
    let payment = world.assess(&payment("T1", "1.00")).await;
    assert_eq!((payment.status, payment.header("x-ratelimit-limit-tokens")), (200, "2000"));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn what_reached_nobody_or_came_from_memory_costs_nothing() {
    let world = world("limits = { tokens_per_minute = 6_000 }\nbudget = { amount = \"1.00 USD\", per = \"day\" }");
    for fault in ["status:503", "refuse", "status:400"] {
        world.fault("alpha", fault);
        world.fault("beta", fault);
        assert!(world.chat(&chat("duo")).await.status >= 400);
        assert_eq!((tokens_left(&world), money(&world)), (6_000, (0, 0, 0)), "{fault}");
    }
    world.faults.clear("alpha");
    world.faults.clear("beta");
    sleep(Duration::from_secs(120)).await;
    let first = world.chat(&chat("kept")).await;
    let spent = money(&world);
    assert_eq!(spent, (cost(&first), 0, 0));
    let left = tokens_left(&world);
    for _ in 0..3 {
        let again = world.chat(&chat("kept")).await;
        assert_eq!(again.header("wb-cache"), "hit");
        assert_eq!(again.header("x-ratelimit-remaining-tokens"), left.to_string());
    }
    assert_eq!((money(&world), tokens_left(&world)), (spent, left));
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_gone_is_insufficient_quota_in_every_dialect_and_no_sdk_comes_back() {
    let body = chat("duo");
    // Room for one estimate; once something is spent, for none.
    let amount = estimated_cost(&body) + 15;
    let world = world(&format!("budget = {{ amount = \"0.{amount:06} USD\", per = \"day\" }}"));
    let answer = world.chat(&body).await;
    answer.assert_served("alpha", 1);
    for (path, request) in in_every_dialect() {
        let refused = world.call(request).await;
        assert_eq!(refused.status, 429, "{path}: {}", refused.text());
        let error = &refused.json()["error"];
        let kind = if path == "/v1/messages" { "rate_limit_error" } else { "insufficient_quota" };
        assert_eq!((code(error), &error["type"]), (&json!("insufficient_quota"), &json!(kind)), "{path}");
        assert!(error["message"].as_str().unwrap().contains("2026-12-01T00:00:00.000Z"), "{error}");
        assert_eq!(refused.header("x-should-retry"), "false", "{path}");
        assert_eq!((refused.header("retry-after"), refused.header("retry-after-ms")), ("", ""), "{path}");
        assert_eq!(refused.header("wb-attempts"), "0");
    }
    assert_eq!((world.counts(), money(&world)), ([1, 0, 0], (cost(&answer), 0, 0)));
    assert!((world.metric("weighbridge_quota_refused_total", &["caller=\"shop\"", "\"budget\""]) - 3.0).abs() < 0.1);
    world.call(chat_request(OFFICE, &body)).await.assert_served("alpha", 1);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn many_calls_at_once_cannot_promise_more_than_there_is() {
    let body = chat("duo");
    let amount = 3 * estimated_cost(&body);
    let world = world(&format!("budget = {{ amount = \"0.{amount:06} USD\", per = \"month\" }}"));
    world.fault("alpha", "delay:1s");
    let answers = join_all((0..10).map(|_| world.chat(&body))).await;
    let served: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
    assert_eq!((served.len(), world.counts()), (3, [3, 0, 0]));
    assert!(
        answers
            .iter()
            .filter(|answer| answer.status != 200)
            .all(|answer| answer.openai_error() == "insufficient_quota")
    );
    assert_eq!(money(&world), (served.iter().map(|answer| cost(answer)).sum(), 0, 0));
    world.faults.clear("alpha");
    world.chat(&body).await.assert_served("alpha", 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_settled_with_the_providers_count_and_a_cancelled_one_with_what_was_seen() {
    let budget = "limits = { tokens_per_minute = 6_000 }\nbudget = { amount = \"1.00 USD\", per = \"day\" }";
    let world = world(budget);
    let whole = world.chat(&chat("solo")).await;
    let before = money(&world);
    world.chat(&streamed("solo")).await.assert_served("alpha", 1);
    assert_eq!(money(&world), (2 * before.0, 0, 0), "the same words, whole or in events");

    let spent = money(&world).0;
    let mut stream = world.open(&streamed("solo")).await;
    for _ in 0..3 {
        stream.next().await.unwrap();
    }
    drop(stream);
    sleep(Duration::from_millis(100)).await;
    let (after, estimated, reserved) = money(&world);
    let paid = after - spent;
    assert_eq!((estimated, reserved), (paid, 0), "nobody counted, so it is an estimate");
    let prompt = estimate(&streamed("solo")) - 1_024;
    assert!(paid >= prompt + 2 * 3 && paid < cost(&whole) + prompt + 30, "{paid}");
    let seen = world.seen("alpha");
    assert!(seen.last().unwrap().cancelled, "the provider was told");

    let spent = after;
    world.fault("alpha", "cut:4");
    let cut = world.chat(&streamed("solo")).await;
    assert!(cut.text().contains("upstream_truncated"), "{}", cut.text());
    let paid = money(&world).0 - spent;
    assert!(paid >= prompt + 2 * 4 && paid < prompt + 2 * 10, "{paid}");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_failover_pays_for_who_answered_and_for_who_was_left_while_working() {
    let world = world("budget = { amount = \"1.00 USD\", per = \"day\" }");
    world.fault("alpha", "status:503");
    let answer = world.chat(&chat("duo")).await;
    answer.assert_served("beta", 2);
    assert_eq!(money(&world), (cost(&answer), 0, 0), "who refuses does not bill");

    world.fault("alpha", "stall");
    let body = chat("duo");
    let answer = world.chat(&body).await;
    answer.assert_served("beta", 2);
    assert_eq!(money(&world), (2 * cost(&answer) + estimated_cost(&body), estimated_cost(&body), 0));

    // The client has no time left, or no wish to wait: the provider was working all the same.
    world.fault("alpha", "stall");
    let mut hurried = chat_request(SHOP, &body);
    hurried.headers_mut().insert("wb-timeout-ms", "500".parse().unwrap());
    let (before, _, _) = money(&world);
    assert_eq!(world.call(hurried).await.status, 504);
    assert_eq!(money(&world).0, before + estimated_cost(&body));
    let gone = tokio::time::timeout(Duration::from_millis(500), world.chat(&body)).await;
    assert!(gone.is_err());
    sleep(Duration::from_millis(10)).await;
    assert_eq!((money(&world).0, money(&world).2), (before + 2 * estimated_cost(&body), 0));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn days_and_months_begin_again_at_midnight_utc() {
    let body = chat("duo");
    let day = estimated_cost(&body) + 15;
    let budgets = format!(
        "budget = [{{ amount = \"0.{day:06} USD\", per = \"day\" }}, {{ amount = \"0.{:06} USD\", per = \"month\" }}]",
        day + 100
    );
    let world = world(&budgets);
    let answer = world.chat(&body).await;
    answer.assert_served("alpha", 1);
    assert_eq!(world.chat(&body).await.openai_error(), "insufficient_quota");
    let mut night = world.open(&streamed("duo")).await;
    assert_eq!(night.response.status(), 429, "also a stream");
    night.rest().await;

    // It is 23:59 on the last of November.
    sleep(Duration::from_secs(61)).await;
    world.chat(&body).await.assert_served("alpha", 1);
    let refused = world.chat(&body).await;
    assert!(
        refused.text().contains("for the day is less than this call may cost; a new one begins at 2026-12-02"),
        "{}",
        refused.text()
    );
    for _ in 0..20 {
        sleep(Duration::from_secs(86_400)).await;
        if world.chat(&body).await.status == 429 {
            break;
        }
    }
    let refused = world.chat(&body).await;
    assert!(
        refused.text().contains("for the month is less than this call may cost; a new one begins at 2027-01-01"),
        "{}",
        refused.text()
    );
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_was_spent_and_what_is_held_back() {
    let budget = |amount: &str| {
        plan(&format!(
            "limits = {{ tokens_per_minute = 6_000 }}\nbudget = {{ amount = \"{amount} USD\", per = \"day\" }}"
        ))
    };
    let world = World::with(&budget("1.00"));
    let load = |plan: &Plan| {
        let before = world.live.load_full();
        world.live.store(Arc::new(build(table(plan), Some(&before), &world.shared)));
    };
    let answer = world.chat(&chat("solo")).await;
    let mut stream = world.open(&streamed("solo")).await;
    let (spent, _, reserved) = money(&world);
    assert!(reserved > 2_000);
    load(&budget("0.000010"));
    assert_eq!(money(&world), (spent, 0, reserved));
    assert_eq!(world.chat(&chat("solo")).await.openai_error(), "insufficient_quota");
    stream.rest().await;
    assert_eq!(money(&world), (2 * cost(&answer), 0, 0), "settled into the same purse");
    load(&budget("2.00"));
    world.chat(&chat("solo")).await.assert_served("alpha", 1);
    assert_eq!(money(&world).0, 3 * cost(&answer));
    assert!(tokens_left(&world) < 6_000);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn what_no_budget_can_count_is_told_and_refused_only_where_that_is_wished() {
    // In another currency than the providers bill in.
    let other = world("budget = { amount = \"1.00 CNY\", per = \"day\" }");
    other.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert_eq!(money(&other), (0, 0, 0));
    assert_eq!(shop(&other).quota.as_ref().unwrap().unpriced(), 1);
    assert!((other.metric("weighbridge_unpriced_requests_total", &[]) - 1.0).abs() < 0.1);
    assert!(
        other.metric("weighbridge_cost_micro_total", &["currency=\"USD\""]) > 0.0,
        "what it cost is known all the same"
    );

    // No price at all.
    let unpriced = |choice: &str| {
        let mut plan = plan(&format!("budget = {{ amount = \"1.00 USD\", per = \"day\" }}\n{choice}"));
        plan.routes = plan.routes.replace("candidates = [\"alpha/fast\"]", "candidates = [\"alpha/unpriced\"]");
        World::with(&plan)
    };
    let lenient = unpriced("");
    let answer = lenient.chat(&chat("solo")).await;
    assert_eq!((answer.status, answer.header("wb-cost")), (200, "unknown"));
    assert_eq!(shop(&lenient).quota.as_ref().unwrap().unpriced(), 1);
    assert!((lenient.metric("weighbridge_unpriced_requests_total", &[]) - 1.0).abs() < 0.1, "once");

    let strict = unpriced("unpriced = \"refuse\"");
    let refused = strict.chat(&chat("solo")).await;
    assert_eq!((refused.status, refused.openai_error().as_str()), (403, "price_unknown"));
    assert_eq!(
        (&refused.json()["error"]["type"], &refused.json()["error"]["param"]),
        (&json!("permission_error"), &json!("model"))
    );
    assert_eq!(strict.counts(), [0, 0, 0]);
    strict.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert!((strict.metric("weighbridge_quota_refused_total", &["price_unknown"]) - 1.0).abs() < 0.1);
}

#[tokio::test(start_paused = true)]
async fn decisions_are_paid_from_a_budget_of_their_currency_once_and_never_refused() {
    let world = world("budget = { amount = \"0.03 CNY\", per = \"day\" }");
    for (number, spent) in [(1, 20_000), (2, 40_000), (3, 60_000)] {
        let decided = world.assess(&payment(&format!("T{number}"), "88.00")).await;
        assert_eq!((decided.status, &decided.json()["source"]), (200, &json!("live")));
        assert_eq!(money(&world), (spent, 0, 0));
    }
    let again = world.assess(&payment("T1", "88.00")).await;
    assert_eq!((&again.json()["source"], money(&world)), (&json!("replayed"), (60_000, 0, 0)));
    // A verdict that came late was paid for as well.
    let late = world.assess(&payment("T4", "88.50")).await;
    assert_eq!((&late.json()["source"], money(&world).0), (&json!("fallback"), 60_000));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(money(&world), (80_000, 0, 0));
    assert_eq!(world.scorings(), 4);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn an_embedding_has_no_words_and_costs_its_prompt() {
    let plan = Plan {
        alpha_offers: r#""chat.completions", "embeddings""#,
        ..plan("budget = { amount = \"1.00 USD\", per = \"day\" }")
    };
    let world = World::with(&plan);
    let request = post("/v1/embeddings", SHOP, json!({"model": "duo", "input": "one two three"}).to_string());
    let answer = world.call(request).await;
    let tokens = answer.json()["usage"]["prompt_tokens"].as_i64().unwrap();
    assert_eq!((money(&world), answer.status), ((tokens, 0, 0), 200));
    assert_eq!(answer.header("wb-cost"), format!("0.{tokens:06} USD"));
}

const BACKOFFICE: &str = "wb-demo-backoffice-0123456789abcdef";

/// The repository's routes; the caller `backoffice` has this budget and a model with a price.
fn site_with(budget: &str) -> Site {
    let site = Site::new();
    set_budget(&site, budget);
    site
}

fn set_budget(site: &Site, budget: &str) {
    let routes = std::fs::read_to_string(crate::process::repository().join("routes.toml")).unwrap();
    let line = "limits = { requests_per_minute = 600, in_flight = 20 }";
    let limits = "limits = { requests_per_minute = 600, in_flight = 20, tokens_per_minute = 50_000 }";
    assert!(routes.contains(line));
    let routes = routes.replace(line, &format!("{limits}\nbudget = {budget}"));
    site.write(
        "routes.toml",
        &routes.replace("allow = [\"summary\",", "allow = [\"openai/gpt-5.6-luna\", \"summary\","),
    );
}

fn backoffice(sandbox: &Sandbox) -> Value {
    let status = sandbox.status();
    status["callers"].as_array().unwrap().iter().find(|caller| caller["id"] == "backoffice").unwrap().clone()
}

fn ask(sandbox: &Sandbox) -> crate::process::Answer {
    Wire::to(sandbox.data).chat(BACKOFFICE, "openai/gpt-5.6-luna", &json!({})).unwrap()
}

#[test]
fn spending_is_on_the_status_page_and_in_the_metrics_and_outlives_a_reload() {
    let site = site_with("{ amount = \"5.00 USD\", per = \"day\" }");
    let sandbox = Sandbox::start(&site, &[]);
    let answer = ask(&sandbox);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let shown = backoffice(&sandbox);
    let budget = &shown["budgets"][0];
    assert_eq!((&budget["per"], &budget["currency"], &budget["limit"]), (&json!("day"), &json!("USD"), &json!("5.00")));
    assert_eq!(format!("{} USD", budget["spent"].as_str().unwrap()), answer.header("wb-cost").unwrap());
    assert_eq!((&budget["reserved"], &budget["estimated"]), (&json!("0.00"), &json!("0.00")));
    assert!(budget["resets_at"].as_str().unwrap().ends_with("T00:00:00.000Z"));
    assert_eq!((&shown["tokens"]["limit"], &shown["unpriced"]), (&json!(50_000), &json!(0)));
    let labels = r#"{caller="backoffice",per="day",currency="USD"}"#;
    assert!(sandbox.metric(&format!("weighbridge_budget_spent_micro{labels}")) > 0.0);
    assert_eq!(sandbox.metric(&format!("weighbridge_budget_limit_micro{labels}")), 5_000_000.0);

    set_budget(&site, "{ amount = \"0.01 USD\", per = \"day\" }");
    assert_eq!(sandbox.reload().status, 200);
    let after = &backoffice(&sandbox)["budgets"][0];
    assert_eq!((&after["spent"], &after["limit"]), (&budget["spent"], &json!("0.01")));
    assert_eq!(sandbox.metric(&format!("weighbridge_budget_limit_micro{labels}")), 10_000.0);
}

#[test]
fn spending_outlives_a_restart_and_a_broken_file_stops_nothing() {
    let site = site_with("[{ amount = \"5.00 USD\", per = \"month\" }]");
    let spent = |sandbox: &Sandbox| backoffice(sandbox)["budgets"][0]["spent"].as_str().unwrap().to_owned();
    let sandbox = Sandbox::start(&site, &["--data-dir", "kept/here"]);
    assert_eq!(ask(&sandbox).status, 200);
    let before = spent(&sandbox);
    assert_ne!(before, "0.00");
    sandbox.signal("TERM");
    assert!(sandbox.ended(PATIENCE).0.success());
    let file = std::fs::read_to_string(site.path("kept/here/spending.json")).unwrap();
    assert!(file.contains("\"backoffice\"") && !file.contains(BACKOFFICE), "{file}");

    let sandbox = Sandbox::start(&site, &["--data-dir", "kept/here"]);
    assert_eq!(spent(&sandbox), before);
    sandbox.signal("TERM");
    drop(sandbox.ended(PATIENCE));

    site.write("kept/here/spending.json", "{ CANARY");
    let sandbox = Sandbox::start(&site, &["--data-dir", "kept/here"]);
    assert_eq!((spent(&sandbox).as_str(), ask(&sandbox).status), ("0.00", 200));
    assert!(site.path("kept/here/spending.json.broken").exists());
    sandbox.signal("TERM");
    let (_, log) = sandbox.ended(PATIENCE);
    assert!(log.contains("cannot be read") && !log.contains("CANARY"), "{log}");

    let sandbox = Sandbox::start(&site, &[]);
    assert_eq!(spent(&sandbox), "0.00", "a sandbox keeps nothing unless told where");
    assert!(!site.path("data").exists());
}
