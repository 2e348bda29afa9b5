//! One budget of one caller or merchant: what is spent and what is held back in the window that runs now.
//!
//! Integers only, micro-units of one currency. What is held back belongs to calls in flight and goes over a turn of the
//! window with them: a call counts in the window in which it is paid. The clock is passed in; nothing here locks.

use crate::domain::currency::Currency;
use crate::domain::money::Cost;
use crate::domain::period::Period;
use crate::telemetry::handles::BudgetLevels;

/// One budget's use.
pub struct Purse {
    /// What it is counted in.
    pub currency: Currency,
    /// When it begins again.
    pub per: Period,
    /// When the window began that the sums below belong to.
    window: u64,
    spent: i64,
    estimated: i64,
    reserved: i64,
    levels: BudgetLevels,
}

/// What a purse holds, in micro-units.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sums {
    /// Paid in this window.
    pub spent: i64,
    /// The part of it that is an estimate, because the provider did not count.
    pub estimated: i64,
    /// Held back for calls in flight.
    pub reserved: i64,
}

impl Purse {
    /// Nothing spent yet.
    pub fn new(currency: Currency, per: Period, levels: BudgetLevels) -> Self {
        Self { currency, per, window: 0, spent: 0, estimated: 0, reserved: 0, levels }
    }

    /// Begins a new window if the old one is over. Never goes back to an earlier one.
    pub fn turn(&mut self, unix_ms: u64) {
        let window = self.per.began(unix_ms);
        if window > self.window {
            (self.window, self.spent, self.estimated) = (window, 0, 0);
            self.show();
        }
    }

    /// True if so much can still be held back.
    pub fn fits(&self, micro: i64, limit: i64) -> bool {
        self.spent.saturating_add(self.reserved).saturating_add(micro) <= limit
    }

    /// Holds back.
    pub fn reserve(&mut self, micro: i64) {
        self.reserved = self.reserved.saturating_add(micro);
        self.show();
    }

    /// Lets go of what was held back.
    pub fn release(&mut self, micro: i64) {
        self.reserved = self.reserved.saturating_sub(micro);
        self.show();
    }

    /// Pays. What is held back for it is released apart.
    pub fn pay(&mut self, micro: i64) {
        self.spent = self.spent.saturating_add(micro);
        self.show();
    }

    /// Pays what is only estimated.
    pub fn pay_estimate(&mut self, micro: i64) {
        self.estimated = self.estimated.saturating_add(micro);
        self.pay(micro);
    }

    /// Takes over what was spent before a restart, if it belongs to the window that runs now.
    pub fn restore(&mut self, window: u64, spent: i64, estimated: i64) {
        if window == self.window {
            self.spent = self.spent.saturating_add(spent);
            self.estimated = self.estimated.saturating_add(estimated);
            self.show();
        }
    }

    /// What it holds.
    pub fn sums(&self) -> Sums {
        Sums { spent: self.spent, estimated: self.estimated, reserved: self.reserved }
    }

    /// When its window began, milliseconds since 1970.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// As money.
    pub fn cost(&self, micro: i64) -> Cost {
        Cost { micro, currency: self.currency }
    }

    /// What metrics show as the limit.
    pub fn show_limit(&self, micro: i64) {
        self.levels.limit.set(micro);
        self.show();
    }

    fn show(&self) {
        self.levels.spent.set(self.spent);
        self.levels.reserved.set(self.reserved);
    }
}
