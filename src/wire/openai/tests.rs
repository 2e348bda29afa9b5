use std::fmt::Write as _;

use serde_json::{Value, json};

use super::*;
use crate::domain::usage::Usage;

const DEPTH: usize = 64;

fn refusal(body: &str) -> (&'static str, Option<&'static str>) {
    let error = peek_request(body.as_bytes(), DEPTH).err().unwrap();
    (error.message, error.param)
}

fn param(body: &str) -> Option<&'static str> {
    refusal(body).1
}

#[test]
fn a_request_says_model_stream_usage_and_count() {
    let body = br#"{"messages":[{"role":"user"}],"model":"summary","stream":true,"stream_options":{"include_usage":true},"n":2}"#;
    let facts = peek_request(body, DEPTH).unwrap();
    assert_eq!((facts.model.as_ref(), facts.n), ("summary", 2));
    assert!(facts.stream && facts.include_usage && facts.has_stream_options);

    let facts =
        peek_request(br#" {"mod\u0065l":"a\"b","stream":null,"stream_options":null,"n":null} "#, DEPTH).unwrap();
    assert_eq!((facts.model.as_ref(), facts.n), ("a\"b", 1));
    assert!(!facts.stream && !facts.include_usage && !facts.has_stream_options);
}

#[test]
fn a_wrong_type_is_named_by_its_field() {
    let table = [
        (r#"{"messages":[]}"#, "model"),
        (r#"{"model":null}"#, "model"),
        (r#"{"model":""}"#, "model"),
        (r#"{"model":["a"]}"#, "model"),
        (r#"{"model":"a","stream":"true"}"#, "stream"),
        (r#"{"model":"a","stream_options":true}"#, "stream_options"),
        (r#"{"model":"a","stream_options":[]}"#, "stream_options"),
        (r#"{"model":"a","stream_options":{"include_usage":1}}"#, "stream_options.include_usage"),
        (
            r#"{"model":"a","stream_options":{"include_usage":true,"include_usage":false}}"#,
            "stream_options.include_usage",
        ),
        (r#"{"model":"a","n":0}"#, "n"),
        (r#"{"model":"a","n":1.5}"#, "n"),
        (r#"{"model":"a","n":-1}"#, "n"),
    ];
    for (body, name) in table {
        assert_eq!(param(body), Some(name), "{body}");
    }
}

#[test]
fn s10_a_top_level_key_sent_twice_is_refused() {
    for body in [r#"{"model":"cheap","model":"dear"}"#, r#"{"model":"cheap","mod\u0065l":"dear"}"#] {
        assert_eq!(refusal(body), ("a top-level key appears twice, send it once", Some("model")), "{body}");
    }
    assert_eq!(param(r#"{"model":"a","user":"x","user":"y"}"#), None);
    assert!(peek_request(br#"{"model":"a","messages":[{"role":"x","role":"y"}]}"#, DEPTH).is_ok());
}

#[test]
fn s10_another_letter_case_of_a_field_we_read_is_refused() {
    for key in ["Model", "MODEL", "ſtream", "Stream_Options", "N"] {
        let body = format!(r#"{{"model":"cheap","{key}":null}}"#);
        assert!(refusal(&body).0.contains("letter case"), "{key}");
    }
    assert!(peek_request(br#"{"model":"a","User":"x","user":"y"}"#, DEPTH).is_ok());
}

#[test]
fn more_than_256_top_level_keys_are_refused() {
    let body = |keys: usize| {
        let mut body = r#"{"model":"a""#.to_owned();
        (1..keys).for_each(|key| write!(body, r#","k{key}":0"#).unwrap());
        body + "}"
    };
    assert!(peek_request(body(256).as_bytes(), DEPTH).is_ok());
    assert_eq!(param(&body(257)), None);
    assert!(refusal(&body(100_000)).0.contains("too many"));
}

#[test]
fn what_is_no_json_object_is_refused_with_its_place_and_without_its_content() {
    let error = peek_request(b"{\"model\":\n CANARY}", DEPTH).err().unwrap();
    assert_eq!(error.position, Some((2, 2)));
    assert!(!format!("{error} {error:?}").contains("CANARY"));
    for body in ["", "[]", "\"a\"", "{\"model\":\"a\"} x", "{\"model\":\"a\"", "\u{feff}{\"model\":\"a\"}"] {
        assert!(peek_request(body.as_bytes(), DEPTH).is_err(), "{body}");
    }
    assert!(peek_request(b"{\"model\":\"a\",\"user\":\"\xff\"}", DEPTH).is_err());
}

#[test]
fn depth_counts_brackets_outside_strings_only() {
    let nested = |levels: usize| format!(r#"{{"model":"a","x":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
    assert!(peek_request(nested(63).as_bytes(), DEPTH).is_ok());
    assert!(refusal(&nested(64)).0.contains("nested"));
    assert!(refusal(&nested(1_000_000)).0.contains("nested"));
    let quoted = r#"{"model":"a","x":"[[[[[[[[[[[[[[[[[[[[\"[[[[\\","y":"{{{{"}"#;
    assert!(peek_request(quoted.as_bytes(), 1).is_ok());
    let siblings = format!(r#"{{"model":"a","x":[{}[]]}}"#, "[],".repeat(1_000));
    assert!(peek_request(siblings.as_bytes(), 3).is_ok());
}

fn chunk(json: &Value) -> ChunkFacts {
    peek_chunk(json.to_string().as_bytes())
}

fn delta(delta: &Value) -> ChunkFacts {
    chunk(&json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]}))
}

#[test]
fn content_is_what_the_model_said_and_not_a_role() {
    for said in [
        json!({"content": "a"}),
        json!({"content": "\n"}),
        json!({"content": [{"type": "text", "text": "a"}]}),
        json!({"reasoning_content": "a"}),
        json!({"content": "", "reasoning": "a"}),
        json!({"tool_calls": [{"index": 0}]}),
        json!({"function_call": {"name": "f"}}),
        json!({"refusal": "no"}),
        json!({"audio": {"data": "x"}}),
    ] {
        assert!(delta(&said).content, "{said}");
    }
    for silent in [
        json!({"role": "assistant", "content": ""}),
        json!({"role": "assistant", "content": null, "tool_calls": [], "refusal": null}),
        json!({}),
        json!(null),
        json!("odd"),
    ] {
        let facts = delta(&silent);
        assert!(facts.json && !facts.content && !facts.finished, "{silent}");
    }
    assert!(chunk(&json!({"choices": [{"text": "a"}]})).content);
    assert!(chunk(&json!({"choices": [{"delta": {}}, {"delta": {"content": "a"}}]})).content);
}

#[test]
fn the_usage_chunk_is_told_apart_from_usage_beside_content() {
    let usage =
        json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"x": 1}});
    let counted = Some(Usage { input_tokens: Some(7), output_tokens: Some(3), ..Usage::default() });
    let facts = chunk(&json!({"choices": [], "usage": usage}));
    assert_eq!((facts.usage, facts.usage_only), (counted, true));
    let facts = chunk(&json!({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage}));
    assert_eq!((facts.usage, facts.usage_only, facts.finished), (counted, false, true));
    for nothing in [json!(null), json!({}), json!([]), json!({"prompt_tokens": "7"})] {
        let facts = chunk(&json!({"choices": [], "usage": nothing}));
        assert_eq!((facts.usage, facts.usage_only), (None, false), "{nothing}");
    }
}

#[test]
fn an_error_in_a_chunk_is_seen_in_every_form() {
    let forms = [
        (json!({"error": {"message": "m", "type": "server_error", "code": null}}), Some(500)),
        (json!({"error": {"message": "m", "code": 429}, "choices": []}), Some(429)),
        (json!({"error": {"message": "m", "code": "503"}}), Some(503)),
        (json!({"error": {"message": "m", "code": 8, "status": 502}}), None),
        (json!({"error": "m"}), None),
        (
            json!({"choices": [{"delta": {}, "finish_reason": "error", "error": {"message": "m", "code": 502}}]}),
            Some(502),
        ),
        (json!({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}), Some(400)),
    ];
    for (form, status) in forms {
        let error = chunk(&form).error.unwrap();
        assert_eq!((error.status, error.message.as_str()), (status, "m"), "{form}");
    }
    let ended = chunk(&json!({"choices": [{"delta": {"content": ""}, "finish_reason": "error"}]}));
    assert!(ended.error.is_some() && ended.finished && !ended.content);
    for fine in [json!(null), json!(false), json!(""), json!({}), json!([]), json!(0)] {
        assert_eq!(chunk(&json!({"error": fine, "choices": [], "message": "m", "type": "t"})).error, None, "{fine}");
    }
}

#[test]
fn odd_chunks_have_no_facts_and_do_no_harm() {
    for odd in [&b""[..], b"[DONE]", b"{\"choices\":", b"\xff", b"null", b"[]", b"{} {}"] {
        assert_eq!(peek_chunk(odd), ChunkFacts::default());
    }
    for odd in [json!({"choices": "x"}), json!({"choices": {"0": 1}}), json!({"choices": [1, null, []]}), json!({})] {
        assert!(chunk(&odd).json, "{odd}");
    }
    let deep = format!(r#"{{"x":{}{},"choices":[{{"delta":{{"content":"a"}}}}]}}"#, "[".repeat(500), "]".repeat(500));
    assert!(peek_chunk(deep.as_bytes()).content);
}

#[test]
fn a_whole_answer_says_what_it_holds() {
    let body = br#"{"model":"m-1","choices":[{"message":{"role":"assistant","content":"hi"},"finish_reason":"length"}],
        "usage":{"prompt_tokens":1,"completion_tokens":2},"error":null}"#;
    let facts = peek_reply(body).unwrap();
    assert!(facts.content && facts.finished && facts.error.is_none());
    assert_eq!((facts.any_cut, facts.all_stopped, facts.model.as_deref()), (true, false, Some("m-1")));
    assert_eq!(facts.usage, Some(Usage { input_tokens: Some(1), output_tokens: Some(2), ..Usage::default() }));

    let empty = peek_reply(br#"{"choices":[{"message":{"content":null},"finish_reason":"stop"}]}"#).unwrap();
    assert!(!empty.content && empty.finished);
    assert!(peek_reply(br#"{"object":"list","data":[{"embedding":[0.1]}]}"#).unwrap().content);
    assert!(!peek_reply(br#"{"object":"list","data":[]}"#).unwrap().content);
    for none in [&b""[..], b"<html>", b"[]", b"\"x\""] {
        assert!(peek_reply(none).is_none());
    }
}

#[test]
fn an_error_status_body_is_read_in_the_forms_providers_send() {
    let forms = [
        (r#"{"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota"}}"#, Some(429)),
        (r#"{"error":{"message":"m","type":"invalid_request_error","code":"context_length_exceeded"}}"#, Some(400)),
        (r#"{"error":{"message":"m","code":"invalid_api_key"}}"#, Some(401)),
        (r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#, Some(529)),
        (r#"[{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}]"#, Some(429)),
        (r#"{"object":"error","message":"m","type":"NotFoundError","param":null,"code":404}"#, Some(404)),
        (r#"{"detail":"m"}"#, None),
        (r#"{"message":"m"}"#, None),
        (r#"{"error":"m"}"#, None),
    ];
    for (body, status) in forms {
        let error = parse_error(body.as_bytes()).unwrap();
        assert_eq!((error.status, error.message.as_str()), (status, "m"), "{body}");
    }
    for none in ["", "<html>", "{}", "[]", r#"{"error":null}"#, r#"{"detail":[{"loc":["body"]}]}"#] {
        assert_eq!(parse_error(none.as_bytes()), None, "{none}");
    }
}

#[test]
fn the_part_of_the_request_that_is_wrong_is_told_if_it_is_named_plainly() {
    let param = |body: Value| parse_error(body.to_string().as_bytes()).unwrap().param;
    let named = |name: &str| json!({"error": {"message": "m", "param": name}});
    for plain in ["messages", "messages[0].content", "tools.1.function"] {
        assert_eq!(param(named(plain)).as_deref(), Some(plain));
    }
    for odd in ["", "None", "a b", "a\r\nb", &"x".repeat(65)] {
        assert_eq!(param(named(odd)), None, "{odd}");
    }
    assert_eq!(param(json!({"error": {"message": "m", "param": 7}})), None);
}

#[test]
fn a_web_frameworks_list_of_complaints_is_told_by_its_first() {
    let body = json!({"detail": [
        {"type": "missing", "loc": ["body", "messages", 0, "content"], "msg": "Field required", "input": "CANARY"},
        {"type": "missing", "loc": ["body", "model"], "msg": "Another"},
    ]});
    let error = parse_error(body.to_string().as_bytes()).unwrap();
    assert_eq!((error.message.as_str(), error.param.as_deref()), ("Field required", Some("messages.0.content")));
    let endless = json!({"detail": [{"loc": vec!["step"; 1_000], "msg": "m"}]});
    assert_eq!(parse_error(endless.to_string().as_bytes()).unwrap().param, None);
}

#[test]
fn a_count_with_a_point_and_nothing_behind_it_is_a_count() {
    let usage = |text: &str| peek_chunk(format!(r#"{{"choices":[],"usage":{text}}}"#).as_bytes()).usage;
    let counted = usage(r#"{"prompt_tokens":9.0,"completion_tokens":2e0}"#).unwrap();
    assert_eq!((counted.input_tokens, counted.output_tokens), (Some(9), Some(2)));
    for none in ["2.5", "-1.0", "1e300"] {
        assert_eq!(
            usage(&format!(r#"{{"prompt_tokens":{none}}}"#)).and_then(|usage| usage.input_tokens),
            None,
            "{none}"
        );
    }
}

#[test]
fn quota_is_told_apart_from_rate() {
    let quota = |body: &str| parse_error(body.as_bytes()).unwrap().is_quota();
    assert!(quota(r#"{"error":{"message":"m","code":"insufficient_quota"}}"#));
    assert!(quota(r#"{"error":{"message":"m","code":402}}"#));
    assert!(!quota(r#"{"error":{"message":"m","code":"rate_limit_exceeded"}}"#));
}

#[test]
fn a_providers_words_are_bounded_and_stay_out_of_debug_output() {
    let long = "CANARY ü".repeat(1_000);
    let error =
        parse_error(json!({"error": {"message": long, "type": long, "code": long}}).to_string().as_bytes()).unwrap();
    assert_eq!(error.message.chars().count(), 512);
    assert!(error.code.as_ref().is_some_and(|code| code.chars().count() == 64));
    let plain = EmbeddedError { message: "CANARY".to_owned(), ..EmbeddedError::default() };
    assert!(!format!("{plain:?}").contains("CANARY"));
}

#[test]
fn an_error_body_has_exactly_the_four_fields() {
    let body = ErrorBody {
        message: "no \"such\" model",
        kind: "invalid_request_error",
        param: None,
        code: Some("model_not_found"),
    };
    let expected = r#"{"error":{"message":"no \"such\" model","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#;
    assert_eq!(error_body(&body), expected);
    let event = error_event(&ErrorBody { param: Some("model"), code: None, ..body }, "req-1");
    let expected = "data: {\"error\":{\"message\":\"no \\\"such\\\" model\",\"type\":\"invalid_request_error\",\"param\":\"model\",\"code\":null,\"request_id\":\"req-1\"}}\n\n";
    assert_eq!(event.raw(), expected);
    assert!(peek_chunk(&event.data().unwrap()).error.is_some());
}

#[test]
fn models_are_listed_as_clients_expect() {
    let one = r#"{"id":"summary","object":"model","created":7,"owned_by":"weighbridge"}"#;
    let entry = ModelEntry { id: "summary", created: 7, owned_by: "weighbridge", ..ModelEntry::default() };
    assert_eq!(model_object(&entry), one);
    assert_eq!(models_list(&[entry]), format!(r#"{{"object":"list","data":[{one}]}}"#));
    let known = ModelEntry { context: Some(128_000), max_output: Some(8_000), ..entry };
    assert_eq!(model_object(&known), one.replace('}', r#","context_length":128000,"max_output_tokens":8000}"#));
    assert_eq!(models_list(&[]), r#"{"object":"list","data":[]}"#);
}

#[test]
fn a_body_that_is_refused_is_told_why_and_not_something_else() {
    let said = |body: &str| peek_request(body.as_bytes(), 4).unwrap_err().message;
    assert!(said(r#"{"model":"m","a":[[[[[]]]]]}"#).contains("nested too deeply"));
    assert!(said(r#"{"model":"\ud800"}"#).contains("cannot be read"), "half a character");
    assert!(said(r#"{"model":"m""#).contains("not valid JSON"));
    assert!(said("[]").contains("must be a JSON object"));
}

#[test]
fn callers_get_the_code_their_sdk_knows_whatever_the_server_wrote() {
    let code = |body: Value| parse_error(body.to_string().as_bytes()).unwrap().code_for_callers().map(str::to_owned);
    let too_long = Some("context_length_exceeded".to_owned());
    assert_eq!(
        code(json!({"error": {"code": 400, "type": "exceed_context_size_error", "message": "too long"}})),
        too_long
    );
    let litellm = "litellm.ContextWindowExceededError: litellm.BadRequestError: too long";
    assert_eq!(code(json!({"error": {"code": "400", "message": litellm}})), too_long);
    assert_eq!(code(json!({"error": {"code": "context_length_exceeded", "message": "m"}})), too_long);
    assert_eq!(code(json!({"error": {"code": "400", "message": "a status is no code"}})), None);
    assert_eq!(code(json!({"error": {"code": "bad_tool", "message": "m"}})), Some("bad_tool".to_owned()));
}

#[test]
fn an_answer_of_several_choices_is_complete_when_all_of_them_are() {
    let facts = |reasons: &[&str]| {
        let choices: Vec<String> =
            reasons.iter().map(|r| format!(r#"{{"message":{{"content":"a"}},"finish_reason":{r}}}"#)).collect();
        let body = format!(r#"{{"choices":[{}]}}"#, choices.join(","));
        let facts = peek_reply(body.as_bytes()).unwrap();
        (facts.all_stopped, facts.any_cut, facts.finished)
    };
    assert_eq!(facts(&[r#""stop""#, r#""tool_calls""#]), (true, false, true));
    assert_eq!(facts(&[r#""stop""#, r#""length""#]), (false, true, true));
    assert_eq!(facts(&[r#""content_filter""#, r#""stop""#]), (false, true, true));
    assert_eq!(facts(&[r#""stop""#, "null"]), (false, false, true));
    assert_eq!(facts(&[]), (false, false, false));
}

#[test]
fn moonshots_counts_inside_a_choice_and_cached_tokens_under_either_name_are_found() {
    let usage = |text: &str| peek_chunk(text.as_bytes()).usage;
    let counted = Usage { input_tokens: Some(9), cached_input_tokens: Some(4), output_tokens: Some(2) };
    let counts = r#""usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}"#;
    assert_eq!(usage(&format!(r#"{{"choices":[{{"delta":{{}},"finish_reason":"stop",{counts}}}]}}"#)), Some(counted));
    assert_eq!(usage(&format!(r#"{{"choices":[],{counts}}}"#)), Some(counted));
    let deepseek = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_cache_hit_tokens":4}}"#;
    assert_eq!(usage(deepseek), Some(counted));
}
