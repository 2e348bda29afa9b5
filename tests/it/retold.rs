//! Chat streams told in another form (row 8): what cannot be read there cannot be passed on as it came.

use serde_json::json;

use crate::harness::forms::{BEGIN, Form, chunk};
use crate::harness::*;

/// Not the form of chat, so that providers of chat have to be retold.
const TOLD: [Form; 2] = [Form::Responses, Form::Messages];
const BROKEN: &str = "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"lo\n\n";
/// What providers write between chunks to keep connections alive, and is no chunk at all.
const NOISE: [&str; 7] = [
    "data:\n\n",
    "data: \n\n",
    "data: keep-alive\n\n",
    "data: null\n\n",
    "data: []\n\n",
    "data: \"ping\"\n\n",
    "id: 7\n\n",
];

fn streams(parts: &[&str]) -> Link {
    says([BEGIN.as_bytes(), &chunk(parts.concat().as_bytes()), b"0\r\n\r\n"].concat())
}

async fn ask(world: &World, form: Form, model: &str) -> Answer {
    let answer = world.call(post(form.path(), SHOP, form.body(model).to_string())).await;
    assert_eq!(answer.status, 200, "{form:?}: {}", answer.text());
    answer
}

fn malformed(world: &World) -> f64 {
    world.metric("weighbridge_malformed_events_total", &["provider=\"alpha\""])
}

/// The text that the deltas add up to.
fn told(form: Form, answer: &Answer) -> String {
    let place = if form == Form::Responses { "/delta" } else { "/delta/text" };
    let events = answer.text();
    let data = events.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| {
        let event: serde_json::Value = serde_json::from_str(data).unwrap();
        event.pointer(place).and_then(|delta| delta.as_str().map(str::to_owned))
    })
    .collect()
}

fn is_complete(form: Form, answer: &Answer) -> bool {
    answer.text().contains(if form == Form::Responses { "event: response.completed" } else { "event: message_stop" })
}

#[tokio::test(start_paused = true)]
async fn row_8_a_broken_chunk_before_content_is_another_providers_answer() {
    for form in TOLD {
        let world = World::new();
        let (opening, word, ending) = (Form::Chat.opening(), Form::Chat.word("ALPHA"), Form::Chat.ending());
        world.net.always("alpha", streams(&[opening, BROKEN, &word, ending]));
        let answer = ask(&world, form, "duo").await;
        assert_eq!((answer.header("wb-provider"), answer.header("wb-attempts")), ("beta", "2"), "{}", answer.text());
        assert!(is_complete(form, &answer) && !answer.text().contains("ALPHA"), "{}", answer.text());
        assert_eq!((world.net.dialled("alpha"), world.seen("beta").len()), (1, 1));
        let failed = ["provider=\"alpha\"", "outcome=\"failed\"", "reason=\"bad_reply\""];
        let failed = world.metric("weighbridge_upstream_attempts_total", &failed);
        assert!((failed - 1.0).abs() < f64::EPSILON, "{form:?}: {failed}");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn row_8_a_broken_chunk_after_content_is_one_error_event_and_never_a_gap() {
    for form in TOLD {
        let world = World::new();
        let (opening, word, ending) = (Form::Chat.opening(), Form::Chat.word("hel"), Form::Chat.ending());
        world.net.always("alpha", streams(&[opening, &word, BROKEN, &Form::Chat.word("world"), ending]));
        let answer = ask(&world, form, "duo").await;
        let text = answer.text();
        assert_eq!((text.matches("event: error").count(), is_complete(form, &answer)), (1, false), "{form:?}: {text}");
        assert!(text.contains("upstream_error"), "{text}");
        assert_eq!(told(form, &answer), "hel", "nothing that comes after the gap is told: {text}");
        assert!(world.seen("beta").is_empty(), "nothing is switched after content");
        assert!((malformed(&world) - 1.0).abs() < f64::EPSILON, "{form:?}: counted");
    }
}

#[tokio::test(start_paused = true)]
async fn row_8_what_is_no_chunk_at_all_is_left_out_of_what_is_told() {
    for form in TOLD {
        let world = World::new();
        let noise = NOISE.concat();
        let (hel, lo, ending) = (Form::Chat.word("hel"), Form::Chat.word("lo"), Form::Chat.ending());
        world.net.always("alpha", streams(&[&noise, Form::Chat.opening(), &noise, &hel, &noise, &lo, &noise, ending]));
        let answer = ask(&world, form, "duo").await;
        let text = answer.text();
        assert_eq!(answer.header("wb-provider"), "alpha", "{text}");
        assert_eq!((told(form, &answer).as_str(), is_complete(form, &answer)), ("hello", true), "{form:?}: {text}");
        assert!(!text.contains("error\"") || text.contains("\"error\":null"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_can_be_told_no_further_ends_there_though_something_of_its_last_chunk_was_told() {
    let world = World::new();
    // Text, and with it a call of a tool without the tool's name, which a message cannot say.
    let both = json!({"id": "c1", "choices": [{"index": 0, "delta": {"content": "hel", "tool_calls":
        [{"index": 0, "id": "call_1", "type": "function", "function": {"arguments": "{"}}]}}]});
    let both = format!("data: {both}\n\n");
    world.net.always("alpha", streams(&[Form::Chat.opening(), &both, &Form::Chat.word("lo"), Form::Chat.ending()]));
    let answer = ask(&world, Form::Messages, "duo").await;
    let text = answer.text();
    assert_eq!((text.matches("event: error").count(), is_complete(Form::Messages, &answer)), (1, false), "{text}");
    assert_eq!(told(Form::Messages, &answer), "hel", "{text}");
}

#[tokio::test(start_paused = true)]
async fn an_event_named_error_in_a_chat_stream_is_its_one_error_whatever_it_holds() {
    let named = "event: error\ndata: {\"message\":\"ALPHA is out\"}\n\n";
    let world = World::new();
    world.net.always("alpha", streams(&[Form::Chat.opening(), named]));
    let before = world.chat(&streamed("duo")).await;
    assert_eq!((before.header("wb-provider"), before.header("wb-attempts")), ("beta", "2"), "{}", before.text());
    let world = World::new();
    world.net.always("alpha", streams(&[Form::Chat.opening(), &Form::Chat.word("hel"), named]));
    let after = world.chat(&streamed("duo")).await.text();
    assert_eq!((after.matches("\"error\":{").count(), after.contains("ALPHA is out")), (1, false), "{after}");
    assert!(after.contains("\"code\":\"upstream_error\"") && !after.contains("[DONE]"), "{after}");
}
