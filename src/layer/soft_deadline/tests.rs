//! The promise of the timer, and what becomes of a verdict that comes after it.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::domain::decision::FallbackReason;
use crate::flight::reply::{ReplyBody, UsageSlot};
use crate::layer::fallback::{self, FallbackLayer};
use crate::layer::idempotency::{self, IdempotencyLayer, Ledger};
use crate::upstream::testing::{risk_call, sample};

const DEADLINE: Duration = Duration::from_millis(800);
const HARD: Duration = Duration::from_secs(3);

fn decided() -> Reply {
    let decision = Decision {
        id: crate::domain::id::DecisionId::fresh(),
        action: Action::Challenge,
        source: DecisionSource::Live,
        verdict: None,
        reasons: Vec::new(),
        applied: crate::domain::policy::Applied::sample(),
        late_verdict_expected: false,
        reused: None,
        created_at_ms: 0,
    };
    Reply {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: ReplyBody::whole(Bytes::new()),
        usage: UsageSlot::default(),
        complete: true,
        decision: Some(Arc::new(decision)),
    }
}

/// How many calls are inside, and how many reached their own end.
#[derive(Clone, Default)]
struct Inside {
    started: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Inside {
    fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }

    /// A provider that takes this long.
    fn taking(
        &self,
        time: Duration,
    ) -> impl Service<Call, Response = Reply, Error = CallError, Future: Send + 'static> + Clone + Send + 'static {
        let inside = self.clone();
        service_fn(move |_: Call| {
            inside.started.fetch_add(1, Ordering::SeqCst);
            inside.running.fetch_add(1, Ordering::SeqCst);
            let running = Running(Arc::clone(&inside.running));
            async move {
                let _running = running;
                tokio::time::sleep(time).await;
                Ok(decided())
            }
        })
    }
}

fn soft(metrics: &Arc<Metrics>) -> SoftDeadlineLayer {
    SoftDeadlineLayer(Params { deadline: DEADLINE, clerk: None, metrics: Arc::clone(metrics), revise: None })
}

fn late(metrics: &Metrics) -> f64 {
    sample(metrics, r#"weighbridge_decisions_total{merchant_category="other",action="CHALLENGE",source="late"}"#)
}

#[tokio::test(start_paused = true)]
async fn a_verdict_in_time_is_answered_when_it_comes() {
    let (inside, metrics) = (Inside::default(), Metrics::new());
    let service = soft(&metrics).layer(inside.taking(Duration::from_millis(794)));
    let started = Instant::now();
    assert!(service.oneshot(risk_call("T-1", "1.00")).await.unwrap().decision.is_some());
    assert_eq!((started.elapsed(), inside.running(), late(&metrics)), (Duration::from_millis(794), 0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn the_answer_leaves_five_milliseconds_before_the_deadline_counted_from_arrival() {
    let (inside, metrics) = (Inside::default(), Metrics::new());
    let service = soft(&metrics).layer(inside.taking(HARD * 2));
    let (started, call) = (Instant::now(), risk_call("T-1", "1.00"));
    // Reading the body took its time.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(matches!(service.oneshot(call).await, Err(CallError::DeadlinePassed)));
    assert_eq!(started.elapsed(), Duration::from_millis(795));
    assert_eq!(inside.running(), 1, "the call goes on");
    tokio::time::sleep_until(started + HARD - Duration::from_millis(1)).await;
    assert_eq!(inside.running(), 1);
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!((inside.running(), late(&metrics)), (0, 0.0), "and ends at its hard limit");
}

#[tokio::test(start_paused = true)]
async fn a_late_verdict_is_counted_and_kept_for_whoever_asks_again() {
    let (inside, metrics, ledger) = (Inside::default(), Metrics::new(), Ledger::default());
    let service = ServiceBuilder::new()
        .layer(FallbackLayer(fallback::Params { metrics: Arc::clone(&metrics) }))
        .layer(soft(&metrics))
        .layer(IdempotencyLayer(idempotency::Params {
            ledger,
            clerk: None,
            revise: None,
            metrics: Arc::clone(&metrics),
        }))
        .service(inside.taking(Duration::from_secs(1)));
    let first = service.clone().oneshot(risk_call("T-1", "1.00")).await.unwrap().decision.unwrap();
    assert_eq!((first.action, first.source), (Action::Review, DecisionSource::Fallback(FallbackReason::Deadline)));
    assert!(first.late_verdict_expected);
    // Asked again while it is on its way: the same call is waited for, within a deadline of one's own.
    let waiting = service.clone().oneshot(risk_call("T-1", "1.00")).await.unwrap().decision.unwrap();
    assert_eq!((waiting.action, waiting.source), (Action::Challenge, DecisionSource::Late));
    let again = service.oneshot(risk_call("T-1", "1.00")).await.unwrap().decision.unwrap();
    assert_eq!((again.action, again.source), (Action::Challenge, DecisionSource::Late));
    assert_eq!((inside.started(), inside.running()), (1, 0));
    // Once by the late verdict itself, twice by those who were told.
    assert_eq!(late(&metrics), 3.0);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_between_the_timer_and_the_deadline_is_late_too() {
    let (inside, metrics, ledger) = (Inside::default(), Metrics::new(), Ledger::default());
    let service = ServiceBuilder::new()
        .layer(soft(&metrics))
        .layer(IdempotencyLayer(idempotency::Params {
            ledger,
            clerk: None,
            revise: None,
            metrics: Arc::clone(&metrics),
        }))
        .service(inside.taking(Duration::from_millis(798)));
    assert!(service.clone().oneshot(risk_call("T-1", "1.00")).await.is_err());
    tokio::time::sleep(Duration::from_millis(10)).await;
    let again = service.oneshot(risk_call("T-1", "1.00")).await.unwrap().decision.unwrap();
    assert_eq!(again.source, DecisionSource::Late);
}

#[tokio::test(start_paused = true)]
async fn f45_a_client_that_leaves_does_not_take_the_paid_verdict_along() {
    let (inside, metrics, ledger) = (Inside::default(), Metrics::new(), Ledger::default());
    let service = ServiceBuilder::new()
        .layer(soft(&metrics))
        .layer(IdempotencyLayer(idempotency::Params {
            ledger,
            clerk: None,
            revise: None,
            metrics: Arc::clone(&metrics),
        }))
        .service(inside.taking(Duration::from_millis(300)));
    let gone =
        tokio::time::timeout(Duration::from_millis(100), service.clone().oneshot(risk_call("T-1", "1.00"))).await;
    assert!(gone.is_err());
    assert_eq!(inside.running(), 1);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let again = service.oneshot(risk_call("T-1", "1.00")).await.unwrap().decision.unwrap();
    assert_eq!((again.source, inside.started(), inside.running()), (DecisionSource::Replayed, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn f33_a_bug_below_is_an_error_now_and_not_a_wait_for_the_timer() {
    let metrics = Metrics::new();
    let service = soft(&metrics).layer(service_fn(|_: Call| async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        panic!("a bug");
    }));
    let started = Instant::now();
    let result: Result<Reply, CallError> = service.oneshot(risk_call("T-1", "1.00")).await;
    assert!(matches!(result, Err(CallError::Internal)));
    assert_eq!(started.elapsed(), Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_after_a_thousand_calls_of_every_kind() {
    let (inside, metrics) = (Inside::default(), Metrics::new());
    let calls = (0..1_000u64).map(|number| {
        let service = soft(&metrics).layer(inside.taking(Duration::from_millis(number * 5)));
        let patience = Duration::from_millis(number % 7 * 200);
        tokio::time::timeout(patience, service.oneshot(risk_call(&format!("T-{number}"), "1.00")))
    });
    futures_util::future::join_all(calls).await;
    tokio::time::sleep(HARD).await;
    assert_eq!(inside.running(), 0);
}
