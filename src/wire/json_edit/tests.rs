use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn body(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn request(from: &str, usage: UsageRequest) -> Result<String, EditError> {
    rewrite_request(&body(from), "new", usage).map(|bytes| text(&bytes).to_owned())
}

#[test]
fn the_model_is_replaced_and_every_other_byte_stays() {
    let from = "{ \"n\" : 1.0e+2,\n\t\"mod\\u0065l\" : \"old\" , \"x\":[ 12345678901234567890123 ] } ";
    let to = "{ \"n\" : 1.0e+2,\n\t\"mod\\u0065l\" : \"new\" , \"x\":[ 12345678901234567890123 ] } ";
    assert_eq!(request(from, UsageRequest::AsIs).unwrap(), to);
    assert_eq!(
        text(&set_string(&body(r#"{"a":{"k":1},"k":[2]}"#), "k", "a\"b").unwrap()),
        r#"{"a":{"k":1},"k":"a\"b"}"#
    );
    assert_eq!(set_string(&body(r#"{"a":1}"#), "k", "v"), None);
    assert_eq!(set_string(&body("[]"), "k", "v"), None);
}

#[test]
fn a_body_that_says_it_already_is_not_copied() {
    let from = body(r#"{"model":"new","stream_options":{"include_usage":true}}"#);
    let to = rewrite_request(&from, "new", UsageRequest::Ask).unwrap();
    assert_eq!((to.as_ptr(), to.len()), (from.as_ptr(), from.len()));
}

#[test]
fn asking_for_usage_adds_or_completes_the_stream_options() {
    let table = [
        (r#"{"model":"a" }"#, r#"{"model":"new","stream_options":{"include_usage":true} }"#),
        (r#"{"model":"a","stream_options":null}"#, r#"{"model":"new","stream_options":{"include_usage":true}}"#),
        (r#"{"stream_options": { },"model":"a"}"#, r#"{"stream_options": {"include_usage":true },"model":"new"}"#),
        (
            r#"{"stream_options":{"x":1},"model":"a"}"#,
            r#"{"stream_options":{"include_usage":true,"x":1},"model":"new"}"#,
        ),
        (
            r#"{"stream_options":{"x":1,"include_usage":false},"model":"a"}"#,
            r#"{"stream_options":{"x":1,"include_usage":true},"model":"new"}"#,
        ),
    ];
    for (from, to) in table {
        assert_eq!(request(from, UsageRequest::Ask).as_deref(), Ok(to));
    }
}

#[test]
fn removing_stream_options_takes_one_comma_along() {
    let table = [
        (r#"{"stream_options":{}, "model":"a"}"#, r#"{"model":"new"}"#),
        (r#"{"model":"a" , "stream_options":{}}"#, r#"{"model":"new"}"#),
        (r#"{"model":"a", "stream_options":{}, "n":1}"#, r#"{"model":"new", "n":1}"#),
        (r#"{"model":"a"}"#, r#"{"model":"new"}"#),
    ];
    for (from, to) in table {
        assert_eq!(request(from, UsageRequest::Remove).as_deref(), Ok(to));
    }
}

#[test]
fn what_readers_could_take_two_ways_is_refused() {
    let table = [
        ("[]", EditError::NotAnObject),
        ("{\"model\":\"a\"} x", EditError::NotAnObject),
        ("{}", EditError::NoModel),
        (r#"{"model":"a","mod\u0065l":"b"}"#, EditError::Twice),
        (r#"{"model":"a","stream_options":{},"stream_options":{}}"#, EditError::Twice),
        (r#"{"model":"a","stream_options":{"include_usage":true,"include_usage":false}}"#, EditError::Twice),
        (r#"{"model":"a","stream_options":[]}"#, EditError::StreamOptions),
    ];
    for (from, error) in table {
        assert_eq!(request(from, UsageRequest::Ask), Err(error), "{from}");
    }
}

#[test]
fn a_chunk_changes_only_where_it_must() {
    let chunk =
        |from: &str, model, usage| rewrite_chunk(from.as_bytes(), model, usage).map(|bytes| text(&bytes).to_owned());
    let from = r#"{"id":"1","model":"up","choices":[],"usage":null}"#;
    assert_eq!(chunk(from, None, NullUsage::Keep), None);
    assert_eq!(chunk(from, Some("up"), NullUsage::Keep), None);
    let both = r#"{"id":"1","model":"alias","choices":[]}"#;
    assert_eq!(chunk(from, Some("alias"), NullUsage::Drop).as_deref(), Some(both));
    assert_eq!(chunk(r#"{"usage":null,"id":"1"}"#, None, NullUsage::Drop).as_deref(), Some(r#"{"id":"1"}"#));
    assert_eq!(chunk(r#"{"usage":null}"#, None, NullUsage::Drop).as_deref(), Some("{}"));
    assert_eq!(chunk(r#"{"usage":{"x":null}}"#, None, NullUsage::Drop), None);
    assert_eq!(chunk(r#"{"x":{"model":"up"}}"#, Some("alias"), NullUsage::Drop), None);
    assert_eq!(chunk("[DONE]", Some("alias"), NullUsage::Drop), None);
}

/// A top-level member: the decoded key and the value as written.
type Pairs = Vec<(String, String)>;

fn pairs(bytes: &[u8]) -> Pairs {
    let Members(members) = serde_json::from_slice(bytes).unwrap();
    members.iter().map(|(key, value)| (serde_json::from_str(key.get()).unwrap(), value.get().to_owned())).collect()
}

/// Whether it is an object by JSON's grammar, which knows no largest number: `1E999` is passed on as it is spelled.
fn is_object(bytes: &[u8]) -> bool {
    serde_json::from_slice::<std::collections::HashMap<String, Box<serde_json::value::RawValue>>>(bytes).is_ok()
}

#[test]
fn a_number_that_no_float_holds_keeps_its_spelling() {
    let from = Bytes::from_static(br#"{"model":"a","seed":[987E43210987]}"#);
    assert_eq!(rewrite_request(&from, "b", UsageRequest::Remove).unwrap(), r#"{"model":"b","seed":[987E43210987]}"#);
}

fn spaces() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", " ", "\n\t", "\r\n"])
}

fn objects(values: impl Strategy<Value = String>, keys: Vec<&'static str>) -> impl Strategy<Value = String> {
    let member = (prop::sample::select(keys), spaces(), spaces(), values, spaces(), spaces())
        .prop_map(|(key, a, b, value, c, d)| format!("{d}\"{key}\"{a}:{b}{value}{c}"));
    (prop::collection::vec(member, 0..6), spaces()).prop_map(|(members, end)| {
        if members.is_empty() { format!("{{{end}}}") } else { format!("{{{}}}", members.join(",")) }
    })
}

fn values() -> impl Strategy<Value = String> {
    let plain = vec![
        "null",
        "true",
        "0",
        "-0",
        "1.0",
        "1E+2",
        "0.10",
        "98765432109876543210987",
        "\"\"",
        "\"a\\\"},{\"",
        "\"\\u00e9\\ud83d\\ude00\"",
        "\"ü\"",
        "\"model\"",
        "[]",
        "\"\\\\\"",
    ];
    let leaf = prop::sample::select(plain).prop_map(str::to_owned);
    leaf.prop_recursive(3, 24, 4, |inner| {
        let list = prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(" , ")));
        prop_oneof![list, objects(inner, vec!["model", "include_usage", "x", "u\\n"])]
    })
}

fn documents() -> impl Strategy<Value = String> {
    let keys =
        vec!["model", "mod\\u0065l", "stream_options", "stream\\u005foptions", "usage", "x", "Model", "é", "a\\\"b"];
    (spaces(), objects(values(), keys), spaces()).prop_map(|(before, object, after)| format!("{before}{object}{after}"))
}

proptest! {
    #[test]
    fn only_the_named_members_change(document in documents(), value in ".{0,12}") {
        let from = body(&document);
        let mut expected = pairs(&from);
        let mut found = false;
        for (_, old) in expected.iter_mut().filter(|(key, _)| key == "model") {
            *old = serde_json::to_string(&value).unwrap();
            found = true;
        }
        match set_string(&from, "model", &value) {
            Some(to) => {
                prop_assert!(found);
                prop_assert_eq!(pairs(&to), expected);
                let seen: Value = serde_json::from_slice(&to).unwrap();
                prop_assert_eq!(seen["model"].as_str(), Some(value.as_str()));
                // Nothing but the values differs: the old text with the old values back in is the old document.
                let (old, new) = (pairs(&from), pairs(&to));
                let grown: usize = new.iter().map(|(_, value)| value.len()).sum();
                let was: usize = old.iter().map(|(_, value)| value.len()).sum();
                prop_assert_eq!(to.len() + was, from.len() + grown);
            }
            None => prop_assert!(!found),
        }
    }

    #[test]
    fn a_rewritten_request_says_what_it_should_and_nothing_else_changed(
        document in documents(),
        usage in prop::sample::select(vec![UsageRequest::AsIs, UsageRequest::Ask, UsageRequest::Remove]),
    ) {
        let from = body(&document);
        let others = |bytes: &Bytes| -> Pairs {
            pairs(bytes).into_iter().filter(|(key, _)| key != "model" && key != "stream_options").collect()
        };
        let Ok(to) = rewrite_request(&from, "new", usage) else {
            let count = |key: &str| pairs(&from).iter().filter(|(other, _)| other == key).count();
            let odd = pairs(&from).iter().any(|(key, value)| key == "stream_options" && value != "null");
            prop_assert!(count("model") != 1 || count("stream_options") > 1 || odd);
            return Ok(());
        };
        prop_assert_eq!(others(&to), others(&from));
        let (was, is): (Value, Value) = (serde_json::from_slice(&from).unwrap(), serde_json::from_slice(&to).unwrap());
        prop_assert_eq!(is["model"].as_str(), Some("new"));
        match usage {
            UsageRequest::AsIs => prop_assert_eq!(was.get("stream_options"), is.get("stream_options")),
            UsageRequest::Remove => prop_assert!(is.get("stream_options").is_none()),
            UsageRequest::Ask => {
                let mut options = was.get("stream_options").and_then(Value::as_object).cloned().unwrap_or_default();
                options.insert("include_usage".to_owned(), Value::Bool(true));
                prop_assert_eq!(is["stream_options"].as_object(), Some(&options));
            }
        }
        prop_assert_eq!(rewrite_request(&to, "new", usage).unwrap(), to);
    }

    #[test]
    fn a_rewritten_chunk_keeps_all_but_model_and_null_usage(document in documents()) {
        let to = rewrite_chunk(document.as_bytes(), Some("alias"), NullUsage::Drop);
        let to = to.unwrap_or_else(|| body(&document));
        let others = |bytes: &[u8]| -> Pairs {
            pairs(bytes).into_iter().filter(|(key, value)| key != "model" && (key != "usage" || value != "null")).collect()
        };
        prop_assert_eq!(others(&to), others(document.as_bytes()));
        prop_assert!(pairs(&to).iter().all(|(key, value)| key != "model" || value == "\"alias\""));
    }

    #[test]
    fn broken_bodies_are_refused_without_a_panic(document in documents(), cut in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut broken = document.into_bytes();
        let at = cut.index(broken.len());
        broken[at] = byte;
        // Skipped strings are not decoded, so half a surrogate pair passes through to the provider.
        let half_pair = String::from_utf8_lossy(&broken).to_ascii_lowercase().contains("\\ud");
        let valid = is_object(&broken);
        let broken = Bytes::from(broken);
        for usage in [UsageRequest::Ask, UsageRequest::Remove] {
            let edited = rewrite_request(&broken, "new", usage);
            prop_assert!(valid || half_pair || edited == Err(EditError::NotAnObject), "lenient where serde is not");
            if let (true, Ok(edited)) = (valid, edited) {
                prop_assert!(is_object(&edited));
            }
        }
    }
}
