//! Embeds nothing yet.
fn main() {}
