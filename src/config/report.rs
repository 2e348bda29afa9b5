//! Where mistakes are collected, so that one run shows all of them.
//!
//! It knows the files and turns byte offsets into lines; it does not judge anything.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use super::error::{Code, ConfigError};
use super::mask::{self, MaskedLine};
use super::renames::Renames;
use super::source::SourceFile;

/// Most mistakes collected; a file that is wrong everywhere must not fill the memory.
const MOST_MISTAKES: usize = 200;

/// A place in one of the files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct At {
    pub(super) file: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl At {
    pub(super) fn new(file: usize, span: Range<usize>) -> Self {
        Self { file, start: span.start, end: span.end }
    }
}

/// A value together with where it stands and the dotted path of its key.
#[derive(Clone, Debug)]
pub(super) struct Field<T> {
    pub(super) value: T,
    pub(super) at: At,
    pub(super) key: Arc<str>,
}

impl<T> Field<T> {
    /// Another value at the same place.
    pub(super) fn with<U>(&self, value: U) -> Field<U> {
        Field { value, at: self.at, key: Arc::clone(&self.key) }
    }

    /// A mistake at this place.
    pub(super) fn mistake(&self, code: Code, message: impl Into<String>) -> Mistake {
        Mistake::new(self.at, &self.key, code, message)
    }
}

/// A mistake before its place has been looked up.
#[derive(Clone, Debug)]
pub(super) struct Mistake {
    at: At,
    key: String,
    code: Code,
    message: String,
    hint: Option<String>,
    shown: Option<Box<MaskedLine>>,
}

impl Mistake {
    pub(super) fn new(at: At, key: &str, code: Code, message: impl Into<String>) -> Self {
        Self { at, key: key.to_owned(), code, message: message.into(), hint: None, shown: None }
    }

    /// True for this kind of mistake.
    pub(super) fn is(&self, code: Code) -> bool {
        self.code == code
    }

    /// What to do about it.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What to show in place of the line that is masked by the rules of keys.
    pub(super) fn showing(mut self, line: MaskedLine) -> Self {
        self.shown = Some(Box::new(line));
        self
    }
}

/// Collects mistakes. Shared by reference while files are read, hence the cells.
pub(super) struct Report<'s> {
    files: Vec<(&'s SourceFile, Vec<usize>)>,
    found: RefCell<Vec<(usize, ConfigError)>>,
    left_out: Cell<usize>,
    renames: Renames,
    renamed: RefCell<Vec<ConfigError>>,
}

impl<'s> Report<'s> {
    /// The value, or `None` after adding the mistake.
    pub(super) fn accept<T>(&self, checked: Result<T, Mistake>) -> Option<T> {
        checked.map_err(|mistake| self.add(mistake)).ok()
    }

    pub(super) fn new(files: impl Iterator<Item = &'s SourceFile>) -> Self {
        let line_starts =
            |text: &str| std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self {
            files: files.map(|file| (file, line_starts(&file.text))).collect(),
            found: RefCell::default(),
            left_out: Cell::new(0),
            renames: Renames::default(),
            renamed: RefCell::default(),
        }
    }

    /// With other former names than this version's.
    #[cfg(test)]
    pub(super) fn with_renames(self, renames: Renames) -> Self {
        Self { renames, ..self }
    }

    /// Keys by their former names.
    pub(super) fn renames(&self) -> Renames {
        self.renames
    }

    /// Notes a key by its former name; bounded like mistakes.
    pub(super) fn note_renamed(&self, mistake: Mistake) {
        if self.renamed.borrow().len() < MOST_MISTAKES {
            let placed = self.placed(mistake);
            self.renamed.borrow_mut().push(placed);
        }
    }

    /// Every key by its former name, with its place.
    pub(super) fn renamed(&self) -> Vec<ConfigError> {
        self.renamed.borrow().clone()
    }

    /// A finding with its place, for lists of its own.
    pub(super) fn placed(&self, mistake: Mistake) -> ConfigError {
        self.place(mistake).1
    }

    pub(super) fn add(&self, mistake: Mistake) {
        self.add_with(|| mistake);
    }

    /// Like [`Report::add`] for a mistake that is costly to describe: one that would not be shown is only counted.
    pub(super) fn add_with(&self, mistake: impl FnOnce() -> Mistake) {
        if self.found.borrow().len() >= MOST_MISTAKES {
            self.left_out.set(self.left_out.get().saturating_add(1));
            return;
        }
        let placed = self.place(mistake());
        self.found.borrow_mut().push(placed);
    }

    pub(super) fn is_clean(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// The file of a place.
    pub(super) fn file(&self, at: At) -> Option<&'s SourceFile> {
        self.files.get(at.file).map(|(file, _)| *file)
    }

    /// `providers/x.toml:3`, for hints that point at another file.
    pub(super) fn place_of(&self, at: At) -> String {
        let name = self.files.get(at.file).map_or("", |(file, _)| file.name.as_str());
        format!("{name}:{}", self.position(at).0)
    }

    /// Where a text's first byte stands in its file; `None` if escapes or the like make the two differ.
    pub(super) fn verbatim(&self, text: &Field<String>) -> Option<usize> {
        const OPENINGS: [&str; 8] = ["'''\n", "'''\r\n", "'''", "\"\"\"\n", "\"\"\"\r\n", "\"\"\"", "'", "\""];
        let (file, _) = self.files.get(text.at.file)?;
        let written = file.text.get(text.at.start..text.at.end)?;
        // Outermost first. A line break right after three quotes is not part of the text.
        OPENINGS.into_iter().find_map(|open| {
            let close = open.trim_end();
            let inside = written.strip_prefix(open)?.strip_suffix(close)?;
            (inside == text.value).then_some(text.at.start + open.len())
        })
    }

    /// Everything found, by file and line.
    pub(super) fn into_errors(self) -> Vec<ConfigError> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|(file, error)| (*file, error.line, error.column));
        let mut errors: Vec<ConfigError> = found.into_iter().map(|(_, error)| error).collect();
        errors.dedup();
        if self.left_out.get() > 0
            && let Some(last) = errors.last_mut()
        {
            let more = format!("{} more mistakes are not shown", self.left_out.get());
            last.hint = Some(last.hint.take().map_or_else(|| more.clone(), |hint| format!("{hint}; {more}")));
        }
        errors
    }

    /// A mistake with its place, not collected: for what is only found wrong later.
    pub(super) fn described(&self, mistake: Mistake) -> ConfigError {
        self.place(mistake).1
    }

    fn place(&self, mistake: Mistake) -> (usize, ConfigError) {
        let Mistake { at, key, code, message, hint, shown } = mistake;
        let (line, column) = self.position(at);
        let file = self.files.get(at.file).map(|(file, _)| file.name.clone()).unwrap_or_default();
        // What is missing from a whole file has no line to show.
        let shown = shown.map(|line| *line).or_else(|| self.masked_line(at, line).filter(|_| at.end > 0));
        (at.file, ConfigError { file, line, column, span: at.start..at.end, key, message, hint, code, shown })
    }

    /// Line and column from 1, the column in characters.
    fn position(&self, at: At) -> (usize, usize) {
        let Some((file, starts)) = self.files.get(at.file) else { return (1, 1) };
        let line = starts.partition_point(|&start| start <= at.start).max(1);
        let line_start = starts.get(line - 1).copied().unwrap_or(0);
        let before = file.text.as_bytes().get(line_start..at.start.min(file.text.len())).unwrap_or_default();
        // Counting the bytes that begin a character works also when an offset falls inside one.
        let column = before.iter().filter(|&&byte| byte & 0xC0 != 0x80).count() + 1;
        (line, column)
    }

    fn masked_line(&self, at: At, line: usize) -> Option<MaskedLine> {
        let (file, starts) = self.files.get(at.file)?;
        let start = starts.get(line - 1).copied()?;
        let end = starts.get(line).map_or(file.text.len(), |next| next - 1);
        let text = file.text.get(start..end)?;
        Some(mask::mask(text, at.start.saturating_sub(start)..at.end.saturating_sub(start)))
    }
}

/// The value, or `None` after reporting the mistake.
pub(super) fn accept<T>(checked: Result<T, Mistake>, report: &Report<'_>) -> Option<T> {
    checked.map_err(|mistake| report.add(mistake)).ok()
}
