//! A pause holds the whole group, exactly as long as asked.

use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::outcome::Sent;
use crate::upstream::testing::{attempt, llm_call, whole};

const CHAT: &str = r#"{"model":"m","messages":[]}"#;

async fn call(pause: &Arc<Pause>, result: Result<(), (FailureClass, Option<Duration>)>) -> Result<Reply, AttemptError> {
    let service = service_fn(move |_: Attempt| {
        std::future::ready(match result {
            Ok(()) => Ok(whole("hi")),
            Err((class, retry_after)) => {
                Err(AttemptError { retry_after, ..AttemptError::new(class, Sent::Yes, "test") })
            }
        })
    });
    PaceLayer(Params { pause: Arc::clone(pause) }).layer(service).oneshot(attempt(llm_call(CHAT))).await
}

async fn is_paused(pause: &Arc<Pause>) -> bool {
    match call(pause, Ok(())).await {
        Ok(_) => false,
        Err(error) => {
            assert_eq!((error.class, error.sent), (FailureClass::Paced, Sent::No));
            assert!(error.retry_after.is_some());
            true
        }
    }
}

#[tokio::test(start_paused = true)]
async fn f9_a_429_pauses_everyone_who_shares_the_quota_exactly_as_long_as_asked() {
    let pause = Arc::new(Pause::new(Instant::now()));
    tokio::time::advance(Duration::from_micros(700)).await;
    let asked = Duration::from_secs(2);
    call(&pause, Err((FailureClass::RateLimited, Some(asked)))).await.err().unwrap();
    // Another upstream's layer with the same pause.
    assert!(is_paused(&pause).await);
    tokio::time::advance(asked - Duration::from_micros(1)).await;
    assert!(is_paused(&pause).await);
    tokio::time::advance(Duration::from_micros(1)).await;
    assert!(!is_paused(&pause).await);
}

#[tokio::test(start_paused = true)]
async fn f9_a_429_without_a_word_pauses_for_a_second_and_other_failures_do_not() {
    let pause = Arc::new(Pause::new(Instant::now()));
    for class in FailureClass::ALL.into_iter().filter(|class| *class != FailureClass::RateLimited) {
        call(&pause, Err((class, Some(Duration::from_secs(9))))).await.err().unwrap();
        assert!(!is_paused(&pause).await, "{class:?}");
    }
    call(&pause, Err((FailureClass::RateLimited, None))).await.err().unwrap();
    tokio::time::advance(Duration::from_millis(999)).await;
    assert!(is_paused(&pause).await);
    // A quarter of it is jitter.
    tokio::time::advance(Duration::from_millis(251)).await;
    assert!(!is_paused(&pause).await);
}
