//! What is refused is refused from the head alone, and its body is somebody else's business, within bounds.

use std::convert::Infallible;
use std::sync::atomic::AtomicUsize;

use futures_util::StreamExt;
use http::HeaderValue;
use http_body::Frame;
use http_body_util::StreamBody;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::overload::Stage;
use crate::flight::gate::Scarce;
use crate::layer::testing::{Snapshot, arrival, caller};

/// A body of one-kilobyte chunks that counts how many were taken.
fn chunks(count: usize, taken: &Arc<AtomicUsize>) -> impl Body<Data = Bytes, Error = Infallible> + Unpin + use<> {
    let taken = Arc::clone(taken);
    StreamBody::new(futures_util::stream::iter(0..count).map(move |_| {
        taken.fetch_add(1, Relaxed);
        Ok(Frame::data(Bytes::from_static(&[b' '; 1024])))
    }))
}

fn request<B>(body: B) -> Arrival<Snapshot, B> {
    let mut arrival = arrival(Method::POST).with_body(body);
    arrival.caller = Some(caller(None, None));
    arrival.operation = Some(Operation::ChatCompletions);
    arrival
}

fn payments_only() -> (AdmissionLayer, Arc<Metrics>) {
    let (gate, metrics) = (Arc::new(Gate::default()), Metrics::new());
    gate.enter_stage(Stage::RiskOnly, Scarce::Memory);
    (AdmissionLayer(Params { gate, metrics: Arc::clone(&metrics) }), metrics)
}

async fn offer<B>(layer: &AdmissionLayer, arrival: Arrival<Snapshot, B>) -> Option<CallError>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    let inner = service_fn(|_: Arrival<Snapshot, B>| std::future::ready(Ok(Reply::json(Bytes::from_static(b"{}")))));
    layer.layer(inner).oneshot(arrival).await.err()
}

#[tokio::test(start_paused = true)]
async fn row_34_a_small_refused_body_is_thrown_away_and_of_a_large_one_a_bounded_part() {
    let (layer, metrics) = payments_only();
    for (sent, expected) in [(3, 3), (5_000, 1_025)] {
        let taken = Arc::default();
        assert!(matches!(offer(&layer, request(chunks(sent, &taken))).await, Some(CallError::Shed { what: "memory" })));
        assert_eq!(taken.load(Relaxed), 0, "nothing is read before the answer");
        tokio::time::sleep(WASTE_TIME).await;
        assert_eq!(taken.load(Relaxed), expected);
    }
    assert!(metrics.render().contains("weighbridge_shed_total{class=\"normal\",reason=\"memory\"} 2\n"));
    assert_eq!(WASTES.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn row_34_who_waits_for_a_continue_is_not_told_to_send() {
    let (layer, _) = payments_only();
    let taken = Arc::default();
    let mut asking = request(chunks(3, &taken));
    asking.head.headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
    assert!(offer(&layer, asking).await.is_some());
    tokio::time::sleep(WASTE_TIME).await;
    assert_eq!(taken.load(Relaxed), 0);
}

#[tokio::test]
async fn row_35_the_path_of_payments_makes_any_caller_one_of_the_last() {
    let (layer, _) = payments_only();
    let mut paying = request(chunks(1, &Arc::default()));
    paying.operation = Some(Operation::RiskAssess);
    assert!(offer(&layer, paying).await.is_none());
    assert_eq!(layer.0.gate.in_flight(), 0, "and its place is free when the reply is gone");
}
