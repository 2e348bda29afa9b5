//! Which terminals and customers are compromised when, decided for the whole run before its first payment.
//!
//! The published order of labels is kept by [`super::Simulator`]: a large amount, over it a compromised terminal, over both
//! a compromised customer, whose amounts are multiplied. It is known in advance because a third of a customer's payments
//! can only be chosen when all of the fortnight's are known.

use super::dice::{Dice, Purpose};
use super::{Options, Simulator, place};

/// Days a terminal stays compromised.
const TERMINAL_DAYS: u32 = 28;
/// Terminals a day that become it.
const TERMINALS_A_DAY: u32 = 2;
/// Days a customer stays compromised.
const CUSTOMER_DAYS: u32 = 14;
/// Customers a day that become it.
const CUSTOMERS_A_DAY: u32 = 3;
/// One payment in so many of a compromised customer is a fraud.
const CUSTOMER_SHARE: u32 = 3;

/// A payment of a customer: its day and its place on that day.
type Picked = (u32, u32);

/// The plan of the second and the third scenario.
#[derive(Default)]
pub(super) struct Frauds {
    /// By terminal: the days on which it was compromised anew.
    terminals: Vec<Vec<u32>>,
    /// By customer: the payments somebody else makes, one entry for each compromise that includes it.
    customers: Vec<Vec<Picked>>,
}

impl Frauds {
    /// The terminals' part, which needs no payment.
    pub(super) fn of_terminals(options: &Options) -> Self {
        let mut terminals = vec![Vec::new(); options.terminals as usize];
        for day in 0..options.days {
            let mut dice = Dice::new(options.seed, Purpose::CompromisedTerminals, [day, 0, 0]);
            for terminal in dice.some_below(options.terminals, TERMINALS_A_DAY) {
                if let Some(days) = terminals.get_mut(terminal as usize) {
                    days.push(day);
                }
            }
        }
        Self { terminals, customers: vec![Vec::new(); options.customers as usize] }
    }

    /// The customers' part: `simulator` makes the payments to choose from.
    pub(super) fn of_customers(simulator: &Simulator) -> Vec<(u32, Vec<Picked>)> {
        let Options { seed, customers, days, .. } = simulator.options;
        let mut plan = Vec::new();
        for day in 0..days {
            let mut dice = Dice::new(seed, Purpose::CompromisedCustomers, [day, 0, 0]);
            for customer in dice.some_below(customers, CUSTOMERS_A_DAY) {
                let window = day..(day + CUSTOMER_DAYS).min(days);
                let payments = window.flat_map(|day| {
                    let count = place(simulator.drawn(customer, day).len());
                    (0..count).map(move |index| (day, index))
                });
                let payments: Vec<Picked> = payments.collect();
                let count = place(payments.len());
                let chosen = dice.some_below(count, count / CUSTOMER_SHARE);
                let picked = chosen.into_iter().filter_map(|at| payments.get(at as usize).copied());
                plan.push((customer, picked.collect()));
            }
        }
        plan
    }

    pub(super) fn add(&mut self, customer: u32, picked: Vec<Picked>) {
        if let Some(all) = self.customers.get_mut(customer as usize) {
            all.extend(picked);
        }
    }

    /// True while somebody else sits in the terminal.
    pub(super) fn has_terminal(&self, terminal: u32, day: u32) -> bool {
        let days = self.terminals.get(terminal as usize);
        days.is_some_and(|days| days.iter().any(|begun| (*begun..begun + TERMINAL_DAYS).contains(&day)))
    }

    /// How many compromises of its customer a payment belongs to.
    pub(super) fn hold_payment(&self, customer: u32, picked: Picked) -> usize {
        let all = self.customers.get(customer as usize);
        all.map_or(0, |all| all.iter().filter(|other| **other == picked).count())
    }
}
