//! The numbers as bytes, for the process that comes next. What a counter says is exact or unknown there too.
//!
//! The bytes hold hashes and the pepper they were made with, and so are as delicate as the record. Slots are carried as
//! they are: the next process goes on with this one's clock, moved by the time between the two.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::counter::{Cell, Counter, Key, Row};
use super::{Live, Seen, State};
use crate::config::velocity::{Measure, VelocityRule};

const FORMAT: &[u8] = b"weighbridge velocity 1\n";
/// More is not carried; whatever counter does not fit begins anew.
pub const MOST_BYTES: usize = 64 << 20;
/// What an attempt that was counted before takes.
const SEEN_BYTES: usize = size_of::<Key>();
const DIGEST: usize = 32;

/// What the next process is to know.
pub struct Carried {
    /// To be kept from everybody else.
    pub bytes: Vec<u8>,
    /// Names of counters that did not fit.
    pub left_out: Vec<String>,
}

/// What an earlier process knew.
pub(super) struct Found {
    pub(super) pepper: [u8; 32],
    /// That process's clock when it wrote this.
    pub(super) now_ms: u64,
    pub(super) written_unix_ms: u64,
    pub(super) seen: Seen,
    /// Counters by their definitions.
    pub(super) counters: Vec<(String, Vec<u8>)>,
}

/// All of it; `None` if nothing was ever counted.
pub(super) fn spell(state: &State, pepper: &[u8; 32], now_ms: u64, unix_ms: u64) -> Option<Carried> {
    if state.counters.is_empty() || state.seen.younger.is_empty() && state.seen.older.is_empty() {
        return None;
    }
    let mut bytes = FORMAT.to_vec();
    bytes.extend(pepper);
    for number in [now_ms, unix_ms, state.seen.since_ms] {
        bytes.extend(number.to_be_bytes());
    }
    for half in [&state.seen.younger, &state.seen.older] {
        put_length(&mut bytes, half.len() * SEEN_BYTES);
        for key in half {
            bytes.extend(key);
        }
    }
    let mut left_out = Vec::new();
    for live in state.counters.iter().filter(|live| !live.leaving) {
        let counter = live.counter.spell(now_ms);
        if bytes.len() + counter.len() > MOST_BYTES {
            left_out.push(live.rule.name.to_string());
            continue;
        }
        let name = definition(&live.rule);
        put_length(&mut bytes, name.len());
        bytes.extend(name.as_bytes());
        put_length(&mut bytes, counter.len());
        bytes.extend(counter);
    }
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    Some(Carried { bytes, left_out })
}

/// Reads it; `None` if it is not whole or not of this program.
pub(super) fn read(bytes: &[u8]) -> Option<Found> {
    let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
    if Sha256::digest(body).as_slice() != digest {
        return None;
    }
    let mut rest = Rest(body.strip_prefix(FORMAT)?);
    let pepper = *rest.take(32)?.first_chunk()?;
    let (now_ms, written_unix_ms, since_ms) = (rest.long()?, rest.long()?, rest.long()?);
    let (younger, older) = (rest.keys()?, rest.keys()?);
    let mut counters = Vec::new();
    while !rest.0.is_empty() {
        let name = String::from_utf8(rest.part()?.to_vec()).ok()?;
        counters.push((name, rest.part()?.to_vec()));
    }
    Some(Found { pepper, now_ms, written_unix_ms, seen: Seen { younger, older, since_ms }, counters })
}

impl Live {
    /// Goes on from what an earlier process counted under the same definition.
    pub(super) fn go_on(&mut self, found: &Found) -> bool {
        let wanted = definition(&self.rule);
        let known = found.counters.iter().find(|(name, _)| *name == wanted);
        known.is_some_and(|(_, bytes)| self.counter.go_on(bytes))
    }
}

/// A counter whose definition is the same has the same numbers.
fn definition(rule: &VelocityRule) -> String {
    let measure = match rule.measure {
        Measure::Count => "count".to_owned(),
        Measure::Sum(currency) => format!("sum {currency}"),
        Measure::Distinct(of) => format!("distinct {}", of.as_str()),
    };
    format!("{} by {} {measure} within {} ms", rule.name, rule.by.as_str(), rule.window.as_millis())
}

fn put_length(bytes: &mut Vec<u8>, length: usize) {
    bytes.extend(u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes());
}

/// What was not read yet.
pub(super) struct Rest<'b>(pub(super) &'b [u8]);

impl<'b> Rest<'b> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn word(&mut self) -> Option<u32> {
        self.take(4)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub(super) fn long(&mut self) -> Option<u64> {
        self.take(8)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    fn part(&mut self) -> Option<&'b [u8]> {
        let length = usize::try_from(self.long()?).ok()?;
        self.take(length)
    }

    fn keys(&mut self) -> Option<HashSet<Key>> {
        let part = self.part()?;
        let (keys, rest) = part.as_chunks::<SEEN_BYTES>();
        rest.is_empty().then(|| keys.iter().copied().collect())
    }
}

impl Counter {
    /// What still counts, as bytes.
    fn spell(&self, now_ms: u64) -> Vec<u8> {
        let (_, oldest) = self.slots(now_ms);
        let counts = |slot: Option<u32>| slot.filter(|slot| *slot >= oldest);
        let mut bytes = Vec::new();
        put_slot(&mut bytes, counts(self.turned_away));
        for (key, row) in &self.rows {
            let live = || row.cells.iter().filter(|cell| cell.slot >= oldest);
            let (cells, lost) = (live().count(), counts(row.lost));
            if cells == 0 && lost.is_none() {
                continue;
            }
            bytes.extend(key);
            put_slot(&mut bytes, lost);
            bytes.extend(u32::try_from(cells).unwrap_or(u32::MAX).to_be_bytes());
            for cell in live() {
                bytes.extend(cell.slot.to_be_bytes());
                bytes.extend(cell.what.to_be_bytes());
            }
        }
        bytes
    }

    /// Takes over what [`Counter::spell`] wrote. False leaves it as it was.
    fn go_on(&mut self, bytes: &[u8]) -> bool {
        let mut next = self.emptied();
        let read = next.read_rows(&mut Rest(bytes)).is_some();
        if read {
            *self = next;
        }
        read
    }

    fn read_rows(&mut self, rest: &mut Rest<'_>) -> Option<()> {
        self.turned_away = slot(rest.word()?);
        while !rest.0.is_empty() {
            let key = *rest.take(SEEN_BYTES)?.first_chunk()?;
            let lost = slot(rest.word()?);
            let cells = (0..rest.word()?).map(|_| {
                let slot = rest.word()?;
                let what = rest.take(8)?.first_chunk().map(|bytes| i64::from_be_bytes(*bytes))?;
                Some(Cell { slot, what })
            });
            let cells: Vec<_> = cells.collect::<Option<_>>()?;
            self.cells += cells.len();
            self.rows.insert(key, Row { cells, lost });
        }
        Some(())
    }
}

/// No slot is the largest number: a clock that far on has no next one.
const NONE: u32 = u32::MAX;

fn put_slot(bytes: &mut Vec<u8>, slot: Option<u32>) {
    bytes.extend(slot.unwrap_or(NONE).to_be_bytes());
}

fn slot(word: u32) -> Option<u32> {
    (word != NONE).then_some(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::counter::Tally;
    use super::*;

    fn key(number: u8) -> Key {
        [number; 16]
    }

    proptest! {
        /// Also with little room, where some are unknown.
        #[test]
        fn a_counter_that_was_carried_says_what_it_said(
            tally in prop_oneof![Just(Tally::Sum), Just(Tally::Distinct)],
            most in 1usize..6,
            events in prop::collection::vec((0u64..90_000, 0u8..8, 0i64..40), 0..80),
            later in 0u64..120_000,
        ) {
            let mut counter = Counter::new(tally, 60_000, most);
            let mut now = 0;
            for (step, whose, what) in events {
                now += step;
                counter.add(key(whose), what, now);
            }
            let mut next = Counter::new(tally, 60_000, most);
            prop_assert!(next.go_on(&counter.spell(now)));
            for whose in 0..9 {
                prop_assert_eq!(next.read(key(whose), now + later), counter.read(key(whose), now + later));
            }
            for whose in 0..9 {
                prop_assert_eq!(next.add(key(whose), 1, now + later), counter.add(key(whose), 1, now + later));
            }
        }

        #[test]
        fn bytes_of_somebody_else_are_nothing(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(&bytes).is_none());
            let mut counter = Counter::new(Tally::Sum, 60_000, 5);
            counter.add(key(1), 1, 0);
            if !counter.go_on(&bytes) {
                prop_assert_eq!(counter.read(key(1), 0), super::super::Value::Known(1));
            }
        }
    }
}
