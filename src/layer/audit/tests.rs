//! What is answered is on record, or the route says what happens.

use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::decision::Action;
use crate::domain::policy::Applied;
use crate::store::writer::{Faults, RecordsConfig};
use crate::upstream::testing::{risk_call, sample};

fn decided() -> Reply {
    let decision = Decision {
        id: DecisionId::fresh(),
        action: Action::Pass,
        source: DecisionSource::Live,
        verdict: None,
        reasons: Vec::new(),
        applied: Applied::sample(),
        late_verdict_expected: false,
        reused: None,
        created_at_ms: 7,
    };
    Reply { decision: Some(Arc::new(decision)), ..Reply::json(bytes::Bytes::new()) }
}

fn layer(clerk: Option<Clerk>, on_unrecorded: OnUnrecorded) -> AuditLayer {
    AuditLayer(Params { clerk, deadline: Duration::from_millis(800), on_unrecorded })
}

fn closed(metrics: &Arc<Metrics>) -> Clerk {
    Clerk::new(Records::unavailable(Arc::new(metrics.audit.clone())), Arc::clone(metrics))
}

fn answering(
    answer: impl Fn() -> Result<Reply, CallError> + Clone + Send + 'static,
) -> impl Service<Call, Response = Reply, Error = CallError, Future: Send + 'static> {
    service_fn(move |_: Call| std::future::ready(answer()))
}

#[tokio::test]
async fn without_a_record_everything_passes() {
    let service = layer(None, OnUnrecorded::Refuse).layer(answering(|| Ok(decided())));
    assert!(service.oneshot(risk_call("T-1", "1.00")).await.is_ok());
}

#[tokio::test]
async fn row_24_what_cannot_be_recorded_is_withheld_or_given_as_the_route_says_and_counted() {
    let metrics = Metrics::new();
    let count = |result: &str| sample(&metrics, &format!(r#"weighbridge_audit_unrecorded_total{{result="{result}"}}"#));
    let refusing = layer(Some(closed(&metrics)), OnUnrecorded::Refuse).layer(answering(|| Ok(decided())));
    assert!(matches!(refusing.oneshot(risk_call("T-1", "1.00")).await, Err(CallError::AuditUnavailable)));
    assert_eq!((count("refused"), count("continued")), (1.0, 0.0));
    let going_on = layer(Some(closed(&metrics)), OnUnrecorded::Continue).layer(answering(|| Ok(decided())));
    assert!(going_on.oneshot(risk_call("T-1", "1.00")).await.is_ok());
    assert_eq!((count("refused"), count("continued")), (1.0, 1.0));
    assert_eq!(sample(&metrics, "weighbridge_audit_backlog"), 0.0);
}

#[tokio::test]
async fn the_callers_own_mistakes_stay_what_they_are() {
    let metrics = Metrics::new();
    let service = layer(Some(closed(&metrics)), OnUnrecorded::Refuse).layer(answering(|| Err(CallError::Conflict)));
    assert!(matches!(service.oneshot(risk_call("T-1", "1.00")).await, Err(CallError::Conflict)));
}

#[tokio::test]
async fn what_is_known_to_be_on_record_needs_no_writer() {
    let (folder, metrics) = (tempfile::tempdir().unwrap(), Metrics::new());
    let config = RecordsConfig {
        folder: folder.path().to_owned(),
        checkpoints: None,
        watch: Arc::new(metrics.audit.clone()),
        faults: Faults::default(),
    };
    let records = Records::open(config).unwrap();
    let clerk = Clerk::new(records.clone(), Arc::clone(&metrics));
    let given = decided().decision.unwrap();
    let same = move || Ok(Reply { decision: Some(Arc::clone(&given)), ..Reply::json(bytes::Bytes::new()) });
    for round in 0..2 {
        let service = layer(Some(clerk.clone()), OnUnrecorded::Refuse).layer(answering(same.clone()));
        assert!(service.oneshot(risk_call("T-1", "1.00")).await.is_ok(), "{round}");
        let closing = records.clone();
        tokio::task::spawn_blocking(move || closing.stop()).await.unwrap();
    }
    let other = layer(Some(clerk), OnUnrecorded::Refuse).layer(answering(|| Ok(decided())));
    assert!(matches!(other.oneshot(risk_call("T-2", "1.00")).await, Err(CallError::AuditUnavailable)));
}

#[test]
fn recording_takes_sixty_milliseconds_of_a_deadline_and_an_eighth_of_a_short_one() {
    let clerk = closed(&Metrics::new());
    let left = |ms| for_verdict(Duration::from_millis(ms), Some(&clerk)).as_millis();
    assert_eq!((left(800), left(480), left(400), left(80)), (740, 420, 350, 70));
    assert_eq!(for_verdict(Duration::from_millis(800), None), Duration::from_millis(800));
}
