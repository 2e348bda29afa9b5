//! Allow, block and review lists: what they hold, and how somebody is looked up.
//!
//! A list is about people and their cards. Its values leave it in no way: not by `Debug`, not in a mistake, not in a
//! diff. What is shown is its name and how long it is.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::error::Code;
use super::mask::MaskedLine;
use super::raw::lists::{RawList, RawValues};
use super::report::{At, Field, Report};
use super::source::Sources;
use crate::domain::policy::ListKind;
use crate::wire::risk::is_country;

/// Most lists of a configuration.
pub(super) const MOST_LISTS: usize = 32;
/// Longest entry, in bytes; no field of a payment attempt is longer.
const LONGEST_ENTRY: usize = 1024;
/// Mistakes told of one list.
const MOST_TOLD: usize = 10;
/// Bits of an IPv6 address.
const WIDTH: u8 = 128;
/// Bits before the IPv4 address in its IPv6 form.
const V4_OFFSET: u8 = 96;

/// One list, ready to be asked.
#[derive(Clone, PartialEq, Eq)]
pub struct List {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// What it does to whoever is on it.
    pub kind: ListKind,
    /// What its values are.
    pub by: ListBy,
    values: Values,
}

/// What the values of a list are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListBy {
    /// `user.id`
    User,
    /// `device.id`
    Device,
    /// `device.ip`: addresses and networks.
    Ip,
    /// `instrument.bin`: the first 6 to 8 digits; a shorter value covers all that begin with it.
    Bin,
    /// `instrument.fingerprint`
    Instrument,
    /// `merchant.id`
    Merchant,
    /// `user.email`, in any case; `@example.org` covers the whole domain.
    Email,
    /// The country of the user or the merchant.
    Country,
}

impl ListBy {
    /// All of them with their words.
    pub(super) const WORDS: [(&'static str, Self); 8] = [
        ("user", Self::User),
        ("device", Self::Device),
        ("ip", Self::Ip),
        ("bin", Self::Bin),
        ("instrument", Self::Instrument),
        ("merchant", Self::Merchant),
        ("email", Self::Email),
        ("country", Self::Country),
    ];

    /// The word in a configuration.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, by)| *by == self).map_or("", |(word, _)| word)
    }
}

#[derive(Clone, PartialEq, Eq)]
enum Values {
    Texts(HashSet<Box<str>>),
    Networks(Networks),
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "list {} ({})", self.name, self.len())
    }
}

impl List {
    /// How many values it has.
    pub fn len(&self) -> usize {
        match &self.values {
            Values::Texts(texts) => texts.len(),
            Values::Networks(networks) => networks.blocks.len(),
        }
    }

    /// True if the same are on both.
    pub(super) fn same_values(&self, other: &Self) -> bool {
        self.values == other.values
    }

    /// True if nobody is on it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if this is on the list. Bounded by the text's length, not by the list's.
    pub fn has(&self, text: &str) -> bool {
        match (&self.values, self.by) {
            (Values::Networks(networks), _) => text.parse().is_ok_and(|address| networks.have(address)),
            (Values::Texts(bins), ListBy::Bin) => {
                (6..=8).any(|length| text.get(..length).is_some_and(|begin| bins.contains(begin)))
            }
            (Values::Texts(addresses), ListBy::Email) => {
                let address = text.to_lowercase();
                let domain = address.rfind('@').and_then(|at| address.get(at..));
                addresses.contains(&*address) || domain.is_some_and(|domain| addresses.contains(domain))
            }
            (Values::Texts(texts), _) => texts.contains(text),
        }
    }
}

/// A block of IP addresses. IPv4 is kept in its IPv6 form, so that both spellings of one address are one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    bits: u8,
    base: u128,
}

impl Network {
    /// The block that is one address.
    pub fn of_address(address: IpAddr) -> Self {
        Self { bits: WIDTH, base: number(address) }
    }

    /// Reads `203.0.113.7`, `203.0.113.0/24` or the like for IPv6. No bit behind the length may be set.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let Some((address, length)) = text.split_once('/') else {
            return text.parse().ok().map(Self::of_address);
        };
        let address: IpAddr = address.parse().ok()?;
        let plain = length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit());
        let length: u8 = length.parse().ok().filter(|_| plain)?;
        let (offset, most) = if address.is_ipv4() { (V4_OFFSET, 32) } else { (0, WIDTH) };
        let bits = (length <= most).then_some(length + offset)?;
        let base = number(address);
        (base == masked(base, bits)).then_some(Self { bits, base })
    }

    /// True if the address is in the block.
    pub fn has(self, address: IpAddr) -> bool {
        masked(number(address), self.bits) == self.base
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn masked(number: u128, bits: u8) -> u128 {
    number & u128::MAX.checked_shl(u32::from(WIDTH - bits)).unwrap_or(0)
}

/// Blocks of addresses: one look-up for each length that occurs.
#[derive(Clone, PartialEq, Eq)]
struct Networks {
    lengths: Vec<u8>,
    blocks: HashSet<Network>,
}

impl Networks {
    fn new(blocks: HashSet<Network>) -> Self {
        let mut lengths: Vec<u8> = blocks.iter().map(|block| block.bits).collect();
        lengths.sort_unstable();
        lengths.dedup();
        Self { lengths, blocks }
    }

    fn have(&self, address: IpAddr) -> bool {
        let number = number(address);
        self.lengths.iter().any(|&bits| self.blocks.contains(&Network { bits, base: masked(number, bits) }))
    }
}

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

    fn network(text: &str) -> Network {
        Network::parse(text).unwrap()
    }

    #[test]
    fn a_network_has_its_addresses_and_no_others() {
        let has = |network_text: &str, address: &str| network(network_text).has(address.parse().unwrap());
        assert!(has("203.0.113.0/24", "203.0.113.255") && !has("203.0.113.0/24", "203.0.114.0"));
        assert!(has("203.0.113.7", "::ffff:203.0.113.7") && has("::ffff:203.0.113.7", "203.0.113.7"));
        assert!(has("2001:db8::/32", "2001:db8:1::1") && !has("2001:db8::/32", "2001:db9::1"));
        assert!(has("0.0.0.0/0", "8.8.8.8") && !has("0.0.0.0/0", "2001:db8::1"));
        assert!(has("::/0", "2001:db8::1"));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        let bad = ["", "x", "203.0.113", "203.0.113.0/33", "203.0.113.1/24", "1.2.3.4/", "1.2.3.4/+8", "::/129", "/8"];
        for text in bad {
            assert!(Network::parse(text).is_none(), "{text}");
        }
    }

    fn texts(by: ListBy, values: &[&str]) -> List {
        let values = Values::Texts(values.iter().map(|text| (*text).into()).collect());
        List { name: "a".into(), kind: ListKind::Block, by, values }
    }

    #[test]
    fn a_short_bin_covers_the_longer_ones() {
        let list = texts(ListBy::Bin, &["621234", "55554444"]);
        assert!(list.has("621234") && list.has("62123499") && list.has("55554444"));
        assert!(!list.has("555544") && !list.has("621235") && !list.has("6212"));
    }

    #[test]
    fn an_address_is_found_in_any_case_and_by_its_domain() {
        let list = texts(ListBy::Email, &["a@example.org", "@spam.test"]);
        assert!(list.has("A@Example.org") && list.has("x@SPAM.test"));
        assert!(!list.has("b@example.org") && !list.has("x@spam.test.org") && !list.has("spam.test"));
    }

    #[test]
    fn a_list_never_shows_who_is_on_it() {
        assert_eq!(format!("{:?}", texts(ListBy::User, &["CANARY"])), "list a (1)");
    }

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
