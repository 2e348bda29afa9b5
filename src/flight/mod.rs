//! Floor 3: what travels through the stacks.
