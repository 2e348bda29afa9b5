//! An upload as connections to providers see it: in turns, at the caller's pace, and never as whole when it is not.

use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};

use super::*;
use crate::wire::multipart::Boundary;

const KEPT: &str = "--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\n";

enum Sends {
    Then(&'static str),
    Breaks,
    Waits(Duration),
}

fn upload(rest: Vec<Sends>, left: usize) -> Arc<Upload> {
    let frames = stream::iter(rest).then(|next| async move {
        match next {
            Sends::Then(text) => Ok(Frame::data(Bytes::from_static(text.as_bytes()))),
            Sends::Breaks => Err(BrokeOff),
            Sends::Waits(time) => {
                tokio::time::sleep(time).await;
                Ok(Frame::data(Bytes::new()))
            }
        }
    });
    let mut scanner = Scanner::new(&Boundary::of(b"multipart/form-data; boundary=b").unwrap().unwrap());
    scanner.feed(KEPT.as_bytes()).unwrap();
    let (fields, idle) = (scanner.fields().clone(), Duration::from_secs(10));
    let body = StreamBody::new(frames).boxed_unsync();
    let coming = Coming { body, scanner, left, limit_bytes: 1_000, idle, trail: Trail::default() };
    Arc::new(Upload::new(HeaderValue::from_static("multipart/form-data; boundary=b"), fields, Some(coming)))
}

fn parts() -> [Bytes; 3] {
    [Bytes::from_static(KEPT.as_bytes()), Bytes::new(), Bytes::new()]
}

async fn collected(body: UploadBody) -> Result<String, Stopped> {
    Ok(String::from_utf8(body.collect().await?.to_bytes().to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn the_rest_comes_at_the_callers_pace_and_is_spent_from_its_first_byte_on() {
    let upload = upload(vec![Sends::Waits(Duration::from_secs(9)), Sends::Then("abc"), Sends::Then("\r\n--b--")], 100);
    let first = upload.turn();
    let mut body = first.body(parts());
    assert!(body.frame().await.unwrap().is_ok());
    assert!(!upload.is_spent() && !upload.is_whole());
    drop(first);
    // Nothing is gone, so that another attempt may have it.
    let second = upload.turn();
    assert!(collected(body).await.is_err(), "its turn is over");
    assert_eq!(collected(second.body(parts())).await.unwrap(), format!("{KEPT}abc\r\n--b--"));
    assert!(upload.is_spent() && upload.fault().is_none() && !upload.waits_for_caller());
}

#[tokio::test(start_paused = true)]
async fn p1_p5_whatever_the_caller_does_wrong_stops_it_and_is_known() {
    let broken = |message| Fault::Form(FormError { message, param: None });
    let cases = [
        (vec![Sends::Then("abc"), Sends::Breaks], 100, Fault::Broken),
        (vec![Sends::Then("abc"), Sends::Then("def")], 5, Fault::TooLarge { limit_bytes: 1_000 }),
        (vec![Sends::Waits(Duration::from_secs(11))], 100, Fault::Stalled),
        (vec![Sends::Then("abc")], 100, broken("the form ends before its last boundary")),
        (vec![Sends::Then("\r\n--bc")], 100, broken("a boundary of the form is not alone in its line")),
    ];
    for (sends, left, fault) in cases {
        let upload = upload(sends, left);
        let turn = upload.turn();
        assert!(collected(turn.body(parts())).await.is_err(), "{fault:?}");
        assert_eq!(upload.fault(), Some(fault));
        assert!(collected(turn.body(parts())).await.is_err(), "and nothing follows");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_ended_is_told_while_it_waits() {
    let upload = upload(vec![Sends::Waits(Duration::from_secs(9)), Sends::Then("\r\n--b--")], 100);
    let turn = upload.turn();
    let waiting = tokio::spawn(collected(turn.body(parts())));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(upload.waits_for_caller());
    drop(turn);
    let now = Instant::now();
    assert!(waiting.await.unwrap().is_err());
    assert_eq!(now.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_form_that_was_here_from_the_start_has_a_length_and_any_number_of_turns() {
    let upload = Arc::new(Upload::new(HeaderValue::from_static("x"), Fields::default(), None));
    for _ in 0..2 {
        let turn = upload.turn();
        let body = turn.body(parts());
        assert_eq!(body.size_hint().exact(), Some(KEPT.len() as u64));
        assert_eq!(collected(body).await.unwrap(), KEPT);
    }
    assert!(upload.is_whole() && !upload.is_spent());
}

#[tokio::test(start_paused = true)]
async fn what_is_of_no_use_any_more_is_let_go_though_a_connection_still_holds_on_to_it() {
    struct Told(Arc<std::sync::atomic::AtomicBool>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let gone = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = Told(Arc::clone(&gone));
    let frames = stream::repeat_with(move || {
        let _held = &told;
        Ok(Frame::data(Bytes::from_static(b"abc")))
    });
    let mut scanner = Scanner::new(&Boundary::of(b"multipart/form-data; boundary=b").unwrap().unwrap());
    scanner.feed(KEPT.as_bytes()).unwrap();
    let (body, idle) = (StreamBody::new(frames).boxed_unsync(), Duration::from_secs(10));
    let coming = Coming { body, scanner, left: 100, limit_bytes: 100, idle, trail: Trail::default() };
    let upload = Arc::new(Upload::new(HeaderValue::from_static("x"), Fields::default(), Some(coming)));
    let turn = upload.turn();
    let mut stuck = turn.body(parts());
    for _ in 0..2 {
        stuck.frame().await.unwrap().unwrap();
    }
    drop(turn);
    assert!(gone.load(std::sync::atomic::Ordering::SeqCst), "begun and over");
    drop(upload);
    assert!(stuck.frame().await.unwrap().is_err());
}
