//! Every attempt leaves one outcome, whoever ends it.

use std::time::Duration;

use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::outcome::Sent;
use crate::telemetry::metrics::Metrics;
use crate::upstream::testing::{Memory, attempt, events, live, llm_call, sample, streamed, whole};

const CHAT: &str = r#"{"model":"m","messages":[]}"#;

struct Fixture {
    layer: ObserveLayer,
    metrics: Arc<Metrics>,
    attempt: Attempt,
}

fn fixture() -> Fixture {
    let upstream = live("agg/fast", &Memory::scripted(|_, _| async {}));
    let metrics = Metrics::new();
    let series = metrics.upstream(&upstream.names.provider, "m");
    let layer = ObserveLayer(Params { names: Arc::clone(&upstream.names), metrics: series, latency: None });
    Fixture { layer, metrics, attempt: attempt(llm_call(CHAT)) }
}

impl Fixture {
    async fn ends(&self, result: fn() -> Result<Reply, AttemptError>) -> Result<Reply, AttemptError> {
        let service = service_fn(move |_: Attempt| async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            result()
        });
        self.layer.layer(service).oneshot(self.attempt.clone()).await
    }

    fn outcomes(&self, outcome: &str) -> f64 {
        let text = self.metrics.render();
        let lines = text
            .lines()
            .filter(|line| line.starts_with("weighbridge_upstream_attempts_total") && line.contains(outcome));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    fn all(&self) -> f64 {
        self.outcomes("")
    }

    fn durations(&self) -> f64 {
        sample(&self.metrics, "weighbridge_upstream_duration_seconds_count")
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_on_its_way_counts_as_tried_and_its_time_as_the_providers() {
    let watch = fixture();
    let trail = watch.attempt.call.context.trail.clone();
    let answer = watch.ends(|| Ok(whole("hi")));
    assert!(tokio::time::timeout(Duration::from_secs(1), answer).await.is_err());
    assert_eq!(trail.lock().upstream_time(), Duration::from_secs(1));
    assert!(trail.lock().flying.is_some() && trail.lock().attempts.is_empty());
    assert_eq!((watch.outcomes("abandoned"), watch.all()), (1.0, 1.0));
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_is_a_success_when_it_is_here_whatever_becomes_of_the_client() {
    let watch = fixture();
    drop(watch.ends(|| Ok(whole("hi"))).await.unwrap());
    assert_eq!((watch.outcomes("\"ok\""), watch.all(), watch.durations()), (1.0, 1.0, 1.0));
    let trail = watch.attempt.call.context.trail.clone();
    assert_eq!(trail.lock().upstream_time(), Duration::from_secs(2));
    assert!(trail.lock().flying.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_judged_at_its_end() {
    let watch = fixture();
    let reply = watch.ends(|| Ok(streamed(events(&["1", "[DONE]"])))).await.unwrap();
    assert_eq!(watch.all(), 0.0);
    reply.body.collect().await.unwrap();
    assert_eq!((watch.outcomes("\"ok\""), watch.all()), (1.0, 1.0));
    watch.ends(|| Ok(streamed(events(&["1"])))).await.unwrap().body.collect().await.unwrap();
    assert_eq!(watch.outcomes("stream_cut"), 1.0);
    drop(watch.ends(|| Ok(streamed(events(&["1"])))).await.unwrap());
    assert_eq!((watch.outcomes("abandoned"), watch.all()), (1.0, 3.0));
}

#[tokio::test(start_paused = true)]
async fn a_failure_has_its_class_and_a_refusal_of_our_own_no_duration() {
    let watch = fixture();
    watch.ends(|| Err(AttemptError::new(FailureClass::Connect, Sent::No, "test"))).await.err().unwrap();
    assert_eq!((watch.outcomes("\"connect\""), watch.durations()), (1.0, 1.0));
    watch.ends(|| Err(AttemptError::local(FailureClass::Open, None, "test"))).await.err().unwrap();
    assert_eq!((watch.outcomes("\"open\""), watch.durations()), (1.0, 1.0));
    let trail = watch.attempt.call.context.trail.clone();
    assert_eq!(trail.lock().attempts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_another_one_outpaced_is_booked_as_that_and_teaches_how_slow_it_was() {
    let mut watch = fixture();
    let latency = Arc::new(Latency::default());
    watch.layer.0.latency = Some(Arc::clone(&latency));
    assert!(watch.ends(|| Ok(whole("hi"))).await.is_ok());
    let trail = watch.attempt.call.context.trail.clone();
    {
        let service = service_fn(|_: Attempt| std::future::pending());
        let mut slow = Box::pin(watch.layer.layer(service).oneshot(watch.attempt.clone()));
        assert!(tokio::time::timeout(Duration::from_secs(8), &mut slow).await.is_err());
        assert_eq!(latency.waiting(Form::Whole), 1);
        trail.lock().flying_to(&watch.layer.0.names).unwrap().outpaced = true;
    }
    assert_eq!(latency.waiting(Form::Whole), 0);
    assert_eq!(watch.outcomes("reason=\"outpaced\""), 1.0);
    let story = trail.lock();
    assert_eq!(story.attempts.last().unwrap().outcome, AttemptOutcome::Outpaced);
    assert!(story.flying.is_none());
    assert!(latency.expected(Instant::now(), Form::Whole).unwrap() > Duration::from_secs(2));
}
