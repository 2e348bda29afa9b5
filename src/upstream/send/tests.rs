//! Whole attempts against the simulated providers, and what those saw of them.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::domain::decision::{Action, DecisionSource};
use crate::domain::outcome::{FailureClass, Sent};
use crate::domain::secret::Secret;
use crate::flight::call::Call;
use crate::sandbox::aggregator::{Aggregator, AggregatorConfig};
use crate::sandbox::alipay::{Alipay, AlipayConfig, GATEWAY_FAULTS, Refusal, TOKEN_FAULTS};
use crate::sandbox::fault::{Fault, Faults};
use crate::upstream::testing::{
    Memory, PROVIDERS, SECRET_TEXT, attempt, fleet, live, llm_call, read_request, risk_call, table_of,
};

struct Judge {
    alipay: Alipay,
    faults: Faults,
    upstream: Arc<LiveUpstream>,
    dial: Arc<Memory>,
}

impl Judge {
    fn new() -> Self {
        let faults = Faults::new();
        let keys = vec![("sandbox-1".to_owned(), Secret::new(vec![0x4f; 32]))];
        let alipay = Alipay::new(AlipayConfig { keys, faults: faults.clone(), token_life: Duration::from_secs(3600) });
        let behind = alipay.clone();
        let dial = Memory::serving(move |request| {
            let alipay = behind.clone();
            async move { alipay.handle(request).await }
        });
        Self { alipay, faults, upstream: live("judge", &dial), dial }
    }

    async fn assess(&self, out_trade_no: &str, amount: &str) -> Result<Reply, AttemptError> {
        send(attempt(risk_call(out_trade_no, amount)), Arc::clone(&self.upstream)).await
    }

    async fn fails(&self, fault: &str) -> AttemptError {
        self.faults.set(GATEWAY_FAULTS, vec![Fault::parse(fault).unwrap()]);
        let error = self.assess("T-1", "88.88").await.err().unwrap();
        self.faults.clear(GATEWAY_FAULTS);
        error
    }

    fn scored(&self) -> Vec<crate::sandbox::alipay::Seen> {
        self.alipay.seen().into_iter().filter(|seen| seen.path.ends_with("/gateway.do")).collect()
    }
}

#[tokio::test]
async fn c7_a_signature_holds_over_http_2_as_well() {
    let judge = Judge::new();
    let behind = judge.alipay.clone();
    let dial = Memory::scripted(move |_, io| {
        let alipay = behind.clone();
        let service = hyper::service::service_fn(move |request| {
            let alipay = alipay.clone();
            async move { alipay.handle(request).await }
        });
        let io = hyper_util::rt::TokioIo::new(io);
        let served = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        async move { drop(served.serve_connection(io, service).await) }
    });
    let over_http_2 = PROVIDERS.map(|text| format!("http = \"2\"\n{text}"));
    let texts: Vec<&str> = over_http_2.iter().map(String::as_str).collect();
    let upstream = Arc::clone(&fleet(&table_of(&texts), &dial).upstreams[&crate::domain::id::UpstreamId::new("judge")]);
    send(attempt(risk_call("T-1", "88.88")), upstream).await.unwrap();
    assert_eq!((judge.scored().len(), dial.dialled()), (1, 1), "token and decision on one connection");
}

#[test]
fn an_attempt_is_small_enough_to_be_moved_to_the_heap_for_each_call() {
    let upstream = live("agg/fast", &Memory::scripted(|_, _| async {}));
    let size = size_of_val(&send(attempt(llm_call(r#"{"model":"m","messages":[]}"#)), upstream));
    assert!(size <= 2048, "{size} bytes: box what is rare");
}

#[tokio::test]
async fn an_authentic_verdict_becomes_a_decision() {
    let judge = Judge::new();
    let reply = judge.assess("T-1", "88.13").await.unwrap();
    let decision = reply.decision.unwrap();
    let verdict = decision.verdict.as_ref().unwrap();
    assert_eq!((decision.action, decision.source), (Action::Review, DecisionSource::Live));
    assert_eq!(verdict.score.unwrap().to_string(), "0.42");
    assert_eq!(verdict.recommendation.as_deref(), Some("REVIEW"));
    assert_eq!(verdict.provider.model_version.as_deref(), Some("di-2026.01.0"));
    assert!(verdict.provider.trace_id.is_some());
    assert_eq!(verdict.cost.unwrap().to_string(), "0.02 CNY");
    assert_eq!(judge.dial.dialled(), 1, "the token and the call share a connection");
}

#[tokio::test]
async fn every_attempt_is_signed_anew_and_names_the_same_payment() {
    let judge = Judge::new();
    judge.assess("T-1", "88.88").await.unwrap();
    judge.assess("T-1", "88.88").await.unwrap();
    let seen = judge.alipay.seen();
    assert_eq!(seen.len(), 3, "one token, two calls");
    assert!(seen.iter().all(|seen| seen.refusal.is_none()), "{seen:?}");
    let nonces: std::collections::HashSet<_> = seen.iter().map(|seen| &seen.nonce).collect();
    assert_eq!(nonces.len(), 3);
    let calls = judge.scored();
    assert!(calls.iter().all(|call| call.token_ok && call.out_trade_no == "T-1"));
    assert_eq!(calls[0].body, calls[1].body);
    assert_eq!((judge.alipay.billed(), judge.alipay.tokens_issued()), (1, 1));
}

#[tokio::test]
async fn c7_an_unsigned_or_wrongly_signed_answer_is_refused_whatever_it_says() {
    let judge = Judge::new();
    for fault in ["unsigned", "bad-signature"] {
        let error = judge.fails(fault).await;
        assert_eq!((error.class, error.sent), (FailureClass::BadSignature, Sent::Yes), "{fault}");
    }
}

#[tokio::test]
async fn c8_a_score_out_of_range_is_missing_and_never_a_pass() {
    let judge = Judge::new();
    for amount in ["1.53", "1.57"] {
        let decision = judge.assess(&format!("T-{}", &amount[2..]), amount).await.unwrap().decision.unwrap();
        assert_eq!(decision.action, Action::Review, "{amount}");
        assert!(decision.verdict.as_ref().unwrap().score.is_none());
    }
    assert_eq!(judge.assess("T-60", "1.60").await.err().unwrap().class, FailureClass::BadReply);
}

#[tokio::test]
async fn c10_a_word_nobody_knows_is_a_review() {
    let decision = Judge::new().assess("T-1", "1.58").await.unwrap().decision.unwrap();
    assert_eq!(decision.action, Action::Review);
}

#[tokio::test]
async fn each_way_to_fail_has_its_class() {
    let judge = Judge::new();
    let cases = [
        ("status:400", FailureClass::Refused),
        ("status:403", FailureClass::Unauthorised),
        ("status:402", FailureClass::QuotaExhausted),
        ("status:429;retry-after=2", FailureClass::RateLimited),
        ("status:500", FailureClass::ProviderFault),
        ("status:302;location=https://elsewhere.example", FailureClass::ProviderFault),
        ("status:503", FailureClass::Overloaded),
        ("garbage", FailureClass::BadReply),
        ("empty", FailureClass::BadReply),
    ];
    for (fault, class) in cases {
        let error = judge.fails(fault).await;
        assert_eq!((error.class, error.sent), (class, Sent::Yes), "{fault}");
    }
    assert_eq!(judge.fails("status:429;retry-after=2").await.retry_after, Some(Duration::from_secs(2)));
    let error = judge.fails("refuse").await;
    assert_eq!((error.class, error.sent), (FailureClass::Connect, Sent::Maybe));
}

#[tokio::test]
async fn f5_a_call_that_may_have_been_delivered_reaches_the_provider_once() {
    let judge = Judge::new();
    judge.assess("T-0", "1.00").await.unwrap();
    judge.fails("refuse").await;
    assert_eq!(judge.scored().iter().filter(|seen| seen.out_trade_no == "T-1").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn f5_a_body_that_stalls_is_given_up_at_the_idle_limit() {
    let judge = Judge::new();
    let started = tokio::time::Instant::now();
    assert_eq!(judge.fails("stall:10").await.class, FailureClass::NoContent);
    assert_eq!(started.elapsed(), Duration::from_secs(5));
}

#[tokio::test]
async fn a_token_that_was_withdrawn_is_replaced_once() {
    let judge = Judge::new();
    judge.assess("T-1", "1.00").await.unwrap();
    judge.alipay.revoke_tokens();
    judge.assess("T-2", "1.00").await.unwrap();
    assert_eq!(judge.alipay.tokens_issued(), 2);
    assert_eq!(judge.alipay.refused(Refusal::Token), 1);
    let refused = r#"status:401;body={"error":"invalid_token"}"#;
    judge.faults.always(GATEWAY_FAULTS, Fault::parse(refused).unwrap());
    let error = judge.assess("T-3", "1.00").await.err().unwrap();
    assert_eq!(error.class, FailureClass::Unauthorised);
    assert_eq!(judge.alipay.tokens_issued(), 3, "once, not for ever");
    assert_eq!(judge.scored().iter().filter(|seen| seen.out_trade_no == "T-3").count(), 2);
}

#[tokio::test]
async fn f13_without_a_token_nothing_of_the_payment_is_sent() {
    let judge = Judge::new();
    for fault in ["status:500", "status:401", "garbage", "refuse", "empty"] {
        judge.faults.always(TOKEN_FAULTS, Fault::parse(fault).unwrap());
        let error = judge.assess("T-1", "1.00").await.err().unwrap();
        assert_eq!(error.sent, Sent::No, "{fault}");
        judge.faults.clear(TOKEN_FAULTS);
    }
    assert!(judge.scored().is_empty());
}

#[tokio::test]
async fn a_descriptors_own_meaning_of_a_status_comes_first() {
    let judge = Judge::new();
    let text = PROVIDERS[2].replace("price =", "errors = { \"400\" = \"quota-exhausted\" }\nprice =");
    let table = table_of(&[PROVIDERS[0], PROVIDERS[1], &text]);
    let upstream = Arc::clone(&fleet(&table, &judge.dial).upstreams[&crate::domain::id::UpstreamId::new("judge")]);
    judge.faults.set(GATEWAY_FAULTS, vec![Fault::parse("status:400").unwrap()]);
    let error = send(attempt(risk_call("T-1", "1.00")), upstream).await.err().unwrap();
    assert_eq!(error.class, FailureClass::QuotaExhausted);
}

const CHAT: &str = r#"{"model":"summary","messages":[{"role":"user","content":"hello there"}],"n":1,"x_unknown":1.50}"#;
const STREAM: &str = r#"{"model":"summary","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;

struct Agg {
    aggregator: Aggregator,
    faults: Faults,
    upstream: Arc<LiveUpstream>,
    dial: Arc<Memory>,
}

impl Agg {
    fn new() -> Self {
        Self::knowing(SECRET_TEXT)
    }

    fn knowing(key: &str) -> Self {
        let config = AggregatorConfig::new(Secret::new(key.into()));
        let faults = config.faults.clone();
        let aggregator = Aggregator::new(config);
        let behind = aggregator.clone();
        let dial = Memory::serving(move |request| {
            let aggregator = behind.clone();
            async move { aggregator.handle(request).await }
        });
        Self { aggregator, faults, upstream: live("agg/fast", &dial), dial }
    }

    async fn ask(&self, call: Call) -> Result<Reply, AttemptError> {
        send(attempt(call), Arc::clone(&self.upstream)).await
    }

    async fn fails(&self, body: &'static str, fault: &str) -> AttemptError {
        self.faults.set("agg", vec![Fault::parse(fault).unwrap()]);
        self.ask(llm_call(body)).await.err().unwrap()
    }
}

async fn text(reply: Reply) -> String {
    String::from_utf8(reply.body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn an_llm_call_carries_our_credential_the_providers_model_and_nothing_of_the_callers() {
    let agg = Agg::new();
    let reply = agg.ask(llm_call(CHAT)).await.unwrap();
    assert!(reply.complete && !reply.body.is_stream());
    assert_eq!(reply.usage.get().input_tokens, Some(2));
    assert!(text(reply).await.contains("vendor/fast-2"));
    let seen = &agg.aggregator.seen()[0];
    assert!(seen.authorization_ok);
    assert_eq!(seen.path, "/agg/v1/chat/completions");
    assert_eq!(seen.body, CHAT.replace("summary", "vendor/fast-2"), "every other byte as it came");
    let mut names: Vec<_> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept-encoding", "authorization", "content-length", "content-type", "host", "user-agent"]);
}

#[tokio::test]
async fn a_stream_is_asked_for_its_usage_and_the_caller_does_not_see_that() {
    let agg = Agg::new();
    let reply = agg.ask(llm_call(STREAM)).await.unwrap();
    assert!(reply.body.is_stream());
    assert_eq!(reply.headers["content-type"], "text/event-stream; charset=utf-8");
    let usage = reply.usage.clone();
    let text = text(reply).await;
    assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("usage"), "{text}");
    assert_eq!(usage.get().input_tokens, Some(1));
    assert!(String::from_utf8_lossy(&agg.aggregator.seen()[0].body).contains("\"include_usage\":true"));
    // The end of the body follows its last event, on its own time.
    tokio::time::sleep(Duration::from_millis(20)).await;
    agg.ask(llm_call(CHAT)).await.unwrap();
    assert_eq!(agg.dial.dialled(), 1, "the stream's connection came back");
}

#[tokio::test]
async fn each_way_an_llm_call_can_fail_has_its_class() {
    let agg = Agg::new();
    let quota = r#"status:429;body={"error":{"code":"insufficient_quota","message":"no"}}"#;
    let empty_account = r#"status:403;body={"error":{"code":"insufficient_balance","message":"no"}}"#;
    let both = [
        ("status:400", FailureClass::Refused),
        ("status:401", FailureClass::Unauthorised),
        ("status:403", FailureClass::Unauthorised),
        ("status:402", FailureClass::QuotaExhausted),
        (quota, FailureClass::QuotaExhausted),
        (empty_account, FailureClass::QuotaExhausted),
        ("status:429", FailureClass::RateLimited),
        ("status:301;location=https://elsewhere.example/", FailureClass::ProviderFault),
        ("status:204", FailureClass::ProviderFault),
        ("status:500", FailureClass::ProviderFault),
        ("status:503", FailureClass::Overloaded),
        ("empty", FailureClass::NoContent),
        ("garbage", FailureClass::BadReply),
        ("error-in-200:429", FailureClass::RateLimited),
        ("cut:0", FailureClass::NoContent),
    ];
    for (fault, class) in both {
        for body in [CHAT, STREAM] {
            let error = agg.fails(body, fault).await;
            assert_eq!((error.class, error.sent), (class, Sent::Yes), "{fault}");
        }
    }
    let error = agg.fails(CHAT, "refuse").await;
    assert_eq!((error.class, error.sent), (FailureClass::Connect, Sent::Maybe));
    agg.dial.refuse(true);
    let before = agg.dial.dialled();
    let fresh = Agg { upstream: live("agg/fast", &agg.dial), ..agg };
    let error = fresh.ask(llm_call(CHAT)).await.err().unwrap();
    assert_eq!((error.class, error.sent, fresh.dial.dialled()), (FailureClass::Connect, Sent::No, before));
}

#[tokio::test]
async fn f13_a_key_the_provider_does_not_know_is_our_fault() {
    let agg = Agg::knowing("sk-another-key-of-sufficient-length");
    let error = agg.ask(llm_call(CHAT)).await.err().unwrap();
    assert_eq!((error.class, error.status), (FailureClass::Unauthorised, Some(401)));
    assert!(!format!("{error:?}").contains(SECRET_TEXT));
}

#[tokio::test]
async fn f14_a_refusal_keeps_the_providers_words() {
    let agg = Agg::new();
    let error = agg.fails(CHAT, r#"status:422;body={"error":{"message":"too spicy","code":"content_policy"}}"#).await;
    assert_eq!((error.status, error.said.unwrap().message.as_str()), (Some(422), "too spicy"));
}

#[tokio::test]
async fn f21_a_call_that_may_be_repeated_survives_a_kept_connection_that_dies_under_it() {
    let body = r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#;
    let dial = Memory::scripted(move |_, mut io| async move {
        read_request(&mut io).await;
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        io.write_all(head.as_bytes()).await.unwrap();
        // The second request on a connection is read and never answered.
        read_request(&mut io).await;
    });
    let upstream = live("agg/fast", &dial);
    for _ in 0..3 {
        assert!(send(attempt(llm_call(CHAT)), Arc::clone(&upstream)).await.is_ok());
    }
    assert_eq!(dial.dialled(), 3);
}

#[tokio::test]
async fn p_an_answer_beyond_its_bound_is_not_collected() {
    let dial = Memory::scripted(|_, mut io| async move {
        read_request(&mut io).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        io.write_all(head.as_bytes()).await.unwrap();
        let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
        while io.write_all(chunk.as_bytes()).await.is_ok() {}
    });
    let error = send(attempt(llm_call(CHAT)), live("agg/fast", &dial)).await.err().unwrap();
    assert_eq!(error.class, FailureClass::BadReply);
}

#[tokio::test]
async fn f18_a_compressed_answer_nobody_asked_for_is_refused() {
    for (coding, fine) in [("gzip", false), ("identity", true)] {
        let dial = Memory::scripted(move |_, mut io| async move {
            read_request(&mut io).await;
            let body = r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#;
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: {coding}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            io.write_all(head.as_bytes()).await.unwrap();
        });
        assert_eq!(send(attempt(llm_call(CHAT)), live("agg/fast", &dial)).await.is_ok(), fine, "{coding}");
    }
}
