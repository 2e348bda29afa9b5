//! The only reader of the wall clock.
//!
//! Wall time is for people and for other machines: timestamps in signatures, records and logs. Whatever must *end*
//! uses [`tokio::time::Instant`], which is monotonic and which tests can pause.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::macros::format_description;

/// Milliseconds since 1970, UTC.
pub fn unix_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// Nanoseconds since 1970, UTC; they last until the year 2554.
pub fn unix_ns() -> u64 {
    u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX)
}

/// Whole seconds since 1970, UTC.
pub fn unix_seconds() -> u64 {
    since_epoch().as_secs()
}

/// The present moment as RFC 3339 with milliseconds, for bodies people read: `2026-11-22T10:00:00.123Z`.
pub fn rfc3339_now() -> String {
    rfc3339(unix_ms())
}

/// A moment in milliseconds since 1970 as RFC 3339.
pub fn rfc3339(unix_ms: u64) -> String {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let nanos = i128::from(unix_ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|moment| moment.format(form).ok())
        .unwrap_or_default()
}

fn since_epoch() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_always_shows_three_decimals() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_383_813_030), "2026-11-22T21:43:33.030Z");
    }
}
