//! Scoring calls: is the request what the dialect asks for, has the attempt been seen, and what is the verdict.

use http::StatusCode;
use http::request::Parts;

use super::admit::{Admitted, Refusal};
use super::reply::Reply;
use super::{Fault, Shared, rules};
use crate::domain::currency::Currency;
use crate::domain::money::Money;
use crate::sign::di;
use crate::sign::hmac::mac;
use crate::wire::object::{Object, text};

/// The caller's key for repeats of one attempt; the attempt's own number without it.
const IDEMPOTENCY_HEADER: &str = "idempotency-key";

struct Asked {
    out_trade_no: String,
    amount: String,
    paid: Money,
    fault: Option<String>,
}

/// The attempt a body names, empty if it names none.
pub(super) fn out_trade_no(body: &[u8]) -> String {
    let object = Object::read(body).ok();
    object.and_then(|object| object.get("out_trade_no").and_then(text)).unwrap_or_default()
}

/// The answer and what goes wrong with it.
pub(super) fn score(shared: &Shared, parts: &Parts, admitted: &Admitted, body: &[u8]) -> (Reply, Option<Fault>) {
    let Some(asked) = read(body) else {
        return (Reply::error(StatusCode::BAD_REQUEST, "invalid_request"), None);
    };
    let Some(key) = idempotency_key(parts, &asked) else {
        return (Reply::error(StatusCode::BAD_REQUEST, "invalid_idempotency_key"), None);
    };
    // A digest only: the key is public and the bodies are not kept.
    let digest = mac(b"idempotency", &[body]);
    let attempt = shared.memory().attempt(&admitted.key_id, &key, digest);
    if let Err(refusal) = attempt {
        shared.memory().refuse(Refusal::Reused);
        return (Reply::refusal(refusal), None);
    }
    let simulated = shared.towns.verdict(&asked.out_trade_no, asked.paid);
    let (verdict, fault) = simulated.map_or_else(|| rules::outcome(&asked.amount), |verdict| (verdict, None));
    match asked.fault.as_deref().map(Fault::parse) {
        Some(Err(_)) => (Reply::error(StatusCode::BAD_REQUEST, "invalid_sandbox_fault"), None),
        Some(Ok(asked_for)) => (Reply::raw_json(verdict), Some(asked_for)),
        None => (Reply::raw_json(verdict), fault),
    }
}

/// `None` unless everything the dialect requires is there in the right form.
fn read(body: &[u8]) -> Option<Asked> {
    let object = Object::read(body).ok().filter(|object| object.repeated().is_empty())?;
    let field = |name: &str, longest: usize| {
        object.get(name).and_then(text).filter(|text| !text.is_empty() && text.chars().count() <= longest)
    };
    let out_trade_no = field("out_trade_no", 64).filter(|text| is_plain(text))?;
    let currency = Currency::parse(&field("currency", 3)?)?;
    let amount = field("total_amount", 32)?;
    let paid = exactly(&amount, currency)?;
    let all_there = ["subject", "merchant_id", "user_id"].into_iter().all(|name| field(name, 256).is_some());
    let features: Vec<String> = serde_json::from_str(object.get("features")?.get()).ok()?;
    if !all_there || features.len() > 32 {
        return None;
    }
    let metadata = object.get("metadata").map(Object::of).transpose().ok()?;
    // What is there but no text names no fault either, and is refused as such.
    let fault = metadata.and_then(|metadata| metadata.get("sandbox_fault")).map(|raw| text(raw).unwrap_or_default());
    Some(Asked { out_trade_no, amount, paid, fault })
}

/// A positive amount with all of its currency's decimals.
fn exactly(amount: &str, currency: Currency) -> Option<Money> {
    let decimals = amount.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    Money::parse(amount, currency).ok().filter(|_| decimals == usize::from(currency.exponent()))
}

fn idempotency_key(parts: &Parts, asked: &Asked) -> Option<String> {
    match di::only_value(&parts.headers, IDEMPOTENCY_HEADER).ok()? {
        Some(key) => (is_plain(key) && (1..=64).contains(&key.len())).then(|| key.to_owned()),
        None => Some(asked.out_trade_no.clone()),
    }
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}
