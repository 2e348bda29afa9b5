//! When an earlier PASS may be given again: every guard, and the one function that asks them all.
//!
//! A reused PASS is a loan: nobody looked at this payment. So it must be like the one somebody looked at, in everything a
//! thief would change, and small, recent and rare. Pure: who remembers, who counts and what time it is are elsewhere.
//!
//! It deliberately knows no REVIEW and no REJECT: only a PASS is ever given again.

use std::sync::Arc;
use std::time::Duration;

use super::decision::{Action, Decision, DecisionSource};
use super::money::Money;
use super::policy::{Ruling, decide};

/// A peppered hash of something about a person: equal or not, nothing else can be done with it.
pub type Mark = [u8; 16];

/// What an operator allows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// How long a PASS may be given again, before jitter.
    pub ttl: Duration,
    /// The largest amount, and the only currency.
    pub max_amount: Money,
    /// Most that may pass together since a provider was last asked, same currency.
    pub max_sum: Money,
    /// Most times since then.
    pub max_uses: u32,
    /// The largest score; at most two thirds of where the PASS band ends, whatever is written here.
    pub max_score: super::decision::Score,
    /// How long the caller must have known the device.
    pub known_device: Duration,
}

/// What must be the same. Absent is the same as absent, but for instrument and device, which must be there.
#[derive(Clone, PartialEq, Eq)]
pub struct Likeness {
    /// The instrument's fingerprint, type, BIN and last digits.
    pub instrument: Option<Mark>,
    /// The device.
    pub device: Option<Mark>,
    /// The network of its address: /24 or /48.
    pub network: Option<Mark>,
    /// Countries of payer and merchant.
    pub countries: Mark,
    /// The payer's e-mail, telephone and date of registration.
    pub account: Mark,
    /// Paid extras asked of the provider.
    pub features: Mark,
}

/// A decision that may be given again.
#[derive(Clone)]
pub struct Remembered {
    /// What was decided.
    pub decision: Arc<Decision>,
    /// By which rules.
    pub ruling: Arc<Ruling>,
    /// For whom.
    pub likeness: Likeness,
    /// For how much.
    pub amount: Money,
    /// The largest amount a provider passed for the same, as old as this one at most by its own life.
    pub largest: Money,
    /// When that was.
    pub largest_at_ms: u64,
    /// When it was decided, on the clock of [`Wanted::now_ms`].
    pub decided_at_ms: u64,
    /// How long it lives, jitter included.
    pub life_ms: u64,
    /// The epoch in which its call began.
    pub begun: u64,
    /// How often it was given again.
    pub uses: u32,
    /// For how much together, minor units.
    pub spent: i64,
}

/// An attempt that asks for it.
pub struct Wanted<'a> {
    /// Who pays, with what, from where.
    pub likeness: &'a Likeness,
    /// How much.
    pub amount: Money,
    /// How long the caller has known the device; `None` if it does not say.
    pub device_known: Option<Duration>,
    /// What would decide it now.
    pub ruling: &'a Ruling,
    /// A velocity counter is over its limit, or nobody knows.
    pub velocity: Speed,
    /// Milliseconds on a clock that does not go back.
    pub now_ms: u64,
    /// What began before this was overtaken: a chargeback, a worse verdict, a change of the account.
    pub epoch: u64,
    /// What began before this was scored by another model.
    pub model_epoch: u64,
}

/// What velocity counters say of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speed {
    /// All within their limits.
    Within,
    /// One is over its limit or unknown.
    Over,
}

macro_rules! guards {
    ($($(#[$doc:meta])* $guard:ident = $label:literal),* $(,)?) => {
        /// Why a decision is not given again. The order is the one in which they are asked.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Guard {
            $($(#[$doc])* $guard),*
        }

        impl Guard {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$guard),*];

            /// The word in metrics.
            pub fn label(self) -> &'static str {
                match self { $(Self::$guard => $label),* }
            }
        }
    };
}

guards! {
    /// The decision is not a live PASS with a score.
    NotLivePass = "not_live_pass",
    /// Another instrument, or none that is named.
    Instrument = "instrument",
    /// Another device, or none that is named.
    Device = "device",
    /// The caller has not known the device long enough, or does not say.
    NewDevice = "new_device",
    /// An address of another network.
    Network = "network",
    /// Another country of payer or merchant.
    Country = "country",
    /// The payer's account changed.
    Account = "account",
    /// Other extras are asked for.
    Features = "features",
    /// Another currency than the decision's or the cap's.
    Currency = "currency",
    /// More than the cap.
    Amount = "amount",
    /// More than 1.2 times what a provider passed.
    Growth = "growth",
    /// A velocity counter is over its limit, or nobody knows.
    Velocity = "velocity",
    /// Too old.
    Age = "age",
    /// Given again often enough.
    Uses = "uses",
    /// Enough money passed on it.
    Sum = "sum",
    /// Other rules decide now.
    Policy = "policy",
    /// The score is too near the end of its band, or would not pass now.
    Score = "score",
    /// Another model scores now.
    Model = "model",
    /// Something happened since: a chargeback, a worse verdict.
    Epoch = "epoch",
    /// Too many of this merchant's reused decisions disagreed with the provider.
    Disagreement = "disagreement",
}

/// The guard that forbids giving `known` to `wanted`, the first of them; `None` if all hold. [`Guard::Disagreement`] is not
/// asked here: it is about a merchant and not about a decision.
pub fn refused_by(terms: &Terms, known: &Remembered, wanted: &Wanted<'_>) -> Option<Guard> {
    guards(terms, known, wanted).into_iter().find(|(_, holds)| !holds).map(|(guard, _)| guard)
}

/// Every guard but [`Guard::Disagreement`], and whether it lets `known` be given to `wanted`.
pub fn guards(terms: &Terms, known: &Remembered, wanted: &Wanted<'_>) -> [(Guard, bool); 19] {
    let like = &known.likeness;
    [
        (Guard::NotLivePass, is_live_pass(known)),
        (Guard::Instrument, same(like.instrument, wanted.likeness.instrument)),
        (Guard::Device, same(like.device, wanted.likeness.device)),
        (Guard::NewDevice, wanted.device_known.is_some_and(|known| known >= terms.known_device)),
        (Guard::Network, known.likeness.network == wanted.likeness.network),
        (Guard::Country, known.likeness.countries == wanted.likeness.countries),
        (Guard::Account, known.likeness.account == wanted.likeness.account),
        (Guard::Features, known.likeness.features == wanted.likeness.features),
        (Guard::Currency, one_currency(terms, known, wanted)),
        (Guard::Amount, wanted.amount.minor() <= terms.max_amount.minor()),
        (Guard::Growth, grows_little(known, wanted)),
        (Guard::Velocity, wanted.velocity == Speed::Within),
        (Guard::Age, wanted.now_ms.saturating_sub(known.decided_at_ms) < known.life_ms),
        (Guard::Uses, known.uses < terms.max_uses),
        (Guard::Sum, fits(terms, known, wanted)),
        (Guard::Policy, *known.ruling == *wanted.ruling),
        (Guard::Score, would_pass(terms, known, wanted)),
        (Guard::Model, known.begun >= wanted.model_epoch),
        (Guard::Epoch, known.begun >= wanted.epoch),
    ]
}

/// A verdict for which features were given up has judged less than the payment asks for.
fn is_live_pass(known: &Remembered) -> bool {
    let decision = &known.decision;
    let whole = decision.verdict.as_ref().is_some_and(|verdict| verdict.features_dropped.is_empty());
    decision.source == DecisionSource::Live && decision.action == Action::Pass && whole
}

fn same(one: Option<Mark>, other: Option<Mark>) -> bool {
    one.is_some() && one == other
}

fn one_currency(terms: &Terms, known: &Remembered, wanted: &Wanted<'_>) -> bool {
    let currency = wanted.amount.currency();
    [known.amount, known.largest, terms.max_amount, terms.max_sum].iter().all(|amount| amount.currency() == currency)
}

fn grows_little(known: &Remembered, wanted: &Wanted<'_>) -> bool {
    let largest =
        if wanted.now_ms.saturating_sub(known.largest_at_ms) < known.life_ms { known.largest } else { known.amount };
    i128::from(wanted.amount.minor()) * 5 <= i128::from(largest.minor()) * 6
}

fn fits(terms: &Terms, known: &Remembered, wanted: &Wanted<'_>) -> bool {
    known.spent.checked_add(wanted.amount.minor()).is_some_and(|sum| sum <= terms.max_sum.minor())
}

fn would_pass(terms: &Terms, known: &Remembered, wanted: &Wanted<'_>) -> bool {
    let Some(verdict) = &known.decision.verdict else { return false };
    let Some(score) = verdict.score else { return false };
    let bands = wanted.ruling.applied.bands;
    let margin = u64::from(score.micro()) * 3 <= u64::from(bands.pass_below().micro()) * 2;
    let now = decide(wanted.ruling, Some(score), verdict.recommendation.as_deref());
    score <= terms.max_score && margin && now == Some(Action::Pass)
}

impl Remembered {
    /// True if it is of this instrument and this device.
    pub fn is_of(&self, likeness: &Likeness) -> bool {
        same(self.likeness.instrument, likeness.instrument) && same(self.likeness.device, likeness.device)
    }

    /// How old it is and how long it will live, in milliseconds.
    pub fn age_and_rest(&self, now_ms: u64) -> (u64, u64) {
        let age = now_ms.saturating_sub(self.decided_at_ms);
        (age, self.life_ms.saturating_sub(age))
    }
}

#[cfg(test)]
mod tests;
