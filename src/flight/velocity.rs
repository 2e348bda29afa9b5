//! How often, how much and how many different ones: what `[[risk.velocity]]` counts about payment attempts.
//!
//! An attempt counts once, when it arrives and before anything decides it, and its own numbers include it. The same
//! attempt asked again (tenant, `out_trade_no` and body) is recognised for a day at least, within the last 100,000 ones,
//! and reads the numbers without counting. Numbers are kept in the memory of this process: they survive a reload by a
//! counter's name and definition, and a restart in good order if somebody keeps [`Carried`] for the next process; another
//! instance counts for itself.
//!
//! Who is counted is known only as a hash peppered with bytes of this process, and never across tenants. One lock holds
//! all of it, for a few look-ups: two requests of one attempt at the same time must read the same numbers.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use self::counter::{Counter, Key, Tally};
use crate::config::units::shown;
use crate::config::velocity::{Dimension, Measure, VelocityRule};
use crate::domain::decision::{Action, Reason};
use crate::telemetry::handles::VelocityMetrics;
use crate::telemetry::labels::VelocityEvent;
use crate::telemetry::metrics::Metrics;
use crate::wire::risk::Assessment;

pub use self::carried::{Carried, MOST_BYTES};
pub use self::counter::Value;

mod carried;
mod counter;

#[cfg(test)]
mod tests;

/// Attempts recognised when they are asked again: at least so many.
const MOST_SEEN: usize = 100_000;
/// And for at least so long, if there are not more.
const SEEN_FOR_MS: u64 = 24 * 3600 * 1000;

/// One payment attempt as it is counted.
#[derive(Clone, Copy)]
pub struct Counted<'a> {
    /// Whose payment it is.
    pub tenant: &'a str,
    /// What it says.
    pub assessment: &'a Assessment,
    /// The body it came in: another body is another attempt.
    pub body: &'a [u8],
}

/// The numbers of the process.
pub struct Velocity {
    pepper: [u8; 32],
    /// The pepper of the process before this one, whose numbers go on.
    inherited: OnceLock<[u8; 32]>,
    began: Instant,
    /// Held for a few look-ups, never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// No attempt is earlier than the one before it, whatever the threads think.
    latest_ms: u64,
    /// What the clock said when this process began: not 0 if it goes on from another one.
    offset_ms: u64,
    seen: Seen,
    counters: Vec<Live>,
}

/// A counter in use.
struct Live {
    rule: Arc<VelocityRule>,
    counter: Counter,
    series: Arc<VelocityMetrics>,
    /// The configuration in force does not have it; calls of the one before may still be on their way.
    leaving: bool,
}

impl Velocity {
    /// Nothing counted yet. The pepper is random and this process's own.
    pub fn new(pepper: [u8; 32]) -> Self {
        Self { pepper, inherited: OnceLock::new(), began: Instant::now(), state: Mutex::default() }
    }

    /// Makes room for these counters. Those that are defined as before go on; those that are gone go with the next change.
    pub fn adopt(&self, rules: &[Arc<VelocityRule>], metrics: &Metrics) {
        let mut state = self.state();
        let wanted = |live: &Live| rules.iter().any(|rule| rule.counts_as(&live.rule));
        state.counters.retain_mut(|live| {
            let goes = live.leaving && !wanted(live);
            live.leaving = !wanted(live);
            !goes
        });
        for rule in rules {
            match state.counters.iter_mut().find(|live| live.rule.counts_as(rule)) {
                Some(live) => {
                    live.counter.keep(rule.most);
                    live.rule = Arc::clone(rule);
                }
                None => state.counters.push(Live::new(rule, metrics)),
            }
        }
    }

    /// Counts an attempt unless it was counted before, and reads its numbers.
    pub fn count(&self, attempt: &Counted<'_>, rules: &[Arc<VelocityRule>]) -> Readings {
        if rules.is_empty() {
            return Readings::default();
        }
        let (name, keys) = (self.attempt(attempt), self.keys(attempt));
        let mut state = self.state();
        let now_ms = self.now_ms(&mut state);
        let first = state.seen.note(name, now_ms);
        let read = |rule: &Arc<VelocityRule>| {
            let value = keys.of(rule.by).map(|key| {
                let Some(live) = state.counters.iter_mut().find(|live| live.rule.counts_as(rule)) else {
                    return Value::Unknown;
                };
                let value = match keys.event(rule.measure, attempt.assessment).filter(|_| first) {
                    Some(what) => live.counter.add(key, what, now_ms),
                    None => live.counter.read(key, now_ms),
                };
                live.tell(rule, value, first);
                value
            });
            Reading { rule: Arc::clone(rule), value }
        };
        Readings(rules.iter().map(read).collect())
    }

    fn attempt(&self, attempt: &Counted<'_>) -> Key {
        let parts = [b"attempt", attempt.tenant.as_bytes(), attempt.assessment.out_trade_no.as_bytes(), attempt.body];
        self.hash(&parts)
    }

    fn keys(&self, attempt: &Counted<'_>) -> Keys {
        Keys(Dimension::ALL.map(|dimension| {
            let text = text_of(dimension, attempt.assessment)?;
            Some(self.hash(&[dimension.as_str().as_bytes(), attempt.tenant.as_bytes(), text.as_bytes()]))
        }))
    }

    fn hash(&self, parts: &[&[u8]]) -> Key {
        let mut hash = Sha256::new_with_prefix(self.inherited.get().unwrap_or(&self.pepper));
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let whole: [u8; 32] = hash.finalize().into();
        whole.first_chunk().copied().unwrap_or_default()
    }

    fn now_ms(&self, state: &mut State) -> u64 {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        state.latest_ms = state.offset_ms.saturating_add(elapsed).max(state.latest_ms);
        state.latest_ms
    }

    /// The numbers for the process that comes next, at this wall time in milliseconds; `None` if nothing was counted.
    pub fn carried(&self, unix_ms: u64) -> Option<Carried> {
        let mut state = self.state();
        let now_ms = self.now_ms(&mut state);
        carried::spell(&state, self.inherited.get().unwrap_or(&self.pepper), now_ms, unix_ms)
    }

    /// Goes on with what an earlier process carried. Call it once the counters are adopted, and before anybody is counted.
    /// Returns how many counters go on; `None` if those bytes are of no use.
    pub fn go_on(&self, bytes: &[u8], unix_ms: u64) -> Option<usize> {
        let found = carried::read(bytes)?;
        let mut state = self.state();
        if self.inherited.set(found.pepper).is_err() {
            return None;
        }
        // A wall clock that was set back must not lengthen a window.
        let between = unix_ms.saturating_sub(found.written_unix_ms);
        (state.offset_ms, state.latest_ms) = (found.now_ms.saturating_add(between), 0);
        let go_on = state.counters.iter_mut().map(|live| live.go_on(&found)).filter(|goes_on| *goes_on).count();
        state.seen = found.seen;
        Some(go_on)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic within a few additions leaves numbers that are still numbers.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn new(rule: &Arc<VelocityRule>, metrics: &Metrics) -> Self {
        let tally = match rule.measure {
            Measure::Count | Measure::Sum(_) => Tally::Sum,
            Measure::Distinct(_) => Tally::Distinct,
        };
        let window_ms = u64::try_from(rule.window.as_millis()).unwrap_or(u64::MAX);
        let counter = Counter::new(tally, window_ms, rule.most);
        Self { rule: Arc::clone(rule), counter, series: metrics.velocity(&rule.name), leaving: false }
    }

    fn tell(&self, rule: &VelocityRule, value: Value, first: bool) {
        if !first {
            return;
        }
        self.series.event(VelocityEvent::Counted);
        match value {
            Value::Unknown => self.series.event(VelocityEvent::Unknown),
            Value::Known(number) if rule.is_over(number) => self.series.event(VelocityEvent::Over),
            Value::Known(_) => {}
        }
        self.series.keys.set(i64::try_from(self.counter.keys()).unwrap_or(i64::MAX));
    }
}

/// The hashes of one attempt, by dimension.
struct Keys([Option<Key>; Dimension::ALL.len()]);

impl Keys {
    fn of(&self, dimension: Dimension) -> Option<Key> {
        Dimension::ALL.into_iter().zip(self.0).find(|(known, _)| *known == dimension)?.1
    }

    /// What the attempt brings to a number, if it brings anything.
    fn event(&self, measure: Measure, assessment: &Assessment) -> Option<i64> {
        match measure {
            Measure::Count => Some(1),
            Measure::Sum(currency) => (assessment.currency() == currency).then(|| assessment.amount.minor()),
            // Half of a hash tells a few hundred values apart as well.
            Measure::Distinct(of) => self.of(of)?.first_chunk().map(|half| i64::from_be_bytes(*half)),
        }
    }
}

fn text_of(dimension: Dimension, assessment: &Assessment) -> Option<String> {
    match dimension {
        Dimension::User => Some(assessment.user.id.clone()),
        Dimension::Device => assessment.device.id.clone(),
        Dimension::Ip => assessment.device.ip.as_deref().map(network),
        Dimension::Bin => assessment.instrument.bin.clone(),
        Dimension::Instrument => assessment.instrument.fingerprint.clone(),
    }
}

/// One spelling for one address. Whoever has an IPv6 address has the 2^64 of its network.
fn network(address: &str) -> String {
    match address.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
        Ok(address) => address.to_string(),
        Err(_) => address.to_owned(),
    }
}

/// Attempts counted before, in two halves: when the younger one is full or old, it becomes the older one.
#[derive(Default)]
struct Seen {
    younger: HashSet<Key>,
    older: HashSet<Key>,
    since_ms: u64,
}

impl Seen {
    /// True the first time.
    fn note(&mut self, attempt: Key, now_ms: u64) -> bool {
        if self.younger.len() >= MOST_SEEN || now_ms.saturating_sub(self.since_ms) >= SEEN_FOR_MS {
            self.older = std::mem::take(&mut self.younger);
            self.since_ms = now_ms;
        }
        let known = self.younger.contains(&attempt) || self.older.contains(&attempt);
        if !known {
            self.younger.insert(attempt);
        }
        !known
    }
}

/// One number of one attempt.
#[derive(Clone)]
struct Reading {
    rule: Arc<VelocityRule>,
    /// `None` if the request does not say who is counted.
    value: Option<Value>,
}

impl Reading {
    fn is_over(&self) -> bool {
        match self.value {
            None => false,
            Some(Value::Known(number)) => self.rule.is_over(number),
            Some(Value::Unknown) => true,
        }
    }

    /// The mildest action it allows.
    fn demands(&self) -> Option<Action> {
        match self.value? {
            Value::Known(number) => self.rule.demands(Some(number)),
            Value::Unknown => self.rule.demands(None),
        }
    }

    fn reason(&self) -> Reason {
        let code = format!("velocity.{}", self.rule.name);
        let limit = self.rule.limit.unwrap_or_default();
        let text = match self.value {
            Some(Value::Known(number)) => {
                format!("counted {number} within {}, the limit is {limit}", shown(self.rule.window))
            }
            _ => "could not be counted for want of room".to_owned(),
        };
        Reason { code, text }
    }
}

/// What the counters say of one attempt; nothing where none is configured.
#[derive(Clone, Default)]
pub struct Readings(Vec<Reading>);

impl Readings {
    /// Every counter's name and number, for policies: 0 if the request does not say who is counted, `i64::MAX` if nobody
    /// knows.
    pub fn values(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|reading| {
            let number = match reading.value {
                None => 0,
                Some(Value::Known(number)) => number,
                Some(Value::Unknown) => i64::MAX,
            };
            (&*reading.rule.name, number)
        })
    }

    /// A counter's number, for policies: 0 if the request does not say who is counted, `None` if nobody knows.
    pub fn number(&self, name: &str) -> Option<i64> {
        let reading = self.0.iter().find(|reading| *reading.rule.name == *name)?;
        match reading.value {
            None => Some(0),
            Some(Value::Known(number)) => Some(number),
            Some(Value::Unknown) => None,
        }
    }

    /// True if a counter is over its limit, or one that counts this attempt is unknown.
    pub fn is_over(&self) -> bool {
        self.0.iter().any(Reading::is_over)
    }

    /// The action with what the counters demand, and a reason for each of them that demands something.
    pub fn raise(&self, action: Action) -> (Action, Vec<Reason>) {
        let demanding: Vec<_> = self.0.iter().filter_map(|reading| Some((reading, reading.demands()?))).collect();
        let raised = demanding.iter().map(|(_, demand)| *demand).fold(action, Action::max);
        (raised, demanding.into_iter().map(|(reading, _)| reading.reason()).collect())
    }
}
