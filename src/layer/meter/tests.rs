//! Tokens and money, once per answer, and never a zero for what is not known.

use std::sync::Mutex;

use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::money::Cost;
use crate::upstream::live::LiveUpstream;
use crate::upstream::testing::{Memory, attempt, events, live, llm_call, sample, streamed, whole};

const CHAT: &str = r#"{"model":"m","messages":[]}"#;
const USED: Usage = Usage { input_tokens: Some(1_000_000), cached_input_tokens: None, output_tokens: Some(500_000) };

struct Fixture {
    params: Params,
    trail: Trail,
    attempt: Attempt,
}

fn fixture(upstream: &str) -> Fixture {
    let upstream: Arc<LiveUpstream> = live(upstream, &Memory::scripted(|_, _| async {}));
    let metrics = Metrics::new();
    let series = metrics.upstream(&upstream.names.provider, &upstream.names.model);
    let params = Params { model: upstream.candidate.model.clone(), upstream: series, metrics };
    let attempt = attempt(llm_call(CHAT));
    Fixture { params, trail: attempt.call.context.trail.clone(), attempt }
}

impl Fixture {
    async fn answered(&self, reply: Reply) -> Reply {
        let reply = Mutex::new(Some(reply));
        let service = service_fn(move |_: Attempt| std::future::ready(Ok(reply.lock().unwrap().take().unwrap())));
        MeterLayer(self.params.clone()).layer(service).oneshot(self.attempt.clone()).await.unwrap()
    }

    fn cost(&self) -> CostNote {
        self.trail.lock().cost
    }

    fn unpriced(&self) -> u64 {
        self.params.metrics.unpriced.value()
    }
}

fn usd(text: &str) -> CostNote {
    CostNote::Known(Cost::parse(text, crate::domain::currency::Currency::parse("USD").unwrap()).unwrap())
}

#[tokio::test]
async fn a_whole_answer_is_settled_when_it_comes() {
    let meter = fixture("agg/fast");
    let reply = whole("hi");
    reply.usage.set(USED);
    let reply = meter.answered(reply).await;
    assert_eq!((meter.cost(), meter.trail.lock().usage, meter.unpriced()), (usd("0.90"), USED, 0));
    drop(reply);
    assert_eq!(meter.params.upstream.tokens_in.value(), 1_000_000, "once");
    assert_eq!(sample(&meter.params.metrics, "weighbridge_cost_micro_total"), 900_000.0);
}

#[tokio::test]
async fn a_stream_is_settled_once_at_its_end_and_the_record_sees_it() {
    let meter = fixture("agg/fast");
    let reply = streamed(events(&["1", "[DONE]"]));
    let usage = reply.usage.clone();
    let mut reply = meter.answered(reply).await;
    let (seen, trail) = (Arc::new(Mutex::new(None)), meter.trail.clone());
    let recorded = Arc::clone(&seen);
    reply.body.on_end(move |_| *recorded.lock().unwrap() = Some(trail.lock().cost));
    assert_eq!(meter.cost(), CostNote::Nothing);
    usage.set(USED);
    reply.body.collect().await.unwrap();
    assert_eq!(*seen.lock().unwrap(), Some(usd("0.90")), "the record's hook comes after the meter's");
    assert_eq!(meter.params.upstream.tokens_out.value(), 500_000);
}

#[tokio::test]
async fn what_has_no_price_or_no_count_is_unknown_and_counted() {
    for (upstream, usage) in
        [("agg/clever", USED), ("agg/fast", Usage::default()), ("agg/fast", Usage { output_tokens: None, ..USED })]
    {
        let meter = fixture(upstream);
        let reply = whole("hi");
        reply.usage.set(usage);
        meter.answered(reply).await;
        assert_eq!((meter.cost(), meter.unpriced()), (CostNote::Unknown, 1), "{upstream}");
        assert_eq!(sample(&meter.params.metrics, "weighbridge_cost_micro_total"), 0.0);
    }
}

#[tokio::test]
async fn f45_a_stream_nobody_finished_is_settled_with_what_is_known() {
    let meter = fixture("agg/fast");
    let reply = meter.answered(streamed(events(&["1"]))).await;
    drop(reply);
    assert_eq!((meter.cost(), meter.unpriced()), (CostNote::Unknown, 1));
}
