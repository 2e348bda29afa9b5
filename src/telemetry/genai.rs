//! OpenTelemetry's words for calls to models: the one place where they are spelt, because they still change.
//!
//! As of <https://github.com/open-telemetry/semantic-conventions-genai> (status Development, read 2026-11-22).

use crate::domain::operation::Operation;

/// What is done.
pub const OPERATION_NAME: &str = "gen_ai.operation.name";
/// Who does it: the id of the provider's file, which for well-known ones is the convention's word.
pub const PROVIDER_NAME: &str = "gen_ai.provider.name";
/// The model as the provider is asked for it.
pub const REQUEST_MODEL: &str = "gen_ai.request.model";
/// True if a stream was asked for.
pub const REQUEST_STREAM: &str = "gen_ai.request.stream";
/// Seconds until the first content of a stream.
pub const TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
/// Prompt tokens.
pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
/// Those of them that the provider had in its cache.
pub const CACHE_READ_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
/// Completion tokens.
pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";

/// The value of [`OPERATION_NAME`]; `None` for what asks no model. Where the convention has no word, ours.
pub fn operation_name(operation: Operation) -> Option<&'static str> {
    match operation {
        // Three forms of the same: the convention names what is done, not how it is written.
        Operation::ChatCompletions | Operation::Responses | Operation::Messages => Some("chat"),
        Operation::Completions => Some("text_completion"),
        Operation::Embeddings => Some("embeddings"),
        other => other.asks_a_model().then(|| other.label()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asks_a_model_has_a_name_and_what_does_not_has_none() {
        for operation in Operation::ALL {
            assert_eq!(operation_name(operation).is_some(), operation.asks_a_model(), "{operation:?}");
        }
        assert_eq!(operation_name(Operation::Responses), Some("chat"));
        assert_eq!(operation_name(Operation::Images), Some("images.generations"));
        assert_eq!(operation_name(Operation::RiskAssess), None);
    }
}
