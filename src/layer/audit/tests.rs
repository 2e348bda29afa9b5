//! What is answered is on record, or the route says what happens.
