//! What providers put into an answer that does not belong there: events that cannot be read, and interim responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::time::sleep;
use weighbridge::upstream::breaker::State;

use crate::harness::*;

const MS: std::time::Duration = std::time::Duration::from_millis(1);
const MALFORMED: &str = "weighbridge_malformed_events_total";

fn events(bodies: &[&str]) -> String {
    bodies.iter().map(|body| format!("data: {body}\n\n")).collect()
}

fn word(text: &str) -> String {
    format!(r#"{{"id":"s1","choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#)
}

fn head() -> &'static str {
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
}

#[tokio::test(start_paused = true)]
async fn row_8_what_cannot_be_read_in_a_stream_passes_as_it_came_and_is_counted() {
    let (one, two) = (word("one"), word("two"));
    let stop = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    let cases: [(&[&str], f64); 6] = [
        (&[&one, &two, stop, "[DONE]"], 0.0),
        (&[&one, r#"{"choices":[{"index":0,"delta":{"conte"#, &two, stop, "[DONE]"], 1.0),
        (&["not json at all", &one, "{} {}", &two, stop, "[DONE]"], 2.0),
        (&[&one, r#"{"error" nor "usage"#, stop, "[DONE]"], 1.0),
        (&[&one, "", "   ", stop, "[DONE]"], 0.0),
        (&[&one, r#"{"a": nothing}"#, "<html>", stop, "[DONE]"], 2.0),
    ];
    for (bodies, malformed) in cases {
        let world = World::new();
        let text = events(bodies);
        world.net.always("alpha", says(format!("{}{text}", head())));
        let answer = world.chat(&streamed("duo")).await;
        assert_eq!((answer.text(), answer.header("wb-provider")), (text, "alpha"));
        let counted = world.metric(MALFORMED, &["provider=\"alpha\""]);
        assert!((counted - malformed).abs() < f64::EPSILON, "{bodies:?}: {counted}");
        assert!(world.metric(MALFORMED, &["provider=\"beta\""]).abs() < f64::EPSILON);
        assert_eq!(world.breaker("alpha/fast"), State::Closed);
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn row_8_an_answer_that_came_in_one_piece_has_no_events_to_be_counted() {
    let world = World::new();
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert!(world.metric(MALFORMED, &[]).abs() < f64::EPSILON);
}

#[tokio::test(start_paused = true)]
async fn row_19_the_seventeenth_interim_response_is_the_end_of_the_attempt_at_once() {
    for body in [chat("duo"), streamed("duo")] {
        let (world, written) = (World::new(), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&written);
        world.net.always(
            "alpha",
            peer(move |mut io| {
                let written = Arc::clone(&counter);
                async move {
                    read_request(&mut io).await;
                    while io.write_all(b"HTTP/1.1 103 Early Hints\r\nx-hint: ALPHA\r\n\r\n").await.is_ok() {
                        written.fetch_add(1, Ordering::SeqCst);
                        sleep(10 * MS).await;
                    }
                }
            }),
        );
        let answer = world.chat(&body).await;
        answer.assert_served("beta", 2);
        // The stream of the one who answers takes a second.
        let most = if body["stream"] == true { 1_300 * MS } else { 200 * MS };
        assert!(answer.took < most, "{:?}", answer.took);
        assert!((17..=18).contains(&written.load(Ordering::SeqCst)), "{written:?}");
        let reason = ["provider=\"alpha\"", "reason=\"bad_reply\""];
        let failed = world.metric("weighbridge_upstream_attempts_total", &reason);
        assert!((failed - 1.0).abs() < f64::EPSILON, "{failed}");
        world.assert_idle();
    }
}
