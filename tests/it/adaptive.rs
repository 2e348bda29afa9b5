//! A provider's bulkhead that learns its size: less when the provider says it is too much, more again when it is not, and
//! the rest goes to the next candidate.

use std::time::Duration;

use weighbridge::gateway::build::build;

use crate::harness::*;

const ADAPTIVE: &str = r#"{ in_flight = "adaptive", least = 2, most = 40 }"#;

fn world() -> World {
    World::with(&Plan { alpha_limits: Some(ADAPTIVE), ..Plan::default() })
}

fn limit(world: &World) -> u32 {
    world.live.load().providers()["alpha"].limit()
}

/// The next `failures` connections to alpha say, after a second, that it is too much.
fn choke(world: &World, failures: usize) {
    let choking = peer(|mut io| async move {
        read_request(&mut io).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let reply = http_reply("529 Overloaded", "connection: close\r\n", "{}");
        let _ = tokio::io::AsyncWriteExt::write_all(&mut io, reply.as_bytes()).await;
    });
    world.net.script("alpha", vec![choking; failures], Link::Simulator);
    world.fault("alpha", "delay:2s");
}

/// So many at once, each on a connection of its own; who served them.
async fn burst(world: &World, size: usize) -> Vec<String> {
    let calls = (0..size).map(|_| async { world.chat(&chat("duo")).await.header("wb-provider").to_owned() });
    futures_util::future::join_all(calls).await
}

#[tokio::test(start_paused = true)]
async fn f9_overload_lowers_the_limit_once_and_what_is_beyond_it_goes_elsewhere() {
    let world = world();
    assert_eq!(limit(&world), 32);
    choke(&world, 4);
    burst(&world, 20).await;
    assert_eq!(limit(&world), 22, "four failures of one burst are one event");
    for provider in ["alpha", "beta"] {
        world.fault(provider, "delay:1s");
    }
    let served = burst(&world, 30).await;
    assert_eq!(served.iter().filter(|provider| *provider == "alpha").count(), 22, "full means the next candidate");
    assert!(served.iter().all(|provider| !provider.is_empty()));
    assert!(limit(&world) >= 22);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn it_recovers_with_answers_and_never_leaves_its_bounds() {
    let world = world();
    world.fault("beta", "delay:10ms");
    for _ in 0..20 {
        choke(&world, 1);
        // Idle connections would answer instead of the choking one.
        tokio::time::sleep(Duration::from_secs(60)).await;
        burst(&world, 12).await;
    }
    let low = limit(&world);
    assert!((2..=8).contains(&low), "{low}");
    world.fault("alpha", "delay:10ms");
    for _ in 0..40 {
        burst(&world, 45).await;
    }
    assert!(limit(&world) > low + 5 && limit(&world) <= 40, "{}", limit(&world));
}

#[tokio::test(start_paused = true)]
async fn long_answers_and_the_callers_own_mistakes_lower_nothing() {
    let world = world();
    world.fault("alpha", "delay:4s");
    burst(&world, 20).await;
    world.fault("alpha", "status:400");
    burst(&world, 20).await;
    assert!(limit(&world) >= 32);
    world.fault("alpha", "cut:3");
    let cut = (0..20).map(|_| async { world.chat(&streamed("duo")).await.status });
    futures_util::future::join_all(cut).await;
    assert!(limit(&world) >= 32, "a stream that broke off had begun");
}

#[tokio::test(start_paused = true)]
async fn f26_what_was_learned_survives_a_reload_and_the_new_bounds_hold_at_once() {
    let world = world();
    choke(&world, 1);
    burst(&world, 20).await;
    assert_eq!(limit(&world), 22);
    let reload = |limits| {
        let plan = Plan { alpha_limits: Some(limits), ..Plan::default() };
        let before = world.live.load_full();
        world.live.store(std::sync::Arc::new(build(table(&plan), Some(&before), &world.shared)));
    };
    reload(ADAPTIVE);
    assert_eq!(limit(&world), 22);
    reload(r#"{ in_flight = "adaptive", most = 10 }"#);
    assert_eq!(limit(&world), 10);
    reload("{ in_flight = 7 }");
    assert_eq!(limit(&world), 7);
    world.fault("alpha", "delay:1s");
    let served = burst(&world, 9).await;
    assert_eq!(served.iter().filter(|provider| *provider == "alpha").count(), 7);
    tokio::time::sleep(Duration::from_secs(1)).await;
}
