//! Floor 1: bytes to values and back, pure. Nothing here does I/O or knows a provider by name.

pub mod json_edit;
pub mod openai;
pub mod sse;
