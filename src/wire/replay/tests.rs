//! What is put together says what was streamed, and told again it is put together to the same.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn event(value: &Value) -> Event {
    match value["type"].as_str() {
        Some(kind) => Event::named(kind, value.to_string().as_bytes()),
        None => Event::from_data(value.to_string().as_bytes()),
    }
}

fn chat_stream(chunks: &[Value]) -> Vec<Event> {
    chunks.iter().map(event).chain([Event::done()]).collect()
}

fn assembled(form: Form, events: &[Event]) -> Option<Value> {
    Some(serde_json::from_slice(&assemble(form, events)?).unwrap())
}

fn data(events: &[Event]) -> Vec<Value> {
    let data = events.iter().filter(|event| !event.is_done());
    data.map(|event| serde_json::from_slice(&event.data().unwrap()).unwrap()).collect()
}

/// The law of this module.
fn assert_told_again(form: Form, whole: &[u8]) {
    let events = replay(form, whole).expect("it can be told");
    let again = assemble(form, &events).expect("what was told can be put together");
    assert_eq!(String::from_utf8_lossy(&again), String::from_utf8_lossy(whole));
}

fn chunk(choices: Value) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "system_fingerprint": null, "choices": choices})
}

fn delta(index: u64, delta: Value, finish: Value) -> Value {
    chunk(json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": finish}]))
}

#[test]
fn a_stream_of_chunks_becomes_the_answer_it_amounts_to() {
    let call = |index: u64, rest: Value| {
        let mut call = json!({"index": index});
        call.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        delta(0, json!({"tool_calls": [call]}), Value::Null)
    };
    let mut last = chunk(json!([]));
    last["usage"] = json!({"prompt_tokens": 3, "completion_tokens": 4});
    let events = chat_stream(&[
        json!({"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [1.50]}),
        delta(0, json!({"role": "assistant", "content": "", "refusal": null}), Value::Null),
        delta(0, json!({"reasoning_content": "Let me "}), Value::Null),
        delta(0, json!({"reasoning_content": "see."}), Value::Null),
        delta(0, json!({"content": "h\u{e9}"}), Value::Null),
        delta(0, json!({"content": "\"llo\n"}), Value::Null),
        call(0, json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}})),
        call(0, json!({"function": {"arguments": "{\"a\":"}})),
        call(1, json!({"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}})),
        call(0, json!({"function": {"arguments": "1}"}})),
        delta(0, json!({}), json!("tool_calls")),
        last,
    ]);
    let whole = assembled(Form::Chat, &events).unwrap();
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    assert_eq!(
        (&whole["id"], &whole["object"], &whole["created"]),
        (&json!("chatcmpl-1"), &json!("chat.completion"), &json!(1))
    );
    let message = json!({"role": "assistant", "reasoning_content": "Let me see.", "content": "h\u{e9}\"llo\n",
        "tool_calls": [call("c1", "f", "{\"a\":1}"), call("c2", "g", "{}")]});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "tool_calls"});
    assert_eq!((&whole["choices"], &whole["usage"]["completion_tokens"]), (&json!([choice]), &json!(4)));
    assert_eq!(whole["prompt_filter_results"], json!([1.50]));
    let bytes = assemble(Form::Chat, &events).unwrap();
    assert_told_again(Form::Chat, &bytes);
}

#[test]
fn numbers_and_members_nobody_knows_keep_their_spelling() {
    let one = br#"{"id":"x","new":{"n":1.50E-1},"choices":[{"index":0,"delta":{"content":"a"},"odd":0.10}]}"#;
    let two = br#"{"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"cost":1.0e-7}}"#;
    let events = [Event::from_data(one), Event::from_data(two), Event::done()];
    let whole = assemble(Form::Chat, &events).unwrap();
    for kept in [r#""new":{"n":1.50E-1}"#, r#""odd":0.10"#, r#""cost":1.0e-7"#] {
        assert!(memchr::memmem::find(&whole, kept.as_bytes()).is_some(), "{kept}");
    }
    assert_told_again(Form::Chat, &whole);
}

#[test]
fn what_would_be_lost_or_guessed_is_not_put_together() {
    let end = delta(0, json!({}), json!("stop"));
    let said = |value: Value| delta(0, value, Value::Null);
    let tool = |call: Value| said(json!({"tool_calls": [call]}));
    let cases: Vec<(&str, Vec<Value>)> = vec![
        ("nothing", vec![]),
        ("no end of a choice", vec![said(json!({"content": "a"}))]),
        ("one choice without its end", vec![end.clone(), delta(1, json!({"content": "a"}), Value::Null)]),
        ("sound", vec![said(json!({"audio": {"data": "AA"}})), end.clone()]),
        ("details", vec![said(json!({"reasoning_details": [{"text": "a"}]})), end.clone()]),
        ("new pieces", vec![said(json!({"thoughts": "a"})), end.clone()]),
        ("content in parts", vec![said(json!({"content": [{"type": "text", "text": "a"}]})), end.clone()]),
        ("another identity", vec![json!({"id": "other", "choices": []}), end.clone()]),
        (
            "another fingerprint",
            vec![json!({"system_fingerprint": "a"}), json!({"system_fingerprint": "b"}), end.clone()],
        ),
        ("a call without a number", vec![tool(json!({"id": "a", "function": {"name": "f"}})), end.clone()]),
        (
            "two calls under one number",
            vec![tool(json!({"index": 0, "id": "a"})), tool(json!({"index": 0, "id": "b"})), end.clone()],
        ),
        ("a choice that is none", vec![json!({"choices": [1]}), end.clone()]),
    ];
    for (what, chunks) in cases {
        assert!(assemble(Form::Chat, &chat_stream(&chunks)).is_none(), "{what}");
    }
    assert!(assemble(Form::Chat, &[event(&end)]).is_none(), "without its terminal event");
    let half =
        [Event::from_data(br#"{"choices":[{"index":0,"delta":{"content":"\ud83d"}}]}"#), event(&end), Event::done()];
    assert!(assemble(Form::Chat, &half).is_none(), "half a character");
}

#[test]
fn choices_are_put_together_each_for_itself() {
    let events = chat_stream(&[
        delta(1, json!({"role": "assistant", "content": "b"}), Value::Null),
        delta(0, json!({"role": "assistant", "content": "a"}), Value::Null),
        delta(1, json!({"content": "b"}), json!("length")),
        delta(0, json!({"content": "a"}), json!("stop")),
    ]);
    let whole = assembled(Form::Chat, &events).unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], "aa");
    assert_eq!(whole["choices"][1]["message"]["content"], "bb");
    let bytes = assemble(Form::Chat, &events).unwrap();
    assert_told_again(Form::Chat, &bytes);
    assert_eq!(ending(Form::Chat, &bytes), Ending::ByLength);
}

#[test]
fn probabilities_come_together_as_lists() {
    let with = |token: &str, finish: Value| {
        chunk(json!([{"index": 0, "delta": {"content": token}, "finish_reason": finish,
            "logprobs": {"content": [{"token": token, "logprob": -0.5}], "refusal": null}}]))
    };
    let events = chat_stream(&[with("a", Value::Null), with("b", json!("stop"))]);
    let whole = assembled(Form::Chat, &events).unwrap();
    let logprobs = &whole["choices"][0]["logprobs"];
    assert_eq!((logprobs["content"].as_array().unwrap().len(), &logprobs["content"][1]["token"]), (2, &json!("b")));
    assert_told_again(Form::Chat, &assemble(Form::Chat, &events).unwrap());
}

#[test]
fn a_whole_answer_is_told_as_its_provider_would_have() {
    let whole = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": null, "refusal": null, "annotations": [],
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
            "logprobs": null, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2}, "system_fingerprint": "fp"});
    let events = replay(Form::Chat, whole.to_string().as_bytes()).unwrap();
    let told = data(&events);
    assert!(events.last().unwrap().is_done());
    assert!(told.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == "chatcmpl-1"));
    assert_eq!(told[0]["choices"][0]["delta"], json!({"role": "assistant", "content": null}));
    assert_eq!(
        told[1]["choices"][0]["delta"]["tool_calls"],
        json!([{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}])
    );
    assert_eq!(
        told[2]["choices"][0]["delta"]["tool_calls"],
        json!([{"index": 0, "function": {"arguments": "{\"a\":1}"}}])
    );
    assert_eq!(
        (&told[3]["choices"][0]["delta"], &told[3]["choices"][0]["finish_reason"]),
        (&json!({}), &json!("tool_calls"))
    );
    assert_eq!((&told[4]["choices"], &told[4]["usage"]["completion_tokens"], told.len()), (&json!([]), &json!(2), 5));
    assert_eq!(told.iter().filter(|chunk| chunk["choices"][0]["delta"]["role"].is_string()).count(), 1);
}

#[test]
fn what_nobody_knows_how_to_stream_is_not_told() {
    let with = |message: Value| json!({"choices": [{"message": message, "finish_reason": "stop"}]}).to_string();
    assert!(replay(Form::Chat, with(json!({"content": "a", "audio": {"data": "AA"}})).as_bytes()).is_none());
    assert!(replay(Form::Chat, with(json!({"content": [{"type": "text"}]})).as_bytes()).is_none());
    assert!(replay(Form::Chat, br#"{"choices":[]}"#).is_none());
    assert!(replay(Form::Chat, br#"{"choices":[{"message":{"content":"a"}}]}"#).is_none(), "it has not ended");
    let item = json!({"status": "completed", "output": [{"type": "web_search_call", "id": "w"}]}).to_string();
    assert!(replay(Form::Responses, item.as_bytes()).is_none());
}

#[test]
fn long_texts_are_told_in_pieces_any_client_can_hold() {
    let text = "\u{1f980}".repeat(5_000);
    let whole = json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).to_string();
    let events = replay(Form::Chat, whole.as_bytes()).unwrap();
    assert!(events.iter().all(|event| event.raw().len() < 16 * 1024));
    let said: String = data(&events)
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(said, text);
}

#[test]
fn completions_have_texts_in_place_of_deltas() {
    let chunk = |text: &str, finish: Value| {
        json!({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}]})
    };
    let events = chat_stream(&[chunk("a", Value::Null), chunk("b", Value::Null), chunk("", json!("stop"))]);
    let whole = assemble(Form::Completion, &events).unwrap();
    let value: Value = serde_json::from_slice(&whole).unwrap();
    assert_eq!((&value["object"], &value["choices"][0]["text"]), (&json!("text_completion"), &json!("ab")));
    assert_told_again(Form::Completion, &whole);
}

fn message_events() -> Vec<Value> {
    let delta = |index: u64, delta: Value| json!({"type": "content_block_delta", "index": index, "delta": delta});
    let start =
        |index: u64, block: Value| json!({"type": "content_block_start", "index": index, "content_block": block});
    let stop = |index: u64| json!({"type": "content_block_stop", "index": index});
    vec![
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "m",
            "content": [], "stop_reason": null, "stop_sequence": null,
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 1, "service_tier": "standard"}}}),
        start(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
        json!({"type": "ping"}),
        delta(0, json!({"type": "thinking_delta", "thinking": "hm"})),
        delta(0, json!({"type": "signature_delta", "signature": "c2ln"})),
        stop(0),
        start(1, json!({"type": "text", "text": "", "citations": []})),
        delta(1, json!({"type": "text_delta", "text": "He"})),
        delta(1, json!({"type": "text_delta", "text": "llo"})),
        delta(1, json!({"type": "citations_delta", "citation": {"type": "char_location", "cited_text": "x"}})),
        stop(1),
        start(2, json!({"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}})),
        delta(2, json!({"type": "input_json_delta", "partial_json": ""})),
        delta(2, json!({"type": "input_json_delta", "partial_json": "{\"a\": 1"})),
        delta(2, json!({"type": "input_json_delta", "partial_json": ".50}"})),
        stop(2),
        start(3, json!({"type": "redacted_thinking", "data": "AA"})),
        stop(3),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": null}, "usage": {"output_tokens": 9}}),
        json!({"type": "message_stop"}),
    ]
}

#[test]
fn the_events_of_a_message_become_the_message() {
    let events: Vec<_> = message_events().iter().map(event).collect();
    let whole = assemble(Form::Messages, &events).unwrap();
    let value: Value = serde_json::from_slice(&whole).unwrap();
    assert_eq!(value["content"][0], json!({"type": "thinking", "thinking": "hm", "signature": "c2ln"}));
    assert_eq!(
        (&value["content"][1]["text"], &value["content"][1]["citations"][0]["cited_text"]),
        (&json!("Hello"), &json!("x"))
    );
    assert!(memchr::memmem::find(&whole, br#""input":{"a": 1.50}"#).is_some());
    assert_eq!(value["content"][3], json!({"type": "redacted_thinking", "data": "AA"}));
    assert_eq!((&value["stop_reason"], &value["usage"]["input_tokens"]), (&json!("tool_use"), &json!(5)));
    assert_eq!((&value["usage"]["output_tokens"], value["type"].as_str()), (&json!(9), Some("message")));
    assert_eq!(ending(Form::Messages, &whole), Ending::Complete);
    assert_told_again(Form::Messages, &whole);
}

#[test]
fn a_message_that_is_not_all_there_is_not_put_together() {
    let all = message_events();
    for left_out in [0, 1, 5, 10, 18, 19] {
        let events: Vec<_> = all.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, e)| event(e)).collect();
        assert!(assemble(Form::Messages, &events).is_none(), "without {}", all[left_out]);
    }
    let mut odd = all.clone();
    odd[7]["delta"]["type"] = json!("new_delta");
    assert!(assemble(Form::Messages, &odd.iter().map(event).collect::<Vec<_>>()).is_none());
    let mut garbled = all;
    garbled[14]["delta"]["partial_json"] = json!("]");
    assert!(assemble(Form::Messages, &garbled.iter().map(event).collect::<Vec<_>>()).is_none());
}

fn response() -> Value {
    json!({"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "m", "error": null,
        "incomplete_details": null, "output": [
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "AA"},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
                {"type": "output_text", "text": "hello", "annotations": [{"type": "url_citation", "url": "u"}], "logprobs": []},
                {"type": "refusal", "refusal": "no"}]},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{\"a\":1}", "status": "completed"}],
        "usage": {"input_tokens": 1, "output_tokens": 2}})
}

#[test]
fn a_response_is_told_item_by_item_and_its_last_event_holds_it_whole() {
    let whole = response().to_string();
    let events = replay(Form::Responses, whole.as_bytes()).unwrap();
    let told = data(&events);
    assert!(told.iter().enumerate().all(|(number, event)| event["sequence_number"] == number));
    assert!(events.iter().zip(&told).all(|(event, data)| event.event_type() == data["type"].as_str()));
    let kinds: Vec<_> =
        told.iter().map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "created",
            "in_progress",
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "content_part.added",
            "refusal.delta",
            "refusal.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
    );
    assert_eq!((&told[0]["response"]["output"], &told[0]["response"]["usage"]), (&json!([]), &Value::Null));
    assert_eq!(
        (&told[10]["delta"], &told[10]["item_id"], &told[10]["output_index"]),
        (&json!("hello"), &json!("msg_1"), &json!(1))
    );
    assert_eq!(told[22]["response"], response());
    assert_told_again(Form::Responses, whole.as_bytes());
}

#[test]
fn a_response_whose_last_event_leaves_items_out_is_not_put_together() {
    let whole = response().to_string();
    let mut events = replay(Form::Responses, whole.as_bytes()).unwrap();
    let mut emptied = response();
    emptied["output"] = json!([]);
    events.pop();
    events.push(event(&json!({"type": "response.completed", "response": emptied})));
    assert!(assemble(Form::Responses, &events).is_none());
    assert!(assemble(Form::Responses, &events[..3]).is_none());
}

#[test]
fn endings_are_told_apart_in_every_form() {
    let chat = |reasons: &[&str]| {
        json!({"choices": reasons.iter().map(|reason| json!({"finish_reason": reason})).collect::<Vec<_>>()})
            .to_string()
    };
    let message = |reason: &str| json!({"type": "message", "content": [], "stop_reason": reason}).to_string();
    let response = |status: &str, reason: &str| {
        json!({"status": status, "incomplete_details": {"reason": reason}, "output": []}).to_string()
    };
    for (form, whole, expected) in [
        (Form::Chat, chat(&["stop", "tool_calls"]), Ending::Complete),
        (Form::Chat, chat(&["stop", "length"]), Ending::ByLength),
        (Form::Chat, chat(&["length", "content_filter", "stop"]), Ending::Otherwise),
        (Form::Chat, chat(&[]), Ending::Otherwise),
        (Form::Completion, r#"{"choices":[{"finish_reason":null}]}"#.to_owned(), Ending::Otherwise),
        (Form::Completion, "nope".to_owned(), Ending::Otherwise),
        (Form::Messages, message("end_turn"), Ending::Complete),
        (Form::Messages, message("max_tokens"), Ending::ByLength),
        (Form::Messages, message("refusal"), Ending::Otherwise),
        (Form::Responses, response("completed", ""), Ending::Complete),
        (Form::Responses, response("incomplete", "max_output_tokens"), Ending::ByLength),
        (Form::Responses, response("incomplete", "content_filter"), Ending::Otherwise),
        (Form::Responses, response("queued", ""), Ending::Otherwise),
    ] {
        assert_eq!(ending(form, whole.as_bytes()), expected, "{form:?} {whole}");
    }
}

#[test]
fn operations_that_are_data_have_no_form() {
    assert_eq!(Form::of(Operation::Embeddings), None);
    assert_eq!(Form::of(Operation::CountTokens), None);
    assert_eq!(Form::of(Operation::Messages), Some(Form::Messages));
}

/// Pieces of text with what is awkward in JSON and in UTF-8.
fn texts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(r#"[a-c "\\\n\u{e9}\u{1f980}]{0,12}"#, 0..6)
}

/// One choice: its texts, its calls' arguments, how it ended.
fn choices() -> impl Strategy<Value = Vec<(Vec<String>, Vec<Vec<String>>, bool)>> {
    prop::collection::vec((texts(), prop::collection::vec(texts(), 0..3), any::<bool>()), 1..4)
}

proptest! {
    #[test]
    fn whatever_is_streamed_in_whatever_order_is_put_together_and_told_again(choices in choices(), order in any::<prop::sample::Index>()) {
        let mut queues: Vec<Vec<Value>> = Vec::new();
        for (index, (texts, calls, stops)) in (0u64..).zip(&choices) {
            let mut queue = vec![delta(index, json!({"role": "assistant", "content": ""}), Value::Null)];
            queue.extend(texts.iter().map(|text| delta(index, json!({"content": text}), Value::Null)));
            for (number, arguments) in calls.iter().enumerate() {
                let first = json!({"index": number, "id": format!("c{number}"), "function": {"name": "f"}});
                queue.push(delta(index, json!({"tool_calls": [first]}), Value::Null));
                let piece = |piece: &String| json!({"tool_calls": [{"index": number, "function": {"arguments": piece}}]});
                queue.extend(arguments.iter().map(|text| delta(index, piece(text), Value::Null)));
            }
            queue.push(delta(index, json!({}), json!(if *stops { "stop" } else { "length" })));
            queue.reverse();
            queues.push(queue);
        }
        let (mut chunks, mut turn) = (Vec::new(), order.index(97));
        while queues.iter().any(|queue| !queue.is_empty()) {
            turn = turn.wrapping_mul(31).wrapping_add(7);
            let at = turn % queues.len();
            chunks.extend(queues[at].pop());
        }
        let whole = assemble(Form::Chat, &chat_stream(&chunks)).unwrap();
        let value: Value = serde_json::from_slice(&whole).unwrap();
        for (choice, (texts, calls, _)) in value["choices"].as_array().unwrap().iter().zip(&choices) {
            prop_assert_eq!(choice["message"]["content"].as_str().unwrap(), texts.concat());
            for (call, arguments) in choice["message"]["tool_calls"].as_array().into_iter().flatten().zip(calls) {
                prop_assert_eq!(call["function"]["arguments"].as_str().unwrap(), arguments.concat());
            }
        }
        let all_stop = choices.iter().all(|(_, _, stops)| *stops);
        prop_assert_eq!(ending(Form::Chat, &whole), if all_stop { Ending::Complete } else { Ending::ByLength });
        assert_told_again(Form::Chat, &whole);
    }

    #[test]
    fn no_text_like_json_makes_it_panic(body in r#"[\{\}\[\]":,\\a0-9\. choicesdeltatypeoutput]{0,80}"#) {
        for form in [Form::Chat, Form::Completion, Form::Responses, Form::Messages] {
            let _ = replay(form, body.as_bytes());
            let _ = ending(form, body.as_bytes());
            let _ = assemble(form, &[Event::from_data(body.as_bytes()), Event::done()]);
            let _ = assemble(form, &[Event::named("message_start", body.as_bytes()), Event::named("message_stop", b"{}")]);
        }
    }
}
