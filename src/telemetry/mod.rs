//! Floor 2: metrics and logs: every name in one table, every handle resolved before a request needs it.
