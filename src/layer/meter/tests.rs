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
    let params = Params { candidate: upstream.candidate.clone(), upstream: series, metrics };
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

/// A caller's budget of one USD, and what it has spent of it: all of it, and the estimated part.
fn paying(meter: &Fixture) -> impl Fn() -> (i64, i64) + use<> {
    use crate::config::table::{Budget, Caller};
    use crate::domain::period::Period;
    use crate::flight::quota::{Calendar, Quota, Wish};

    let CostNote::Known(amount) = usd("1.00") else { unreachable!() };
    let caller = crate::upstream::testing::table().callers()[0].clone();
    let caller = Caller { budgets: vec![Budget { amount, per: Period::Day }], ..(*caller).clone() };
    let quota = Arc::new(Quota::new(Calendar::at(0)));
    quota.adopt(&caller, &meter.params.metrics);
    let size = Size { input: 1_000, output: 5_000 };
    let claim = quota.claim(&Wish { caller: &caller, size, costs: &[] }).unwrap();
    meter.trail.lock().claim = Some(claim);
    move || {
        let sums = quota.spending(&caller)[0].sums;
        (sums.spent, sums.estimated)
    }
}

/// At 0.30 and 1.20 USD a million.
fn micro(input: i64, output: i64) -> i64 {
    (input * 3 + output * 12 + 9) / 10
}

#[tokio::test]
async fn what_the_provider_counted_is_paid_once_whole_or_streamed() {
    let meter = fixture("agg/fast");
    let spent = paying(&meter);
    let usage = Usage { input_tokens: Some(10), output_tokens: Some(20), ..Usage::default() };
    for reply in [whole("hi"), streamed(events(&["1", "[DONE]"]))] {
        reply.usage.set(usage);
        drop(meter.answered(reply).await.body.collect().await);
    }
    assert_eq!((spent(), meter.unpriced()), ((2 * micro(10, 20), 0), 0));
}

#[tokio::test]
async fn f45_what_nobody_counted_is_estimated_by_what_came() {
    let meter = fixture("agg/fast");
    let spent = paying(&meter);
    let text = "a few hundred bytes would be better, but these are enough to be counted as some tokens of an answer";
    meter.answered(whole(text)).await;
    let tokens = whole(text).body.as_whole().unwrap().len() as i64 / 4;
    let after_whole = micro(1_000, tokens);
    assert_eq!(spent(), (after_whole, after_whole));

    let complete = streamed(events(&["1", "2", "[DONE]"]));
    drop(meter.answered(complete).await.body.collect().await);
    let after_stream = after_whole + micro(1_000, 3);
    assert_eq!(spent(), (after_stream, after_stream));

    // The running count of a stream that broke off is behind what was seen of it.
    let broken = streamed(events(&["1", "2", "3"]));
    broken.usage.set(Usage { input_tokens: Some(10), output_tokens: Some(1), ..Usage::default() });
    drop(meter.answered(broken).await.body.collect().await);
    let (all, _) = spent();
    assert_eq!(all - after_stream, micro(10, 4), "three events and the one that says it broke off");
}

#[tokio::test]
async fn who_was_left_while_working_is_paid_and_who_failed_or_was_never_asked_is_not() {
    let meter = fixture("agg/fast");
    let spent = paying(&meter);
    let fails = |class, sent| {
        let error = AttemptError::new(class, sent, "test");
        let service = service_fn(move |_: Attempt| std::future::ready(Err(error.clone())));
        MeterLayer(meter.params.clone()).layer(service).oneshot(meter.attempt.clone())
    };
    for (class, sent) in [
        (FailureClass::ProviderFault, Sent::Yes),
        (FailureClass::RateLimited, Sent::Yes),
        (FailureClass::Connect, Sent::Maybe),
        (FailureClass::HeadersTimeout, Sent::No),
    ] {
        assert!(fails(class, sent).await.is_err());
        assert_eq!(spent(), (0, 0), "{class:?}");
    }
    let once = micro(1_000, ORDINARY_ANSWER as i64);
    for (times, class) in [(1, FailureClass::HeadersTimeout), (2, FailureClass::DeadlinePassed)] {
        assert!(fails(class, Sent::Maybe).await.is_err());
        assert_eq!(spent(), (times * once, times * once), "{class:?}");
    }
    let never = service_fn(|_: Attempt| std::future::pending::<Result<Reply, AttemptError>>());
    let waiting = MeterLayer(meter.params.clone()).layer(never).oneshot(meter.attempt.clone());
    assert!(tokio::time::timeout(std::time::Duration::from_millis(1), waiting).await.is_err());
    assert_eq!((spent(), meter.unpriced()), ((3 * once, 3 * once), 0));
}
