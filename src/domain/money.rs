//! Money as integers. Amounts are minor units of a currency; costs are millionths of its major unit.
//!
//! There is no arithmetic on floats anywhere on this path and no conversion between currencies.

use std::fmt;

use super::currency::Currency;

/// The largest amount accepted, in minor units.
pub const LARGEST_MINOR: i64 = 1_000_000_000_000_000;

/// An amount somebody pays: minor units and their currency.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Money {
    minor: i64,
    currency: Currency,
}

/// Why a text is not an amount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MoneyError {
    /// Signs, exponents, grouping, spaces, leading zeros, other digits.
    #[error("write digits and at most one point, as in \"88.88\": no sign, exponent, grouping, space or leading zero")]
    Form,
    /// More decimals than the currency has.
    #[error("{currency} has {allowed} decimals")]
    Decimals {
        /// Which currency.
        currency: Currency,
        /// How many it has.
        allowed: u8,
    },
    /// Zero.
    #[error("must be greater than zero")]
    Zero,
    /// More than 10^15 minor units.
    #[error("must be at most 10^15 minor units")]
    TooLarge,
}

impl Money {
    /// Reads an amount in major units.
    ///
    /// # Errors
    /// [`MoneyError`] if it is not a plain positive decimal with at most the currency's decimals.
    pub fn parse(text: &str, currency: Currency) -> Result<Self, MoneyError> {
        let minor = scaled(text, currency.exponent()).map_err(|err| match err {
            ScaleError::Form => MoneyError::Form,
            ScaleError::Decimals => MoneyError::Decimals { currency, allowed: currency.exponent() },
            ScaleError::TooLarge => MoneyError::TooLarge,
        })?;
        match minor {
            0 => Err(MoneyError::Zero),
            minor if minor > LARGEST_MINOR => Err(MoneyError::TooLarge),
            minor => Ok(Self { minor, currency }),
        }
    }

    /// The amount in minor units, always positive.
    pub fn minor(self) -> i64 {
        self.minor
    }

    /// Its currency.
    pub fn currency(self) -> Currency {
        self.currency
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exponent = self.currency.exponent();
        f.write_str(Decimal::new(self.minor, exponent, exponent).with(self.currency).as_str())
    }
}

/// What a call cost us: millionths of a major unit, so that 0.02 CNY is 20,000.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cost {
    /// Millionths of the currency's major unit.
    pub micro: i64,
    /// The currency the provider bills in.
    pub currency: Currency,
}

impl Cost {
    /// Reads `"0.02"` as major units; up to six decimals, zero allowed.
    ///
    /// # Errors
    /// [`MoneyError`] as for amounts.
    pub fn parse(text: &str, currency: Currency) -> Result<Self, MoneyError> {
        scaled(text, 6).map(|micro| Self { micro, currency }).map_err(|err| match err {
            ScaleError::Form => MoneyError::Form,
            ScaleError::Decimals => MoneyError::Decimals { currency, allowed: 6 },
            ScaleError::TooLarge => MoneyError::TooLarge,
        })
    }

    /// The sum, `None` if the currencies differ or it would not fit.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let same = self.currency == other.currency;
        same.then(|| self.micro.checked_add(other.micro))?.map(|micro| Self { micro, ..self })
    }

    /// The number alone, as major units: at least the currency's decimals, no trailing zeros beyond them.
    pub fn amount(self) -> String {
        self.decimal().as_str().to_owned()
    }

    /// Number and currency, `0.02 CNY`, without an allocation: every call's cost is written twice.
    pub fn text(self) -> MoneyText {
        self.decimal().with(self.currency)
    }

    fn decimal(self) -> Decimal {
        Decimal::new(self.micro, 6, self.currency.exponent())
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}

/// A price per token: millionths of the major unit for a million tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenPrice {
    /// For prompt tokens.
    pub input_per_million: Cost,
    /// For prompt tokens the provider had in its cache; `None` if they cost what all do, or if nobody knows.
    pub cached_input_per_million: Option<Cost>,
    /// For completion tokens.
    pub output_per_million: Cost,
}

impl TokenPrice {
    /// Nobody sends a bill. The currency of nothing is as good as any.
    pub const FREE: Self = {
        let nothing = Cost { micro: 0, currency: Currency::USD };
        Self { input_per_million: nothing, cached_input_per_million: None, output_per_million: nothing }
    };

    /// What both are in.
    pub fn currency(self) -> Currency {
        self.input_per_million.currency
    }

    /// What this many tokens cost, rounded up to the next micro-unit; `None` if it would not fit.
    pub fn cost(self, input_tokens: u64, output_tokens: u64) -> Option<Cost> {
        self.cost_with_cache(input_tokens, 0, output_tokens)
    }

    /// As [`TokenPrice::cost`], `cached` of the prompt's tokens at their own price if they have one.
    pub fn cost_with_cache(self, input_tokens: u64, cached: u64, output_tokens: u64) -> Option<Cost> {
        let part = |price: Cost, tokens: u64| i128::from(price.micro).checked_mul(i128::from(tokens));
        let cached = cached.min(input_tokens);
        let cached_price = self.cached_input_per_million.unwrap_or(self.input_per_million);
        let input = part(self.input_per_million, input_tokens - cached)?.checked_add(part(cached_price, cached)?)?;
        let exact = input.checked_add(part(self.output_per_million, output_tokens)?)?;
        let micro = i64::try_from(exact.checked_add(999_999)?.div_euclid(1_000_000)).ok()?;
        Some(Cost { micro, currency: self.input_per_million.currency })
    }
}

enum ScaleError {
    Form,
    Decimals,
    TooLarge,
}

/// Reads a plain decimal as an integer scaled by 10^`exponent`.
fn scaled(text: &str, exponent: u8) -> Result<i64, ScaleError> {
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return Err(ScaleError::Form),
        None => (text, ""),
    };
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let leading_zero = whole.len() > 1 && whole.starts_with('0');
    if whole.is_empty() || leading_zero || !digits(whole) || !digits(fraction) {
        return Err(ScaleError::Form);
    }
    if fraction.len() > usize::from(exponent) {
        return Err(ScaleError::Decimals);
    }
    let padding = usize::from(exponent) - fraction.len();
    let digits = whole.bytes().chain(fraction.bytes()).chain(std::iter::repeat_n(b'0', padding));
    digits
        .map(|b| i64::from(b - b'0'))
        .try_fold(0i64, |sum, digit| sum.checked_mul(10)?.checked_add(digit))
        .ok_or(ScaleError::TooLarge)
}

/// An amount or a cost as people read it.
pub struct MoneyText(Decimal);

impl MoneyText {
    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// An integer scaled by 10^exponent, in digits, written from right to left.
struct Decimal {
    bytes: [u8; Self::ROOM],
    start: usize,
    end: usize,
}

impl Decimal {
    /// Twenty digits, the zeros before them, a point and a sign; then a space and a currency.
    const ROOM: usize = 52;
    const DIGITS: usize = 48;

    /// With at least `least` decimals and no further trailing zeros.
    fn new(value: i64, exponent: u8, least: u8) -> Self {
        let mut text = Self { bytes: [b' '; Self::ROOM], start: Self::DIGITS, end: Self::DIGITS };
        let mut rest = value.unsigned_abs();
        for place in 0..=exponent.min(24) {
            let digit = (rest % 10) as u8;
            let point = place == exponent && text.start < Self::DIGITS;
            if point {
                text.put(b'.');
            }
            if place == exponent || digit != 0 || place + least >= exponent || text.start < Self::DIGITS {
                text.put(b'0' + digit);
            }
            rest /= 10;
        }
        while rest > 0 {
            text.put(b'0' + (rest % 10) as u8);
            rest /= 10;
        }
        if value < 0 {
            text.put(b'-');
        }
        text
    }

    /// Digits come from the right.
    fn put(&mut self, byte: u8) {
        self.start = self.start.saturating_sub(1);
        if let Some(place) = self.bytes.get_mut(self.start) {
            *place = byte;
        }
    }

    /// A space and the currency's code behind the number.
    fn with(mut self, currency: Currency) -> MoneyText {
        let code = currency.code().as_bytes();
        if let Some(place) = self.bytes.get_mut(Self::DIGITS + 1..Self::DIGITS + 1 + code.len()) {
            place.copy_from_slice(code);
            self.end = Self::DIGITS + 1 + code.len();
        }
        MoneyText(self)
    }

    fn as_str(&self) -> &str {
        self.bytes.get(self.start..self.end).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn currency(code: &str) -> Currency {
        Currency::parse(code).unwrap()
    }

    #[test]
    fn c9_amounts_follow_the_currency() {
        let minor = |text, code| Money::parse(text, currency(code)).map(Money::minor);
        assert_eq!(minor("88.88", "CNY"), Ok(8888));
        assert_eq!(minor("88.8", "CNY"), Ok(8880));
        assert_eq!(minor("1", "JPY"), Ok(1));
        assert_eq!(minor("0.001", "KWD"), Ok(1));
        assert_eq!(minor("10000000000000.00", "CNY"), Ok(LARGEST_MINOR));
        assert_eq!(minor("10000000000000.01", "CNY"), Err(MoneyError::TooLarge));
        assert_eq!(minor("1.0", "JPY"), Err(MoneyError::Decimals { currency: currency("JPY"), allowed: 0 }));
        assert_eq!(minor("0.00", "CNY"), Err(MoneyError::Zero));
    }

    #[test]
    fn c9_hostile_spellings_are_refused() {
        let hostile =
            ["", ".", "1.", ".5", "+1", "-1", "1e3", "1,000.00", " 1", "1 ", "01", "00", "0x1", "١", "NaN", "1.2.3"];
        for text in hostile {
            assert_eq!(Money::parse(text, currency("CNY")), Err(MoneyError::Form), "{text:?}");
        }
        assert_eq!(Money::parse(&"9".repeat(40), currency("CNY")), Err(MoneyError::TooLarge));
    }

    #[test]
    fn costs_read_and_print_in_major_units() {
        let cost = Cost::parse("0.02", currency("CNY")).unwrap();
        assert_eq!((cost.micro, cost.to_string().as_str()), (20_000, "0.02 CNY"));
        assert_eq!(Cost { micro: 1_234_567, currency: currency("USD") }.to_string(), "1.234567 USD");
        assert_eq!(Cost { micro: 5_000_000, currency: currency("JPY") }.to_string(), "5 JPY");
    }

    #[test]
    fn tokens_are_priced_per_million_and_rounded_up() {
        let price = TokenPrice {
            input_per_million: Cost::parse("0.30", currency("USD")).unwrap(),
            cached_input_per_million: None,
            output_per_million: Cost::parse("1.20", currency("USD")).unwrap(),
        };
        assert_eq!(price.cost(1_000_000, 0).unwrap().micro, 300_000);
        assert_eq!(price.cost_with_cache(1_000_000, 400_000, 0).unwrap().micro, 300_000, "without a price of its own");
        let cached = TokenPrice { cached_input_per_million: Cost::parse("0.03", currency("USD")).ok(), ..price };
        assert_eq!(cached.cost_with_cache(1_000_000, 400_000, 1_000_000).unwrap().micro, 180_000 + 12_000 + 1_200_000);
        assert_eq!(cached.cost_with_cache(10, 11, 0).unwrap().micro, 1, "no more than all of it");
        assert_eq!(TokenPrice::FREE.cost(9, 9).unwrap().to_string(), "0.00 USD");
        assert_eq!(price.cost(1, 0).unwrap().micro, 1);
        assert_eq!(price.cost(u64::MAX, u64::MAX), None);
    }

    proptest! {
        #[test]
        fn an_amount_survives_being_written_and_read(minor in 1..=LARGEST_MINOR, code in prop::sample::select(vec!["CNY", "JPY", "KWD", "CLF"])) {
            let currency = currency(code);
            let text = Decimal::new(minor, currency.exponent(), currency.exponent()).as_str().to_owned();
            prop_assert_eq!(Money::parse(&text, currency), Ok(Money { minor, currency }));
        }

        #[test]
        fn c9_a_cost_survives_being_written_and_read(micro in 0..=i64::MAX, code in prop::sample::select(vec!["CNY", "JPY", "KWD", "CLF"])) {
            let cost = Cost { micro, currency: currency(code) };
            prop_assert_eq!(Cost::parse(&cost.amount(), cost.currency), Ok(cost));
        }

        #[test]
        fn c9_a_sum_is_exact_or_there_is_none(a in any::<i64>(), b in any::<i64>()) {
            let cost = |micro| Cost { micro, currency: currency("CNY") };
            let exact = i64::try_from(i128::from(a) + i128::from(b)).ok().map(cost);
            prop_assert_eq!(cost(a).checked_add(cost(b)), exact);
            prop_assert_eq!(cost(b).checked_add(cost(a)), exact);
            prop_assert_eq!(cost(a).checked_add(Cost { micro: b, currency: currency("USD") }), None);
        }

        #[test]
        fn c9_tokens_never_cost_less_than_exactly_nor_a_micro_unit_more(
            prices in prop::array::uniform3(0i64..=i64::MAX), tokens in prop::array::uniform3(any::<u64>()),
        ) {
            let cost = |micro| Cost { micro, currency: currency("USD") };
            let [input, cached, output] = prices;
            let price = TokenPrice {
                input_per_million: cost(input),
                cached_input_per_million: Some(cost(cached)),
                output_per_million: cost(output),
            };
            let known = tokens[1].min(tokens[0]);
            let parts = [(input, tokens[0] - known), (cached, known), (output, tokens[2])];
            // Each part is below 2^127; their sum may not be.
            let exact = parts.iter().try_fold(0i128, |sum, &(price, n)| sum.checked_add(i128::from(price) * i128::from(n)));
            match (price.cost_with_cache(tokens[0], tokens[1], tokens[2]), exact) {
                (Some(paid), Some(exact)) => {
                    let paid = i128::from(paid.micro) * 1_000_000;
                    prop_assert!(paid >= exact && paid - exact < 1_000_000, "{paid} for {exact}");
                }
                (paid, exact) => prop_assert!(paid.is_none() && exact.is_none_or(|exact| exact > i128::from(i64::MAX) * 999_999)),
            }
        }

        #[test]
        fn c9_no_text_is_read_as_more_or_less_than_it_says(text in "[0-9]{1,18}(\\.[0-9]{1,7})?", code in prop::sample::select(vec!["CNY", "JPY", "KWD", "CLF"])) {
            let currency = currency(code);
            if let Ok(money) = Money::parse(&text, currency) {
                let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
                let decimals = usize::from(currency.exponent());
                prop_assert!(fraction.len() <= decimals);
                prop_assert_eq!(format!("{whole}{fraction:0<decimals$}").parse::<i64>(), Ok(money.minor()));
            }
        }

        #[test]
        fn sums_of_costs_lose_nothing(micros in prop::collection::vec(0i64..1_000_000_000, 0..50)) {
            let zero = Cost { micro: 0, currency: currency("CNY") };
            let sum = micros.iter().try_fold(zero, |sum, &micro| sum.checked_add(Cost { micro, ..zero }));
            prop_assert_eq!(sum.map(|sum| sum.micro), Some(micros.iter().sum()));
        }
    }
}
