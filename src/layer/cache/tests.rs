//! What is kept, for whom, for how long, and what never is.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::upstream::testing::{events, llm_call, llm_call_of, sample, streamed, whole};

const CHAT: &str = r#"{"model":"summary","messages":[]}"#;
const TTL: Duration = Duration::from_secs(100);

struct Fixture {
    params: Params,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<fn() -> Reply>>,
}

impl Fixture {
    fn new() -> Self {
        let metrics = Metrics::new();
        let store = Store::new(1 << 20, [7; 32], &metrics);
        let params = Params { store, ttl: Some(TTL), fingerprint: [1; 32], metrics };
        Self { params, asked: Arc::default(), answer: Arc::new(Mutex::new(|| whole("hi"))) }
    }

    fn answers(&self, answer: fn() -> Reply) {
        *self.answer.lock().unwrap() = answer;
    }

    async fn ask(&self, call: Call) -> Result<(String, CacheNote), CallError> {
        let (asked, answer) = (Arc::clone(&self.asked), Arc::clone(&self.answer));
        let service = CacheLayer(self.params.clone()).layer(service_fn(move |_: Call| {
            asked.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Ok((answer.lock().unwrap())()))
        }));
        let trail = call.context.trail.clone();
        let reply = service.oneshot(call).await?;
        let text = reply.body.as_whole().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
        let note = trail.lock().cache;
        Ok((text, note))
    }

    async fn wishing(&self, wish: CacheWish) -> Result<CacheNote, CallError> {
        self.ask(llm_call_of(0, CHAT, wish)).await.map(|(_, note)| note)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn event(&self, event: &str) -> f64 {
        sample(&self.params.metrics, &format!(r#"weighbridge_cache_events_total{{cache="response",event="{event}"}}"#))
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_given_again_with_its_age() {
    let cache = Fixture::new();
    assert_eq!(cache.ask(llm_call(CHAT)).await.unwrap(), ("hi".into(), CacheNote::Miss));
    cache.answers(|| whole("other"));
    tokio::time::advance(Duration::from_secs(3)).await;
    assert_eq!(cache.ask(llm_call(CHAT)).await.unwrap(), ("hi".into(), CacheNote::Hit { age_seconds: 3 }));
    assert_eq!((cache.asked(), cache.event("miss"), cache.event("hit")), (1, 1.0, 1.0));
}

#[tokio::test(start_paused = true)]
async fn c_another_tenant_body_or_route_never_shares_an_answer() {
    let mut cache = Fixture::new();
    cache.ask(llm_call(CHAT)).await.unwrap();
    assert_eq!(cache.ask(llm_call_of(1, CHAT, CacheWish::Default)).await.unwrap().1, CacheNote::Miss);
    assert_eq!(cache.ask(llm_call(CHAT.replace(':', ": "))).await.unwrap().1, CacheNote::Miss);
    cache.params.fingerprint = [2; 32];
    assert_eq!(cache.ask(llm_call(CHAT)).await.unwrap().1, CacheNote::Miss);
    assert_eq!(cache.asked(), 4);
}

#[tokio::test(start_paused = true)]
async fn only_complete_whole_answers_of_a_bearable_size_are_kept() {
    let partial: [fn() -> Reply; 3] = [
        || Reply { complete: false, ..whole("cut by length") },
        || Reply { status: StatusCode::ACCEPTED, ..whole("hm") },
        || whole(Box::leak("x".repeat((1 << 20) / 10 + 1).into_boxed_str())),
    ];
    for answer in partial {
        let cache = Fixture::new();
        cache.answers(answer);
        for _ in 0..2 {
            assert_eq!(cache.ask(llm_call(CHAT)).await.unwrap().1, CacheNote::Miss);
        }
        assert_eq!((cache.asked(), cache.event("refused_by_guard")), (2, 2.0));
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_not_kept() {
    let cache = Fixture::new();
    let failing = CacheLayer(cache.params.clone())
        .layer(service_fn(|_: Call| std::future::ready(Err::<Reply, _>(CallError::DeadlinePassed))));
    assert!(failing.oneshot(llm_call(CHAT)).await.is_err());
    assert_eq!(cache.ask(llm_call(CHAT)).await.unwrap().1, CacheNote::Miss);
}

#[tokio::test(start_paused = true)]
async fn streams_and_routes_without_a_cache_pass_by() {
    let mut cache = Fixture::new();
    cache.answers(|| streamed(events(&["1", "[DONE]"])));
    let stream = r#"{"model":"summary","stream":true,"messages":[]}"#;
    for _ in 0..2 {
        assert_eq!(cache.ask(llm_call(stream)).await.unwrap().1, CacheNote::Bypass);
    }
    let only = cache.ask(llm_call_of(0, stream, CacheWish::OnlyIfCached)).await;
    assert!(matches!(only, Err(CallError::NotCached)));
    cache.params.ttl = None;
    cache.answers(|| whole("hi"));
    for _ in 0..2 {
        assert_eq!(cache.wishing(CacheWish::Default).await.unwrap(), CacheNote::Bypass);
    }
    assert!(matches!(cache.wishing(CacheWish::OnlyIfCached).await, Err(CallError::NotCached)));
    assert_eq!((cache.asked(), cache.event("hit"), cache.event("miss")), (4, 0.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn the_caller_may_refuse_to_read_to_store_or_to_wait() {
    let cache = Fixture::new();
    assert!(matches!(cache.wishing(CacheWish::OnlyIfCached).await, Err(CallError::NotCached)));
    assert_eq!(cache.wishing(CacheWish::NoStore).await.unwrap(), CacheNote::Bypass);
    assert!(matches!(cache.wishing(CacheWish::OnlyIfCached).await, Err(CallError::NotCached)), "nothing was stored");
    assert_eq!(cache.wishing(CacheWish::NoCache).await.unwrap(), CacheNote::Miss);
    assert_eq!(cache.wishing(CacheWish::OnlyIfCached).await.unwrap(), CacheNote::Hit { age_seconds: 0 });
    cache.answers(|| whole("fresh"));
    assert_eq!(cache.wishing(CacheWish::NoCache).await.unwrap(), CacheNote::Miss);
    assert_eq!(cache.ask(llm_call(CHAT)).await.unwrap().0, "fresh", "no-cache replaces what is stored");
    assert_eq!(cache.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_lives_for_its_ttl_give_or_take_a_tenth_and_can_be_stored_again() {
    let cache = Fixture::new();
    cache.ask(llm_call(CHAT)).await.unwrap();
    tokio::time::advance(TTL * 9 / 10 - Duration::from_millis(1)).await;
    assert!(matches!(cache.wishing(CacheWish::Default).await.unwrap(), CacheNote::Hit { .. }));
    tokio::time::advance(TTL * 2 / 10 + Duration::from_millis(1)).await;
    assert_eq!(cache.wishing(CacheWish::Default).await.unwrap(), CacheNote::Miss);
    assert_eq!(cache.wishing(CacheWish::Default).await.unwrap(), CacheNote::Hit { age_seconds: 0 });
}

#[test]
fn an_answer_that_replaces_another_lives_its_own_life() {
    let stored = Stored { body: Bytes::new(), content_type: None, at: Instant::now(), life: TTL };
    let kept = Life.expire_after_update(&[0; 32], &Arc::new(stored), Instant::now().into_std(), Some(Duration::ZERO));
    assert_eq!(kept, Some(TTL));
}

#[test]
fn the_store_is_bounded_in_bytes() {
    let metrics = Metrics::new();
    let store = Store::new(10_000, [7; 32], &metrics);
    for number in 0..200u8 {
        let stored = Stored { body: vec![0; 1_000].into(), content_type: None, at: Instant::now(), life: TTL };
        store.answers.insert([number; 32], Arc::new(stored));
    }
    store.answers.run_pending_tasks();
    assert!(store.answers.weighted_size() <= 10_000);
}

proptest! {
    #[test]
    fn a_jittered_life_is_within_a_tenth(first in any::<u8>(), seconds in 1u64..1_000_000) {
        let (ttl, mut key) = (Duration::from_secs(seconds), [0; 32]);
        key[0] = first;
        let life = jittered(ttl, key);
        prop_assert!(life >= ttl * 9 / 10 && life <= ttl * 11 / 10);
    }
}
