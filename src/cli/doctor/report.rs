//! What was found, a line each: how bad it is, what was looked at, what was seen, and what to do.

use std::process::ExitCode;

use serde::Serialize;

use super::super::say;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Verdict {
    /// Nothing to do.
    Ok,
    /// It works, or may work, but somebody should look.
    Warn,
    /// Something will not work.
    Fail,
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    pub(super) check: String,
    pub(super) said: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<String>,
}

impl Finding {
    pub(super) fn new(check: impl Into<String>, said: impl Into<String>) -> Self {
        // A line is a line, whatever an operating system says.
        let said = said.into().replace(['\n', '\r'], " ");
        Self { verdict: Verdict::Ok, check: check.into(), said, advice: None }
    }

    pub(super) fn ok(self) -> Self {
        self
    }

    pub(super) fn warn(self, advice: &str) -> Self {
        Self { verdict: Verdict::Warn, advice: Some(advice.to_owned()), ..self }
    }

    pub(super) fn fail(self, advice: &str) -> Self {
        Self { verdict: Verdict::Fail, advice: Some(advice.to_owned()), ..self }
    }

    fn line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Ok => "OK",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        let advice = self.advice.as_ref().map(|advice| format!("; {advice}")).unwrap_or_default();
        format!("{verdict:<4}  {:<24} {}{advice}", self.check, self.said)
    }
}

/// All of them.
#[derive(Default, Serialize)]
pub(super) struct Report {
    checks: Vec<Finding>,
}

impl Report {
    pub(super) fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.checks.extend(findings);
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|finding| finding.verdict == verdict).count()
    }

    pub(super) fn print(&self, json: bool) -> ExitCode {
        let (warnings, failures) = (self.count(Verdict::Warn), self.count(Verdict::Fail));
        if json {
            let whole = serde_json::json!({ "ok": failures == 0, "warnings": warnings, "failures": failures, "checks": self.checks });
            say(&whole.to_string());
        } else {
            self.checks.iter().for_each(|finding| say(&finding.line()));
            say(&format!("{} checks, {warnings} warnings, {failures} failures", self.checks.len()));
        }
        if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
