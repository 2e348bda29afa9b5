use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::usage::Usage;
use crate::wire::openai::EmbeddedError;
use crate::wire::sse::Event;

const DEPTH: usize = 64;

fn echo() -> Echo {
    to_chat(br#"{"model":"summary","input":"x"}"#, HostedTools::Refuse).unwrap().echo
}

fn chat_of(body: &Value) -> Value {
    serde_json::from_slice(&to_chat(body.to_string().as_bytes(), HostedTools::Refuse).unwrap().body).unwrap()
}

fn refusal(body: &Value) -> Refusal {
    to_chat(body.to_string().as_bytes(), HostedTools::Refuse).unwrap_err()
}

fn chunk(delta: &Value, finish_reason: Option<&str>) -> Event {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason});
    Event::from_data(json!({"model": "m-1", "choices": [choice]}).to_string().as_bytes())
}

fn value(event: &Event) -> Value {
    let value: Value = serde_json::from_slice(&event.data().unwrap()).unwrap();
    assert_eq!(event.event_type(), value["type"].as_str());
    value
}

fn drain(stream: &mut StreamFromChat) -> Vec<Value> {
    std::iter::from_fn(|| stream.next()).map(|event| value(&event)).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap().trim_start_matches("response.")).collect()
}

/// All events of a stream made of these chunks.
fn told(chunks: &[Event]) -> Vec<Value> {
    let mut stream = StreamFromChat::new(Arc::new(echo()), "resp_1", 7);
    let mut events = Vec::new();
    for chunk in chunks.iter().chain([&Event::done()]) {
        stream.push(chunk).unwrap();
        events.extend(drain(&mut stream));
    }
    assert!(stream.is_over());
    events
}

#[test]
fn a_request_says_model_stream_and_what_the_provider_is_to_keep() {
    let body = br#"{"input":"x","model":"summary","stream":true,"previous_response_id":"resp_1","conversation":{"id":"c"},"store":false,"background":true}"#;
    let facts = peek_request(body, DEPTH).unwrap();
    assert_eq!((facts.model.as_ref(), facts.store, facts.model_at(body)), ("summary", Some(false), Some(22..29)));
    assert!(facts.stream && facts.has_previous_response && facts.has_conversation && facts.background);
    let facts = peek_request(br#"{"model":"a\u0062","previous_response_id":null,"store":null}"#, DEPTH).unwrap();
    assert_eq!((facts.model.as_ref(), facts.store, facts.model_at(b"{}")), ("ab", None, None));
    assert!(!facts.stream && !facts.has_previous_response && !facts.has_conversation && !facts.background);
}

#[test]
fn s10_a_request_is_read_as_strictly_as_one_for_a_chat() {
    let table = [
        (r#"{"input":"x"}"#, Some("model")),
        (r#"{"model":"a","stream":1}"#, Some("stream")),
        (r#"{"model":"a","previous_response_id":1}"#, Some("previous_response_id")),
        (r#"{"model":"a","conversation":true}"#, Some("conversation")),
        (r#"{"model":"a","store":"no"}"#, Some("store")),
        (r#"{"model":"a","background":"no"}"#, Some("background")),
        (r#"{"model":"a","model":"b"}"#, Some("model")),
        (r#"{"model":"a","Previous_Response_ID":"x"}"#, Some("previous_response_id")),
        ("{\"model\":\"a\",\"bac\u{212a}ground\":true}", Some("background")),
        (r#"{"model":"a","x":1,"x":2}"#, None),
        ("[]", None),
        ("{", None),
    ];
    for (body, param) in table {
        assert_eq!(peek_request(body.as_bytes(), DEPTH).unwrap_err().param, param, "{body}");
    }
}

fn event(data: &Value) -> EventFacts {
    peek_event(&Event::from_data(data.to_string().as_bytes()))
}

#[test]
fn content_is_what_the_model_said_and_not_that_it_begins() {
    for said in [
        json!({"type": "response.output_text.delta", "delta": "a"}),
        json!({"type": "response.refusal.delta", "delta": "no"}),
        json!({"type": "response.reasoning_summary_text.delta", "delta": "\n"}),
        json!({"type": "response.reasoning_text.delta", "delta": "a"}),
        json!({"type": "response.function_call_arguments.delta", "delta": "{"}),
        json!({"type": "response.output_item.added", "item": {"type": "function_call", "arguments": ""}}),
        json!({"type": "response.output_item.added", "item": {"type": "web_search_call"}}),
        json!({"type": "response.output_item.done", "item": {"type": "message", "content": [{"text": "a"}]}}),
        json!({"type": "response.code_interpreter_call_code.delta", "delta": "x"}),
        json!({"type": "response.completed", "response": {"output": [{"type": "message", "content": "a"}]}}),
    ] {
        assert!(event(&said).content, "{said}");
    }
    for silent in [
        json!({"type": "response.created", "response": {"output": [], "status": "in_progress", "error": null}}),
        json!({"type": "response.in_progress", "response": {"output": []}}),
        json!({"type": "response.output_item.added", "item": {"type": "message", "content": []}}),
        json!({"type": "response.output_item.added", "item": {"type": "reasoning", "summary": [], "encrypted_content": "g"}}),
        json!({"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}}),
        json!({"type": "response.output_text.delta", "delta": ""}),
        json!({"type": "response.output_text.annotation.added", "annotation": {"text": "a"}}),
        json!({"type": 1, "response": "odd", "item": [], "delta": null}),
    ] {
        let facts = event(&silent);
        assert!(facts.json && !facts.content && facts.error.is_none() && facts.ending.is_none(), "{silent}");
    }
    for odd in ["[DONE]", "[]", "{\"type\":"] {
        assert_eq!(peek_event(&Event::from_data(odd.as_bytes())), EventFacts::default());
    }
}

#[test]
fn terminal_events_say_how_it_ended_what_it_took_and_why_it_failed() {
    let usage = json!({"input_tokens": 7, "output_tokens": 3, "total_tokens": 10});
    let ended = |kind: &str, error: Value| event(&json!({"type": kind, "response": {"usage": usage, "error": error}}));
    let facts = ended("response.completed", Value::Null);
    assert_eq!((facts.ending, facts.error), (Some(Ending::Completed), None));
    assert_eq!(facts.usage, Some(Usage { input_tokens: Some(7), output_tokens: Some(3), ..Usage::default() }));
    assert_eq!(ended("response.incomplete", Value::Null).ending, Some(Ending::Incomplete));

    let facts = ended("response.failed", json!({"code": "rate_limit_exceeded", "message": "m"}));
    assert_eq!((facts.ending, facts.error.unwrap().status), (Some(Ending::Failed), Some(429)));
    assert_eq!(ended("response.failed", Value::Null).error, Some(EmbeddedError::default()));
    let flat = json!({"type": "error", "code": "server_error", "message": "m", "param": null, "sequence_number": 1});
    for form in [flat, json!({"type": "error", "error": {"code": "server_error", "message": "m"}})] {
        let facts = event(&form);
        let error = facts.error.unwrap();
        assert_eq!((facts.ending, error.status, error.message.as_str()), (Some(Ending::Failed), Some(500), "m"));
    }
    assert_eq!(event(&json!({"error": {"code": 503, "message": "m"}})).error.unwrap().status, Some(503));
    let named = peek_event(&Event::named("response.completed", b"{}"));
    assert_eq!(named.ending, Some(Ending::Completed));
}

#[test]
fn a_whole_response_says_what_it_holds() {
    let reply = |body: &Value| {
        let body = body.to_string();
        let facts = peek_reply(body.as_bytes()).unwrap();
        (facts.content, facts.ending, facts.error.is_some())
    };
    let message = json!([{"type": "reasoning", "summary": []}, {"type": "message", "content": [{"type": "output_text", "text": "a"}]}]);
    assert_eq!(reply(&json!({"status": "completed", "output": message})), (true, Some(Ending::Completed), false));
    let call = json!([{"type": "function_call", "name": "f"}]);
    assert_eq!(reply(&json!({"status": "incomplete", "output": call})), (true, Some(Ending::Incomplete), false));
    let empty = json!([{"type": "message", "content": [{"type": "output_text", "text": ""}]}]);
    assert_eq!(reply(&json!({"status": "completed", "output": empty})), (false, Some(Ending::Completed), false));
    assert_eq!(reply(&json!({"status": "failed", "output": []})), (false, Some(Ending::Failed), true));
    assert_eq!(reply(&json!({"status": "cancelled", "error": null})), (false, Some(Ending::Failed), true));
    assert_eq!(reply(&json!({"error": {"message": "m"}})), (false, None, true));
    assert_eq!(reply(&json!({"status": "queued", "output": "odd"})), (false, None, false));
    assert!(peek_reply(b"<html>").is_none() && peek_reply(b"[]").is_none());
}

fn asking(key: &str, value: Value) -> Value {
    let mut body = json!({"model": "summary", "input": "x"});
    body[key] = value;
    body
}

#[test]
fn what_only_the_keeper_has_is_refused_by_name_for_another_provider_to_take() {
    let search = json!([{"type": "function", "name": "f"}, {"type": "web_search"}]);
    let part = |part: Value| json!([{"role": "user", "content": [{"type": "input_text", "text": "a"}, part]}]);
    let table = [
        (asking("previous_response_id", json!("resp_1")), "previous_response_id"),
        (asking("conversation", json!("conv_1")), "conversation"),
        (asking("prompt", json!({"id": "p"})), "prompt"),
        (asking("background", json!(true)), "background"),
        (asking("tools", search), "tools[1].type"),
        (asking("tool_choice", json!({"type": "file_search"})), "tool_choice.type"),
        (asking("input", json!([{"type": "item_reference", "id": "msg_1"}])), "input[0]"),
        (asking("input", json!([{"id": "msg_1"}])), "input[0]"),
        (asking("input", json!([{"role": "user", "content": "a"}, {"type": "computer_call"}])), "input[1].type"),
        (asking("input", part(json!({"type": "input_image", "file_id": "f"}))), "input[0].content[1].file_id"),
        (asking("input", part(json!({"type": "input_file", "file_url": "u"}))), "input[0].content[1].file_url"),
        (asking("input", part(json!({"type": "input_video"}))), "input[0].content[1].type"),
        (
            asking(
                "input",
                json!([{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}]),
            ),
            "input[0].output[0].type",
        ),
    ];
    for (body, param) in table {
        let refusal = refusal(&body);
        assert_eq!((refusal.kind, refusal.param.as_str()), (RefusalKind::NeedsNative, param), "{body}");
    }
}

#[test]
fn what_no_provider_could_take_is_refused_by_name() {
    let table = [
        (json!({"input": "x"}), "model"),
        (json!({"model": "summary"}), "input"),
        (asking("input", json!(1)), "input"),
        (asking("input", json!(["x"])), "input[0]"),
        (asking("input", json!([{"role": "tool", "content": "x"}])), "input[0].role"),
        (asking("input", json!([{"role": "user"}])), "input[0].content"),
        (asking("input", json!([{"role": "user", "content": [1]}])), "input[0].content"),
        (asking("input", json!([{"role": "user", "content": [{"type": "input_text"}]}])), "input[0].content[0].text"),
        (asking("input", json!([{"type": "function_call", "name": "f", "arguments": "{}"}])), "input[0].call_id"),
        (asking("input", json!([{"type": "function_call_output", "call_id": "c"}])), "input[0].output"),
        (asking("instructions", json!(["x"])), "instructions"),
        (asking("tools", json!({})), "tools"),
        (asking("tools", json!([1])), "tools[0]"),
        (asking("tools", json!([{"type": "function"}])), "tools[0].name"),
        (asking("tool_choice", json!("required")), "tool_choice"),
        (asking("tool_choice", json!("any")), "tool_choice"),
        (asking("text", json!({"format": {"type": "xml"}})), "text.format.type"),
        (asking("text", json!("x")), "text"),
        (asking("stream", json!("yes")), "stream"),
        (asking("messages", json!([])), "messages"),
        (asking("max_tokens", json!(1)), "max_tokens"),
        (asking("n", json!(2)), "n"),
        (json!([]), ""),
    ];
    for (body, param) in table {
        let refusal = refusal(&body);
        assert_eq!((refusal.kind, refusal.param.as_str()), (RefusalKind::Malformed, param), "{body}");
    }
    let twice = br#"{"model":"a","input":"x","seed":1,"seed":2}"#;
    assert_eq!(to_chat(twice, HostedTools::Refuse).unwrap_err().kind, RefusalKind::Malformed);
}

#[test]
fn a_refusal_and_debug_output_repeat_nothing_of_the_request() {
    let body = asking("tools", json!([{"type": "CANARY", "name": "CANARY"}])).to_string();
    let error = to_chat(body.as_bytes(), HostedTools::Refuse).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("CANARY"));
    let body = asking("instructions", json!("CANARY")).to_string();
    let echo = to_chat(body.as_bytes(), HostedTools::Refuse).unwrap().echo;
    let mut stream = StreamFromChat::new(Arc::new(echo.clone()), "resp_1", 7);
    stream.push(&chunk(&json!({"content": "CANARY"}), None)).unwrap();
    assert!(!format!("{echo:?} {stream:?}").contains("CANARY"));
}

#[test]
fn what_was_said_between_calls_and_their_outputs_stays_in_order() {
    let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
    let output = |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "o"});
    let said = |text: &str| json!({"role": "assistant", "content": text});
    let input =
        json!([call("a"), said("one"), output("a"), said("two"), call("b"), output("b"), said("three"), said("four")]);
    let messages = chat_of(&asking("input", input))["messages"].clone();
    let shape: Vec<_> = messages
        .as_array()
        .unwrap()
        .iter()
        .map(|message| {
            let calls = message["tool_calls"].as_array().map_or(0, Vec::len);
            (message["role"].as_str().unwrap(), message["content"].as_str().unwrap(), calls)
        })
        .collect();
    assert_eq!(
        shape,
        [
            ("assistant", "one", 1),
            ("tool", "o", 0),
            ("assistant", "two", 1),
            ("tool", "o", 0),
            ("assistant", "three", 0),
            ("assistant", "four", 0)
        ]
    );
}

#[test]
fn a_reference_to_reasoning_is_left_out_as_reasoning_is() {
    let reference = json!({"type": "item_reference", "id": "rs_1_0"});
    let body = asking("input", json!([{"role": "user", "content": "a"}, reference])).to_string();
    let translated = to_chat(body.as_bytes(), HostedTools::Refuse).unwrap();
    assert_eq!(translated.left_out, ["input.reasoning"]);
}

/// A client's second turn: everything the response held, and what the tools said.
fn second_turn(first: &Value, output: &Value) -> Value {
    let mut input = first["input"].as_array().unwrap().clone();
    input.extend(output.as_array().unwrap().iter().cloned());
    for item in output.as_array().unwrap().iter().filter(|item| item["type"] == "function_call") {
        input.push(json!({"type": "function_call_output", "call_id": item["call_id"], "output": "sunny"}));
    }
    let mut second = first.clone();
    second["input"] = Value::Array(input);
    second
}

#[test]
fn a_tool_loop_of_two_turns_comes_back_to_the_provider_as_a_chat() {
    let tools = json!([{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": true}]);
    let first = json!({"model": "summary", "input": [{"role": "user", "content": "weather?"}], "tools": tools});
    let calls = json!([
        {"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":1.0}"}},
        {"index": 1, "id": "call_b", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
    ]);
    let message = json!({"role": "assistant", "content": "Wait.", "reasoning_content": "hm", "tool_calls": calls});

    let reply = json!({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}).to_string();
    let whole: Value = serde_json::from_slice(&from_chat(reply.as_bytes(), &echo(), "resp_1", 7).unwrap()).unwrap();
    let events = told(&[chunk(&message, None), chunk(&json!({}), Some("tool_calls"))]);
    let done: Vec<_> = events.iter().filter(|event| event["type"] == "response.output_item.done").collect();
    let streamed = Value::Array(done.iter().map(|event| event["item"].clone()).collect());
    assert_eq!(whole["output"], streamed);

    let expected = json!([
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":1.0}"}},
            {"id": "call_b", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "call_a", "content": "sunny"},
        {"role": "tool", "tool_call_id": "call_b", "content": "sunny"},
    ]);
    let second = second_turn(&first, &whole["output"]);
    let translated = to_chat(second.to_string().as_bytes(), HostedTools::Refuse).unwrap();
    assert_eq!(translated.left_out, ["input.reasoning"]);
    assert_eq!(chat_of(&second)["messages"], expected);

    let answer = told(&[chunk(&json!({"content": "Sunny."}), Some("stop"))]);
    let last = answer.last().unwrap();
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], "Sunny.");
    assert_eq!(last["type"], "response.completed");
}

#[test]
fn each_delta_comes_out_at_once() {
    let mut stream = StreamFromChat::new(Arc::new(echo()), "resp_1", 7);
    stream.push(&chunk(&json!({"role": "assistant", "content": ""}), None)).unwrap();
    assert_eq!(names(&drain(&mut stream)), ["created", "in_progress"]);
    stream.push(&chunk(&json!({"content": "a"}), None)).unwrap();
    assert_eq!(names(&drain(&mut stream)), ["output_item.added", "content_part.added", "output_text.delta"]);
    for text in ["b", "\n", "ü"] {
        stream.push(&chunk(&json!({"content": text}), None)).unwrap();
        let events = drain(&mut stream);
        assert_eq!((names(&events), &events[0]["delta"]), (vec!["output_text.delta"], &json!(text)));
    }
    stream.push(&chunk(&json!({}), Some("stop"))).unwrap();
    assert_eq!(names(&drain(&mut stream)), ["output_text.done", "content_part.done", "output_item.done"]);
    stream.push(&Event::done()).unwrap();
    assert_eq!(names(&drain(&mut stream)), ["completed"]);
}

#[test]
fn comments_pings_and_what_follows_the_end_say_nothing() {
    let mut stream = StreamFromChat::new(Arc::new(echo()), "resp_1", 7);
    stream.push(&Event::from_data(br#"{"usage":{"prompt_tokens":1,"completion_tokens":2}}"#)).unwrap();
    drain(&mut stream);
    stream.push(&Event::done()).unwrap();
    let events = drain(&mut stream);
    assert_eq!((names(&events), &events[0]["response"]["usage"]["total_tokens"]), (vec!["completed"], &json!(3)));
    stream.push(&chunk(&json!({"content": "late"}), None)).unwrap();
    stream.push(&Event::done()).unwrap();
    stream.fail("m", "server_error");
    assert!(stream.next().is_none() && stream.is_over());
}

#[test]
fn g14_a_stream_that_cannot_end_well_ends_in_one_failure() {
    let mut stream = StreamFromChat::new(Arc::new(echo()), "resp_1", 7);
    stream.push(&chunk(&json!({"content": "half"}), None)).unwrap();
    drain(&mut stream);
    let error = json!({"error": {"code": 502, "message": "CANARY"}, "choices": []}).to_string();
    let reported = stream.push(&Event::from_data(error.as_bytes())).unwrap_err();
    assert!(matches!(&reported, StreamError::Reported(error) if error.status == Some(502)));
    assert!(!format!("{reported} {reported:?}").contains("CANARY"));
    assert_eq!(stream.push(&Event::from_data(b"<html>")), Err(StreamError::NotChat));
    stream.fail("the provider broke off", "upstream_failed");
    stream.fail("again", "server_error");
    let events = drain(&mut stream);
    assert_eq!(names(&events), ["failed"]);
    let response = &events[0]["response"];
    let expected = json!({"code": "server_error", "message": "the provider broke off", "type": "upstream_failed"});
    assert_eq!((&response["status"], &response["error"]), (&json!("failed"), &expected));
    assert_eq!(response["output"][0]["status"], "incomplete");

    let mut unheard = StreamFromChat::new(Arc::new(echo()), "resp_1", 7);
    unheard.fail("m", "rate_limit_exceeded");
    let events = drain(&mut unheard);
    assert_eq!(names(&events), ["created", "in_progress", "failed"]);
    assert_eq!(events[2]["response"]["error"]["code"], "rate_limit_exceeded");
}

#[test]
fn text_and_items_are_bounded() {
    let mut stream = StreamFromChat::limited(Arc::new(echo()), "resp_1", 7, 10);
    stream.push(&chunk(&json!({"content": "0123456789"}), None)).unwrap();
    assert_eq!(stream.push(&chunk(&json!({"content": "x"}), None)), Err(StreamError::TooLarge));
    stream.fail("the answer is too long", "server_error");
    assert_eq!(names(&drain(&mut stream)).last(), Some(&"failed"));

    let calls = |from: u64| {
        let call = |index| json!({"index": index, "function": {"name": "f"}});
        chunk(&json!({"tool_calls": (from..from + 2_048).map(call).collect::<Vec<_>>()}), None)
    };
    let mut stream = StreamFromChat::new(Arc::new(echo()), "resp_1", 7);
    stream.push(&calls(0)).unwrap();
    stream.push(&calls(2_048)).unwrap();
    assert_eq!(stream.push(&calls(4_096)), Err(StreamError::TooLarge));
}

#[test]
fn calls_without_an_id_of_their_own_get_one() {
    let call = |index: u64, id: Value| json!({"tool_calls": [{"index": index, "id": id, "function": {"name": "f", "arguments": "{}"}}]});
    let chunks = [call(0, json!("a")), call(1, json!("a")), call(2, Value::Null), call(3, json!(""))];
    let chunks: Vec<_> = chunks.iter().map(|delta| chunk(delta, None)).collect();
    let events = told(&chunks);
    let output = events.last().unwrap()["response"]["output"].clone();
    let ids: Vec<_> = output.as_array().unwrap().iter().map(|item| item["call_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["a", "call_1_1", "call_1_2", "call_1_3"]);
}

#[test]
fn calls_in_one_piece_each_without_index_and_id_are_calls_of_their_own() {
    let whole = |arguments: &str| json!({"function": {"name": "f", "arguments": arguments}});
    let events = told(&[chunk(&json!({"tool_calls": [whole("{}"), whole("{\"a\":1}")]}), Some("tool_calls"))]);
    let output = &events.last().unwrap()["response"]["output"];
    assert_eq!((&output[0]["arguments"], &output[1]["arguments"]), (&json!("{}"), &json!("{\"a\":1}")));
}

#[test]
fn an_event_is_one_line_however_the_request_was_spaced() {
    let body = b"{\"model\":\"summary\",\"input\":\"x\",\"instructions\":\"a \\\" \\\\\",\"metadata\":{\r\n\t\"k\" : \" \\\\\\\" \"\n}}";
    let echo = to_chat(body, HostedTools::Refuse).unwrap().echo;
    let mut stream = StreamFromChat::new(Arc::new(echo), "resp_1", 7);
    stream.fail("m", "server_error");
    let event = stream.next().unwrap();
    assert_eq!(event.raw().iter().filter(|byte| **byte == b'\n').count(), 3);
    let response = value(&event)["response"].clone();
    assert_eq!((&response["instructions"], &response["metadata"]["k"]), (&json!("a \" \\"), &json!(" \\\" ")));
}

#[test]
fn what_is_no_answer_makes_no_response() {
    for none in ["", "[]", "{}", r#"{"choices":[]}"#, r#"{"choices":"x"}"#] {
        assert!(from_chat(none.as_bytes(), &echo(), "resp_1", 7).is_none(), "{none}");
    }
    let failed = r#"{"error":{"message":"m"},"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}"#;
    assert!(from_chat(failed.as_bytes(), &echo(), "resp_1", 7).is_none());
    let fine = failed.replace(r#"{"message":"m"}"#, "{}");
    assert!(from_chat(fine.as_bytes(), &echo(), "resp_1", 7).is_some());
}

/// A text cut into pieces of the given lengths, the last of which is the rest.
fn cut(text: &str, lengths: &[usize]) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    let mut rest = letters.as_slice();
    let mut pieces = Vec::new();
    for length in lengths {
        let (piece, tail) = rest.split_at((*length).min(rest.len()));
        pieces.push(piece.iter().collect());
        rest = tail;
    }
    pieces.push(rest.iter().collect());
    pieces
}

proptest! {
    #[test]
    fn the_same_text_in_any_chunks_is_the_same_response(
        text in "[a-z\"\\\\\n\u{1}ü€😀 ]{1,60}", arguments in "[{}\":a1ü]{1,30}", lengths in prop::collection::vec(0_usize..9, 0..12),
    ) {
        let call = |arguments: &str, id: Value| json!({"tool_calls": [{"index": 0, "id": id, "function": {"name": id.as_str(), "arguments": arguments}}]});
        let mut chunks: Vec<_> = cut(&text, &lengths).iter().map(|piece| chunk(&json!({"content": piece}), None)).collect();
        chunks.push(chunk(&call("", json!("f")), None));
        chunks.extend(cut(&arguments, &lengths).iter().map(|piece| chunk(&call(piece, Value::Null), None)));
        chunks.push(chunk(&json!({}), Some("tool_calls")));
        let events = told(&chunks);

        let numbers: Vec<_> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
        prop_assert!(numbers.iter().copied().eq(0..events.len() as u64));
        let joined = |kind: &str| -> String {
            events.iter().filter(|event| event["type"] == kind).map(|event| event["delta"].as_str().unwrap()).collect()
        };
        prop_assert_eq!(joined("response.output_text.delta"), text.clone());
        prop_assert_eq!(joined("response.function_call_arguments.delta"), arguments.clone());
        let message = json!({"content": text, "tool_calls": call(&arguments, json!("f"))["tool_calls"]});
        let whole = json!({"model": "m-1", "choices": [{"message": message, "finish_reason": "tool_calls"}]}).to_string();
        let whole: Value = serde_json::from_slice(&from_chat(whole.as_bytes(), &echo(), "resp_1", 7).unwrap()).unwrap();
        prop_assert_eq!(&events.last().unwrap()["response"], &whole);
    }

    #[test]
    fn however_the_pieces_of_several_calls_are_mixed_the_response_is_the_same(
        arguments in prop::collection::vec("[{}\":a1ü]{0,12}", 1..5), lengths in prop::collection::vec(0_usize..9, 0..5),
        turns in prop::collection::vec(any::<prop::sample::Index>(), 1..40), indexed: bool,
    ) {
        let call = |number: usize, arguments: &str| {
            let id = format!("call_{number}");
            let piece = |arguments: &str| match indexed {
                true => json!({"index": number, "function": {"arguments": arguments}}),
                false => json!({"id": id, "function": {"arguments": arguments}}),
            };
            let mut first = piece("");
            first["id"] = json!(id);
            first["function"]["name"] = json!("f");
            let rest = cut(arguments, &lengths).into_iter().map(|arguments| piece(&arguments));
            std::iter::once(first).chain(rest).map(|piece| chunk(&json!({"tool_calls": [piece]}), None)).collect::<Vec<_>>()
        };
        let calls: Vec<Vec<Event>> = (0..).zip(&arguments).map(|(number, arguments)| call(number, arguments)).collect();
        let (mut rest, mut mixed, mut begun) = (calls.clone(), Vec::new(), 0);
        for turn in turns.iter().cycle() {
            let open: Vec<_> = (0..rest.len().min(begun + 1)).filter(|call| !rest[*call].is_empty()).collect();
            let Some(call) = (!open.is_empty()).then(|| *turn.get(&open)) else { break };
            begun = begun.max(call + 1);
            mixed.push(rest[call].remove(0));
        }
        let last = |chunks: &[Event]| told(chunks).last().unwrap()["response"].clone();
        prop_assert_eq!(last(&mixed), last(&calls.concat()));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, text in r#"[\{\}\[\]":,\\a0-9 ]{0,60}"#) {
        for body in [bytes.as_slice(), text.as_bytes()] {
            let _ = (peek_request(body, DEPTH), to_chat(body, HostedTools::LeaveOut), peek_reply(body));
            let _ = from_chat(body, &echo(), "resp_1", 7);
            let _ = StreamFromChat::new(Arc::new(echo()), "", 7).push(&Event::from_data(body));
        }
    }
}
