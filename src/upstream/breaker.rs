//! The circuit breaker's state machine: pure, the clock passed in.
//!
//! Closed, it counts; it opens at five failures in a row or at half of at least twenty within ten seconds. Open, it
//! refuses for a cool-down that doubles from one second to sixty, with a jitter of a fifth, so that many proxies do not
//! come back in step. Then it lets one probe through at a time and closes after three successes. One that opens again
//! sooner than it has been closed for as long as it had cooled down is flapping, and its cool-down goes on growing.
//! Refusals of our own and the caller's mistakes never reach it.
//!
//! A long cool-down is for those who have somebody else to ask. A call that nobody would take may end it after two
//! seconds, or after as long as the last probe took ([`Breaker::resort`]): a provider that heals is then found at once and
//! not within a minute, and one that is silent does not make every caller wait.

use std::time::Duration;

use tokio::time::Instant;

const BUCKETS: usize = 10;
const BUCKET: Duration = Duration::from_secs(1);
const IN_A_ROW: u32 = 5;
const ENOUGH_CALLS: u32 = 20;
const SUCCESSES_TO_CLOSE: u32 = 3;
const FIRST_COOL_DOWN: Duration = Duration::from_secs(1);
const LONGEST_COOL_DOWN: Duration = Duration::from_secs(60);
/// What a cool-down lasts at least when there is nobody else.
const LAST_RESORT: Duration = Duration::from_secs(2);

/// What a caller of the breaker may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permit {
    /// Go; the breaker is closed.
    Normal,
    /// Go; this one decides whether the breaker closes.
    Probe,
    /// Do not; ask again after this long.
    Refused(Duration),
}

/// What an attempt taught.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lesson {
    /// The upstream works.
    Success,
    /// It does not.
    Failure,
    /// Nothing: the attempt was refused locally, or abandoned.
    Nothing,
}

/// The state as metrics show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// 0
    Closed,
    /// 1
    HalfOpen,
    /// 2
    Open,
}

impl State {
    /// The metric's value.
    pub fn value(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }

    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

#[derive(Clone, Copy, Default, Debug)]
struct Bucket {
    second: u64,
    successes: u32,
    failures: u32,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    /// From `resort` on, a call that nobody else would take ends it.
    Open {
        until: Instant,
        resort: Instant,
    },
    /// Since when somebody probes.
    HalfOpen {
        probing: Option<Instant>,
        successes: u32,
    },
}

/// One upstream's breaker.
#[derive(Debug)]
pub struct Breaker {
    start: Instant,
    phase: Phase,
    buckets: [Bucket; BUCKETS],
    in_a_row: u32,
    /// Times opened since it last proved steady; the exponent of the cool-down.
    trips: u32,
    /// If it stays closed until then, it has proved steady.
    steady: Instant,
    jitter: u64,
}

impl Breaker {
    /// A closed breaker. `seed` spreads the jitter.
    pub fn new(start: Instant, seed: u64) -> Self {
        let buckets = [Bucket::default(); BUCKETS];
        Self { start, phase: Phase::Closed, buckets, in_a_row: 0, trips: 0, steady: start, jitter: seed | 1 }
    }

    /// May an attempt start? A [`Permit::Probe`] must be answered with [`Breaker::learn`], or no other probe follows.
    pub fn permit(&mut self, now: Instant) -> Permit {
        match self.phase {
            Phase::Closed => Permit::Normal,
            Phase::Open { until, .. } if now < until => Permit::Refused(until - now),
            Phase::Open { .. } => {
                self.phase = Phase::HalfOpen { probing: Some(now), successes: 0 };
                Permit::Probe
            }
            Phase::HalfOpen { probing: Some(_), .. } => Permit::Refused(self.jittered(FIRST_COOL_DOWN)),
            Phase::HalfOpen { probing: None, successes } => {
                self.phase = Phase::HalfOpen { probing: Some(now), successes };
                Permit::Probe
            }
        }
    }

    /// Takes note of how an attempt with `permit` ended.
    pub fn learn(&mut self, now: Instant, permit: Permit, lesson: Lesson) {
        match (self.phase, permit) {
            (Phase::Closed, _) => self.count(now, lesson),
            (Phase::HalfOpen { successes, .. }, Permit::Probe) => match lesson {
                Lesson::Failure => self.open(now),
                Lesson::Success if successes + 1 >= SUCCESSES_TO_CLOSE => self.close(now),
                Lesson::Success => self.phase = Phase::HalfOpen { probing: None, successes: successes + 1 },
                Lesson::Nothing => self.phase = Phase::HalfOpen { probing: None, successes },
            },
            // Stragglers from before it opened teach nothing new.
            (Phase::HalfOpen { .. } | Phase::Open { .. }, _) => {}
        }
    }

    /// Opens at once and for at least `least`: a forged answer, an exhausted account. Those that were in flight together
    /// count as one, or their number would decide the cool-down.
    pub fn trip(&mut self, now: Instant, least: Duration) {
        if self.state(now) != State::Open {
            self.open(now);
        }
        if let Phase::Open { until, resort } = &mut self.phase {
            *until = (*until).max(now + least);
            *resort = (*resort).max(now + least);
        }
    }

    /// Nobody else would take a call: how long this one's cool-down must still last, and `None` if it is not cooling
    /// down. A zero means that it was ended, and the next permit is a probe.
    pub fn resort(&mut self, now: Instant) -> Option<Duration> {
        let Phase::Open { until, resort } = &mut self.phase else { return None };
        let wait = resort.min(until).saturating_duration_since(now);
        if wait.is_zero() {
            *until = now;
        }
        Some(wait)
    }

    /// True while it counts and lets everybody through.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// What it is now. An open breaker whose cool-down is over reads as half-open.
    pub fn state(&self, now: Instant) -> State {
        match self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { until, .. } if now < until => State::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    fn count(&mut self, now: Instant, lesson: Lesson) {
        let second = now.saturating_duration_since(self.start).as_secs() / BUCKET.as_secs();
        let index = usize::try_from(second).unwrap_or(0) % BUCKETS;
        let Some(bucket) = self.buckets.get_mut(index) else { return };
        if bucket.second != second {
            *bucket = Bucket { second, ..Bucket::default() };
        }
        match lesson {
            Lesson::Nothing => {}
            Lesson::Success => {
                bucket.successes = bucket.successes.saturating_add(1);
                self.in_a_row = 0;
            }
            Lesson::Failure => {
                bucket.failures = bucket.failures.saturating_add(1);
                self.in_a_row += 1;
                if self.in_a_row >= IN_A_ROW || self.is_half_failing(second) {
                    self.open(now);
                }
            }
        }
    }

    fn is_half_failing(&self, second: u64) -> bool {
        let recent = self.buckets.iter().filter(|bucket| bucket.second + BUCKETS as u64 > second);
        let (failures, all) = recent.fold((0u32, 0u32), |(failures, all), bucket| {
            (
                failures.saturating_add(bucket.failures),
                all.saturating_add(bucket.failures).saturating_add(bucket.successes),
            )
        });
        all >= ENOUGH_CALLS && failures.saturating_mul(2) >= all
    }

    fn open(&mut self, now: Instant) {
        if self.is_closed() && now >= self.steady {
            self.trips = 0;
        }
        let cool_down = self.cool_down();
        self.trips += 1;
        self.in_a_row = 0;
        self.buckets = [Bucket::default(); BUCKETS];
        let probed_for = match self.phase {
            Phase::HalfOpen { probing: Some(since), .. } => now.saturating_duration_since(since),
            _ => Duration::ZERO,
        };
        let resort = now + self.jittered(LAST_RESORT.max(probed_for));
        self.phase = Phase::Open { until: now + self.jittered(cool_down), resort };
    }

    fn close(&mut self, now: Instant) {
        self.phase = Phase::Closed;
        self.in_a_row = 0;
        self.steady = now + self.cool_down();
    }

    /// The next cool-down, before jitter.
    fn cool_down(&self) -> Duration {
        FIRST_COOL_DOWN.saturating_mul(1 << self.trips.min(6)).min(LONGEST_COOL_DOWN)
    }

    /// Between four fifths and six fifths of `span`.
    fn jittered(&mut self, span: Duration) -> Duration {
        // xorshift: spread matters here, not quality.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let percent = 80 + u32::try_from(self.jitter % 41).unwrap_or(20);
        span * percent / 100
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn breaker() -> (Breaker, Instant) {
        let start = Instant::now();
        (Breaker::new(start, 7), start)
    }

    fn fail(breaker: &mut Breaker, now: Instant, times: u32) {
        for _ in 0..times {
            let permit = breaker.permit(now);
            breaker.learn(now, permit, Lesson::Failure);
        }
    }

    #[test]
    fn it_opens_at_five_failures_in_a_row_and_not_at_four() {
        let (mut breaker, now) = breaker();
        fail(&mut breaker, now, 4);
        assert_eq!(breaker.permit(now), Permit::Normal);
        fail(&mut breaker, now, 1);
        assert!(matches!(breaker.permit(now), Permit::Refused(_)));
        assert_eq!(breaker.state(now), State::Open);
    }

    #[test]
    fn it_opens_at_half_of_twenty_within_ten_seconds() {
        let (mut breaker, now) = breaker();
        for index in 0..20 {
            let lesson = if index % 2 == 0 { Lesson::Success } else { Lesson::Failure };
            assert_eq!(breaker.permit(now), Permit::Normal, "{index}");
            breaker.learn(now, Permit::Normal, lesson);
        }
        assert_eq!(breaker.state(now), State::Open);
    }

    #[test]
    fn old_failures_are_forgotten() {
        let (mut breaker, now) = breaker();
        for step in 0..60u64 {
            // Half of them fail, but no ten seconds hold twenty.
            let at = now + Duration::from_millis(step * 1_200);
            breaker.learn(at, Permit::Normal, Lesson::Success);
            breaker.learn(at, Permit::Normal, Lesson::Failure);
            assert_eq!(breaker.state(at), State::Closed, "{step}");
        }
    }

    #[test]
    fn failures_that_were_in_flight_together_trip_it_once() {
        let (mut breaker, now) = breaker();
        (0..20).for_each(|_| breaker.trip(now, Duration::from_secs(10)));
        assert_eq!(breaker.permit(now), Permit::Refused(Duration::from_secs(10)));
        breaker.trip(now, Duration::from_secs(300));
        assert_eq!(breaker.permit(now), Permit::Refused(Duration::from_secs(300)), "the longest wait counts");
    }

    #[test]
    fn one_probe_at_a_time_and_three_successes_close_it() {
        let (mut breaker, now) = breaker();
        fail(&mut breaker, now, 5);
        let later = now + Duration::from_secs(2);
        for _ in 0..3 {
            assert_eq!(breaker.permit(later), Permit::Probe);
            assert!(matches!(breaker.permit(later), Permit::Refused(_)));
            breaker.learn(later, Permit::Probe, Lesson::Success);
        }
        assert_eq!(breaker.permit(later), Permit::Normal);
    }

    #[test]
    fn an_abandoned_probe_makes_room_for_the_next() {
        let (mut breaker, now) = breaker();
        fail(&mut breaker, now, 5);
        let later = now + Duration::from_secs(2);
        assert_eq!(breaker.permit(later), Permit::Probe);
        breaker.learn(later, Permit::Probe, Lesson::Nothing);
        assert_eq!(breaker.permit(later), Permit::Probe);
    }

    #[test]
    fn f16_the_cool_down_grows_to_a_minute_and_no_further() {
        let (mut breaker, mut now) = breaker();
        fail(&mut breaker, now, 5);
        let mut last = Duration::ZERO;
        for _ in 0..12 {
            let Permit::Refused(wait) = breaker.permit(now) else { panic!("open") };
            assert!(wait <= Duration::from_secs(72));
            last = wait;
            now += wait;
            assert_eq!(breaker.permit(now), Permit::Probe);
            breaker.learn(now, Permit::Probe, Lesson::Failure);
        }
        assert!(last >= Duration::from_secs(48));
    }

    /// Opens it, waits until it lets a probe through, and closes it; how long it refused.
    fn flap(breaker: &mut Breaker, now: &mut Instant) -> Duration {
        fail(breaker, *now, 5);
        let Permit::Refused(wait) = breaker.permit(*now) else { panic!("open") };
        *now += wait;
        for _ in 0..3 {
            assert_eq!(breaker.permit(*now), Permit::Probe);
            breaker.learn(*now, Permit::Probe, Lesson::Success);
        }
        assert!(breaker.is_closed());
        wait
    }

    #[test]
    fn f16_the_cool_down_grows_over_closings_that_do_not_last() {
        let (mut breaker, mut now) = breaker();
        for seconds in [1u64, 2, 4, 8, 16, 32, 60, 60] {
            let wait = flap(&mut breaker, &mut now).as_millis();
            assert!(
                (u128::from(seconds) * 800..=u128::from(seconds) * 1200).contains(&wait),
                "{wait} ms of {seconds} s"
            );
            now += Duration::from_millis(900);
        }
    }

    #[test]
    fn f16_whoever_stays_up_as_long_as_it_was_kept_away_begins_anew() {
        let (mut breaker, mut now) = breaker();
        for _ in 0..4 {
            flap(&mut breaker, &mut now);
        }
        now += Duration::from_secs(16);
        assert!(flap(&mut breaker, &mut now) <= Duration::from_millis(1200));
    }

    #[test]
    fn f12_whoever_has_nobody_else_to_ask_ends_a_long_cool_down_and_not_one_that_was_asked_for() {
        let (mut breaker, mut now) = breaker();
        assert_eq!(breaker.resort(now), None);
        fail(&mut breaker, now, 5);
        for _ in 0..8 {
            now += Duration::from_secs(60) * 6 / 5;
            assert_eq!(breaker.permit(now), Permit::Probe);
            assert_eq!(breaker.resort(now), None, "one probe at a time");
            breaker.learn(now, Permit::Probe, Lesson::Failure);
        }
        let wait = breaker.resort(now).unwrap();
        assert!((1_600..=2_400).contains(&wait.as_millis()), "{wait:?}");
        now += wait;
        assert!(matches!(breaker.permit(now), Permit::Refused(_)));
        assert_eq!((breaker.resort(now), breaker.permit(now)), (Some(Duration::ZERO), Permit::Probe));
        breaker.learn(now + Duration::from_secs(30), Permit::Probe, Lesson::Failure);
        now += Duration::from_secs(30);
        let wait = breaker.resort(now).unwrap();
        assert!((24..=36).contains(&wait.as_secs()), "{wait:?} after a probe of half a minute");
        breaker.trip(now, Duration::from_secs(300));
        breaker.learn(now, Permit::Probe, Lesson::Nothing);
        assert_eq!(breaker.resort(now), Some(Duration::from_secs(300)));
    }

    proptest! {
        #[test]
        fn it_never_refuses_for_longer_than_its_longest_cool_down(steps in prop::collection::vec((0u64..5_000, 0u8..3), 1..300)) {
            let (mut breaker, mut now) = breaker();
            for (gap_ms, lesson) in steps {
                now += Duration::from_millis(gap_ms);
                let permit = breaker.permit(now);
                if let Permit::Refused(wait) = permit {
                    prop_assert!(wait <= Duration::from_secs(72));
                    continue;
                }
                let lesson = [Lesson::Success, Lesson::Failure, Lesson::Nothing][usize::from(lesson)];
                breaker.learn(now, permit, lesson);
            }
        }
    }
}
