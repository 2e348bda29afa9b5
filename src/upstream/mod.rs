//! Floor 4: one provider, live.
