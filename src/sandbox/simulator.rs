//! A town whose payments and frauds are known: the published simulator of Le Borgne et al., "Reproducible Machine Learning
//! for Credit Card Fraud Detection" (2022, <https://fraud-detection-handbook.github.io/>, read 2026-11-23), written anew
//! from its published numbers, with what a risk proxy needs beside it.
//!
//! It exists so that there is traffic with a truth behind it: for the sandbox's Alipay, for `weighbridge simulate`, and for
//! tests of whatever counts decisions. Everything follows from the seed, and every part can be made alone: a day, one
//! customer's day, one payment by its number; so it runs in the memory of a day. It keeps no clock and does no I/O.
//!
//! The reference's labels overlay each other in this order, and so do ours: a large amount; over it a compromised terminal;
//! over both a compromised customer, whose amounts are then five times what they were, and the first label is not
//! looked at again. Our additions (names, scores, outcomes, card testing) never change an amount or a label of these.

use std::cmp::Ordering;

mod burst;
mod dice;
mod frauds;
pub mod history;
pub mod number;
mod outcome;
mod request;
mod town;
mod vendor;

#[cfg(test)]
mod tests;

pub use outcome::Outcome;
pub use vendor::{Calibration, MODEL_VERSION, NEXT_MODEL_VERSION, Opinion};

use crate::domain::decision::Action;
use dice::{Dice, Purpose};
use frauds::Frauds;
use town::Town;

/// Time of day: mean and deviation, seconds.
const TIME: (f64, f64) = (43_200.0, 20_000.0);
/// Above this many hundredths an amount alone is a fraud.
const LARGE_AMOUNT: i64 = 22_000;
/// What a compromised customer's amounts are multiplied with.
const TIMES: i64 = 5;
/// About as many payments are looked at to learn the share of frauds.
const SAMPLE: u32 = 20_000;

/// How large the town is and what happens in it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// Customers, 1 to 100,000.
    pub customers: u32,
    /// Terminals, 1 to 200,000.
    pub terminals: u32,
    /// Days, 1 to 3,650.
    pub days: u32,
    /// Whether stolen cards are tried out now and then, which the published simulator does not have.
    pub card_testing: CardTesting,
    /// How the provider scores.
    pub vendor: Vendor,
    /// How people judge what they review.
    pub reviewers: Reviewers,
}

/// Bursts of small payments with many cards at one terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CardTesting {
    /// None: the published simulator alone.
    Never,
    /// On about one day in seven.
    Weekly,
}

/// How the simulated provider scores.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vendor {
    /// How its score relates to the probability of fraud.
    pub calibration: Calibration,
    /// From this day on another model scores, with another calibration.
    pub change: Option<(u32, Calibration)>,
}

/// The errors of people.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Reviewers {
    /// Share of good payments judged a fraud (α).
    pub good_stopped: f64,
    /// Share of frauds judged good (β).
    pub frauds_passed: f64,
}

/// A size out of its bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the simulator takes 1 to 100000 customers, 1 to 200000 terminals and 1 to 3650 days")]
pub struct SizeError;

impl Options {
    /// The published run: 5,000 customers, 10,000 terminals, 183 days.
    pub fn published(seed: u64) -> Self {
        Self {
            seed,
            customers: 5_000,
            terminals: 10_000,
            days: 183,
            card_testing: CardTesting::Never,
            vendor: Vendor::default(),
            reviewers: Reviewers { good_stopped: 0.05, frauds_passed: 0.1 },
        }
    }

    /// The same with our additions: what the sandbox plays.
    pub fn sandbox(seed: u64) -> Self {
        Self { card_testing: CardTesting::Weekly, ..Self::published(seed) }
    }
}

/// Why a payment is a fraud.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scenario {
    /// Its amount is above 220: the first published scenario.
    LargeAmount,
    /// Its terminal was compromised: the second.
    Terminal,
    /// Its customer was: the third.
    Customer,
    /// Somebody tries out stolen cards: ours.
    CardTesting,
}

/// Who pays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payer {
    /// One of the town.
    Customer(u32),
    /// Somebody with many cards.
    CardTester,
}

/// One payment, with the truth about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payment {
    /// Counted from 0.
    pub day: u32,
    /// Of the day.
    pub second: u32,
    /// Who pays.
    pub payer: Payer,
    /// Which of the payer's payments of that day.
    pub index: u32,
    /// Where.
    pub terminal: u32,
    /// Hundredths of what the town pays with; see [`Simulator::request`] for currencies.
    pub minor: i64,
    /// Why it is a fraud; `None` for a good one.
    pub scenario: Option<Scenario>,
}

impl Payment {
    fn key(&self) -> [u32; 3] {
        let payer = match self.payer {
            Payer::Customer(number) => number,
            Payer::CardTester => u32::MAX,
        };
        [self.day, payer, self.index]
    }

    fn order(&self, other: &Self) -> Ordering {
        self.second.cmp(&other.second).then_with(|| self.key().cmp(&other.key()))
    }
}

/// The town over its days.
pub struct Simulator {
    options: Options,
    town: Town,
    frauds: Frauds,
    /// Logit of the share of frauds.
    prior: f64,
}

impl Simulator {
    /// Builds the town and decides who is compromised when; some megabytes, some ten milliseconds.
    ///
    /// # Errors
    /// When a size is out of its bounds.
    pub fn new(options: Options) -> Result<Self, SizeError> {
        let Options { customers, terminals, days, .. } = options;
        if !(1..=100_000).contains(&customers) || !(1..=200_000).contains(&terminals) || !(1..=3_650).contains(&days) {
            return Err(SizeError);
        }
        let (town, frauds) = (Town::new(&options), Frauds::of_terminals(&options));
        let mut simulator = Self { options, town, frauds, prior: 0.0 };
        for (customer, picked) in Frauds::of_customers(&simulator) {
            simulator.frauds.add(customer, picked);
        }
        simulator.prior = simulator.measured_prior();
        Ok(simulator)
    }

    /// What it was made of.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Every payment of a day in the order of time; none after the last day.
    pub fn day(&self, day: u32) -> Vec<Payment> {
        if day >= self.options.days {
            return Vec::new();
        }
        let mut payments: Vec<Payment> = Vec::with_capacity(self.options.customers as usize * 2);
        for customer in 0..self.options.customers {
            self.labelled(customer, day, |payment| payments.push(payment));
        }
        payments.extend(burst::on(&self.options, day));
        payments.sort_unstable_by(Payment::order);
        payments
    }

    /// What the provider says of a payment.
    pub fn opinion(&self, payment: &Payment) -> Opinion {
        vendor::opinion(self.options.seed, self.prior, &self.options.vendor, payment)
    }

    /// What becomes of a payment for which this was done.
    pub fn outcome(&self, payment: &Payment, action: Action) -> Option<Outcome> {
        outcome::outcome(self.options.seed, self.options.reviewers, payment, action)
    }

    fn labelled(&self, customer: u32, day: u32, mut take: impl FnMut(Payment)) {
        for mut payment in self.drawn(customer, day) {
            if payment.minor > LARGE_AMOUNT {
                payment.scenario = Some(Scenario::LargeAmount);
            }
            if self.frauds.has_terminal(payment.terminal, day) {
                payment.scenario = Some(Scenario::Terminal);
            }
            for _ in 0..self.frauds.hold_payment(customer, (day, payment.index)) {
                payment.minor = payment.minor.saturating_mul(TIMES);
                payment.scenario = Some(Scenario::Customer);
            }
            take(payment);
        }
    }

    /// A customer's own payments of a day, before any fraud.
    fn drawn(&self, number: u32, day: u32) -> Vec<Payment> {
        let Some(customer) = self.town.customers.get(number as usize) else { return Vec::new() };
        let near = self.town.near(customer);
        let mut dice = Dice::new(self.options.seed, Purpose::Day, [number, day, 0]);
        let mut payments = Vec::new();
        for _ in 0..dice.count(customer.none_a_day) {
            let Some(second) = within_the_day(TIME.0 + TIME.1 * dice.normal()) else { continue };
            let amount = customer.mean + customer.mean / 2.0 * dice.normal();
            let amount = if amount < 0.0 { dice.between(0.0, 2.0 * customer.mean) } else { amount };
            // Where there is no terminal near, nothing is bought.
            let Some(&terminal) = near.get(dice.below(place(near.len())) as usize) else { continue };
            let (payer, index) = (Payer::Customer(number), place(payments.len()));
            payments.push(Payment { day, second, payer, index, terminal, minor: hundredths(amount), scenario: None });
        }
        payments
    }

    /// From a sample spread over all customers and days.
    fn measured_prior(&self) -> f64 {
        let Options { customers, days, .. } = self.options;
        let (mut all, mut bad) = (2.0f64, 1.0f64);
        let apart = (u64::from(customers) * u64::from(days) / u64::from(SAMPLE)).max(1) | 1;
        let mut at = 0;
        while let Ok(customer) = u32::try_from(at / u64::from(days))
            && customer < customers
        {
            let day = u32::try_from(at % u64::from(days)).unwrap_or_default();
            self.labelled(customer, day, |payment| {
                all += 1.0;
                bad += if payment.scenario.is_some() { 1.0 } else { 0.0 };
            });
            at += apart;
        }
        (bad / (all - bad)).ln()
    }
}

/// The place or number of something in a list; the bounds of [`Options`] keep lists shorter than four billion.
fn place(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be within a day")]
fn within_the_day(second: f64) -> Option<u32> {
    let second = second.trunc();
    (second > 0.0 && second < f64::from(outcome::DAY)).then_some(second as u32)
}

/// Rounded; at least one, because nobody pays nothing.
#[expect(clippy::cast_possible_truncation, reason = "amounts are a few hundred at most")]
fn hundredths(amount: f64) -> i64 {
    (amount.round() as i64).max(1)
}
