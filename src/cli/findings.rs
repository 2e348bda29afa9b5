//! What `weighbridge check` found, for people, for machines and for the pages of a code review.

use std::io::IsTerminal;

use clap::ValueEnum;
use serde_json::{Value as Json, json};

use super::{complain, say};
use crate::config::error::{ConfigError, Style, render_all};
use crate::config::lint::Warning;
use crate::config::table::ConfigVersion;

/// How findings are written.
#[derive(Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people: routes on standard output, findings with a caret on standard error
    #[default]
    Text,
    /// One object on standard output
    Json,
    /// Annotations of GitHub Actions on standard output
    Github,
}

/// Everything that was found; without errors there is a version.
pub struct Findings {
    /// Mistakes.
    pub errors: Vec<ConfigError>,
    /// Looked for only where there are no mistakes.
    pub warnings: Vec<Warning>,
    /// The version of what was checked.
    pub version: Option<ConfigVersion>,
}

impl Findings {
    /// Prints them.
    pub fn tell(&self, format: Format) {
        match format {
            Format::Text => self.tell_people(),
            Format::Json => say(&format!("{:#}", self.json())),
            Format::Github => {
                let errors = self.errors.iter().map(|error| annotation("error", error.code.as_str(), error));
                let warnings =
                    self.warnings.iter().map(|warning| annotation("warning", warning.rule.code(), &warning.found));
                errors.chain(warnings).for_each(|line| say(&line));
            }
        }
    }

    fn tell_people(&self) {
        let style = if std::io::stderr().is_terminal() { Style::Coloured } else { Style::Plain };
        if !self.errors.is_empty() {
            complain(&format!("{}\n\n{}", render_all(&self.errors, style), counted(self.errors.len(), "mistake")));
        }
        if !self.warnings.is_empty() {
            let shown: Vec<_> = self.warnings.iter().map(|warning| warning.rendered(style)).collect();
            complain(&format!("{}\n\n{}", shown.join("\n\n"), counted(self.warnings.len(), "warning")));
        }
    }

    fn json(&self) -> Json {
        let errors: Vec<Json> = self.errors.iter().map(|error| object(error.code.as_str(), error)).collect();
        let warnings: Vec<Json> =
            self.warnings.iter().map(|warning| object(warning.rule.code(), &warning.found)).collect();
        let version = self.version.map(|version| version.to_string());
        json!({ "config_hash": version, "errors": errors, "warnings": warnings })
    }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn object(code: &str, found: &ConfigError) -> Json {
    json!({
        "file": found.file, "line": found.line, "column": found.column, "key": found.key, "code": code,
        "message": found.message, "hint": found.hint,
    })
}

/// One line: `::error file=..,line=..,col=..,title=..::..`, escaped as
/// <https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands> says (read 2026-11-23).
fn annotation(level: &str, code: &str, found: &ConfigError) -> String {
    let text = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |value: &str| text(value).replace(':', "%3A").replace(',', "%2C");
    let key = if found.key.is_empty() { String::new() } else { format!(" ({})", found.key) };
    let hint = found.hint.as_ref().map(|hint| format!("\n{hint}")).unwrap_or_default();
    format!(
        "::{level} file={},line={},col={},title={}::{}",
        property(&found.file),
        found.line,
        found.column,
        property(code),
        text(&format!("{}{key}{hint}", found.message))
    )
}
