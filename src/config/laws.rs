//! From `[jurisdiction.XX]` to what is kept where: names that are countries, and what `default` says for the rest.

use super::checks::unique;
use super::error::Code;
use super::jurisdictions::{DEFAULT, Jurisdictions};
use super::raw::jurisdiction::RawJurisdiction;
use super::report::{Field, Report};
use crate::domain::retention::Keeping;
use crate::wire::risk::is_country;

/// All sections of all files as one. `recorded` is false where no decision is ever made.
pub(super) fn plan(raw: &[RawJurisdiction], recorded: Recorded, report: &Report<'_>) -> Jurisdictions {
    unique(raw.iter().map(|section| &section.name), "the jurisdiction", report);
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
    use crate::config::tests::{mistakes_of, table_of};
    use crate::domain::retention::{Redact, Withheld};

    fn keeping(days: u32, redact: &[Withheld]) -> Keeping {
        Keeping { days: Some(days), redact: Redact::default().and(redact) }
    }

    #[test]
    fn sections_say_how_long_and_what_not_and_leave_the_rest_to_default() {
        let text = "[jurisdiction.default]\nretention = \"365d\"\nredact = [\"ip\"]\n\
                    [jurisdiction.TH]\nretention = \"180d\"\n[jurisdiction.DE]\nredact = []\n";
        let table = table_of(text);
        let laws = &table.risk_route().unwrap().jurisdictions;
        assert_eq!(laws.keeping(Some("TH"), None), keeping(180, &[Withheld::Ip]));
        assert_eq!(laws.keeping(Some("DE"), None), keeping(365, &[]));
        assert_eq!(laws.all().map(|(name, _)| name).collect::<Vec<_>>(), ["DE", "TH", "default"]);
        assert_eq!(table_of("").risk_route().unwrap().jurisdictions, Jurisdictions::default());
    }

    #[test]
    fn what_is_not_acted_upon_is_refused_with_what_to_do() {
        let found = mistakes_of("[jurisdiction.TH]\nretention = \"180d\"\nstore = \"sg-1\"\n");
        assert!(
            found.contains("`store` is not supported by this version (jurisdiction.….store); remove it"),
            "{found}"
        );
        let found = mistakes_of("[jurisdiction.uk]\nretention = \"1d\"\n");
        assert!(found.contains("write [jurisdiction.GB]"), "{found}");
        let found = mistakes_of("[jurisdiction.th]\nretention = \"25h\"\n");
        assert!(found.contains("write [jurisdiction.TH]") && found.contains("write whole days"), "{found}");
    }
}
