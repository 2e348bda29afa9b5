//! A place is held from the call to the end of the body, and never longer.

use std::time::Duration;

use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::outcome::Sent;
use crate::upstream::testing::{attempt, events, llm_call, streamed};

const CHAT: &str = r#"{"model":"m","messages":[]}"#;

fn one_place() -> (BulkheadLayer, Arc<limiter::Bulkhead>) {
    let places = Arc::new(limiter::Bulkhead::default());
    (BulkheadLayer(Params { places: Arc::clone(&places), limit: 1, part: 1, adaptive: None }), places)
}

#[tokio::test]
async fn a_place_is_held_until_the_body_ends_and_a_full_provider_is_refused_at_once() {
    let (layer, places) = one_place();
    let service = layer.layer(service_fn(|_: Attempt| std::future::ready(Ok(streamed(events(&["1", "[DONE]"]))))));
    let reply = service.clone().oneshot(attempt(llm_call(CHAT))).await.unwrap();
    assert_eq!(places.taken(), 1);
    let full = service.clone().oneshot(attempt(llm_call(CHAT))).await.err().unwrap();
    assert_eq!((full.class, full.sent), (FailureClass::Full, Sent::No));
    reply.body.collect().await.unwrap();
    assert_eq!(places.taken(), 0);
    assert!(service.oneshot(attempt(llm_call(CHAT))).await.is_ok());
}

#[tokio::test]
async fn f45_failures_and_clients_that_leave_give_their_place_back() {
    let (layer, places) = one_place();
    let failing = layer.layer(service_fn(|_: Attempt| {
        std::future::ready(Err::<Reply, _>(AttemptError::new(FailureClass::ProviderFault, Sent::Yes, "test")))
    }));
    assert!(failing.oneshot(attempt(llm_call(CHAT))).await.is_err());
    assert_eq!(places.taken(), 0);
    let mut hanging = layer.layer(service_fn(|_: Attempt| std::future::pending::<Result<Reply, AttemptError>>()));
    let call = hanging.call(attempt(llm_call(CHAT)));
    assert_eq!(places.taken(), 1);
    drop(call);
    assert_eq!(places.taken(), 0);
    let streaming = layer.layer(service_fn(|_: Attempt| std::future::ready(Ok(streamed(events(&["1"]))))));
    drop(streaming.oneshot(attempt(llm_call(CHAT))).await.unwrap());
    assert_eq!(places.taken(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_that_has_patience_waits_for_a_place_and_its_provider_is_not_blamed_for_having_less_time() {
    let (layer, places) = one_place();
    let service = layer.layer(service_fn(|attempt: Attempt| async move {
        assert!(attempt.limit < attempt.fair, "what the wait took is not the provider's");
        assert_eq!(attempt.begun, Instant::now());
        Ok(streamed(events(&["1", "[DONE]"])))
    }));
    let held = places.enter(1, attempt(llm_call(CHAT)).call.context.standing, Instant::now());
    let asked = Instant::now();
    let patient = Attempt { patience: Duration::from_millis(200), ..attempt(llm_call(CHAT)) };
    let leaves = async {
        tokio::time::sleep(Duration::from_millis(123)).await;
        drop(held);
    };
    let (reply, ()) = tokio::join!(service.clone().oneshot(patient.clone()), leaves);
    assert_eq!(asked.elapsed(), Duration::from_millis(123));
    assert_eq!(places.taken(), 1, "held until the body ends");
    let late = service.oneshot(patient).await.err().unwrap();
    assert_eq!((late.class, late.sent), (FailureClass::Full, Sent::No));
    assert_eq!(asked.elapsed(), Duration::from_millis(323), "and no longer than it was given");
    drop(reply);
    assert_eq!(places.taken(), 0);
}
