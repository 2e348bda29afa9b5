//! OpenTelemetry's names for what is asked of models: the one place that knows them.
//!
//! `chat`, `text_completion` and `embeddings` are the convention's own
//! (<https://github.com/open-telemetry/semantic-conventions-genai>, as known on 2026-11-22). For what it has no word for
//! it lets everybody choose one; ours say what is made, in the same style. The series of an operation begin with its first
//! call, but for the one that is asked most: no upstream has more than [`NAMES`] of them, and most have one.

use std::sync::{Arc, OnceLock};

use super::catalog;
use super::cells::Histogram;
use super::families::Families;
use crate::domain::operation::Operation;

/// What is done.
pub const OPERATION_NAME: &str = "gen_ai.operation.name";
/// Who does it: the id of the provider's file, which for well-known ones is the convention's word.
pub const PROVIDER_NAME: &str = "gen_ai.provider.name";
/// The model as the provider is asked for it.
pub const REQUEST_MODEL: &str = "gen_ai.request.model";
/// The model as the answer names it: where the one that was asked for is an alias, what stands behind it.
pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
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

/// Every value of `gen_ai.operation.name`.
pub const NAMES: [&str; 9] = [
    "chat",
    "text_completion",
    "embeddings",
    "count_tokens",
    "moderation",
    "image_generation",
    "transcription",
    "translation",
    "speech",
];

/// The value of `gen_ai.operation.name`; `None` if no model is asked.
pub fn operation_name(operation: Operation) -> Option<&'static str> {
    NAMES.get(position(operation)?).copied()
}

fn position(operation: Operation) -> Option<usize> {
    Some(match operation {
        Operation::ChatCompletions | Operation::Responses | Operation::Messages => 0,
        Operation::Completions => 1,
        Operation::Embeddings => 2,
        Operation::CountTokens => 3,
        Operation::Moderations => 4,
        Operation::Images => 5,
        Operation::Transcriptions => 6,
        Operation::Translations => 7,
        Operation::Speech => 8,
        Operation::ModelsList
        | Operation::ModelsGet
        | Operation::RiskAssess
        | Operation::RiskGet
        | Operation::RiskOutcome => return None,
    })
}

/// What one upstream counts under OpenTelemetry's names, by operation.
pub(super) struct GenAi {
    families: Arc<Families>,
    provider: Box<str>,
    model: Box<str>,
    by_operation: [OnceLock<Series>; NAMES.len()],
}

/// The series of one operation.
pub(super) struct Series {
    pub(super) duration: Histogram,
    pub(super) first_token: Histogram,
    pub(super) input: Histogram,
    pub(super) output: Histogram,
}

impl GenAi {
    pub(super) fn new(families: &Arc<Families>, provider: &str, model: &str) -> Self {
        Self {
            families: Arc::clone(families),
            provider: provider.into(),
            model: model.into(),
            by_operation: Default::default(),
        }
    }

    /// The series of `operation`, made at its first call.
    pub(super) fn of(&self, operation: Operation) -> Option<&Series> {
        let at = position(operation)?;
        Some(self.by_operation.get(at)?.get_or_init(|| self.series(NAMES.get(at).copied().unwrap_or_default())))
    }

    fn series(&self, name: &str) -> Series {
        let (f, labels) = (&*self.families, [name, &self.provider, &self.model]);
        let tokens = |kind| f.histogram(&catalog::GENAI_TOKEN_USAGE, &[name, &self.provider, &self.model, kind]);
        Series {
            duration: f.histogram(&catalog::GENAI_REQUEST_DURATION, &labels),
            first_token: f.histogram(&catalog::GENAI_TIME_TO_FIRST_TOKEN, &labels),
            input: tokens("input"),
            output: tokens("output"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_question_to_a_model_has_a_name_and_nothing_else_has() {
        let mut used = HashSet::new();
        for operation in Operation::ALL {
            let name = operation_name(operation);
            assert_eq!(name.is_some(), operation.asks_a_model(), "{operation:?}");
            used.extend(name);
        }
        assert_eq!(used, HashSet::from(NAMES), "no name is there in vain");
        assert_eq!(operation_name(Operation::Responses), Some("chat"));
        assert_eq!(operation_name(Operation::Completions), Some("text_completion"));
        assert_eq!(operation_name(Operation::Embeddings), Some("embeddings"));
    }
}
