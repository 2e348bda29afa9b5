//! `[jurisdiction.XX]`: what the countries of payer and merchant say about what is kept.
//!
//! Each of the two countries counts with its own section, or with `[jurisdiction.default]` where it has none, and the
//! strictest of both wins. A country that nobody named says nothing; where both are unknown, `default` does.

use std::collections::BTreeMap;

use crate::domain::retention::Keeping;

/// Everybody else.
pub(super) const DEFAULT: &str = "default";

/// What is kept where.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Jurisdictions {
    /// What holds where no section does.
    pub(super) default: Keeping,
    /// By ISO 3166-1 alpha-2.
    pub(super) countries: BTreeMap<String, Keeping>,
}

impl Jurisdictions {
    /// What becomes of the personal part of a record about these two.
    pub fn keeping(&self, payer: Option<&str>, merchant: Option<&str>) -> Keeping {
        if self.countries.is_empty() {
            return self.default;
        }
        let named = payer.into_iter().chain(merchant);
        let said = named.map(|country| self.countries.get(country).copied().unwrap_or(self.default));
        said.reduce(Keeping::strictest).unwrap_or(self.default)
    }

    /// All of them by name, `default` last and only if it says something.
    pub fn all(&self) -> impl Iterator<Item = (&str, Keeping)> {
        let default = (self.default != Keeping::default()).then_some((DEFAULT, self.default));
        self.countries.iter().map(|(country, keeping)| (country.as_str(), *keeping)).chain(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::retention::{Redact, Withheld};

    fn keeping(days: u32, redact: &[Withheld]) -> Keeping {
        Keeping { days: Some(days), redact: Redact::default().and(redact) }
    }

    fn some() -> Jurisdictions {
        let countries = [("TH", keeping(180, &[Withheld::Phone])), ("DE", keeping(90, &[Withheld::Email]))];
        Jurisdictions {
            default: keeping(365, &[]),
            countries: countries.map(|(country, keeping)| (country.to_owned(), keeping)).into(),
        }
    }

    #[test]
    fn the_strictest_of_payer_and_merchant_wins_and_who_is_unknown_says_nothing() {
        let some = some();
        let both = keeping(90, &[Withheld::Phone, Withheld::Email]);
        assert_eq!(some.keeping(Some("TH"), Some("DE")), both);
        assert_eq!(some.keeping(Some("DE"), Some("TH")), both);
        assert_eq!(some.keeping(Some("TH"), Some("CN")), keeping(180, &[Withheld::Phone]));
        assert_eq!(some.keeping(None, Some("TH")), keeping(180, &[Withheld::Phone]));
        assert_eq!(some.keeping(None, None), keeping(365, &[]));
        assert_eq!(some.keeping(Some("CN"), Some("FR")), keeping(365, &[]));
    }

    #[test]
    fn everybody_else_may_be_the_strictest() {
        let strict = Jurisdictions { default: keeping(30, &[]), ..some() };
        assert_eq!(strict.keeping(Some("TH"), Some("CN")), keeping(30, &[Withheld::Phone]));
        assert_eq!(strict.keeping(Some("TH"), None), keeping(180, &[Withheld::Phone]));
        assert_eq!(Jurisdictions::default().keeping(Some("TH"), None), Keeping::default());
    }
}
