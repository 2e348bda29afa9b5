//! Taking out of a stream the token counts that only we asked for.

use super::reply::peek_chunk;
use crate::wire::json_edit::{self, NullUsage};
use crate::wire::sse::Event;

/// The event as a caller of chat completions sees it who did not ask for token counts; `None` if it may not.
pub fn without_usage(event: Event) -> Option<Event> {
    if memchr::memmem::find(event.raw(), b"\"usage\"").is_none() {
        return Some(event);
    }
    let data = event.data()?;
    if peek_chunk(&data).usage_only {
        return None;
    }
    if let Some(edited) = json_edit::rewrite_chunk(&data, None, NullUsage::Drop) {
        return Some(event.with_data(&edited));
    }
    drop(data);
    Some(event)
}
