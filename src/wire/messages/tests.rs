use std::collections::VecDeque;

use serde_json::{Value, json};

use super::*;
use crate::domain::usage::Usage;
use crate::wire::openai::parse_error;
use crate::wire::sse::Event;

fn event(json: &Value) -> EventFacts {
    peek_event(&Event::named(json["type"].as_str().unwrap_or("x"), json.to_string().as_bytes()))
}

fn refusal(body: &Value) -> (String, &'static str) {
    let refusal = to_chat(body.to_string().as_bytes()).unwrap_err();
    (refusal.message, refusal.param)
}

fn chat(body: &Value) -> Value {
    serde_json::from_slice(&to_chat(body.to_string().as_bytes()).unwrap().body).unwrap()
}

fn asking(field: &str, value: &Value) -> Value {
    let mut body = json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]});
    body[field] = value.clone();
    body
}

#[test]
fn a_request_says_model_stream_and_limit() {
    let body = br#"{"max_tokens":10,"model":"summary","stream":true,"messages":[]}"#;
    let facts = peek_request(body, 64).unwrap();
    assert_eq!((facts.model.as_ref(), facts.stream, facts.max_tokens), ("summary", true, Some(10)));
    assert_eq!(facts.model_at(body), Some(26..33));
    let counting = peek_request(br#"{"model":"summary"}"#, 64).unwrap();
    assert_eq!(counting.needs_max_tokens().unwrap_err().param, Some("max_tokens"));
}

#[test]
fn s10_requests_are_read_as_strictly_as_chats() {
    let table = [
        (r#"{"max_tokens":1}"#, Some("model")),
        (r#"{"model":"a","stream":1}"#, Some("stream")),
        (r#"{"model":"a","max_tokens":"1"}"#, Some("max_tokens")),
        (r#"{"model":"a","max_tokens":-1}"#, Some("max_tokens")),
        (r#"{"model":"a","max_tokens":1.5}"#, Some("max_tokens")),
        (r#"{"model":"a","model":"b"}"#, Some("model")),
        (r#"{"model":"a","x":1,"x":1}"#, None),
        (r#"{"model":"a","Max_Tokens":1}"#, Some("max_tokens")),
        ("{\"model\":\"a\",\"max_to\u{212a}ens\":1}", Some("max_tokens")),
        (r#"{"model":"a","x":[[]]}"#, None),
        ("[]", None),
    ];
    for (body, param) in table {
        assert_eq!(peek_request(body.as_bytes(), 2).unwrap_err().param, param, "{body}");
    }
}

#[test]
fn content_of_a_native_stream_is_what_the_model_said() {
    let delta = |delta: Value| json!({"type": "content_block_delta", "index": 0, "delta": delta});
    let start = |block: Value| json!({"type": "content_block_start", "index": 0, "content_block": block});
    for said in [
        delta(json!({"type": "text_delta", "text": " "})),
        delta(json!({"type": "thinking_delta", "thinking": "a"})),
        delta(json!({"type": "input_json_delta", "partial_json": "{"})),
        start(json!({"type": "tool_use", "id": "t", "name": "f", "input": {}})),
        start(json!({"type": "text", "text": "a"})),
    ] {
        assert!(event(&said).content, "{said}");
    }
    for silent in [
        json!({"type": "message_start", "message": {"content": [], "usage": {"input_tokens": 1}}}),
        json!({"type": "ping"}),
        start(json!({"type": "text", "text": ""})),
        start(json!({"type": "thinking", "thinking": "", "signature": ""})),
        delta(json!({"type": "text_delta", "text": ""})),
        delta(json!({"type": "signature_delta", "signature": "abc"})),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_stop"}),
        json!({"content_block": 1, "delta": [], "message": "x", "usage": null}),
    ] {
        let facts = event(&silent);
        assert!(facts.json && !facts.content && facts.error.is_none(), "{silent}");
    }
    for odd in ["", "[DONE]", "[]", "{"] {
        assert_eq!(peek_event(&Event::from_data(odd.as_bytes())), EventFacts::default());
    }
}

#[test]
fn token_counts_of_a_native_stream_add_up_with_the_caches_share() {
    let start = json!({"type": "message_start", "message": {"usage": {
        "input_tokens": 10, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 100, "output_tokens": 1}}});
    let mut tokens = event(&start).tokens;
    assert_eq!(
        tokens.usage(),
        Some(Usage { input_tokens: Some(115), cached_input_tokens: Some(100), output_tokens: Some(1) })
    );
    let end = event(
        &json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 12, "output_tokens": 42}}),
    );
    assert_eq!(end.stop, Some(Stop::Complete));
    tokens.absorb(end.tokens);
    assert_eq!(
        tokens.usage(),
        Some(Usage { input_tokens: Some(117), cached_input_tokens: Some(100), output_tokens: Some(42) })
    );
    assert_eq!(Tokens::default().usage(), None);
}

#[test]
fn the_end_of_a_native_stream_is_its_last_event() {
    let last = Event::named("message_stop", br#"{"type":"message_stop"}"#);
    assert!(is_last_event(&last) && peek_event(&last).terminal);
    assert!(peek_event(&Event::from_data(br#"{"type":"message_stop"}"#)).terminal);
    assert!(!is_last_event(&Event::named("message_delta", b"{}")));
}

#[test]
fn an_error_is_seen_in_a_native_stream_and_in_a_body() {
    let error = json!({"type": "error", "error": {"type": "overloaded_error", "message": "m"}, "request_id": "req_1"});
    let seen = event(&error).error.unwrap();
    assert_eq!((seen.status, seen.message.as_str()), (Some(529), "m"));
    assert!(event(&json!({"type": "error"})).error.is_some());
    let body = error.to_string();
    assert_eq!(peek_reply(body.as_bytes()).unwrap().error, parse_error(body.as_bytes()));
    assert!(peek_reply(br#"{"type":"error"}"#).unwrap().error.is_some());
}

#[test]
fn a_native_message_says_what_it_holds() {
    let message = |content: Value, stop: &str| {
        json!({"type": "message", "model": "m-1", "content": content, "stop_reason": stop,
            "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 5}})
        .to_string()
    };
    let body = message(json!([{"type": "text", "text": "hi"}]), "stop_sequence");
    let facts = peek_reply(body.as_bytes()).unwrap();
    assert!(facts.content && facts.error.is_none());
    assert_eq!((facts.stop, facts.model.as_deref()), (Some(Stop::Complete), Some("m-1")));
    assert_eq!(
        facts.usage,
        Some(Usage { input_tokens: Some(7), cached_input_tokens: Some(4), output_tokens: Some(5) })
    );
    let body = message(json!([{"type": "tool_use", "id": "t", "name": "f", "input": {}}]), "tool_use");
    assert!(peek_reply(body.as_bytes()).unwrap().content);
    for (nothing, stop) in
        [(json!([]), Stop::CutOnPurpose), (json!([{"type": "text", "text": ""}]), Stop::CutOnPurpose)]
    {
        let body = message(nothing, "refusal");
        let facts = peek_reply(body.as_bytes()).unwrap();
        assert_eq!((facts.content, facts.stop), (false, Some(stop)));
    }
    assert_eq!(peek_reply(message(json!([]), "new_reason").as_bytes()).unwrap().stop, Some(Stop::Unknown));
    assert!(peek_reply(b"[]").is_none() && peek_reply(b"<html>").is_none());
}

#[test]
fn what_cannot_be_translated_is_refused_by_its_place() {
    let image = |source: Value| json!([{"role": "user", "content": [{"type": "image", "source": source}]}]);
    let table = [
        ("messages", json!("x"), "messages: must be a list of objects"),
        ("messages", json!([1]), "messages: must be a list of objects"),
        ("messages", json!([{"role": "tool", "content": "x"}]), "messages.0: role must be one of"),
        ("messages", json!([{"role": "user"}]), "messages.0: content is missing"),
        ("messages", json!([{"role": "user", "content": 1}]), "messages.0.content: content must be"),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "tool_result"}]}]),
            "messages.0.content.0: tool_use_id",
        ),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "tool_use"}]}]),
            "messages.0.content.0: a block that",
        ),
        (
            "messages",
            json!([{"role": "assistant", "content": [{"type": "server_tool_use"}]}]),
            "messages.0.content.0: a block",
        ),
        (
            "messages",
            json!([{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": "x"}]}]),
            "messages.0.content.0: input must be",
        ),
        ("messages", image(json!({"type": "file", "file_id": "f"})), "messages.0.content.0: the source of an image"),
        ("messages", image(json!({"type": "base64", "data": "AA"})), "messages.0.content.0: the source of an image"),
        ("system", json!([{"type": "image"}]), "system: must be a string or a list of text blocks"),
        ("tools", json!({}), "tools: must be a list"),
        ("tools", json!([{"name": "f"}]), "tools.0: input_schema"),
        ("tools", json!([{"type": "bash_20250124", "name": "bash"}]), "tools.0: tools the vendor defines"),
        ("stop_sequences", json!("x"), "stop_sequences: must be"),
        ("metadata", json!({"user_id": 1}), "metadata.user_id: must be"),
        ("output_config", json!({"format": {"type": "xml"}}), "output_config.format: must be"),
        ("container", json!("c"), "container: needs a provider"),
        ("mcp_servers", json!([]), "mcp_servers: needs a provider"),
        ("n", json!(2), "n: is no field"),
        ("stream_options", json!({}), "stream_options: is no field"),
    ];
    for (field, value, message) in table {
        let (said, param) = refusal(&asking(field, &value));
        assert!(said.starts_with(message), "{said}");
        assert_eq!(param, field);
    }
    let with_tool = |choice: Value| {
        let mut body = asking("tools", &json!([{"name": "f", "input_schema": {}}]));
        body["tool_choice"] = choice;
        body
    };
    assert!(refusal(&with_tool(json!({"type": "most"}))).0.starts_with("tool_choice.type: must be one of"));
    assert!(refusal(&with_tool(json!({"type": "tool"}))).0.starts_with("tool_choice.name"));
}

#[test]
fn the_choice_of_tools_has_its_counterpart() {
    let mut body = asking("tools", &json!([{"name": "f", "input_schema": {}}]));
    for (choice, expected) in [
        (json!({"type": "auto"}), json!("auto")),
        (json!({"type": "any"}), json!("required")),
        (json!({"type": "none"}), json!("none")),
        (json!({"type": "tool", "name": "f"}), json!({"type": "function", "function": {"name": "f"}})),
    ] {
        body["tool_choice"] = choice;
        let chat = chat(&body);
        assert_eq!((&chat["tool_choice"], chat.get("parallel_tool_calls")), (&expected, None));
    }
    body["tool_choice"] = json!({"type": "auto", "disable_parallel_tool_use": true});
    assert_eq!(chat(&body)["parallel_tool_calls"], false);
    body["tools"] = json!([]);
    let chat = chat(&body);
    assert!(["tools", "tool_choice", "parallel_tool_calls"].iter().all(|name| chat.get(name).is_none()));
}

#[test]
fn a_long_user_id_is_left_out_and_said_so() {
    let body = asking("metadata", &json!({"user_id": "u".repeat(65)})).to_string();
    let translated = to_chat(body.as_bytes()).unwrap();
    assert_eq!(translated.dropped, ["metadata.user_id"]);
    assert!(!std::str::from_utf8(&translated.body).unwrap().contains("user\":"));
    assert!(!format!("{translated:?}").contains("uuu"));
}

#[test]
fn half_a_surrogate_pair_passes_as_it_came() {
    let body =
        r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"text","text":"\ud83d"}]}]}"#;
    let translated = to_chat(body.as_bytes()).unwrap();
    assert!(std::str::from_utf8(&translated.body).unwrap().contains(r#""content":"\ud83d""#));
    let escaped = br#"{"model":"\u006d","max_tokens":1,"messages":[]}"#;
    assert_eq!(to_chat(escaped).unwrap().model_at, None);
}

#[test]
fn a_tool_loop_of_two_turns_keeps_its_calls_and_results_paired() {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let mut body = asking("tools", &json!([{"name": "weather", "input_schema": schema}]));
    for turn in 1..=2 {
        let id = format!("call_{turn}");
        let reply = json!({"choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"content": null, "tool_calls": [
            {"id": id, "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Oslo\"}"}}]}}]});
        let message = from_chat(reply.to_string().as_bytes(), "m", "msg_1").unwrap();
        let message: Value = serde_json::from_slice(&message).unwrap();
        assert_eq!(message["stop_reason"], "tool_use");
        let turns = body["messages"].as_array_mut().unwrap();
        turns.push(json!({"role": "assistant", "content": message["content"]}));
        turns.push(json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": message["content"][0]["id"], "content": "-3"}]}));
        let chat = chat(&body);
        let told = chat["messages"].as_array().unwrap();
        assert_eq!(told.len(), 1 + 2 * turn);
        let (call, result) = (&told[told.len() - 2], &told[told.len() - 1]);
        assert_eq!(call["tool_calls"][0]["id"], json!(id));
        assert_eq!(
            (&result["role"], &result["tool_call_id"], &result["content"]),
            (&json!("tool"), &json!(id), &json!("-3"))
        );
    }
}

#[test]
fn an_error_body_has_the_form_and_the_type_of_its_status() {
    let expected =
        r#"{"type":"error","error":{"type":"not_found_error","message":"no such \"model\""},"request_id":"req_1"}"#;
    assert_eq!(error_body(&Failure::of(404, "no such \"model\"", "req_1")), expected);
    for (status, kind) in [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (409, "conflict_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ] {
        assert_eq!(kind_of(status), kind);
    }
    let failure = Failure { code: Some("upstream_truncated"), ..Failure::of(502, "m", "req_1") };
    let event = error_event(&failure);
    let expected = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"m\",\"details\":{\"error_code\":\"upstream_truncated\"}},\"request_id\":\"req_1\"}\n\n";
    assert_eq!(event.raw(), expected);
    assert!(peek_event(&event).error.is_some());
}

#[test]
fn nothing_follows_a_failure_or_the_end() {
    let chunk = Event::from_data(br#"{"choices":[{"delta":{"content":"a"}}]}"#);
    for fails in [true, false] {
        let (mut stream, mut events) = (StreamFromChat::new("m", "msg_1"), VecDeque::new());
        if fails {
            stream.fail(&Failure::of(502, "m", ""));
        } else {
            stream.push(&Event::done(), &mut events).unwrap();
            assert_eq!(
                events.drain(..).filter_map(|event| event.event_type().map(str::to_owned)).collect::<Vec<_>>(),
                ["message_start", "message_delta", "message_stop"]
            );
        }
        stream.push(&chunk, &mut events).unwrap();
        stream.push(&Event::done(), &mut events).unwrap();
        assert!(events.is_empty());
    }
}

#[test]
fn what_is_no_chat_stream_is_an_error_and_comments_are_nothing() {
    let push = |event: &Event| StreamFromChat::new("m", "msg_1").push(event, &mut VecDeque::new());
    assert_eq!(push(&Event::from_data(b"<html>")), Err(StreamError::NotChat));
    let unnamed = br#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"arguments":"{}"}}]}}]}"#;
    assert_eq!(push(&Event::from_data(unnamed)), Err(StreamError::Unnamed));
    let whole = |index| json!({"index": index, "function": {"name": "f", "arguments": "{}"}});
    let many = json!({"choices": [{"delta": {"tool_calls": (0..4_097).map(whole).collect::<Vec<_>>()}}]}).to_string();
    assert_eq!(push(&Event::from_data(many.as_bytes())), Err(StreamError::TooManyBlocks));
}

fn calls(pieces: &Value) -> Event {
    Event::from_data(json!({"choices": [{"index": 0, "delta": {"tool_calls": pieces}}]}).to_string().as_bytes())
}

#[test]
fn calls_that_follow_one_another_leave_as_they_come() {
    let (mut stream, mut events) = (StreamFromChat::new("m", "msg_1"), VecDeque::new());
    for index in 0..3 {
        let first = json!([{"index": index, "id": format!("c{index}"), "function": {"name": "f", "arguments": ""}}]);
        stream.push(&calls(&first), &mut events).unwrap();
        for piece in ["{\"a\"", ":\"}\"", "}"] {
            events.clear();
            let more = json!([{"index": index, "function": {"arguments": piece}}]);
            stream.push(&calls(&more), &mut events).unwrap();
            let last: Value = serde_json::from_slice(&events.back().unwrap().data().unwrap()).unwrap();
            assert_eq!((&last["index"], &last["delta"]["partial_json"]), (&json!(index), &json!(piece)));
        }
    }
}

#[test]
fn what_is_held_back_for_a_call_that_is_not_whole_is_bounded_in_bytes() {
    let (mut stream, mut events) = (StreamFromChat::new("m", "msg_1"), VecDeque::new());
    let open = json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}]);
    stream.push(&calls(&open), &mut events).unwrap();
    let second = json!([{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{\"text\":\""}}]);
    stream.push(&calls(&second), &mut events).unwrap();
    events.clear();
    let kilobyte = calls(&json!([{"index": 1, "function": {"arguments": "x".repeat(1_024)}}]));
    let mut held = 0;
    while events.is_empty() {
        stream.push(&kilobyte, &mut events).unwrap();
        held += 1;
    }
    assert!((1_000..=1_024).contains(&held), "{held}");
    let told: Vec<_> = events.drain(..).filter_map(|event| event.event_type().map(str::to_owned)).collect();
    assert_eq!(told, ["content_block_stop", "content_block_start", "content_block_delta"]);
    stream.push(&calls(&json!([{"index": 0, "id": "a", "function": {"arguments": " "}}])), &mut events).unwrap();
    assert!(events.is_empty());
    let late = calls(&json!([{"index": 0, "function": {"arguments": "}"}}]));
    assert_eq!(stream.push(&late, &mut events), Err(StreamError::Mixed));
}

#[test]
fn blocks_that_are_held_back_count_as_blocks() {
    let (mut stream, mut events) = (StreamFromChat::new("m", "msg_1"), VecDeque::new());
    let mut pieces = vec![json!({"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}})];
    pieces.extend((1..4_096).map(|index| json!({"index": index, "function": {"name": "g"}})));
    stream.push(&calls(&json!(pieces)), &mut events).unwrap();
    let more = calls(&json!([{"index": 4_096, "function": {"name": "g"}}]));
    assert_eq!(stream.push(&more, &mut events), Err(StreamError::TooManyBlocks));
}

#[test]
fn a_call_no_piece_can_mean_any_more_holds_nothing_back() {
    let told = |pieces: &[Value]| {
        let (mut stream, mut events) = (StreamFromChat::new("m", "msg_1"), VecDeque::new());
        for piece in pieces {
            stream.push(&calls(&json!([piece])), &mut events).unwrap();
        }
        let told = events.iter().filter_map(|event| event.event_type().map(str::to_owned));
        told.filter(|kind| kind == "content_block_start").count()
    };
    let call = |index: Option<u64>, id: &str, arguments: &str| {
        let mut piece = json!({"function": {"name": "f", "arguments": arguments}});
        if let Some(index) = index {
            piece["index"] = json!(index);
        }
        if !id.is_empty() {
            piece["id"] = json!(id);
        }
        piece
    };
    // Neither index nor id, or one index and no id: a piece that follows means the last call.
    for arguments in ["", "{\"a\""] {
        assert_eq!(told(&[call(None, "", arguments), call(None, "", "{}")]), 2);
        assert_eq!(told(&[call(None, "", arguments), call(Some(1), "b", "{")]), 2);
        assert_eq!(told(&[call(Some(0), "", arguments), call(Some(0), "b", "{")]), 2);
        // Its id, or its index, may yet come.
        assert_eq!(told(&[call(None, "a", arguments), call(None, "b", "{}")]), 1);
        assert_eq!(told(&[call(Some(0), "a", arguments), call(Some(0), "b", "{}")]), 1);
        assert_eq!(told(&[call(Some(0), "", arguments), call(Some(1), "", "{}")]), 1);
    }
}

#[test]
fn what_is_said_amid_a_call_follows_it() {
    let (mut stream, mut events) = (StreamFromChat::new("m", "msg_1"), VecDeque::new());
    let text = |text: &str| Event::from_data(json!({"choices": [{"delta": {"content": text}}]}).to_string().as_bytes());
    let piece = |arguments: &str| calls(&json!([{"index": 0, "function": {"arguments": arguments}}]));
    let begin = calls(&json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}]));
    for event in
        [text("so"), begin, text("let me "), piece("\"a\":1"), text("see"), piece("}"), text("!"), Event::done()]
    {
        stream.push(&event, &mut events).unwrap();
    }
    let told: Vec<_> = events
        .iter()
        .map(|event| serde_json::from_slice::<Value>(&event.data().unwrap()).unwrap())
        .filter(|event| event["type"] == "content_block_delta")
        .map(|event| (event["index"].as_u64().unwrap(), event["delta"].clone()))
        .map(|(index, delta)| (index, delta["text"].as_str().or(delta["partial_json"].as_str()).unwrap().to_owned()))
        .collect();
    let expected = [(0, "so"), (1, "{"), (1, "\"a\":1"), (1, "}"), (2, "let me see"), (2, "!")];
    assert_eq!(told, expected.map(|(index, said)| (index, said.to_owned())));
}
