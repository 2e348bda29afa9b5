//! The OpenAI dialect: the few fields we read out of requests, answers and chunks, and the bodies we write ourselves.
//!
//! Bodies stay bytes: what is read is borrowed, one pass, and nothing is turned into a tree or serialised again.
//! Requests are read strictly, because a field we misread could slip past a policy; answers are read leniently, because
//! providers differ and a field of an odd type must not cost the client its answer. Editing is in [`super::json_edit`].

mod answer;
mod audio;
mod ceiling;
pub(super) mod failure;
pub(super) mod lenient;
pub(super) mod reply;
pub(super) mod request;
mod usage;

pub use answer::{ErrorBody, ModelEntry, error_body, error_event, model_object, models_list};
pub use audio::{AudioEventFacts, TranscriptFacts, is_last_audio_event, peek_audio_event, peek_transcript};
pub use ceiling::{Ceiling, peek_ceiling};
pub use failure::{EmbeddedError, parse_error};
pub use reply::{ChunkFacts, ReplyFacts, peek_chunk, peek_reply};
pub use request::{DecodeError, RequestFacts, peek_request};
pub use usage::without_usage;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
