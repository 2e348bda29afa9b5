//! Time limits. All of them are monotonic; the wall clock never decides when something ends.

use std::time::Duration;

use tokio::time::Instant;

/// The moment by which a call must be answered, fixed when it arrived and only ever brought forward.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// `limit` after `start`.
    pub fn after(start: Instant, limit: Duration) -> Self {
        Self(start + limit)
    }

    /// The moment itself.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// The earlier of the two.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// What is left at `now`; zero once it has passed.
    pub fn left(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }
}

/// The limits of one route, phase by phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// From arrival to the last byte.
    pub total: Duration,
    /// TCP and TLS to the provider.
    pub connect: Duration,
    /// From the start of an attempt to its first content.
    pub first_content: Duration,
    /// Between two pieces of a stream.
    pub idle: Duration,
    /// How long nothing may be said to the client of a stream; `None` if it is never told that its stream goes on.
    pub heartbeat: Option<Duration>,
}
