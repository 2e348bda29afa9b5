//! Floor 3: pure decisions about where a call goes.
