//! One try at one upstream.

use std::time::Duration;

use tokio::time::Instant;

use crate::flight::call::Call;

/// What an attempt is given.
#[derive(Clone)]
pub struct Attempt {
    /// The call it serves.
    pub call: Call,
    /// 1 for the first.
    pub number: u32,
    /// When it was made: the one reading of the clock that the layers above `send` share.
    pub begun: Instant,
    /// When it must have a reply (a whole answer, or a stream's first content).
    pub limit: Instant,
    /// Until when is fair, from the same reading of the clock as `limit`: an attempt given less than this by the caller's
    /// own deadline does not count against the provider.
    pub fair: Instant,
    /// How long it waits for a place if its provider's bulkhead is full; nothing if zero.
    pub patience: Duration,
    /// TCP and TLS.
    pub connect: Duration,
    /// Longest silence within the body.
    pub idle: Duration,
}
