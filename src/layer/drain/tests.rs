//! The end of a drain reaches streams and leaves everything else alone.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::upstream::testing::{events, streamed, whole};

async fn text(reply: Reply) -> String {
    String::from_utf8(reply.body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn endless() -> Reply {
    streamed(events(&["1"]).chain(stream::pending()))
}

#[tokio::test(start_paused = true)]
async fn f42_streams_that_outlive_the_drain_end_in_one_error_event() {
    let (over, watched) = watch::channel(false);
    let service = DrainLayer(Params { over: watched }).layer(service_fn(|()| async { Ok::<_, CallError>(endless()) }));
    let before = service.clone().oneshot(()).await.ok().unwrap();
    let reading = tokio::spawn(text(before));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!reading.is_finished());
    over.send_replace(true);
    assert!(reading.await.unwrap().contains("shutting_down"));
    let after = text(service.oneshot(()).await.ok().unwrap()).await;
    assert_eq!(after.matches("shutting_down").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn f42_whole_answers_and_streams_that_end_in_time_are_not_touched() {
    let (over, watched) = watch::channel(true);
    let layer = DrainLayer(Params { over: watched });
    let service = layer.layer(service_fn(|()| async { Ok::<_, CallError>(whole("hi")) }));
    assert_eq!(text(service.oneshot(()).await.ok().unwrap()).await, "hi");
    let service = layer.layer(service_fn(|()| async { Ok::<_, CallError>(streamed(events(&["1", "[DONE]"]))) }));
    assert!(text(service.oneshot(()).await.ok().unwrap()).await.ends_with("[DONE]\n\n"));
    drop(over);
}

#[tokio::test(start_paused = true)]
async fn nobody_left_to_say_so_is_not_a_shutdown() {
    let (over, watched) = watch::channel(false);
    drop(over);
    let service = DrainLayer(Params { over: watched }).layer(service_fn(|()| async { Ok::<_, CallError>(endless()) }));
    let reply = service.oneshot(()).await.ok().unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(60), text(reply)).await.is_err());
}
