//! About how many tokens a request of this form comes to, for routes whose providers do not count.
//!
//! No tokenizer is consulted, since each model has its own and the vendor's is not public. Counted are the characters of
//! what the model reads: the instructions, the turns, the tools with their schemas. It is meant for clients that watch how
//! full a context is, so it is rather too high than too low, and deliberately never taken for the real count, neither by
//! prices nor by limits.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::wire::json_read;
use crate::wire::openai::lenient::Loose;

/// The vendor's rule of thumb is 3.5 English characters per token
/// (<https://docs.anthropic.com/en/docs/about-claude/glossary>, read Nov 2026), so a character weighs two sevenths of one.
const PER_TOKEN: u64 = 7;
const ASCII: u64 = 2;
/// Other scripts have from one to two characters per token.
const OTHER: u64 = 7;
/// What a turn, a block or a tool costs beside its text.
const OBJECT: u64 = 3 * PER_TOKEN;
/// The most that an image costs the vendor's older models
/// (<https://docs.anthropic.com/en/docs/build-with-claude/vision>, read Nov 2026).
const IMAGE: u64 = 1_600 * PER_TOKEN;
/// A document in base64 has about this many characters for each one it shows: pictures, fonts and layout.
const DOCUMENT_SHARE: u64 = 4;

/// About how many tokens the request's input has, at least one; `None` if the body is no JSON object.
///
/// The body's depth must have been checked.
pub fn estimated_tokens(body: &[u8]) -> Option<u64> {
    let Request(weight) = json_read::from_slice(body).ok()?;
    Some(weight.div_ceil(PER_TOKEN).max(1))
}

struct Request(u64);

impl<'de> Deserialize<'de> for Request {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Request;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Request, A::Error> {
                let mut sum = 0_u64;
                while let Some(key) = map.next_key::<Cow<'_, str>>()? {
                    let weight = match key.as_ref() {
                        "system" | "messages" | "tools" => map.next_value::<Weight>()?.0,
                        _ => map.next_value::<IgnoredAny>().map(|_| 0)?,
                    };
                    sum = sum.saturating_add(weight);
                }
                Ok(Request(sum))
            }
        }
        json.deserialize_map(Fields)
    }
}

/// What a value weighs, whatever it is.
struct Weight(u64);

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(Anything)
    }
}

struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = Weight;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Weight, E> {
        Ok(Weight(weight(text)))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Weight, E> {
        Ok(Weight(PER_TOKEN))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Weight, E> {
        Ok(Weight(PER_TOKEN))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Weight, E> {
        Ok(Weight(PER_TOKEN))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Weight, E> {
        Ok(Weight(PER_TOKEN))
    }

    fn visit_unit<E>(self) -> Result<Weight, E> {
        Ok(Weight(0))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Weight, A::Error> {
        let mut sum = 0_u64;
        while let Some(Weight(weight)) = list.next_element()? {
            sum = sum.saturating_add(weight);
        }
        Ok(Weight(sum))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Weight, A::Error> {
        let mut sum = OBJECT;
        let (mut kind, mut media, mut encoded) = (Loose::default(), Loose::default(), 0);
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            match key.as_ref() {
                "type" => kind = map.next_value()?,
                "media_type" => media = map.next_value()?,
                // No model reads these.
                "cache_control" | "signature" | "role" | "id" | "tool_use_id" => {
                    map.next_value::<IgnoredAny>()?;
                }
                "data" => encoded = map.next_value::<Weight>()?.0,
                name => sum = sum.saturating_add(weight(name)).saturating_add(map.next_value::<Weight>()?.0),
            }
        }
        let document = media.text().is_some_and(|media| !media.starts_with("image/"));
        Ok(Weight(match kind.text().as_deref() {
            Some("base64") if document => (encoded / DOCUMENT_SHARE).max(IMAGE),
            Some("base64" | "url") => IMAGE,
            _ => sum.saturating_add(encoded),
        }))
    }
}

fn weight(text: &str) -> u64 {
    let (bytes, characters) = (text.len() as u64, text.chars().count() as u64);
    // Characters beyond ASCII have two to four bytes, most of them three.
    let others = (bytes - characters).div_ceil(2);
    characters.saturating_sub(others) * ASCII + others * OTHER
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(body: &Value) -> u64 {
        estimated_tokens(body.to_string().as_bytes()).unwrap()
    }

    fn said(content: &Value) -> u64 {
        of(&json!({"model": "m", "messages": [{"role": "user", "content": content}]}))
    }

    #[test]
    fn a_text_has_about_a_token_for_three_and_a_half_letters_and_other_scripts_one_for_each() {
        let english = "the quick brown fox jumps over the lazy dog. ".repeat(100);
        assert!((1_250..1_350).contains(&said(&json!(english))), "{}", said(&json!(english)));
        assert!((1_000..1_020).contains(&said(&json!("\u{6f22}".repeat(1_000)))));
        let escaped = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "\\u6f22".repeat(1_000));
        assert_eq!(estimated_tokens(escaped.as_bytes()).unwrap(), said(&json!("\u{6f22}".repeat(1_000))));
    }

    #[test]
    fn instructions_tools_and_results_count_and_what_no_model_reads_does_not() {
        let plain = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (field, value) in [
            ("system", json!([{"type": "text", "text": "be brief and kind"}])),
            (
                "tools",
                json!([{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]),
            ),
        ] {
            let mut more = plain.clone();
            more[field] = value;
            assert!(of(&more) > of(&plain) + 5, "{field}");
        }
        let mut same = plain.clone();
        same["metadata"] = json!({"user_id": "u".repeat(1_000)});
        same["stop_sequences"] = json!(["x".repeat(100)]);
        assert_eq!(of(&same), of(&plain));
        let result = |text: &str| said(&json!([{"type": "tool_result", "tool_use_id": "t", "content": text}]));
        assert!(result(&"a".repeat(700)) >= 200);
    }

    #[test]
    fn an_image_counts_as_one_however_many_bytes_it_has() {
        let image = |data: usize| {
            let source = json!({"type": "base64", "media_type": "image/png", "data": "A".repeat(data)});
            said(&json!([{"type": "image", "source": source}]))
        };
        assert_eq!(image(10), image(1_000_000));
        assert!((1_600..1_650).contains(&image(10)));
        let page = json!({"type": "base64", "media_type": "application/pdf", "data": "A".repeat(140_000)});
        assert!((10_000..11_000).contains(&said(&json!([{"type": "document", "source": page}]))));
        let text = json!({"type": "text", "media_type": "text/plain", "data": "a".repeat(700)});
        assert!((200..240).contains(&said(&json!([{"type": "document", "source": text}]))));
    }

    #[test]
    fn what_is_odd_is_estimated_all_the_same_and_what_is_no_request_is_not() {
        assert_eq!(estimated_tokens(b"{}"), Some(1));
        for odd in [json!({"messages": 7}), json!({"messages": [null, 1.5, -2, true, {"type": 7, "data": {}}]})] {
            assert!(of(&odd) >= 1, "{odd}");
        }
        for none in ["", "[]", "7", "{"] {
            assert_eq!(estimated_tokens(none.as_bytes()), None, "{none}");
        }
    }
}
