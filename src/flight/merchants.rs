//! What merchants' decisions cost in the day or month that runs now: a purse for each budget and merchant.
//!
//! A call claims its estimate in all the purses that hold for it, or in none; pays what its attempts cost; and lets go of
//! the rest when it is over, however it ends. Limits are passed in at each claim, so a reload changes them at once and the
//! spending carries over. Purses of named merchants and categories are as many as the configuration has; those of `"*"`
//! are bounded, and merchants beyond the bound share one, so that nobody spends uncounted. Prices and what is given up for
//! want of money are decided elsewhere.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use crate::config::budgets::{MerchantBudget, RiskBudgets, WHOLE, WhenSpent, Whose};
use crate::domain::id::TenantId;
use crate::domain::money::Cost;
use crate::domain::period::Period;
use crate::flight::purse::{Purse, Sums};
use crate::flight::quota::{Calendar, Kept, Payment};
use crate::telemetry::handles::BudgetLevels;
use crate::telemetry::metrics::Metrics;

/// Merchants of `"*"` with a purse of their own, over all such budgets.
pub const MOST_MERCHANTS: usize = 10_000;

/// Names one purse: a digest, so that no merchant's name is kept or written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key(pub [u8; 16]);

/// Everything merchants have spent.
pub struct Merchants {
    calendar: Calendar,
    most: usize,
    /// Held for a few look-ups and additions, never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    purses: HashMap<Key, Purse>,
    /// Those the configuration names, and those shared by whoever found no room.
    named: HashSet<Key>,
    /// When the day began in which purses were last thrown away.
    swept: u64,
    /// Calls that were counted in a shared purse, since the start.
    crowded: u64,
}

/// One purse a call is paid from, and what it may hold.
#[derive(Clone, Debug)]
pub struct Account {
    key: Key,
    /// Where it is counted if there is no room for one more merchant.
    shared: Option<Key>,
    limit: Cost,
    soft: i64,
    per: Period,
    when_spent: WhenSpent,
}

/// How much of a budget a claim may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// What is there for calls with features that can be given up.
    WithExtras,
    /// All of it.
    All,
    /// More than there is, if need be.
    Overdraw,
}

/// A claim that does not fit, and what is to be done about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spent(pub WhenSpent);

/// A budget as the status page shows it.
#[derive(Clone, Copy, Debug)]
pub struct MerchantSpending {
    /// What is in it; of all merchants together where each has one.
    pub sums: Sums,
    /// How many merchants have spent from it.
    pub merchants: usize,
    /// When it begins again, milliseconds since 1970.
    pub resets_at: u64,
}

impl Merchants {
    /// Nothing spent yet.
    pub fn new(calendar: Calendar) -> Self {
        Self::with_room(calendar, MOST_MERCHANTS)
    }

    fn with_room(calendar: Calendar, most: usize) -> Self {
        Self { calendar, most, state: Mutex::default() }
    }

    /// Makes room for these budgets. What was spent from those that stay, stays.
    pub fn adopt(&self, budgets: &RiskBudgets, metrics: &Metrics) {
        let unix_ms = self.calendar.unix_ms();
        let mut guard = self.state();
        let state = &mut *guard;
        let mut wanted = HashSet::new();
        for budget in budgets.all() {
            let currency = budget.amount.currency;
            let tenant = budget.tenant.as_ref().map_or("", TenantId::as_str);
            let (kind, name) = budget.whose.label();
            let (key, levels) = match &budget.whose {
                // The sum of many limits would be nobody's.
                Whose::Each => (shared_key(budget), BudgetLevels::default()),
                Whose::Merchant(_) | Whose::Category(_) => {
                    (named_key(budget), metrics.merchant_budget([kind, name, tenant], budget.per, currency))
                }
            };
            let purse = state.purses.entry(key).or_insert_with(|| Purse::new(currency, budget.per, levels));
            purse.turn(unix_ms);
            purse.show_limit(budget.amount.micro);
            wanted.insert(key);
        }
        for gone in state.named.difference(&wanted) {
            // Its series says that it limits nothing any more.
            state.purses.remove(gone).inspect(|purse| purse.show_limit(0));
        }
        state.named = wanted;
    }

    /// Says in the metrics that nothing is limited any more.
    pub fn retire(&self) {
        let state = self.state();
        state.named.iter().filter_map(|key| state.purses.get(key)).for_each(|purse| purse.show_limit(0));
    }

    /// Holds the estimate back in every account, or in none.
    ///
    /// # Errors
    /// [`Spent`] if one of them has no room for it.
    pub fn claim(self: &Arc<Self>, accounts: &[Account], cost: Cost, room: Room) -> Result<Arc<MerchantClaim>, Spent> {
        let unix_ms = self.calendar.unix_ms();
        let mut state = self.state();
        let keys: Vec<Key> = accounts.iter().map(|account| state.place(account, unix_ms, self.most)).collect();
        let mut spent = None;
        for (account, key) in accounts.iter().zip(&keys) {
            let Some(purse) = state.purses.get_mut(key) else { continue };
            purse.turn(unix_ms);
            let limit = match room {
                Room::WithExtras => account.soft,
                Room::All => account.limit.micro,
                Room::Overdraw => i64::MAX,
            };
            if !purse.fits(cost.micro, limit) {
                spent = spent.max(Some(account.when_spent));
            }
        }
        if let Some(when_spent) = spent {
            return Err(Spent(when_spent));
        }
        for key in &keys {
            state.purses.get_mut(key).into_iter().for_each(|purse| purse.reserve(cost.micro));
        }
        drop(state);
        let held = keys.into_iter().map(|key| (key, cost.micro)).collect();
        Ok(Arc::new(MerchantClaim { merchants: Arc::clone(self), held: Mutex::new(held) }))
    }

    /// What is in the budget now.
    pub fn spending(&self, budget: &MerchantBudget) -> MerchantSpending {
        let unix_ms = self.calendar.unix_ms();
        let mut guard = self.state();
        let state = &mut *guard;
        state.turn(unix_ms);
        let each = budget.whose == Whose::Each;
        let key = if each { shared_key(budget) } else { named_key(budget) };
        let of_each = |key: &Key, purse: &Purse| {
            each && !state.named.contains(key) && (purse.per, purse.currency) == (budget.per, budget.amount.currency)
        };
        let all = state.purses.iter().filter(|(known, purse)| **known == key || of_each(known, purse));
        let all: Vec<Sums> = all.map(|(_, purse)| purse.sums()).filter(|sums| *sums != Sums::default()).collect();
        let sums = all.iter().fold(Sums::default(), |sum, one| Sums {
            spent: sum.spent.saturating_add(one.spent),
            estimated: sum.estimated.saturating_add(one.estimated),
            reserved: sum.reserved.saturating_add(one.reserved),
        });
        MerchantSpending { sums, merchants: all.len(), resets_at: budget.per.ends(unix_ms) }
    }

    /// Calls counted in a purse that several merchants share because there was no room for more, since the start.
    pub fn crowded(&self) -> u64 {
        self.state().crowded
    }

    /// What must outlive a restart.
    pub fn kept(&self) -> Vec<(Key, Kept)> {
        let unix_ms = self.calendar.unix_ms();
        let mut state = self.state();
        state.turn(unix_ms);
        let spent = state.purses.iter().filter(|(_, purse)| purse.sums().spent > 0);
        let mut kept: Vec<_> = spent.map(|(key, purse)| (*key, Kept::of(purse))).collect();
        kept.sort_unstable_by_key(|(key, _)| *key);
        kept
    }

    /// Takes over what was kept before a restart.
    pub fn restore(&self, kept: &[(Key, Kept)]) {
        let unix_ms = self.calendar.unix_ms();
        let mut state = self.state();
        for (key, kept) in kept.iter().filter(|(_, kept)| kept.window == kept.per.began(unix_ms)) {
            if !state.purses.contains_key(key) && state.unnamed() >= self.most {
                continue;
            }
            let purse = state.purses.entry(*key);
            let purse = purse.or_insert_with(|| Purse::new(kept.currency, kept.per, BudgetLevels::default()));
            purse.turn(unix_ms);
            purse.restore(kept.window, kept.spent, kept.estimated);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic within a few additions leaves sums that are still sums.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The key under which the account is counted, its purse made if it is a new merchant's.
    fn place(&mut self, account: &Account, unix_ms: u64, most: usize) -> Key {
        let Some(shared) = account.shared.filter(|_| !self.purses.contains_key(&account.key)) else {
            return account.key;
        };
        if self.unnamed() >= most {
            self.sweep(unix_ms);
        }
        if self.unnamed() >= most {
            self.crowded += 1;
            return shared;
        }
        self.purses.insert(account.key, Purse::new(account.limit.currency, account.per, BudgetLevels::default()));
        account.key
    }

    fn unnamed(&self) -> usize {
        self.purses.len().saturating_sub(self.named.len())
    }

    fn turn(&mut self, unix_ms: u64) {
        self.purses.values_mut().for_each(|purse| purse.turn(unix_ms));
    }

    /// Throws empty purses away, at most once a day: a window that is over empties many at once.
    fn sweep(&mut self, unix_ms: u64) {
        let day = Period::Day.began(unix_ms);
        if day <= self.swept {
            return;
        }
        self.swept = day;
        self.turn(unix_ms);
        let named = &self.named;
        self.purses.retain(|key, purse| named.contains(key) || purse.sums() != Sums::default());
    }
}

impl Account {
    /// The accounts of one call.
    pub fn of(budgets: &RiskBudgets, tenant: &TenantId, merchant: &str, category: Option<&str>) -> Vec<Self> {
        let account = |budget: &MerchantBudget| {
            let each = budget.whose == Whose::Each;
            let share = i128::from(budget.amount.micro) * i128::from(budget.ladder_from) / i128::from(WHOLE);
            Self {
                key: if each { each_key(budget, tenant, merchant) } else { named_key(budget) },
                shared: each.then(|| shared_key(budget)),
                limit: budget.amount,
                soft: i64::try_from(share).unwrap_or(budget.amount.micro),
                per: budget.per,
                when_spent: budget.when_spent,
            }
        };
        budgets.of(tenant, merchant, category).map(account).collect()
    }
}

/// One call's claim on its merchant's budgets.
pub struct MerchantClaim {
    merchants: Arc<Merchants>,
    /// What is held back in each purse. Locked before the purses, never after.
    held: Mutex<Vec<(Key, i64)>>,
}

impl MerchantClaim {
    /// Pays for one attempt, also when the claim is closed already: a late verdict costs as much. What has no price costs
    /// what was held back for it.
    pub fn pay(&self, payment: Payment) {
        let mut held = self.held();
        let unix_ms = self.merchants.calendar.unix_ms();
        let mut state = self.merchants.state();
        for (key, reserved) in held.iter_mut() {
            let Some(purse) = state.purses.get_mut(key) else { continue };
            purse.turn(unix_ms);
            let paid = match payment {
                Payment::Counted(cost) | Payment::Estimated(cost) => cost.micro,
                Payment::Unpriced => *reserved,
            };
            match payment {
                Payment::Counted(_) => purse.pay(paid),
                Payment::Estimated(_) | Payment::Unpriced => purse.pay_estimate(paid),
            }
            let let_go = paid.min(*reserved);
            purse.release(let_go);
            *reserved -= let_go;
        }
    }

    /// Lets go of what was held back and not paid. A second time finds nothing.
    pub fn close(&self) {
        let mut held = self.held();
        let mut state = self.merchants.state();
        for (key, reserved) in held.iter_mut() {
            let rest = std::mem::take(reserved);
            state.purses.get_mut(key).into_iter().for_each(|purse| purse.release(rest));
        }
    }

    fn held(&self) -> MutexGuard<'_, Vec<(Key, i64)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MerchantClaim {
    fn drop(&mut self) {
        self.close();
    }
}

fn named_key(budget: &MerchantBudget) -> Key {
    let (kind, name) = budget.whose.label();
    key([kind, "", name], budget)
}

/// One purse for all who found no room, of each budget of `"*"`.
fn shared_key(budget: &MerchantBudget) -> Key {
    key(["others", "", ""], budget)
}

/// Merchants of two tenants are two, whatever they are called.
fn each_key(budget: &MerchantBudget, tenant: &TenantId, merchant: &str) -> Key {
    key(["each", tenant.as_str(), merchant], budget)
}

fn key(whose: [&str; 3], budget: &MerchantBudget) -> Key {
    let only = budget.tenant.as_ref().map_or("", TenantId::as_str);
    let mut hash = Sha256::new();
    for part in whose.into_iter().chain([only, budget.per.label(), budget.amount.currency.code()]) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    let (half, _) = digest.split_at(16);
    Key(half.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests;
