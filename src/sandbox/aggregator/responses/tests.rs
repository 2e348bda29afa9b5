use serde_json::{Value, json};

use super::super::ask::Ask;
use super::super::speech::Speech;
use super::{chunks, failed, failed_events, read, whole};
use crate::wire::responses::{Ending, HostedTools, peek_event, peek_reply, to_chat};
use crate::wire::sse::{Decoder, Event, Limits};

fn request() -> Value {
    json!({"model": "m", "instructions": "be brief", "input": [{"role": "user", "content": [{"type": "input_text", "text": "why is the sky blue"}]}]})
}

fn tools() -> Value {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    json!([{"type": "web_search"}, {"type": "function", "name": "weather", "parameters": schema, "strict": true}])
}

fn with(mut body: Value, key: &str, value: Value) -> Value {
    body[key] = value;
    body
}

fn speech(body: &Value) -> Speech {
    Speech::new(&read(body.to_string().as_bytes(), "tokenmix").unwrap(), "tokenmix", 1)
}

fn value(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

fn events(speech: &Speech) -> Vec<Event> {
    let told = chunks(speech);
    let mut decoder = Decoder::new(Limits::default());
    [told.start].into_iter().chain(told.content).chain(told.end).for_each(|bytes| decoder.feed(bytes));
    std::iter::from_fn(|| decoder.next().unwrap()).collect()
}

#[test]
fn a_whole_response_is_one_our_own_reader_understands() {
    let body = whole(&speech(&request()));
    let facts = peek_reply(&body).unwrap();
    assert!(facts.content && facts.error.is_none() && facts.ending == Some(Ending::Completed));
    assert_eq!(facts.usage.unwrap().input_tokens, Some(7));
    let text = value(&body)["output"][0]["content"][0]["text"].as_str().unwrap().to_owned();
    assert!(text.contains("tokenmix") && text.contains("why is the sky blue"));

    let cut = whole(&speech(&with(request(), "max_output_tokens", json!(3))));
    assert_eq!(peek_reply(&cut).unwrap().ending, Some(Ending::Incomplete));
    assert_eq!(value(&cut)["output"][0]["content"][0]["text"], "This is tokenmix,");
}

#[test]
fn a_stream_begins_silent_comes_word_by_word_and_ends_with_the_whole_response() {
    for body in [request(), with(request(), "tools", tools())] {
        let speech = speech(&body);
        let events = events(&speech);
        let facts: Vec<_> = events.iter().map(peek_event).collect();
        assert!(facts[..2].iter().all(|facts| !facts.content && facts.json));
        assert_eq!(facts.last().unwrap().ending, Some(Ending::Completed));
        assert!(facts.last().unwrap().usage.is_some());
        let values: Vec<_> = events.iter().map(|event| value(&event.data().unwrap())).collect();
        assert!(values.iter().map(|event| event["sequence_number"].as_u64().unwrap()).eq(0..events.len() as u64));
        assert!(events.iter().zip(&values).all(|(event, value)| event.event_type() == value["type"].as_str()));
        assert_eq!(values.last().unwrap()["response"], value(&whole(&speech)));
        let said: String = values.iter().filter_map(|event| event["delta"].as_str()).collect();
        assert_eq!(said, speech.pieces.concat());
        assert_eq!(chunks(&speech).content.len(), speech.pieces.len() + usize::from(speech.tool.is_some()));
    }
}

#[test]
fn the_first_function_is_called_until_it_has_answered() {
    let body = with(request(), "tools", tools());
    let response = value(&whole(&speech(&body)));
    let call = &response["output"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("weather")));
    assert_eq!(call["arguments"], r#"{"city":"sandbox"}"#);
    let output = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "rain"});
    let answered = with(body, "input", json!([{"role": "user", "content": "weather?"}, call, output]));
    assert_eq!(value(&whole(&speech(&answered)))["output"][0]["type"], "message");
}

#[test]
fn a_failure_in_a_200_comes_after_a_good_beginning() {
    let speech = speech(&request());
    let facts = peek_reply(&failed(&speech, 429)).map(|facts| (facts.ending, facts.error.unwrap().status));
    assert_eq!(facts, Some((Some(Ending::Failed), Some(429))));
    let mut decoder = Decoder::new(Limits::default());
    decoder.feed(failed_events(&speech, 503));
    let facts: Vec<_> = std::iter::from_fn(|| decoder.next().unwrap()).map(|event| peek_event(&event)).collect();
    assert!(facts.len() == 3 && facts.iter().all(|facts| !facts.content));
    assert_eq!(facts[2].error.as_ref().unwrap().status, Some(500));
}

#[test]
fn what_is_no_such_request_is_refused() {
    for body in [
        json!([]),
        json!({"model": "m"}),
        json!({"input": "x"}),
        json!({"model": "m", "input": "x", "messages": []}),
        json!({"model": "m", "input": "x", "tools": [{"type": "function", "function": {"name": "f"}}]}),
        json!({"model": "m", "input": "x", "sandbox_fault": "explode"}),
    ] {
        assert!(read(body.to_string().as_bytes(), "tokenmix").is_err(), "{body}");
    }
}

#[test]
fn a_request_asks_the_same_when_it_is_carried_over_to_a_chat() {
    let body = with(with(request(), "tools", tools()), "sandbox_fault", json!("status:503"));
    let direct = read(body.to_string().as_bytes(), "tokenmix").unwrap();
    let chat = to_chat(body.to_string().as_bytes(), HostedTools::LeaveOut).unwrap();
    let carried = Ask::read(&chat.body, "tokenmix").unwrap();
    assert_eq!(
        (direct.excerpt, direct.prompt_words, direct.fault),
        (carried.excerpt, carried.prompt_words, carried.fault)
    );
    assert_eq!(direct.tool.unwrap().arguments, carried.tool.unwrap().arguments);
}
