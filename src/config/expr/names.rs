//! Every name a condition may use, and what it stands for.

use std::sync::Arc;

use super::{About, Known, Text, Whole};

/// What a name stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Name {
    /// A text, and whether it is always there.
    Text(Text, Presence),
    /// A whole number, and whether it is always there.
    Whole(Whole, Presence),
    /// The amount.
    Amount,
    /// The device's address.
    Address,
    /// The paid extras.
    Features,
    /// Whether a call wants its answer as it is made.
    Streams,
}

/// Whether a caller may leave something out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    Always,
    Perhaps,
}

use Presence::{Always, Perhaps};

/// All names of a payment but the counters.
const NAMES: [(&str, Name); 19] = [
    ("amount", Name::Amount),
    ("currency", Name::Text(Text::Currency, Always)),
    ("merchant.id", Name::Text(Text::MerchantId, Always)),
    ("merchant.category", Name::Text(Text::MerchantCategory, Perhaps)),
    ("merchant.country", Name::Text(Text::MerchantCountry, Perhaps)),
    ("user.id", Name::Text(Text::UserId, Always)),
    ("user.country", Name::Text(Text::UserCountry, Perhaps)),
    ("user.registered_days", Name::Whole(Whole::RegisteredDays, Perhaps)),
    ("instrument.type", Name::Text(Text::InstrumentType, Perhaps)),
    ("instrument.bin", Name::Text(Text::InstrumentBin, Perhaps)),
    ("device.id", Name::Text(Text::DeviceId, Perhaps)),
    ("device.ip", Name::Address),
    ("device.known_days", Name::Whole(Whole::KnownDays, Perhaps)),
    ("features", Name::Features),
    ("subject", Name::Text(Text::Subject, Always)),
    ("out_trade_no", Name::Text(Text::OutTradeNo, Always)),
    ("caller.id", Name::Text(Text::CallerId, Always)),
    ("caller.tenant", Name::Text(Text::CallerTenant, Always)),
    ("hour_utc", Name::Whole(Whole::HourUtc, Always)),
];

/// All names of a call.
const CALL: [(&str, Name); 7] = [
    ("caller.id", Name::Text(Text::CallerId, Always)),
    ("caller.tenant", Name::Text(Text::CallerTenant, Always)),
    ("request.operation", Name::Text(Text::Operation, Always)),
    ("request.stream", Name::Streams),
    ("request.bytes", Name::Whole(Whole::Bytes, Always)),
    ("request.estimated_tokens", Name::Whole(Whole::EstimatedTokens, Always)),
    ("hour_utc", Name::Whole(Whole::HourUtc, Always)),
];

/// What stands before the name of a counter.
const VELOCITY: &str = "velocity";

/// Functions that stand alone.
const FUNCTIONS: [&str; 3] = ["has", "money", "in_list"];
/// Those of a call.
const CALL_FUNCTIONS: [&str; 1] = ["header"];
/// Functions of a text.
pub(super) const METHODS: [&str; 3] = ["startsWith", "endsWith", "contains"];

/// Functions that stand alone, where conditions are about this.
pub(super) fn functions(about: About) -> &'static [&'static str] {
    match about {
        About::Payment => &FUNCTIONS,
        About::Call => &CALL_FUNCTIONS,
    }
}

fn table(about: About) -> &'static [(&'static str, Name)] {
    match about {
        About::Payment => &NAMES,
        About::Call => &CALL,
    }
}

/// Every name with its meaning, whatever it is about.
pub(super) fn everywhere() -> impl Iterator<Item = &'static (&'static str, Name)> {
    NAMES.iter().chain(&CALL)
}

/// Looks a dotted name up.
pub(super) fn find(name: &str, Known { about, counters, .. }: Known<'_>) -> Option<Name> {
    if let Some(counter) = name.strip_prefix(VELOCITY).and_then(|rest| rest.strip_prefix('.')) {
        let counter = counters.iter().find(|known| ***known == *counter)?;
        return Some(Name::Whole(Whole::Counter(Arc::clone(counter)), Always));
    }
    table(about).iter().find(|(known, _)| *known == name).map(|(_, meaning)| meaning.clone())
}

/// All names, for a suggestion.
pub(super) fn all(Known { about, counters, .. }: Known<'_>) -> Vec<String> {
    let counters = counters.iter().map(|counter| format!("{VELOCITY}.{counter}"));
    table(about).iter().map(|(name, _)| (*name).to_owned()).chain(counters).collect()
}

/// The names that go on from this one: the fields of a section.
pub(super) fn below(section: &str, known: Known<'_>) -> Vec<String> {
    let begins = |name: &String| name.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
    all(known).into_iter().filter(begins).collect()
}

/// True for words that are the language's or this file's, and so nobody's secret.
pub(super) fn is_public(word: &str) -> bool {
    let language = ["true", "false", "in", VELOCITY];
    let part_of_name = |(name, _): &(&str, Name)| name.split('.').any(|part| part == word);
    let functions = [&FUNCTIONS[..], &CALL_FUNCTIONS, &METHODS].concat();
    language.contains(&word) || functions.contains(&word) || everywhere().any(part_of_name)
}
