//! Errors as providers report them: in the body of an error status, and dressed as an answer.

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use super::lenient::{Lenient, Loose, Shape};
use crate::wire::json_read;

/// Characters of a provider's message that are kept.
const MAX_MESSAGE: usize = 512;

/// Characters of a provider's code or type that are kept.
const MAX_WORD: usize = 64;

/// The status that a known code or type stands for. Codes are looked up before types.
///
/// The `_error` types with their statuses are Anthropic's (listed at
/// <https://hivebook.wiki/wiki/anthropic-api-error-handling>, read Nov 2026), the rest are words that OpenAI and servers
/// like it put into `code`.
const STATUS_OF: &[(&str, u16)] = &[
    ("rate_limit_exceeded", 429),
    ("rate_limit_error", 429),
    ("too_many_requests", 429),
    ("insufficient_quota", 429),
    ("billing_hard_limit_reached", 429),
    ("quota_exceeded", 429),
    ("exceeded_current_quota_error", 429),
    ("insufficient_balance", 402),
    ("billing_error", 402),
    ("server_error", 500),
    ("internal_error", 500),
    ("internal_server_error", 500),
    ("api_error", 500),
    ("service_unavailable", 503),
    ("service_unavailable_error", 503),
    ("engine_overloaded", 503),
    ("server_is_overloaded", 503),
    ("overloaded", 529),
    ("overloaded_error", 529),
    ("timeout", 504),
    ("timeout_error", 504),
    ("context_length_exceeded", 400),
    ("exceed_context_size_error", 400),
    ("invalid_prompt", 400),
    ("content_policy_violation", 400),
    ("content_filter", 400),
    ("invalid_request_error", 400),
    ("invalid_api_key", 401),
    // What a LiteLLM without a database says of a key it does not know, with 400 (seen with 1.106.2, Nov 2026).
    ("no_db_connection", 401),
    ("authentication_error", 401),
    ("permission_error", 403),
    ("permission_denied", 403),
    ("model_not_found", 404),
    ("not_found_error", 404),
    ("request_too_large", 413),
];

/// Codes and types that say money or a long allowance is used up, so that a retry soon is no use.
const QUOTA: &[&str] = &[
    "insufficient_quota",
    "billing_hard_limit_reached",
    "quota_exceeded",
    "insufficient_balance",
    "billing_error",
    // Moonshot (<https://github.com/MoonshotAI/kimi-code/pull/1857>, read Nov 2026).
    "exceeded_current_quota_error",
];

/// Codes and types that say our own credential is at fault, whatever the status.
const CREDENTIALS: &[&str] = &["invalid_api_key", "authentication_error", "no_db_connection"];

/// The code clients compare when a prompt is too long.
const TOO_LONG: &str = "context_length_exceeded";

/// What messages say of it where no code does: LiteLLM's class, OpenAI's own words which vLLM and others repeat
/// (<https://github.com/vllm-project/vllm/issues/20409>), vLLM's since 0.16
/// (<https://github.com/harbor-framework/harbor/pull/996>), Anthropic's
/// (<https://docs.anthropic.com/en/api/errors>; all read Nov 2026).
const TOO_LONG_WORDS: &[&str] = &[
    "ContextWindowExceededError",
    "maximum context length is",
    "the model's context length is only",
    "prompt is too long:",
];

/// The code clients know for refused content.
const POLICY_VIOLATION: &str = "content_policy_violation";

/// Codes and types for refused content: OpenAI's, Azure's, DashScope's.
const CONTENT_POLICY: &[&str] = &[POLICY_VIOLATION, "content_filter", "data_inspection_failed"];

/// What messages say of it where no code does: LiteLLM's class, DeepSeek
/// (<https://github.com/deepseek-ai/DeepSeek-V2/issues/30>), OpenRouter, which answers 403
/// (<https://openrouter.ai/docs/errors>; both read Nov 2026).
const CONTENT_POLICY_WORDS: &[&str] =
    &["ContentPolicyViolationError", "Content Exists Risk", "requires moderation on", "input was flagged"];

/// What a provider said about a failure. The message may repeat the prompt, so debug output leaves it out.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct EmbeddedError {
    /// The status it reports or that its code or type stands for.
    pub status: Option<u16>,
    /// Its code, numbers included, at most 64 characters.
    pub code: Option<String>,
    /// Its type, at most 64 characters.
    pub kind: Option<String>,
    /// Which part of the request it is about, if it names one: at most 64 characters of a plain path.
    pub param: Option<String>,
    /// Its message, at most 512 characters; empty if it gave none.
    pub message: String,
}

impl EmbeddedError {
    /// True if money or a long allowance is used up, rather than a rate exceeded.
    pub fn is_quota(&self) -> bool {
        self.status == Some(402) || self.says(QUOTA)
    }

    /// True if it is about the key it was asked with.
    pub fn is_about_credentials(&self) -> bool {
        self.says(CREDENTIALS)
    }

    /// The code a caller of this dialect understands. Servers that put the status or nothing there are helped out where
    /// programs depend on it: llama.cpp says by the type that a prompt is too long, LiteLLM by the message.
    pub fn code_for_callers(&self) -> Option<&str> {
        if self.is_too_long() {
            return Some(TOO_LONG);
        }
        if self.is_content_policy() && !self.says(CONTENT_POLICY) {
            return Some(POLICY_VIOLATION);
        }
        self.code.as_deref().filter(|code| !code.bytes().all(|byte| byte.is_ascii_digit()))
    }

    /// True if the prompt has more tokens than the model takes.
    pub fn is_too_long(&self) -> bool {
        self.says(&["exceed_context_size_error", TOO_LONG]) || self.words(TOO_LONG_WORDS)
    }

    /// True if the content is what was refused: a policy's or a filter's word, not the model's.
    pub fn is_content_policy(&self) -> bool {
        self.says(CONTENT_POLICY) || self.words(CONTENT_POLICY_WORDS)
    }

    fn words(&self, known: &[&str]) -> bool {
        known.iter().any(|words| self.message.contains(words))
    }

    fn says(&self, words: &[&str]) -> bool {
        let known = |word: &Option<String>| word.as_deref().is_some_and(|word| words.contains(&word));
        known(&self.code) || known(&self.kind)
    }
}

impl fmt::Debug for EmbeddedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedError").field("status", &self.status).field("code", &self.code).finish_non_exhaustive()
    }
}

/// Reads the body of an error status; `None` if it is no JSON or holds nothing we know as an error.
///
/// Besides OpenAI's form it takes an error that is a string, one inside a list (Google's), vLLM's flat form, and the
/// `detail` or `message` of web frameworks.
pub fn parse_error(body: &[u8]) -> Option<EmbeddedError> {
    match json_read::from_slice::<Lenient<'_, ErrorBodies<'_>>>(body).ok()? {
        Lenient::Map(parts) | Lenient::List(parts) => {
            if let Some(error) = embedded(parts.error) {
                return Some(error);
            }
            let flat = parts.flat.message.is_some().then_some(parts.flat);
            flat.map(ErrorParts::into_error)
        }
        _ => None,
    }
}

/// The error in a field of that name; `None` if it is null, false or empty, which several providers send with success.
pub(in crate::wire) fn embedded(field: Lenient<'_, ErrorParts<'_>>) -> Option<EmbeddedError> {
    match field {
        Lenient::Null | Lenient::Bool(false) | Lenient::Unsigned(0) => None,
        Lenient::Text(text) if text.is_empty() => None,
        Lenient::Text(text) => Some(EmbeddedError { message: bounded(&text, MAX_MESSAGE), ..EmbeddedError::default() }),
        Lenient::Map(parts) | Lenient::List(parts) => parts.filled.then(|| parts.into_error()),
        Lenient::Bool(true) | Lenient::Unsigned(_) | Lenient::Number => Some(EmbeddedError::default()),
    }
}

/// The members of an error object.
#[derive(Default)]
pub(in crate::wire) struct ErrorParts<'de> {
    filled: bool,
    message: Option<Cow<'de, str>>,
    kind: Option<Cow<'de, str>>,
    code: Loose<'de>,
    status: Loose<'de>,
    param: Option<String>,
}

impl<'de> Shape<'de> for ErrorParts<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        self.filled = true;
        match key.as_ref() {
            "message" => self.message = map.next_value::<Loose<'_>>()?.text(),
            "type" => self.kind = map.next_value::<Loose<'_>>()?.text(),
            "code" => self.code = map.next_value()?,
            "status" => self.status = map.next_value()?,
            "param" => self.param = map.next_value::<Loose<'_>>()?.text().as_deref().and_then(plain_path),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }

    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let more = list.next_element::<IgnoredAny>()?.is_some();
        self.filled |= more;
        Ok(more)
    }
}

impl<'de> ErrorParts<'de> {
    /// Takes a code that was read elsewhere.
    pub(in crate::wire) fn set_code(&mut self, code: Loose<'de>) {
        self.filled = true;
        self.code = code;
    }

    pub(in crate::wire) fn into_error(self) -> EmbeddedError {
        let kind = self.kind.map(|kind| bounded(&kind, MAX_WORD));
        let code = match &self.code {
            Lenient::Text(code) if !code.is_empty() => Some(bounded(code, MAX_WORD)),
            Lenient::Unsigned(code) => Some(code.to_string()),
            _ => None,
        };
        let number = self.code.unsigned().or_else(|| code.as_deref()?.parse().ok()).or_else(|| self.status.unsigned());
        let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| (100..600).contains(number));
        let word = code.as_deref().and_then(status_of).or_else(|| kind.as_deref().and_then(status_of));
        let message = bounded(&self.message.unwrap_or_default(), MAX_MESSAGE);
        EmbeddedError { status: number.or(word), code, kind, param: self.param, message }
    }
}

fn status_of(word: &str) -> Option<u16> {
    STATUS_OF.iter().find(|(known, _)| *known == word).map(|(_, status)| *status)
}

/// A parameter's name or path, such as `messages[0].content`. `None` as text is what Python makes of nothing.
fn plain_path(text: &str) -> Option<String> {
    let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"_.-[]".contains(&letter);
    let path = (1..=MAX_WORD).contains(&text.len()) && text.bytes().all(plain) && text != "None";
    path.then(|| text.to_owned())
}

fn bounded(text: &str, max: usize) -> String {
    text.chars().take(max).collect()
}

/// The body of an error status, or a list of such.
#[derive(Default)]
struct ErrorBodies<'de> {
    error: Lenient<'de, ErrorParts<'de>>,
    flat: ErrorParts<'de>,
}

impl<'de> Shape<'de> for ErrorBodies<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "error" => self.error = map.next_value()?,
            "detail" => match map.next_value::<Lenient<'_, Details<'_>>>()? {
                Lenient::Text(text) => self.flat.message = Some(text),
                Lenient::List(Details { message, place }) => {
                    self.flat.message = message;
                    self.flat.param = plain_path(&place);
                }
                _ => {}
            },
            _ => return self.flat.field(key, map),
        }
        Ok(())
    }

    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(element) = list.next_element::<Lenient<'_, ErrorObject<'_>>>()? else { return Ok(false) };
        if let Lenient::Map(ErrorObject(error)) = element
            && matches!(self.error, Lenient::Null)
        {
            self.error = error;
        }
        Ok(true)
    }
}

/// What FastAPI says of a body that does not fit (<https://fastapi.tiangolo.com/tutorial/handling-errors/>, read Nov 2026):
/// a list, of which the first is told.
#[derive(Default)]
struct Details<'de> {
    message: Option<Cow<'de, str>>,
    place: String,
}

impl<'de> Shape<'de> for Details<'de> {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(element) = list.next_element::<Lenient<'_, Detail<'_>>>()? else { return Ok(false) };
        if let Lenient::Map(detail) = element
            && self.message.is_none()
        {
            self.message = detail.message;
            self.place = detail.place.0;
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Detail<'de> {
    message: Option<Cow<'de, str>>,
    place: Place,
}

impl<'de> Shape<'de> for Detail<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "msg" => self.message = map.next_value::<Loose<'_>>()?.text(),
            "loc" => {
                if let Lenient::List(place) = map.next_value()? {
                    self.place = place;
                }
            }
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// The steps to a member, the body itself left out, joined by dots.
#[derive(Default)]
struct Place(String);

impl<'de> Shape<'de> for Place {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let step = match list.next_element::<Loose<'_>>()? {
            None => return Ok(false),
            Some(Lenient::Text(step)) if step != "body" => step,
            Some(Lenient::Unsigned(step)) => Cow::Owned(step.to_string()),
            Some(_) => return Ok(true),
        };
        if self.0.len() <= MAX_WORD {
            self.0.extend((!self.0.is_empty()).then_some('.'));
            self.0.push_str(&step);
        }
        Ok(true)
    }
}

/// One element of a list of errors.
#[derive(Default)]
struct ErrorObject<'de>(Lenient<'de, ErrorParts<'de>>);

impl<'de> Shape<'de> for ErrorObject<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        if key == "error" {
            self.0 = map.next_value()?;
            return Ok(());
        }
        map.next_value::<IgnoredAny>().map(drop)
    }
}
