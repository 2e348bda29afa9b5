//! Whether an answer without a word says that a content filter stopped it.
//!
//! Asked only of answers that were cut before their first word, so it may read the whole value. Words: `content_filter`
//! in OpenAI's two forms (<https://platform.openai.com/docs/api-reference/chat/object>), `refusal` in Anthropic's
//! (<https://docs.anthropic.com/en/api/handling-stop-reasons>; both as known in Nov 2026).

use serde_json::Value;

/// True if this whole answer or this event's data says so.
pub fn is_filtered(json: &[u8]) -> bool {
    const PLACES: [(&str, &str); 5] = [
        ("/choices/0/finish_reason", "content_filter"),
        ("/incomplete_details/reason", "content_filter"),
        ("/response/incomplete_details/reason", "content_filter"),
        ("/stop_reason", "refusal"),
        ("/delta/stop_reason", "refusal"),
    ];
    let Ok(value) = serde_json::from_slice::<Value>(json) else { return false };
    PLACES.iter().any(|(place, word)| value.pointer(place).and_then(Value::as_str) == Some(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_has_its_word_for_it() {
        for said in [
            r#"{"choices":[{"message":{"content":null},"finish_reason":"content_filter"}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"content_filter"}]}"#,
            r#"{"status":"incomplete","incomplete_details":{"reason":"content_filter"}}"#,
            r#"{"type":"response.incomplete","response":{"incomplete_details":{"reason":"content_filter"}}}"#,
            r#"{"type":"message","content":[],"stop_reason":"refusal"}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"refusal"}}"#,
        ] {
            assert!(is_filtered(said.as_bytes()), "{said}");
        }
        for other in [
            r#"{"choices":[{"message":{"content":null},"finish_reason":"length"}]}"#,
            r#"{"incomplete_details":{"reason":"max_output_tokens"}}"#,
            r#"{"stop_reason":"max_tokens"}"#,
            "content_filter",
            "[]",
        ] {
            assert!(!is_filtered(other.as_bytes()), "{other}");
        }
    }
}
