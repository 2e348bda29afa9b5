//! Who passed lately, and what happened since: the memory behind the decision cache.
//!
//! It remembers; whether what it remembers may be given again is asked of [`domain::reuse`](crate::domain::reuse), under
//! the lock under which the use is booked, so that two calls at once cannot take the same last use. Everything it knows
//! about people is peppered hashes. It lives in this process: it survives reloads, as [`Lineage`] and the guards allow, and
//! no restart; only what was found out about merchants does ([`carried`]).
//!
//! Epochs are numbers of one counter. What began before a bump of its payer, its merchant or its provider's model is worth
//! nothing, also if it was still on its way. When there are too many bumps to remember, everything that began before now is
//! worth nothing: forgetting a bump would be worse.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use moka::sync::Cache as Moka;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::lineage::Lineage;
use crate::config::reuse::ReusePolicy;
use crate::config::table::RiskRoute;
use crate::domain::agreement::{Agreed, Standing};
use crate::domain::clock;
use crate::domain::decision::{Action, Decision, DecisionSource};
use crate::domain::id::ProviderId;
use crate::domain::reuse::{Guard, Likeness, Mark, Remembered, Speed, Terms, Wanted, refused_by};
use crate::flight::call::RiskFacts;
use crate::telemetry::metrics::Metrics;
use crate::wire::risk::Assessment;

mod carried;

/// Payers remembered.
const MOST_PEOPLE: u64 = 50_000;
/// Pairs of instrument and device of each.
const MOST_OF_ONE: usize = 4;
/// The longest `ttl` and its jitter.
const LIFE: Duration = Duration::from_secs(28 * 3600);
/// Bumps remembered, of payers and of merchants each.
const MOST_EPOCHS: usize = 100_000;
/// Merchants whose agreement is measured apart; all others are measured together.
const MOST_MERCHANTS: usize = 4_096;
/// Lives are drawn from 85 to 115 per cent, so that what was decided together does not expire together.
const JITTER: u64 = 300_000;

/// The memory of the process.
pub struct DecisionCache {
    pepper: [u8; 32],
    /// The process before's, once this one goes on from it.
    inherited: OnceLock<[u8; 32]>,
    began: Instant,
    people: Moka<Mark, Arc<Mutex<Vec<Remembered>>>>,
    epochs: Mutex<Epochs>,
    standings: Mutex<HashMap<Mark, Standing>>,
    lineage: Lineage,
}

/// One attempt as memory knows it.
pub(in crate::layer) struct Asker {
    person: Mark,
    merchant: Mark,
    likeness: Likeness,
    begun: u64,
    /// Drawn once per attempt, below a million.
    pub(in crate::layer) draw: u32,
}

/// Whether a use is booked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::layer) enum Intent {
    /// It will be given.
    Give,
    /// It is only to be compared.
    Compare,
}

/// What may be given again.
pub(in crate::layer) struct Found {
    pub(in crate::layer) decision: Arc<Decision>,
    pub(in crate::layer) age_ms: u64,
    pub(in crate::layer) rest_ms: u64,
}

/// Why there is nothing to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::layer) enum Nothing {
    /// Nothing is known of the payer.
    Unknown,
    /// Something is, and this guard forbids it.
    Refused(Guard),
}

#[derive(Default)]
struct Epochs {
    now: u64,
    /// What began before is worth nothing, whoever's it is.
    floor: u64,
    people: HashMap<Mark, u64>,
    merchants: HashMap<Mark, u64>,
    /// The last version each provider reported, and since when; one entry a provider.
    models: HashMap<ProviderId, (Option<String>, u64)>,
}

impl DecisionCache {
    /// Nothing remembered. The pepper is random and this process's own.
    pub fn new(pepper: [u8; 32]) -> Self {
        Self {
            pepper,
            inherited: OnceLock::new(),
            began: Instant::now(),
            people: Moka::builder().max_capacity(MOST_PEOPLE).time_to_live(LIFE).build(),
            epochs: Mutex::default(),
            standings: Mutex::default(),
            lineage: Lineage::default(),
        }
    }

    /// Makes everything worthless that was decided for a merchant so far, or for one of its payers, calls on their way
    /// included: after a chargeback, a fraud warning, an overturned decision, a change of the account or of a list.
    pub fn bump(&self, tenant: &str, merchant: &str, user: Option<&str>) {
        let merchant_mark = self.merchant(tenant, merchant);
        match user {
            Some(user) => self.epochs().bump_person(self.person(tenant, merchant, user)),
            None => self.epochs().bump_merchant(merchant_mark),
        }
    }

    /// Another configuration decides. Where the route changed in nothing, earlier decisions are as good as before.
    pub fn rules_change(&self, before: &RiskRoute, after: &RiskRoute) {
        if before.decides_as(after) {
            self.lineage.goes_on(&before.ruling.applied.version, &after.ruling.applied.version);
        } else {
            self.lineage.begins(&after.ruling.applied.version);
        }
    }

    /// Makes everything worthless that was decided so far, calls on their way included.
    pub fn bump_all(&self) {
        let mut epochs = self.epochs();
        epochs.now += 1;
        epochs.forget_before();
    }

    /// The attempt as memory knows it. Call it before anybody is asked: the epoch counts from here.
    pub(in crate::layer) fn asker(&self, tenant: &str, facts: &RiskFacts) -> Asker {
        let assessment = &facts.assessment;
        let draw = self.hash("draw", &[Some(tenant), Some(&assessment.out_trade_no)]);
        Asker {
            person: self.person(tenant, &assessment.merchant.id, &assessment.user.id),
            merchant: self.merchant(tenant, &assessment.merchant.id),
            likeness: self.likeness(assessment),
            begun: self.epochs().now,
            draw: u32::try_from(number(draw) % 1_000_000).unwrap_or_default(),
        }
    }

    /// An earlier decision for this attempt, if every guard holds.
    pub(in crate::layer) fn find(
        &self,
        terms: &Terms,
        asker: &Asker,
        facts: &RiskFacts,
        intent: Intent,
    ) -> Result<Found, Nothing> {
        let known = self.people.get(&asker.person).ok_or(Nothing::Unknown)?;
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let likest = known.iter().position(|known| known.is_of(&asker.likeness)).or(known.len().checked_sub(1));
        let known = likest.and_then(|place| known.get_mut(place)).ok_or(Nothing::Unknown)?;
        let (epoch, model_epoch) = self.epochs().of(asker, &known.decision);
        let now_ms = self.now_ms();
        let wanted = Wanted {
            likeness: &asker.likeness,
            amount: facts.assessment.amount,
            device_known: device_known(&facts.assessment),
            ruling: &facts.ruling,
            velocity: if facts.velocity.is_over() { Speed::Over } else { Speed::Within },
            now_ms,
            epoch,
            model_epoch,
        };
        if known.ruling.applied.version != wanted.ruling.applied.version
            && self.lineage.is_one(&known.ruling, wanted.ruling)
        {
            known.ruling = Arc::clone(&facts.ruling);
        }
        if let Some(guard) = refused_by(terms, known, &wanted) {
            return Err(Nothing::Refused(guard));
        }
        if intent == Intent::Give {
            known.uses += 1;
            known.spent = known.spent.saturating_add(wanted.amount.minor());
        }
        let (age_ms, rest_ms) = known.age_and_rest(now_ms);
        Ok(Found { decision: Arc::clone(&known.decision), age_ms, rest_ms })
    }

    /// Takes note of what a provider said: a PASS may be given again, anything else makes earlier ones worthless.
    pub(in crate::layer) fn learn(&self, terms: &Terms, asker: &Asker, facts: &RiskFacts, decision: &Arc<Decision>) {
        let (DecisionSource::Live, Some(verdict)) = (decision.source, &decision.verdict) else { return };
        self.epochs().note_model(&verdict.provider.id, verdict.provider.model_version.as_deref());
        if decision.action != Action::Pass {
            self.epochs().bump_person(asker.person);
            return self.people.invalidate(&asker.person);
        }
        if asker.likeness.instrument.is_none() || asker.likeness.device.is_none() {
            return;
        }
        self.remember(asker, self.fresh(terms, asker, facts, decision), terms.ttl);
    }

    fn fresh(&self, terms: &Terms, asker: &Asker, facts: &RiskFacts, decision: &Arc<Decision>) -> Remembered {
        let (now_ms, amount) = (self.now_ms(), facts.assessment.amount);
        let drawn = number(self.hash("life", &[Some(decision.id.as_str())])) % (JITTER + 1);
        Remembered {
            decision: Arc::clone(decision),
            ruling: Arc::clone(&facts.ruling),
            likeness: asker.likeness.clone(),
            amount,
            largest: amount,
            largest_at_ms: now_ms,
            decided_at_ms: now_ms,
            life_ms: millis(terms.ttl).saturating_mul(1_000_000 - JITTER / 2 + drawn) / 1_000_000,
            begun: asker.begun,
            uses: 0,
            spent: 0,
        }
    }

    /// Takes the place of what was known for the same instrument and device, and takes over its largest amount while that
    /// is young and as good.
    fn remember(&self, asker: &Asker, mut fresh: Remembered, ttl: Duration) {
        let (epoch, model_epoch) = self.epochs().of(asker, &fresh.decision);
        let known = self.people.get(&asker.person).unwrap_or_else(|| {
            let known = Arc::default();
            self.people.insert(asker.person, Arc::clone(&known));
            known
        });
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = known.iter().position(|known| known.is_of(&asker.likeness)) {
            let before = known.remove(place);
            let counts = before.begun >= epoch.max(model_epoch) && before.ruling == fresh.ruling;
            let young = fresh.decided_at_ms.saturating_sub(before.largest_at_ms) < millis(ttl);
            let one_currency = before.largest.currency() == fresh.amount.currency();
            if counts && young && one_currency && before.largest.minor() > fresh.amount.minor() {
                (fresh.largest, fresh.largest_at_ms) = (before.largest, before.largest_at_ms);
            }
        }
        if known.len() >= MOST_OF_ONE {
            known.remove(0);
        }
        known.push(fresh);
    }

    /// True if too many of the merchant's reused decisions disagreed.
    pub(in crate::layer) fn is_off(&self, asker: &Asker) -> bool {
        let standings = self.standings();
        standings
            .get(&asker.merchant)
            .or_else(|| standings.get(&Mark::default()))
            .is_some_and(|standing| standing.is_off())
    }

    /// Takes note of whether a provider passed what memory would have passed.
    pub(in crate::layer) fn compare(&self, asker: &Asker, agreed: Agreed, policy: &ReusePolicy, metrics: &Metrics) {
        let limit = policy.max_disagreement;
        let mut standings = self.standings();
        let crowded = standings.len() >= MOST_MERCHANTS && !standings.contains_key(&asker.merchant);
        let merchant = if crowded { Mark::default() } else { asker.merchant };
        standings.entry(merchant).or_default().note(agreed, limit);
        let off = standings.values().filter(|standing| standing.is_off()).count();
        let bound = standings.values().filter_map(|standing| standing.bound(limit)).max();
        metrics.reuse.compared(agreed, bound.unwrap_or_default(), off);
    }

    fn person(&self, tenant: &str, merchant: &str, user: &str) -> Mark {
        self.hash("person", &[Some(tenant), Some(merchant), Some(user)])
    }

    fn merchant(&self, tenant: &str, merchant: &str) -> Mark {
        self.hash("merchant", &[Some(tenant), Some(merchant)])
    }

    fn likeness(&self, assessment: &Assessment) -> Likeness {
        let Assessment { user, merchant, instrument, device, .. } = assessment;
        let fingerprint = instrument.fingerprint.as_deref();
        let [kind, bin, last4] = [&instrument.kind, &instrument.bin, &instrument.last4].map(|text| text.as_deref());
        let registered = user.registered_at.as_ref().map(|moment| &*moment.text);
        let mut features: Vec<_> = assessment.features.iter().map(|feature| Some(feature.as_str())).collect();
        features.sort_unstable();
        Likeness {
            instrument: fingerprint.map(|_| self.hash("instrument", &[fingerprint, kind, bin, last4])),
            device: device.id.as_deref().map(|id| self.hash("device", &[Some(id)])),
            network: device.ip.as_deref().map(|ip| self.hash("network", &[Some(&network(ip))])),
            countries: self.hash("countries", &[user.country.as_deref(), merchant.country.as_deref()]),
            account: self.hash("account", &[user.email.as_deref(), user.phone.as_deref(), registered]),
            features: self.hash("features", &features),
        }
    }

    fn pepper(&self) -> &[u8; 32] {
        self.inherited.get().unwrap_or(&self.pepper)
    }

    fn hash(&self, what: &str, parts: &[Option<&str>]) -> Mark {
        let mut hash = Sha256::new_with_prefix(self.pepper());
        for part in std::iter::once(&Some(what)).chain(parts) {
            hash.update([u8::from(part.is_some())]);
            hash.update((part.map_or(0, str::len) as u64).to_be_bytes());
            hash.update(part.unwrap_or_default());
        }
        let whole: [u8; 32] = hash.finalize().into();
        whole.first_chunk().copied().unwrap_or_default()
    }

    fn now_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }

    fn epochs(&self) -> MutexGuard<'_, Epochs> {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standings(&self) -> MutexGuard<'_, HashMap<Mark, Standing>> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Epochs {
    /// What must not have begun before: for the attempt's payer and merchant, and for the model behind the decision.
    fn of(&self, asker: &Asker, decision: &Decision) -> (u64, u64) {
        let bumped = |epochs: &HashMap<Mark, u64>, mark| epochs.get(mark).copied().unwrap_or_default();
        let epoch = bumped(&self.people, &asker.person).max(bumped(&self.merchants, &asker.merchant)).max(self.floor);
        let provider = decision.verdict.as_ref().map(|verdict| &verdict.provider.id);
        let model = provider.and_then(|provider| self.models.get(provider)).map_or(0, |(_, since)| *since);
        (epoch, model)
    }

    fn bump_person(&mut self, person: Mark) {
        self.now += 1;
        self.people.insert(person, self.now);
        self.stay_small();
    }

    fn bump_merchant(&mut self, merchant: Mark) {
        self.now += 1;
        self.merchants.insert(merchant, self.now);
        self.stay_small();
    }

    fn stay_small(&mut self) {
        if self.people.len() > MOST_EPOCHS || self.merchants.len() > MOST_EPOCHS {
            self.forget_before();
        }
    }

    /// From now on nothing counts that began earlier.
    fn forget_before(&mut self) {
        self.people.clear();
        self.merchants.clear();
        self.floor = self.now;
    }

    fn note_model(&mut self, provider: &ProviderId, version: Option<&str>) {
        match self.models.get_mut(provider) {
            Some((known, _)) if known.as_deref() == version => {}
            Some(known) => {
                self.now += 1;
                *known = (version.map(str::to_owned), self.now);
            }
            None => drop(self.models.insert(provider.clone(), (version.map(str::to_owned), 0))),
        }
    }
}

/// How long the caller says it has known the device.
fn device_known(assessment: &Assessment) -> Option<Duration> {
    let since = assessment.device.known_since.as_ref()?.unix_ms;
    let now = i64::try_from(clock::unix_ms()).ok()?;
    u64::try_from(now.checked_sub(since)?).ok().map(Duration::from_millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn number(mark: Mark) -> u64 {
    mark.first_chunk().map_or(0, |half| u64::from_be_bytes(*half))
}

/// The neighbourhood of an address: who moves within it is at home.
fn network(address: &str) -> String {
    match address.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        Ok(IpAddr::V6(address)) => {
            let [a, b, c, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}::/48")
        }
        Err(_) => address.to_owned(),
    }
}

#[cfg(test)]
mod tests;
