//! One answer for a key, whoever asks for it again and however it came.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::BodyExt;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::outcome::{FailureClass, Sent};
use crate::flight::call::CacheWish;
use crate::flight::error::AttemptError;
use crate::upstream::testing::{events, llm_call_of, sample, streamed, whole};

const CHAT: &str = r#"{"model":"summary","messages":[]}"#;

type Answer = fn(usize) -> Result<Reply, CallError>;

#[derive(Clone)]
struct Fixture {
    params: Params,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<Answer>>,
}

impl Fixture {
    fn new(answer: Answer) -> Self {
        let params = Params { answers: Answers::new(1 << 20), metrics: Metrics::new() };
        Self { params, asked: Arc::default(), answer: Arc::new(Mutex::new(answer)) }
    }

    fn reply(&self, caller: usize, key: Option<&str>, body: &str) -> BoxFuture<Result<Reply, CallError>> {
        let (asked, answer) = (Arc::clone(&self.asked), Arc::clone(&self.answer));
        let inner = service_fn(move |_: Call| {
            let number = asked.fetch_add(1, Ordering::SeqCst);
            let answer = *answer.lock().unwrap();
            let answering: BoxFuture<Result<Reply, CallError>> = Box::pin(async move {
                sleep(Duration::from_secs(1)).await;
                answer(number)
            });
            answering
        });
        let mut call = llm_call_of(caller, body.to_owned(), CacheWish::Default);
        Arc::get_mut(&mut call.context).unwrap().idempotency_key = key.map(|key| key.parse().unwrap());
        Box::pin(IdempotencyKeyLayer(self.params.clone()).layer(inner).oneshot(call))
    }

    /// What was said, and whether it was said before.
    async fn ask(&self, key: &str, body: &str) -> Result<(String, bool), CallError> {
        let reply = self.reply(0, Some(key), body).await?;
        let replayed = reply.headers.contains_key(&REPLAYED);
        let body = reply.body.collect().await.unwrap().to_bytes();
        Ok((String::from_utf8(body.to_vec()).unwrap(), replayed))
    }

    fn start(&self, key: &'static str) -> JoinHandle<Result<(String, bool), CallError>> {
        let this = self.clone();
        tokio::spawn(async move { this.ask(key, CHAT).await })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn event(&self, event: &str) -> f64 {
        let series = format!(r#"weighbridge_cache_events_total{{cache="idempotency",event="{event}"}}"#);
        sample(&self.params.metrics, &series)
    }
}

fn numbered(number: usize) -> Result<Reply, CallError> {
    Ok(whole(["one", "two", "three"][number]))
}

fn told(_: usize) -> Result<Reply, CallError> {
    Ok(streamed(events(&["1", "2", "[DONE]"])))
}

fn overloaded(_: usize) -> Result<Reply, CallError> {
    let last = AttemptError::new(FailureClass::Overloaded, Sent::Yes, "test");
    Err(CallError::Exhausted { last, retry_after: None })
}

#[tokio::test(start_paused = true)]
async fn c12_a_key_is_answered_once() {
    let keys = Fixture::new(numbered);
    assert_eq!(keys.ask("k", CHAT).await.unwrap(), ("one".into(), false));
    assert_eq!(keys.ask("k", CHAT).await.unwrap(), ("one".into(), true));
    assert_eq!(keys.ask("other", CHAT).await.unwrap(), ("two".into(), false));
    assert_eq!((keys.asked(), keys.event("hit"), keys.event("miss")), (2, 1.0, 2.0));
}

#[tokio::test(start_paused = true)]
async fn c12_a_hundred_at_once_are_answered_once() {
    for answer in [numbered as Answer, told] {
        let keys = Fixture::new(answer);
        let askers: Vec<_> = (0..100).map(|_| keys.start("k")).collect();
        let mut answers = Vec::new();
        for asker in askers {
            answers.push(asker.await.unwrap().unwrap());
        }
        assert_eq!((keys.asked(), answers.iter().filter(|(_, replayed)| !replayed).count()), (1, 1));
        assert!(answers.iter().all(|(text, _)| *text == answers[0].0 && !text.is_empty()));
        assert!((keys.event("coalesced") - 99.0).abs() < f64::EPSILON);
        assert_eq!(keys.ask("k", CHAT).await.unwrap(), (answers[0].0.clone(), true), "and again afterwards");
    }
}

#[tokio::test(start_paused = true)]
async fn c12_another_body_is_a_conflict_while_it_is_made_and_afterwards() {
    let keys = Fixture::new(numbered);
    let running = keys.start("k");
    sleep(Duration::from_millis(1)).await;
    let other = CHAT.replace("[]", "[1]");
    assert!(matches!(keys.ask("k", &other).await, Err(CallError::KeyReused)));
    running.await.unwrap().unwrap();
    assert!(matches!(keys.ask("k", &other).await, Err(CallError::KeyReused)));
    assert_eq!(keys.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_its_callers_own_and_without_one_every_call_is_new() {
    let keys = Fixture::new(numbered);
    keys.ask("k", CHAT).await.unwrap();
    assert!(keys.reply(1, Some("k"), CHAT).await.is_ok());
    assert!(keys.reply(0, None, CHAT).await.is_ok());
    assert_eq!(keys.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_not_kept_so_a_retry_really_tries() {
    let keys = Fixture::new(overloaded);
    assert!(keys.ask("k", CHAT).await.is_err());
    *keys.answer.lock().unwrap() = |_| Ok(whole("well"));
    assert_eq!(keys.ask("k", CHAT).await.unwrap(), ("well".into(), false));
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_or_is_too_large_is_not_kept() {
    let answers: [Answer; 3] = [
        |_| Ok(streamed(events(&["1"]))),
        |_| Ok(whole(Box::leak("x".repeat(200 << 10).into_boxed_str()))),
        |_| Ok(Reply { status: StatusCode::ACCEPTED, ..whole("later") }),
    ];
    for answer in answers {
        let keys = Fixture::new(answer);
        for _ in 0..2 {
            assert!(!keys.ask("k", CHAT).await.unwrap().1);
        }
        assert_eq!(keys.asked(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_one_who_came_first_may_leave() {
    let keys = Fixture::new(numbered);
    let (first, second) = (keys.start("k"), keys.start("k"));
    sleep(Duration::from_millis(500)).await;
    first.abort();
    assert_eq!(second.await.unwrap().unwrap(), ("one".into(), true));
    let only = keys.start("l");
    sleep(Duration::from_millis(500)).await;
    only.abort();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(keys.ask("l", CHAT).await.unwrap(), ("three".into(), false), "nobody waited, so it was given up");
}
