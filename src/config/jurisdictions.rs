//! `[jurisdiction.XX]`: what the countries of payer and merchant say about what is kept.
//!
//! Each of the two countries counts with its own section, or with `[jurisdiction.default]` where it has none, and the
//! strictest of both wins. A country that nobody named says nothing; where both are unknown, `default` does. What a section
//! leaves out, `default` says.

use std::collections::BTreeMap;

use super::error::Code;
use super::raw::jurisdiction::RawJurisdiction;
use super::report::{Field, Report};
use crate::domain::retention::Keeping;
use crate::wire::risk::is_country;

/// Everybody else.
const DEFAULT: &str = "default";

/// What is kept where.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Jurisdictions {
    /// What holds where no section does.
    default: Keeping,
    /// By ISO 3166-1 alpha-2.
    countries: BTreeMap<String, Keeping>,
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

/// All sections of all files as one. `recorded` is false where no decision is ever made.
pub(super) fn plan(raw: &[RawJurisdiction], recorded: Recorded, report: &Report<'_>) -> Jurisdictions {
    super::checks::unique(raw.iter().map(|section| &section.name), "the jurisdiction", report);
    for section in raw {
        check_name(&section.name, report);
    }
    if let (Some(first), Recorded::Nothing) = (raw.first(), recorded) {
        let mistake = first.name.mistake(Code::Conflict, "there is no [risk] section, so nothing is recorded");
        report.add(mistake.hint("add one, or remove [jurisdiction]"));
    }
    let default = raw.iter().find(|section| section.name.value == DEFAULT);
    let default = default.map(|section| over(section, Keeping::default())).unwrap_or_default();
    let countries = raw.iter().filter(|section| section.name.value != DEFAULT);
    Jurisdictions {
        default,
        countries: countries.map(|section| (section.name.value.clone(), over(section, default))).collect(),
    }
}

/// Whether there is something to keep.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    /// Decisions.
    Decisions,
    /// There is no risk route.
    Nothing,
}

fn over(section: &RawJurisdiction, default: Keeping) -> Keeping {
    Keeping { days: section.retention.or(default.days), redact: section.redact.unwrap_or(default.redact) }
}

fn check_name(name: &Field<String>, report: &Report<'_>) {
    if name.value == DEFAULT || is_country(&name.value) {
        return;
    }
    let upper = name.value.to_ascii_uppercase();
    let hint = if is_country(&upper) {
        format!("write [jurisdiction.{upper}]")
    } else if upper == "UK" {
        "write [jurisdiction.GB]".to_owned()
    } else {
        "write two capital letters, as in [jurisdiction.TH], or [jurisdiction.default] for everybody else".to_owned()
    };
    report.add(name.mistake(Code::UnknownName, "not a country of ISO 3166-1").hint(hint));
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
