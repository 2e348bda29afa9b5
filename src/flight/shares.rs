//! Who has how much of something that all callers share, and who has more than a fair part of it.
//!
//! While there is room nobody is asked. In the last tenth of it a caller that holds its share already (the whole, divided
//! by how many have wanted some within the last two seconds) is refused, so that the others find a place: one that offers
//! ten times as much gets what the others leave, and one that is alone gets all. Nothing waits and nothing is locked:
//! plain atomics, of which a call that finds room touches one. Callers sit on a fixed number of seats by their place in
//! the configuration; where there are more callers than seats, those of one seat are one caller here.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::overload::Class;

/// As many as there are bits in a word.
const SEATS: usize = 64;
/// Who wanted something in this span or in the one before is counted.
const SPAN: Duration = Duration::from_secs(1);

/// What a call is worth, and whose it is among those who share something.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Standing {
    /// Its class.
    pub class: Class,
    /// Its caller's seat, below 64.
    pub seat: u8,
}

impl Standing {
    /// The seat of the caller with this number.
    pub fn seat_of(number: usize) -> u8 {
        u8::try_from(number % SEATS).unwrap_or(0)
    }
}

/// What each seat holds, and which have wanted something lately.
#[derive(Debug)]
pub struct Shares {
    held: [AtomicU32; SEATS],
    start: Instant,
    /// A bit for each seat that wanted something in this span, and in the one before.
    wanting: AtomicU64,
    wanted: AtomicU64,
    /// When this span began, in milliseconds after `start`.
    turned_ms: AtomicU64,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            held: [const { AtomicU32::new(0) }; SEATS],
            start: Instant::now(),
            wanting: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            turned_ms: AtomicU64::new(0),
        }
    }
}

impl Shares {
    /// From how much on it is asked who holds how much: the last tenth, and at least the last one of several.
    pub fn crowded(room: u32) -> u32 {
        room - (room / 10).max(u32::from(room > 1))
    }

    /// Adds to what a seat holds; says what it held before.
    pub fn add(&self, seat: u8, amount: u32) -> u32 {
        self.seat(seat).fetch_add(amount, Relaxed)
    }

    /// Takes it back.
    pub fn sub(&self, seat: u8, amount: u32) {
        self.seat(seat).fetch_sub(amount, Relaxed);
    }

    /// What a seat holds.
    pub fn held(&self, seat: u8) -> u32 {
        self.seat(seat).load(Relaxed)
    }

    /// Whether a seat that held `before` of a crowded `room` has its fair part of it already. It is noted as wanting more.
    #[cold]
    pub fn has_its_part(&self, seat: u8, before: u32, room: u32, now: Instant) -> bool {
        before >= (room / self.want(seat, now)).max(1)
    }

    /// How many seats have wanted something lately, this one included; at least one.
    pub fn want(&self, seat: u8, now: Instant) -> u32 {
        self.turn(now);
        let mine = 1u64 << (u32::from(seat) % u64::BITS);
        let wanting = self.wanting.fetch_or(mine, Relaxed) | mine;
        (wanting | self.wanted.load(Relaxed)).count_ones()
    }

    /// Begins another span if it is time. Two who do so at once forget a little early, which costs a share, no bound.
    fn turn(&self, now: Instant) {
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let (now, span) = (ms(now.saturating_duration_since(self.start)), ms(SPAN));
        let turned = self.turned_ms.load(Relaxed);
        if now < turned.saturating_add(span) || self.turned_ms.compare_exchange(turned, now, Relaxed, Relaxed).is_err()
        {
            return;
        }
        let last = self.wanting.swap(0, Relaxed);
        self.wanted.store(if now < turned.saturating_add(2 * span) { last } else { 0 }, Relaxed);
    }

    fn seat(&self, seat: u8) -> &AtomicU32 {
        let [first, ..] = &self.held;
        self.held.get(usize::from(seat) % SEATS).unwrap_or(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_wanted_nothing_for_two_seconds_is_not_counted() {
        let shares = Shares::default();
        let at = |ms: u64| shares.start + Duration::from_millis(ms);
        assert_eq!([shares.want(1, at(0)), shares.want(2, at(10)), shares.want(2, at(20))], [1, 2, 2]);
        assert_eq!(shares.want(2, at(1_010)), 2, "the first is still remembered");
        assert_eq!(shares.want(2, at(2_020)), 1, "and now it is not");
        assert_eq!(shares.want(3, at(60_000)), 1, "after a silence nobody is");
    }

    #[test]
    fn one_alone_may_have_all_and_one_of_two_the_half() {
        let (shares, now) = (Shares::default(), Instant::now());
        assert!(!shares.has_its_part(1, 19, 20, now));
        assert!(!shares.has_its_part(2, 0, 20, now));
        assert!(shares.has_its_part(1, 10, 20, now) && !shares.has_its_part(2, 9, 20, now));
        assert_eq!([1, 2, 9, 20, 100].map(Shares::crowded), [1, 1, 8, 18, 90]);
    }
}
