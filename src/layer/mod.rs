//! Floor 5: tower layers.
