//! Total time, for streams that never end.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::upstream::testing::{events, llm_call, streamed};

const CHAT: &str = r#"{"model":"m","messages":[]}"#;

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_its_calls_deadline_counted_from_arrival() {
    let service = DeadlineLayer { heartbeat: None }.layer(service_fn(|_: Call| async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        Ok::<_, CallError>(streamed(events(&["1"]).chain(stream::pending())))
    }));
    let started = Instant::now();
    let reply = service.oneshot(llm_call(CHAT)).await.ok().unwrap();
    let text = reply.body.collect().await.unwrap().to_bytes();
    assert_eq!(started.elapsed(), Duration::from_secs(60));
    assert!(String::from_utf8_lossy(&text).contains("deadline_exceeded"));
}
