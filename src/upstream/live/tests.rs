//! What is carried over from one configuration to the next, and what is not.

use super::*;
use crate::upstream::testing::{Memory, PROVIDERS, fleet, table, table_of};

fn nobody() -> Arc<Memory> {
    Memory::scripted(|_, _| async {})
}

fn rebuilt(table: &RoutingTable, previous: &Fleet) -> Fleet {
    let dial: Arc<dyn Dial> = nobody();
    Fleet::build(table, previous, &dial, &Metrics::new())
}

fn provider<'f>(fleet: &'f Fleet, id: &str) -> &'f Arc<LiveProvider> {
    &fleet.providers[&ProviderId::new(id)]
}

fn with(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}");
    text.replace(from, to)
}

#[tokio::test]
async fn everything_live_survives_a_reload_that_changes_nothing() {
    let (old, new) = (fleet(&table(), &nobody()), rebuilt(&table(), &fleet(&table(), &nobody())));
    assert_eq!(old.upstreams.len(), 4);
    let new = {
        drop(new);
        rebuilt(&table(), &old)
    };
    for (id, upstream) in &old.upstreams {
        assert!(Arc::ptr_eq(&upstream.health, &new.upstreams[id].health), "{id}");
    }
    for (id, live) in &old.providers {
        let again = &new.providers[id];
        assert!(Arc::ptr_eq(&live.pool, &again.pool) && Arc::ptr_eq(&live.bulkhead, &again.bulkhead), "{id}");
        assert!(Arc::ptr_eq(&live.pause, &again.pause) && Arc::ptr_eq(&live.token, &again.token), "{id}");
    }
}

#[tokio::test]
async fn an_open_breaker_stays_open_across_a_reload() {
    let old = fleet(&table(), &nobody());
    let id = UpstreamId::new("agg/fast");
    old.upstreams[&id].health.trip(Instant::now(), Duration::from_secs(9));
    let new = rebuilt(&table(), &old);
    assert_eq!(new.upstreams[&id].health.state(Instant::now()), State::Open);
    assert_eq!(new.upstreams[&UpstreamId::new("agg/clever")].health.state(Instant::now()), State::Closed);
}

#[tokio::test]
async fn what_a_breaker_learned_about_an_address_says_nothing_about_another() {
    let old = fleet(&table(), &nobody());
    let judge = UpstreamId::new("judge");
    old.upstreams[&judge].health.trip(Instant::now(), Duration::from_secs(9));
    let moved = with(PROVIDERS[2], "https://judge.example\"", "https://judge.example:8443\"");
    let new = rebuilt(&table_of(&[PROVIDERS[0], PROVIDERS[1], &moved]), &old);
    assert_eq!(new.upstreams[&judge].health.state(Instant::now()), State::Closed);
}

#[tokio::test]
async fn another_address_has_other_connections_and_other_tokens_but_the_same_bulkhead() {
    let old = fleet(&table(), &nobody());
    let moved = with(PROVIDERS[2], "https://judge.example\"", "https://judge.example/new\"");
    let new = rebuilt(&table_of(&[PROVIDERS[0], PROVIDERS[1], &moved]), &old);
    let (before, after) = (provider(&old, "judge"), provider(&new, "judge"));
    assert!(Arc::ptr_eq(&before.pool, &after.pool), "same host and port");
    assert!(!Arc::ptr_eq(&before.token, &after.token) && Arc::ptr_eq(&before.bulkhead, &after.bulkhead));
    let moved = with(PROVIDERS[2], "https://judge.example\"", "https://judge.example:8443\"");
    let new = rebuilt(&table_of(&[PROVIDERS[0], PROVIDERS[1], &moved]), &old);
    assert!(!Arc::ptr_eq(&before.pool, &provider(&new, "judge").pool));
}

#[tokio::test]
async fn another_signing_key_needs_another_token() {
    let old = fleet(&table(), &nobody());
    let rotated = with(PROVIDERS[2], "sandbox-1", "sandbox-2");
    let new = rebuilt(&table_of(&[PROVIDERS[0], PROVIDERS[1], &rotated]), &old);
    assert!(!Arc::ptr_eq(&provider(&old, "judge").token, &provider(&new, "judge").token));
}

#[tokio::test]
async fn f9_providers_of_one_quota_group_pause_together() {
    let fleet = fleet(&table(), &nobody());
    assert!(Arc::ptr_eq(&provider(&fleet, "agg").pause, &provider(&fleet, "other").pause));
    assert!(!Arc::ptr_eq(&provider(&fleet, "agg").pause, &provider(&fleet, "judge").pause));
}

#[tokio::test]
async fn s11_the_credential_is_in_the_headers_and_never_printed() {
    let fleet = fleet(&table(), &nobody());
    let headers = &provider(&fleet, "agg").headers;
    assert!(headers[AUTHORIZATION].to_str().unwrap().starts_with("Bearer 4f4f"));
    assert!(headers[AUTHORIZATION].is_sensitive() && !format!("{headers:?}").contains("4f4f"));
    assert_eq!(headers[HOST], "agg.example");
    assert!(!provider(&fleet, "judge").headers.contains_key(AUTHORIZATION));
    assert_eq!(
        *fleet.upstreams[&UpstreamId::new("agg/fast")].uri(Operation::ChatCompletions).unwrap(),
        "/agg/v1/chat/completions"
    );
    assert_eq!(*fleet.upstreams[&UpstreamId::new("judge")].uri(Operation::RiskAssess).unwrap(), "/gateway.do");
}

#[tokio::test(start_paused = true)]
async fn the_retry_budget_is_a_tenth_of_the_calls_and_one_a_second() {
    let health = Health::new(Instant::now(), 1);
    let afforded = |health: &Health| (0..1_000).take_while(|_| health.withdraw()).count();
    let floor = afforded(&health);
    assert!((1..=10).contains(&floor), "{floor}");
    (0..1_000).for_each(|_| health.deposit());
    let share = afforded(&health);
    assert!((95..=105).contains(&share), "{share}");
}

#[tokio::test(start_paused = true)]
async fn who_refuses_our_credential_twice_is_asked_last_for_longer_each_time_and_forgiven_at_once() {
    let health = Health::new(Instant::now(), 1);
    let standing = || health.standing(Instant::now());
    assert!(health.is_unmarked());
    health.refused_credential(Instant::now());
    assert!(health.is_unmarked(), "once may be this one request's doing");
    for wait in [10, 20, 40, 80, 160, 320, 320] {
        health.refused_credential(Instant::now());
        assert_eq!((standing(), health.is_unmarked()), (Standing::Unwelcome, false));
        tokio::time::advance(Duration::from_secs(wait) - Duration::from_millis(1)).await;
        assert_eq!(standing(), Standing::Unwelcome, "{wait}");
        // A quarter of it is jitter.
        tokio::time::advance(Duration::from_secs(wait) / 4 + Duration::from_millis(1)).await;
        assert_eq!(standing(), Standing::Well, "{wait}");
    }
    health.learn(Instant::now(), Permit::Normal, Lesson::Success);
    health.refused_credential(Instant::now());
    assert!(health.is_unmarked() && standing() == Standing::Well);
}

#[tokio::test(start_paused = true)]
async fn a_mark_is_there_from_the_first_opening_to_the_closing() {
    let health = Health::new(Instant::now(), 1);
    health.trip(Instant::now(), Duration::from_secs(5));
    assert_eq!((health.is_unmarked(), health.standing(Instant::now())), (false, Standing::Open));
    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!((health.is_unmarked(), health.standing(Instant::now())), (false, Standing::Well), "half-open");
    for _ in 0..3 {
        let permit = health.permit(Instant::now());
        health.learn(Instant::now(), permit, Lesson::Success);
    }
    assert!(health.is_unmarked());
}
