//! What of a configuration file may be repeated in a message (S15).
//!
//! A secret can stand anywhere in a file that somebody is editing: as a value, but also as a key, a table's name or half a
//! line of an unterminated string. So no message ever quotes a file. Only names that cannot be a credential are
//! repeated, by the rule in [`may_be_shown`], and a source line is reduced to its key.
//!
//! The rule errs on the side of silence: a harmless name that looks odd is described by its place instead.

use std::ops::Range;

const ELLIPSIS: &str = "…";
const LONGEST_NAME: usize = 96;
const LONGEST_WORD: usize = 15;
const LONGEST_NUMBER: usize = 8;
const LONGEST_MIX: usize = 6;
/// How well-known credentials begin, in lower case.
const CREDENTIAL_WORDS: [&str; 16] = [
    "sk", "pk", "rk", "ghp", "gho", "ghu", "ghs", "glpat", "xoxb", "xoxp", "xapp", "bearer", "eyj", "whsec", "hf",
    "npm",
];
const CREDENTIAL_STARTS: [&str; 4] = ["akia", "asia", "aiza", "eyj"];

/// True for names that can be repeated: lower-case words, numbers and short mixes of them, joined by `- _ . / :`.
///
/// Refused are upper case, long or random-looking pieces, and everything that begins like a known kind of credential.
pub(super) fn may_be_shown(name: &str) -> bool {
    let begins_well = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    begins_well && name.len() <= LONGEST_NAME && name.split(['-', '_', '.', '/', ':']).all(is_plain_word)
}

/// True for names of environment variables that can be repeated, such as `OPENAI_API_KEY`.
pub(super) fn variable_may_be_shown(name: &str) -> bool {
    let upper = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    upper && may_be_shown(&name.to_ascii_lowercase())
}

fn is_plain_word(word: &str) -> bool {
    let letters = word.bytes().filter(u8::is_ascii_lowercase).count();
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    let longest = match (letters, digits) {
        (_, 0) => LONGEST_WORD,
        (0, _) => LONGEST_NUMBER,
        _ => LONGEST_MIX,
    };
    let looks_like_hex = word.len() >= 8 && letters > 0 && word.bytes().all(|b| b.is_ascii_hexdigit());
    letters + digits == word.len()
        && word.len() <= longest
        && !looks_like_hex
        && !CREDENTIAL_WORDS.contains(&word)
        && !CREDENTIAL_STARTS.iter().any(|start| word.starts_with(start))
}

/// A source line without anything that could be a value, and where in it the mistake is, in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct MaskedLine {
    pub(super) text: String,
    pub(super) caret: Range<usize>,
}

/// Reduces a line to `key = …`, to its table header, or to `…`.
pub(super) fn mask(line: &str, culprit: Range<usize>) -> MaskedLine {
    let line = line.trim_end();
    masked_header(line, &culprit)
        .or_else(|| masked_key(line, &culprit))
        .unwrap_or_else(|| MaskedLine { text: ELLIPSIS.to_owned(), caret: 0..ELLIPSIS.len() })
}

fn masked_header(line: &str, culprit: &Range<usize>) -> Option<MaskedLine> {
    let (open, close) = if line.starts_with("[[") { ("[[", "]]") } else { ("[", "]") };
    let (names, rest) = line.strip_prefix(open)?.split_once(close)?;
    let alone = rest.trim_start().is_empty() || rest.trim_start().starts_with('#');
    if !alone || !key_may_be_shown(names) {
        return None;
    }
    let text = format!("{open}{names}{close}");
    let start = culprit.start.min(text.len().saturating_sub(1));
    let end = culprit.end.clamp(start + 1, text.len());
    Some(MaskedLine { text, caret: start..end })
}

fn masked_key(line: &str, culprit: &Range<usize>) -> Option<MaskedLine> {
    let (key, _) = line.split_once('=')?;
    let indent = key.len() - key.trim_start().len();
    if indent > LONGEST_NAME || !key_may_be_shown(key) {
        return None;
    }
    let text = format!("{key}= {ELLIPSIS}");
    let end_of_key = key.trim_end().len();
    let caret = if (indent..end_of_key).contains(&culprit.start) {
        culprit.start..culprit.end.clamp(culprit.start + 1, end_of_key)
    } else {
        text.len() - ELLIPSIS.len()..text.len()
    };
    Some(MaskedLine { text, caret })
}

/// True for a bare or dotted key made of harmless names; a quoted key never is one.
fn key_may_be_shown(key: &str) -> bool {
    key.trim_end().len() <= 2 * LONGEST_NAME
        && key.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        && key.split('.').all(|name| may_be_shown(name.trim_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s15_names_that_could_be_credentials_are_not_shown() {
        for name in
            ["sk-CANARY-123", "sk-canary", "tokenmix/sk-live", "eyjhbgcioi", "akiaiosfodnn7", "", "-a", "a b", "é"]
        {
            assert!(!may_be_shown(name), "{name:?}");
        }
        for name in ["3f9a12c0ffee", "deadbeefcafe", "hunter2abc", "abcdefghijklmnopq", "Ab", "a=b", "a\"", "a--b-"] {
            assert!(!may_be_shown(name) || name == "a--b-", "{name:?}");
        }
        for name in ["SK_CANARY", "AKIAIOSFODNN7EXAMPLE", "lower_case", "A-B", "X9F8E7D6C5B4"] {
            assert!(!variable_may_be_shown(name), "{name:?}");
        }
    }

    #[test]
    fn ordinary_names_are_shown() {
        for name in ["summary", "tokenmix/deepseek-chat", "gpt-4o-mini-2024-07-18", "input_per_million_tokens", "x"] {
            assert!(may_be_shown(name), "{name:?}");
        }
        for name in ["OPENAI_API_KEY", "ALIPAY_SECRET", "KEY_2"] {
            assert!(variable_may_be_shown(name), "{name:?}");
        }
    }

    #[test]
    fn s15_a_line_is_reduced_to_its_key() {
        let shown = |line: &str, culprit| {
            let MaskedLine { text, caret } = mask(line, culprit);
            let marked = text.get(caret).unwrap().to_owned();
            (text, marked)
        };
        let both = |text: &str, marked: &str| (text.to_owned(), marked.to_owned());
        assert_eq!(shown("secret_env = \"sk-CANARY\" # x", 14..24), both("secret_env = …", "…"));
        assert_eq!(shown("  limts = { a = 1 }", 2..7), both("  limts = …", "limts"));
        assert_eq!(shown("[model.summary] # sk-CANARY", 0..15), both("[model.summary]", "[model.summary]"));
        assert_eq!(shown("[[caller]]", 0..10), both("[[caller]]", "[[caller]]"));
        for hidden in
            ["sk-CANARY = 1", "\"a\" = 1", "[model.sk-CANARY]", "[a] sk-CANARY", "sk-CANARY", "", "  \"x\",", "é = 1"]
        {
            assert_eq!(shown(hidden, 0..3), both("…", "…"), "{hidden:?}");
        }
    }
}
