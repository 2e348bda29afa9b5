//! The fields of `POST /v1/risk/assessments` and the rule of each.

use std::net::IpAddr;

use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::fields::{Complaint, FieldError, Mistakes, Section};
use super::{Assessment, Device, Instrument, Merchant, Moment, User, country};
use crate::domain::currency::Currency;
use crate::domain::money::{Money, MoneyError};
use crate::wire::object::{Object, text};

const TOP: [&str; 10] = [
    "out_trade_no",
    "total_amount",
    "currency",
    "subject",
    "merchant",
    "user",
    "instrument",
    "device",
    "features",
    "metadata",
];
const MERCHANT: [&str; 3] = ["id", "category", "country"];
const USER: [&str; 5] = ["id", "country", "email", "phone", "registered_at"];
const INSTRUMENT: [&str; 4] = ["type", "fingerprint", "bin", "last4"];
const DEVICE: [&str; 3] = ["id", "ip", "known_since"];

const LONGEST_TRADE_NO: usize = 64;
const LONGEST_TEXT: usize = 256;
const LONGEST_FEATURE: usize = 64;
const MOST_FEATURES: usize = 32;
/// Bytes of metadata, as spelled. It travels on to the provider, whose own limit is the reason for this one.
const LONGEST_METADATA: usize = 32 * 1024;

/// Reads a request.
///
/// # Errors
/// Every bad field, never an empty list; see [`super::status_of`] for the status that follows.
pub fn decode(body: &[u8]) -> Result<Assessment, Vec<FieldError>> {
    let mut mistakes = Mistakes::default();
    let read = match Object::read(body) {
        Ok(object) => assessment(object, &mut mistakes),
        Err(err) => {
            mistakes.add("", Complaint::malformed(err.to_string()));
            None
        }
    };
    match read {
        Some(assessment) if mistakes.is_empty() => Ok(assessment),
        _ => Err(mistakes.into_list()),
    }
}

/// Reads every section before giving up on any, so that all mistakes are found.
fn assessment(object: Object<'_>, mistakes: &mut Mistakes) -> Option<Assessment> {
    let top = Section::root(object, &TOP, mistakes);
    let out_trade_no = top.required("out_trade_no", trade_no, mistakes);
    let paid = amount(&top, mistakes);
    let subject = top.required("subject", line, mistakes);
    let merchant = merchant(&top, mistakes);
    let user = user(&top, mistakes);
    let instrument = instrument(&top, mistakes);
    let device = device(&top, mistakes);
    let features = features(&top, mistakes);
    let metadata = metadata(&top, mistakes);
    let (amount, amount_text) = paid?;
    Some(Assessment {
        out_trade_no: out_trade_no?,
        amount,
        amount_text,
        subject: subject?,
        merchant: merchant?,
        user: user?,
        instrument,
        device,
        features,
        metadata,
    })
}

fn amount(top: &Section<'_>, mistakes: &mut Mistakes) -> Option<(Money, String)> {
    let currency = top.required("currency", currency, mistakes);
    top.required("total_amount", |text| money(text, currency), mistakes).flatten()
}

/// Without a currency only what is wrong in every currency is a mistake of the amount.
fn money(text: String, currency: Option<Currency>) -> Result<Option<(Money, String)>, Complaint> {
    let complaint = |err: MoneyError| Complaint::malformed(err.to_string());
    if let Some(currency) = currency {
        return Money::parse(&text, currency).map(|money| Some((money, text))).map_err(complaint);
    }
    let most_decimals = Currency::parse("KWD").map(|currency| Money::parse(&text, currency));
    match most_decimals {
        Some(Err(err @ (MoneyError::Form | MoneyError::Zero))) => Err(complaint(err)),
        _ => Ok(None),
    }
}

fn merchant(top: &Section<'_>, mistakes: &mut Mistakes) -> Option<Merchant> {
    let section = top.section("merchant", &MERCHANT, mistakes);
    let id = section.required("id", line, mistakes);
    let category = section.optional("category", line, mistakes);
    let country = section.optional("country", country, mistakes);
    Some(Merchant { id: id?, category, country })
}

fn user(top: &Section<'_>, mistakes: &mut Mistakes) -> Option<User> {
    let section = top.section("user", &USER, mistakes);
    let id = section.required("id", line, mistakes);
    let country = section.optional("country", country, mistakes);
    let email = section.optional("email", line, mistakes);
    let phone = section.optional("phone", line, mistakes);
    let registered_at = section.optional("registered_at", moment, mistakes);
    Some(User { id: id?, country, email, phone, registered_at })
}

fn instrument(top: &Section<'_>, mistakes: &mut Mistakes) -> Instrument {
    let section = top.section("instrument", &INSTRUMENT, mistakes);
    Instrument {
        kind: section.optional("type", line, mistakes),
        fingerprint: section.optional("fingerprint", line, mistakes),
        bin: section.optional("bin", bin, mistakes),
        last4: section.optional("last4", last4, mistakes),
    }
}

fn device(top: &Section<'_>, mistakes: &mut Mistakes) -> Device {
    let section = top.section("device", &DEVICE, mistakes);
    Device {
        id: section.optional("id", line, mistakes),
        ip: section.optional("ip", address, mistakes),
        known_since: section.optional("known_since", moment, mistakes),
    }
}

fn features(top: &Section<'_>, mistakes: &mut Mistakes) -> Vec<String> {
    let Some(raw) = top.raw("features") else { return Vec::new() };
    let pointer = top.pointer_to("features");
    let Ok(entries) = serde_json::from_str::<Vec<&RawValue>>(raw.get()) else {
        mistakes.add(pointer, Complaint::malformed("must be an array of strings"));
        return Vec::new();
    };
    if entries.len() > MOST_FEATURES {
        mistakes.add(pointer, Complaint::malformed("must have at most 32 entries"));
        return Vec::new();
    }
    let mut features: Vec<String> = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let read = text(entry).ok_or(Complaint::malformed("must be a string")).and_then(feature);
        match read {
            Ok(feature) if features.contains(&feature) => {
                mistakes.add(format!("{pointer}/{index}"), Complaint::malformed("is the same as an earlier one"));
            }
            Ok(feature) => features.push(feature),
            Err(complaint) => mistakes.add(format!("{pointer}/{index}"), complaint),
        }
    }
    features
}

/// Metadata stays as it was spelled, but only if every reader after us reads the same out of it.
fn metadata(top: &Section<'_>, mistakes: &mut Mistakes) -> Option<String> {
    let raw = top.raw("metadata")?;
    let complaint = match Object::of(raw) {
        Err(err) => err.to_string(),
        Ok(_) if raw.get().len() > LONGEST_METADATA => "must be at most 32 KiB long".to_owned(),
        Ok(object) if !object.repeated().is_empty() => "must have each key only once".to_owned(),
        Ok(_) if serde_json::from_str::<serde_json::Value>(raw.get()).is_err() => {
            "must hold only numbers and texts that every JSON reader accepts".to_owned()
        }
        Ok(_) => return Some(raw.get().to_owned()),
    };
    mistakes.add(top.pointer_to("metadata"), Complaint::malformed(complaint));
    None
}

/// A line of text that may go into a header, a log or a CSV cell: 1 to 256 characters, none of them a control character.
pub(super) fn line(text: String) -> Result<String, Complaint> {
    if text.is_empty() {
        Err(Complaint::malformed("must not be empty"))
    } else if text.chars().count() > LONGEST_TEXT {
        Err(Complaint::malformed("must be at most 256 characters long"))
    } else if text.chars().any(char::is_control) {
        Err(Complaint::malformed("must not hold control characters"))
    } else {
        Ok(text)
    }
}

fn trade_no(text: String) -> Result<String, Complaint> {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    accept(
        text,
        |text| plain && (1..=LONGEST_TRADE_NO).contains(&text.len()),
        || Complaint::malformed("must be 1 to 64 characters of 0-9 A-Z a-z _ -"),
    )
}

fn feature(text: String) -> Result<String, Complaint> {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    accept(
        text,
        |text| plain && (1..=LONGEST_FEATURE).contains(&text.len()),
        || Complaint::malformed("must be 1 to 64 characters of 0-9 A-Z a-z _ - ."),
    )
}

fn bin(text: String) -> Result<String, Complaint> {
    accept(
        text,
        |text| is_digits(text) && (6..=8).contains(&text.len()),
        || Complaint::malformed("must be the first 6 to 8 digits of the card number"),
    )
}

fn last4(text: String) -> Result<String, Complaint> {
    accept(text, |text| is_digits(text) && text.len() == 4, || Complaint::malformed("must be 4 digits"))
}

fn address(text: String) -> Result<String, Complaint> {
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    accept(text, is_address, || Complaint::malformed("must be an IPv4 or IPv6 address"))
}

fn currency(text: String) -> Result<Currency, Complaint> {
    let text = accept(
        text,
        |text| is_upper_case(text, 3),
        || Complaint::malformed("must be three upper-case letters, as in \"CNY\""),
    )?;
    Currency::parse(&text).ok_or(Complaint::unknown("must be an active ISO 4217 currency"))
}

fn country(text: String) -> Result<String, Complaint> {
    let text = accept(
        text,
        |text| is_upper_case(text, 2),
        || Complaint::malformed("must be two upper-case letters, as in \"CN\""),
    )?;
    accept(text, country::is_known, || Complaint::unknown("must be an ISO 3166-1 country"))
}

pub(super) fn moment(text: String) -> Result<Moment, Complaint> {
    let read = OffsetDateTime::parse(&text, &Rfc3339).ok();
    let unix_ms = read.and_then(|moment| i64::try_from(moment.unix_timestamp_nanos().div_euclid(1_000_000)).ok());
    let complaint = Complaint::malformed("must be a moment as in RFC 3339, \"2025-01-31T00:00:00Z\"");
    unix_ms.map(|unix_ms| Moment { text, unix_ms }).ok_or(complaint)
}

fn accept(
    text: String,
    fits: impl FnOnce(&str) -> bool,
    complaint: impl FnOnce() -> Complaint,
) -> Result<String, Complaint> {
    if fits(&text) { Ok(text) } else { Err(complaint()) }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

fn is_upper_case(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_uppercase())
}
