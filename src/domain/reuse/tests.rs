//! One case that is allowed, and one for each guard that differs from it in one thing.

use std::collections::BTreeSet;

use super::*;
use crate::domain::currency::Currency;
use crate::domain::decision::{FallbackReason, ProviderReference, Score, Verdict};
use crate::domain::id::{DecisionId, ProviderId};
use crate::domain::policy::{Applied, Bands, FailureModes, OnExhausted, VendorAction};

const MINUTE: u64 = 60_000;

fn money(text: &str, code: &str) -> Money {
    Money::parse(text, Currency::parse(code).unwrap()).unwrap()
}

fn cny(text: &str) -> Money {
    money(text, "CNY")
}

fn score(text: &str) -> Score {
    Score::parse(text).unwrap()
}

fn terms() -> Terms {
    Terms {
        ttl: Duration::from_secs(900),
        max_amount: cny("200.00"),
        max_sum: cny("300.00"),
        max_uses: 5,
        max_score: score("0.2"),
        known_device: Duration::from_secs(7 * 86_400),
    }
}

fn ruling() -> Arc<Ruling> {
    let applied = Applied::sample();
    Arc::new(Ruling::plain(applied, VendorAction::Floor, FailureModes::all(OnExhausted::Review)))
}

fn likeness() -> Likeness {
    Likeness {
        instrument: Some([1; 16]),
        device: Some([2; 16]),
        network: Some([3; 16]),
        countries: [4; 16],
        account: [5; 16],
        features: [6; 16],
    }
}

fn decision() -> Decision {
    let provider = ProviderReference {
        id: ProviderId::new("alipay"),
        trace_id: None,
        model_version: Some("m1".to_owned()),
        latency_ms: 4,
    };
    let verdict = Verdict {
        score: Some(score("0.12")),
        recommendation: Some("PASS".to_owned()),
        explanation: None,
        provider,
        cost: None,
        priced: None,
        features_dropped: Vec::new(),
    };
    Decision {
        id: DecisionId::new("ra_1"),
        action: Action::Pass,
        source: DecisionSource::Live,
        verdict: Some(verdict),
        reasons: Vec::new(),
        applied: Applied::sample(),
        late_verdict_expected: false,
        created_at_ms: 0,
        reused: None,
    }
}

/// What is known, and what is wanted, both of which a test may change.
struct Case {
    terms: Terms,
    known: Remembered,
    likeness: Likeness,
    amount: Money,
    device_known: Option<Duration>,
    ruling: Arc<Ruling>,
    velocity: Speed,
    now_ms: u64,
    epoch: u64,
    model_epoch: u64,
}

impl Case {
    fn new() -> Self {
        let known = Remembered {
            decision: Arc::new(decision()),
            ruling: ruling(),
            likeness: likeness(),
            amount: cny("100.00"),
            largest: cny("100.00"),
            largest_at_ms: 10 * MINUTE,
            decided_at_ms: 10 * MINUTE,
            life_ms: 15 * MINUTE,
            begun: 7,
            uses: 0,
            spent: 0,
        };
        Self {
            terms: terms(),
            known,
            likeness: likeness(),
            amount: cny("100.00"),
            device_known: Some(Duration::from_secs(8 * 86_400)),
            ruling: ruling(),
            velocity: Speed::Within,
            now_ms: 20 * MINUTE,
            epoch: 7,
            model_epoch: 7,
        }
    }

    fn decision(&mut self) -> &mut Decision {
        Arc::make_mut(&mut self.known.decision)
    }

    fn verdict(&mut self) -> &mut Verdict {
        self.decision().verdict.as_mut().unwrap()
    }

    fn applied(&mut self) -> &mut Applied {
        &mut Arc::make_mut(&mut self.ruling).applied
    }

    /// The same rules for both, so that they are not what is refused.
    fn agree(&mut self) {
        self.known.ruling = Arc::clone(&self.ruling);
    }

    fn refused_by(&self) -> Option<Guard> {
        let wanted = Wanted {
            likeness: &self.likeness,
            amount: self.amount,
            device_known: self.device_known,
            ruling: &self.ruling,
            velocity: self.velocity,
            now_ms: self.now_ms,
            epoch: self.epoch,
            model_epoch: self.model_epoch,
        };
        refused_by(&self.terms, &self.known, &wanted)
    }
}

fn with(change: impl FnOnce(&mut Case)) -> Option<Guard> {
    let mut case = Case::new();
    change(&mut case);
    case.refused_by()
}

#[test]
fn the_same_payer_card_device_and_a_small_amount_may_have_it_again() {
    assert_eq!(with(|_| {}), None);
}

#[test]
fn only_a_live_pass_with_a_score_is_ever_given_again() {
    for action in [Action::Challenge, Action::Review, Action::Reject] {
        assert_eq!(with(|case| case.decision().action = action), Some(Guard::NotLivePass));
    }
    let sources = [
        DecisionSource::Cached,
        DecisionSource::Late,
        DecisionSource::Replayed,
        DecisionSource::Fallback(FallbackReason::Deadline),
    ];
    for source in sources {
        assert_eq!(with(|case| case.decision().source = source), Some(Guard::NotLivePass));
    }
    assert_eq!(with(|case| case.decision().verdict = None), Some(Guard::NotLivePass));
    assert_eq!(with(|case| case.verdict().score = None), Some(Guard::Score));
}

#[test]
fn another_instrument_or_none_is_refused() {
    assert_eq!(with(|case| case.likeness.instrument = Some([9; 16])), Some(Guard::Instrument));
    assert_eq!(with(|case| case.likeness.instrument = None), Some(Guard::Instrument));
    let nameless = |case: &mut Case| (case.likeness.instrument, case.known.likeness.instrument) = (None, None);
    assert_eq!(with(nameless), Some(Guard::Instrument));
}

#[test]
fn another_device_or_none_is_refused() {
    assert_eq!(with(|case| case.likeness.device = Some([9; 16])), Some(Guard::Device));
    let nameless = |case: &mut Case| (case.likeness.device, case.known.likeness.device) = (None, None);
    assert_eq!(with(nameless), Some(Guard::Device));
}

#[test]
fn a_device_the_caller_has_not_known_long_enough_is_refused() {
    assert_eq!(with(|case| case.device_known = Some(Duration::from_secs(7 * 86_400 - 1))), Some(Guard::NewDevice));
    assert_eq!(with(|case| case.device_known = None), Some(Guard::NewDevice));
    assert_eq!(with(|case| case.device_known = Some(Duration::from_secs(7 * 86_400))), None);
}

#[test]
fn another_network_country_account_or_wish_is_refused() {
    assert_eq!(with(|case| case.likeness.network = Some([9; 16])), Some(Guard::Network));
    assert_eq!(with(|case| case.likeness.network = None), Some(Guard::Network));
    assert_eq!(with(|case| case.likeness.countries = [9; 16]), Some(Guard::Country));
    assert_eq!(with(|case| case.likeness.account = [9; 16]), Some(Guard::Account));
    assert_eq!(with(|case| case.likeness.features = [9; 16]), Some(Guard::Features));
}

#[test]
fn another_currency_than_the_decisions_or_the_caps_is_refused() {
    assert_eq!(with(|case| case.amount = money("1.00", "USD")), Some(Guard::Currency));
    assert_eq!(with(|case| case.terms.max_amount = money("999.00", "USD")), Some(Guard::Currency));
    assert_eq!(with(|case| case.terms.max_sum = money("999.00", "USD")), Some(Guard::Currency));
    assert_eq!(with(|case| case.known.amount = money("100.00", "USD")), Some(Guard::Currency));
    assert_eq!(with(|case| case.known.largest = money("100.00", "USD")), Some(Guard::Currency));
}

#[test]
fn more_than_the_cap_is_refused() {
    let large = |amount: &'static str| {
        move |case: &mut Case| {
            (case.known.largest, case.amount) = (cny("1000.00"), cny(amount));
        }
    };
    assert_eq!(with(large("200.01")), Some(Guard::Amount));
    assert_eq!(with(large("200.00")), None);
}

#[test]
fn more_than_a_fifth_above_what_a_provider_passed_is_refused() {
    assert_eq!(with(|case| case.amount = cny("120.00")), None);
    assert_eq!(with(|case| case.amount = cny("120.01")), Some(Guard::Growth));
    let earlier = |age: u64| {
        move |case: &mut Case| {
            (case.known.largest, case.amount) = (cny("150.00"), cny("180.00"));
            case.known.largest_at_ms = case.now_ms - age;
        }
    };
    assert_eq!(with(earlier(14 * MINUTE)), None);
    assert_eq!(with(earlier(15 * MINUTE)), Some(Guard::Growth), "an old large payment counts no more");
}

#[test]
fn a_counter_over_its_limit_or_unknown_is_refused() {
    assert_eq!(with(|case| case.velocity = Speed::Over), Some(Guard::Velocity));
}

#[test]
fn a_decision_as_old_as_its_life_is_refused() {
    assert_eq!(with(|case| case.now_ms = 25 * MINUTE - 1), None);
    assert_eq!(with(|case| case.now_ms = 25 * MINUTE), Some(Guard::Age));
}

#[test]
fn a_decision_that_was_used_up_is_refused() {
    assert_eq!(with(|case| case.known.uses = 4), None);
    assert_eq!(with(|case| case.known.uses = 5), Some(Guard::Uses));
    assert_eq!(with(|case| case.known.spent = 20_000), None);
    assert_eq!(with(|case| case.known.spent = 20_001), Some(Guard::Sum));
    assert_eq!(with(|case| case.known.spent = i64::MAX), Some(Guard::Sum));
}

#[test]
fn other_rules_than_those_that_passed_it_are_refused() {
    assert_eq!(with(|case| case.applied().rule = "electronics".into()), Some(Guard::Policy));
    assert_eq!(with(|case| case.applied().version = "000000000000".into()), Some(Guard::Policy));
    let bands = Bands::new(score("0.9"), score("0.9"), None).unwrap();
    assert_eq!(with(|case| case.applied().bands = bands), Some(Guard::Policy));
    let advisory = |case: &mut Case| Arc::make_mut(&mut case.ruling).vendor_action = VendorAction::Advisory;
    assert_eq!(with(advisory), Some(Guard::Policy));
}

#[test]
fn a_score_near_the_end_of_its_band_is_refused() {
    assert_eq!(with(|case| case.verdict().score = Some(score("0.2"))), None);
    assert_eq!(with(|case| case.verdict().score = Some(score("0.200001"))), Some(Guard::Score));
    assert_eq!(with(|case| case.terms.max_score = score("0.1")), Some(Guard::Score));
    // A third of the band is the margin, whatever the operator wrote.
    let lenient = |scored: &'static str| {
        move |case: &mut Case| {
            case.terms.max_score = Score::ONE;
            case.verdict().score = Some(score(scored));
        }
    };
    assert_eq!(with(lenient("0.2")), None);
    assert_eq!(with(lenient("0.200001")), Some(Guard::Score));
    let nothing_passes = |case: &mut Case| {
        case.applied().bands = Bands::new(score("0"), score("0.7"), None).unwrap();
        case.agree();
        case.verdict().score = Some(score("0"));
    };
    assert_eq!(with(nothing_passes), Some(Guard::Score));
}

#[test]
fn what_the_providers_word_would_not_let_pass_now_is_refused() {
    assert_eq!(with(|case| case.verdict().recommendation = Some("REVIEW".to_owned())), Some(Guard::Score));
}

#[test]
fn what_began_before_another_model_or_a_bump_is_refused() {
    assert_eq!(with(|case| case.model_epoch = 8), Some(Guard::Model));
    assert_eq!(with(|case| case.epoch = 8), Some(Guard::Epoch));
}

#[test]
fn every_guard_has_its_own_word() {
    let words: BTreeSet<&str> = Guard::ALL.iter().map(|guard| guard.label()).collect();
    assert_eq!(words.len(), Guard::ALL.len());
}
