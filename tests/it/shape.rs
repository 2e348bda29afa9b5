//! What provider files say of bodies, errors and prices, seen from the provider and from the caller.

use serde_json::{Value, json};

use crate::harness::*;

const KEYS: &str = r#"
body = { disable_fallbacks = true, provider = { allow_fallbacks = false } }
drop = ["logprobs", "logit_bias"]
rename = { max_completion_tokens = "max_tokens" }
error_codes = { Arrearage = "quota-exhausted", no_such_region = "provider-fault" }
"#;

fn world() -> World {
    World::with(&Plan { alpha_keys: KEYS, ..Plan::default() })
}

fn sent(world: &World, provider: &str) -> Value {
    serde_json::from_slice(&world.seen(provider).pop().unwrap().body).unwrap()
}

#[tokio::test(start_paused = true)]
async fn bodies_have_the_providers_shape_and_what_was_left_out_is_told() {
    let world = world();
    let mut body = chat("duo");
    body["logprobs"] = json!(true);
    body["max_completion_tokens"] = json!(50);
    body["seed"] = json!(7);
    let answer = world.chat(&body).await;
    answer.assert_served("alpha", 1);
    assert_eq!(answer.header("wb-left-out"), "logprobs");
    let at_alpha = sent(&world, "alpha");
    assert_eq!(
        (&at_alpha["disable_fallbacks"], &at_alpha["provider"]),
        (&json!(true), &json!({"allow_fallbacks": false}))
    );
    assert_eq!((&at_alpha["max_tokens"], at_alpha.get("max_completion_tokens")), (&json!(50), None));
    assert_eq!(
        (at_alpha.get("logprobs"), &at_alpha["seed"], &at_alpha["model"]),
        (None, &json!(7), &json!("alpha-fast-1"))
    );
    assert_eq!(world.chat(&chat("duo")).await.headers.get("wb-left-out"), None);
}

#[tokio::test(start_paused = true)]
async fn a_failover_leaves_one_providers_shape_behind() {
    let world = world();
    world.faults("alpha", &["status:503"]);
    let mut body = streamed("duo");
    body["logprobs"] = json!(true);
    body["max_completion_tokens"] = json!(50);
    let answer = world.chat(&body).await;
    answer.assert_served("beta", 2);
    assert_eq!(answer.headers.get("wb-left-out"), None, "beta was told everything");
    let mut expected = body.clone();
    expected["model"] = json!("beta-fast-1");
    expected["stream_options"] = json!({"include_usage": true});
    assert_eq!(sent(&world, "beta"), expected);
    let mut expected = sent(&world, "alpha");
    assert_eq!(expected["stream_options"], json!({"include_usage": true}));
    expected.as_object_mut().unwrap().retain(|name, _| name == "logprobs" || name == "max_completion_tokens");
    assert_eq!(expected, json!({}));
}

#[tokio::test(start_paused = true)]
async fn a_carried_call_has_the_shape_too() {
    let world = world();
    let body = json!({"model": "duo", "max_tokens": 9, "top_k": 3, "messages": [{"role": "user", "content": "hi"}]});
    let answer = world.call(post("/v1/messages", SHOP, body.to_string())).await;
    assert_eq!((answer.status, answer.header("wb-left-out")), (200, "top_k"));
    let at_alpha = sent(&world, "alpha");
    assert_eq!(at_alpha["provider"], json!({"allow_fallbacks": false}));
    assert_eq!(at_alpha["max_tokens"], 9, "whatever the carrier called it");
}

#[tokio::test(start_paused = true)]
async fn an_errors_code_says_more_than_its_status() {
    let world = world();
    world.faults("alpha", &["status:400;body={\"error\":{\"message\":\"overdue\",\"code\":\"Arrearage\"}}"]);
    world.chat(&chat("duo")).await.assert_served("beta", 2);
    let failed = world.metric("weighbridge_upstream_attempts_total", &["reason=\"quota_exhausted\""]);
    assert!(failed > 0.9);
    let world = self::world();
    world.faults("alpha", &["status:400;body={\"error\":{\"message\":\"no\",\"type\":\"no_such_region\"}}"]);
    world.chat(&chat("duo")).await.assert_served("beta", 2);
    world.faults("alpha", &["status:400;body={\"error\":{\"message\":\"no\",\"code\":\"else\"}}"]);
    assert_eq!(world.chat(&chat("duo")).await.status, 400);
}

#[tokio::test(start_paused = true)]
async fn cached_tokens_have_their_own_price_and_a_free_model_costs_nothing() {
    const PRICED: &str = r#"
[[model]]
id = "cached"
price = { input_per_million_tokens = "1.00 USD", cached_input_per_million_tokens = "0.10 USD", output_per_million_tokens = "2.00 USD", source = "https://alpha.example/p", checked = "2026-11-22" }
context = 9000
[[model]]
id = "free"
price = "free"
context = 8000
max_output = 4000
"#;
    let routes = ROUTES.replace(r#""kept"]"#, r#""kept", "cached", "free", "both"]"#)
        + "[model.cached]\ncandidates = [\"alpha/cached\"]\n[model.free]\ncandidates = [\"alpha/free\"]\n\
           [model.both]\ncandidates = [\"alpha/cached\", \"alpha/free\"]\n";
    let world = World::with(&Plan { routes, alpha_keys: PRICED, ..Plan::default() });
    let usage = r#"{"prompt_tokens":1000,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":900}}"#;
    let reply = format!(r#"{{"choices":[{{"message":{{"content":"hi"}},"finish_reason":"stop"}}],"usage":{usage}}}"#);
    world.faults("alpha", &[&format!("status:200;content-type=application/json;body={reply}")]);
    world.net.script("alpha", [says(http_reply("200 OK", "connection: close\r\n", &reply))], Link::Simulator);
    let answer = world.chat(&chat("cached")).await;
    assert_eq!((answer.status, answer.header("wb-cost")), (200, "0.00021 USD"), "{}", answer.text());
    assert_eq!(world.chat(&chat("free")).await.header("wb-cost"), "0.00 USD");
    assert!(world.metric("weighbridge_unpriced_requests_total", &[]) < 0.1);
    let model = |id: &'static str| get(&format!("/v1/models/{id}"), SHOP);
    let both = world.call(model("both")).await.json();
    assert_eq!((&both["context_length"], both.get("max_output_tokens")), (&json!(8000), None), "what holds for all");
    assert_eq!(world.call(model("free")).await.json()["max_output_tokens"], 4000);
    assert_eq!(world.call(model("duo")).await.json().get("context_length"), None);
}

#[tokio::test(start_paused = true)]
async fn large_bodies_are_read_elsewhere_and_answered_the_same() {
    let world = world();
    let long = "word ".repeat(200_000);
    for (path, body) in [
        ("/v1/chat/completions", json!({"model": "duo", "messages": [{"role": "user", "content": long}]})),
        (
            "/v1/chat/completions",
            json!({"model": "duo", "stream": true, "messages": [{"role": "user", "content": long}]}),
        ),
        ("/v1/responses", json!({"model": "duo", "input": long})),
        ("/v1/messages", json!({"model": "duo", "max_tokens": 9, "messages": [{"role": "user", "content": long}]})),
    ] {
        world.faults("alpha", &["status:503"]);
        let answer = world.call(post(path, SHOP, body.to_string())).await;
        assert_eq!((answer.status, answer.header("wb-provider")), (200, "beta"), "{path}");
        assert_eq!(sent(&world, "alpha")["disable_fallbacks"], true, "{path}");
        let beta = sent(&world, "beta");
        assert_eq!((&beta["model"], beta.get("disable_fallbacks")), (&json!("beta-fast-1"), None), "{path}");
        assert_eq!(beta["messages"][0]["content"], long.as_str(), "{path}");
    }
    let unknown = json!({"model": "nobody", "messages": [], "pad": long});
    assert_eq!(world.chat(&unknown).await.openai_error(), "model_not_found");
    let twice = format!(r#"{{"model":"duo","model":"duo","messages":[],"pad":"{long}"}}"#);
    assert_eq!(world.call(post("/v1/chat/completions", SHOP, twice)).await.status, 400);
    world.assert_idle();
}
