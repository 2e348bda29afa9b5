//! Rules of routes: other candidates and times for some calls, from the providers' side.

use serde_json::{Value, json};

use crate::harness::*;

const RULES: &str = r#"
[[model.duo.rule]]
name = "long"
when = 'request.estimated_tokens > 500'
candidates = ["gamma/fast"]

[[model.duo.rule]]
name = "quick team"
when = 'header("x-team") == "quick" && request.stream'
candidates = ["beta/fast", "alpha/fast"]
timeouts = { total = "2s", first_content = "300ms" }

[[model.kept.rule]]
when = 'caller.tenant == "other"'
candidates = ["beta/fast"]

[model.trio]
"#;

fn world() -> World {
    World::with(&Plan::replacing("[model.trio]\n", RULES.trim_start()))
}

async fn ask(world: &World, team: &str, body: &Value) -> Answer {
    let mut request = chat_request(SHOP, body);
    request.headers_mut().insert("x-team", team.parse().unwrap());
    world.call(request).await
}

#[tokio::test(start_paused = true)]
async fn a_call_goes_where_the_first_rule_that_holds_says_and_else_where_the_route_does() {
    let world = world();
    let (short, mut long) = (chat("duo"), chat("duo"));
    long["messages"] = json!([{ "role": "user", "content": "word ".repeat(500) }]);
    ask(&world, "slow", &short).await.assert_served("alpha", 1);
    ask(&world, "quick", &short).await.assert_served("alpha", 1);
    let answer = ask(&world, "quick", &long).await;
    answer.assert_served("gamma", 1);
    assert_eq!(answer.header("wb-route"), "duo", "a rule is no route of its own");
    let answer = ask(&world, "quick", &streamed("duo")).await;
    assert_eq!((answer.status, answer.header("wb-provider"), answer.header("wb-attempts")), (200, "beta", "1"));
    assert_eq!(world.counts(), [2, 1, 1]);
    let routed = world.metric("weighbridge_requests_total", &["route=\"duo\"", "outcome=\"ok\""]);
    assert!((routed - 4.0).abs() < f64::EPSILON, "{routed}");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_rules_times_hold_for_its_calls_and_who_it_does_not_name_is_not_asked() {
    let world = world();
    world.fault("beta", "delay:1s");
    let answer = ask(&world, "quick", &streamed("duo")).await;
    assert_eq!((answer.status, answer.header("wb-provider"), answer.header("wb-attempts")), (200, "alpha", "2"));
    assert!(answer.took.as_millis() < 2_000, "{:?}", answer.took);
    world.fault("gamma", "status:500");
    let mut long = chat("duo");
    long["messages"] = json!([{ "role": "user", "content": "word ".repeat(500) }]);
    assert_eq!(ask(&world, "slow", &long).await.status, 502, "the rule has one candidate");
    assert_eq!(world.counts()[0], 1, "the stream");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn s8_an_answer_of_one_rules_candidates_is_not_given_to_calls_of_another() {
    let world = world();
    world.chat(&chat("kept")).await.assert_served("alpha", 1);
    world.call(chat_request(OFFICE, &chat("kept"))).await.assert_served("beta", 1);
    assert_eq!(world.chat(&chat("kept")).await.header("wb-cache"), "hit");
    assert_eq!(world.call(chat_request(OFFICE, &chat("kept"))).await.header("wb-cache"), "hit");
    assert_eq!(world.counts(), [1, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_read_on_another_thread_comes_under_the_same_rules() {
    let world = world();
    let mut long = chat("duo");
    long["messages"] = json!([{ "role": "user", "content": "word ".repeat(100_000) }]);
    ask(&world, "slow", &long).await.assert_served("gamma", 1);
    world.assert_idle();
}
