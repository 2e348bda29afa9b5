//! `[[risk.list]]`: from what was written, inline or in a file, to lists that can be asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::Code;
use super::lists::{List, ListBy, MOST_LISTS, Network, Networks, Values};
use super::mask::MaskedLine;
use super::raw::lists::{RawList, RawValues};
use super::report::{At, Field, Report};
use super::source::Sources;
use crate::wire::risk::is_country;

/// Longest entry, in bytes; no field of a payment attempt is longer.
const LONGEST_ENTRY: usize = 1024;
/// Mistakes told of one list.
const MOST_TOLD: usize = 10;

/// What the files of lists say, by the path that names them.
pub(super) struct ListFiles<'f> {
    /// Path to content, or why there is none; and the number of the file in the report.
    pub(super) files: BTreeMap<&'f str, (usize, Result<&'f str, &'static str>)>,
}

impl<'f> ListFiles<'f> {
    /// The files of these sources, numbered behind routes and providers.
    pub(super) fn of(sources: &'f Sources) -> Self {
        let mut number = sources.routes.len() + sources.providers.len();
        let files = sources.lists.iter().map(|list| {
            let content = list.content.as_ref().map(|file| file.text.as_str()).map_err(|reason| *reason);
            let file = (number, content);
            number += usize::from(content.is_ok());
            (list.path.as_str(), file)
        });
        Self { files: files.collect() }
    }
}

/// All lists, the strongest kind first, so that the first match is the one that counts.
pub(super) fn plan_lists(raw: &[RawList], files: &ListFiles<'_>, report: &Report<'_>) -> Vec<Arc<List>> {
    if let Some(over) = raw.get(MOST_LISTS) {
        report.add(over.at.mistake(Code::BadValue, format!("more than {MOST_LISTS} lists")));
    }
    let mut lists: Vec<Arc<List>> =
        raw.iter().take(MOST_LISTS).filter_map(|raw| list(raw, files, report).map(Arc::new)).collect();
    lists.sort_by_key(|list| std::cmp::Reverse(list.kind));
    lists
}

fn list(raw: &RawList, files: &ListFiles<'_>, report: &Report<'_>) -> Option<List> {
    let (name, kind, by) = (raw.name.as_ref()?, raw.kind.as_ref()?.value, raw.by.as_ref()?.value);
    let entries = entries(raw.values.as_ref()?, files, report)?;
    // A line of a list's own file is a value, whatever it looks like.
    let from_file = matches!(raw.values, Some(RawValues::File(_)));
    let hidden = from_file.then(|| MaskedLine { text: "…".to_owned(), caret: 0.."…".len() });
    let mut reader = Reader { by, told: 0, hidden, report };
    let values = match by {
        ListBy::Ip => {
            let networks = entries.iter().filter_map(|entry| {
                let network = Network::parse(&entry.value);
                network.or_else(|| reader.wrong(entry))
            });
            Values::Networks(Networks::new(networks.collect()))
        }
        _ => Values::Texts(entries.iter().filter_map(|entry| reader.text(entry)).collect()),
    };
    Some(List { name: name.value.as_str().into(), kind, by, values })
}

/// The values with their places, from the routes or from the list's own file.
fn entries(values: &RawValues, files: &ListFiles<'_>, report: &Report<'_>) -> Option<Vec<Field<String>>> {
    let path = match values {
        RawValues::Inline(values) => return Some(values.clone()),
        RawValues::File(path) => path,
    };
    let mistake = |reason: &str| {
        let mistake = path.mistake(Code::Unreadable, format!("the list's file: {reason}"));
        mistake.hint("the path is relative to the folder of the routes")
    };
    match files.files.get(path.value.as_str()) {
        Some((file, Ok(text))) => Some(lines(text, *file, path)),
        Some((_, Err(reason))) => {
            report.add(mistake(reason));
            None
        }
        None => {
            report.add(mistake("it cannot be read from here"));
            None
        }
    }
}

/// One value a line; what follows a `#` at the beginning or after a space is a comment.
fn lines(text: &str, file: usize, path: &Field<String>) -> Vec<Field<String>> {
    let mut at = 0;
    let mut found = Vec::new();
    for line in text.split_inclusive('\n') {
        let comment = line.match_indices('#').find(|(at, _)| {
            let before = line.get(..*at).unwrap_or_default();
            before.is_empty() || before.ends_with(char::is_whitespace)
        });
        let value = comment.map_or(line, |(at, _)| line.get(..at).unwrap_or_default());
        let blank = value.len() - value.trim_start().len();
        let value = value.trim();
        if !value.is_empty() {
            let start = at + blank;
            let at = At::new(file, start..start + value.len());
            found.push(Field { value: value.to_owned(), at, key: Arc::clone(&path.key) });
        }
        at += line.len();
    }
    found
}

/// Reads the entries of one list.
struct Reader<'r> {
    by: ListBy,
    told: usize,
    hidden: Option<MaskedLine>,
    report: &'r Report<'r>,
}

impl Reader<'_> {
    fn text(&mut self, entry: &Field<String>) -> Option<Box<str>> {
        let text = entry.value.as_str();
        let fits = match self.by {
            ListBy::Bin => (6..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()),
            ListBy::Country => is_country(text),
            ListBy::Email => text.contains('@') && !text.contains(char::is_whitespace),
            _ => !text.is_empty(),
        };
        if !fits || text.len() > LONGEST_ENTRY {
            return self.wrong(entry);
        }
        Some(if self.by == ListBy::Email { text.to_lowercase().into() } else { text.into() })
    }

    fn wrong<T>(&mut self, entry: &Field<String>) -> Option<T> {
        self.told += 1;
        let what = match self.by {
            ListBy::Ip => "not an IP address or network, as in 203.0.113.0/24",
            ListBy::Bin => "not the first 6 to 8 digits of a card number",
            ListBy::Country => "not an ISO 3166-1 country in upper case, as in CN",
            ListBy::Email => "not an e-mail address or @domain",
            _ => "empty, or longer than any value can be",
        };
        if self.told <= MOST_TOLD {
            let mistake = entry.mistake(Code::BadValue, what);
            self.report.add(match &self.hidden {
                Some(line) => mistake.showing(line.clone()),
                None => mistake,
            });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_value_a_line_and_comments() {
        let path = Field { value: String::new(), at: At::new(0, 0..0), key: "k".into() };
        let text = "# head\r\n u1 # why\n\nu#2\r\nlast";
        let found = lines(text, 3, &path);
        let values: Vec<&str> = found.iter().map(|field| field.value.as_str()).collect();
        assert_eq!(values, ["u1", "u#2", "last"]);
        assert!(found.iter().all(|field| text.get(field.at.start..field.at.end) == Some(field.value.as_str())));
    }
}
