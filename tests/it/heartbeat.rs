//! What a client hears while a model thinks: that its stream goes on (pain 9: load balancers close what is silent).

use std::time::Duration;

use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};

use crate::harness::forms::{BEGIN, Form, NATIVE, chunk};
use crate::harness::*;

const COMMENT: &str = ": keep-alive\n\n";
const SECOND: Duration = Duration::from_secs(1);

/// A route as most tests have it, and as it is for models that think.
fn patient(route: &str, candidates: &str, more: &str) -> Plan {
    let usual = "timeouts = { total = \"30s\", connect = \"1s\", first_content = \"5s\", idle = \"10s\" }";
    let head = format!("[model.{route}]\ncandidates = [{candidates}]\n");
    let patient = format!("timeouts = {{ total = \"10m\", first_content = \"5s\", idle = \"5m\"{more} }}");
    Plan::replacing(&format!("{head}{usual}"), &format!("{head}{patient}"))
}

/// Patient with `alpha`, which offers every form; `more` are further time limits.
fn world(more: &str) -> World {
    World::with(&Plan { alpha_offers: NATIVE, ..patient("duo", "\"alpha/fast\", \"beta/fast\"", more) })
}

/// A word, so many seconds of silence, another word and the end.
fn thinks(form: Form, seconds: u32) -> Link {
    peer(move |mut io: DuplexStream| async move {
        read_request(&mut io).await;
        let begun = [form.opening(), &form.word("hel")].concat();
        io.write_all(&[BEGIN.as_bytes(), &chunk(begun.as_bytes())].concat()).await.unwrap();
        sleep(seconds * SECOND).await;
        let rest = [&form.word("lo"), form.ending()].concat();
        // The proxy may have been left, which is the client's right.
        let _ = io.write_all(&[chunk(rest.as_bytes()), b"0\r\n\r\n".to_vec()].concat()).await;
    })
}

async fn open(world: &World, form: Form) -> Open {
    let open = Open::new(world.client().await, post(form.path(), SHOP, form.body("duo").to_string())).await;
    assert_eq!(open.response.status(), 200, "{form:?}");
    open
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_said_to_go_on_and_nothing_else_about_it_changes() {
    for form in Form::ALL {
        let mut world = world("");
        world.net.always("alpha", thinks(form, 100));
        let mut client = open(&world, form).await;
        let (begun, mut heard, mut at) = (Instant::now(), String::new(), Vec::new());
        while let Some(piece) = client.next().await {
            if piece == COMMENT {
                at.push(begun.elapsed().as_secs());
            } else {
                heard.push_str(&piece);
            }
        }
        let gaps: Vec<u64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!((5..=6).contains(&at.len()) && at[0] <= 30 && gaps.iter().all(|gap| *gap == 15), "{form:?}: {at:?}");
        let said = [form.opening(), &form.word("hel"), &form.word("lo"), form.ending()].concat();
        assert_eq!(heard, said, "{form:?}: every other byte as it came");
        let line = &world.log()[0];
        assert_eq!(line["stream.end"], "complete", "{line}");
        assert_eq!(line["bytes_out"], said.len() + at.len() * COMMENT.len(), "{line}");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_speaks_often_enough_has_no_heartbeat() {
    let world = world("");
    let words = |io: DuplexStream| async move {
        let mut io = io;
        read_request(&mut io).await;
        io.write_all(&[BEGIN.as_bytes(), &chunk(Form::Chat.opening().as_bytes())].concat()).await.unwrap();
        for _ in 0..20 {
            io.write_all(&chunk(Form::Chat.word("w").as_bytes())).await.unwrap();
            sleep(14 * SECOND).await;
        }
        io.write_all(&[chunk(Form::Chat.ending().as_bytes()), b"0\r\n\r\n".to_vec()].concat()).await.unwrap();
    };
    world.net.always("alpha", peer(words));
    let text = open(&world, Form::Chat).await.rest().await;
    assert!(text.contains("[DONE]") && !text.contains(COMMENT), "{text}");
}

#[tokio::test(start_paused = true)]
async fn its_time_is_the_routes_and_it_can_be_switched_off() {
    for (more, least, most) in [(", heartbeat = \"2s\"", 48, 50), (", heartbeat = \"off\"", 0, 0)] {
        let world = world(more);
        world.net.always("alpha", thinks(Form::Chat, 100));
        let text = open(&world, Form::Chat).await.rest().await;
        let beats = text.matches(COMMENT).count();
        assert!((least..=most).contains(&beats) && text.ends_with("data: [DONE]\n\n"), "{more}: {beats}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_after_a_silence_keeps_its_number_and_a_heartbeat_is_no_sign_of_life() {
    // What the provider does not say is not made up for: it is given up after its own silence.
    let world = world("");
    world.net.always("alpha", thinks(Form::Responses, 1_000));
    let begun = Instant::now();
    let text = open(&world, Form::Responses).await.rest().await;
    assert!(begun.elapsed() >= 300 * SECOND && begun.elapsed() < 302 * SECOND, "{:?}", begun.elapsed());
    assert!(text.matches(COMMENT).count() >= 18 && text.matches("event: error").count() == 1, "{text}");
    assert!(text.contains("\"sequence_number\":3,\"error\"") && text.contains("upstream_stalled"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn row_45_who_left_during_a_silence_is_noticed_at_once_and_not_by_a_heartbeat() {
    let world = world("");
    world.net.always("alpha", thinks(Form::Chat, 200));
    let mut client = open(&world, Form::Chat).await;
    client.next().await.unwrap();
    drop(client);
    timeout(SECOND, async {
        while world.metric("weighbridge_stream_outcomes_total", &["outcome=\"client_gone\""]) < 1.0 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_answer_that_another_caused_hears_that_it_goes_on_too() {
    let world = World::with(&patient("kept", "\"alpha/fast\", \"beta/fast\"", ""));
    world.net.always("alpha", thinks(Form::Chat, 100));
    let body = Form::Chat.body("kept");
    let mut first = world.open(&body).await;
    first.next().await.unwrap();
    let mut second = world.open(&body).await;
    assert_eq!(second.response.headers()["wb-cache"], "coalesced");
    let (first, second) = tokio::join!(first.rest(), second.rest());
    for text in [first, second] {
        assert!((5..=6).contains(&text.matches(COMMENT).count()) && text.ends_with("data: [DONE]\n\n"), "{text}");
    }
    assert_eq!(world.net.dialled("alpha"), 1);
    let again = world.chat(&body).await.text();
    assert!(!again.contains(COMMENT) && again.contains("hel"), "what is kept has none: {again}");
}
