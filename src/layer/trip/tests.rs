//! What the breaker learns from each way an attempt can end.

use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::outcome::Sent;
use crate::telemetry::metrics::Metrics;
use crate::upstream::breaker::State;
use crate::upstream::live::LiveUpstream;
use crate::upstream::testing::{Memory, attempt, events, live, llm_call, streamed, whole};

const CHAT: &str = r#"{"model":"m","messages":[]}"#;

struct Tripped {
    upstream: Arc<LiveUpstream>,
    params: Params,
}

fn tripped() -> Tripped {
    let upstream = live("agg/fast", &Memory::scripted(|_, _| async {}));
    let metrics = Metrics::new().upstream(&upstream.names.provider, "m");
    let params = Params { health: Arc::clone(&upstream.health), metrics };
    Tripped { upstream, params }
}

impl Tripped {
    async fn ends(
        &self,
        result: impl Fn() -> Result<Reply, AttemptError> + Clone + Send + 'static,
    ) -> Result<Reply, AttemptError> {
        let service = service_fn(move |_: Attempt| std::future::ready(result()));
        TripLayer(self.params.clone()).layer(service).oneshot(attempt(llm_call(CHAT))).await
    }

    async fn fails(&self, class: FailureClass, times: usize) {
        for _ in 0..times {
            let failed = self.ends(move || Err(AttemptError::new(class, Sent::Yes, "test"))).await;
            assert!(failed.is_err());
        }
    }

    fn state(&self) -> State {
        self.upstream.health.state(Instant::now())
    }

    /// Open, and its cool-down over.
    async fn half_open(&self) {
        self.fails(FailureClass::Connect, 5).await;
        tokio::time::sleep(Duration::from_millis(1_300)).await;
        assert_eq!(self.state(), State::HalfOpen);
    }
}

#[tokio::test]
async fn every_fault_of_the_provider_counts_and_nothing_else() {
    for class in FailureClass::ALL {
        let trip = tripped();
        trip.fails(class, 5).await;
        let opens = match class.blame() {
            // A rate limit pauses the quota group instead, and nobody learns from that here.
            Blame::Provider => class != FailureClass::RateLimited,
            Blame::Local | Blame::Caller | Blame::Nobody => false,
        };
        assert_eq!(trip.state() == State::Open, opens, "{class:?}");
        assert_eq!(trip.params.metrics.breaker.value(), if opens { 2 } else { 0 }, "{class:?}");
    }
}

#[tokio::test]
async fn f14_a_refused_request_shows_that_the_provider_works() {
    let trip = tripped();
    for _ in 0..3 {
        trip.fails(FailureClass::ProviderFault, 4).await;
        trip.fails(FailureClass::Refused, 1).await;
    }
    assert_eq!(trip.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_refuses_at_once_and_says_for_how_long() {
    let trip = tripped();
    trip.fails(FailureClass::Connect, 5).await;
    let error = trip.ends(|| panic!("the provider must not be asked")).await.err().unwrap();
    assert_eq!((error.class, error.sent), (FailureClass::Open, Sent::No));
    assert!(error.retry_after.unwrap() <= Duration::from_millis(1_200));
}

#[tokio::test(start_paused = true)]
async fn c7_one_forged_answer_is_enough_for_ten_seconds_however_many_were_in_flight() {
    let trip = tripped();
    for _ in 0..4 {
        trip.upstream.health.trip(Instant::now(), FORGERY_COOL_DOWN);
    }
    trip.upstream.health.trip(Instant::now(), FORGERY_COOL_DOWN);
    tokio::time::sleep(FORGERY_COOL_DOWN - Duration::from_millis(1)).await;
    assert_eq!(trip.state(), State::Open);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(trip.state(), State::HalfOpen);
    let trip = tripped();
    trip.fails(FailureClass::BadSignature, 1).await;
    assert_eq!(trip.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn f10_a_used_up_account_is_left_alone_for_five_minutes() {
    let trip = tripped();
    trip.fails(FailureClass::QuotaExhausted, 1).await;
    tokio::time::sleep(Duration::from_secs(299)).await;
    assert_eq!(trip.state(), State::Open);
    tokio::time::sleep(Duration::from_secs(1)).await;
    trip.fails(FailureClass::QuotaExhausted, 1).await;
    assert_eq!(trip.state(), State::Open, "one probe, and five minutes more");
}

#[tokio::test]
async fn f7_a_stream_cut_after_its_content_counts_at_its_end() {
    let trip = tripped();
    for _ in 0..10 {
        let reply = trip.ends(|| Ok(streamed(events(&["1"])))).await.unwrap();
        assert_eq!(trip.state(), State::Closed);
        reply.body.collect().await.unwrap();
    }
    assert_eq!(trip.state(), State::Open, "ten of twenty lessons were failures");
}

#[tokio::test]
async fn f45_a_client_that_leaves_is_not_the_providers_failure() {
    let trip = tripped();
    for _ in 0..30 {
        drop(trip.ends(|| Ok(streamed(events(&["1"])))).await.unwrap());
        let hanging = service_fn(|_: Attempt| std::future::pending::<Result<Reply, AttemptError>>());
        let call = TripLayer(trip.params.clone()).layer(hanging).oneshot(attempt(llm_call(CHAT)));
        drop(call);
    }
    assert_eq!(trip.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_probe_makes_room_for_the_next() {
    let trip = tripped();
    trip.half_open().await;
    let hanging = service_fn(|_: Attempt| std::future::pending::<Result<Reply, AttemptError>>());
    let mut guarded = TripLayer(trip.params.clone()).layer(hanging);
    let probe = guarded.call(attempt(llm_call(CHAT)));
    let second = trip.ends(|| Ok(whole("hi"))).await.err().unwrap();
    assert_eq!(second.class, FailureClass::Open, "one probe at a time");
    drop(probe);
    for _ in 0..3 {
        trip.ends(|| Ok(whole("hi"))).await.unwrap();
    }
    assert_eq!(trip.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn refusals_of_our_own_below_the_breaker_are_no_answer_to_a_probe() {
    let trip = tripped();
    trip.half_open().await;
    for class in [FailureClass::Full, FailureClass::Paced, FailureClass::Unauthorised, FailureClass::DeadlinePassed] {
        trip.fails(class, 1).await;
        assert_eq!(trip.state(), State::HalfOpen, "{class:?}");
    }
}
