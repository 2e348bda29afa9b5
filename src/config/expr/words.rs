//! The words of a condition, for three jobs the parser's own tokens cannot do: bounding it before anything recursive
//! runs, finding where a name begins and ends, and showing a mistake's line without its values.

use std::ops::Range;

use super::super::error::Code;
use super::super::mask::{MaskedLine, may_be_shown};
use super::{DEEPEST, Fault, LONGEST, MOST_WORDS, names};

/// What a piece of text is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A name, a function or `in`.
    Name,
    /// A number, a text or a comment: never shown.
    Value,
    /// One operator or bracket.
    Sign,
}

/// A piece of text without the space around it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Word {
    pub(super) span: Range<usize>,
    pub(super) kind: Kind,
}

/// The words of a text that is neither too long nor nested too deeply.
pub(super) fn bounded(text: &str) -> Result<Vec<Word>, Fault> {
    let too_much = |span: Range<usize>, what: String| {
        Err(Fault::new(span, Code::BadValue, what).hint("split it: several policies may say the same"))
    };
    if text.len() > LONGEST {
        return too_much(0..text.len(), format!("the condition is longer than {LONGEST} bytes"));
    }
    let words = split(text);
    if let Some(word) = words.get(MOST_WORDS) {
        return too_much(word.span.clone(), format!("the condition has more than {MOST_WORDS} words and signs"));
    }
    let mut depth = 0usize;
    for word in words.iter().filter(|word| word.kind == Kind::Sign) {
        match text.get(word.span.clone()) {
            Some("(" | "[" | "{" | "!" | "-" | "?") => depth += 1,
            Some(")" | "]" | "}") => depth = depth.saturating_sub(1),
            // Signs before an operand nest only until the operand is over.
            Some("&" | "|" | ",") => depth = open(text, &words, word.span.start),
            _ => {}
        }
        if depth > DEEPEST {
            return too_much(word.span.clone(), format!("nested more than {DEEPEST} deep"));
        }
    }
    Ok(words)
}

/// Brackets that are open at a place.
fn open(text: &str, words: &[Word], at: usize) -> usize {
    let signs = words.iter().filter(|word| word.kind == Kind::Sign && word.span.end <= at);
    signs.fold(0usize, |open, word| match text.get(word.span.clone()) {
        Some("(" | "[" | "{") => open + 1,
        Some(")" | "]" | "}") => open.saturating_sub(1),
        _ => open,
    })
}

/// Cuts a text into words. Every byte but white space is in exactly one.
pub(super) fn split(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let blank = rest.len() - rest.trim_start().len();
        if blank > 0 {
            at += blank;
            continue;
        }
        let (kind, length) = first(rest);
        let length = length.max(1);
        words.push(Word { span: at..at + length, kind });
        at += length;
    }
    words
}

/// The first word of a text that does not begin with white space, and its length.
fn first(rest: &str) -> (Kind, usize) {
    let while_plain = |plain: fn(char) -> bool| rest.find(|c| !plain(c)).unwrap_or(rest.len());
    match rest.chars().next() {
        Some('"' | '\'') => (Kind::Value, literal(rest)),
        Some('0'..='9') => (Kind::Value, while_plain(|c| c.is_ascii_alphanumeric() || c == '.')),
        Some('a'..='z' | 'A'..='Z' | '_') => {
            let length = while_plain(|c| c.is_ascii_alphanumeric() || c == '_');
            // r"..", b'..': the letters belong to the text.
            match rest.get(length..) {
                Some(text) if length <= 2 && text.starts_with(['"', '\'']) => (Kind::Value, length + literal(text)),
                _ => (Kind::Name, length),
            }
        }
        Some('/') if rest.starts_with("//") => (Kind::Value, rest.find('\n').unwrap_or(rest.len())),
        Some(sign) if sign.is_ascii() => (Kind::Sign, 1),
        Some(other) => (Kind::Value, other.len_utf8()),
        None => (Kind::Sign, 0),
    }
}

/// The length of a quoted text; all the rest if it does not end.
fn literal(rest: &str) -> usize {
    let quote = rest.get(..1).unwrap_or_default();
    let thrice = quote.repeat(3);
    let end = if rest.starts_with(&thrice) { thrice.as_str() } else { quote };
    let mut escaped = false;
    let inside = rest.get(end.len()..).unwrap_or_default();
    for (at, c) in inside.char_indices() {
        if !escaped && inside.get(at..).is_some_and(|rest| rest.starts_with(end)) {
            return end.len() + at + end.len();
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

/// The line of a condition in which a mistake is, reduced to signs and to names that everybody knows.
pub(in crate::config) fn masked(text: &str, culprit: &Range<usize>) -> MaskedLine {
    let before = text.get(..culprit.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line_end = text.get(line_start..).and_then(|rest| rest.find('\n')).map_or(text.len(), |end| line_start + end);
    let mut shown = if text.contains('\n') { String::new() } else { "when = '".to_owned() };
    let (mut caret, mut at) = (None::<Range<usize>>, line_start);
    for word in split(text).iter().filter(|word| word.span.end > line_start && word.span.start < line_end) {
        if word.span.start > at {
            shown.push(' ');
        }
        let from = shown.len();
        let piece = text.get(word.span.clone()).unwrap_or_default();
        let is_culprit = culprit.start <= word.span.start && word.span.end <= culprit.end;
        let plain = match word.kind {
            Kind::Name => names::is_public(piece) || (is_culprit && may_be_shown(piece)),
            Kind::Sign => true,
            Kind::Value => false,
        };
        shown.push_str(if plain { piece } else { "…" });
        at = word.span.end;
        if is_culprit || word.span.contains(&culprit.start) {
            caret = Some(caret.map_or(from, |caret| caret.start)..shown.len());
        }
    }
    // Past the last word: whatever is missing there.
    let end = shown.len();
    if !text.contains('\n') {
        shown.push('\'');
    } else if caret.is_none() {
        shown.push(' ');
    }
    let caret = caret.unwrap_or(end..shown.len());
    MaskedLine { text: shown, caret }
}
