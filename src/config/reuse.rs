//! When earlier decisions are given again: `[risk] reuse`, validated.

use crate::domain::reuse::Terms;

/// How decisions are reused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReusePolicy {
    /// When memory is asked.
    pub mode: ReuseMode,
    /// What it may say.
    pub terms: Terms,
    /// How many of the calls that could be answered from memory go live all the same, in millionths.
    pub self_audit: u32,
    /// How many of those may disagree with the provider, in millionths.
    pub max_disagreement: u32,
}

/// When memory is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReuseMode {
    /// Once no provider decided in time.
    WhenLate,
    /// Before any provider, and again once none decided in time.
    First,
}
