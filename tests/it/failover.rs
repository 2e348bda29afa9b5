//! What a client sees when a provider fails: nothing, as long as another one works (rows 1 to 21 of the fault matrix).

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;
use weighbridge::upstream::breaker::State;

use crate::harness::*;

/// Sends both kinds of request and expects the second candidate to have answered them, the first having been tried.
async fn invisible(prepare: impl Fn(&World), what: &str) {
    for body in [chat("duo"), streamed("duo")] {
        let world = World::new();
        prepare(&world);
        let answer = world.chat(&body).await;
        answer.assert_served("beta", 2);
        assert_eq!(world.seen("beta").len(), 1, "{what}");
        assert!(answer.took < Duration::from_secs(16), "{what} took {:?}", answer.took);
        let moved = world.metric("weighbridge_failovers_total", &["from=\"alpha/fast\"", "to=\"beta/fast\""]);
        assert!((moved - 1.0).abs() < f64::EPSILON, "{what}");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn row_1_refused_connections_are_invisible_and_open_the_breaker() {
    invisible(|world| world.net.always("alpha", Link::Refused), "refused").await;
    let world = World::new();
    world.net.always("alpha", Link::Refused);
    for number in 0..20 {
        world.chat(&chat("duo")).await.assert_served("beta", if number < 5 { 2 } else { 1 });
    }
    assert_eq!((world.net.dialled("alpha"), world.breaker("alpha/fast")), (5, State::Open));
}

#[tokio::test(start_paused = true)]
async fn rows_2_and_3_a_connection_that_ends_at_any_stage_is_invisible() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
    let stages: [(&str, Link); 8] = [
        ("after accept", peer(|_| async {})),
        ("after the request", says("")),
        ("within the head", says("HTTP/1.1 200 OK\r\ncontent-")),
        ("after the head", says(head)),
        ("within the body", says(format!("{head}{{\"choices\":[{{\"message\":{{\"content\":\"half"))),
        (
            "a chunked body without its last chunk",
            says(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"cho\r\n",
            ),
        ),
        (
            "a garbage chunk size",
            says("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
        ),
        ("no HTTP at all", says("I am not a web server\r\n\r\n")),
    ];
    for (stage, link) in stages {
        invisible(|world| world.net.always("alpha", link.clone()), stage).await;
    }
    for fault in ["refuse", "reset", "cut:0"] {
        invisible(|world| world.fault("alpha", fault), fault).await;
    }
}

#[tokio::test(start_paused = true)]
async fn row_4_a_black_hole_costs_the_connect_limit_and_after_five_nothing() {
    let world = World::new();
    world.net.always("alpha", Link::BlackHole);
    for number in 0..8 {
        let answer = world.chat(&chat("duo")).await;
        let waited = if number < 5 { Duration::from_secs(1) } else { Duration::ZERO };
        assert!(answer.took >= waited && answer.took < waited + Duration::from_millis(100), "{:?}", answer.took);
        answer.assert_served("beta", if number < 5 { 2 } else { 1 });
    }
    invisible(|world| world.net.always("alpha", Link::BlackHole), "black hole").await;
}

#[tokio::test(start_paused = true)]
async fn rows_5_and_6_a_stall_before_content_is_invisible() {
    invisible(|world| world.fault("alpha", "stall"), "before the headers").await;
    invisible(|world| world.fault("alpha", "stall:0"), "after the role frame").await;
}

#[tokio::test(start_paused = true)]
async fn rows_11_13_and_17_a_bad_answer_is_invisible() {
    let faults = [
        "status:500",
        "status:502",
        "status:503",
        "status:504",
        "status:529",
        "status:408",
        "status:401",
        "status:402",
        "status:403",
        "status:429",
        "empty",
        "garbage",
        "error-in-200:500",
        "error-in-200:429",
        "error-in-200:401",
        "status:200;body={\"choices\":",
        "status:204",
        "status:206;body={}",
    ];
    for fault in faults {
        invisible(|world| world.fault("alpha", fault), fault).await;
    }
    let gzip =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}";
    invisible(|world| world.net.always("alpha", says(gzip)), "compressed unasked").await;
    let null = http_reply("200 OK", "", "{\"choices\":[]}");
    invisible(|world| world.net.always("alpha", says(null.clone())), "no choices").await;
}

#[tokio::test(start_paused = true)]
async fn g10_a_redirect_is_a_failure_and_is_never_followed() {
    for status in [301, 302, 303, 307, 308] {
        for target in ["http://evil.test/v1", "http://169.254.169.254/latest", "file:///etc/passwd", "/elsewhere"] {
            let world = World::new();
            world.fault("alpha", &format!("status:{status};location={target}"));
            let answer = world.chat(&chat("duo")).await;
            answer.assert_served("beta", 2);
            assert!(!answer.headers.contains_key("location"));
            assert_eq!(world.net.hosts(), ["alpha.test", "beta.test"]);
            assert_eq!(world.counts(), [1, 1, 0]);
        }
    }
    let world = World::new();
    world.fault("alpha", "status:302;location=http://evil.test/");
    let alone = world.chat(&chat("solo")).await;
    assert_eq!((alone.status, alone.openai_error().as_str()), (502, "upstream_unavailable"));
    assert!(!alone.headers.contains_key("location"));
}

#[tokio::test(start_paused = true)]
async fn row_9_a_429_parks_its_provider_for_exactly_as_long_as_it_says() {
    let waits: [(&str, u64, u64); 7] = [
        ("retry-after=2", 2_000, 2_000),
        ("retry-after=9;retry-after-ms=250", 250, 250),
        ("date=Sun, 06 Nov 1994 08:49:37 GMT;retry-after=Sun, 06 Nov 1994 08:49:40 GMT", 3_000, 3_000),
        ("retry-after=1000000000", 300_000, 300_000),
        // Garbage or nothing: our own second, with jitter.
        ("retry-after=soon", 1_000, 1_250),
        ("retry-after=-1", 1_000, 1_250),
        ("x-nothing=1", 1_000, 1_250),
    ];
    for (headers, wait, most) in waits {
        let world = World::new();
        world.faults("alpha", &[&format!("status:429;{headers}")]);
        world.chat(&chat("duo")).await.assert_served("beta", 2);
        sleep(Duration::from_millis(wait - 5)).await;
        world.chat(&chat("duo")).await.assert_served("beta", 1);
        assert_eq!(world.counts(), [1, 2, 0], "{headers}");
        sleep(Duration::from_millis(most - wait + 10)).await;
        world.chat(&chat("duo")).await.assert_served("alpha", 1);
        assert_eq!(world.breaker("alpha/fast"), State::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn row_9_a_pause_holds_for_every_route_to_that_provider() {
    let world = World::new();
    world.faults("alpha", &["status:429;retry-after=5"]);
    let alone = world.chat(&chat("solo")).await;
    assert_eq!((alone.status, alone.header("retry-after")), (429, "5"));
    for model in ["duo", "trio", "kept"] {
        world.chat(&chat(model)).await.assert_served("beta", 1);
    }
    assert_eq!(world.counts(), [1, 3, 0]);
}

#[tokio::test(start_paused = true)]
async fn row_9_when_all_are_limited_the_client_is_told_the_shortest_wait() {
    let world = World::new();
    world.fault("alpha", "status:429;retry-after=7");
    world.fault("beta", "status:429;retry-after=3");
    let met = world.chat(&chat("duo")).await;
    assert_eq!((met.status, met.openai_error().as_str()), (429, "rate_limit_exceeded"));
    assert_eq!((met.header("retry-after"), met.header("retry-after-ms")), ("3", "3000"));
    let parked = world.chat(&chat("duo")).await;
    assert_eq!((parked.status, parked.header("retry-after"), parked.header("wb-attempts")), (429, "3", "0"));
    assert_eq!(world.counts(), [1, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn row_10_a_used_up_account_is_left_alone_for_minutes() {
    let bodies = [
        r#"{"error":{"message":"no money","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
        r#"{"error":{"message":"no money","type":"insufficient_quota","param":null,"code":null}}"#,
        r#"{"error":{"message":"no money","type":"x","param":null,"code":"billing_hard_limit_reached"}}"#,
    ];
    for body in bodies {
        let world = World::new();
        world.fault("alpha", &format!("status:429;body={body}"));
        world.chat(&chat("duo")).await.assert_served("beta", 2);
        for _ in 0..20 {
            sleep(Duration::from_secs(10)).await;
            world.chat(&chat("duo")).await.assert_served("beta", 1);
        }
        assert_eq!(world.seen("alpha").len(), 1, "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn row_11_a_storm_opens_the_breaker_and_then_only_probes_arrive() {
    let world = World::new();
    world.fault("alpha", "status:500");
    for number in 0..240 {
        let answer = world.chat(&chat("duo")).await;
        assert_eq!((answer.status, answer.header("wb-provider")), (200, "beta"), "request {number}");
        sleep(Duration::from_millis(250)).await;
    }
    let alpha = world.seen("alpha").len();
    // Five to open it, then one after 1, 2, 4, 8, 16 and 32 seconds, a fifth more or less.
    assert!((8..=13).contains(&alpha), "alpha saw {alpha} of 240");
}

#[tokio::test(start_paused = true)]
async fn row_12_when_everybody_is_down_the_answer_is_quick_and_says_when() {
    let world = World::new();
    world.fault("alpha", "status:500");
    world.fault("beta", "status:500");
    let first = world.chat(&chat("duo")).await;
    assert_eq!((first.status, first.openai_error().as_str()), (502, "upstream_unavailable"));
    assert_eq!(first.header("x-should-retry"), "false");
    while [world.breaker("alpha/fast"), world.breaker("beta/fast")].contains(&State::Closed) {
        world.chat(&chat("duo")).await;
    }
    let before = world.counts();
    for body in [chat("duo"), streamed("duo")] {
        let refused = world.chat(&body).await;
        assert_eq!((refused.status, refused.openai_error().as_str()), (503, "upstream_unavailable"));
        assert!(refused.took <= Duration::from_millis(20), "{:?}", refused.took);
        assert_eq!(refused.header("wb-attempts"), "0");
        let wait: u64 = refused.header("retry-after-ms").parse().unwrap();
        assert!((1..=2_400).contains(&wait), "{wait}");
        assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    assert_eq!(world.counts(), before);
    world.faults.clear("alpha");
    world.faults.clear("beta");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.chat(&chat("duo")).await.status, 200, "healed providers are found again");
}

#[tokio::test(start_paused = true)]
async fn row_12_a_call_costs_at_most_three_attempts_whoever_is_down() {
    for fault in ["status:500", "status:503", "refuse", "empty", "status:401", "garbage", "status:429;retry-after=0"] {
        let world = World::new();
        for provider in LLMS {
            world.fault(provider, fault);
        }
        for model in ["solo", "duo", "trio"] {
            let before: usize = world.counts().iter().sum();
            let answer = world.chat(&chat(model)).await;
            let made = world.counts().iter().sum::<usize>() - before;
            assert!(answer.status >= 429 && made <= 3, "{fault}, {model}: {} after {made}", answer.status);
            assert_eq!(answer.header("wb-attempts"), made.to_string(), "{fault}, {model}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_of_the_same_provider_spends_a_budget_that_runs_out() {
    let world = World::new();
    world.fault("alpha", "refuse");
    let mut sent = 0;
    for number in 1..=4 {
        world.chat(&chat("solo")).await;
        sent = world.net.dialled("alpha");
        assert!(sent <= 2 * number);
    }
    assert!(sent <= 5, "the breaker allows five");
}

#[tokio::test(start_paused = true)]
async fn row_13_a_bad_credential_of_ours_is_never_the_clients_fault() {
    for status in ["401", "403"] {
        let world = World::new();
        world.fault("alpha", &format!("status:{status}"));
        let alone = world.chat(&chat("solo")).await;
        assert_eq!((alone.status, alone.openai_error().as_str()), (502, "upstream_credentials"));
        assert_eq!((alone.header("x-should-retry"), world.seen("alpha").len()), ("false", 1));
    }
    let world = World::new();
    world.fault("alpha", "status:402");
    let alone = world.chat(&chat("solo")).await;
    assert_eq!((alone.status, alone.header("x-should-retry")), (503, "false"));
}

#[tokio::test(start_paused = true)]
async fn row_14_a_refusal_of_the_request_is_passed_on_after_one_attempt_and_teaches_the_breaker_nothing() {
    let said = r#"{"error":{"message":"the picture is too large","type":"invalid_request_error","param":null,"code":"too_large"}}"#;
    for status in [400, 404, 413, 422] {
        let world = World::new();
        world.fault("alpha", &format!("status:{status};body={said}"));
        for body in [chat("duo"), streamed("duo"), chat("duo"), chat("duo"), chat("duo"), chat("duo")] {
            let answer = world.chat(&body).await;
            assert_eq!((answer.status, answer.openai_error().as_str()), (status, "too_large"));
            assert_eq!(answer.json()["error"]["message"], "the picture is too large");
            assert_eq!(answer.header("wb-attempts"), "1");
        }
        assert_eq!((world.counts(), world.breaker("alpha/fast")), ([6, 0, 0], State::Closed));
    }
}

#[tokio::test(start_paused = true)]
async fn row_19_interim_responses_are_ignored_and_an_endless_row_of_them_is_a_failure() {
    let good = http_reply(
        "200 OK",
        "",
        r#"{"id":"x","choices":[{"message":{"content":"after three"},"finish_reason":"stop"}]}"#,
    );
    let world = World::new();
    world.net.always("alpha", says("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(3) + &good));
    let answer = world.chat(&chat("duo")).await;
    assert_eq!((answer.said().as_str(), answer.header("wb-provider")), ("after three", "alpha"));
    let world = World::new();
    world.net.always("alpha", says("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(10_000)));
    world.chat(&chat("duo")).await.assert_served("beta", 2);
}

#[tokio::test(start_paused = true)]
async fn row_21_a_kept_connection_that_dies_under_a_request_is_replaced_unseen() {
    let world = World::new();
    let good =
        http_reply("200 OK", "", r#"{"id":"x","choices":[{"message":{"content":"kept"},"finish_reason":"stop"}]}"#);
    let dies = peer(move |mut io| {
        let good = good.clone();
        async move {
            read_request(&mut io).await;
            io.write_all(good.as_bytes()).await.unwrap();
            // The next request is taken and never answered.
            read_request(&mut io).await;
        }
    });
    world.net.script("alpha", [dies], Link::Simulator);
    let first = world.chat(&chat("duo")).await;
    assert_eq!((first.said().as_str(), first.header("wb-attempts")), ("kept", "1"));
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert_eq!((world.net.dialled("alpha"), world.net.dialled("beta")), (2, 0));
    assert_eq!(world.breaker("alpha/fast"), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn row_21_a_connection_closed_while_idle_is_not_even_tried() {
    let world = World::new();
    let good =
        http_reply("200 OK", "", r#"{"id":"x","choices":[{"message":{"content":"once"},"finish_reason":"stop"}]}"#);
    world.net.always("alpha", says(good));
    for _ in 0..20 {
        let answer = world.chat(&chat("duo")).await;
        assert_eq!((answer.said().as_str(), answer.header("wb-attempts")), ("once", "1"));
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((world.net.dialled("alpha"), world.net.dialled("beta")), (20, 0));
}

#[tokio::test(start_paused = true)]
async fn connections_to_a_healthy_provider_are_kept() {
    let world = World::new();
    for body in [chat("duo"), streamed("duo"), chat("duo"), streamed("duo")] {
        world.chat(&body).await.assert_served("alpha", 1);
    }
    assert_eq!(world.net.dialled("alpha"), 1);
    sleep(Duration::from_secs(55)).await;
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert_eq!(world.net.dialled("alpha"), 2, "before the provider's idle limit, not after");
}

#[tokio::test(start_paused = true)]
async fn nobody_answering_in_time_is_a_504_that_is_not_to_be_repeated() {
    let world = World::new();
    for provider in LLMS {
        world.fault(provider, "stall");
    }
    for body in [chat("duo"), streamed("duo")] {
        let answer = world.chat(&body).await;
        assert_eq!((answer.status, answer.openai_error().as_str()), (504, "upstream_timeout"));
        assert_eq!(answer.header("x-should-retry"), "false");
        assert!(answer.took <= Duration::from_secs(30), "{:?}", answer.took);
    }
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_callers_own_short_deadline_is_kept_and_is_nobodys_failure() {
    let world = World::new();
    world.fault("alpha", "stall");
    for body in [chat("duo"), streamed("duo")].iter().cycle().take(12) {
        let mut request = chat_request(SHOP, body);
        request.headers_mut().insert("wb-timeout-ms", "200".parse().unwrap());
        let answer = world.call(request).await;
        assert_eq!((answer.status, answer.openai_error().as_str()), (504, "upstream_timeout"));
        assert!(answer.took <= Duration::from_millis(210), "{:?}", answer.took);
        assert_eq!(answer.header("wb-attempts"), "1", "a provider was asked");
    }
    assert_eq!(world.breaker("alpha/fast"), State::Closed);
    let hopeless = {
        let mut request = chat_request(SHOP, &chat("duo"));
        request.headers_mut().insert("wb-timeout-ms", "20".parse().unwrap());
        world.call(request).await
    };
    assert_eq!((hopeless.status, world.seen("alpha").len()), (504, 12), "no attempt starts with less than 50 ms");
}

#[tokio::test(start_paused = true)]
async fn a_full_provider_is_passed_over_and_its_place_comes_back() {
    let world = World::with(&Plan { provider_in_flight: 1, ..Plan::default() });
    world.fault("alpha", "delay:2s");
    let body = chat("duo");
    let (slow, quick) = tokio::join!(world.chat(&body), async {
        sleep(Duration::from_millis(100)).await;
        world.chat(&body).await
    });
    slow.assert_served("alpha", 1);
    quick.assert_served("beta", 1);
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert_eq!(world.breaker("alpha/fast"), State::Closed);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn the_log_line_names_every_attempt() {
    let mut world = World::new();
    world.fault("alpha", "status:500");
    world.chat(&chat("duo")).await.assert_served("beta", 2);
    let line = &world.log()[0];
    assert_eq!(line["attempts"], json!("alpha/fast:provider_fault,beta/fast:ok"), "{line}");
    assert_eq!(
        (&line["provider.id"], &line["route.id"], &line["caller.id"]),
        (&json!("beta"), &json!("duo"), &json!("shop"))
    );
}
