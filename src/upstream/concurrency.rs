//! How many requests a provider can take at a time, learned from what becomes of them: more while it keeps up, much less
//! when it says, or shows by silence, that it is too much.
//!
//! Additive increase, multiplicative decrease, as TCP does it. Some points differ, because answers of a model differ from
//! packets:
//!
//! * **Only failures lower the limit**: 429, 503, other 5xx, nothing shown in time. How long an answer took in all says
//!   how long it was, not how busy the provider is. And a provider that fails with no more than the floor in flight is not
//!   failing for load: an outage, with the breaker's single probes in it, leaves the limit about where it was.
//! * **The time to the first content of a stream** is comparable between calls, and grows when requests queue up at the
//!   provider. One that is far above what is usual is no reason for less yet, but it is none for more. Whole answers show
//!   nothing until they are done, so their times are not looked at.
//! * **One event lowers it once.** When a provider chokes, everything in flight fails. Requests that were sent before the
//!   last decrease say nothing about the limit that came after it.
//! * **Only success near the limit raises it**, by about one for a limit's worth of answers: a provider that is asked for
//!   little has not shown that it could take more.
//!
//! Pure: the clock is passed in, and nothing here counts what is in flight. The floor lets a provider that is well again
//! show it; the ceiling is the operator's word.

use std::time::Duration;

use tokio::time::Instant;

/// Where the limit begins, within its bounds: an ordinary account takes that much.
const FIRST: u32 = 32;
/// What is left of it after an overload, in hundredths.
const KEPT_PERCENT: u64 = 70;
/// Of the limit, in hundredths: so much must be in flight for a success to count.
const NEAR_PERCENT: u64 = 50;
/// A first content this many times later than usual is late.
const LATE: u32 = 3;
/// No wait below this is late: small times vary for small reasons.
const NEVER_LATE: Duration = Duration::from_millis(500);
/// How much a new time moves what is usual: one part in so many.
const MEMORY: u32 = 32;
/// Parts of one place in which the limit is kept, so that it can grow by less than one.
const PARTS: u64 = 1_000;

/// What the limit moves between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// At least 1.
    pub least: u32,
    /// At least `least`.
    pub most: u32,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was answered; after this long with its first content, if it was a stream.
    Answered(Option<Duration>),
    /// The provider has too much to do, or acts as if it had.
    Overloaded,
}

/// A request that ended, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// When it was sent.
    pub sent: Instant,
    /// How many were on their way when it ended, itself included.
    pub in_flight: u32,
    /// What became of it.
    pub outcome: Outcome,
}

/// A limit that moves.
#[derive(Debug)]
pub struct Concurrency {
    /// In thousandths of a place.
    limit: u64,
    lowered: Option<Instant>,
    /// What a first content usually takes.
    usual: Option<Duration>,
}

impl Concurrency {
    /// At its beginning.
    pub fn new() -> Self {
        Self { limit: u64::from(FIRST) * PARTS, lowered: None, usual: None }
    }

    /// How many may be in flight now. The bounds may change at any time; what was learned stays.
    pub fn limit(&self, bounds: Bounds) -> u32 {
        u32::try_from(self.limit / PARTS).unwrap_or(u32::MAX).clamp(bounds.least, bounds.most.max(bounds.least))
    }

    /// Learns from a request.
    pub fn learn(&mut self, now: Instant, request: &Ended, bounds: Bounds) {
        let Ended { sent, in_flight, outcome } = *request;
        // From where it shows: a limit beyond its bounds would move unseen.
        let (least, most) = (u64::from(bounds.least) * PARTS, u64::from(bounds.most.max(bounds.least)) * PARTS);
        let limit = self.limit.clamp(least, most);
        self.limit = match outcome {
            Outcome::Overloaded if in_flight <= bounds.least => limit,
            Outcome::Overloaded if self.lowered.is_some_and(|lowered| sent <= lowered) => limit,
            Outcome::Overloaded => {
                self.lowered = Some(now);
                (limit * KEPT_PERCENT / 100).max(least)
            }
            Outcome::Answered(first_content) => {
                let late = first_content.is_some_and(|time| self.is_late(time));
                let near = u64::from(in_flight) * PARTS * 100 >= limit * NEAR_PERCENT;
                let more = PARTS * PARTS / limit.max(1);
                if near && !late { (limit + more).min(most) } else { limit }
            }
        };
    }

    /// Compares with what was usual before, then counts it in.
    fn is_late(&mut self, time: Duration) -> bool {
        let usual = self.usual.unwrap_or(time);
        let late = time > NEVER_LATE && time > usual.saturating_mul(LATE);
        self.usual = Some(usual.saturating_mul(MEMORY - 1).saturating_add(time) / MEMORY);
        late
    }
}

impl Default for Concurrency {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { least: 2, most: 100 };
    const GOOD: Outcome = Outcome::Answered(None);

    struct World {
        now: Instant,
        limit: Concurrency,
    }

    impl World {
        fn new() -> Self {
            Self { now: Instant::now(), limit: Concurrency::new() }
        }

        fn limit(&self) -> u32 {
            self.limit.limit(BOUNDS)
        }

        /// One request that takes a second, with `in_flight` on their way.
        fn one(&mut self, in_flight: u32, outcome: Outcome) {
            let sent = self.now + Duration::from_millis(1);
            self.now += Duration::from_secs(1);
            self.limit.learn(self.now, &Ended { sent, in_flight, outcome }, BOUNDS);
        }
    }

    #[test]
    fn a_provider_that_chokes_is_given_less_once_for_all_that_was_in_flight() {
        let mut world = World::new();
        assert_eq!(world.limit(), 32);
        let sent = world.now;
        world.now += Duration::from_secs(1);
        for in_flight in (1..=32).rev() {
            world.limit.learn(world.now, &Ended { sent, in_flight, outcome: Outcome::Overloaded }, BOUNDS);
        }
        assert_eq!(world.limit(), 22, "not lowered again for what was sent before");
        world.one(10, Outcome::Overloaded);
        assert_eq!(world.limit(), 15);
    }

    #[test]
    fn it_grows_by_about_one_for_a_limits_worth_of_answers_near_the_limit() {
        let mut world = World::new();
        for _ in 0..32 {
            world.one(32, GOOD);
        }
        assert!((32..=33).contains(&world.limit()), "{}", world.limit());
        for _ in 0..3_300 {
            world.one(world.limit(), GOOD);
        }
        assert!((75..=95).contains(&world.limit()), "{}", world.limit());
        let before = world.limit();
        for _ in 0..10_000 {
            world.one(before / 4, GOOD);
        }
        assert_eq!(world.limit(), before, "little asked, nothing shown");
    }

    #[test]
    fn a_stream_that_starts_late_is_no_reason_for_more_and_the_length_of_answers_is_none_at_all() {
        let stream = |ms| Outcome::Answered(Some(Duration::from_millis(ms)));
        let mut world = World::new();
        for _ in 0..200 {
            world.one(32, stream(400));
        }
        let usual = world.limit.limit;
        assert!(usual > 32 * PARTS);
        world.one(40, stream(2_000));
        assert_eq!(world.limit.limit, usual, "five times the usual");
        world.one(40, stream(900));
        assert!(world.limit.limit > usual);
        for _ in 0..400 {
            world.one(40, stream(2_000));
        }
        let slow = world.limit.limit;
        world.one(40, stream(2_000));
        assert!(world.limit.limit > slow, "slow became usual");
    }

    #[test]
    fn after_an_outage_it_recovers() {
        let mut world = World::new();
        for _ in 0..100 {
            world.one(2, Outcome::Overloaded);
        }
        assert_eq!(world.limit(), 32, "two at a time are not too much");
        for _ in 0..100 {
            world.one(20, Outcome::Overloaded);
        }
        assert_eq!(world.limit(), 2, "the floor");
        for _ in 0..600 {
            world.one(world.limit(), GOOD);
        }
        assert!(world.limit() >= 30, "{}", world.limit());
    }

    #[test]
    fn a_reload_may_narrow_the_bounds_and_widen_them_again() {
        let mut limit = Concurrency::new();
        assert_eq!(limit.limit(Bounds { least: 1, most: 5 }), 5);
        assert_eq!(limit.limit(Bounds { least: 50, most: 60 }), 50);
        let now = Instant::now();
        limit.learn(
            now,
            &Ended { sent: now, in_flight: 5, outcome: Outcome::Overloaded },
            Bounds { least: 1, most: 5 },
        );
        assert_eq!(limit.limit(BOUNDS), 3, "from where it showed");
    }

    proptest! {
        #[test]
        fn it_never_leaves_its_bounds_and_recovers_from_anything(
            steps in prop::collection::vec((any::<bool>(), 0u32..300, 0u64..5_000, prop::option::of(0u64..60_000)), 0..300),
            least in 1u32..10,
            span in 0u32..200,
        ) {
            let bounds = Bounds { least, most: least + span };
            let mut now = Instant::now();
            let mut limit = Concurrency::new();
            for (good, in_flight, took, first) in steps {
                let sent = now;
                now += Duration::from_millis(took);
                let outcome =
                    if good { Outcome::Answered(first.map(Duration::from_millis)) } else { Outcome::Overloaded };
                limit.learn(now, &Ended { sent, in_flight, outcome }, bounds);
                prop_assert!((bounds.least..=bounds.most).contains(&limit.limit(bounds)));
            }
            for _ in 0..60_000 {
                limit.learn(now, &Ended { sent: now, in_flight: limit.limit(bounds), outcome: GOOD }, bounds);
            }
            prop_assert_eq!(limit.limit(bounds), bounds.most);
        }

        #[test]
        fn an_overload_never_raises_it_and_a_success_never_lowers_it(
            good in any::<bool>(), in_flight in 0u32..200, before in 2u32..100,
        ) {
            let now = Instant::now();
            let mut limit = Concurrency { limit: u64::from(before) * PARTS, lowered: None, usual: None };
            limit.learn(now, &Ended { sent: now, in_flight, outcome: if good { GOOD } else { Outcome::Overloaded } }, BOUNDS);
            let after = limit.limit(BOUNDS);
            let right_way = if good { after >= before } else { after <= before };
            prop_assert!(right_way, "from {} to {}", before, after);
        }
    }
}
