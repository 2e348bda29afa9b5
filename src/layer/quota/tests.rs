//! What is asked for before a call, and that the claim is over when the call is.

use bytes::Bytes;
use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::config::table::{Budget, Caller};
use crate::domain::currency::Currency;
use crate::domain::outcome::{FailureClass, Sent};
use crate::domain::period::Period;
use crate::flight::call::CallContext;
use crate::flight::error::AttemptError;
use crate::flight::quota::{Calendar, Payment};
use crate::layer::catch_panic::CatchPanicLayer;
use crate::upstream::testing::{events, llm_call, streamed, table, whole};

fn usd(micro: i64) -> Cost {
    Cost { micro, currency: Currency::parse("USD").unwrap() }
}

struct Fixture {
    caller: Arc<Caller>,
    quota: Arc<Quota>,
    metrics: Arc<Metrics>,
}

impl Fixture {
    fn new(change: impl FnOnce(&mut Caller)) -> Self {
        let mut caller = (*table().callers()[0]).clone();
        caller.tokens_per_minute = Some(6_000);
        change(&mut caller);
        let metrics = Metrics::new();
        let quota = Arc::new(Quota::new(Calendar::at(0)));
        quota.adopt(&caller, &metrics);
        Self { caller: Arc::new(caller), quota, metrics }
    }

    fn call(&self, body: &str) -> Call {
        let call = llm_call(Bytes::copy_from_slice(body.as_bytes()));
        let context = CallContext {
            caller: Arc::clone(&self.caller),
            quota: Some(Arc::clone(&self.quota)),
            trail: call.context.trail.clone(),
            id: call.context.id.clone(),
            forwarded: call.context.forwarded.clone(),
            idempotency_key: None,
            trace: None,
            allowance: None,
            ..*call.context
        };
        Call { context: Arc::new(context), ..call }
    }

    async fn answered(
        &self,
        call: Call,
        mut answer: impl FnMut(&Call) -> Result<Reply, CallError>,
    ) -> Result<Reply, CallError> {
        let params = params(&self.metrics);
        let service = service_fn(move |call: Call| std::future::ready(answer(&call)));
        QuotaLayer(params).layer(service).oneshot(call).await
    }

    fn remaining(&self) -> u32 {
        self.quota.room(6_000).remaining
    }

    fn sums(&self) -> (i64, i64) {
        let sums = self.quota.spending(&self.caller)[0].sums;
        (sums.spent, sums.reserved)
    }
}

fn params(metrics: &Arc<Metrics>) -> Params {
    Params { route: Arc::clone(&table().llm_routes()["summary"]), metrics: Arc::clone(metrics) }
}

fn claim_of(call: &Call) -> Arc<Claim> {
    call.context.trail.lock().claim.clone().unwrap()
}

fn failed() -> CallError {
    CallError::Exhausted { last: AttemptError::new(FailureClass::ProviderFault, Sent::Yes, "test"), retry_after: None }
}

/// 26 bytes: 7 tokens of prompt.
const CHAT: &str = r#"{"model":"m","messages":[]}"#;

#[tokio::test(start_paused = true)]
async fn a_call_is_as_large_as_its_prompt_and_what_it_lets_the_model_write() {
    let size_of = |body: &str| size(&llm_call(Bytes::copy_from_slice(body.as_bytes())));
    assert_eq!(size_of(CHAT), Size { input: 7, output: ORDINARY_ANSWER });
    assert_eq!(size_of(r#"{"model":"m","max_tokens":50,"n":3}"#).output, 150);
    assert_eq!(size_of(r#"{"model":"m","max_tokens":18446744073709551615,"n":999}"#).output, 1_280_000_000);
    let mut call = llm_call(CHAT);
    call.operation = Operation::Embeddings;
    assert_eq!(size(&call).output, 0);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_taken_before_the_call_and_settled_with_a_whole_answer() {
    let fixture = Fixture::new(|_| ());
    let call = fixture.call(CHAT);
    let trail = call.context.trail.clone();
    let reply = fixture
        .answered(call, |call| {
            assert_eq!(fixture.remaining(), 6_000 - 7 - 1_024);
            claim_of(call).pay(Payment::Unpriced, 100);
            Ok(whole("hi"))
        })
        .await;
    assert_eq!((fixture.remaining(), trail.lock().tokens.unwrap().remaining), (5_900, 5_900), "before its headers go");
    drop(reply);
    assert_eq!(fixture.remaining(), 5_900);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_settled_at_its_end_or_when_it_is_left() {
    for left in [false, true] {
        let fixture = Fixture::new(|_| ());
        let call = fixture.call(CHAT);
        let claim = |call: &Call| {
            claim_of(call).pay(Payment::Unpriced, 30);
            Ok(streamed(events(&["1", "[DONE]"])))
        };
        let reply = fixture.answered(call, claim).await.unwrap();
        assert_eq!(fixture.remaining(), 6_000 - 7 - 1_024);
        if left {
            drop(reply);
        } else {
            reply.body.collect().await.unwrap();
        }
        assert_eq!(fixture.remaining(), 5_970);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_nobody_answered_gives_everything_back() {
    let fixture = Fixture::new(|caller| caller.budgets = vec![Budget { amount: usd(100_000), per: Period::Day }]);
    assert!(fixture.answered(fixture.call(CHAT), |_| Err(failed())).await.is_err());
    assert_eq!((fixture.remaining(), fixture.sums()), (6_000, (0, 0)));

    // A bug below unwinds through here, a client that leaves drops what it was waiting for: both let go of the claim.
    let never = service_fn(|_: Call| std::future::pending::<Result<Reply, CallError>>());
    let waiting = QuotaLayer(params(&fixture.metrics)).layer(never).oneshot(fixture.call(CHAT));
    let waited = tokio::time::timeout(std::time::Duration::from_millis(1), waiting).await;
    assert!(waited.is_err());
    assert_eq!((fixture.remaining(), fixture.sums()), (6_000, (0, 0)));

    for late in [false, true] {
        let broken = service_fn(move |_: Call| {
            assert!(late, "a bug at once");
            async { panic!("a bug in the middle") }
        });
        let quota = QuotaLayer(params(&fixture.metrics)).layer(broken);
        let caught = CatchPanicLayer { metrics: Arc::clone(&fixture.metrics) }.layer(quota);
        let answer: Result<Reply, CallError> = caught.oneshot(fixture.call(CHAT)).await;
        assert!(matches!(answer, Err(CallError::Internal)));
        assert_eq!((fixture.remaining(), fixture.sums()), (6_000, (0, 0)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_holds_back_the_dearest_candidate_and_refuses_beyond() {
    // 0.30 and 1.20 USD a million: 7 tokens in and 1,024 out are 1,231 micro-units, rounded up.
    let fixture = Fixture::new(|caller| caller.budgets = vec![Budget { amount: usd(2_000), per: Period::Month }]);
    let reply = fixture
        .answered(fixture.call(CHAT), |_| {
            assert_eq!(fixture.sums(), (0, 1_231));
            Ok(streamed(events(&["1", "[DONE]"])))
        })
        .await
        .unwrap();
    let second = fixture.answered(fixture.call(CHAT), |_| panic!("nobody is asked")).await.err().unwrap();
    assert!(matches!(second, CallError::OverBudget { per: Period::Month, .. }), "{second:?}");
    drop(reply);
    assert_eq!(fixture.sums(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_priced_runs_or_is_refused_as_the_caller_wants() {
    let budget = |caller: &mut Caller| caller.budgets = vec![Budget { amount: usd(100_000), per: Period::Day }];
    let fixture = Fixture::new(budget);
    assert!(fixture.answered(fixture.call(CHAT), |_| Ok(whole("hi"))).await.is_ok(), "agg/clever has no price");
    let strict = Fixture::new(|caller| {
        budget(caller);
        caller.unpriced = Unpriced::Refuse;
    });
    let refused = strict.answered(strict.call(CHAT), |_| panic!("nobody is asked")).await.err().unwrap();
    assert!(matches!(refused, CallError::Unpriced { .. }), "{refused:?}");
    assert_eq!((strict.remaining(), strict.sums()), (6_000, (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn what_only_counts_never_refuses() {
    let fixture = Fixture::new(|caller| caller.budgets = vec![Budget { amount: usd(1), per: Period::Day }]);
    for _ in 0..3 {
        let service = service_fn(|call: Call| {
            claim_of(&call).pay(Payment::Counted(usd(20_000)), 0);
            std::future::ready(Ok::<_, CallError>(whole("hi")))
        });
        assert!(crate::layer::tally::TallyLayer.layer(service).oneshot(fixture.call(CHAT)).await.is_ok());
    }
    assert_eq!((fixture.sums(), fixture.remaining()), ((60_000, 0), 6_000));
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_limits_has_no_claim() {
    let fixture = Fixture::new(|_| ());
    let call = llm_call(CHAT);
    let no_claim = |call: &Call| {
        assert!(call.context.trail.lock().claim.is_none());
        Ok(whole("hi"))
    };
    assert!(fixture.answered(call, no_claim).await.is_ok());
    let mut counting = fixture.call(CHAT);
    counting.operation = Operation::CountTokens;
    assert!(fixture.answered(counting, no_claim).await.is_ok());
}
