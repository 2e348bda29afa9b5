//! Held to `serde_json`: the same texts are JSON, and they mean the same.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn agrees(text: &str) {
    let expected = serde_json::from_str::<Value>(text).ok();
    assert_eq!(from_str::<Value>(text, DEEPEST).ok(), expected, "{text:?}");
    let ignored = serde_json::from_str::<IgnoredAny>(text).is_ok();
    assert_eq!(from_str::<IgnoredAny>(text, DEEPEST).is_ok(), ignored, "{text:?} passed over");
}

#[test]
fn texts_at_the_edges_of_the_grammar_are_read_as_serde_json_reads_them() {
    let long = format!("\"{}\\u00e9{}\"", "a".repeat(47), "é".repeat(40));
    for text in [
        "",
        " ",
        "null",
        "nul",
        "nulll",
        "true",
        "false",
        "[]",
        "{}",
        "[,]",
        "[1,]",
        "{,}",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\" : 1 , \"b\":[ ] }",
        "{1:2}",
        "{null:1}",
        "[1]]",
        "[1",
        "{\"a\":1",
        "\"",
        "\"a",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\"",
        "\"\\ude00\"",
        "\"\u{1}\"",
        "\"\n\"",
        "\"\u{7f}\"",
        "0",
        "-0",
        "00",
        "01",
        "-",
        "-1",
        "1.",
        "1.5",
        ".5",
        "1e",
        "1e5",
        "1E+5",
        "1e-5",
        "1e400",
        "-1e400",
        "18446744073709551615",
        "18446744073709551616",
        "9999999999999999999",
        "123456789012345678901234567890",
        "1 ",
        " 1",
        "\u{feff}1",
        "\u{a0}1",
        "[1,\"a\",{\"b\":[null,true]}]",
        "{\"a\":1,\"a\":2}",
        "{\"\\u0061\":1}",
        "'a'",
        "NaN",
        "Infinity",
        "//",
        "[1]//",
        "{}x",
        &long,
    ] {
        agrees(text);
    }
}

#[test]
fn nesting_ends_at_the_limit_whether_read_or_passed_over() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    assert!(from_str::<IgnoredAny>(&nested(DEEPEST), DEEPEST).is_ok());
    assert!(from_str::<IgnoredAny>(&nested(DEEPEST + 1), usize::MAX).is_err());
    for levels in 1..6 {
        let inside = format!("{{\"a\":{}}}", nested(levels));
        assert_eq!(from_str::<Value>(&inside, 4).is_ok(), levels < 4, "{levels} read");
        assert_eq!(from_str::<IgnoredAny>(&inside, 4).is_ok(), levels < 4, "{levels} passed over");
    }
}

#[test]
fn bytes_that_are_not_text_are_refused_where_they_are_read() {
    assert!(from_slice::<Value>(b"{\"a\":\"\xff\"}").is_err());
    assert!(from_slice::<Value>(b"{\"a\":1}").is_ok());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(".{0,8}", inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_serde_json_writes_is_read_back(value in any_json(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        agrees(&text);
    }

    #[test]
    fn a_text_with_one_byte_changed_is_judged_alike(value in any_json(), at in any::<prop::sample::Index>(), byte in 0u8..128) {
        let mut text = serde_json::to_string(&value).unwrap().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(text) = std::str::from_utf8(&text) {
            agrees(text);
        }
    }

    #[test]
    fn any_text_at_all_is_judged_alike(text in "[\\[\\]{},:\"\\\\0-9eE.+\\-a-u \n]{0,40}") {
        agrees(&text);
    }
}
