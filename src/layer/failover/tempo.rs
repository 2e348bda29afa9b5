//! How long a route's calls take to show content, and how many of them may be hedged: what hedging remembers.
//!
//! The last few hundred times are kept, whole answers and streams apart, since a whole answer shows nothing until it is
//! done. Hedges are paid from what calls put in: each call adds its share, a hedge takes one whole. It outlives reloads
//! with its route.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::asking::{Hedge, HedgeAfter, WHOLE};
use crate::upstream::latency::Form;

/// Times kept of each form.
const KEPT: usize = 256;
/// Fewer say nothing of the slowest twentieth.
const ENOUGH: usize = 32;
/// New times after which the limit is looked up again.
const AGAIN_AFTER: usize = 16;
/// Most hedges that can be saved up.
const MOST_SAVED: i64 = 10;

/// One route's memory.
#[derive(Default)]
pub struct Tempo {
    /// A `std` mutex held for a few additions, and every sixteenth call for a selection; never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    whole: Times,
    streamed: Times,
    /// Millionths of a hedge.
    hedges: i64,
    /// Millionths of the currency's major unit.
    spend: i64,
    /// The dearest call so far, which bounds what is saved up.
    dearest: i64,
}

#[derive(Default)]
struct Times {
    /// Microseconds, at most [`KEPT`] of them, the oldest overwritten.
    micros: Vec<u32>,
    next: usize,
    limit: Option<Duration>,
}

impl Tempo {
    /// A call begins that is estimated to cost this, in millionths.
    pub fn call(&self, policy: &Hedge, cost: Option<i64>) {
        let mut state = self.state();
        state.hedges = (state.hedges + i64::from(policy.max_share)).min(MOST_SAVED * i64::from(WHOLE));
        if let (Some(share), Some(cost)) = (policy.max_spend, cost) {
            state.dearest = state.dearest.max(cost);
            let added = cost.saturating_mul(i64::from(share)) / i64::from(WHOLE);
            state.spend = state.spend.saturating_add(added).min(state.dearest.saturating_mul(MOST_SAVED));
        }
    }

    /// True if one more hedge, of this cost, may be afforded; takes it.
    pub fn withdraw(&self, policy: &Hedge, cost: Option<i64>) -> bool {
        let mut state = self.state();
        let cost = cost.filter(|_| policy.max_spend.is_some()).unwrap_or_default();
        if state.hedges < i64::from(WHOLE) || state.spend < cost {
            return false;
        }
        state.hedges -= i64::from(WHOLE);
        state.spend -= cost;
        true
    }

    /// A hedge was never sent after all.
    pub fn refund(&self, policy: &Hedge, cost: Option<i64>) {
        let mut state = self.state();
        state.hedges += i64::from(WHOLE);
        state.spend += cost.filter(|_| policy.max_spend.is_some()).unwrap_or_default();
    }

    /// A call's first candidate showed content after this long, or would have taken longer.
    pub fn took(&self, form: Form, time: Duration) {
        self.state().of(form).add(time);
    }

    /// How long a call's first candidate is to be waited for alone; `None` before enough is known.
    pub fn patience(&self, policy: &Hedge, form: Form) -> Option<Duration> {
        match policy.after {
            HedgeAfter::Fixed(time) => Some(time),
            HedgeAfter::P95 => self.state().of(form).limit,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn of(&mut self, form: Form) -> &mut Times {
        match form {
            Form::Whole => &mut self.whole,
            Form::Streamed => &mut self.streamed,
        }
    }
}

impl Times {
    fn add(&mut self, time: Duration) {
        let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        match self.micros.get_mut(self.next) {
            Some(oldest) => *oldest = micros,
            None => self.micros.push(micros),
        }
        self.next = (self.next + 1) % KEPT;
        if self.micros.len() >= ENOUGH && self.next.is_multiple_of(AGAIN_AFTER) {
            self.limit = Some(p95(&self.micros));
        }
    }
}

/// The time that 95 of 100 did not exceed.
fn p95(micros: &[u32]) -> Duration {
    let mut sorted = micros.to_vec();
    let rank = (micros.len() * 95).div_ceil(100).saturating_sub(1);
    let (_, at, _) = sorted.select_nth_unstable(rank);
    Duration::from_micros(u64::from(*at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Hedge = Hedge { after: HedgeAfter::P95, max_share: 50_000, max_spend: None };

    fn tempo_of(times: impl IntoIterator<Item = u64>) -> Tempo {
        let tempo = Tempo::default();
        times.into_iter().for_each(|ms| tempo.took(Form::Whole, Duration::from_millis(ms)));
        tempo
    }

    #[test]
    fn nothing_is_known_before_enough_calls_and_then_the_slowest_twentieth_is() {
        assert_eq!(tempo_of(1..32).patience(&POLICY, Form::Whole), None);
        let tempo = tempo_of(1..=96);
        assert_eq!(tempo.patience(&POLICY, Form::Whole), Some(Duration::from_millis(92)));
        assert_eq!(tempo.patience(&POLICY, Form::Streamed), None);
        let fixed = Hedge { after: HedgeAfter::Fixed(Duration::from_secs(1)), ..POLICY };
        assert_eq!(Tempo::default().patience(&fixed, Form::Streamed), Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_past_is_forgotten_and_the_memory_bounded() {
        let tempo = tempo_of((0..10_000).map(|_| 5_000).chain((0..KEPT as u64).map(|_| 10)));
        assert_eq!(tempo.patience(&POLICY, Form::Whole), Some(Duration::from_millis(10)));
        assert_eq!(tempo.state().whole.micros.len(), KEPT);
    }

    #[test]
    fn spend_is_limited_as_well_as_number() {
        let tempo = Tempo::default();
        let policy = Hedge { max_share: 500_000, max_spend: Some(100_000), ..POLICY };
        (0..20).for_each(|_| tempo.call(&policy, Some(1_000)));
        assert!(!tempo.withdraw(&policy, Some(5_000)), "a tenth of 20 calls pays for two like them");
        assert!(tempo.withdraw(&policy, Some(2_000)) && !tempo.withdraw(&policy, Some(1)));
        tempo.refund(&policy, Some(2_000));
        assert!(tempo.withdraw(&policy, Some(2_000)));
    }

    proptest! {
        #[test]
        fn no_more_hedges_than_the_share_are_ever_afforded(share in 1u32..500_000, calls in 1u32..2_000) {
            let (tempo, policy) = (Tempo::default(), Hedge { max_share: share, ..POLICY });
            let mut hedged = 0u64;
            for _ in 0..calls {
                tempo.call(&policy, None);
                hedged += u64::from(tempo.withdraw(&policy, None));
            }
            prop_assert!(hedged * u64::from(WHOLE) <= u64::from(calls) * u64::from(share));
        }

        #[test]
        fn the_limit_is_one_of_the_times_and_few_are_above_it(times in prop::collection::vec(0u32..1_000_000, 32..300)) {
            let limit = u32::try_from(p95(&times).as_micros()).unwrap();
            prop_assert!(times.contains(&limit));
            let above = times.iter().filter(|time| **time > limit).count();
            prop_assert!(above * 100 <= times.len() * 5);
        }
    }
}
