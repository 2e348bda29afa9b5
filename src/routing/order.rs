//! Which candidate is asked first, which next, and why: a pure function of what is known of each.
//!
//! It reads no clock, no health and no random numbers: whoever asks brings what it saw and a seed, so that the same call
//! seen the same way is answered the same way, here, in a test and in `explain`. Candidates that would refuse are not
//! left out but put last, so that the answer to the caller can say when they may have room.

use crate::config::asking::Order;
use crate::domain::currency::Currency;
use crate::domain::money::{Cost, TokenPrice};

/// Bytes of a request that make a token, roughly; prices are compared, not billed, by this.
const BYTES_PER_TOKEN: u64 = 4;
/// Differences below this, in microseconds, are none: then it counts who has fewer waiting.
const INDIFFERENT: u64 = 1_000;
/// What an answer is taken to be long, in tokens.
const USUAL_ANSWER: u64 = 500;

/// Whether a candidate takes calls now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Standing {
    /// As far as anybody knows.
    #[default]
    Well,
    /// It has lately refused our credential, each time.
    Unwelcome,
    /// Its quota group asked to be left alone.
    Paused,
    /// Its breaker is open.
    Open,
}

impl Standing {
    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Unwelcome => "unwelcome",
            Self::Paused => "paused",
            Self::Open => "open",
        }
    }
}

/// What is known of one candidate when a call is to be led.
#[derive(Clone, Copy, Default, Debug)]
pub struct View {
    /// [`hash`] of its name: what is drawn for it must not depend on its place in the list.
    pub name: u64,
    /// Its share where draws are by weight; 0 is a last resort.
    pub weight: u32,
    /// Whether it takes calls.
    pub standing: Standing,
    /// What such a call would cost there, in millionths; `None` if unknown or not comparable.
    pub cost: Option<u64>,
    /// Until its first content, lately, in microseconds; `None` if it was not measured.
    pub latency: Option<u64>,
    /// Attempts there that have shown nothing yet.
    pub waiting: u32,
}

/// Why a candidate stands where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It is listed there.
    Listed,
    /// It was drawn, by weight.
    Drawn,
    /// Its weight is 0.
    LastResort,
    /// It belongs to the conversation.
    Conversation,
    /// Nobody knows yet how fast it is.
    Unmeasured,
    /// It is the faster one of two that were drawn, or comes by its speed.
    Speed,
    /// It comes by its price.
    Price,
    /// Its price is not known, or not comparable.
    Unpriced,
    /// It would be earlier but does not take calls now.
    NotWell(Standing),
}

impl Reason {
    /// For people and for `explain`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Listed => "listed",
            Self::Drawn => "drawn by weight",
            Self::LastResort => "weight 0",
            Self::Conversation => "conversation",
            Self::Unmeasured => "not measured yet",
            Self::Speed => "speed",
            Self::Price => "price",
            Self::Unpriced => "price unknown",
            Self::NotWell(Standing::Open) => "breaker open",
            Self::NotWell(Standing::Paused) => "paused by its quota group",
            Self::NotWell(_) => "refuses our credential",
        }
    }
}

/// A candidate's place in the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ranked {
    /// Its index among the views.
    pub index: usize,
    /// Why it stands here.
    pub reason: Reason,
}

/// How a call is to be led.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The route's order.
    pub order: Order,
    /// Differs from call to call.
    pub seed: u64,
    /// The same for all calls of a conversation, on routes that keep conversations together.
    pub conversation: Option<u64>,
}

/// Everybody's place. Each index occurs once; who takes calls comes before who does not.
pub fn order(rule: &Rule, views: &[View]) -> Vec<Ranked> {
    let mut ranked: Vec<(Key, Ranked)> =
        views.iter().enumerate().map(|(index, view)| place(rule, index, view)).collect();
    if rule.order == Order::Fastest && rule.conversation.is_none() {
        prefer_one_of_two(rule.seed, views, &mut ranked);
    }
    // Stable, so that equals stay as listed.
    ranked.sort_by(|(a, _), (b, _)| a.cmp(b));
    ranked.into_iter().map(|(_, ranked)| ranked).collect()
}

/// What a call of `bytes` is taken to cost: its bytes as tokens and an answer of usual length.
pub fn guess(price: TokenPrice, bytes: usize) -> Option<Cost> {
    price.cost(u64::try_from(bytes).unwrap_or(u64::MAX) / BYTES_PER_TOKEN, USUAL_ANSWER)
}

/// What a call of `bytes` is taken to cost, as [`View::cost`] wants it: prices in another currency say nothing.
pub fn comparable(price: Option<TokenPrice>, currency: Option<Currency>, bytes: usize) -> Option<u64> {
    let cost = guess(price?, bytes).filter(|cost| Some(cost.currency) == currency)?;
    u64::try_from(cost.micro).ok()
}

/// A text as a number that is spread well. Not for secrets: whoever knows the text knows the number.
pub fn hash(text: &[u8]) -> u64 {
    mixed(
        text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)),
    )
}

/// True for `millionths` of all seeds.
pub fn chosen(seed: u64, millionths: u32) -> bool {
    // The upper bits: a remainder would favour small numbers.
    (u128::from(mixed(seed)) * 1_000_000) >> 64 < u128::from(millionths)
}

/// Sorts ascending: group, then place within it.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
struct Key {
    standing: Standing,
    group: u8,
    place: f64,
}

impl Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let groups = (self.standing, self.group).cmp(&(other.standing, other.group));
        groups.then(self.place.total_cmp(&other.place))
    }
}

fn place(rule: &Rule, index: usize, view: &View) -> (Key, Ranked) {
    let (group, place, reason) = match (rule.order, rule.conversation) {
        (Order::AsListed, _) => (0, 0.0, Reason::Listed),
        (Order::Weighted, None) => drawn(rule.seed, view, Reason::Drawn),
        (Order::Weighted, Some(conversation)) => drawn(conversation, view, Reason::Conversation),
        (Order::Fastest, Some(conversation)) => drawn(conversation, &View { weight: 1, ..*view }, Reason::Conversation),
        (Order::Fastest, None) => speed(view),
        (Order::Cheapest, _) => match view.cost {
            Some(cost) => (0, as_place(cost), Reason::Price),
            None => (1, 0.0, Reason::Unpriced),
        },
    };
    let reason = if view.standing == Standing::Well { reason } else { Reason::NotWell(view.standing) };
    (Key { standing: view.standing, group, place }, Ranked { index, reason })
}

/// Every candidate draws for itself from the seed and its own name; the smallest number per weight wins. Who leaves the
/// list takes along only what it had won, and who joins takes only its share: rendezvous hashing, with weights.
fn drawn(seed: u64, view: &View, reason: Reason) -> (u8, f64, Reason) {
    if view.weight == 0 {
        return (1, 0.0, Reason::LastResort);
    }
    (0, -unit(mixed(seed ^ view.name)).ln() / f64::from(view.weight), reason)
}

/// An unmeasured one that nobody waits for is tried; one that somebody tries already is left to that call.
fn speed(view: &View) -> (u8, f64, Reason) {
    match (view.latency, view.waiting) {
        (None, 0) => (1, 0.0, Reason::Unmeasured),
        (Some(latency), waiting) => (2, as_place(latency.max(INDIFFERENT)) * (f64::from(waiting) + 1.0), Reason::Speed),
        (None, waiting) => (3, f64::from(waiting), Reason::Unmeasured),
    }
}

/// Of two drawn at random the better one goes first. Always the best of all would send everybody to the one that just
/// looked good; two at random are nearly as fast and never a herd.
fn prefer_one_of_two(seed: u64, views: &[View], ranked: &mut [(Key, Ranked)]) {
    let well: Vec<usize> =
        views.iter().enumerate().filter(|(_, view)| view.standing == Standing::Well).map(|(index, _)| index).collect();
    let count = well.len() as u64;
    if count < 2 {
        return;
    }
    let first = mixed(seed) % count;
    let second = (first + 1 + mixed(seed ^ 0x9e37_79b9_7f4a_7c15) % (count - 1)) % count;
    let of = |drawn: u64| usize::try_from(drawn).ok().and_then(|drawn| well.get(drawn)).copied();
    let pair = of(first).zip(of(second));
    let better = pair.and_then(|(a, b)| {
        let (one, other) = (ranked.get(a)?, ranked.get(b)?);
        Some(if other.0.cmp(&one.0).is_lt() { b } else { a })
    });
    if let Some((key, _)) = better.and_then(|better| ranked.get_mut(better)) {
        key.group = 0;
    }
}

/// Spreads neighbouring numbers over all of them (the finaliser of splitmix64, <https://prng.di.unimi.it/splitmix64.c>).
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Above 0 and up to 1, so that its logarithm is finite.
fn unit(number: u64) -> f64 {
    // Of 64 bits 53 fit.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double")]
    let upper = (number >> 11) as f64;
    (upper + 1.0) / 9_007_199_254_740_992.0
}

fn as_place(number: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "places are compared, not added up")]
    let place = number as f64;
    place
}

#[cfg(test)]
mod tests;
