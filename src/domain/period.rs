//! The windows a budget is counted in: calendar days and calendar months, both in UTC, because a provider's bill is and
//! because a day of 23 hours would make two budgets of one amount differ.

use time::{Date, Duration, OffsetDateTime};

/// 1970-01-01 as a Julian day.
const EPOCH: i32 = 2_440_588;

/// How long a budget lasts before it begins again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Period {
    /// From midnight to midnight, UTC.
    Day,
    /// From the first of a month to the first of the next, UTC.
    Month,
}

impl Period {
    /// The word in configuration, metrics and on the status page.
    pub fn label(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// The period with this word.
    pub fn parse(label: &str) -> Option<Self> {
        [Self::Day, Self::Month].into_iter().find(|period| period.label() == label)
    }

    /// When the window around a moment began, in milliseconds since 1970. It names the window.
    pub fn began(self, unix_ms: u64) -> u64 {
        milliseconds(self.first_day(date(unix_ms)))
    }

    /// When the window around a moment is over and the next one begins, in milliseconds since 1970.
    pub fn ends(self, unix_ms: u64) -> u64 {
        let first = self.first_day(date(unix_ms));
        // 32 days after the first of a month is in the next one.
        let later = first.saturating_add(Duration::days(if self == Self::Day { 1 } else { 32 }));
        milliseconds(self.first_day(later))
    }

    fn first_day(self, day: Date) -> Date {
        match self {
            Self::Day => day,
            Self::Month => day.replace_day(1).unwrap_or(day),
        }
    }
}

/// A moment beyond the calendar's last year counts as its last day.
fn date(unix_ms: u64) -> Date {
    let seconds = i64::try_from(unix_ms / 1_000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).map_or(Date::MAX, OffsetDateTime::date)
}

fn milliseconds(day: Date) -> u64 {
    let days = u64::try_from(day.to_julian_day() - EPOCH).unwrap_or_default();
    days * 86_400_000
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-30T23:59:59.999Z and a millisecond later.
    const LAST: u64 = 1_796_083_199_999;

    #[test]
    fn a_day_and_a_month_turn_at_midnight_utc() {
        assert_eq!((Period::Day.ends(LAST), Period::Month.ends(LAST)), (LAST + 1, LAST + 1));
        assert_eq!((Period::Day.began(LAST + 1), Period::Month.began(LAST + 1)), (LAST + 1, LAST + 1));
        assert_eq!(Period::Day.ends(LAST + 1), LAST + 1 + 86_400_000);
        assert_eq!(Period::Month.ends(LAST + 1), LAST + 1 + 31 * 86_400_000, "December has 31 days");
        assert_eq!(Period::Month.began(0), 0);
    }

    #[test]
    fn a_moment_no_calendar_has_is_still_in_a_window() {
        for period in [Period::Day, Period::Month] {
            assert!(period.began(u64::MAX) <= period.ends(u64::MAX));
        }
    }

    proptest! {
        #[test]
        fn every_moment_is_in_exactly_one_window(ms in 0u64..253_402_300_800_000 - 32 * 86_400_000) {
            for period in [Period::Day, Period::Month] {
                let (began, ends) = (period.began(ms), period.ends(ms));
                prop_assert!(began <= ms && ms < ends);
                prop_assert_eq!((period.began(began), period.began(ends - 1), period.began(ends)), (began, began, ends));
            }
        }
    }
}
