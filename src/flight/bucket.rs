//! Tokens a minute, by the generic cell rate algorithm, with an account that is corrected afterwards.
//!
//! What a call will use is not known when it begins: an estimate is taken, and settled once the provider has counted.
//! The law, held by a property test: at every moment the bucket is at least as full as it would be if every call had taken
//! exactly what it used when it began. So nobody gains by a refund; at most a refund comes out smaller than it might be,
//! when the bucket ran empty in between. The clock is passed in; nothing here locks.

use std::time::Duration;

/// A minute in nanoseconds: what a bucket holds.
const MINUTE: u64 = 60_000_000_000;

/// What a caller is told of its tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenRoom {
    /// Tokens a minute.
    pub limit: u32,
    /// Tokens that may be asked for at once now.
    pub remaining: u32,
    /// Until nothing of the limit is used.
    pub reset: Duration,
}

/// What one caller uses of its tokens. Moments are nanoseconds since the caller was first seen.
#[derive(Clone, Copy, Default, Debug)]
pub struct Bucket {
    /// When it will be empty.
    due: u64,
    /// All that was ever poured in, in nanoseconds; it may wrap.
    poured: u64,
}

/// What one call took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    per_minute: u32,
    ns: u64,
    poured: u64,
}

impl Bucket {
    /// Takes `tokens`, at most a whole minute's worth: a call larger than the limit runs when nothing else is used.
    ///
    /// # Errors
    /// How long to wait until they fit.
    pub fn take(&mut self, now: u64, tokens: u64, per_minute: u32) -> Result<Taken, Duration> {
        let ns = cost(tokens.min(u64::from(per_minute)), per_minute);
        let after = self.level(now).saturating_add(ns);
        if after > MINUTE {
            return Err(Duration::from_nanos(after - MINUTE));
        }
        self.pour(now, ns);
        Ok(Taken { per_minute, ns, poured: self.poured })
    }

    /// Puts what was really used in the place of what was taken.
    pub fn settle(&mut self, now: u64, taken: Taken, used: u64) {
        let used = cost(used, taken.per_minute);
        if used >= taken.ns {
            self.pour(now, used - taken.ns);
            return;
        }
        let level = self.level(now);
        // Had the call taken less, the bucket could be empty by now but for what was poured in since.
        let since = self.poured.wrapping_sub(taken.poured);
        let back = (taken.ns - used).min(level.saturating_sub(since));
        self.due = now.saturating_add(level - back);
    }

    /// Adds what was used without having been taken.
    pub fn owe(&mut self, now: u64, tokens: u64, per_minute: u32) {
        self.pour(now, cost(tokens, per_minute));
    }

    /// What is left.
    pub fn room(&self, now: u64, per_minute: u32) -> TokenRoom {
        let level = self.level(now);
        let free = u128::from(MINUTE.saturating_sub(level)) * u128::from(per_minute) / u128::from(MINUTE);
        let remaining = u32::try_from(free).unwrap_or(u32::MAX);
        TokenRoom { limit: per_minute, remaining, reset: Duration::from_nanos(level) }
    }

    fn level(&self, now: u64) -> u64 {
        self.due.saturating_sub(now)
    }

    fn pour(&mut self, now: u64, ns: u64) {
        self.due = now.saturating_add(self.level(now)).saturating_add(ns);
        self.poured = self.poured.wrapping_add(ns);
    }
}

/// How long so many tokens take to flow off.
fn cost(tokens: u64, per_minute: u32) -> u64 {
    let ns = u128::from(tokens) * u128::from(MINUTE) / u128::from(per_minute.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_wait_that_is_told_is_the_wait_that_is_needed() {
        let mut bucket = Bucket::default();
        bucket.take(0, 600, 600).unwrap();
        let wait = bucket.take(0, 100, 600).unwrap_err();
        assert_eq!(wait, Duration::from_secs(10));
        assert!(bucket.clone().take(10 * SECOND - 1, 100, 600).is_err());
        assert!(bucket.take(10 * SECOND, 100, 600).is_ok());
        let room = TokenRoom { limit: 600, remaining: 0, reset: Duration::from_secs(60) };
        assert_eq!(bucket.room(10 * SECOND, 600), room);
    }

    #[test]
    fn a_call_larger_than_the_limit_runs_alone() {
        let mut bucket = Bucket::default();
        assert!(bucket.take(0, 1_000_000, 600).is_ok());
        assert_eq!(bucket.take(0, 1, 600), Err(Duration::from_millis(100)));
    }

    #[test]
    fn what_was_not_used_comes_back_and_what_was_used_beyond_is_owed() {
        let mut bucket = Bucket::default();
        let taken = bucket.take(0, 500, 600).unwrap();
        bucket.settle(0, taken, 100);
        assert_eq!(bucket.room(0, 600).remaining, 500);
        let taken = bucket.take(0, 100, 600).unwrap();
        bucket.settle(0, taken, 1_100);
        assert_eq!(bucket.take(0, 100, 600), Err(Duration::from_secs(70)));
    }

    #[test]
    fn time_has_given_back_already_what_an_idle_bucket_would_refund() {
        let mut bucket = Bucket::default();
        let early = bucket.take(0, 600, 600).unwrap();
        let late = bucket.take(60 * SECOND, 600, 600).unwrap();
        bucket.settle(60 * SECOND, early, 0);
        assert_eq!(bucket.room(60 * SECOND, 600).remaining, 0, "the later call still holds its own");
        bucket.settle(60 * SECOND, late, 0);
        assert_eq!(bucket.room(60 * SECOND, 600).remaining, 600);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Take(u64),
        Settle(usize, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..40 * SECOND).prop_map(Step::Wait),
            (1u64..900).prop_map(Step::Take),
            (0usize..8, 0u64..1_200).prop_map(|(which, used)| Step::Settle(which, used)),
        ];
        prop::collection::vec(step, 1..60)
    }

    /// The bucket that knew from the beginning what each call would use.
    fn foreseeing(history: &[(u64, u64)], now: u64) -> u64 {
        let mut due = 0u64;
        for &(at, used) in history {
            due = due.max(at) + cost(used, 600);
        }
        due.saturating_sub(now)
    }

    proptest! {
        #[test]
        fn nobody_gains_by_a_refund(steps in steps()) {
            let (mut bucket, mut now) = (Bucket::default(), 0u64);
            let mut open: Vec<(usize, Taken)> = Vec::new();
            // When each call began, and what it used, or holds.
            let mut history: Vec<(u64, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Wait(ns) => now += ns,
                    Step::Take(tokens) => if let Ok(taken) = bucket.take(now, tokens, 600) {
                        open.push((history.len(), taken));
                        history.push((now, tokens.min(600)));
                    },
                    Step::Settle(which, used) => if which < open.len() {
                        let (call, taken) = open.remove(which);
                        bucket.settle(now, taken, used);
                        history[call].1 = used;
                    },
                }
                prop_assert!(bucket.level(now) >= foreseeing(&history, now));
                prop_assert!(bucket.room(now, 600).remaining <= 600);
            }
        }

        #[test]
        fn estimates_never_exceed_the_rate_and_a_minutes_burst(asks in prop::collection::vec((0..10 * SECOND, 1u64..700), 1..80)) {
            let (mut bucket, mut now, mut admitted) = (Bucket::default(), 0u64, 0u64);
            for (gap, tokens) in asks {
                now += gap;
                if bucket.take(now, tokens, 600).is_ok() {
                    admitted += tokens.min(600);
                }
            }
            prop_assert!(admitted <= 600 + now * 600 / MINUTE);
        }

        #[test]
        fn a_refund_at_once_is_whole(before in 0u64..500, tokens in 1u64..600, used in 0u64..600) {
            let mut bucket = Bucket::default();
            bucket.take(0, before, 600).unwrap();
            let left = bucket.room(0, 600).remaining;
            if let Ok(taken) = bucket.take(0, tokens, 600) {
                bucket.settle(0, taken, used.min(tokens));
                prop_assert_eq!(u64::from(bucket.room(0, 600).remaining), u64::from(left) - used.min(tokens));
            }
        }
    }
}
