//! One line per request, with what was settled by then, however the request ends.

use std::io::{self, Write};
use std::sync::Mutex;

use futures_util::stream;
use http::Method;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::operation::Dialect;
use crate::domain::outcome::FailureClass;
use crate::domain::usage::Usage;
use crate::layer::testing::{Snapshot, arrival};
use crate::telemetry::lines::LineWriter;
use crate::telemetry::logs::LogFormat;
use crate::telemetry::metrics::Metrics;
use crate::upstream::testing::{events, sample};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Fixture {
    params: Params,
    written: Written,
    writer: LineWriter,
    metrics: Arc<Metrics>,
}

fn fixture() -> Fixture {
    let (written, metrics) = (Written::default(), Metrics::new());
    let writer = LineWriter::start(written.clone(), metrics.log_dropped.clone()).unwrap();
    let log = AccessLog::new(LogFormat::Json, writer.lines());
    let unrouted = metrics.route(&crate::domain::id::RouteId::new("none"));
    let spans = Arc::new(Spans::new(metrics.traces.clone()));
    Fixture { params: Params { log, unrouted, recent: Arc::default(), spans }, written, writer, metrics }
}

impl Fixture {
    async fn answered(&self, method: Method, status: u16, body: ReplyBody) -> Response<ReplyBody> {
        let body = Mutex::new(Some(body));
        let service = service_fn(move |arrival: Arrival<Snapshot, ()>| {
            let mut body = body.lock().unwrap().take().unwrap();
            let trail = arrival.trail.clone();
            // As the meter does, further inside.
            body.on_end(move |_| {
                trail.lock().usage = Usage { input_tokens: Some(3), output_tokens: Some(4), ..Usage::default() }
            });
            let mut response = Response::new(body);
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            std::future::ready(Ok::<_, Infallible>(response))
        });
        RecordLayer(self.params.clone()).layer(service).oneshot(arrival(method)).await.unwrap()
    }

    /// All lines, once the log is closed.
    fn lines(self) -> (Vec<Value>, Arc<Metrics>) {
        drop(self.writer);
        let text = String::from_utf8(self.written.0.lock().unwrap().clone()).unwrap();
        (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), self.metrics)
    }
}

fn ended(metrics: &Metrics, outcome: &str) -> f64 {
    sample(metrics, &format!(r#"weighbridge_requests_total{{route="none",outcome="{outcome}"}}"#))
}

#[tokio::test]
async fn a_streams_line_is_written_at_its_end_with_what_the_meter_settled() {
    let log = fixture();
    let response =
        log.answered(Method::POST, 200, ReplyBody::events(Box::pin(events(&["1", "[DONE]"])), Dialect::OpenAi)).await;
    assert_eq!(ended(&log.metrics, "ok"), 0.0);
    response.into_body().collect().await.unwrap();
    let (lines, metrics) = log.lines();
    assert_eq!(lines.len(), 1);
    let line = lines[0].to_string();
    assert!(line.contains("req_test") && line.contains("abcdef012345") && line.contains("complete"), "{line}");
    assert_eq!((&lines[0]["tokens_in"], &lines[0]["tokens_out"]), (&3.into(), &4.into()));
    assert_eq!(ended(&metrics, "ok"), 1.0);
    let streams = r#"weighbridge_stream_outcomes_total{route="none",outcome="complete"}"#;
    assert_eq!(sample(&metrics, streams), 1.0);
}

#[tokio::test]
async fn each_end_has_its_outcome() {
    let cases: [(u16, &str); 10] = [
        (200, "ok"),
        (400, "client_error"),
        (401, "unauthorised"),
        (403, "unauthorised"),
        (408, "timeout"),
        (429, "rate_limited"),
        (500, "error"),
        (502, "upstream_error"),
        (503, "upstream_error"),
        (504, "timeout"),
    ];
    for (status, outcome) in cases {
        let log = fixture();
        let response = log.answered(Method::POST, status, ReplyBody::whole("x".into())).await;
        response.into_body().collect().await.unwrap();
        let (lines, metrics) = log.lines();
        assert_eq!((lines.len(), ended(&metrics, outcome)), (1, 1.0), "{status}");
    }
    let log = fixture();
    let cut = ReplyBody::events(Box::pin(stream::iter([Err(FailureClass::StreamCut)])), Dialect::OpenAi);
    log.answered(Method::POST, 200, cut).await.into_body().collect().await.unwrap();
    assert_eq!(ended(&log.lines().1, "upstream_error"), 1.0);
}

#[tokio::test]
async fn f45_a_client_that_leaves_is_recorded_whenever_it_does() {
    let log = fixture();
    drop(log.answered(Method::POST, 200, ReplyBody::whole("x".into())).await);
    let hanging =
        service_fn(|_: Arrival<Snapshot, ()>| std::future::pending::<Result<Response<ReplyBody>, Infallible>>());
    drop(RecordLayer(log.params.clone()).layer(hanging).call(arrival(Method::POST)));
    let (lines, metrics) = log.lines();
    assert_eq!((lines.len(), ended(&metrics, "client_gone")), (2, 2.0));
    assert!(lines[1].to_string().contains("499"));
}

#[tokio::test]
async fn a_head_request_is_answered_though_nobody_takes_its_body() {
    let log = fixture();
    drop(log.answered(Method::HEAD, 405, ReplyBody::whole("x".into())).await);
    let (lines, metrics) = log.lines();
    assert_eq!((lines.len(), ended(&metrics, "client_error")), (1, 1.0));
}

#[tokio::test]
async fn an_attempt_nobody_waited_for_is_in_the_line() {
    let log = fixture();
    let names = Arc::clone(
        &crate::upstream::testing::live("judge", &crate::upstream::testing::Memory::scripted(|_, _| async {})).names,
    );
    let service = service_fn(move |arrival: Arrival<Snapshot, ()>| {
        let flying = trail::Flying::new(Arc::clone(&names), Instant::now());
        arrival.trail.lock().take_off(flying);
        std::future::ready(Ok::<_, Infallible>(Response::new(ReplyBody::whole("x".into()))))
    });
    let response = RecordLayer(log.params.clone()).layer(service).oneshot(arrival(Method::POST)).await.unwrap();
    response.into_body().collect().await.unwrap();
    let line = log.lines().0[0].to_string();
    assert!(line.contains("judge") && line.contains("abandoned"), "{line}");
}
