//! How long what a record says of a person can be read, and what of it is not kept at all.
//!
//! Days are UTC days, counted from 1970. It does not know countries; `config/jurisdictions.rs` does.

use time::{Date, Duration, Month};

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// A UTC day, counted from 1970-01-01.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Day(pub u32);

impl Day {
    /// The day of a moment in milliseconds since 1970.
    pub fn of(unix_ms: u64) -> Self {
        Self(u32::try_from(unix_ms / DAY_MS).unwrap_or(u32::MAX))
    }

    /// So many days later.
    pub fn plus(self, days: u32) -> Self {
        Self(self.0.saturating_add(days))
    }

    /// `2026-11-22`; empty beyond the year 9999.
    pub fn text(self) -> String {
        let epoch = Date::from_calendar_date(1970, Month::January, 1).ok();
        let day = epoch.and_then(|epoch| epoch.checked_add(Duration::days(i64::from(self.0))));
        day.map(|day| format!("{:04}-{:02}-{:02}", day.year(), u8::from(day.month()), day.day())).unwrap_or_default()
    }

    /// The day that [`Self::text`] wrote.
    pub fn read(text: &str) -> Option<Self> {
        let form = time::macros::format_description!("[year]-[month]-[day]");
        let epoch = Date::from_calendar_date(1970, Month::January, 1).ok()?;
        let days = (Date::parse(text, form).ok()? - epoch).whole_days();
        u32::try_from(days).ok().map(Self)
    }
}

/// Something about a person that a record can do without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Withheld {
    /// `user.email`.
    Email,
    /// `user.phone`.
    Phone,
    /// `device.ip`.
    Ip,
    /// All of `device`.
    Device,
    /// `instrument` but its type.
    Instrument,
    /// `subject`, the caller's free text.
    Subject,
    /// `metadata`, the caller's own object.
    Metadata,
}

impl Withheld {
    /// The words of `redact`. No field of a request is a name or a national id, so what could hold one anyway is free text.
    pub const WORDS: [(&str, &[Self]); 9] = [
        ("name", &[Self::Subject, Self::Metadata]),
        ("national-id", &[Self::Subject, Self::Metadata]),
        ("email", &[Self::Email]),
        ("phone", &[Self::Phone]),
        ("ip", &[Self::Ip]),
        ("device", &[Self::Device]),
        ("instrument", &[Self::Instrument]),
        ("subject", &[Self::Subject]),
        ("metadata", &[Self::Metadata]),
    ];

    const ALL: [(Self, &str); 7] = [
        (Self::Email, "email"),
        (Self::Phone, "phone"),
        (Self::Ip, "ip"),
        (Self::Device, "device"),
        (Self::Instrument, "instrument"),
        (Self::Subject, "subject"),
        (Self::Metadata, "metadata"),
    ];
}

/// A set of [`Withheld`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Redact(u8);

impl Redact {
    /// With these too.
    pub fn and(self, fields: &[Withheld]) -> Self {
        Self(fields.iter().fold(self.0, |all, field| all | 1 << *field as u8))
    }

    /// True if this one is not kept.
    pub fn has(self, field: Withheld) -> bool {
        self.0 & 1 << field as u8 != 0
    }

    /// The words for what is not kept.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Withheld::ALL.into_iter().filter(move |(field, _)| self.has(*field)).map(|(_, word)| word)
    }
}

/// What becomes of the personal part of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Keeping {
    /// For so many days it can be read; `None` until somebody is forgotten.
    pub days: Option<u32>,
    /// This is never stored.
    pub redact: Redact,
}

impl Keeping {
    /// The shorter time, and what either does not keep.
    pub fn strictest(self, other: Self) -> Self {
        let days = match (self.days, other.days) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        Self { days, redact: Redact(self.redact.0 | other.redact.0) }
    }

    /// The last day on which what was decided at that moment can be read: never sooner than the days say, and less than a
    /// day later.
    pub fn last_day(self, decided_at_ms: u64) -> Option<Day> {
        self.days.map(|days| Day::of(decided_at_ms).plus(days))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_day_is_written_and_read_as_people_write_it() {
        assert_eq!(Day::of(1_795_383_813_030).text(), "2026-11-22");
        assert_eq!((Day(0).text().as_str(), Day(20_779).text().as_str()), ("1970-01-01", "2026-11-22"));
        assert_eq!(Day::read("2026-11-22"), Some(Day(20_779)));
        assert!(["", "2026-11", "1969-12-31", "2026-02-30"].into_iter().all(|text| Day::read(text).is_none()));
        assert_eq!(Day(u32::MAX).text(), "");
    }

    #[test]
    fn every_word_names_something_and_every_thing_has_a_word() {
        let all = Withheld::WORDS.into_iter().fold(Redact::default(), |all, (_, fields)| all.and(fields));
        assert_eq!(all.words().count(), Withheld::ALL.len());
        assert_eq!(Redact::default().and(&[Withheld::Phone]).words().collect::<Vec<_>>(), ["phone"]);
    }

    fn keeping() -> impl Strategy<Value = Keeping> {
        (proptest::option::of(1u32..40_000), 0u8..128)
            .prop_map(|(days, redact)| Keeping { days, redact: Redact(redact) })
    }

    proptest! {
        #[test]
        fn the_strictest_keeps_nothing_longer_or_more_than_either(one in keeping(), two in keeping()) {
            let both = one.strictest(two);
            prop_assert_eq!(both, two.strictest(one));
            prop_assert_eq!(both.strictest(one), both);
            for each in [one, two] {
                prop_assert!(each.days.is_none_or(|days| both.days.is_some_and(|both| both <= days)));
                prop_assert!(Withheld::ALL.into_iter().all(|(field, _)| !each.redact.has(field) || both.redact.has(field)));
            }
        }

        #[test]
        fn a_record_is_kept_for_its_days_and_less_than_one_more(at in 0u64..4_000_000_000_000, days in 1u32..36_500) {
            let last = Keeping { days: Some(days), ..Keeping::default() }.last_day(at).map(|day| u64::from(day.0));
            // It is gone when the day after its last one begins.
            let gone = (last.unwrap_or_default() + 1) * DAY_MS;
            let wanted = at + u64::from(days) * DAY_MS;
            prop_assert!(gone > wanted && gone <= wanted + DAY_MS);
        }
    }
}
