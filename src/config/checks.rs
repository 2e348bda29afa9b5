//! One function per rule that compares settings. Each gives the culprit, what is wrong and what to do.
//!
//! Rules about a single value are where the value is read ([`raw`](super::raw)); rules about names of providers and models
//! are in [`catalog`](super::catalog).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::address::{self, Reach};
use super::error::Code;
use super::raw::provider::{AuthKind, RawAuth, RawProvider};
use super::raw::risk::RawBands;
use super::read::{is_name, name_rule};
use super::report::{Field, Mistake, Report};
use super::secrets::{Place, from_hex};
use super::table::{BaseUrl, Protocol};
use super::units;
use crate::domain::currency::Currency;
use crate::domain::money::Cost;
use crate::domain::operation::{Operation, TrafficClass};
use crate::domain::policy::Bands;

/// SHA-256 of nothing: the digest of an empty key, which anybody can present.
const DIGEST_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

type Checked<T> = Result<T, Mistake>;

// --- names ---

/// Reports every field whose text occurred before.
pub(super) fn unique<'f>(fields: impl Iterator<Item = &'f Field<String>>, what: &str, report: &Report<'_>) {
    let mut seen: BTreeMap<&str, &Field<String>> = BTreeMap::new();
    for field in fields {
        match seen.get(field.value.as_str()) {
            Some(first) => {
                let mistake = field.mistake(Code::Repeated, format!("{what} occurs twice"));
                report.add(mistake.hint(format!("first at {}", report.place_of(first.at))));
            }
            None => drop(seen.insert(&field.value, field)),
        }
    }
}

/// A list with at least one element.
pub(super) fn not_empty<T>(list: &Field<Vec<T>>, hint: &str) -> Checked<()> {
    if list.value.is_empty() { Err(list.mistake(Code::BadValue, "the list is empty").hint(hint)) } else { Ok(()) }
}

/// A route's public name: applications write it in `model`.
pub(super) fn route_name(name: &Field<String>) -> Checked<()> {
    if name.value == "risk" {
        let mistake = name.mistake(Code::Conflict, "`risk` is the name of the risk route");
        return Err(mistake.hint("choose another name for the model"));
    }
    if is_name(&name.value, "-_./") { Ok(()) } else { Err(name.mistake(Code::BadValue, name_rule("-_./"))) }
}

// --- callers ---

/// `sha256:` and 64 hexadecimal digits, not those of an empty key.
pub(super) fn key_digest(digest: &Field<String>) -> Checked<[u8; 32]> {
    let hint = "make one with: weighbridge digest --new";
    let bytes = digest.value.strip_prefix("sha256:").and_then(|hex| from_hex(hex.as_bytes()));
    let Some(bytes) = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) else {
        return Err(digest.mistake(Code::BadValue, "not sha256: followed by 64 hexadecimal digits").hint(hint));
    };
    if from_hex(DIGEST_OF_NOTHING.as_bytes()).is_some_and(|nothing| nothing == bytes) {
        return Err(digest.mistake(Code::BadValue, "this is the digest of an empty key").hint(hint));
    }
    Ok(bytes)
}

// --- time ---

/// One limit must not be longer than another; the culprit is the one that was written.
pub(super) fn not_longer(short: &Field<Duration>, long: Duration, long_name: &str) -> Checked<()> {
    if short.value <= long {
        return Ok(());
    }
    let mistake = short.mistake(Code::Conflict, format!("longer than {long_name}, which is {}", units::shown(long)));
    Err(mistake.hint(format!("shorten it, or lengthen {long_name}")))
}

/// Connecting must leave time for the answer.
pub(super) fn connect_before_deadline(connect: &Field<Duration>, deadline: Duration) -> Checked<()> {
    if connect.value < deadline {
        return Ok(());
    }
    let mistake = connect
        .mistake(Code::Conflict, format!("connecting may take the whole deadline of {}", units::shown(deadline)));
    Err(mistake.hint("shorten it, so that time is left for an answer"))
}

// --- policy ---

/// Thresholds that do not cross.
pub(super) fn bands(bands: &RawBands) -> Checked<Bands> {
    let reject_from = bands.reject_from.as_ref();
    if let Some(bands) =
        Bands::new(bands.pass_below.value, bands.review_from.value, reject_from.map(|field| field.value))
    {
        return Ok(bands);
    }
    let culprit =
        reject_from.filter(|_| bands.pass_below.value <= bands.review_from.value).unwrap_or(&bands.review_from);
    let mistake = culprit.mistake(Code::Conflict, "the thresholds cross");
    Err(mistake.hint("pass_below must not exceed review_from, nor review_from exceed reject_from"))
}

// --- provider files ---

/// An address without two readings, encrypted unless it is private, private only if allowed.
pub(super) fn base_url(text: &Field<String>, allow_private: Option<&Field<bool>>) -> Checked<BaseUrl> {
    let url = address::parse(&text.value).map_err(|error| text.mistake(Code::BadValue, error.to_string()))?;
    let allowed = allow_private.is_some_and(|flag| flag.value);
    match (address::reach(&url.host), allowed, url.tls) {
        (Reach::Private, false, _) => {
            let mistake = text.mistake(Code::Conflict, "the address leads to this machine or a private network");
            Err(mistake.hint("write allow_private = true if that is meant"))
        }
        (Reach::Public, _, false) => {
            let mistake = text.mistake(Code::Conflict, "plain http to a host that is not private");
            Err(mistake.hint("write https://; plain http is for private addresses only"))
        }
        (Reach::Private, true, _) | (Reach::Public, _, true) => Ok(url),
    }
}

/// The protocol's operations only.
pub(super) fn operations(provider: &RawProvider, protocol: Protocol, report: &Report<'_>) -> Vec<Operation> {
    let Some(operations) = &provider.operations else { return Vec::new() };
    let speaks = |operation: Operation| match protocol {
        Protocol::OpenAi => operation.class() == TrafficClass::Llm,
        Protocol::DiHmac => operation.class() == TrafficClass::Risk,
    };
    let mut known = Vec::new();
    for operation in &operations.value.known {
        if known.contains(&operation.value) {
            report.add(operation.mistake(Code::Repeated, "the operation occurs twice"));
        } else if speaks(operation.value) {
            known.push(operation.value);
        } else {
            let message = format!("the protocol does not have {}", operation.value.label());
            report.add(operation.mistake(Code::Conflict, message));
        }
    }
    known
}

/// Models and token prices belong to `openai`, a price per call to `di-hmac`.
pub(super) fn sections_of_protocol(provider: &RawProvider, protocol: Protocol, report: &Report<'_>) {
    let misplaced = match protocol {
        Protocol::OpenAi => provider.price_at.as_ref().map(|at| (at, "a price per call belongs to risk providers")),
        Protocol::DiHmac => provider.models_at.as_ref().map(|at| (at, "a risk provider has no models")),
    };
    if let Some((at, message)) = misplaced {
        report.add(at.mistake(Code::Conflict, message).hint("remove it; an LLM's price stands in its [[model]]"));
    }
}

/// The authentication that goes with the protocol.
pub(super) fn auth_of_protocol(kind: &Field<AuthKind>, protocol: Protocol) -> Checked<()> {
    match (protocol, kind.value == AuthKind::DiHmac) {
        (Protocol::DiHmac, true) | (Protocol::OpenAi, false) => Ok(()),
        (Protocol::DiHmac, false) => {
            Err(kind.mistake(Code::Conflict, "protocol di-hmac signs its requests").hint("write kind = \"di-hmac\""))
        }
        (Protocol::OpenAi, true) => {
            let mistake = kind.mistake(Code::Conflict, "protocol openai does not sign its requests");
            Err(mistake.hint("write kind = \"bearer\", \"header\" or \"none\""))
        }
    }
}

/// No key that the kind of authentication does not read.
pub(super) fn auth_keys(auth: &RawAuth, kind: AuthKind, report: &Report<'_>) {
    let secret = kind != AuthKind::None;
    let signing = kind == AuthKind::DiHmac;
    if signing && auth.keys.is_some() {
        return listed_alone(auth, report);
    }
    let keys = [
        (auth.secret_env.as_ref().map(|field| field.with(())), secret),
        (auth.secret_file.as_ref().map(|field| field.with(())), secret),
        (auth.name.as_ref().map(|field| field.with(())), kind == AuthKind::Header),
        (auth.key_id.as_ref().map(|field| field.with(())), signing),
        (auth.secret_encoding.as_ref().map(|field| field.with(())), signing),
        (auth.keys.as_ref().map(|keys| keys.at.clone()), signing),
    ];
    for (field, wanted) in keys {
        if let Some(field) = field.filter(|_| !wanted) {
            report.add(field.mistake(Code::Conflict, "this kind of auth does not use it").hint("remove it"));
        }
    }
}

/// A list of keys stands in the place of the one key.
fn listed_alone(auth: &RawAuth, report: &Report<'_>) {
    let single = [
        auth.secret_env.as_ref().map(|field| field.with(())),
        auth.secret_file.as_ref().map(|field| field.with(())),
        auth.key_id.as_ref().map(|field| field.with(())),
        auth.secret_encoding.as_ref().map(|field| field.with(())),
    ];
    for field in single.into_iter().flatten() {
        let mistake = field.mistake(Code::Conflict, "this belongs to a single key, and there is a list");
        report.add(mistake.hint("move it into keys"));
    }
    if let Some(name) = &auth.name {
        report.add(name.mistake(Code::Conflict, "this kind of auth does not use it").hint("remove it"));
    }
}

/// A secret's place: one, and not the secret itself.
pub(super) fn secret_place(
    at: &Field<()>,
    secret_env: Option<&Field<String>>,
    secret_file: Option<&Field<String>>,
) -> Checked<Place> {
    match (secret_env, secret_file) {
        (Some(_), Some(file)) => {
            let mistake = file.mistake(Code::Conflict, "both secret_env and secret_file are given");
            Err(mistake.hint("keep one of them"))
        }
        (Some(name), None) => {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let begins_well = name.value.bytes().next().is_some_and(|b| !b.is_ascii_digit());
            if begins_well && name.value.bytes().all(plain) {
                return Ok(Place::Env(name.clone()));
            }
            let mistake = name.mistake(Code::BadValue, "not the name of an environment variable");
            Err(mistake.hint("write the variable's name, as in \"OPENAI_API_KEY\"; never the secret itself"))
        }
        (None, Some(path)) if path.value.is_empty() => Err(path.mistake(Code::BadValue, "an empty path")),
        (None, Some(path)) => Ok(Place::File(path.clone())),
        (None, None) => {
            let mistake = at.mistake(Code::MissingKey, "missing key `secret_env` or `secret_file`");
            Err(mistake.hint("name the environment variable that holds the secret"))
        }
    }
}

/// The header of `kind = "header"`: lower case, and not one that frames or routes the message.
pub(super) fn auth_header(auth: &RawAuth) -> Checked<String> {
    const RESERVED: [&str; 6] = ["host", "expect", "cookie", "content-length", "content-type", "content-encoding"];
    let Some(name) = &auth.name else {
        let mistake = auth.at.mistake(Code::MissingKey, "missing key `name`");
        return Err(mistake.hint("name the header that carries the secret, as in \"x-api-key\""));
    };
    if !is_header_name(&name.value) {
        return Err(name.mistake(Code::BadValue, "not a header name in lower case"));
    }
    if RESERVED.contains(&name.value.as_str()) || is_hop_by_hop(&name.value) {
        return Err(name.mistake(Code::BadValue, "this header is not for credentials"));
    }
    Ok(name.value.clone())
}

/// A header that is always sent: harmless ones only, since everything else is set by the protocol.
pub(super) fn fixed_header(name: &Field<String>, value: &Field<String>) -> Checked<(String, String)> {
    const PREFIXES: [&str; 4] = ["x-", "anthropic-", "openai-", "helicone-"];
    const NAMES: [&str; 3] = ["http-referer", "referer", "user-agent"];
    const CREDENTIAL_PARTS: [&str; 9] =
        ["key", "token", "secret", "auth", "cookie", "signature", "credential", "password", "session"];
    if !is_header_name(&name.value) {
        return Err(name.mistake(Code::BadValue, "not a header name in lower case"));
    }
    let about_us = name.value.starts_with("x-forwarded") || name.value == "x-real-ip" || name.value == "x-request-id";
    let listed = NAMES.contains(&name.value.as_str()) || PREFIXES.iter().any(|prefix| name.value.starts_with(prefix));
    if CREDENTIAL_PARTS.iter().any(|part| name.value.contains(part)) {
        let mistake = name.mistake(Code::BadValue, "headers must not carry credentials");
        return Err(mistake.hint("use auth with kind = \"header\" and secret_env"));
    }
    if !listed || about_us {
        let mistake = name.mistake(Code::BadValue, "this header cannot be set");
        return Err(mistake.hint("allowed: x-*, anthropic-*, openai-*, helicone-*, http-referer, referer, user-agent"));
    }
    let visible = |b: u8| b.is_ascii_graphic() || b == b' ';
    let text = value.value.as_str();
    if text.is_empty() || text.len() > 256 || text.trim() != text || !text.bytes().all(visible) {
        return Err(value.mistake(Code::BadValue, "a header's value has 1 to 256 visible ASCII characters"));
    }
    let lower = text.to_ascii_lowercase();
    if lower.starts_with("bearer ") || lower.starts_with("basic ") || lower.contains("sk-") {
        let mistake = value.mistake(Code::BadValue, "headers must not carry credentials");
        return Err(mistake.hint("use auth with kind = \"header\" and secret_env"));
    }
    Ok((name.value.clone(), value.value.clone()))
}

/// Prices that are added up must be in one currency.
pub(super) fn same_currency(price: &Field<Cost>, currency: Currency) -> Checked<Cost> {
    if price.value.currency == currency {
        return Ok(price.value);
    }
    let mistake = price.mistake(Code::Conflict, "prices of one provider or model are in different currencies");
    Err(mistake.hint(format!("give this one in {currency}")))
}

/// A feature name of a risk price.
pub(super) fn feature_name(name: &str, price: &Field<Cost>) -> Checked<Arc<str>> {
    if is_name(name, "-_.") { Ok(Arc::from(name)) } else { Err(price.mistake(Code::BadValue, name_rule("-_."))) }
}

fn is_header_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

fn is_hop_by_hop(name: &str) -> bool {
    const NAMES: [&str; 6] = ["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];
    NAMES.contains(&name) || name.starts_with("proxy-")
}
