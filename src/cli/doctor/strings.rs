//! The exact text that is signed, of a request or an answer given as JSON; and, against what the other side signed, the
//! first byte that differs. The secret is never printed.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{complain, say};
use super::{DoctorArgs, origin};
use crate::config::table::{Auth, RoutingTable};
use crate::config::{SecretPolicy, is_placeholder};
use crate::domain::secret::Secret;
use crate::sign::di::{self, RequestParts, ResponseParts};
use crate::sign::keyring::Keyring;

/// Largest input and largest text of the other side.
const LONGEST: u64 = 4 * 1024 * 1024;
/// Bytes shown on either side of a difference.
const CONTEXT: usize = 24;

/// What each line of the text holds.
const REQUEST_LINES: &[&str] = &[
    "scheme",
    "key id",
    "timestamp",
    "nonce",
    "method",
    "host",
    "path",
    "canonical query",
    "SHA-256 of the token",
    "SHA-256 of the body",
];
const RESPONSE_LINES: &[&str] =
    &["scheme", "key id", "timestamp", "request nonce", "status", "trace id", "model version", "SHA-256 of the body"];

/// A request, or an answer if it has a status. Names are those of the dialect's description.
#[derive(Deserialize)]
struct Message {
    #[serde(alias = "kid")]
    key_id: String,
    #[serde(alias = "ts")]
    timestamp_ms: u64,
    #[serde(default)]
    nonce: String,
    #[serde(default)]
    method: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    query: String,
    #[serde(default)]
    token: String,
    #[serde(default)]
    request_nonce: String,
    status: Option<u16>,
    #[serde(default)]
    trace_id: String,
    #[serde(default)]
    model_version: String,
    #[serde(default)]
    body: String,
    /// For bodies that are no text.
    body_base64: Option<String>,
    /// Without either, the configuration's key of this id signs.
    secret_hex: Option<String>,
    secret: Option<String>,
}

/// Reads, prints, compares. Exit code 1 if the texts differ, 2 if there is nothing to compare.
pub(super) fn run(args: &DoctorArgs) -> ExitCode {
    match answer(args) {
        Ok((told, same)) => {
            say(&told);
            if same { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(complaint) => {
            complain(&complaint);
            ExitCode::from(2)
        }
    }
}

fn answer(args: &DoctorArgs) -> Result<(String, bool), String> {
    let mut input = String::new();
    std::io::stdin().take(LONGEST).read_to_string(&mut input).map_err(|_| "standard input is not text".to_owned())?;
    let message: Message = serde_json::from_str(&input).map_err(|error| {
        // The error's own text could quote a secret.
        format!("standard input, line {} column {}: not a request or an answer; give at least key_id and timestamp_ms, and status for an answer", error.line(), error.column())
    })?;
    let secret = secret(args, &message)?;
    let (ours, tag) = message.signed(secret.as_ref())?;
    let lines = if message.status.is_some() { RESPONSE_LINES } else { REQUEST_LINES };
    let theirs = args.theirs.as_deref().map(read).transpose()?;
    let difference = theirs.as_ref().and_then(|theirs| Difference::between(ours.as_bytes(), theirs, lines));
    let same = difference.is_none();
    let compared = theirs.is_some();
    let told = if args.json {
        let mut told = json!({ "string_to_sign": ours, "sig": tag });
        if let (true, Some(told)) = (compared, told.as_object_mut()) {
            told.insert("same".to_owned(), same.into());
            told.insert("difference".to_owned(), difference.map_or(Value::Null, |difference| difference.json()));
        }
        told.to_string()
    } else {
        let sig =
            tag.unwrap_or_else(|| "unknown: no secret was given, and the configuration has no such key".to_owned());
        let verdict = match difference {
            Some(difference) => format!("\n\n{}", difference.text()),
            None if compared => {
                "\n\nthe other side signs the same bytes; if its signature differs, so does its secret".to_owned()
            }
            None => String::new(),
        };
        format!("{ours}\n\nsig={sig}{verdict}")
    };
    Ok((told, same))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let problem = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(problem)?.take(LONGEST).read_to_end(&mut bytes).map_err(problem)?;
    Ok(bytes)
}

/// The one that was given, else the configuration's of this id, if it has one.
fn secret(args: &DoctorArgs, message: &Message) -> Result<Option<Secret>, String> {
    if let Some(hex) = &message.secret_hex {
        let bytes = hex.as_bytes().as_chunks::<2>();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let decoded: Option<Vec<u8>> = bytes.0.iter().map(byte).collect();
        let decoded = decoded.filter(|_| bytes.1.is_empty()).ok_or("secret_hex is not hexadecimal")?;
        return Ok(Some(Secret::new(decoded)));
    }
    if let Some(text) = &message.secret {
        return Ok(Some(Secret::new(text.clone().into_bytes())));
    }
    Ok(origin(args, SecretPolicy::AllowMissing).load().ok().and_then(|table| configured(&table, &message.key_id)))
}

fn configured(table: &RoutingTable, id: &str) -> Option<Secret> {
    let providers = table.providers().values().filter_map(|provider| match &provider.auth {
        Auth::DiHmac { keys } => Some(keys),
        Auth::None | Auth::Bearer { .. } | Auth::Header { .. } => None,
    });
    let callers = table.callers().iter().filter_map(|caller| caller.signature.as_deref());
    let named = providers.chain(callers).flat_map(Keyring::keys).find(|key| key.id == id);
    named.map(|key| key.secret.clone()).filter(|secret| !is_placeholder(secret))
}

impl Message {
    /// The text, and its tag where there is a secret.
    fn signed(&self, secret: Option<&Secret>) -> Result<(String, Option<String>), String> {
        let body = match &self.body_base64 {
            Some(text) => STANDARD.decode(text).map_err(|_| "body_base64 is not base64".to_owned())?,
            None => self.body.clone().into_bytes(),
        };
        let problem = |error: di::SignError| error.to_string();
        if let Some(status) = self.status {
            let parts = ResponseParts {
                key_id: &self.key_id,
                timestamp_ms: self.timestamp_ms,
                request_nonce: &self.request_nonce,
                status,
                trace_id: &self.trace_id,
                model_version: &self.model_version,
                body: &body,
            };
            let header =
                secret.map(|secret| di::sign_response(secret.expose(), &parts)).transpose().map_err(problem)?;
            let tag = header.and_then(|header| Some(header.split_once("sig=")?.1.to_owned()));
            return Ok((di::response_string(&parts), tag));
        }
        let parts = RequestParts {
            key_id: &self.key_id,
            timestamp_ms: self.timestamp_ms,
            nonce: &self.nonce,
            method: &self.method,
            host: &self.host,
            path: &self.path,
            query: &self.query,
            token: self.token.as_bytes(),
            body: &body,
        };
        let signed = secret.map(|secret| di::sign_request(secret.expose(), &parts)).transpose().map_err(problem)?;
        Ok((di::request_string(&parts), signed.map(|signed| signed.tag().to_owned())))
    }
}

/// Where two texts part.
#[derive(PartialEq, Eq, Debug)]
struct Difference {
    /// The first byte that differs, from 0.
    at: usize,
    /// From 1.
    line: usize,
    holds: &'static str,
    ours: String,
    theirs: String,
    hint: Option<&'static str>,
}

impl Difference {
    fn between(ours: &[u8], theirs: &[u8], lines: &[&'static str]) -> Option<Self> {
        if ours == theirs {
            return None;
        }
        let at = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
        let line = ours.iter().take(at).filter(|&&byte| byte == b'\n').count();
        let holds = lines.get(line).copied().unwrap_or("end");
        let rest = |text: &[u8]| text.get(at..).unwrap_or_default().to_vec();
        let hint = match (rest(ours).as_slice(), rest(theirs).as_slice()) {
            ([], [b'\n'] | [b'\r', b'\n']) => Some("theirs ends with a line break; the text has none at its end"),
            (_, [b'\r', ..]) => Some("theirs has carriage returns; lines are parted by a line feed alone"),
            _ if holds == "SHA-256 of the body" => {
                Some("the bodies differ: the very bytes that are sent are signed, white space included")
            }
            _ if holds == "SHA-256 of the token" => {
                Some("the tokens differ: it is the token alone, without Bearer, and nothing where there is none")
            }
            _ if holds == "path" => Some("the path is signed as it is sent, its percent-encoding untouched"),
            _ if holds == "host" => Some("the host is in lower case and without the default port"),
            _ => None,
        };
        Some(Self { at, line: line + 1, holds, ours: around(ours, at), theirs: around(theirs, at), hint })
    }

    fn json(&self) -> Value {
        json!({
            "byte": self.at, "line": self.line, "holds": self.holds,
            "ours": self.ours, "theirs": self.theirs, "hint": self.hint,
        })
    }

    fn text(&self) -> String {
        let Self { at, line, holds, ours, theirs, hint } = self;
        let mut text = format!("byte {at} differs, in line {line} ({holds})\n  ours    {ours}\n  theirs  {theirs}");
        if let Some(hint) = hint {
            let _ = write!(text, "\n{hint}");
        }
        text
    }
}

/// What is before and from `at` on, the byte itself marked; escaped, so that white space is seen.
fn around(text: &[u8], at: usize) -> String {
    let part =
        |from: usize, to: usize| text.get(from..to.min(text.len())).unwrap_or_default().escape_ascii().to_string();
    let before = at.saturating_sub(CONTEXT);
    let lead = if before > 0 { "…" } else { "" };
    let tail = if at + 1 + CONTEXT < text.len() { "…" } else { "" };
    let here = if at < text.len() { part(at, at + 1) } else { "end".to_owned() };
    format!("{lead}{}»{here}«{}{tail}", part(before, at), part(at + 1, at + 1 + CONTEXT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_published_vectors_come_out_of_it() {
        let golden: Value = serde_json::from_str(include_str!("../../../tests/golden/sign/di.json")).unwrap();
        let secret = golden["secret_hex"].as_str().unwrap();
        let all = golden["requests"].as_array().unwrap().iter().chain(golden["responses"].as_array().unwrap());
        let mut seen = 0;
        for vector in all {
            let mut given = vector.clone();
            given["secret_hex"] = secret.into();
            let message: Message = serde_json::from_value(given).unwrap();
            let bytes = (0..secret.len()).step_by(2).map(|at| u8::from_str_radix(&secret[at..at + 2], 16).unwrap());
            let (text, tag) = message.signed(Some(&Secret::new(bytes.collect()))).unwrap();
            assert_eq!(text, vector["string_to_sign"].as_str().unwrap(), "{}", vector["name"]);
            assert_eq!(tag.unwrap(), vector["sig"].as_str().unwrap(), "{}", vector["name"]);
            seen += 1;
        }
        assert!(seen > 4);
    }

    #[test]
    fn the_first_difference_is_told_with_its_line_and_context() {
        let told = Difference::between(b"A\nk1\n17", b"A\nk2\n17", REQUEST_LINES).unwrap();
        assert_eq!((told.at, told.line, told.holds), (3, 2, "key id"));
        assert_eq!((told.ours.as_str(), told.theirs.as_str()), ("A\\nk»1«\\n17", "A\\nk»2«\\n17"));
        let told = Difference::between(b"A\nk1", b"A\nk1\n", REQUEST_LINES).unwrap();
        assert!(told.hint.unwrap().contains("line break"));
        assert!(told.ours.ends_with("»end«"));
    }

    proptest! {
        #[test]
        fn texts_are_the_same_up_to_the_difference_and_not_there(a: Vec<u8>, b: Vec<u8>) {
            match Difference::between(&a, &b, RESPONSE_LINES) {
                None => prop_assert_eq!(a, b),
                Some(told) => {
                    prop_assert_eq!(&a[..told.at], &b[..told.at]);
                    prop_assert_ne!(a.get(told.at), b.get(told.at));
                }
            }
        }
    }
}
