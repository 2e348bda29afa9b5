//! The loop over scripted candidates, and over the simulated aggregator with every fault it knows.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::BodyExt;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::domain::outcome::Sent;
use crate::domain::secret::Secret;
use crate::layer::pace::{self, PaceLayer};
use crate::layer::timeout::TimeoutLayer;
use crate::layer::trip::{self, TripLayer};
use crate::sandbox::aggregator::{Aggregator, AggregatorConfig};
use crate::sandbox::fault::{Fault, Faults};
use crate::upstream::send::send;
use crate::upstream::testing::{Memory, SECRET_TEXT, fleet, llm_call, risk_call, sample, table, whole};

const CHAT: &str = r#"{"model":"summary","messages":[{"role":"user","content":"hello"}]}"#;
const STREAM: &str = r#"{"model":"summary","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
const NAMES: [&str; 3] = ["agg/fast", "other/fast", "agg/clever"];

type Made = Arc<Mutex<Vec<(usize, Attempt)>>>;

/// Candidates that do as they are told, and what they were asked.
struct Scripted {
    failover: Failover,
    made: Made,
    metrics: Arc<Metrics>,
    lanes: Arc<[Lane]>,
}

fn scripted<F>(count: usize, answer: impl Fn(usize, usize) -> F + Clone + Send + Sync + 'static) -> Scripted
where
    F: Future<Output = Result<Reply, AttemptError>> + Send + 'static,
{
    scripted_as(&NAMES[..count], answer)
}

fn scripted_as<F>(names: &[&str], answer: impl Fn(usize, usize) -> F + Clone + Send + Sync + 'static) -> Scripted
where
    F: Future<Output = Result<Reply, AttemptError>> + Send + 'static,
{
    let metrics = Metrics::new();
    let made = Made::default();
    let fleet = fleet(&table(), &Memory::scripted(|_, _| async {}));
    let lane = |index: usize| {
        let (made, answer, asked) = (Arc::clone(&made), answer.clone(), Arc::new(AtomicUsize::new(0)));
        let upstream = Arc::clone(&fleet.upstreams[names[index]]);
        let service = service_fn(move |attempt| {
            made.lock().unwrap().push((index, attempt));
            answer(index, asked.fetch_add(1, Ordering::SeqCst))
        });
        let metrics = metrics.provider(&upstream.names.provider);
        Lane { upstream, service: AttemptService::new(service), weight: 1, metrics }
    };
    let lanes: Arc<[Lane]> = (0..names.len()).map(lane).collect();
    Scripted { failover: Failover::new(params(&lanes, &metrics)), made, metrics, lanes }
}

fn params(lanes: &Arc<[Lane]>, metrics: &Arc<Metrics>) -> Params {
    let second = Duration::from_secs(1);
    let (lanes, metrics) = (Arc::clone(lanes), Arc::clone(metrics));
    Params {
        lanes,
        order: Order::AsListed,
        fallback_on: FallbackOn::default(),
        hedge: None,
        max_attempts: 3,
        connect: second,
        first_content: 10 * second,
        idle: 5 * second,
        metrics,
    }
}

impl Scripted {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        self.failover.clone().oneshot(call).await
    }

    fn order(&self) -> Vec<usize> {
        self.made.lock().unwrap().iter().map(|(index, _)| *index).collect()
    }
}

fn fail(class: FailureClass, sent: Sent) -> Result<Reply, AttemptError> {
    Err(AttemptError::new(class, sent, "test"))
}

fn exhausted(result: Result<Reply, CallError>) -> (FailureClass, Option<Duration>) {
    match result.err().unwrap() {
        CallError::Exhausted { last, retry_after } => (last.class, retry_after),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_first_candidate_that_answers_serves() {
    let flight = scripted(3, |_, _| async { Ok(whole("hi")) });
    let call = llm_call(CHAT);
    let trail = call.context.trail.clone();
    flight.call(call).await.unwrap();
    assert_eq!(flight.order(), [0]);
    assert_eq!(trail.lock().served.as_ref().unwrap().upstream.as_str(), "agg/fast");
}

#[tokio::test]
async fn a_listed_route_whose_first_candidate_is_well_looks_at_nobody_else() {
    let flight = scripted(3, |_, _| async { Ok(whole("hi")) });
    let call = llm_call(CHAT);
    let mut walk = walk::Walk::new(&flight.lanes, Order::AsListed);
    assert!(std::ptr::eq(walk.first(&call).unwrap(), &flight.lanes[0]));
    assert!(!walk.is_ranked());
    assert_eq!((walk.left(&call), walk.left_well(&call)), (2, 2));
    assert!(std::ptr::eq(walk.next(&call).unwrap(), &flight.lanes[1]));
    assert!(walk.is_ranked());
    flight.lanes[0].upstream.health.trip(Instant::now(), Duration::from_secs(5));
    let mut walk = walk::Walk::new(&flight.lanes, Order::AsListed);
    let order: Vec<_> = std::iter::once(walk.first(&call)).chain([walk.next(&call), walk.next(&call)]).collect();
    let expected = [1, 2, 0].map(|index| flight.lanes[index].upstream.names.upstream.clone());
    assert_eq!(
        order.into_iter().map(|lane| lane.unwrap().upstream.names.upstream.clone()).collect::<Vec<_>>(),
        expected
    );
    assert!(walk.next(&call).is_none());
}

#[tokio::test]
async fn no_more_attempts_than_the_cap_reach_providers() {
    let flight = scripted(3, |_, _| async { fail(FailureClass::ProviderFault, Sent::Yes) });
    let two = Failover::new(Params { max_attempts: 2, ..params(&flight.lanes, &flight.metrics) });
    assert_eq!(exhausted(two.oneshot(llm_call(CHAT)).await).0, FailureClass::ProviderFault);
    assert_eq!(flight.order(), [0, 1]);
    assert_eq!(flight.made.lock().unwrap().iter().map(|(_, attempt)| attempt.number).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn f12_refusals_of_our_own_are_no_attempts_and_cost_no_time() {
    let flight = scripted(3, |index, _| async move {
        match index {
            0 => fail(FailureClass::Open, Sent::No),
            1 => fail(FailureClass::Full, Sent::No),
            _ => Ok(whole("hi")),
        }
    });
    let one = Failover::new(Params { max_attempts: 1, ..params(&flight.lanes, &flight.metrics) });
    let started = Instant::now();
    assert!(one.oneshot(llm_call(CHAT)).await.is_ok());
    assert_eq!((flight.order(), started.elapsed()), (vec![0, 1, 2], Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn f9_when_all_are_limited_the_shortest_wait_is_told() {
    let flight = scripted(3, |index, _| async move {
        let wait = Duration::from_secs([7, 2, 5][index]);
        let class = if index == 2 { FailureClass::Paced } else { FailureClass::RateLimited };
        Err(AttemptError { retry_after: Some(wait), ..AttemptError::new(class, Sent::Yes, "test") })
    });
    // The third is refused by ourselves: two attempts are enough to ask it.
    let started = Instant::now();
    assert_eq!(exhausted(flight.call(llm_call(CHAT)).await), (FailureClass::Paced, Some(Duration::from_secs(2))));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn f14_what_the_caller_did_wrong_is_asked_once() {
    for class in [FailureClass::Refused, FailureClass::BadSignature] {
        let flight = scripted(3, move |_, _| async move { fail(class, Sent::Yes) });
        assert_eq!(exhausted(flight.call(llm_call(CHAT)).await).0, class);
        assert_eq!(flight.order(), [0]);
    }
}

#[tokio::test]
async fn a_payment_that_may_have_been_delivered_is_not_asked_about_again() {
    for sent in [Sent::Maybe, Sent::Yes] {
        let flight =
            scripted_as(&["judge", "judge"], move |_, _| async move { fail(FailureClass::HeadersTimeout, sent) });
        exhausted(flight.call(risk_call("T-1", "1.00")).await);
        assert_eq!(flight.order(), [0], "{sent:?}");
    }
    let flight = scripted_as(&["judge", "judge"], |_, _| async { fail(FailureClass::Connect, Sent::No) });
    exhausted(flight.call(risk_call("T-1", "1.00")).await);
    assert_eq!(flight.order(), [0, 1, 1], "nothing was sent: the next one, and that once more");
}

#[tokio::test(start_paused = true)]
async fn the_same_one_is_asked_again_within_its_budget_and_then_no_more() {
    let flight = scripted(1, |_, _| async { fail(FailureClass::ProviderFault, Sent::Yes) });
    let mut attempts = 0;
    for _ in 0..100 {
        exhausted(flight.call(llm_call(CHAT)).await);
        attempts = flight.order().len();
    }
    assert!((101..=125).contains(&attempts), "{attempts}: a tenth, and the floor of one a second");
    let refused = sample(&flight.metrics, "weighbridge_retry_budget_exhausted_total");
    assert_eq!(refused as usize + attempts, 200);
}

#[tokio::test(start_paused = true)]
async fn a_second_try_waits_a_moment_and_can_succeed() {
    let flight = scripted(1, |_, asked| async move {
        if asked == 0 { fail(FailureClass::Connect, Sent::No) } else { Ok(whole("hi")) }
    });
    let started = Instant::now();
    assert!(flight.call(llm_call(CHAT)).await.is_ok());
    // A moment, and up to a quarter of it for jitter, in whole milliseconds.
    assert!((50..=63).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_when_the_deadline_is_upon_us() {
    let flight = scripted(2, |_, _| async {
        tokio::time::sleep(Duration::from_millis(59_970)).await;
        fail(FailureClass::ProviderFault, Sent::Yes)
    });
    assert_eq!(exhausted(flight.call(llm_call(CHAT)).await).0, FailureClass::ProviderFault);
    assert_eq!(flight.order(), [0]);
    let late = llm_call(CHAT);
    tokio::time::sleep(Duration::from_millis(59_960)).await;
    assert!(matches!(flight.call(late).await, Err(CallError::DeadlinePassed)));
    assert_eq!(flight.order(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_gets_its_share_of_the_time_and_a_stream_its_first_content() {
    let flight = scripted(3, |_, _| async { fail(FailureClass::ProviderFault, Sent::Yes) });
    let now = Instant::now();
    exhausted(flight.call(llm_call(CHAT)).await);
    exhausted(flight.call(llm_call(STREAM)).await);
    let limits: Vec<_> = flight.made.lock().unwrap().iter().map(|(_, made)| (made.limit - now).as_secs()).collect();
    assert_eq!(limits, [20, 30, 60, 10, 10, 10]);
    assert!(flight.made.lock().unwrap().iter().all(|(_, made)| made.fair == now + Duration::from_secs(10)));
}

#[tokio::test]
async fn every_move_is_counted_by_who_failed_how() {
    let flight = scripted(2, |index, _| async move {
        if index == 0 { fail(FailureClass::Overloaded, Sent::Yes) } else { Ok(whole("hi")) }
    });
    flight.call(llm_call(CHAT)).await.unwrap();
    let series = r#"weighbridge_failovers_total{from="agg/fast",to="other/fast",reason="overloaded"}"#;
    assert_eq!(sample(&flight.metrics, series), 1.0, "{}", flight.metrics.render());
}

#[tokio::test(start_paused = true)]
async fn f45_a_client_that_leaves_ends_the_attempt() {
    struct Gone(Arc<AtomicUsize>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let gone = Arc::new(AtomicUsize::new(0));
    let inside = Arc::clone(&gone);
    let flight = scripted(2, move |_, _| {
        let guard = Gone(Arc::clone(&inside));
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    });
    let call = tokio::time::timeout(Duration::from_secs(1), flight.call(llm_call(CHAT)));
    assert!(call.await.is_err());
    assert_eq!((gone.load(Ordering::SeqCst), flight.order()), (1, vec![0]));
}

/// The real attempt stack, as far as failover depends on it, over the simulated aggregator.
struct Real {
    failover: Failover,
    aggregator: Aggregator,
    faults: Faults,
    metrics: Arc<Metrics>,
}

fn real() -> Real {
    let config = AggregatorConfig::new(Secret::new(SECRET_TEXT.into()));
    let faults = config.faults.clone();
    let aggregator = Aggregator::new(config);
    let behind = aggregator.clone();
    let dial = Memory::serving(move |request| {
        let aggregator = behind.clone();
        async move { aggregator.handle(request).await }
    });
    let metrics = Metrics::new();
    let fleet = fleet(&table(), &dial);
    let lane = |name: &&str| {
        let upstream = Arc::clone(&fleet.upstreams[*name]);
        let series = metrics.upstream(&upstream.names.provider, &upstream.names.model);
        let sender = Arc::clone(&upstream);
        let service = ServiceBuilder::new()
            .layer(TripLayer(trip::Params { health: Arc::clone(&upstream.health), metrics: series }))
            .layer(PaceLayer(pace::Params { pause: Arc::new(crate::upstream::limiter::Pause::new(Instant::now())) }))
            .layer(TimeoutLayer)
            .service(service_fn(move |attempt| send(attempt, Arc::clone(&sender))));
        let metrics = metrics.provider(&upstream.names.provider);
        Lane { upstream, service: AttemptService::new(service), weight: 1, metrics }
    };
    let lanes: Arc<[Lane]> = NAMES[..2].iter().map(lane).collect();
    Real { failover: Failover::new(params(&lanes, &metrics)), aggregator, faults, metrics }
}

impl Real {
    async fn text(&self, body: &'static str) -> Result<String, CallError> {
        let call = llm_call(body);
        let deadline = call.deadline.instant();
        let served = crate::layer::deadline::DeadlineLayer { heartbeat: None }.layer(self.failover.clone());
        let reply = served.oneshot(call).await?;
        assert!(Instant::now() <= deadline);
        Ok(String::from_utf8(reply.body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn f1_f2_f5_f6_f11_f13_f17_whatever_the_first_one_does_before_content_the_client_sees_one_good_answer() {
    let faults = [
        "refuse",
        "reset",
        "stall",
        "empty",
        "garbage",
        "cut:0",
        "stall:0",
        "error-in-200:503",
        "error-in-200:429",
        "status:500",
        "status:502",
        "status:503",
        "status:504",
        "status:529",
        "status:429;retry-after=2",
        "status:401",
        "status:403",
        "status:402",
        "delay:599s",
    ];
    for fault in faults {
        for body in [CHAT, STREAM] {
            let real = real();
            real.faults.set("agg", vec![Fault::parse(fault).unwrap()]);
            let text = real.text(body).await.unwrap_or_else(|error| panic!("{fault}: {error}"));
            assert!(text.contains("other"), "{fault}: {text}");
            assert!(!text.contains("\"agg\"") && !text.contains("error"), "{fault}: {text}");
            assert_eq!(text.matches("\"role\":\"assistant\"").count(), 1, "{fault}: {text}");
            assert_eq!(text.ends_with("data: [DONE]\n\n"), body == STREAM, "{fault}");
            assert_eq!(real.aggregator.seen().len(), 2, "{fault}");
            let moved = r#"weighbridge_failovers_total{from="agg/fast",to="other/fast""#;
            assert_eq!(sample(&real.metrics, moved), 1.0, "{fault}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn f7_after_the_first_content_there_is_no_way_back() {
    for (fault, code) in [("cut:3", "upstream_truncated"), ("stall:3", "upstream_stalled")] {
        let real = real();
        real.faults.set("agg", vec![Fault::parse(fault).unwrap()]);
        let text = real.text(STREAM).await.unwrap();
        assert!(text.contains(code) && !text.contains("[DONE]") && !text.contains("\"stop\""), "{fault}: {text}");
        assert_eq!(real.aggregator.seen().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn f1_f12_once_both_breakers_are_open_the_answer_is_immediate_and_says_when() {
    let real = real();
    for provider in ["agg", "other"] {
        real.faults.always(provider, Fault::parse("status:503").unwrap());
    }
    for _ in 0..5 {
        assert_eq!(exhausted(real.text(CHAT).await.map(|_| whole(""))).0, FailureClass::Overloaded);
    }
    let (seen, started) = (real.aggregator.seen().len(), Instant::now());
    let (class, wait) = exhausted(real.text(CHAT).await.map(|_| whole("")));
    assert_eq!((class, started.elapsed(), real.aggregator.seen().len()), (FailureClass::Open, Duration::ZERO, seen));
    assert!(wait.unwrap() <= Duration::from_millis(1_200));
    for provider in ["agg", "other"] {
        real.faults.clear(provider);
    }
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    assert!(real.text(CHAT).await.is_ok(), "the probe");
}

#[tokio::test(start_paused = true)]
async fn f5_a_provider_that_never_answers_is_left_alone_after_five_calls() {
    let real = real();
    real.faults.always("agg", Fault::Stall);
    for _ in 0..8 {
        real.text(STREAM).await.unwrap();
    }
    let asked = real.aggregator.seen().iter().filter(|seen| seen.provider == "agg").count();
    assert!(asked < 8, "{asked}: timeouts teach the breaker");
}
