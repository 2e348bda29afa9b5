//! Nobody takes more than their share: callers' limits, the process's, and the time a request may take to arrive.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use weighbridge::telemetry::labels::ConnectionEnd;

use crate::harness::*;

fn with_limits(limits: &str) -> World {
    World::with(&Plan::replacing("tenant = \"shop-eu\"", &format!("tenant = \"shop-eu\"\nlimits = {limits}")))
}

fn head(path: &str, headers: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {SHOP}\r\ncontent-type: application/json\r\n{headers}\r\n"
    )
}

/// What comes back within a second.
async fn answer(io: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = vec![0; 4096];
    let read = timeout(Duration::from_secs(1), io.read(&mut bytes)).await.map_or(0, Result::unwrap);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

#[tokio::test(start_paused = true)]
async fn row_36_a_caller_over_its_rate_is_told_when_to_come_back() {
    let world = with_limits("{ requests_per_minute = 60 }");
    let first = world.chat(&chat("duo")).await;
    first.assert_served("alpha", 1);
    assert_eq!(first.header("x-ratelimit-limit-requests"), "60");
    sleep(Duration::from_millis(200)).await;
    let second = world.chat(&chat("duo")).await;
    assert_eq!((second.status, second.openai_error().as_str()), (429, "rate_limit_exceeded"));
    // Its time, and up to a quarter more, so that not all who are told to come back do it together.
    assert_eq!(second.header("retry-after"), "1");
    assert!((800..=1_000).contains(&second.header("retry-after-ms").parse::<u64>().unwrap()));
    assert_eq!(second.header("x-ratelimit-remaining-requests"), "0");
    let payment_too = world.assess(&payment("T1", "1.00")).await;
    assert_eq!((payment_too.status, payment_too.header("content-type")), (429, "application/problem+json"));
    // Others do not notice.
    world.call(chat_request(OFFICE, &chat("duo"))).await.assert_served("alpha", 1);
    sleep(Duration::from_millis(800)).await;
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert_eq!((world.counts(), world.scorings()), ([3, 0, 0], 0));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_caller_has_only_so_many_requests_in_flight_and_a_stream_is_one_until_it_ends() {
    let world = with_limits("{ in_flight = 2 }");
    world.fault("alpha", "delay:2s");
    let (plain, stream) = (chat("duo"), streamed("duo"));
    let (first, second, third, other) = tokio::join!(
        world.chat(&plain),
        world.chat(&stream),
        async {
            sleep(Duration::from_millis(2_100)).await;
            world.chat(&plain).await.assert_served("alpha", 1);
            // The first is done, the second is a stream in its middle, and this is the third.
            sleep(Duration::from_millis(100)).await;
            world.chat(&plain).await
        },
        async {
            sleep(Duration::from_secs(1)).await;
            (world.chat(&plain).await, world.call(chat_request(OFFICE, &plain)).await)
        }
    );
    first.assert_served("alpha", 1);
    second.assert_served("alpha", 1);
    third.assert_served("alpha", 1);
    let (over, office) = other;
    assert_eq!((over.status, over.openai_error().as_str()), (429, "rate_limit_exceeded"));
    assert!((1_000..=1_250).contains(&over.header("retry-after-ms").parse::<u64>().unwrap()));
    office.assert_served("alpha", 1);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_35_a_full_process_sheds_llm_calls_and_keeps_room_for_payments() {
    let world = World::with(&Plan::replacing("[limits]", "[limits]\nin_flight = 10"));
    world.fault("alpha", "delay:3s");
    let body = chat("duo");
    let nine = join_all((0..9).map(|_| world.chat(&body)));
    let (served, (shed, decided)) = tokio::join!(nine, async {
        sleep(Duration::from_secs(1)).await;
        // Shed from the head alone: the body never comes.
        let (mut io, _end) = world.raw();
        io.write_all(head("/v1/chat/completions", "content-length: 100\r\n").as_bytes()).await.unwrap();
        let started = Instant::now();
        let shed = answer(&mut io).await;
        assert!(started.elapsed() <= Duration::from_millis(10));
        (shed, world.assess(&payment("T1", "88.13")).await)
    });
    for answer in &served {
        answer.assert_served("alpha", 1);
    }
    assert!(shed.starts_with("HTTP/1.1 503") && shed.contains("\"overloaded\""), "{shed}");
    let wait = shed.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap().parse::<u64>().unwrap();
    assert!((1..=5).contains(&wait), "{wait}");
    assert_eq!((decided.status, &decided.json()["source"]), (200, &"live".into()));
    let counted = world.metric("weighbridge_shed_total", &["class=\"normal\""]);
    assert!((counted - 1.0).abs() < f64::EPSILON);
    assert!(world.metric("weighbridge_shed_total", &["class=\"risk\""]).abs() < f64::EPSILON);
    assert_eq!(world.counts(), [9, 0, 0]);
    sleep(Duration::from_secs(1)).await;
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_35_even_a_small_process_keeps_one_place_for_a_payment() {
    for places in [2, 5] {
        let world = World::with(&Plan::replacing("[limits]", &format!("[limits]\nin_flight = {places}")));
        world.fault("alpha", "delay:3s");
        let body = chat("duo");
        let (_, decided) = tokio::join!(join_all((0..places).map(|_| world.chat(&body))), async {
            sleep(Duration::from_secs(1)).await;
            world.assess(&payment("T1", "88.13")).await
        });
        assert_eq!((decided.status, world.counts()), (200, [places - 1, 0, 0]), "{places} places");
    }
}

#[tokio::test(start_paused = true)]
async fn row_32_bodies_share_one_budget_of_bytes() {
    let world = World::with(&Plan::replacing("[limits]", "[limits]\nbody = \"600KiB\"\nin_flight_bytes = \"1MiB\""));
    let (mut first, _end) = world.raw();
    first.write_all(head("/v1/chat/completions", "content-length: 600000\r\n").as_bytes()).await.unwrap();
    sleep(Duration::from_millis(10)).await;
    let big = world.call(post("/v1/chat/completions", SHOP, vec![b' '; 400_000])).await;
    assert_eq!((big.status, big.openai_error().as_str()), (503, "overloaded"));
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert_eq!(world.assess(&payment("T1", "88.13")).await.status, 200);
    drop(first);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(
        world.call(post("/v1/chat/completions", SHOP, vec![b' '; 400_000])).await.status,
        400,
        "there is room again"
    );
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn when_every_candidate_is_full_the_answer_is_a_quick_503() {
    let world = World::with(&Plan { provider_in_flight: 1, ..Plan::default() });
    world.fault("alpha", "delay:2s");
    let body = chat("solo");
    let (slow, full) = tokio::join!(world.chat(&body), async {
        sleep(Duration::from_secs(1)).await;
        world.chat(&body).await
    });
    slow.assert_served("alpha", 1);
    assert_eq!(
        (full.status, full.openai_error().as_str(), full.header("wb-attempts")),
        (503, "upstream_unavailable", "0")
    );
    assert!(full.took <= Duration::from_millis(20));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn p5_a_body_that_falls_silent_is_a_408_and_one_that_drips_is_read() {
    for path in ["/v1/chat/completions", "/v1/risk/assessments"] {
        let world = World::new();
        let (mut io, end) = world.raw();
        io.write_all((head(path, "content-length: 100\r\n") + "{\"model\"").as_bytes()).await.unwrap();
        sleep(Duration::from_millis(9_900)).await;
        assert_eq!(answer(&mut io).await.split("\r\n").next(), Some("HTTP/1.1 408 Request Timeout"), "{path}");
        drop(io);
        end.await.unwrap();
        world.assert_idle();
    }
    let world = World::new();
    let body = chat("duo").to_string();
    let (mut io, _end) = world.raw();
    io.write_all(head("/v1/chat/completions", &format!("content-length: {}\r\n", body.len())).as_bytes())
        .await
        .unwrap();
    for part in body.as_bytes().chunks(40) {
        sleep(Duration::from_secs(9)).await;
        io.write_all(part).await.unwrap();
    }
    assert!(answer(&mut io).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test(start_paused = true)]
async fn p5_a_head_that_does_not_come_ends_the_connection_at_its_limit() {
    for start in ["", "POST /v1/chat/comp", "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"] {
        let world = World::new();
        let started = Instant::now();
        let (mut io, end) = world.raw();
        io.write_all(start.as_bytes()).await.unwrap();
        assert_eq!(end.await.unwrap(), ConnectionEnd::HeadTimeout);
        assert_eq!(started.elapsed().as_secs(), 10, "{start:?}");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_too_large_is_a_431() {
    let world = World::new();
    let long = world
        .exchange(head("/v1/chat/completions", &format!("x-long: {}\r\n", "x".repeat(17 * 1024))).as_bytes())
        .await;
    let many = "x-same: 1\r\n".repeat(70);
    let many = world.exchange(head("/v1/chat/completions", &many).as_bytes()).await;
    for answer in [long, many] {
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    assert_eq!(world.net.hosts().len(), 0);
}
