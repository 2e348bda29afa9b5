//! Floor 1: bytes to values and back, pure. Nothing here does I/O or knows a provider by name.

pub mod alipay;
pub mod answered_by;
mod called;
pub mod filtered;
pub mod json_edit;
pub mod json_read;
pub mod messages;
pub mod multipart;
pub mod object;
pub mod openai;
pub mod replay;
pub mod responses;
pub mod risk;
pub mod session;
pub mod sse;
