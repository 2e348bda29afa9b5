//! Which model an answer says that it is from.
//!
//! Asked only where a trace is told of it, so it reads the answer once more for this alone. A provider may write anything
//! there: what does not look like a model's name is not one, and nothing else of the answer gets out of here.

use std::borrow::Cow;

use serde::Deserialize;

/// Longest name of a model.
const LONGEST: usize = 128;

/// Where each form has it: at the top, or of a stream's first event in what it begins.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow)]
    response: Option<Named<'a>>,
    #[serde(borrow)]
    message: Option<Named<'a>>,
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
}

/// The name that a whole answer or an event's data gives; `None` if it gives none.
#[cold]
pub fn answered_by(json: &[u8]) -> Option<String> {
    let said: Said<'_> = serde_json::from_slice(json).ok()?;
    let inside = || said.response.or(said.message).and_then(|named| named.model);
    let model = said.model.or_else(inside)?;
    let looks_like_one = (1..=LONGEST).contains(&model.len()) && model.bytes().all(|byte| byte.is_ascii_graphic());
    looks_like_one.then(|| model.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_says_it_in_its_place() {
        for said in [
            r#"{"id":"1","model":"m-2026","choices":[{"message":{"content":"hi"}}]}"#,
            r#"{"choices":[],"model":"m-2026"}"#,
            r#"{"type":"response.created","response":{"id":"r","model":"m-2026","output":[]}}"#,
            r#"{"type":"message_start","message":{"model":"m-2026","usage":{"input_tokens":1}}}"#,
        ] {
            assert_eq!(answered_by(said.as_bytes()).as_deref(), Some("m-2026"), "{said}");
        }
    }

    #[test]
    fn what_is_no_name_of_a_model_is_not_told() {
        let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(129));
        for said in [
            long.as_str(),
            r#"{"model":""}"#,
            r#"{"model":"two words"}"#,
            r#"{"model":"line\nbreak"}"#,
            r#"{"model":7}"#,
            r#"{"model":null}"#,
            r#"{"choices":[{"model":"inside"}]}"#,
            "[]",
            "model",
        ] {
            assert_eq!(answered_by(said.as_bytes()), None, "{said}");
        }
    }
}
