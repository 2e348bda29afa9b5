//! What is kept, for whom, for how long, what never is, and who shares a flight.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::BodyExt;
use moka::Expiry;
use proptest::prelude::*;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tower::{ServiceExt, service_fn};

use super::store::Life;
use super::*;
use crate::domain::operation::Operation;
use crate::domain::outcome::Sent;
use crate::flight::error::AttemptError;
use crate::telemetry::lines::LineWriter;
use crate::telemetry::logs::LogFormat;
use crate::upstream::testing::{events, llm_call, llm_call_of, sample, streamed, whole};

const CHAT: &str = r#"{"model":"summary","messages":[]}"#;
const STREAM: &str = r#"{"model":"summary","stream":true,"messages":[]}"#;
const TTL: Duration = Duration::from_secs(100);

type Answer = Box<dyn Fn(&Call) -> Result<Reply, CallError> + Send>;

#[derive(Clone)]
struct Fixture {
    params: Params,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<Answer>>,
    takes: Duration,
}

fn answer(text: &str, reason: &str) -> Reply {
    let json = format!(
        r#"{{"id":"c-1","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"{reason}"}}],"usage":{{"completion_tokens":3}}}}"#
    );
    Reply { complete: reason == "stop", ..whole(Box::leak(json.into_boxed_str())) }
}

fn chunks(reason: &str) -> Reply {
    let piece = |delta: &str, reason: &str| {
        format!(r#"{{"id":"c-1","usage":null,"choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]}}"#)
    };
    let (said, end) = (piece(r#"{"role":"assistant","content":"hi"}"#, "null"), piece("{}", &format!("{reason:?}")));
    streamed(events(&[&said, &end, r#"{"id":"c-1","choices":[],"usage":{"completion_tokens":3}}"#, "[DONE]"]))
}

fn exhausted(class: FailureClass) -> CallError {
    CallError::Exhausted { last: AttemptError::new(class, Sent::Yes, "test"), retry_after: None }
}

impl Fixture {
    fn new() -> Self {
        let metrics = Metrics::new();
        let store = Store::new(1 << 20, [7; 32], &metrics);
        let policy = CachePolicy {
            ttl: TTL,
            stale_if_error: Duration::ZERO,
            stale_while_revalidate: Duration::ZERO,
            cut_by_length: CutAnswers::Pass,
        };
        // Its writer is gone, so it drops every line.
        let writer = LineWriter::start(std::io::sink(), metrics.log_dropped.clone()).unwrap();
        let log = AccessLog::new(LogFormat::Json, writer.lines());
        let (policy, gate) = (Some(policy), Arc::default());
        let params = Params { store, policy, fingerprint: [1; 32], metrics, gate, log };
        let answer: Answer = Box::new(|_| Ok(answer("hi", "stop")));
        Self { params, asked: Arc::default(), answer: Arc::new(Mutex::new(answer)), takes: Duration::ZERO }
    }

    fn policy(&mut self) -> &mut CachePolicy {
        self.params.policy.as_mut().unwrap()
    }

    fn answers(&self, answer: impl Fn(&Call) -> Result<Reply, CallError> + Send + 'static) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    fn reply(&self, call: Call) -> BoxFuture<Result<Reply, CallError>> {
        let (asked, answer, takes) = (Arc::clone(&self.asked), Arc::clone(&self.answer), self.takes);
        let inner = service_fn(move |call: Call| {
            let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
            let answering: BoxFuture<Result<Reply, CallError>> = Box::pin(async move {
                asked.fetch_add(1, Ordering::SeqCst);
                if !takes.is_zero() {
                    sleep(takes).await;
                }
                (answer.lock().unwrap())(&call)
            });
            answering
        });
        Box::pin(CacheLayer(self.params.clone()).layer(inner).oneshot(call))
    }

    /// What was said and what the cache did.
    async fn ask(&self, call: Call) -> Result<(String, &'static str), CallError> {
        let trail = call.context.trail.clone();
        let body = self.reply(call).await?.body.collect().await.unwrap().to_bytes();
        let note = trail.lock().cache;
        Ok((String::from_utf8(body.to_vec()).unwrap(), note.label()))
    }

    async fn note(&self, body: &str, wish: CacheWish) -> Result<&'static str, CallError> {
        self.ask(llm_call_of(0, body.to_owned(), wish)).await.map(|(_, note)| note)
    }

    fn start(&self, body: &'static str) -> JoinHandle<Result<(String, &'static str), CallError>> {
        let this = self.clone();
        tokio::spawn(async move { this.ask(llm_call(body)).await })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn event(&self, event: &str) -> f64 {
        sample(&self.params.metrics, &format!(r#"weighbridge_cache_events_total{{cache="response",event="{event}"}}"#))
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_given_again_with_its_age() {
    let cache = Fixture::new();
    let (first, note) = cache.ask(llm_call(CHAT)).await.unwrap();
    assert_eq!(note, "miss");
    cache.answers(|_| Ok(answer("other", "stop")));
    tokio::time::advance(Duration::from_secs(3)).await;
    let call = llm_call(CHAT);
    let trail = call.context.trail.clone();
    assert_eq!(cache.ask(call).await.unwrap(), (first, "hit"));
    assert_eq!(trail.lock().cache.age_seconds(), Some(3));
    assert_eq!((cache.asked(), cache.event("miss"), cache.event("hit")), (1, 1.0, 1.0));
}

#[tokio::test(start_paused = true)]
async fn c_another_tenant_question_or_route_never_shares_an_answer() {
    let mut cache = Fixture::new();
    cache.ask(llm_call(CHAT)).await.unwrap();
    assert_eq!(cache.ask(llm_call_of(1, CHAT, CacheWish::Default)).await.unwrap().1, "miss");
    assert_eq!(cache.note(r#"{"model":"summary","messages":[ ]}"#, CacheWish::Default).await.unwrap(), "miss");
    let mut images = llm_call(CHAT);
    images.operation = Operation::Images;
    assert_eq!(cache.ask(images).await.unwrap().1, "miss");
    let mut versioned = llm_call(CHAT);
    Arc::get_mut(&mut versioned.context).unwrap().forwarded.insert("anthropic-beta", "x".parse().unwrap());
    assert_eq!(cache.ask(versioned).await.unwrap().1, "miss");
    cache.params.fingerprint = [2; 32];
    assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "miss");
    assert_eq!(cache.asked(), 6);
}

#[tokio::test(start_paused = true)]
async fn the_order_of_members_and_how_the_answer_is_to_be_told_make_no_other_question() {
    let cache = Fixture::new();
    cache.ask(llm_call(CHAT)).await.unwrap();
    for same in [
        r#"{ "messages":[], "model" : "summary" }"#,
        r#"{"model":"summary","messages":[],"stream":false}"#,
        r#"{"model":"summary","messages":[],"stream":null}"#,
        r#"{"stream":true,"model":"summary","stream_options":{"include_usage":true},"messages":[]}"#,
    ] {
        assert_eq!(cache.note(same, CacheWish::Default).await.unwrap(), "hit", "{same}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_adds_to_a_conversation_or_is_answered_later_is_no_question() {
    let cache = Fixture::new();
    for body in [r#"{"model":"m","conversation":"c"}"#, r#"{"model":"m","background":true}"#] {
        let mut call = llm_call(body);
        call.operation = Operation::Responses;
        assert_eq!(cache.ask(call).await.unwrap().1, "bypass", "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_answers_that_ended_by_themselves_and_have_a_bearable_size_are_kept() {
    let partial: [fn() -> Reply; 5] = [
        || answer("cut", "length"),
        || answer("filtered", "content_filter"),
        || Reply { status: StatusCode::ACCEPTED, ..answer("hm", "stop") },
        || answer(&"x".repeat((1 << 20) / 10 + 1), "stop"),
        || whole(r#"{"choices":[{"finish_reason":"stop"},{"finish_reason":"length"}]}"#),
    ];
    for reply in partial {
        let cache = Fixture::new();
        cache.answers(move |_| Ok(reply()));
        for _ in 0..2 {
            assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "miss");
        }
        assert_eq!((cache.asked(), cache.event("refused_by_guard")), (2, 2.0));
    }
}

#[tokio::test(start_paused = true)]
async fn answers_cut_by_length_are_kept_where_the_route_says_so_and_only_as_long_as_it_does() {
    let mut cache = Fixture::new();
    cache.policy().cut_by_length = CutAnswers::Store;
    cache.answers(|_| Ok(answer("cut", "length")));
    for note in ["miss", "hit"] {
        assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), note);
    }
    cache.policy().cut_by_length = CutAnswers::Pass;
    assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "miss");
}

#[tokio::test(start_paused = true)]
async fn failures_are_not_kept() {
    let cache = Fixture::new();
    cache.answers(|_| Err(CallError::DeadlinePassed));
    assert!(cache.note(CHAT, CacheWish::Default).await.is_err());
    cache.answers(|_| Ok(answer("hi", "stop")));
    assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "miss");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ended_well_answers_streams_and_whole_calls_alike() {
    let cache = Fixture::new();
    cache.answers(|call| {
        assert!(call.llm().keeps_usage, "the token counts are kept whoever asked for them");
        Ok(chunks("stop"))
    });
    let (told, note) = cache.ask(llm_call(STREAM)).await.unwrap();
    assert_eq!((note, told.contains("usage"), told.ends_with("data: [DONE]\n\n")), ("miss", false, true));
    let (told, note) = cache.ask(llm_call(STREAM)).await.unwrap();
    assert_eq!((note, told.contains("usage"), told.ends_with("data: [DONE]\n\n")), ("hit", false, true));
    let counted = STREAM.replace("true,", r#"true,"stream_options":{"include_usage":true},"#);
    let (told, note) = cache.ask(llm_call(counted)).await.unwrap();
    assert_eq!((note, told.contains(r#""usage":{"completion_tokens":3}"#)), ("hit", true));
    let (whole, note) = cache.ask(llm_call(CHAT)).await.unwrap();
    let whole: serde_json::Value = serde_json::from_str(&whole).unwrap();
    assert_eq!((note, &whole["choices"][0]["message"]["content"]), ("hit", &"hi".into()));
    assert_eq!((&whole["usage"]["completion_tokens"], cache.asked()), (&3.into(), 1));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_cut_in_whatever_way_is_not_kept() {
    let cut: [fn() -> Reply; 3] = [
        || chunks("length"),
        || streamed(events(&[r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}"#])),
        || streamed(events(&[r#"{"choices":[{"index":0,"delta":{"new":"a"},"finish_reason":"stop"}]}"#, "[DONE]"])),
    ];
    for reply in cut {
        let cache = Fixture::new();
        cache.answers(move |_| Ok(reply()));
        for _ in 0..2 {
            assert_eq!(cache.note(STREAM, CacheWish::Default).await.unwrap(), "miss");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_that_cannot_be_told_as_a_stream_is_asked_for_again() {
    let cache = Fixture::new();
    cache.answers(|call| {
        let sound = r#"{"choices":[{"message":{"audio":{"data":""}},"finish_reason":"stop"}]}"#;
        Ok(if call.llm().stream { chunks("stop") } else { whole(sound) })
    });
    assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "miss");
    assert_eq!(cache.note(STREAM, CacheWish::Default).await.unwrap(), "miss");
    assert_eq!(cache.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn routes_without_a_cache_pass_by() {
    let mut cache = Fixture::new();
    cache.params.policy = None;
    for _ in 0..2 {
        assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "bypass");
    }
    assert!(matches!(cache.note(CHAT, CacheWish::OnlyIfCached).await, Err(CallError::NotCached)));
    assert_eq!((cache.asked(), cache.event("hit"), cache.event("miss")), (2, 0.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn the_caller_may_refuse_to_read_to_store_or_to_wait() {
    let cache = Fixture::new();
    let wishing = |wish| cache.note(CHAT, wish);
    assert!(matches!(wishing(CacheWish::OnlyIfCached).await, Err(CallError::NotCached)));
    assert_eq!(wishing(CacheWish::NoStore).await.unwrap(), "bypass");
    assert!(matches!(wishing(CacheWish::OnlyIfCached).await, Err(CallError::NotCached)), "nothing was stored");
    assert_eq!(wishing(CacheWish::NoCache).await.unwrap(), "miss");
    assert_eq!(wishing(CacheWish::OnlyIfCached).await.unwrap(), "hit");
    cache.answers(|_| Ok(answer("fresh", "stop")));
    assert_eq!(wishing(CacheWish::NoCache).await.unwrap(), "miss");
    assert!(cache.ask(llm_call(CHAT)).await.unwrap().0.contains("fresh"), "no-cache replaces what is stored");
    assert_eq!(cache.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_lives_for_its_ttl_give_or_take_a_tenth_and_can_be_stored_again() {
    let cache = Fixture::new();
    let default = || cache.note(CHAT, CacheWish::Default);
    default().await.unwrap();
    tokio::time::advance(TTL * 9 / 10 - Duration::from_millis(1)).await;
    assert_eq!(default().await.unwrap(), "hit");
    tokio::time::advance(TTL * 2 / 10 + Duration::from_millis(1)).await;
    assert_eq!(default().await.unwrap(), "miss");
    assert_eq!(default().await.unwrap(), "hit");
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_stands_in_when_the_providers_fail_and_for_no_other_reason() {
    let mut cache = Fixture::new();
    cache.policy().stale_if_error = TTL;
    cache.note(CHAT, CacheWish::Default).await.unwrap();
    tokio::time::advance(TTL * 3 / 2).await;
    for class in [FailureClass::Overloaded, FailureClass::Open, FailureClass::Paced, FailureClass::Connect] {
        cache.answers(move |_| Err(exhausted(class)));
        assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "stale-error", "{class:?}");
        assert_eq!(cache.note(STREAM, CacheWish::Default).await.unwrap(), "stale-error", "{class:?}");
        assert!(cache.note(CHAT, CacheWish::NoCache).await.is_err(), "{class:?}");
    }
    for class in [FailureClass::Refused, FailureClass::Unauthorised] {
        cache.answers(move |_| Err(exhausted(class)));
        assert!(cache.note(CHAT, CacheWish::Default).await.is_err(), "{class:?}");
    }
    cache.answers(|_| Err(CallError::DeadlinePassed));
    assert!(cache.note(CHAT, CacheWish::Default).await.is_err());
    assert!(matches!(cache.note(CHAT, CacheWish::OnlyIfCached).await, Err(CallError::NotCached)));
    assert!((cache.event("stale") - 8.0).abs() < f64::EPSILON);
    tokio::time::advance(TTL * 3 / 2).await;
    cache.answers(|_| Err(exhausted(FailureClass::Overloaded)));
    assert!(cache.note(CHAT, CacheWish::Default).await.is_err(), "too old for anything");
}

/// One that has grown too old by a second, after an answer of `hi`.
async fn grown_old() -> Fixture {
    let mut cache = Fixture::new();
    cache.policy().stale_while_revalidate = TTL;
    cache.note(CHAT, CacheWish::Default).await.unwrap();
    tokio::time::advance(TTL * 11 / 10 + Duration::from_secs(1)).await;
    cache.answers(|call| Ok(if call.llm().stream { chunks("stop") } else { answer("fresh", "stop") }));
    cache.takes = Duration::from_secs(2);
    cache
}

#[tokio::test(start_paused = true)]
async fn row_46_who_finds_an_old_answer_has_it_at_once_and_one_fresh_one_is_asked_for() {
    let cache = grown_old().await;
    let started = Instant::now();
    for body in [CHAT, STREAM, CHAT, STREAM] {
        let (said, note) = cache.ask(llm_call(body)).await.unwrap();
        assert!(said.contains("hi") && note == "stale", "{said}");
    }
    assert_eq!(started.elapsed(), Duration::ZERO, "nobody waited");
    sleep(Duration::from_secs(3)).await;
    let (said, note) = cache.ask(llm_call(CHAT)).await.unwrap();
    assert!(said.contains("fresh") && note == "hit", "{said}");
    assert_eq!((cache.asked(), cache.event("revalidated"), cache.event("stale")), (2, 1.0, 4.0));
    assert_eq!(cache.params.store.flights.bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn row_46_what_is_asked_beside_a_call_is_no_part_of_it_and_goes_on_without_it() {
    let cache = grown_old().await;
    let call = llm_call(CHAT);
    let (trail, seen) = (call.context.trail.clone(), Arc::new(Mutex::new(Vec::new())));
    let inside = Arc::clone(&seen);
    cache.answers(move |call| {
        inside.lock().unwrap().push((call.context.trail.clone(), call.context.caller.id.clone()));
        call.context.trail.lock().usage.output_tokens = Some(7);
        Ok(answer("fresh", "stop"))
    });
    let caller = call.context.caller.id.clone();
    drop(cache.reply(call).await.unwrap());
    sleep(Duration::from_secs(3)).await;
    let asked_by: Vec<_> = seen.lock().unwrap().iter().map(|(_, id)| id.clone()).collect();
    assert_eq!(asked_by, [caller], "it is asked by who caused it");
    assert_eq!(trail.lock().usage.output_tokens, None, "and told of elsewhere");
    assert_eq!(trail.lock().cache.age_seconds(), Some(111));
    assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "hit");
}

#[tokio::test(start_paused = true)]
async fn row_46_while_nothing_fresh_is_to_be_had_it_is_asked_for_once_in_a_while_and_not_for_ever() {
    let mut cache = grown_old().await;
    cache.takes = Duration::ZERO;
    cache.answers(|_| Err(exhausted(FailureClass::Overloaded)));
    for _ in 0..50 {
        assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "stale");
        sleep(Duration::from_millis(100)).await;
    }
    assert!((4..=6).contains(&(cache.asked() - 1)), "{} in five seconds", cache.asked() - 1);
    cache.answers(|_| Ok(answer("cut", "length")));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "stale");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "stale", "a cut answer is no successor");
    tokio::time::advance(TTL).await;
    cache.answers(|_| Err(exhausted(FailureClass::Overloaded)));
    assert!(cache.note(CHAT, CacheWish::Default).await.is_err(), "too old to be given");
}

#[tokio::test(start_paused = true)]
async fn row_46_who_joins_what_is_being_asked_for_does_not_ask_again() {
    let mut cache = grown_old().await;
    cache.takes = Duration::from_secs(30);
    tokio::time::advance(TTL - Duration::from_secs(20)).await;
    assert_eq!(cache.note(CHAT, CacheWish::Default).await.unwrap(), "stale");
    sleep(Duration::from_secs(25)).await;
    let (said, note) = cache.ask(llm_call(CHAT)).await.unwrap();
    assert!(said.contains("fresh") && note == "coalesced", "{said} {note}");
    assert_eq!(cache.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn row_46_an_old_answer_is_not_for_those_who_want_a_fresh_one_or_only_a_stored_one() {
    let cache = grown_old().await;
    assert!(matches!(cache.note(CHAT, CacheWish::OnlyIfCached).await, Err(CallError::NotCached)));
    assert_eq!(cache.note(CHAT, CacheWish::NoCache).await.unwrap(), "miss");
    assert_eq!((cache.asked(), cache.event("revalidated")), (2, 0.0));
}

#[tokio::test(start_paused = true)]
async fn row_46_a_caller_without_a_place_left_has_the_old_answer_and_asks_nobody() {
    let cache = grown_old().await;
    let allowance = Arc::new(crate::flight::allowance::Allowance::new(Instant::now()));
    let of_one = || {
        let mut call = llm_call(CHAT);
        let context = Arc::get_mut(&mut call.context).unwrap();
        Arc::make_mut(&mut context.caller).in_flight = Some(1);
        context.allowance = Some(Arc::clone(&allowance));
        call
    };
    let itself = allowance.enter(1).unwrap();
    assert_eq!(cache.ask(of_one()).await.unwrap().1, "stale");
    drop(itself);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(cache.asked(), 1);
    assert_eq!(cache.ask(of_one()).await.unwrap().1, "stale");
    sleep(Duration::from_secs(1)).await;
    assert_eq!((cache.asked(), allowance.in_flight()), (2, 1));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(allowance.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn row_46_each_window_holds_for_its_own_purpose() {
    for (error, fresh) in [(Duration::ZERO, TTL), (TTL * 2, TTL)] {
        let mut cache = Fixture::new();
        (cache.policy().stale_if_error, cache.policy().stale_while_revalidate) = (error, fresh);
        cache.note(CHAT, CacheWish::Default).await.unwrap();
        tokio::time::advance(TTL * 23 / 10).await;
        cache.answers(|_| Err(exhausted(FailureClass::Overloaded)));
        let note = cache.note(CHAT, CacheWish::Default).await;
        assert_eq!(note.ok(), (!error.is_zero()).then_some("stale-error"));
    }
}

#[tokio::test(start_paused = true)]
async fn row_46_a_thousand_equal_questions_are_asked_once() {
    for body in [CHAT, STREAM] {
        let mut cache = Fixture::new();
        cache.takes = Duration::from_secs(1);
        cache.answers(|call| Ok(if call.llm().stream { chunks("stop") } else { answer("hi", "stop") }));
        let askers: Vec<_> = (0..1_000).map(|_| cache.start(body)).collect();
        let mut told = Vec::new();
        for asker in askers {
            told.push(asker.await.unwrap().unwrap());
        }
        assert_eq!(cache.asked(), 1);
        assert!(told.iter().all(|(text, _)| *text == told[0].0));
        assert_eq!(told.iter().filter(|(_, note)| *note == "coalesced").count(), 999);
        assert_eq!((cache.event("miss"), cache.event("coalesced")), (1.0, 999.0));
        assert_eq!(cache.params.store.flights.bytes(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn streams_and_whole_calls_fly_apart() {
    let mut cache = Fixture::new();
    cache.takes = Duration::from_secs(1);
    cache.answers(|call| Ok(if call.llm().stream { chunks("stop") } else { answer("hi", "stop") }));
    let (whole, streamed) = (cache.start(CHAT), cache.start(STREAM));
    assert_eq!((whole.await.unwrap().unwrap().1, streamed.await.unwrap().unwrap().1), ("miss", "miss"));
    assert_eq!(cache.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn when_the_leader_fails_the_others_try_once_more_together() {
    let mut cache = Fixture::new();
    cache.takes = Duration::from_secs(1);
    cache.answers(|_| Err(exhausted(FailureClass::Overloaded)));
    let askers: Vec<_> = (0..100).map(|_| cache.start(CHAT)).collect();
    for asker in askers {
        assert!(asker.await.unwrap().is_err());
    }
    assert_eq!(cache.asked(), 2);
    cache.answers(|_| Err(exhausted(FailureClass::Refused)));
    let askers: Vec<_> = (0..100).map(|_| cache.start(CHAT)).collect();
    for asker in askers {
        assert!(asker.await.unwrap().is_err());
    }
    assert_eq!(cache.asked(), 3, "what a provider refuses once it refuses always");
}

#[tokio::test(start_paused = true)]
async fn the_leader_may_leave_and_the_last_one_ends_it() {
    let mut cache = Fixture::new();
    cache.takes = Duration::from_secs(10);
    let (leader, other) = (cache.start(CHAT), cache.start(CHAT));
    sleep(Duration::from_secs(1)).await;
    leader.abort();
    assert_eq!(other.await.unwrap().unwrap().1, "coalesced");
    assert_eq!(cache.asked(), 1);
    let only = cache.start(r#"{"model":"summary"}"#);
    sleep(Duration::from_secs(1)).await;
    only.abort();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(Arc::strong_count(&cache.answer), 1, "nothing is being asked any more");
}

#[tokio::test(start_paused = true)]
async fn each_asker_has_a_deadline_of_its_own() {
    let mut cache = Fixture::new();
    cache.takes = Duration::from_secs(20);
    let leader = cache.start(CHAT);
    sleep(Duration::from_secs(1)).await;
    let mut hurried = llm_call(CHAT);
    hurried.deadline = crate::domain::deadline::Deadline::after(Instant::now(), Duration::from_secs(2));
    let asked_at = Instant::now();
    assert!(matches!(cache.ask(hurried).await, Err(CallError::DeadlinePassed)));
    assert_eq!(asked_at.elapsed(), Duration::from_secs(2));
    assert_eq!(leader.await.unwrap().unwrap().1, "miss");
}

#[tokio::test(start_paused = true)]
async fn tokens_and_cost_are_booked_to_the_leader_alone() {
    let mut cache = Fixture::new();
    cache.takes = Duration::from_secs(1);
    cache.answers(|_| {
        let reply = answer("hi", "stop");
        reply.usage.set(crate::domain::usage::Usage {
            input_tokens: Some(5),
            cached_input_tokens: None,
            output_tokens: Some(7),
        });
        Ok(reply)
    });
    let (one, two) = tokio::join!(cache.reply(llm_call(CHAT)), cache.reply(llm_call(CHAT)));
    assert_eq!(one.unwrap().usage.get().input_tokens, Some(5));
    assert!(two.unwrap().usage.get().is_empty());
}

#[test]
fn an_answer_that_replaces_another_lives_its_own_life() {
    let now = Instant::now();
    let kept = Life.expire_after_update(&[0; 32], &Arc::new(stored(0)), now.into_std(), Some(Duration::ZERO));
    assert_eq!(kept, Some(TTL * 2));
}

fn stored(bytes: usize) -> Stored {
    Stored {
        body: Bytes::from(vec![0; bytes]),
        content_type: None,
        cut: false,
        at: Instant::now(),
        fresh_for: TTL,
        life: TTL * 2,
        events: Mutex::default(),
        turn: Turn::default(),
    }
}

#[test]
fn the_store_is_bounded_in_bytes() {
    let metrics = Metrics::new();
    let store = Store::new(10_000, [7; 32], &metrics);
    for number in 0..200u8 {
        store.answers.insert([number; 32], Arc::new(stored(1_000)));
    }
    store.answers.run_pending_tasks();
    assert!(store.answers.weighted_size() <= 10_000);
}

proptest! {
    #[test]
    fn a_jittered_life_is_within_a_tenth(first in any::<u8>(), seconds in 1u64..1_000_000) {
        let (ttl, mut key) = (Duration::from_secs(seconds), [0; 32]);
        key[0] = first;
        let life = jittered(ttl, key);
        prop_assert!(life >= ttl * 9 / 10 && life <= ttl * 11 / 10);
    }
}
