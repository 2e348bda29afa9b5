//! Who is asked first, and when another one is: as callers and providers see it.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::sleep;
use weighbridge::gateway::build::build;
use weighbridge::upstream::breaker::State;

use crate::harness::*;

const DUO: &str = "[model.duo]\ncandidates = [\"alpha/fast\", \"beta/fast\"]\n";
const TRIO: &str = "[model.trio]\ncandidates = [\"alpha/fast\", \"beta/fast\", \"gamma/fast\"]\n";

fn plan(before: &str, after: &str) -> Plan {
    Plan::replacing(before, after)
}

fn named(id: &str, body: &Value) -> Request<Full<bytes::Bytes>> {
    let mut request = chat_request(SHOP, body);
    request.headers_mut().insert("x-request-id", id.parse().unwrap());
    request
}

// --- orders ---

#[tokio::test(start_paused = true)]
async fn calls_are_shared_out_by_weight_and_a_weight_of_0_is_a_last_resort() {
    let candidates = r#"{ use = "alpha/fast", weight = 3 }, "beta/fast", { use = "gamma/fast", weight = 0 }"#;
    let world = World::with(&plan(TRIO, &format!("[model.trio]\norder = \"weighted\"\ncandidates = [{candidates}]\n")));
    let mut client = world.client().await;
    for call in 0..400 {
        assert_eq!(client.call(named(&format!("call-{call}"), &chat("trio"))).await.status, 200);
    }
    let [alpha, beta, gamma] = world.counts();
    assert!((260..=340).contains(&alpha) && alpha + beta == 400 && gamma == 0, "{:?}", world.counts());
    for provider in ["alpha", "beta"] {
        world.fault(provider, "refuse");
    }
    world.chat(&chat("trio")).await.assert_served("gamma", 3);
}

#[tokio::test(start_paused = true)]
async fn the_same_call_is_led_the_same_way() {
    let world = World::with(&plan(TRIO, &TRIO.replace("candidates", "order = \"weighted\"\ncandidates")));
    for call in ["a", "b", "c", "d"] {
        let mut first = world.call(named(call, &chat("trio"))).await;
        for _ in 0..3 {
            let again = world.call(named(call, &chat("trio"))).await;
            assert_eq!(again.header("wb-provider"), first.header("wb-provider"));
            first = again;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_faster_one_is_asked_and_the_slow_one_tried_again_later() {
    let world = World::with(&plan(DUO, &DUO.replace("candidates", "order = \"fastest\"\ncandidates")));
    world.fault("alpha", "delay:2s");
    for _ in 0..20 {
        assert_eq!(world.chat(&streamed("duo")).await.status, 200);
    }
    assert_eq!(world.counts(), [1, 19, 0], "one try was enough");
    // What was slow once is forgotten bit by bit.
    world.faults.clear("alpha");
    sleep(Duration::from_secs(600)).await;
    for _ in 0..40 {
        world.chat(&streamed("duo")).await;
        sleep(Duration::from_secs(10)).await;
    }
    let [alpha, beta, _] = world.counts();
    assert!(alpha > 5 && beta > 24, "{alpha} and {beta}");
}

#[tokio::test(start_paused = true)]
async fn nobody_rushes_to_an_unmeasured_candidate() {
    let world = World::with(&plan(DUO, &DUO.replace("candidates", "order = \"fastest\"\ncandidates")));
    world.chat(&chat("duo")).await;
    world.chat(&chat("duo")).await;
    assert_eq!(world.counts(), [1, 1, 0], "each is tried once before one is tried twice");
    let world = World::with(&plan(DUO, &DUO.replace("candidates", "order = \"fastest\"\ncandidates")));
    world.fault("alpha", "delay:2s");
    world.fault("beta", "delay:2s");
    let bodies: Vec<_> = (0..20).map(|_| chat("duo")).collect();
    futures_util::future::join_all(bodies.iter().map(|body| world.chat(body))).await;
    let [alpha, beta, _] = world.counts();
    assert!(alpha.abs_diff(beta) <= 4, "{alpha} and {beta}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_candidate_counts_as_a_slow_one() {
    let world = World::with(&plan(DUO, &DUO.replace("candidates", "order = \"fastest\"\ncandidates")));
    world.fault("alpha", "status:500");
    for _ in 0..30 {
        assert_eq!(world.chat(&chat("duo")).await.header("wb-provider"), "beta");
    }
    assert_eq!(world.seen("alpha").len(), 1, "a quick failure is no fast answer");
    assert_eq!(world.breaker("alpha/fast"), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn how_fast_they_are_outlives_a_reload() {
    let plan = plan(DUO, &DUO.replace("candidates", "order = \"fastest\"\ncandidates"));
    let world = World::with(&plan);
    world.fault("alpha", "delay:2s");
    for _ in 0..4 {
        world.chat(&chat("duo")).await;
    }
    let before = world.seen("alpha").len();
    let next = build(table(&plan), Some(&world.live.load_full()), &world.shared);
    world.live.store(Arc::new(next));
    for _ in 0..10 {
        world.chat(&chat("duo")).await.assert_served("beta", 1);
    }
    assert_eq!(world.seen("alpha").len(), before);
}

#[tokio::test(start_paused = true)]
async fn the_cheapest_is_asked_first_and_who_has_no_price_last() {
    let edit = |id: &str, file: String| match id {
        "alpha" => file.split("price = ").next().unwrap().to_owned(),
        "beta" => file.replace("1.00 USD", "3.00 USD"),
        _ => file,
    };
    let routes = plan(TRIO, &TRIO.replace("candidates", "order = \"cheapest\"\ncandidates"));
    let world = World::with(&Plan { edit, ..routes });
    world.chat(&chat("trio")).await.assert_served("gamma", 1);
    world.fault("gamma", "status:500");
    world.chat(&chat("trio")).await.assert_served("beta", 2);
    world.fault("beta", "status:500");
    world.chat(&chat("trio")).await.assert_served("alpha", 3);
    let remarks = weighbridge::config::remarks::remarks(world.live.load().table());
    assert_eq!(remarks, ["route trio: the price of alpha/fast is not known, so it is asked last"]);
}

#[tokio::test(start_paused = true)]
async fn a_conversation_stays_where_it_is_and_moves_only_while_its_candidate_is_away() {
    let routes = TRIO.replace("candidates", "order = \"weighted\"\nsticky = \"conversation\"\ncandidates");
    let world = World::with(&plan(TRIO, &routes));
    let turn = |opening: &str, turns: usize| {
        let mut messages = vec![json!({"role": "user", "content": opening})];
        (0..turns).for_each(|turn| messages.push(json!({"role": "assistant", "content": format!("turn {turn}")})));
        json!({"model": "trio", "messages": messages})
    };
    let mut homes = std::collections::BTreeMap::new();
    for conversation in 0..30 {
        for turns in 0..3 {
            let served = world.chat(&turn(&format!("question {conversation}"), turns)).await;
            let provider = served.header("wb-provider").to_owned();
            assert_eq!(*homes.entry(conversation).or_insert_with(|| provider.clone()), provider);
        }
    }
    let homes_of = |provider: &str| homes.values().filter(|home| *home == provider).count();
    assert!(LLMS.iter().all(|provider| homes_of(provider) >= 4), "{homes:?}");
    world.faults("alpha", &["status:429;retry-after=60"]);
    // Another route's 429 is enough.
    world.chat(&chat("solo")).await;
    for (conversation, home) in &homes {
        let served = world.chat(&turn(&format!("question {conversation}"), 4)).await;
        let provider = served.header("wb-provider");
        assert!(provider != "alpha" && (home == "alpha" || home == provider), "{conversation}: {home}, {provider}");
    }
    sleep(Duration::from_secs(61)).await;
    for (conversation, home) in &homes {
        let served = world.chat(&turn(&format!("question {conversation}"), 5)).await;
        assert_eq!(served.header("wb-provider"), home, "back home");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_may_name_its_conversation() {
    let routes = TRIO.replace("candidates", "order = \"weighted\"\nsticky = \"conversation\"\ncandidates");
    let world = World::with(&plan(TRIO, &routes));
    let mut seen = std::collections::BTreeSet::new();
    for session in 0..12 {
        let mut homes = std::collections::BTreeSet::new();
        for question in 0..3 {
            let body =
                json!({"model": "trio", "messages": [{"role": "user", "content": format!("question {question}")}]});
            let mut request = chat_request(SHOP, &body);
            request.headers_mut().insert("wb-session", format!("session-{session}").parse().unwrap());
            homes.insert(world.call(request).await.header("wb-provider").to_owned());
        }
        assert_eq!(homes.len(), 1);
        seen.extend(homes);
    }
    assert!(seen.len() >= 2, "{seen:?}");
}

// --- who is not well ---

#[tokio::test(start_paused = true)]
async fn a_candidate_whose_breaker_is_open_is_behind_the_others_and_not_even_an_entry_in_the_log() {
    let mut world = World::new();
    world.fault("alpha", "status:500");
    while world.breaker("alpha/fast") == State::Closed {
        world.chat(&chat("trio")).await.assert_served("beta", 2);
    }
    world.fault("beta", "status:500");
    world.chat(&chat("trio")).await.assert_served("gamma", 2);
    let line = world.log().pop().unwrap();
    assert_eq!(line["attempts"], json!("beta/fast:provider_fault,gamma/fast:ok"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn who_always_refuses_our_credential_is_asked_last_for_a_while_and_still_heard_if_it_is_alone() {
    for status in ["401", "403"] {
        let world = World::new();
        world.fault("alpha", &format!("status:{status}"));
        for _ in 0..2 {
            world.chat(&chat("duo")).await.assert_served("beta", 2);
        }
        for _ in 0..10 {
            world.chat(&chat("duo")).await.assert_served("beta", 1);
        }
        assert_eq!(world.seen("alpha").len(), 2);
        let alone = world.chat(&chat("solo")).await;
        assert_eq!((alone.status, alone.openai_error().as_str()), (502, "upstream_credentials"));
        // The wait grows, and is up to a quarter longer; a key that works again is found by the first call after it.
        sleep(Duration::from_secs(26)).await;
        world.chat(&chat("duo")).await.assert_served("beta", 2);
        world.faults.clear("alpha");
        sleep(Duration::from_secs(51)).await;
        for _ in 0..3 {
            world.chat(&chat("duo")).await.assert_served("alpha", 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_9_a_429_with_a_date_parks_every_provider_of_the_quota_group() {
    let edit = |id: &str, file: String| {
        if id == "gamma" { file } else { file.replace("protocol =", "quota_group = \"shared\"\nprotocol =") }
    };
    let world = World::with(&Plan { edit, ..Plan::default() });
    // Its own clock is thirty years late, and a date is a date.
    let date = "date=Sun, 06 Nov 1994 08:49:37 GMT;retry-after=Sun, 06 Nov 1994 08:50:07 GMT";
    world.faults("alpha", &[&format!("status:429;{date}")]);
    world.chat(&chat("trio")).await.assert_served("gamma", 2);
    for _ in 0..5 {
        world.chat(&chat("trio")).await.assert_served("gamma", 1);
    }
    assert_eq!(world.counts(), [1, 0, 6], "beta has the same quota and was not asked");
    let parked = world.chat(&chat("duo")).await;
    assert_eq!((parked.status, parked.header("wb-attempts"), parked.header("retry-after")), (429, "0", "30"));
    sleep(Duration::from_secs(30)).await;
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
}

// --- refusals that a route lists ---

const TOO_LONG: [&str; 4] = [
    r#"{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
    r#"{"error":{"message":"the request exceeds the available context size","type":"exceed_context_size_error","code":400}}"#,
    r#"{"object":"error","message":"This model's maximum context length is 8192 tokens. However, you requested 9000","type":"BadRequestError","param":null,"code":400}"#,
    r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 201000 tokens > 200000 maximum"}}"#,
];
const POLICY: [&str; 3] = [
    r#"status:400;body={"error":{"message":"no","type":"invalid_request_error","param":null,"code":"content_policy_violation"}}"#,
    r#"status:400;body={"error":{"message":"Content Exists Risk","type":"invalid_request_error","param":null,"code":"invalid_request_error"}}"#,
    r#"status:403;body={"error":{"code":403,"message":"alpha requires moderation on X. Your input was flagged","metadata":{"reasons":["violence"]}}}"#,
];

fn listing(words: &str) -> World {
    World::with(&plan(DUO, &format!("{DUO}fallback_on = [{words}]\n")))
}

#[tokio::test(start_paused = true)]
async fn a_prompt_too_long_for_one_is_asked_of_the_next_only_where_the_route_says_so() {
    for said in TOO_LONG {
        for body in [chat("duo"), streamed("duo")] {
            let fault = format!("status:400;body={said}");
            let world = listing("\"context_length_exceeded\"");
            world.fault("alpha", &fault);
            world.chat(&body).await.assert_served("beta", 2);
            assert_eq!(world.breaker("alpha/fast"), State::Closed);
            for world in [World::new(), listing("\"content_policy\"")] {
                world.fault("alpha", &fault);
                let refused = world.chat(&body).await;
                assert_eq!((refused.status, refused.header("wb-attempts")), (400, "1"), "{said}");
                assert_eq!(refused.openai_error(), "context_length_exceeded", "{said}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn refused_content_is_asked_of_the_next_only_where_the_route_says_so_and_is_never_about_a_key() {
    for fault in POLICY {
        let world = listing("\"content_policy\"");
        world.fault("alpha", fault);
        for _ in 0..6 {
            world.chat(&chat("duo")).await.assert_served("beta", 2);
        }
        let world = World::new();
        world.fault("alpha", fault);
        for _ in 0..6 {
            let refused = world.chat(&chat("duo")).await;
            assert_eq!((refused.status, refused.openai_error().as_str()), (400, "content_policy_violation"), "{fault}");
            assert_eq!(refused.header("wb-attempts"), "1", "and the provider is not parked for it");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn other_refusals_are_passed_on_whatever_the_route_lists() {
    let world = listing("\"context_length_exceeded\", \"content_policy\"");
    world.fault(
        "alpha",
        r#"status:400;body={"error":{"message":"bad tool","type":"invalid_request_error","code":"bad"}}"#,
    );
    let refused = world.chat(&chat("duo")).await;
    assert_eq!((refused.status, refused.openai_error().as_str(), world.seen("beta").len()), (400, "bad", 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_only_a_filters_word_is_a_refusal_where_the_route_says_so() {
    let whole = http_reply(
        "200 OK",
        "",
        r#"{"id":"x","choices":[{"message":{"role":"assistant","content":null},"finish_reason":"content_filter"}]}"#,
    );
    let event = r#"data: {"id":"x","choices":[{"delta":{},"finish_reason":"content_filter"}]}"#;
    let stream = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{event}\n\ndata: [DONE]\n\n"
    );
    for (body, reply) in [(chat("duo"), whole), (streamed("duo"), stream)] {
        let world = |beta: Link| {
            let world = listing("\"content_policy\"");
            world.net.always("alpha", says(reply.clone()));
            world.net.always("beta", beta);
            world
        };
        let mut moved = world(Link::Simulator);
        moved.chat(&body).await.assert_served("beta", 2);
        moved.assert_idle();
        assert_eq!(moved.log()[0]["attempts"], json!("alpha/fast:refused,beta/fast:ok"));
        // When everybody says the same, it is the answer it always was.
        let filtered = world(says(reply.clone())).chat(&body).await;
        assert_eq!(
            (filtered.status, filtered.header("wb-provider"), filtered.header("wb-attempts")),
            (200, "beta", "2")
        );
        assert!(filtered.text().contains("content_filter"));
        // And where the next one fails, the filter's word is the one that helps.
        let failing = world(Link::Refused);
        let refused = failing.chat(&body).await;
        assert_eq!((refused.status, refused.openai_error().as_str()), (400, "content_filter"));
        assert_eq!(failing.breaker("alpha/fast"), State::Closed);
        let unlisted = World::new();
        unlisted.net.always("alpha", says(reply.clone()));
        let passed = unlisted.chat(&body).await;
        assert_eq!((passed.status, passed.header("wb-provider"), passed.header("wb-attempts")), (200, "alpha", "1"));
    }
}

// --- the failure that speaks ---

#[tokio::test(start_paused = true)]
async fn what_the_caller_can_act_on_is_told_before_what_passes_by_itself() {
    let mut world = listing("\"context_length_exceeded\"");
    world.fault("beta", "status:500");
    world.fault("alpha", "status:503");
    while [world.breaker("alpha/fast"), world.breaker("beta/fast")] != [State::Open, State::Open] {
        world.chat(&chat("duo")).await;
    }
    world.faults.clear("alpha");
    world.fault("alpha", &format!("status:400;body={}", TOO_LONG[0]));
    sleep(Duration::from_millis(1_300)).await;
    let refused = world.chat(&chat("duo")).await;
    assert_eq!(
        (refused.status, refused.openai_error().as_str()),
        (400, "context_length_exceeded"),
        "{}",
        refused.text()
    );
    let line = world.log().pop().unwrap();
    assert!(line["attempts"].as_str().unwrap().starts_with("alpha/fast:refused,beta/fast:"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_a_provider_is_told_before_an_open_breaker() {
    let world = World::new();
    world.fault("beta", "status:500");
    world.fault("alpha", "status:500");
    while world.breaker("beta/fast") == State::Closed {
        world.chat(&chat("duo")).await;
    }
    sleep(Duration::from_millis(1_300)).await;
    world.faults.clear("alpha");
    world.fault("alpha", "stall");
    let answer = world.chat(&streamed("duo")).await;
    assert!([502, 504].contains(&answer.status), "{}: {}", answer.status, answer.text());
}

#[tokio::test(start_paused = true)]
async fn a_response_only_a_native_candidate_can_give_is_a_5xx_while_that_one_is_down_and_a_400_where_nobody_can() {
    let ask = |model: &str| {
        let body = json!({"model": model, "input": "hello", "previous_response_id": "resp_1"});
        post("/v1/responses", SHOP, body.to_string())
    };
    let world = World::with(&Plan { alpha_offers: r#""chat.completions", "responses""#, ..Plan::default() });
    for fault in ["status:500", "refuse", "status:401"] {
        world.fault("alpha", fault);
        let down = world.call(ask("duo")).await;
        assert!(down.status >= 500, "{fault}: {}", down.text());
        assert_eq!(world.seen("beta").len(), 0, "chat cannot carry it");
    }
    let unable = World::new();
    let explained = unable.call(ask("duo")).await;
    assert_eq!((explained.status, explained.json()["error"]["param"].as_str()), (400, Some("previous_response_id")));
    assert_eq!(unable.counts(), [0, 0, 0]);
}

// --- shadows ---

fn shadowed(extra: &str) -> Plan {
    plan(DUO, &format!("{DUO}shadow = {{ use = \"gamma/fast\", percent = 100{extra} }}\n"))
}

fn copies(world: &World, outcome: &str, reason: &str) -> f64 {
    let labels = [&*format!("outcome=\"{outcome}\""), &*format!("reason=\"{reason}\"")];
    world.metric("weighbridge_shadow_attempts_total", &labels)
}

#[tokio::test(start_paused = true)]
async fn a_candidate_on_trial_gets_copies_that_nobody_sees_and_that_are_booked_apart() {
    for body in [chat("duo"), streamed("duo")] {
        let mut world = World::with(&shadowed(""));
        world.chat(&body).await.assert_served("alpha", 1);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(world.counts(), [1, 0, 1]);
        let (ours, theirs) = (&world.seen("alpha")[0], &world.seen("gamma")[0]);
        let said = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap()["messages"].clone();
        assert_eq!(said(&ours.body), said(&theirs.body));
        assert_eq!(theirs.model, "gamma-fast-1");
        assert_eq!(copies(&world, "ok", "none"), 1.0);
        assert_eq!(world.metric("weighbridge_upstream_attempts_total", &["provider=\"gamma\""]), 0.0);
        assert_eq!(world.metric("weighbridge_cost_micro_total", &["provider=\"gamma\""]), 0.0);
        assert!(
            world.metric("weighbridge_extra_cost_micro_total", &["provider=\"gamma\"", "purpose=\"shadow\""]) > 0.0
        );
        world.assert_idle();
        assert_eq!(world.log()[0]["attempts"], json!("alpha/fast:ok"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_fails_or_hangs_costs_callers_nothing() {
    for fault in ["status:500", "stall", "refuse", "garbage", "cut:3"] {
        let world = World::with(&shadowed(""));
        world.fault("gamma", fault);
        for body in [chat("duo"), streamed("duo")].iter().cycle().take(8) {
            let answer = world.chat(body).await;
            answer.assert_served("alpha", 1);
            assert!(answer.took < Duration::from_secs(2), "{fault}: {:?}", answer.took);
        }
        sleep(Duration::from_secs(40)).await;
        assert_eq!(world.breaker("gamma/fast"), State::Closed, "{fault}");
        assert!(world.metric("weighbridge_shadow_attempts_total", &["outcome=\"failed\""]) >= 4.0, "{fault}");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_copies_than_allowed_are_on_their_way_and_each_has_an_end() {
    let world = World::with(&shadowed(", in_flight = 2"));
    world.fault("gamma", "stall");
    for _ in 0..5 {
        world.chat(&chat("duo")).await.assert_served("alpha", 1);
    }
    assert_eq!((world.seen("gamma").len(), copies(&world, "dropped", "full")), (2, 3.0));
    // Also over a reload.
    let next = build(table(&shadowed(", in_flight = 2")), Some(&world.live.load_full()), &world.shared);
    world.live.store(Arc::new(next));
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert_eq!((world.seen("gamma").len(), copies(&world, "dropped", "full")), (2, 4.0));
    sleep(Duration::from_secs(31)).await;
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(world.seen("gamma").len(), 3, "the route's total time has ended the others");
}

#[tokio::test(start_paused = true)]
async fn what_is_answered_from_memory_or_refers_to_what_a_provider_keeps_is_not_copied() {
    let kept = "[model.kept]\n";
    let world = World::with(&plan(kept, &format!("{kept}shadow = {{ use = \"gamma/fast\", percent = 100 }}\n")));
    for hit in ["miss", "hit"] {
        assert_eq!(world.chat(&chat("kept")).await.header("wb-cache"), hit);
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.counts(), [1, 0, 1]);
    let edit = |_: &str, file: String| file.replace(r#"["chat.completions"]"#, r#"["chat.completions", "responses"]"#);
    let world = World::with(&Plan { edit, ..shadowed("") });
    let body = json!({"model": "duo", "input": "hello", "conversation": "conv_1"});
    assert_eq!(world.call(post("/v1/responses", SHOP, body.to_string())).await.header("wb-provider"), "alpha");
    sleep(Duration::from_secs(1)).await;
    assert_eq!((world.seen("gamma").len(), copies(&world, "dropped", "unable")), (0, 1.0));
}

#[tokio::test(start_paused = true)]
async fn only_its_share_of_the_calls_is_copied() {
    let routes = plan(DUO, &format!("{DUO}shadow = {{ use = \"gamma/fast\", percent = 20 }}\n"));
    let world = World::with(&routes);
    let mut client = world.client().await;
    for call in 0..300 {
        client.call(named(&format!("call-{call}"), &chat("duo"))).await;
        sleep(Duration::from_secs(1)).await;
    }
    let copied = world.seen("gamma").len();
    assert!((40..=80).contains(&copied), "{copied} of 300");
}
