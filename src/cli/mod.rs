//! Floor 9: speaks to a person.
