//! Rewrites the text of a configuration file without changing what it says: blanks and line ends that nobody sees, and
//! keys by their former names.
//!
//! It edits the text where it has to and nowhere else, so that comments, order and alignment stay as somebody wrote them.
//! It has no opinion about style.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::renames::Renames;
use super::schema;

/// Keys that are renamed in one go; a file has fewer.
const MOST_RENAMED: usize = 1_000;

/// Why a text is left alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// Not TOML.
    #[error("not TOML; look with: weighbridge check")]
    Syntax,
    /// A value would not be the same afterwards.
    #[error("a value would change, so nothing was written; please report the file's form")]
    Changed,
}

/// A key that was renamed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Renamed {
    /// The line it stands on, from 1.
    pub line: usize,
    /// Its former name.
    pub old: &'static str,
    /// Its name.
    pub new: &'static str,
}

/// Line ends, blanks at the end of lines, and runs of empty lines made plain; what lies in a string of several lines stays.
///
/// # Errors
/// [`FormatError`] if it is not TOML, or would not say the same afterwards.
pub fn tidied(text: &str) -> Result<String, FormatError> {
    let strings = long_strings(text)?;
    let inside = |at: usize| strings.iter().any(|string| string.start < at && at < string.end);
    let mut tidy = String::with_capacity(text.len());
    let (mut at, mut blank) = (0, true);
    for line in text.split_inclusive('\n') {
        let (start, end) = (at, at + line.len());
        at = end;
        let body = line.strip_suffix('\n').unwrap_or(line);
        if inside(end.saturating_sub(1)) {
            tidy.push_str(line);
            blank = false;
            continue;
        }
        // The end of a string of several lines is not blank, whatever stands in its last line.
        let body = body.trim_end_matches([' ', '\t', '\r']);
        let empty = body.is_empty() && !inside(start);
        if !(empty && blank) {
            tidy.push_str(body);
            tidy.push('\n');
        }
        blank = empty;
    }
    while tidy.ends_with("\n\n") {
        tidy.pop();
    }
    if said(&tidy)? == said(text)? { Ok(tidy) } else { Err(FormatError::Changed) }
}

/// Every key by its name of this version.
///
/// # Errors
/// [`FormatError::Syntax`] if it is not TOML.
pub fn upgraded(text: &str) -> Result<(String, Vec<Renamed>), FormatError> {
    upgraded_by(Renames::default(), text)
}

pub(super) fn upgraded_by(renames: Renames, text: &str) -> Result<(String, Vec<Renamed>), FormatError> {
    let mut text = text.to_owned();
    let mut renamed = Vec::new();
    // One at a time: a table may have several headers, and only the first is known by its place.
    while renamed.len() < MOST_RENAMED {
        let Some((span, old, new)) = first_former(renames, &text)? else { break };
        let line = text.get(..span.start).unwrap_or_default().matches('\n').count() + 1;
        text.replace_range(span, new);
        renamed.push(Renamed { line, old, new });
    }
    said(&text)?;
    renamed.sort_by_key(|renamed| renamed.line);
    Ok((text, renamed))
}

type Former = (Range<usize>, &'static str, &'static str);

fn first_former(renames: Renames, text: &str) -> Result<Option<Former>, FormatError> {
    let (entries, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(FormatError::Syntax);
    }
    let is_provider = entries.get_ref().contains_key("protocol") || entries.get_ref().contains_key("base_url");
    let kind = if is_provider { schema::PROVIDER } else { schema::ROUTES };
    Ok(former_in(renames, entries.get_ref(), kind))
}

fn former_in(renames: Renames, table: &DeTable<'_>, shape: &str) -> Option<Former> {
    table.iter().find_map(|(key, value)| {
        let name = key.get_ref().as_ref();
        if let Some(new) = renames.new_name(shape, name).filter(|new| may_join(table, value, new)) {
            let old = renames.old_names(shape, new).find(|old| *old == name)?;
            return Some((key.span(), old, new));
        }
        let fixed = former_of(renames, value, &format!("{shape}/{name}"));
        fixed.or_else(|| former_of(renames, value, &format!("{shape}/*")))
    })
}

fn former_of(renames: Renames, value: &Spanned<DeValue<'_>>, shape: &str) -> Option<Former> {
    match value.get_ref() {
        DeValue::Table(inside) => former_in(renames, inside, shape),
        DeValue::Array(values) => {
            let shape = format!("{shape}/[]");
            values.iter().find_map(|value| former_of(renames, value, &shape))
        }
        _ => None,
    }
}

/// A key that is there by both names stays: which of the two is meant is not ours to say. Several headers of one list are
/// renamed one after the other, so for a while both are there.
fn may_join(table: &DeTable<'_>, value: &Spanned<DeValue<'_>>, new: &str) -> bool {
    let listed =
        |value: &DeValue<'_>| value.as_array().is_some_and(|values| values.iter().all(|v| v.get_ref().is_table()));
    table.get(new).is_none_or(|there| listed(there.get_ref()) && listed(value.get_ref()))
}

/// What a text says, without its form.
fn said(text: &str) -> Result<String, FormatError> {
    let table: toml::Table = text.parse().map_err(|_| FormatError::Syntax)?;
    Ok(format!("{table:?}"))
}

/// Where strings of several lines are.
fn long_strings(text: &str) -> Result<Vec<Range<usize>>, FormatError> {
    let (entries, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(FormatError::Syntax);
    }
    let mut found = Vec::new();
    let mut open: Vec<&Spanned<DeValue<'_>>> = entries.get_ref().values().collect();
    while let Some(value) = open.pop() {
        match value.get_ref() {
            DeValue::Table(inside) => open.extend(inside.values()),
            DeValue::Array(inside) => open.extend(inside.iter()),
            DeValue::String(_) if text.get(value.span()).is_some_and(|written| written.contains('\n')) => {
                found.push(value.span());
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
