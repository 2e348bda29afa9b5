//! A caller's own limits, taken before anything is read and given back at the end.

use http::Method;
use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::layer::testing::{Snapshot, arrival, caller};
use crate::upstream::testing::{events, streamed};

type Asked = Arrival<Snapshot, ()>;

async fn ask(caller: &std::sync::Arc<LiveCaller>) -> Result<Reply, CallError> {
    let answer = |_: Asked| std::future::ready(Ok(streamed(events(&["1", "[DONE]"]))));
    let arrival = Arrival { caller: Some(std::sync::Arc::clone(caller)), ..arrival(Method::POST) };
    ThrottleLayer.layer(service_fn(answer)).oneshot(arrival).await
}

fn refused(result: Result<Reply, CallError>) -> (&'static str, Duration) {
    match result.err().unwrap() {
        CallError::Throttled { what, retry_after } => (what, retry_after),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn f36_requests_in_flight_are_counted_to_the_end_of_their_bodies() {
    let caller = caller(None, Some(2));
    let (first, second) = (ask(&caller).await.unwrap(), ask(&caller).await.unwrap());
    assert_eq!(refused(ask(&caller).await).0, "requests in flight");
    first.body.collect().await.unwrap();
    let third = ask(&caller).await.unwrap();
    drop((second, third));
    assert_eq!(caller.allowance.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn f36_requests_a_minute_are_told_how_long_to_wait_and_hold_no_place() {
    let caller = caller(Some(60), Some(1));
    drop(ask(&caller).await.unwrap());
    let (what, wait) = refused(ask(&caller).await);
    assert_eq!((what, caller.allowance.in_flight()), ("requests per minute", 0));
    // Its second, and up to a quarter more, so that not all who are told to come back do it together.
    assert!((1_000..=1_250).contains(&wait.as_millis()), "{wait:?}");
    tokio::time::advance(wait).await;
    assert!(ask(&caller).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_limits_has_none() {
    let caller = caller(None, None);
    let mut replies = Vec::new();
    for _ in 0..1_000 {
        replies.push(ask(&caller).await.unwrap());
    }
}
