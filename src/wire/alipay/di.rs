//! The bodies of the `di-hmac` dialect: what is asked of the provider and what it says.
//!
//! A request is written exactly once; the bytes returned here are the bytes that are signed and sent. Answers are read
//! so that nothing odd can look like consent: a score that is no plain number in [0, 1] is missing, a recommendation
//! that is no known word stays an unknown word. Signatures are `sign::di`'s business.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::domain::decision::Score;
use crate::domain::secret::Secret;
use crate::wire::object::{Object, ObjectError, text};
use crate::wire::risk::Assessment;

#[cfg(test)]
mod tests;

/// Characters of a recommendation that are kept.
const LONGEST_RECOMMENDATION: usize = 64;
/// Characters of an explanation that are kept.
const LONGEST_EXPLANATION: usize = 1_024;
/// Characters of an error code.
const LONGEST_CODE: usize = 64;
/// Bytes of an access token: it must fit into a header.
const LONGEST_TOKEN: usize = 4_096;
/// Seconds a token is believed to live at most: 30 days. Larger numbers must not reach clock arithmetic.
const LONGEST_LIFE_S: u64 = 30 * 86_400;

/// The media type of [`token_request`].
pub const TOKEN_MEDIA_TYPE: &str = "application/x-www-form-urlencoded";

/// The body that asks for an access token; the client is authenticated by the request's signature.
pub fn token_request() -> Bytes {
    Bytes::from_static(b"grant_type=client_credentials&scope=risk:score%20risk:report")
}

#[derive(Serialize)]
struct Request<'a> {
    out_trade_no: &'a str,
    total_amount: String,
    currency: &'static str,
    subject: &'a str,
    merchant_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    merchant_category: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    merchant_country: Option<&'a str>,
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    country: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_email: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_phone: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_registered_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instrument_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instrument_fingerprint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    card_bin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    card_last4: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_ip: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_known_since: Option<&'a str>,
    features: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
}

/// Writes the body of a scoring call. The same assessment always gives the same bytes.
pub fn encode_assess(assessment: &Assessment) -> Bytes {
    let request = request(assessment);
    #[expect(clippy::expect_used, reason = "texts without maps always serialise; an empty request must not be signed")]
    let body = serde_json::to_vec(&request).expect("a request always serialises");
    Bytes::from(body)
}

fn request(assessment: &Assessment) -> Request<'_> {
    let Assessment { merchant, user, instrument, device, .. } = assessment;
    Request {
        out_trade_no: &assessment.out_trade_no,
        total_amount: total_amount(assessment),
        currency: assessment.currency().code(),
        subject: &assessment.subject,
        merchant_id: &merchant.id,
        merchant_category: merchant.category.as_deref(),
        merchant_country: merchant.country.as_deref(),
        user_id: &user.id,
        country: user.country.as_deref(),
        user_email: user.email.as_deref(),
        user_phone: user.phone.as_deref(),
        user_registered_at: user.registered_at.as_ref().map(|moment| moment.text.as_str()),
        instrument_type: instrument.kind.as_deref(),
        instrument_fingerprint: instrument.fingerprint.as_deref(),
        card_bin: instrument.bin.as_deref(),
        card_last4: instrument.last4.as_deref(),
        device_id: device.id.as_deref(),
        client_ip: device.ip.as_deref(),
        device_known_since: device.known_since.as_ref().map(|moment| moment.text.as_str()),
        features: &assessment.features,
        // The decoder let only valid JSON in, so nothing is lost here.
        metadata: assessment.metadata.as_deref().and_then(|raw| serde_json::from_str(raw).ok()),
    }
}

/// All the currency's decimals, whatever the caller spelled.
fn total_amount(assessment: &Assessment) -> String {
    let mut written = assessment.amount.to_string();
    // An amount prints as number, space, currency.
    written.truncate(written.find(' ').unwrap_or(written.len()));
    written
}

/// Why a provider's body could not be used. No variant carries what the body said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not one JSON object.
    #[error("the provider's body {0}")]
    Body(#[from] ObjectError),
    /// A key that decides something came twice.
    #[error("the provider's body has {0} more than once")]
    Repeated(&'static str),
    /// A required field is missing or not what it must be.
    #[error("the provider's body has no usable {0}")]
    Field(&'static str),
}

/// What the provider said about one payment attempt.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// The score; `None` if it is absent or unusable.
    pub score: Option<Score>,
    /// True if there was a score, but no plain number in [0, 1] (C8).
    pub score_was_invalid: bool,
    /// The provider's own word, at most 64 characters. What came instead of a word is kept as its JSON text, which is
    /// no known word either, so that it can never be mistaken for silence (C10).
    pub recommendation: Option<String>,
    /// For staff, at most 1,024 characters.
    pub explanation: Option<String>,
}

/// Reads the answer to a scoring call.
///
/// # Errors
/// [`DecodeError::Body`] if it is no object, [`DecodeError::Repeated`] if score or recommendation came twice.
pub fn decode_answer(body: &[u8]) -> Result<Answer, DecodeError> {
    let object = read(body, &["risk_score", "recommendation"])?;
    let raw_score = object.get("risk_score");
    let score = raw_score.and_then(|raw| Score::parse(raw.get()));
    Ok(Answer {
        score,
        score_was_invalid: raw_score.is_some() && score.is_none(),
        recommendation: object.get("recommendation").map(recommendation),
        explanation: object.get("explanation").and_then(text).map(|text| cut(&text, LONGEST_EXPLANATION)),
    })
}

fn recommendation(raw: &RawValue) -> String {
    text(raw).map_or_else(|| cut(raw.get(), LONGEST_RECOMMENDATION), |word| cut(&word, LONGEST_RECOMMENDATION))
}

/// An access token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// What goes behind `Bearer`.
    pub access_token: Secret,
    /// For how long, in seconds, counted from the answer. At least 1 and at most 30 days, whatever the provider says.
    pub expires_in_s: u64,
}

/// Reads the answer to [`token_request`].
///
/// # Errors
/// [`DecodeError`] if it is no object, or the token would not fit into a header, is no bearer token or has no life.
pub fn decode_token(body: &[u8]) -> Result<Token, DecodeError> {
    let object = read(body, &["access_token", "token_type", "expires_in"])?;
    let is_bearer = object.get("token_type").and_then(text).is_some_and(|kind| kind.eq_ignore_ascii_case("bearer"));
    if !is_bearer {
        return Err(DecodeError::Field("token_type"));
    }
    let access_token = object
        .get("access_token")
        .and_then(text)
        .map(|token| Secret::new(token.into_bytes()))
        .filter(|token| is_token(token.expose()))
        .ok_or(DecodeError::Field("access_token"))?;
    let expires_in_s = object
        .get("expires_in")
        .and_then(|raw| raw.get().parse().ok())
        .filter(|&seconds: &u64| seconds > 0)
        .map(|seconds| seconds.min(LONGEST_LIFE_S))
        .ok_or(DecodeError::Field("expires_in"))?;
    Ok(Token { access_token, expires_in_s })
}

/// The provider's code of an error body: `error` as OAuth has it, or `code`. `None` if there is none we may log.
pub fn decode_error(body: &[u8]) -> Option<String> {
    let object = Object::read(body).ok()?;
    let code = object.get("error").or(object.get("code")).and_then(text)?;
    let plain = code.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    (plain && (1..=LONGEST_CODE).contains(&code.len())).then_some(code)
}

fn read<'a>(body: &'a [u8], once: &[&'static str]) -> Result<Object<'a>, DecodeError> {
    let object = Object::read(body)?;
    let repeated = object.repeated();
    match once.iter().find(|key| repeated.contains(*key)) {
        Some(key) => Err(DecodeError::Repeated(key)),
        None => Ok(object),
    }
}

fn is_token(bytes: &[u8]) -> bool {
    (1..=LONGEST_TOKEN).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}
