//! Quantities as people write them: `"800ms"`, `"64KiB"`, `"0.02 CNY"`.
//!
//! Whole numbers only and one unit each, so that a quantity has one spelling and nothing is rounded. A bare number is
//! refused: "30" seconds and "30" milliseconds look the same in a review.

use std::time::Duration;

use crate::domain::currency::Currency;
use crate::domain::money::{Cost, Money, MoneyError};

/// Why a text is not a quantity. Says what to write, never what was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnitError {
    /// Not a whole number directly followed by a known unit of time.
    #[error("write a whole number and a unit (ms, s, m, h or d), as in \"800ms\"")]
    Duration,
    /// Not a whole number directly followed by a known unit of size.
    #[error("write a whole number and a unit (B, KiB, MiB or GiB), as in \"64KiB\"")]
    Size,
    /// Not an amount, one space, and a currency.
    #[error("write an amount, one space and a currency, as in \"50.00 CNY\"")]
    Amount,
    /// Three letters that are no active ISO 4217 currency.
    #[error("the currency is not an active ISO 4217 code in upper case")]
    Currency,
    /// The number itself.
    #[error(transparent)]
    Money(#[from] MoneyError),
    /// Does not fit.
    #[error("the number is too large")]
    TooLarge,
}

/// Reads a length of time.
///
/// # Errors
/// [`UnitError::Duration`] for another form, [`UnitError::TooLarge`] beyond 2^64 milliseconds.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split_unit(text).ok_or(UnitError::Duration)?;
    let in_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(UnitError::Duration),
    };
    let number: u64 = number.parse().map_err(|_| UnitError::TooLarge)?;
    number.checked_mul(in_ms).map(Duration::from_millis).ok_or(UnitError::TooLarge)
}

/// Reads a size, in bytes.
///
/// # Errors
/// [`UnitError::Size`] for another form, [`UnitError::TooLarge`] if it does not fit.
pub fn size(text: &str) -> Result<usize, UnitError> {
    let (number, unit) = split_unit(text).ok_or(UnitError::Size)?;
    let in_bytes = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(UnitError::Size),
    };
    let number: usize = number.parse().map_err(|_| UnitError::TooLarge)?;
    number.checked_mul(in_bytes).ok_or(UnitError::TooLarge)
}

/// Reads an amount of money, `"50.00 CNY"`.
///
/// # Errors
/// [`UnitError`] for another form, an unknown currency, or a number that is no amount of it.
pub fn money(text: &str) -> Result<Money, UnitError> {
    let (number, currency) = split_currency(text)?;
    Ok(Money::parse(number, currency)?)
}

/// Reads a price with up to six decimals, `"0.02 CNY"`.
///
/// # Errors
/// [`UnitError`] as for [`money`].
pub fn cost(text: &str) -> Result<Cost, UnitError> {
    let (number, currency) = split_currency(text)?;
    Ok(Cost::parse(number, currency)?)
}

/// A length of time as it would be written here: `24h`, `800ms`.
pub fn shown(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units.into_iter().find(|(in_ms, _)| ms > 0 && ms.is_multiple_of(*in_ms)) {
        Some((in_ms, unit)) => format!("{}{unit}", ms / in_ms),
        None => format!("{ms}ms"),
    }
}

fn split_unit(text: &str) -> Option<(&str, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(at)?;
    (!number.is_empty()).then_some((number, unit))
}

fn split_currency(text: &str) -> Result<(&str, Currency), UnitError> {
    let (number, code) = text.split_once(' ').ok_or(UnitError::Amount)?;
    let three_letters = code.len() == 3 && code.bytes().all(|b| b.is_ascii_alphabetic());
    if !three_letters {
        return Err(UnitError::Amount);
    }
    Currency::parse(code).map(|currency| (number, currency)).ok_or(UnitError::Currency)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_and_sizes_read_with_their_unit() {
        assert_eq!(duration("800ms"), Ok(Duration::from_millis(800)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("32MiB"), Ok(33_554_432));
        assert_eq!(size("7B"), Ok(7));
    }

    #[test]
    fn a_number_without_a_unit_or_with_another_is_refused() {
        for text in ["", "30", "ms", "1.5s", "-1s", "+1s", "1 s", " 1s", "1s ", "1S", "1sec", "1h30m", "١s", "1é"] {
            assert_eq!(duration(text), Err(UnitError::Duration), "{text:?}");
        }
        for text in ["", "64", "KiB", "1.5KiB", "64KB", "64kib", "64 KiB", "1e3B"] {
            assert_eq!(size(text), Err(UnitError::Size), "{text:?}");
        }
        assert_eq!(duration("99999999999999999999s"), Err(UnitError::TooLarge));
        assert_eq!(duration("18446744073709551615d"), Err(UnitError::TooLarge));
        assert_eq!(size("18446744073709551615GiB"), Err(UnitError::TooLarge));
    }

    #[test]
    fn money_needs_one_space_and_an_active_currency() {
        assert_eq!(money("50.00 CNY").map(|money| money.to_string()), Ok("50.00 CNY".to_owned()));
        assert_eq!(cost("0.02 CNY").map(|cost| cost.micro), Ok(20_000));
        for text in ["50.00", "50.00CNY", "50.00  CNY", "CNY 50.00", " 50.00 CNY", "50.00 CNY ", "50.00 元"] {
            assert_eq!(money(text), Err(UnitError::Amount), "{text:?}");
        }
        assert_eq!(money("50.00 cny"), Err(UnitError::Currency));
        assert_eq!(money("50.00 XXX"), Err(UnitError::Currency));
        assert_eq!(money("0.00 CNY"), Err(UnitError::Money(MoneyError::Zero)));
        assert_eq!(cost("-1 CNY"), Err(UnitError::Money(MoneyError::Form)));
    }

    proptest! {
        #[test]
        fn a_time_reads_back_as_it_is_shown(ms in 0u64..10_000_000_000) {
            let time = Duration::from_millis(ms);
            prop_assert_eq!(duration(&shown(time)), Ok(time));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,40}") {
            let _ = (duration(&text), size(&text), money(&text), cost(&text));
        }
    }
}
