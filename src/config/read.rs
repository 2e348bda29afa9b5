//! Typed access to parsed TOML that reports mistakes instead of stopping at the first.
//!
//! Serde would stop at the first mistake of a file, quote the offending value in its message, and lose positions inside
//! flattened or untagged types. Walking the spanned tree by hand costs a few lines per key and has none of the three.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::error::Code;
use super::mask;
use super::report::{At, Field, Mistake, Report};
use super::units;
use crate::domain::money::Cost;

/// Most characters of a string anywhere in a configuration.
const LONGEST_STRING: usize = 2048;
/// Most entries of a list.
const LONGEST_LIST: usize = 10_000;
/// Longest name for which a similar one is looked for, and how many names are looked at.
const LONGEST_COMPARED: usize = 96;
const MOST_COMPARED: usize = 1000;

/// Any time limit: long enough for every use, short enough to be added to a clock without overflow.
pub(super) const ANY_LIMIT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

/// The known name most like `name`, if one is close enough to be meant.
pub(super) fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    if name.len() > LONGEST_COMPARED {
        return None;
    }
    let close_enough = (name.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .take(MOST_COMPARED)
        .filter(|known| known.len() <= LONGEST_COMPARED && mask::may_be_shown(known))
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|&(distance, _)| distance <= close_enough)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, known)| known)
}

/// The hint for a name that is not among the known ones.
pub(super) fn suggest<'n>(name: &str, known: &[&'n str]) -> Option<String> {
    if let Some(meant) = nearest(name, known.iter().copied()) {
        return Some(format!("did you mean `{meant}`?"));
    }
    let shown: Vec<&'n str> = known.iter().copied().filter(|name| mask::may_be_shown(name)).take(12).collect();
    (!shown.is_empty()).then(|| format!("known: {}", shown.join(", ")))
}

/// A name for a message: itself if it may be shown, else what it is.
pub(super) fn shown(name: &str, otherwise: &str) -> String {
    if mask::may_be_shown(name) { format!("`{name}`") } else { otherwise.to_owned() }
}

/// What is read where: the schema's tests compare it with the schema.
#[cfg(test)]
pub(super) mod seen {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    /// One way a value was read.
    #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
    pub(in crate::config) enum Read {
        Keys(BTreeSet<String>),
        Required(String),
        Words(BTreeSet<String>),
        Whole(String, String),
        Text,
        Number,
        Flag,
        Duration,
        Size,
        Cost,
        Table,
        List,
        Day,
        Json,
    }

    thread_local! {
        static SEEN: RefCell<BTreeSet<(String, Read)>> = const { RefCell::new(BTreeSet::new()) };
    }

    pub(in crate::config) fn note(shape: &str, read: Read) {
        SEEN.with_borrow_mut(|seen| seen.insert((shape.to_owned(), read)));
    }

    /// Everything that this thread has read.
    pub(in crate::config) fn all() -> BTreeSet<(String, Read)> {
        SEEN.with_borrow(Clone::clone)
    }
}

/// One table being read.
#[derive(Clone)]
pub(super) struct Table<'t> {
    entries: &'t DeTable<'t>,
    pub(super) at: At,
    pub(super) key: Arc<str>,
    /// Its place in the schema: `routes/caller/[]/limits`, with `*` for a freely chosen key.
    shape: Arc<str>,
    report: &'t Report<'t>,
}

/// One value being read. Each method takes the type that belongs there, or reports and gives `None`.
#[derive(Clone)]
pub(super) struct Value<'t> {
    content: &'t DeValue<'t>,
    pub(super) at: At,
    pub(super) key: Arc<str>,
    shape: Arc<str>,
    report: &'t Report<'t>,
}

impl<'t> Table<'t> {
    /// The whole document; `kind` is its name in the schema.
    pub(super) fn root(entries: &'t DeTable<'t>, file: usize, kind: &str, report: &'t Report<'t>) -> Self {
        Self { entries, at: At { file, start: 0, end: 0 }, key: Arc::from(""), shape: kind.into(), report }
    }

    /// Reports every key that is neither known nor planned, and notes every key by its former name.
    pub(super) fn only(self, known: &[&str], planned: &[&str]) -> Self {
        self.only_besides(known, planned, &[])
    }

    /// As [`Table::only`]; `besides` are read too, to be refused with advice of their own, and never offered.
    pub(super) fn only_besides(self, known: &[&str], planned: &[&str], besides: &[&str]) -> Self {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Keys(known.iter().map(|name| (*name).to_owned()).collect()));
        for key in self.entries.keys() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) || besides.contains(&name) {
                continue;
            }
            match self.report.renames().new_name(&self.shape, name) {
                Some(new) => self.renamed(key, new),
                None => self.report.add_with(|| self.unknown(key, known, planned)),
            }
        }
        self
    }

    /// The value under a key, or under its former name.
    pub(super) fn get(&self, name: &str) -> Option<Value<'t>> {
        let former = || self.report.renames().old_names(&self.shape, name).find_map(|old| self.entries.get(old));
        self.entries.get(name).or_else(former).map(|value| self.value(name, value))
    }

    /// The value under a key that must be there.
    pub(super) fn required(&self, name: &str) -> Option<Value<'t>> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Required(name.to_owned()));
        let value = self.get(name);
        if value.is_none() {
            self.report.add(self.mistake(Code::MissingKey, format!("missing key `{name}`")));
        }
        value
    }

    /// All entries with freely chosen keys, in the order of the keys.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Field<String>, Value<'t>)> {
        self.entries.iter().map(|(key, value)| {
            let at = At::new(self.at.file, key.span());
            let value = Value { shape: format!("{}/*", self.shape).into(), ..self.value(key.get_ref(), value) };
            (Field { value: key.get_ref().to_string(), at, key: Arc::clone(&value.key) }, value)
        })
    }

    /// A mistake of the table as a whole.
    pub(super) fn mistake(&self, code: Code, message: impl Into<String>) -> Mistake {
        Mistake::new(self.at, &self.key, code, message)
    }

    pub(super) fn report(&self) -> &'t Report<'t> {
        self.report
    }

    fn value(&self, name: &str, value: &'t Spanned<DeValue<'t>>) -> Value<'t> {
        let at = At::new(self.at.file, value.span());
        let shape = format!("{}/{name}", self.shape).into();
        Value { content: value.get_ref(), at, key: self.path_to(name), shape, report: self.report }
    }

    fn path_to(&self, name: &str) -> Arc<str> {
        let name = if mask::may_be_shown(name) { name } else { "…" };
        if self.key.is_empty() { name.into() } else { format!("{}.{name}", self.key).into() }
    }

    /// A key by its former name: read as the new one, told by `check`, refused beside the new one.
    fn renamed(&self, key: &Spanned<DeString<'_>>, new: &str) {
        let old = key.get_ref().as_ref();
        let at = At::new(self.at.file, key.span());
        let message = format!("`{old}` is called `{new}` now");
        if self.entries.contains_key(new) {
            let mistake =
                Mistake::new(at, &self.path_to(old), Code::Repeated, format!("{message}, and both are there"));
            return self.report.add(mistake.hint(format!("remove `{old}`")));
        }
        let mistake = Mistake::new(at, &self.path_to(old), Code::UnknownKey, message);
        self.report.note_renamed(mistake.hint("rewrite the file with: weighbridge fmt --upgrade"));
    }

    fn unknown(&self, key: &Spanned<DeString<'_>>, known: &[&str], planned: &[&str]) -> Mistake {
        let name = key.get_ref().as_ref();
        let at = At::new(self.at.file, key.span());
        if planned.contains(&name) {
            let message = format!("`{name}` is not supported by this version");
            return Mistake::new(at, &self.path_to(name), Code::Unsupported, message).hint("remove it");
        }
        let meant = nearest(name, known.iter().copied());
        let bare = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let harmless = mask::may_be_shown(name) || (meant.is_some() && bare);
        let message = if harmless { format!("unknown key `{name}`") } else { "unknown key".to_owned() };
        let mistake = Mistake::new(at, &self.path_to(name), Code::UnknownKey, message);
        match suggest(name, known) {
            Some(hint) => mistake.hint(hint),
            None => mistake,
        }
    }
}

impl<'t> Value<'t> {
    /// Any string of bounded length.
    pub(super) fn string(&self) -> Option<Field<String>> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Text);
        match self.content {
            DeValue::String(text) if text.len() <= LONGEST_STRING => Some(self.field(text.to_string())),
            DeValue::String(_) => self.bad(format!("longer than {LONGEST_STRING} bytes")),
            _ => self.wrong_type("a string"),
        }
    }

    /// A name: letters, digits and `extra`, beginning with a letter or digit, at most 64 characters.
    pub(super) fn name(&self, extra: &str) -> Option<Field<String>> {
        let name = self.string()?;
        if is_name(&name.value, extra) { Some(name) } else { self.bad(name_rule(extra)) }
    }

    /// A whole number within bounds.
    pub(super) fn whole<N>(&self, bounds: RangeInclusive<N>) -> Option<Field<N>>
    where
        N: TryFrom<i64> + PartialOrd + std::fmt::Display,
    {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Whole(bounds.start().to_string(), bounds.end().to_string()));
        let DeValue::Integer(integer) = self.content else { return self.wrong_type("a whole number") };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        match number.and_then(|number| N::try_from(number).ok()).filter(|number| bounds.contains(number)) {
            Some(number) => Some(self.field(number)),
            None => self.bad(format!("must be between {} and {}", bounds.start(), bounds.end())),
        }
    }

    /// A number as it was spelled, without underscores; nothing is rounded on the way.
    pub(super) fn number(&self) -> Option<Field<String>> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Number);
        match self.content {
            DeValue::Integer(integer) if integer.radix() == 10 => Some(self.field(integer.as_str().to_owned())),
            DeValue::Float(float) => Some(self.field(float.as_str().to_owned())),
            _ => self.wrong_type("a decimal number"),
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&self) -> Option<Field<bool>> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Flag);
        match self.content {
            DeValue::Boolean(flag) => Some(self.field(*flag)),
            _ => self.wrong_type("true or false"),
        }
    }

    /// A length of time within bounds.
    pub(super) fn duration(&self, bounds: RangeInclusive<Duration>) -> Option<Field<Duration>> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Duration);
        let text = self.string()?;
        match units::duration(&text.value) {
            Ok(duration) if bounds.contains(&duration) => Some(self.field(duration)),
            Ok(duration) if duration.is_zero() => self.bad("must be greater than zero"),
            Ok(_) => self.bad(format!(
                "must be between {} and {}",
                units::shown(*bounds.start()),
                units::shown(*bounds.end())
            )),
            Err(error) => self.bad(error.to_string()),
        }
    }

    /// A size in bytes within bounds.
    pub(super) fn size(&self, bounds: RangeInclusive<usize>) -> Option<Field<usize>> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Size);
        let text = self.string()?;
        match units::size(&text.value) {
            Ok(size) if bounds.contains(&size) => Some(self.field(size)),
            Ok(_) => self.bad(format!("must be between {} and {} bytes", bounds.start(), bounds.end())),
            Err(error) => self.bad(error.to_string()),
        }
    }

    /// A price.
    pub(super) fn cost(&self) -> Option<Field<Cost>> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Cost);
        let text = self.string()?;
        match units::cost(&text.value) {
            Ok(cost) => Some(self.field(cost)),
            Err(error) => self.bad(error.to_string()),
        }
    }

    /// One word of a closed set.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<Field<T>> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Words(words.iter().map(|(word, _)| (*word).to_owned()).collect()));
        let text = self.string()?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(self.field(*meaning));
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let mistake = self.mistake(Code::BadValue, "not one of the known words");
        let hint = nearest(&text.value, known.iter().copied()).map(|meant| format!("did you mean \"{meant}\"?"));
        self.report.add(mistake.hint(hint.unwrap_or_else(|| format!("known: {}", known.join(", ")))));
        None
    }

    /// A table.
    pub(super) fn table(&self) -> Option<Table<'t>> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Table);
        match self.content {
            DeValue::Table(entries) => {
                let (key, shape) = (Arc::clone(&self.key), Arc::clone(&self.shape));
                Some(Table { entries, at: self.at, key, shape, report: self.report })
            }
            _ => self.wrong_type("a table"),
        }
    }

    /// The elements of a list.
    pub(super) fn list(&self) -> Option<Vec<Value<'t>>> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::List);
        match self.content {
            DeValue::Array(values) if values.len() <= LONGEST_LIST => {
                Some(values.iter().map(|v| self.child(v)).collect())
            }
            DeValue::Array(_) => self.bad(format!("more than {LONGEST_LIST} entries")),
            _ => self.wrong_type("a list"),
        }
    }

    /// The strings of a list, the mistaken elements left out.
    pub(super) fn strings(&self) -> Option<Vec<Field<String>>> {
        self.list().map(|values| values.iter().filter_map(Value::string).collect())
    }

    /// As [`Value::strings`], with the list's own place.
    pub(super) fn string_list(&self) -> Option<Field<Vec<Field<String>>>> {
        self.strings().map(|strings| self.field(strings))
    }

    /// True if the value is a list.
    pub(super) fn is_list(&self) -> bool {
        self.content.is_array()
    }

    /// The tables of a `[[list]]`, the mistaken elements left out.
    pub(super) fn tables(&self) -> Vec<Table<'t>> {
        self.list().unwrap_or_default().iter().filter_map(Value::table).collect()
    }

    /// A day: `"2026-11-22"` or a bare TOML date.
    pub(super) fn day(&self) -> Option<Field<String>> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Day);
        let text = match self.content {
            DeValue::String(text) => text.to_string(),
            DeValue::Datetime(moment) if moment.time.is_none() => moment.to_string(),
            _ => return self.wrong_type("a day, as in \"2026-11-22\""),
        };
        if is_day(&text) {
            Some(self.field(text))
        } else {
            self.bad("write a day as year-month-day, as in \"2026-11-22\"")
        }
    }

    /// Where mistakes go.
    pub(super) fn report(&self) -> &'t Report<'t> {
        self.report
    }

    /// The same as JSON, at most `levels` deep.
    pub(super) fn json(&self, levels: usize) -> Option<serde_json::Value> {
        #[cfg(test)]
        seen::note(&self.shape, seen::Read::Json);
        use serde_json::Value as Json;
        if levels == 0 {
            return self.bad("nested too deeply");
        }
        let number = |text: &str| text.replace('_', "").parse().ok().map(Json::Number);
        Some(match self.content {
            DeValue::String(_) => Json::String(self.string()?.value),
            DeValue::Boolean(flag) => Json::Bool(*flag),
            DeValue::Integer(_) | DeValue::Float(_) => match number(&self.number()?.value) {
                Some(number) => number,
                None => return self.bad("not a number that JSON has"),
            },
            DeValue::Array(_) => {
                Json::Array(self.list()?.iter().map(|value| value.json(levels - 1)).collect::<Option<_>>()?)
            }
            DeValue::Table(_) => {
                let entries = self.table()?;
                let entries = entries.entries().map(|(name, value)| Some((name.value, value.json(levels - 1)?)));
                Json::Object(entries.collect::<Option<_>>()?)
            }
            DeValue::Datetime(_) => return self.wrong_type("a value that JSON has"),
        })
    }

    /// True if the value is a string.
    pub(super) fn is_string(&self) -> bool {
        self.content.is_str()
    }

    /// True if the value is a table.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.content, DeValue::Table(_))
    }

    /// A mistake at this value.
    pub(super) fn mistake(&self, code: Code, message: impl Into<String>) -> Mistake {
        Mistake::new(self.at, &self.key, code, message)
    }

    /// Reports unusable content.
    pub(super) fn bad<T>(&self, message: impl Into<String>) -> Option<T> {
        self.report.add(self.mistake(Code::BadValue, message));
        None
    }

    fn wrong_type<T>(&self, wanted: &str) -> Option<T> {
        let found = match self.content {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a decimal number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.report.add(self.mistake(Code::WrongType, format!("expected {wanted}, found {found}")));
        None
    }

    fn field<T>(&self, value: T) -> Field<T> {
        Field { value, at: self.at, key: Arc::clone(&self.key) }
    }

    fn child(&self, value: &'t Spanned<DeValue<'t>>) -> Self {
        let at = At::new(self.at.file, value.span());
        let shape = format!("{}/[]", self.shape).into();
        Self { content: value.get_ref(), at, key: Arc::clone(&self.key), shape, report: self.report }
    }
}

/// True if a text can be the name of something configured.
pub(super) fn is_name(text: &str, extra: &str) -> bool {
    let begins_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    begins_well && text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
}

/// What [`is_name`] demands, in words.
pub(super) fn name_rule(extra: &str) -> String {
    let extra: Vec<String> = extra.chars().map(String::from).collect();
    format!("a name has 1 to 64 letters, digits and {}, and begins with a letter or digit", extra.join(" "))
}

fn is_day(text: &str) -> bool {
    let mut parts = text.splitn(3, '-');
    let mut part = |length: usize| {
        parts
            .next()
            .filter(|part| part.len() == length && part.bytes().all(|b| b.is_ascii_digit()))?
            .parse::<u16>()
            .ok()
    };
    let (Some(year), Some(month), Some(day)) = (part(4), part(2), part(2)) else { return false };
    let (Ok(month), Ok(day)) = (u8::try_from(month), u8::try_from(day)) else { return false };
    time::Month::try_from(month).is_ok_and(|month| time::Date::from_calendar_date(year.into(), month, day).is_ok())
}
