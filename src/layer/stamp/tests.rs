//! Our headers, with the right numbers in them.

use http::Method;
use tower::{ServiceExt, service_fn};

use bytes::Bytes;

use super::*;
use crate::domain::money::Cost;
use crate::flight::trail::{AttemptNote, Flying, RouteNames};
use crate::layer::testing::{Snapshot, arrival};
use crate::telemetry::metrics::Metrics;
use crate::upstream::testing::{Memory, live};
use std::sync::Arc;
use std::time::Duration;

async fn stamped(tell: impl Fn(&mut Story) + Clone + Send + 'static) -> HeaderMap {
    let service = service_fn(move |arrival: Arrival<Snapshot, ()>| {
        tell(&mut arrival.trail.lock());
        async {
            tokio::time::sleep(Duration::from_micros(2_500)).await;
            Ok::<_, Infallible>(Response::new(ReplyBody::whole(Bytes::new())))
        }
    });
    StampLayer.layer(service).oneshot(arrival(Method::POST)).await.unwrap().into_parts().0.headers
}

#[tokio::test(start_paused = true)]
async fn every_answer_says_who_it_is_and_under_which_configuration() {
    let headers = stamped(|_| {}).await;
    assert_eq!(headers["x-request-id"], "req_test");
    assert_eq!(headers["wb-config"], "abcdef012345");
    assert_eq!(headers["wb-attempts"], "0");
    assert_eq!(headers["wb-cache"], "bypass");
    assert_eq!(headers["cache-control"], "private, no-store");
    for absent in ["wb-route", "wb-provider", "wb-model", "wb-cost", "age", "wb-upstream-request-id"] {
        assert!(!headers.contains_key(absent), "{absent}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_served_call_says_by_whom_at_what_cost_and_what_was_tried() {
    let upstream = live("agg/fast", &Memory::scripted(|_, _| async {}));
    let names = Arc::clone(&upstream.names);
    let metrics = Metrics::new();
    let id = crate::domain::id::RouteId::new("summary");
    let route = RouteNames { metrics: metrics.route(&id), header: HeaderValue::from_static("summary"), id };
    let route = Arc::new(route);
    let headers = stamped(move |story| {
        story.route = Some(Arc::clone(&route));
        story.served = Some(Arc::clone(&names));
        story.cost =
            CostNote::Known(Cost::parse("0.02", crate::domain::currency::Currency::parse("CNY").unwrap()).unwrap());
        story.cache = CacheNote::Hit { age_seconds: 7, left_seconds: 53 };
        let failed = AttemptOutcome::Failed;
        let outcomes = [FailureClass::Open, FailureClass::Connect, FailureClass::Unauthorised].map(failed);
        let mut since = Instant::now();
        for outcome in outcomes.into_iter().chain([AttemptOutcome::Ok]) {
            let (upstream, duration) = (Arc::clone(&names), Duration::from_micros(250));
            story.attempts.push(AttemptNote {
                upstream,
                outcome,
                since,
                duration,
                filtered: false,
                number: 1,
                status: None,
            });
            since += duration;
        }
    });
    let headers = headers.await;
    assert_eq!(headers["wb-route"], "summary");
    assert_eq!(
        (&headers["wb-provider"], &headers["wb-model"]),
        (&"agg".parse().unwrap(), &"vendor/fast-2".parse().unwrap())
    );
    assert_eq!((&headers["wb-cost"], &headers["age"]), (&"0.02 CNY".parse().unwrap(), &"7".parse().unwrap()));
    assert_eq!(headers["wb-attempts"], "3", "a refusal of our own is none");
    assert_eq!(headers["server-timing"].to_str().unwrap().split(", ").nth(1), Some("up;dur=1.000"));
}

#[tokio::test(start_paused = true)]
async fn a_call_answered_before_its_provider_has_tried_it_and_waited_for_it() {
    let upstream = live("judge", &Memory::scripted(|_, _| async {}));
    let names = Arc::clone(&upstream.names);
    let headers = stamped(move |story| {
        story.take_off(Flying::new(Arc::clone(&names), Instant::now()));
        story.served = Some(Arc::clone(&names));
        story.cost = CostNote::Unknown;
        story.recording = Some(Duration::from_micros(3_105));
    });
    let headers = headers.await;
    assert_eq!((&headers["wb-attempts"], &headers["wb-overhead-us"]), (&"1".parse().unwrap(), &"0".parse().unwrap()));
    assert_eq!(headers["wb-cost"], "unknown");
    assert_eq!(headers["server-timing"].to_str().unwrap().split(", ").nth(2), Some("record;dur=3.105"));
    assert!(!headers.contains_key("wb-model"), "the risk side has none");
}
