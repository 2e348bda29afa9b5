//! Floor 7: the admin plane.
