//! One payment attempt, one decision: whoever asks, however often, at whatever moment.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::decision::Action;
use crate::domain::outcome::{FailureClass, Sent};
use crate::flight::error::AttemptError;
use crate::upstream::testing::{risk_call, risk_call_of, sample};

type Asked = Arc<AtomicUsize>;

fn decision() -> Reply {
    let decision = Decision {
        id: crate::domain::id::DecisionId::fresh(),
        action: Action::Review,
        source: DecisionSource::Live,
        verdict: None,
        reasons: Vec::new(),
        applied: crate::domain::policy::Applied::sample(),
        late_verdict_expected: false,
        reused: None,
        created_at_ms: 7,
    };
    replay(&Decided { asked: super::Asked::Body([0; 32]), decision: Arc::new(decision), late: false })
}

fn live() -> Reply {
    let mut reply = decision();
    reply.decision =
        reply.decision.map(|decision| Arc::new(Decision { source: DecisionSource::Live, ..(*decision).clone() }));
    reply
}

fn exhausted() -> CallError {
    CallError::Exhausted { last: AttemptError::new(FailureClass::Connect, Sent::No, "test"), retry_after: None }
}

struct Fixture {
    params: Params,
    asked: Asked,
}

impl Fixture {
    fn new() -> Self {
        Self {
            params: Params { ledger: Ledger::default(), clerk: None, revise: None, metrics: Metrics::new() },
            asked: Asked::default(),
        }
    }

    fn answering(
        &self,
        answer: impl Fn(usize) -> Result<Reply, CallError> + Clone + Send + 'static,
    ) -> impl Service<Call, Response = Reply, Error = CallError, Future: Send + 'static> + Clone + Send + 'static {
        let asked = Arc::clone(&self.asked);
        IdempotencyLayer(self.params.clone()).layer(service_fn(move |_: Call| {
            let (number, answer) = (asked.fetch_add(1, Ordering::SeqCst), answer.clone());
            async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                answer(number)
            }
        }))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn is_empty(&self) -> bool {
        self.params.ledger.flights().is_empty()
    }
}

fn source(reply: Result<Reply, CallError>) -> DecisionSource {
    reply.unwrap().decision.unwrap().source
}

#[tokio::test(start_paused = true)]
async fn a_hundred_at_once_are_one_call_and_a_hundred_equal_decisions() {
    let ledger = Fixture::new();
    let service = ledger.answering(|_| Ok(live()));
    let replies = join_all((0..100).map(|_| service.clone().oneshot(risk_call("T-1", "1.00")))).await;
    let mut sources = Vec::new();
    for reply in replies {
        let decision = reply.unwrap().decision.unwrap();
        assert_eq!((decision.action, decision.created_at_ms), (Action::Review, 7));
        sources.push(decision.source);
    }
    assert_eq!(sources.iter().filter(|source| **source == DecisionSource::Live).count(), 1);
    assert_eq!(sources.iter().filter(|source| **source == DecisionSource::Replayed).count(), 99);
    assert_eq!((ledger.asked(), ledger.is_empty()), (1, true));
    let event = |event| {
        sample(
            &ledger.params.metrics,
            &format!(r#"weighbridge_cache_events_total{{cache="idempotency",event="{event}"}}"#),
        )
    };
    assert_eq!((event("coalesced"), event("hit")), (99.0, 0.0));
    assert_eq!(source(service.oneshot(risk_call("T-1", "1.00")).await), DecisionSource::Replayed);
    assert_eq!((ledger.asked(), event("hit")), (1, 1.0));
}

#[tokio::test(start_paused = true)]
async fn the_same_number_with_another_body_is_a_conflict_during_the_call_and_after_it() {
    let ledger = Fixture::new();
    let service = ledger.answering(|_| Ok(live()));
    let first = tokio::spawn(service.clone().oneshot(risk_call("T-1", "1.00")));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(matches!(service.clone().oneshot(risk_call("T-1", "2.00")).await, Err(CallError::Conflict)));
    first.await.unwrap().unwrap();
    assert!(matches!(service.clone().oneshot(risk_call("T-1", "2.00")).await, Err(CallError::Conflict)));
    assert_eq!(ledger.asked(), 1);
    service.oneshot(risk_call("T-2", "2.00")).await.unwrap();
    assert_eq!(ledger.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn another_tenants_payment_of_the_same_number_is_another_payment() {
    let ledger = Fixture::new();
    let service = ledger.answering(|_| Ok(live()));
    for caller in [0, 1] {
        assert_eq!(source(service.clone().oneshot(risk_call_of(caller, "T-1", "1.00")).await), DecisionSource::Live);
    }
    assert_eq!(ledger.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_all_who_waited_and_kept_for_nobody() {
    let ledger = Fixture::new();
    let service = ledger.answering(|number| if number == 0 { Err(exhausted()) } else { Ok(live()) });
    let replies = join_all((0..10).map(|_| service.clone().oneshot(risk_call("T-1", "1.00")))).await;
    assert!(replies.into_iter().all(|reply| matches!(reply, Err(CallError::Exhausted { .. }))));
    assert_eq!((ledger.asked(), ledger.is_empty()), (1, true));
    // Another body is as good as the first: nothing was decided.
    assert_eq!(source(service.oneshot(risk_call("T-1", "2.00")).await), DecisionSource::Live);
}

#[tokio::test(start_paused = true)]
async fn when_the_one_who_asked_is_dropped_nobody_waits_for_ever() {
    let ledger = Fixture::new();
    let service = ledger.answering(|_| Ok(live()));
    let leader = tokio::spawn(service.clone().oneshot(risk_call("T-1", "1.00")));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let follower = tokio::spawn(service.clone().oneshot(risk_call("T-1", "1.00")));
    tokio::time::sleep(Duration::from_millis(50)).await;
    leader.abort();
    assert!(matches!(follower.await.unwrap(), Err(CallError::DeadlinePassed)));
    assert!(ledger.is_empty());
    assert_eq!(source(service.oneshot(risk_call("T-1", "1.00")).await), DecisionSource::Live);
}

#[tokio::test(start_paused = true)]
async fn f33_a_bug_in_the_one_who_asked_leaves_nothing_behind() {
    let ledger = Fixture::new();
    let service = IdempotencyLayer(ledger.params.clone())
        .layer(service_fn(|_: Call| async { panic!("a bug") as Result<Reply, CallError> }));
    let leader = tokio::spawn(service.oneshot(risk_call("T-1", "1.00")));
    assert!(leader.await.err().unwrap().is_panic());
    assert!(ledger.is_empty());
    let service = ledger.answering(|_| Ok(live()));
    assert_eq!(source(service.oneshot(risk_call("T-1", "1.00")).await), DecisionSource::Live);
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_leaves_disturbs_nobody() {
    let ledger = Fixture::new();
    let service = ledger.answering(|_| Ok(live()));
    let leader = tokio::spawn(service.clone().oneshot(risk_call("T-1", "1.00")));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let follower = service.clone().oneshot(risk_call("T-1", "1.00"));
    assert!(tokio::time::timeout(Duration::from_millis(50), follower).await.is_err());
    assert_eq!(source(leader.await.unwrap()), DecisionSource::Live);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_that_came_after_the_answer_is_labelled_late() {
    let ledger = Fixture::new();
    let service = ledger.answering(|_| Ok(live()));
    let slow = risk_call("T-1", "1.00");
    tokio::time::sleep(Duration::from_millis(700)).await;
    service.clone().oneshot(slow).await.unwrap();
    assert_eq!(source(service.oneshot(risk_call("T-1", "1.00")).await), DecisionSource::Late);
}
