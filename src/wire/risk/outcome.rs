//! `POST /v1/risk/assessments/{id}/outcome`: what became of a payment, and the answer that it was noted.

use bytes::Bytes;
use serde::Serialize;

use super::fields::{Complaint, FieldError, Mistakes, Section};
use super::request::{line, moment};
use crate::domain::aftermath::Aftermath;
use crate::domain::clock;
use crate::wire::object::Object;

const TOP: [&str; 4] = ["label", "by", "at", "note"];
const LONGEST_NOTE: usize = 1_024;

/// What somebody reports. Debug output would show what a case handler wrote, so there is none.
#[derive(Clone, PartialEq, Eq)]
pub struct Report {
    /// What became of it.
    pub label: Aftermath,
    /// Who says so.
    pub by: String,
    /// When it happened, milliseconds since 1970, if that was said.
    pub at_ms: Option<i64>,
    /// Anything else, for people.
    pub note: Option<String>,
}

/// Reads a report.
///
/// # Errors
/// Every bad field, never an empty list.
pub fn decode_outcome(body: &[u8]) -> Result<Report, Vec<FieldError>> {
    let mut mistakes = Mistakes::default();
    let read = match Object::read(body) {
        Ok(object) => report(object, &mut mistakes),
        Err(err) => {
            mistakes.add("", Complaint::malformed(err.to_string()));
            None
        }
    };
    match read {
        Some(report) if mistakes.is_empty() => Ok(report),
        _ => Err(mistakes.into_list()),
    }
}

fn report(object: Object<'_>, mistakes: &mut Mistakes) -> Option<Report> {
    let top = Section::root(object, &TOP, mistakes);
    let label = top.required("label", |text| label(&text), mistakes);
    let by = top.required("by", line, mistakes);
    let at = top.optional("at", past, mistakes);
    let note = top.optional("note", note, mistakes);
    Some(Report { label: label?, by: by?, at_ms: at, note })
}

fn label(text: &str) -> Result<Aftermath, Complaint> {
    let known = || Aftermath::ALL.map(Aftermath::as_str).join(", ");
    Aftermath::parse(text).ok_or_else(|| Complaint::malformed(format!("must be one of {}", known())))
}

/// A moment since 1970.
fn past(text: String) -> Result<i64, Complaint> {
    let at = moment(text)?.unix_ms;
    if at < 0 { Err(Complaint::malformed("must not be before 1970")) } else { Ok(at) }
}

fn note(text: String) -> Result<String, Complaint> {
    if text.chars().count() > LONGEST_NOTE {
        Err(Complaint::malformed("must be at most 1024 characters long"))
    } else if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        Err(Complaint::malformed("must not hold control characters"))
    } else {
        Ok(text)
    }
}

#[derive(Serialize)]
struct Noted<'a> {
    id: &'a str,
    label: &'static str,
    by: &'a str,
    at: String,
    recorded: bool,
}

/// Writes the answer: the report is on record.
pub fn encode_noted(id: &str, report: &Report, at_ms: i64) -> Bytes {
    let at = clock::rfc3339(u64::try_from(at_ms).unwrap_or_default());
    let noted = Noted { id, label: report.label.as_str(), by: &report.by, at, recorded: true };
    #[expect(clippy::expect_used, reason = "texts and numbers without maps always serialise")]
    let body = serde_json::to_vec(&noted).expect("an answer always serialises");
    Bytes::from(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_of_the_contract_is_taken_and_no_other() {
        for label in Aftermath::ALL {
            let body = format!(r#"{{"label":"{}","by":"anna"}}"#, label.as_str());
            assert!(decode_outcome(body.as_bytes()).is_ok_and(|report| report.label == label));
        }
        for bad in ["good", "FRAUD", "", "fraud "] {
            let errors = decode_outcome(format!(r#"{{"label":"{bad}","by":"anna"}}"#).as_bytes()).err().unwrap();
            assert_eq!(errors[0].pointer, "/label", "{bad}");
        }
    }

    #[test]
    fn every_bad_field_is_named_and_no_value_is_repeated() {
        let body = br#"{"label":"CANARY","at":"CANARY","note":7,"colour":1}"#;
        let errors = decode_outcome(body).err().unwrap();
        let pointers: Vec<_> = errors.iter().map(|error| error.pointer.as_str()).collect();
        assert_eq!(pointers, ["/colour", "/label", "/by", "/at", "/note"]);
        assert!(errors.iter().all(|error| !error.message.contains("CANARY")));
    }
}
