//! What tells one tool call of a chat stream from another.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// A call by what its pieces may repeat of it: a number of fixed size, however long the id is.
pub(super) fn identity(index: Option<u64>, id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (index, id).hash(&mut hasher);
    hasher.finish()
}
