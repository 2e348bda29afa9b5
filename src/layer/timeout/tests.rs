//! Who is to blame for an attempt that ran out of time.

use std::time::Duration;

use tokio::time::Instant;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::upstream::testing::{attempt, llm_call, whole};

const CHAT: &str = r#"{"model":"m","messages":[]}"#;

async fn after(took: Duration, limit: Duration, fair: Duration) -> Option<FailureClass> {
    let now = Instant::now();
    let service = TimeoutLayer.layer(service_fn(move |_| async move {
        tokio::time::sleep(took).await;
        Ok::<_, AttemptError>(whole("hi"))
    }));
    let attempt = Attempt { limit: now + limit, fair: now + fair, ..attempt(llm_call(CHAT)) };
    // Time passes between making an attempt and starting it.
    tokio::time::advance(Duration::from_micros(300)).await;
    let result = service.oneshot(attempt).await;
    assert!(now.elapsed() <= limit.max(took) + Duration::from_millis(1));
    result.err().map(|error| error.class)
}

#[tokio::test(start_paused = true)]
async fn f5_a_provider_that_had_a_fair_time_and_showed_nothing_failed() {
    let second = Duration::from_secs(1);
    assert_eq!(after(20 * second, 10 * second, 10 * second).await, Some(FailureClass::HeadersTimeout));
    assert_eq!(after(20 * second, 15 * second, 10 * second).await, Some(FailureClass::HeadersTimeout));
    assert_eq!(after(5 * second, 10 * second, 10 * second).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_was_given_less_by_the_callers_deadline_did_not() {
    let second = Duration::from_secs(1);
    assert_eq!(after(20 * second, 9 * second, 10 * second).await, Some(FailureClass::DeadlinePassed));
}
