//! From `[[risk.velocity]]` to its counters: the rules that compare their keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::Code;
use super::raw::velocity::{MeasureWord, RawVelocity};
use super::report::{Field, Report};
use super::velocity::{MOST_DISTINCT, Measure, VelocityRule};

const MOST_COUNTERS: usize = 32;
const DEFAULT_KEYS: usize = 100_000;

/// The counters, without those that are mistaken.
pub(super) fn rules(raw: &[RawVelocity], report: &Report<'_>) -> Vec<Arc<VelocityRule>> {
    let mut names: BTreeMap<&str, &Field<String>> = BTreeMap::new();
    for name in raw.iter().filter_map(|counter| counter.name.as_ref()) {
        if let Some(first) = names.insert(&name.value, name) {
            let mistake = name.mistake(Code::Repeated, "the counter's name occurs twice");
            report.add(mistake.hint(format!("first at {}", report.place_of(first.at))));
        }
    }
    if let Some(first_over) = raw.get(MOST_COUNTERS) {
        report.add(first_over.at.mistake(Code::BadValue, format!("more than {MOST_COUNTERS} counters")));
    }
    raw.iter().take(MOST_COUNTERS).filter_map(|counter| rule(counter, report)).map(Arc::new).collect()
}

fn rule(raw: &RawVelocity, report: &Report<'_>) -> Option<VelocityRule> {
    let measure = measure(raw, report);
    if let (Some(over), None) = (&raw.over, &raw.limit) {
        let mistake = over.mistake(Code::Conflict, "`over` without `limit`");
        report.add(mistake.hint("say what is too much, as in limit = 5"));
    }
    let limit = raw.limit.as_ref();
    if let (Some(Measure::Distinct(_)), Some(limit)) = (measure, limit)
        && limit.value >= i64::from(MOST_DISTINCT)
    {
        let most = MOST_DISTINCT - 1;
        let mistake =
            limit.mistake(Code::BadValue, format!("a distinct counter can be over a limit of {most} at most"));
        report.add(mistake.hint(format!("it tells {MOST_DISTINCT} values apart, more of them count as so many")));
        return None;
    }
    Some(VelocityRule {
        name: raw.name.as_ref()?.value.as_str().into(),
        by: raw.by.as_ref()?.value,
        measure: measure?,
        window: raw.window.as_ref()?.value,
        limit: limit.map(|limit| limit.value),
        over: raw.over.as_ref().map(|over| over.value),
        most: raw.most.as_ref().map_or(DEFAULT_KEYS, |most| most.value),
    })
}

fn measure(raw: &RawVelocity, report: &Report<'_>) -> Option<Measure> {
    let word = raw.measure.as_ref()?;
    let needs = |key: &str, example: &str| {
        let mistake = word.mistake(Code::MissingKey, format!("missing key `{key}`"));
        report.add(mistake.hint(format!("as in {example}")));
        None
    };
    let useless = |at: Option<&Field<()>>, key: &str, measure: &str| {
        if let Some(at) = at {
            let mistake = at.mistake(Code::Conflict, format!("`{key}` belongs to measure = \"{measure}\""));
            report.add(mistake.hint("remove it"));
        }
    };
    let (of, currency) = (raw.of.as_ref(), raw.currency.as_ref());
    if word.value != MeasureWord::Distinct {
        useless(of.map(|of| of.with(())).as_ref(), "of", "distinct");
    }
    if word.value != MeasureWord::Sum {
        useless(currency.map(|currency| currency.with(())).as_ref(), "currency", "sum");
    }
    match (word.value, of, currency) {
        (MeasureWord::Count, ..) => Some(Measure::Count),
        (MeasureWord::Sum, _, Some(currency)) => Some(Measure::Sum(currency.value)),
        (MeasureWord::Sum, _, None) if raw.says_currency => None,
        (MeasureWord::Sum, _, None) => needs("currency", "currency = \"CNY\""),
        (MeasureWord::Distinct, None, _) if raw.says_of => None,
        (MeasureWord::Distinct, None, _) => needs("of", "of = \"instrument\""),
        (MeasureWord::Distinct, Some(of), _) => {
            if raw.by.as_ref().is_some_and(|by| by.value == of.value) {
                report.add(of.mistake(Code::Conflict, "the same as `by`: there is never more than one"));
                return None;
            }
            Some(Measure::Distinct(of.value))
        }
    }
}
