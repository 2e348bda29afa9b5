//! How long a provider asks us to stay away, in every spelling seen in the field.
//!
//! A date is read against the provider's own `Date`, so its clock may be wrong by years. Everything is clamped to five
//! minutes: a longer word is kept as five minutes and asked again. Garbage is no word at all.

use std::time::Duration;

use http::HeaderMap;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

const LONGEST: Duration = Duration::from_secs(300);

/// Reads `retry-after-ms`, then `retry-after` (seconds or a date), then LiteLLM's copy of its upstream's.
pub fn parse(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let millis = text("retry-after-ms").and_then(|ms| seconds(ms, 1e-3));
    let plain = || {
        ["retry-after", "llm_provider-retry-after"].iter().find_map(|name| {
            let value = text(name)?;
            seconds(value, 1.0).or_else(|| between(text("date")?, value))
        })
    };
    millis.or_else(plain)
}

fn seconds(text: &str, unit: f64) -> Option<Duration> {
    let value = text.parse::<f64>().ok()? * unit;
    (value.is_finite() && value >= 0.0).then(|| Duration::from_secs_f64(value.min(LONGEST.as_secs_f64())))
}

fn between(now: &str, then: &str) -> Option<Duration> {
    let parse = |text| OffsetDateTime::parse(text, &Rfc2822).ok();
    let span = parse(then)? - parse(now)?;
    Some(Duration::try_from(span).unwrap_or(Duration::ZERO).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(fields: &[(&'static str, &'static str)]) -> Option<Duration> {
        parse(&fields.iter().map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect())
    }

    #[test]
    fn f9_every_spelling_is_read_and_garbage_is_not() {
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(parsed(&[("retry-after", "2")]), ms(2_000));
        assert_eq!(parsed(&[("retry-after", "0.5")]), ms(500));
        assert_eq!(parsed(&[("retry-after", "9"), ("retry-after-ms", "50")]), ms(50));
        assert_eq!(parsed(&[("retry-after", "1e9")]), ms(300_000));
        assert_eq!(parsed(&[("llm_provider-retry-after", "3")]), ms(3_000));
        for garbage in ["soon", "-1", "NaN", "inf", ""] {
            assert_eq!(parsed(&[("retry-after", garbage)]), None, "{garbage}");
        }
        assert_eq!(parsed(&[]), None);
    }

    #[test]
    fn f9_a_date_is_read_against_the_providers_own_clock() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        let wait = |value| parsed(&[date, ("retry-after", value)]);
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:39 GMT"), Some(Duration::from_secs(2)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(parsed(&[("retry-after", "Sun, 06 Nov 1994 08:49:39 GMT")]), None);
    }
}
