//! One velocity counter: a number per key over a sliding window, in bounded memory.
//!
//! A window is cut into [`SLOTS`] slots, and a number covers the slot that runs now and the `SLOTS` before it: every event
//! younger than the window counts, none older than the window and one slot does. Within that, numbers are exact, or they
//! are [`Value::Unknown`]: a key is never forgotten while it counts for something, so memory pressure cannot make a
//! number silently small. What finds no room is lost, and whoever may have lost something says so for as long as it would
//! have counted.
//!
//! Pure: the clock is passed in, nothing locks.

use std::collections::HashMap;

use crate::config::velocity::MOST_DISTINCT;

/// Parts of a window.
pub(super) const SLOTS: u32 = 60;
/// Cells a key may have on average: slots with an amount, or different values.
const CELLS_PER_KEY: usize = 16;

/// Who is counted, as the peppered hash of it.
pub(super) type Key = [u8; 16];

/// A number, or that nobody knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    /// Exact; `i64::MAX` stands for itself and more, and a distinct counter's bound for itself and more.
    Known(i64),
    /// Something was lost for want of room.
    Unknown,
}

/// What makes a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tally {
    /// What events bring is added up.
    Sum,
    /// Events bring a hash each, and different ones are counted.
    Distinct,
}

/// One counter.
pub(super) struct Counter {
    tally: Tally,
    slot_ms: u64,
    most: usize,
    pub(super) rows: HashMap<Key, Row>,
    /// Of all rows.
    pub(super) cells: usize,
    /// The last slot in which a key found no room.
    pub(super) turned_away: Option<u32>,
    /// The last slot in which expired rows were looked for.
    pub(super) swept: Option<u32>,
}

#[derive(Default)]
pub(super) struct Row {
    pub(super) cells: Vec<Cell>,
    /// The last slot in which something of this key was lost.
    pub(super) lost: Option<u32>,
}

#[derive(Clone, Copy)]
pub(super) struct Cell {
    pub(super) slot: u32,
    /// An amount, or a hash.
    pub(super) what: i64,
}

impl Row {
    /// Forgets what no longer counts; says how many cells that were.
    fn expire(&mut self, oldest: u32) -> usize {
        let before = self.cells.len();
        self.cells.retain(|cell| cell.slot >= oldest);
        self.lost = self.lost.filter(|slot| *slot >= oldest);
        before - self.cells.len()
    }

    fn counts_for_nothing(&self) -> bool {
        self.cells.is_empty() && self.lost.is_none()
    }
}

impl Counter {
    /// Empty; the window in milliseconds, at least a minute.
    pub(super) fn new(tally: Tally, window_ms: u64, most: usize) -> Self {
        let slot_ms = window_ms.div_ceil(u64::from(SLOTS)).max(1);
        Self { tally, slot_ms, most, rows: HashMap::new(), cells: 0, turned_away: None, swept: None }
    }

    /// One that counts in the same way, and has nothing yet.
    pub(super) fn emptied(&self) -> Self {
        let Self { tally, slot_ms, most, .. } = *self;
        Self { tally, slot_ms, most, rows: HashMap::new(), cells: 0, turned_away: None, swept: None }
    }

    /// Keys kept.
    pub(super) fn keys(&self) -> usize {
        self.rows.len()
    }

    /// Keeps so many keys from now on; what is there already stays until it expires.
    pub(super) fn keep(&mut self, most: usize) {
        self.most = most;
    }

    /// Counts an event and says the number with it. `now_ms` must not go back.
    pub(super) fn add(&mut self, key: Key, what: i64, now_ms: u64) -> Value {
        let (slot, oldest) = self.slots(now_ms);
        if let Some(row) = self.rows.get_mut(&key) {
            self.cells -= row.expire(oldest);
        } else if !self.admit(key, slot, oldest) {
            return Value::Unknown;
        }
        let cell = Cell { slot, what };
        if !self.place(key, cell) {
            // Lost until it is placed: a row that counts for nothing would be swept away.
            let before = self.rows.get_mut(&key).and_then(|row| row.lost.replace(slot));
            if self.sweep(slot, oldest)
                && self.place(key, cell)
                && let Some(row) = self.rows.get_mut(&key)
            {
                row.lost = before;
            }
        }
        self.read(key, now_ms)
    }

    /// The number, without an event.
    pub(super) fn read(&self, key: Key, now_ms: u64) -> Value {
        let (_, oldest) = self.slots(now_ms);
        let counts = |slot: Option<u32>| slot.is_some_and(|slot| slot >= oldest);
        let Some(row) = self.rows.get(&key) else {
            return if counts(self.turned_away) { Value::Unknown } else { Value::Known(0) };
        };
        if counts(row.lost) {
            return Value::Unknown;
        }
        let live = row.cells.iter().filter(|cell| cell.slot >= oldest);
        Value::Known(match self.tally {
            Tally::Sum => live.fold(0, |sum: i64, cell| sum.saturating_add(cell.what)),
            Tally::Distinct => i64::try_from(live.count()).unwrap_or(i64::MAX),
        })
    }

    /// The slot that runs, and the oldest that counts.
    pub(super) fn slots(&self, now_ms: u64) -> (u32, u32) {
        let slot = u32::try_from(now_ms / self.slot_ms).unwrap_or(u32::MAX);
        (slot, slot.saturating_sub(SLOTS))
    }

    /// Makes a row for a new key if there is room.
    fn admit(&mut self, key: Key, slot: u32, oldest: u32) -> bool {
        let full = |counter: &Self| counter.rows.len() >= counter.most || counter.cells >= counter.most_cells();
        if full(self) && (!self.sweep(slot, oldest) || full(self)) {
            self.turned_away = Some(slot);
            return false;
        }
        // It may be one of those that were turned away.
        let lost = self.turned_away.filter(|turned_away| *turned_away >= oldest);
        self.rows.insert(key, Row { cells: Vec::new(), lost });
        true
    }

    /// False if it needs a cell and there is none.
    fn place(&mut self, key: Key, cell: Cell) -> bool {
        let full = self.cells >= self.most_cells();
        let Some(row) = self.rows.get_mut(&key) else { return false };
        let crowded = row.cells.len() >= MOST_DISTINCT as usize;
        let same = match self.tally {
            Tally::Sum => row.cells.iter_mut().find(|known| known.slot == cell.slot),
            Tally::Distinct => row.cells.iter_mut().find(|known| known.what == cell.what),
        };
        match (same, self.tally) {
            (Some(known), Tally::Sum) => known.what = known.what.saturating_add(cell.what),
            (Some(known), Tally::Distinct) => known.slot = cell.slot,
            (None, Tally::Distinct) if crowded => {
                // The ones seen last are kept: while one that was dropped would count, all of them do.
                if let Some(oldest) = row.cells.iter_mut().min_by_key(|known| known.slot) {
                    *oldest = cell;
                }
            }
            (None, _) if full => return false,
            (None, _) => {
                row.cells.push(cell);
                self.cells += 1;
            }
        }
        true
    }

    fn most_cells(&self) -> usize {
        self.most.saturating_mul(CELLS_PER_KEY)
    }

    /// Forgets rows that count for nothing, at most once a slot: a flood of keys must not cost a walk each. False if that
    /// was done already.
    fn sweep(&mut self, slot: u32, oldest: u32) -> bool {
        if self.swept == Some(slot) {
            return false;
        }
        self.swept = Some(slot);
        let mut gone = 0;
        self.rows.retain(|_, row| {
            gone += row.expire(oldest);
            !row.counts_for_nothing()
        });
        self.cells -= gone;
        true
    }
}
