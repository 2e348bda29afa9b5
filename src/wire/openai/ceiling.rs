//! How much a request lets a model write, in whichever form it is: read only for callers whose tokens or money are counted.

use std::borrow::Cow;

use serde::de::{IgnoredAny, MapAccess};

use super::lenient::{Loose, Members, Shape};
use crate::wire::json_read;

/// What the request says about the length of its answer. It has been read strictly before, so this is lenient.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ceiling {
    /// Most tokens of one answer, if the request says.
    pub tokens: Option<u64>,
    /// How many answers it wants, at least 1.
    pub answers: u64,
}

/// Reads it.
pub fn peek_ceiling(body: &[u8]) -> Ceiling {
    let mut fields = Fields::default();
    // A body that cannot be read never came this far; what was understood of it stands.
    let _ = json_read::fill_from_slice(body, Members(&mut fields));
    Ceiling { tokens: fields.tokens, answers: fields.answers.unwrap_or(1).max(1) }
}

#[derive(Default)]
struct Fields {
    tokens: Option<u64>,
    answers: Option<u64>,
}

impl<'de> Shape<'de> for Fields {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        let place = match key.as_ref() {
            // Chat has both; which one a provider heeds is its own matter, so the larger counts.
            "max_tokens" | "max_completion_tokens" | "max_output_tokens" => &mut self.tokens,
            "n" | "best_of" => &mut self.answers,
            _ => return map.next_value::<IgnoredAny>().map(drop),
        };
        *place = (*place).max(map.next_value::<Loose<'_>>()?.unsigned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_found_in_every_form_and_nowhere_else() {
        let peek = |body: &str| peek_ceiling(body.as_bytes());
        let none = Ceiling { tokens: None, answers: 1 };
        assert_eq!(peek(r#"{"model":"m","messages":[{"max_tokens":5,"n":7}]}"#), none);
        for name in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
            assert_eq!(peek(&format!(r#"{{"{name}":50,"n":3}}"#)), Ceiling { tokens: Some(50), answers: 3 });
        }
        assert_eq!(peek(r#"{"max_tokens":9,"max_completion_tokens":50}"#).tokens, Some(50));
        for odd in [r#"{"max_tokens":null,"n":0}"#, r#"{"max_tokens":-1,"n":"2"}"#, r#"{"max_tokens":1.5}"#, "[]", "x"]
        {
            assert_eq!(peek(odd), none, "{odd}");
        }
    }
}
