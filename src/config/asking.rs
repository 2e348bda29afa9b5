//! Who of a route's candidates is asked first, and when another one is: the part of an LLM route that is not a limit.
//!
//! Values only, already checked; what follows from them is decided by `routing::order` and `layer::failover`.

use std::time::Duration;

/// Millionths of a whole: shares and percentages without floats.
pub const WHOLE: u32 = 1_000_000;

/// The order of a route's candidates, and its exceptions.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Asking {
    /// Who comes first.
    pub order: Order,
    /// One for each candidate, in listed order; all 1 unless the order is weighted.
    pub weights: Vec<u32>,
    /// What keeps coming back to the same candidate.
    pub sticky: Option<Sticky>,
    /// Refusals of the request that another candidate may still answer.
    pub fallback_on: FallbackOn,
    /// Absent: a second candidate is asked only when the first one fails.
    pub hedge: Option<Hedge>,
}

/// How candidates are put in order.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Order {
    /// As they are written.
    #[default]
    AsListed,
    /// Drawn anew for every call, by weight.
    Weighted,
    /// Who has lately shown its first content sooner.
    Fastest,
    /// Who asks less for a call of this size.
    Cheapest,
}

impl Order {
    /// As it is written in `routes.toml`.
    pub fn label(self) -> &'static str {
        match self {
            Self::AsListed => "as-listed",
            Self::Weighted => "weighted",
            Self::Fastest => "fastest",
            Self::Cheapest => "cheapest",
        }
    }
}

/// What calls must have in common to be led to the same candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sticky {
    /// The conversation, by the first key of it that a request has.
    Conversation,
}

/// Refusals of the request itself that are followed by the next candidate all the same.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FallbackOn {
    /// The prompt is too long for the candidate.
    pub too_long: bool,
    /// The candidate's policy or filter refused the content.
    pub content_policy: bool,
}

/// When a second candidate is asked though the first has not failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hedge {
    /// After how long without content.
    pub after: HedgeAfter,
    /// Most hedges, in millionths of the route's calls.
    pub max_share: u32,
    /// Most that hedges may be estimated to cost, in millionths of what the calls are; `None` if prices do not allow to say.
    pub max_spend: Option<u32>,
}

/// How long the first candidate is waited for alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HedgeAfter {
    /// As long as 95 of 100 of the route's own recent calls took.
    P95,
    /// This long.
    Fixed(Duration),
}
