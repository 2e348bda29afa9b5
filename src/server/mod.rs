//! Floor 7: accepts connections.
