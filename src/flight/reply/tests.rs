//! Every way a body can end, and that it ends once.

use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use http_body::Body;
use http_body_util::BodyExt;
use proptest::prelude::*;

use super::*;
use crate::domain::operation::Dialect;

type Ends = Arc<Mutex<Vec<(End, u64)>>>;

fn watched(mut body: ReplyBody) -> (ReplyBody, Ends) {
    let ends = Ends::default();
    let seen = Arc::clone(&ends);
    body.on_end(move |ended| seen.lock().unwrap().push((ended.end, ended.bytes)));
    body.name_call(RequestId::parse("req_7").unwrap());
    (body, ends)
}

fn event(text: &str) -> Event {
    Event::from_data(text.as_bytes())
}

fn streaming(events: impl Stream<Item = Result<Event, FailureClass>> + Send + 'static) -> (ReplyBody, Ends) {
    watched(ReplyBody::events(Box::pin(events), Dialect::OpenAi))
}

fn said(texts: &[&str]) -> impl Stream<Item = Result<Event, FailureClass>> + Send + use<> {
    stream::iter(texts.iter().map(|text| Ok(event(text))).collect::<Vec<_>>())
}

async fn text(body: ReplyBody) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn ends(ends: &Ends) -> Vec<(End, u64)> {
    ends.lock().unwrap().clone()
}

/// What a client that reads `text` is told went wrong, if it ends in exactly one error event and nothing else.
fn only_error(text: &str) -> String {
    let last = text.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
    let error: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(text.matches("\"error\"").count(), 1, "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    assert_eq!(error["error"]["request_id"], "req_7");
    assert!(text.ends_with("\n\n"));
    error["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_whole_body_is_one_frame_and_ends_complete() {
    let (mut body, seen) = watched(ReplyBody::whole(Bytes::from_static(b"{\"a\":1}")));
    assert_eq!(body.size_hint().exact(), Some(7), "hyper makes content-length of it");
    assert!(!body.is_end_stream());
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "{\"a\":1}");
    assert!(body.is_end_stream() && body.size_hint().exact() == Some(0));
    assert_eq!(ends(&seen), [(End::Complete, 7)]);
    assert!(body.frame().await.is_none());
    drop(body);
    assert_eq!(ends(&seen).len(), 1);
}

/// What hyper makes of an answer with this body to this request line.
async fn served(method: &str, body: ReplyBody) -> String {
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (mut near, far) = tokio::io::duplex(4_096);
    let body = Mutex::new(Some(body));
    let service = hyper::service::service_fn(move |_: http::Request<hyper::body::Incoming>| {
        std::future::ready(Ok::<_, Infallible>(http::Response::new(body.lock().unwrap().take().unwrap())))
    });
    let server = tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service));
    near.write_all(format!("{method} / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    near.read_to_string(&mut text).await.unwrap();
    server.await.unwrap().unwrap();
    text
}

#[tokio::test]
async fn over_http_a_whole_body_has_a_length_and_a_stream_is_chunked_and_both_end_complete() {
    let (body, seen) = watched(ReplyBody::whole(Bytes::from_static(b"hello")));
    let text = served("GET", body).await;
    assert!(text.contains("content-length: 5\r\n") && text.ends_with("\r\n\r\nhello"), "{text}");
    assert_eq!(ends(&seen), [(End::Complete, 5)]);
    let (body, seen) = watched(ReplyBody::whole(Bytes::new()));
    let text = served("GET", body).await;
    assert!(text.contains("content-length: 0\r\n"), "{text}");
    assert_eq!(ends(&seen), [(End::Complete, 0)]);
    let (body, seen) = streaming(said(&["1"]).chain(stream::iter([Ok(Event::done())])));
    let text = served("GET", body).await;
    assert!(text.contains("transfer-encoding: chunked") && text.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{text}");
    assert_eq!(ends(&seen), [(End::Complete, 23)]);
}

#[tokio::test]
async fn an_empty_body_is_complete_though_nobody_asks_for_it() {
    let (body, seen) = watched(ReplyBody::whole(Bytes::new()));
    assert!(body.is_end_stream() && body.size_hint().exact() == Some(0));
    drop(body);
    assert_eq!(ends(&seen), [(End::Complete, 0)]);
}

#[tokio::test]
async fn a_body_filled_later_has_the_length_of_what_it_was_filled_with() {
    let (mut body, seen) = watched(ReplyBody::whole(Bytes::new()));
    body.fill(Bytes::from_static(b"decision"));
    assert_eq!(body.size_hint().exact(), Some(8));
    assert_eq!(text(body).await, "decision");
    assert_eq!(ends(&seen), [(End::Complete, 8)]);
}

#[tokio::test]
async fn f45_a_client_that_leaves_before_the_first_frame_is_told_apart() {
    for body in [ReplyBody::whole(Bytes::from_static(b"x")), ReplyBody::events(Box::pin(said(&["1"])), Dialect::OpenAi)]
    {
        let (body, seen) = watched(body);
        drop(body);
        assert_eq!(ends(&seen), [(End::ClientGone, 0)]);
    }
}

#[tokio::test]
async fn f45_a_client_that_leaves_in_the_middle_is_told_apart_and_its_bytes_are_counted() {
    let (mut body, seen) = streaming(said(&["1", "2"]).chain(stream::pending()));
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(ends(&seen).is_empty());
    drop(body);
    assert_eq!(ends(&seen), [(End::ClientGone, frame.len() as u64)]);
}

#[tokio::test]
async fn a_stream_that_ends_with_its_terminal_event_is_complete_byte_for_byte() {
    let (body, seen) = streaming(said(&["1", "2"]).chain(stream::iter([Ok(Event::done())])));
    assert!(body.is_stream() && body.size_hint().exact().is_none() && !body.is_end_stream());
    let text = text(body).await;
    assert_eq!(text, "data: 1\n\ndata: 2\n\ndata: [DONE]\n\n");
    assert_eq!(ends(&seen), [(End::Complete, text.len() as u64)]);
}

#[tokio::test]
async fn a_client_that_leaves_after_the_terminal_event_has_had_everything() {
    let (mut body, seen) = streaming(stream::iter([Ok(Event::done())]).chain(stream::pending()));
    body.frame().await.unwrap().unwrap();
    assert!(ends(&seen).is_empty());
    drop(body);
    assert_eq!(ends(&seen), [(End::Complete, 14)]);
}

#[tokio::test]
async fn nothing_follows_the_terminal_event_and_nobody_waits_for_it() {
    let (body, seen) = streaming(stream::iter([Ok(Event::done()), Err(FailureClass::StreamCut)]));
    assert_eq!(text(body).await, "data: [DONE]\n\n");
    let (body, hanging) = streaming(stream::iter([Ok(Event::done())]).chain(stream::pending()));
    assert_eq!(text(body).await, "data: [DONE]\n\n");
    assert_eq!((ends(&seen)[0].0, ends(&hanging)[0].0), (End::Complete, End::Complete));
}

#[tokio::test]
async fn f7_a_stream_that_just_ends_gets_exactly_one_error_event() {
    let (body, seen) = streaming(said(&["1"]));
    let text = text(body).await;
    assert_eq!(only_error(&text), "upstream_truncated");
    assert_eq!(ends(&seen), [(End::UpstreamFailed(FailureClass::StreamCut), text.len() as u64)]);
}

#[tokio::test]
async fn f7_each_failure_of_a_stream_has_its_own_word() {
    for (class, code) in [
        (FailureClass::StreamCut, "upstream_truncated"),
        (FailureClass::NoContent, "upstream_stalled"),
        (FailureClass::ProviderFault, "upstream_error"),
    ] {
        let (body, seen) = streaming(said(&["1"]).chain(stream::iter([Err(class)])));
        assert_eq!(only_error(&text(body).await), code);
        assert_eq!(ends(&seen)[0].0, End::UpstreamFailed(class));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_in_one_error_event_at_the_deadline_or_at_shutdown() {
    for (end, code) in [(End::DeadlinePassed, "deadline_exceeded"), (End::ShuttingDown, "shutting_down")] {
        let (mut body, seen) = streaming(said(&["1"]).chain(stream::pending()));
        body.end_when(std::future::pending(), End::ClientGone);
        body.end_when(tokio::time::sleep(Duration::from_secs(3)), end);
        let started = tokio::time::Instant::now();
        assert_eq!(only_error(&text(body).await), code);
        assert_eq!(started.elapsed(), Duration::from_secs(3));
        assert_eq!(ends(&seen).len(), 1);
        assert_eq!(ends(&seen)[0].0, end);
    }
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_wakes_a_body_that_was_moved_to_another_task() {
    let (mut body, _) = streaming(said(&["1"]).chain(stream::pending()));
    body.end_when(tokio::time::sleep(Duration::from_secs(3)), End::DeadlinePassed);
    body.frame().await.unwrap().unwrap();
    // Polled once here, so that the wakers it holds are this task's.
    assert!(futures_util::FutureExt::now_or_never(body.frame()).is_none());
    let text = tokio::spawn(text(body)).await.unwrap();
    assert_eq!(only_error(&text), "deadline_exceeded");
}

#[tokio::test]
async fn a_whole_body_ignores_interrupts() {
    let (mut body, seen) = watched(ReplyBody::whole(Bytes::from_static(b"x")));
    body.end_when(std::future::ready(()), End::ShuttingDown);
    assert_eq!(text(body).await, "x");
    assert_eq!(ends(&seen), [(End::Complete, 1)]);
}

#[tokio::test]
async fn hooks_run_from_the_inside_out() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut body = ReplyBody::whole(Bytes::from_static(b"x"));
    for name in ["meter", "bulkhead", "record"] {
        let order = Arc::clone(&order);
        body.on_end(move |_| order.lock().unwrap().push(name));
    }
    text(body).await;
    assert_eq!(*order.lock().unwrap(), ["meter", "bulkhead", "record"]);
}

#[tokio::test]
async fn the_upstream_is_let_go_of_before_the_hooks_run() {
    struct Upstream(Arc<Mutex<bool>>);
    impl Drop for Upstream {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = true;
        }
    }
    let gone = Arc::new(Mutex::new(false));
    let upstream = Upstream(Arc::clone(&gone));
    let mut body = ReplyBody::events(
        Box::pin(stream::poll_fn(move |_| {
            let _ = &upstream;
            Poll::Pending
        })),
        Dialect::OpenAi,
    );
    let (at_end, closed) = (Arc::clone(&gone), Arc::new(Mutex::new(None)));
    let seen = Arc::clone(&closed);
    body.on_end(move |_| *seen.lock().unwrap() = Some(*at_end.lock().unwrap()));
    drop(body);
    assert_eq!(*closed.lock().unwrap(), Some(true));
}

proptest! {
    #[test]
    fn however_a_stream_goes_it_ends_once_and_never_both_ways(steps in prop::collection::vec(0u8..5, 0..12), read in 0usize..15) {
        let items: Vec<_> = steps.iter().map(|step| match step {
            0 => Ok(Event::done()),
            1 => Err(FailureClass::StreamCut),
            2 => Err(FailureClass::NoContent),
            _ => Ok(event("x")),
        }).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut body, seen) = streaming(stream::iter(items));
            let mut text = Vec::new();
            for _ in 0..read {
                let Some(frame) = body.frame().await else { break };
                text.extend_from_slice(&frame.unwrap().into_data().unwrap());
            }
            drop(body);
            let text = String::from_utf8(text).unwrap();
            let (done, errors) = (text.matches("[DONE]").count(), text.matches("\"error\"").count());
            prop_assert!(done + errors <= 1, "{text}");
            prop_assert_eq!(ends(&seen).len(), 1);
            prop_assert_eq!(ends(&seen)[0].1, text.len() as u64);
            prop_assert_eq!(ends(&seen)[0].0 == End::Complete, done == 1);
            Ok(())
        })?;
    }
}
