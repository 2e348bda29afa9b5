//! Who has how much of something that all callers share, and who has more than a fair part of it.
//!
//! While there is room nobody is asked. In the last tenth of it a caller that holds its share already (the whole, divided
//! by how many have wanted some within the last two seconds) gets only what is not kept for those who hold less: one that
//! offers ten times as much gets what the others leave, and one that is alone gets all. Kept is no more than they have
//! shown to need: a place that stood empty whenever one of them came is given up a second later, and when one of them was
//! refused, twice as much is kept. So a low rate costs a place and not a tenth, and nobody's share depends on luck.
//!
//! Nothing waits and nothing is locked: plain atomics, of which a call that finds room touches one. Callers sit on a fixed
//! number of seats by their place in the configuration; where there are more callers than seats, those of one seat are one
//! caller here.

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

/// One that asks for some of what has become scarce.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// Who asks.
    pub seat: u8,
    /// What it holds, without what it asks for.
    pub held: u32,
    /// What all hold, without what it asks for.
    pub taken: u32,
    /// What there is for its class.
    pub room: u32,
    /// When it asks.
    pub now: Instant,
}

/// What each seat holds, and which have wanted something lately.
#[derive(Debug)]
pub struct Shares {
    held: [AtomicU32; SEATS],
    /// What those below their share have shown to need, at most a tenth.
    needed: AtomicU32,
    /// The least that one of them left in this span; `u32::MAX` if none has asked.
    left: AtomicU32,
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
            needed: AtomicU32::new(u32::MAX),
            left: AtomicU32::new(u32::MAX),
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

    /// Whether one may have more of a crowded room: below its share whatever is left, else what is not kept for others.
    /// It is noted as wanting more.
    #[cold]
    pub fn may_have(&self, asking: &Asking) -> bool {
        let wanting = self.want(asking);
        let others = wanting & !bit(asking.seat);
        let share = (asking.room / wanting.count_ones()).max(1);
        let free = asking.room.saturating_sub(asking.taken);
        if asking.held >= share {
            return free > self.kept(others, share, asking.room);
        }
        if others != 0 {
            self.learn(free, asking.room);
        }
        free > 0
    }

    /// Whether a seat holds its fair part already. It is noted as wanting more.
    #[cold]
    pub fn has_its_part(&self, asking: &Asking) -> bool {
        asking.held >= (asking.room / self.want(asking).count_ones()).max(1)
    }

    /// How much of what is free is for others: what they have shown to need, and no more than they lack of their shares.
    fn kept(&self, others: u64, share: u32, room: u32) -> u32 {
        let most = self.needed.load(Relaxed).min(room - Self::crowded(room));
        let mut lacking = 0u32;
        for seat in (0u8..).zip(&self.held).filter(|(seat, _)| others & bit(*seat) != 0).map(|(_, held)| held) {
            lacking = lacking.saturating_add(share.saturating_sub(seat.load(Relaxed)));
        }
        most.min(lacking)
    }

    /// Learns from one below its share that found so much free.
    fn learn(&self, free: u32, room: u32) {
        self.left.fetch_min(free.saturating_sub(1), Relaxed);
        if free == 0 {
            let most = room - Self::crowded(room);
            let _ = self.needed.fetch_update(Relaxed, Relaxed, |needed| Some(needed.saturating_mul(2).min(most)));
        }
    }

    /// Which seats have wanted something lately, this one included: a bit for each.
    fn want(&self, asking: &Asking) -> u64 {
        self.turn(asking);
        let mine = bit(asking.seat);
        let wanting = self.wanting.fetch_or(mine, Relaxed) | mine;
        wanting | self.wanted.load(Relaxed)
    }

    /// Begins another span if it is time. Two who do so at once forget a little early, which costs a share, no bound.
    fn turn(&self, asking: &Asking) {
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let (now, span) = (ms(asking.now.saturating_duration_since(self.start)), ms(SPAN));
        let turned = self.turned_ms.load(Relaxed);
        if now < turned.saturating_add(span) || self.turned_ms.compare_exchange(turned, now, Relaxed, Relaxed).is_err()
        {
            return;
        }
        let last = self.wanting.swap(0, Relaxed);
        let last = if now < turned.saturating_add(2 * span) { last } else { 0 };
        self.wanted.store(last, Relaxed);
        self.give_up(last, asking.room);
    }

    /// At the end of a span: what was left by everyone for whom it was kept is not kept any longer. Where there is nobody
    /// to learn from any more, the next will find the whole tenth.
    fn give_up(&self, wanted: u64, room: u32) {
        let left = self.left.swap(u32::MAX, Relaxed);
        let most = room - Self::crowded(room);
        let needed = self.needed.load(Relaxed).min(most);
        let needed = match left {
            u32::MAX if wanted.count_ones() > 1 => needed,
            u32::MAX => u32::MAX,
            left => needed.saturating_sub(left).max(1),
        };
        self.needed.store(needed, Relaxed);
    }

    fn seat(&self, seat: u8) -> &AtomicU32 {
        let [first, ..] = &self.held;
        self.held.get(usize::from(seat) % SEATS).unwrap_or(first)
    }
}

/// The bit of a seat.
fn bit(seat: u8) -> u64 {
    1u64 << (u32::from(seat) % u64::BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(seat: u8, (held, taken): (u32, u32), now: Instant) -> Asking {
        Asking { seat, held, taken, room: 20, now }
    }

    #[test]
    fn who_has_wanted_nothing_for_two_seconds_is_not_counted() {
        let shares = Shares::default();
        let want =
            |seat, ms: u64| shares.want(&asking(seat, (0, 20), shares.start + Duration::from_millis(ms))).count_ones();
        assert_eq!([want(1, 0), want(2, 10), want(2, 20)], [1, 2, 2]);
        assert_eq!(want(2, 1_010), 2, "the first is still remembered");
        assert_eq!(want(2, 2_020), 1, "and now it is not");
        assert_eq!(want(3, 60_000), 1, "after a silence nobody is");
    }

    #[test]
    fn what_is_kept_grows_when_somebody_below_its_share_is_refused_and_shrinks_when_it_stands_empty() {
        let shares = Shares::default();
        let at = |ms: u64| shares.start + Duration::from_millis(ms);
        let may = |seat, held, taken, ms| shares.may_have(&asking(seat, (held, taken), at(ms)));
        shares.add(1, 18);
        assert!(may(1, 18, 18, 0) && may(1, 19, 19, 0), "nobody else has asked");
        assert!(may(2, 0, 18, 100), "and left one");
        assert!(!may(1, 18, 18, 100), "at first a tenth is kept");
        assert!(may(1, 18, 18, 1_100) && !may(1, 18, 19, 1_100), "and then one, for nobody needed the other");
        assert!(!may(2, 0, 20, 1_200), "none was left");
        assert!(!may(1, 18, 18, 1_300), "so there are two again");
        assert!(!may(1, 18, 18, 2_400), "no longer than there is reason to");
        assert!(may(1, 18, 19, 4_500), "the other has not asked for two seconds");
    }

    #[test]
    fn no_more_is_kept_than_others_lack_of_their_shares() {
        let (shares, now) = (Shares::default(), Instant::now());
        shares.add(2, 9);
        assert!(shares.may_have(&asking(2, (9, 19), now)));
        assert!(shares.may_have(&asking(1, (10, 18), now)) && !shares.may_have(&asking(1, (10, 19), now)));
        shares.add(2, 1);
        assert!(shares.may_have(&asking(1, (10, 19), now)), "it has its share");
    }

    #[test]
    fn one_alone_may_have_all_and_one_of_two_the_half() {
        let (shares, now) = (Shares::default(), Instant::now());
        let full = |seat, held| shares.has_its_part(&asking(seat, (held, 20), now));
        assert!(!full(1, 19) && !full(2, 0));
        assert!(full(1, 10) && !full(2, 9));
        assert_eq!([1, 2, 9, 20, 100].map(Shares::crowded), [1, 1, 8, 18, 90]);
    }
}
