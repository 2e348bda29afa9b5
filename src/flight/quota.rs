//! What a caller may use of tokens and money, and one call's claim on it.
//!
//! A call claims an estimate before it goes out, pays what its attempts really cost as they end, and lets go of the rest
//! when it is over, however it ends: [`Claim`] does so when it is dropped at the latest, and never twice. Limits are passed
//! in at each claim, so a reload changes them at once and the use carries over. Prices and estimates are made elsewhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::table::{Budget, Caller};
use crate::domain::clock;
use crate::domain::currency::Currency;
use crate::domain::money::Cost;
use crate::domain::period::Period;
use crate::flight::bucket::{Bucket, Taken, TokenRoom};
use crate::flight::purse::{Purse, Sums};
use crate::telemetry::metrics::Metrics;

/// Wall time for windows: what the clock said at the start, and the time since. A step of the wall clock while the process
/// runs neither gives nor takes a budget.
#[derive(Clone, Copy, Debug)]
pub struct Calendar {
    start: Instant,
    unix_ms: u64,
}

impl Calendar {
    /// It is this moment now, milliseconds since 1970.
    pub fn at(unix_ms: u64) -> Self {
        Self { start: Instant::now(), unix_ms }
    }

    /// It is now.
    pub fn now() -> Self {
        Self::at(clock::unix_ms())
    }

    /// What time it is, milliseconds since 1970.
    pub fn unix_ms(self) -> u64 {
        self.moment().unix_ms
    }

    fn moment(self) -> Moment {
        let since = self.start.elapsed();
        let ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Moment { ns, unix_ms: self.unix_ms.saturating_add(ms) }
    }
}

#[derive(Clone, Copy)]
struct Moment {
    /// Since the calendar began.
    ns: u64,
    unix_ms: u64,
}

/// How large a call is taken to be before anybody has counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Size {
    /// Prompt tokens.
    pub input: u64,
    /// Completion tokens, as many as the caller allows, or as an ordinary answer has.
    pub output: u64,
}

impl Size {
    /// Both together.
    pub fn tokens(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// What a call asks for.
pub struct Wish<'a> {
    /// Whose limits hold.
    pub caller: &'a Caller,
    /// The estimate; zero for what uses no tokens.
    pub size: Size,
    /// What it may cost at most, by currency.
    pub costs: &'a [Cost],
}

/// Why a claim is not met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The tokens of this minute are used; they fit after this long.
    Tokens(Duration),
    /// A budget is used up until its window ends.
    Budget {
        /// Which.
        per: Period,
        /// Milliseconds since 1970.
        ends: u64,
    },
}

/// What an attempt is paid with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payment {
    /// The provider's own count at a known price.
    Counted(Cost),
    /// A known price, and tokens nobody counted.
    Estimated(Cost),
    /// No price is known.
    Unpriced,
}

/// A budget as the status page shows it.
#[derive(Clone, Copy, Debug)]
pub struct Spending {
    /// What it may be.
    pub budget: Budget,
    /// What it is.
    pub sums: Sums,
    /// When it begins again, milliseconds since 1970.
    pub resets_at: u64,
}

/// What is kept of a budget over a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// What it is counted in.
    pub currency: Currency,
    /// When it begins again.
    pub per: Period,
    /// When its window began, milliseconds since 1970.
    pub window: u64,
    /// Spent in it, micro-units.
    pub spent: i64,
    /// The estimated part of it.
    pub estimated: i64,
}

impl Kept {
    /// What of a purse must outlive a restart.
    pub fn of(purse: &Purse) -> Self {
        let Sums { spent, estimated, .. } = purse.sums();
        Self { currency: purse.currency, per: purse.per, window: purse.window(), spent, estimated }
    }
}

/// One caller's use of tokens and money.
pub struct Quota {
    calendar: Calendar,
    /// Held for a few additions, never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bucket: Bucket,
    /// One for each budget that was ever configured: a handful.
    purses: Vec<Purse>,
    unpriced: u64,
}

impl State {
    fn find(&self, budget: &Budget) -> Option<usize> {
        self.purses.iter().position(|purse| purse.per == budget.per && purse.currency == budget.amount.currency)
    }

    fn turn(&mut self, unix_ms: u64) {
        self.purses.iter_mut().for_each(|purse| purse.turn(unix_ms));
    }
}

impl Quota {
    /// Nothing used yet.
    pub fn new(calendar: Calendar) -> Self {
        Self { calendar, state: Mutex::default() }
    }

    /// Makes room for the caller's budgets. What was spent stays.
    pub fn adopt(&self, caller: &Caller, metrics: &Metrics) {
        let mut state = self.state();
        // So that what is never refused is seen to be.
        drop(metrics.caller(&caller.id));
        // Those that are gone limit nothing any more, and their series say so.
        state.purses.iter().for_each(|purse| purse.show_limit(0));
        for budget in &caller.budgets {
            let currency = budget.amount.currency;
            let found = state.find(budget).unwrap_or_else(|| {
                let levels = metrics.budget(&caller.id, budget.per, currency);
                state.purses.push(Purse::new(currency, budget.per, levels));
                state.purses.len() - 1
            });
            if let Some(purse) = state.purses.get(found) {
                purse.show_limit(budget.amount.micro);
            }
        }
        let now = self.calendar.moment();
        state.turn(now.unix_ms);
    }

    /// Says in the metrics that nothing is limited any more.
    pub fn retire(&self) {
        self.state().purses.iter().for_each(|purse| purse.show_limit(0));
    }

    /// Holds the estimate back, or nothing of it.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was taken then.
    pub fn claim(self: &Arc<Self>, wish: &Wish<'_>) -> Result<Arc<Claim>, Refusal> {
        let now = self.calendar.moment();
        let mut state = self.state();
        state.turn(now.unix_ms);
        let mut shares = Vec::with_capacity(wish.caller.budgets.len());
        for budget in &wish.caller.budgets {
            let Some(place) = state.find(budget) else { continue };
            let dearest = wish.costs.iter().filter(|cost| cost.currency == budget.amount.currency);
            let micro = dearest.map(|cost| cost.micro).max();
            let fits = |micro| state.purses.get(place).is_none_or(|purse| purse.fits(micro, budget.amount.micro));
            if micro.is_some_and(|micro| !fits(micro)) {
                return Err(Refusal::Budget { per: budget.per, ends: budget.per.ends(now.unix_ms) });
            }
            shares.push(Share { place, micro: micro.unwrap_or(0) });
        }
        let per_minute = wish.caller.tokens_per_minute.filter(|_| wish.size.tokens() > 0);
        let take = |per_minute| state.bucket.take(now.ns, wish.size.tokens(), per_minute);
        let taken = per_minute.map(take).transpose().map_err(Refusal::Tokens)?;
        for share in &shares {
            if let Some(purse) = state.purses.get_mut(share.place) {
                purse.reserve(share.micro);
            }
        }
        drop(state);
        let held = Mutex::new(Held { shares, taken, used: 0 });
        Ok(Arc::new(Claim { quota: Arc::clone(self), size: wish.size, per_minute, held }))
    }

    /// Begins the windows that are due.
    pub fn turn(&self) {
        let now = self.calendar.moment();
        self.state().turn(now.unix_ms);
    }

    /// A claim to nothing, for what is paid and never refused.
    pub fn tally(self: &Arc<Self>, caller: &Caller) -> Arc<Claim> {
        let state = self.state();
        let places = caller.budgets.iter().filter_map(|budget| state.find(budget));
        let shares = places.map(|place| Share { place, micro: 0 }).collect();
        drop(state);
        let held = Mutex::new(Held { shares, taken: None, used: 0 });
        Arc::new(Claim { quota: Arc::clone(self), size: Size::default(), per_minute: None, held })
    }

    /// What is left of the tokens.
    pub fn room(&self, per_minute: u32) -> TokenRoom {
        let now = self.calendar.moment();
        self.state().bucket.room(now.ns, per_minute)
    }

    /// What is left of each of the caller's budgets, in their order.
    pub fn spending(&self, caller: &Caller) -> Vec<Spending> {
        let now = self.calendar.moment();
        let mut state = self.state();
        state.turn(now.unix_ms);
        let describe = |budget: &Budget| {
            let sums = state.purses.get(state.find(budget)?)?.sums();
            Some(Spending { budget: *budget, sums, resets_at: budget.per.ends(now.unix_ms) })
        };
        caller.budgets.iter().filter_map(describe).collect()
    }

    /// Attempts no budget could count, since the start.
    pub fn unpriced(&self) -> u64 {
        self.state().unpriced
    }

    /// What must outlive a restart.
    pub fn kept(&self) -> Vec<Kept> {
        self.state().purses.iter().filter(|purse| purse.sums().spent > 0).map(Kept::of).collect()
    }

    /// Takes over what was kept before a restart.
    pub fn restore(&self, kept: &[Kept]) {
        let mut state = self.state();
        for kept in kept {
            let same = |purse: &&mut Purse| purse.currency == kept.currency && purse.per == kept.per;
            if let Some(purse) = state.purses.iter_mut().find(same) {
                purse.restore(kept.window, kept.spent, kept.estimated);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic within a few additions leaves sums that are still sums.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call's claim.
pub struct Claim {
    quota: Arc<Quota>,
    size: Size,
    per_minute: Option<u32>,
    /// Locked before the quota's, never after.
    held: Mutex<Held>,
}

struct Held {
    shares: Vec<Share>,
    /// Gone once the claim is closed.
    taken: Option<Taken>,
    used: u64,
}

/// What is held back in one purse.
struct Share {
    place: usize,
    micro: i64,
}

impl Claim {
    /// The estimate it was made with.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Pays for one attempt, also when the claim is closed already: a late answer costs as much. False if no budget of the
    /// caller could count it.
    pub fn pay(&self, payment: Payment, tokens: u64) -> bool {
        let mut held = self.held();
        let now = self.quota.calendar.moment();
        let mut state = self.quota.state();
        match (held.taken, self.per_minute) {
            (Some(_), _) => held.used = held.used.saturating_add(tokens),
            (None, Some(per_minute)) => state.bucket.owe(now.ns, tokens, per_minute),
            (None, None) => {}
        }
        state.turn(now.unix_ms);
        let cost = match payment {
            Payment::Counted(cost) | Payment::Estimated(cost) => Some(cost),
            Payment::Unpriced => None,
        };
        // Nothing is nothing in every currency.
        let free = matches!(payment, Payment::Counted(cost) if cost.micro == 0);
        let mut counted = held.shares.is_empty() || free;
        for share in &mut held.shares {
            let Some(purse) = state.purses.get_mut(share.place) else { continue };
            let Some(cost) = cost.filter(|cost| cost.currency == purse.currency) else { continue };
            counted = true;
            match payment {
                Payment::Estimated(_) => purse.pay_estimate(cost.micro),
                Payment::Counted(_) | Payment::Unpriced => purse.pay(cost.micro),
            }
            let let_go = share.micro.min(cost.micro);
            purse.release(let_go);
            share.micro -= let_go;
        }
        state.unpriced += u64::from(!counted);
        counted
    }

    /// Lets go of what was held back and not used. Once; a second time finds nothing.
    pub fn close(&self) {
        let mut held = self.held();
        let now = self.quota.calendar.moment();
        let mut state = self.quota.state();
        if let Some(taken) = held.taken.take() {
            state.bucket.settle(now.ns, taken, held.used);
        }
        for share in &mut held.shares {
            if let Some(purse) = state.purses.get_mut(share.place) {
                purse.release(std::mem::take(&mut share.micro));
            }
        }
    }

    /// What the caller has left of its tokens, if they are limited.
    pub fn room(&self) -> Option<TokenRoom> {
        self.per_minute.map(|per_minute| self.quota.room(per_minute))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
