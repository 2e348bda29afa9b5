//! A mistake in a configuration file, for people, for logs and for the status page.
//!
//! It never holds a value or a line of the file: `mask.rs` says what may be shown, and why.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::mask::MaskedLine;

/// The kind of mistake; stable, for scripts and for the status page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The file cannot be read.
    Unreadable,
    /// Not TOML.
    Syntax,
    /// A key nobody reads.
    UnknownKey,
    /// Planned, but not in this version.
    Unsupported,
    /// A key that must be there.
    MissingKey,
    /// A string where a number belongs, and the like.
    WrongType,
    /// Right type, unusable content.
    BadValue,
    /// Names something that does not exist.
    UnknownName,
    /// Said twice.
    Repeated,
    /// Two settings that cannot both hold.
    Conflict,
    /// A credential that is absent, empty or too weak.
    Secret,
    /// A `[[test]]` that does not come to what it expects.
    FailedTest,
    /// No mistake: more requests failed with it than before.
    RolledBack,
}

impl Code {
    /// The code as shown: `unknown-key`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Syntax => "syntax",
            Self::UnknownKey => "unknown-key",
            Self::Unsupported => "unsupported",
            Self::MissingKey => "missing-key",
            Self::WrongType => "wrong-type",
            Self::BadValue => "bad-value",
            Self::UnknownName => "unknown-name",
            Self::Repeated => "repeated",
            Self::Conflict => "conflict",
            Self::Secret => "secret",
            Self::FailedTest => "failed-test",
            Self::RolledBack => "rolled-back",
        }
    }
}

/// One mistake. `Display` is the one-line form for logs; [`ConfigError::rendered`] the one for terminals.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct ConfigError {
    /// The file as it was named on the command line.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The culprit in the file, in bytes.
    #[serde(skip)]
    pub span: Range<usize>,
    /// Dotted path of the key, `caller.limits.in_flight`; empty if the mistake belongs to no key.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The kind of mistake.
    pub code: Code,
    #[serde(skip)]
    pub(super) shown: Option<MaskedLine>,
}

/// How to render for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// For pipes and logs.
    Plain,
    /// For terminals.
    Coloured,
}

impl ConfigError {
    /// A mistake about a whole file.
    pub fn of_file(file: String, message: String, hint: Option<String>) -> Self {
        Self {
            file,
            line: 1,
            column: 1,
            span: 0..0,
            key: String::new(),
            message,
            hint,
            code: Code::Unreadable,
            shown: None,
        }
    }

    /// The mistake with its place, a caret under the masked line, and the hint; several lines, no trailing newline.
    pub fn rendered(&self, style: Style) -> String {
        self.rendered_as(Level::ERROR, self.code.as_str(), style)
    }

    /// The same of something that is no mistake, under a code of its own.
    pub(super) fn rendered_as_warning(&self, code: &str, style: Style) -> String {
        self.rendered_as(Level::WARNING, code, style)
    }

    fn rendered_as(&self, level: Level<'static>, code: &str, style: Style) -> String {
        let plain = Renderer::plain().render(&[self.group(level.clone(), code)]);
        let rendered = match style {
            Style::Plain => plain.clone(),
            Style::Coloured => Renderer::styled().render(&[self.group(level, code)]),
        };
        // The place is given apart from the snippet, because the masked line has other columns than the file. The renderer
        // then marks the snippet with an empty `:::`, which says nothing here.
        let both = rendered.lines().zip(plain.lines());
        both.filter(|(_, plain)| plain.trim() != ":::").map(|(line, _)| line).collect::<Vec<_>>().join("\n")
    }

    fn group<'g>(&'g self, level: Level<'g>, code: &'g str) -> Group<'g> {
        let origin = Origin::path(self.file.as_str()).line(self.line).char_column(self.column);
        let mut group = level.primary_title(self.message.as_str()).id(code).element(origin);
        if let Some(shown) = &self.shown {
            let label = (!self.key.is_empty()).then_some(self.key.as_str());
            let caret = AnnotationKind::Primary.span(shown.caret.clone()).label(label);
            group = group.element(Snippet::source(shown.text.as_str()).line_start(self.line).annotation(caret));
        }
        if let Some(hint) = &self.hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        group
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        if !self.key.is_empty() {
            write!(f, " ({})", self.key)?;
        }
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Every mistake, a blank line between two.
pub fn render_all(errors: &[ConfigError], style: Style) -> String {
    errors.iter().map(|error| error.rendered(style)).collect::<Vec<_>>().join("\n\n")
}
