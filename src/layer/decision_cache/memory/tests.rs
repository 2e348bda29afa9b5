//! What is given again, against a plain list of everything that ever happened.

use proptest::prelude::*;
use tokio::time::advance;

use super::*;
use crate::config::reuse::ReuseMode;
use crate::config::table::RiskRoute;
use crate::config::velocity::{Dimension, Measure, VelocityRule};
use crate::domain::currency::Currency;
use crate::domain::decision::{ProviderReference, Score, Verdict};
use crate::domain::id::DecisionId;
use crate::domain::money::Money;
use crate::domain::policy::{Bands, Ruling};
use crate::flight::velocity::{Counted, Readings, Velocity};
use crate::upstream::testing::table;
use crate::wire::risk::decode;

const DAY_MS: i64 = 86_400_000;

fn money(text: &str, code: &str) -> Money {
    Money::parse(text, Currency::parse(code).unwrap()).unwrap()
}

fn policy() -> ReusePolicy {
    ReusePolicy {
        mode: ReuseMode::First,
        terms: Terms {
            ttl: Duration::from_secs(900),
            max_amount: money("200.00", "CNY"),
            max_sum: money("300.00", "CNY"),
            max_uses: 3,
            max_score: Score::from_micro(200_000).unwrap(),
            known_device: Duration::from_secs(7 * 86_400),
        },
        self_audit: 50_000,
        max_disagreement: 20_000,
    }
}

fn route() -> RiskRoute {
    RiskRoute { reuse: Some(policy()), ..RiskRoute::clone(table().risk_route().unwrap()) }
}

/// What of a payment may differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Paid {
    user: u8,
    merchant: u8,
    /// 0 for none that is named.
    card: u8,
    device: u8,
    /// The third number of its address.
    network: u8,
    /// Minor units.
    amount: u32,
    yen: bool,
    email: u8,
    country: u8,
    known_days: u8,
    rules: u8,
    over: bool,
    fx: bool,
}

/// Like the others as often as not.
fn paid() -> impl Strategy<Value = Paid> {
    let mostly = |usual: u8, others: std::ops::Range<u8>| prop_oneof![12 => Just(usual), 1 => others];
    let who = (mostly(0, 0..2), mostly(0, 0..2), mostly(1, 0..3), mostly(1, 0..3), mostly(0, 0..2));
    let amount = prop_oneof![Just(10_000), Just(12_000), Just(12_001), 1..30_000u32];
    let what = (amount, prop::bool::weighted(0.05), mostly(0, 0..2), mostly(0, 0..2), mostly(8, 5..9));
    let how = (mostly(0, 0..3), prop::bool::weighted(0.05), prop::bool::weighted(0.05));
    (who, what, how).prop_map(|(who, what, how)| {
        let (user, merchant, card, device, network) = who;
        let (amount, yen, email, country, known_days) = what;
        let (rules, over, fx) = how;
        Paid { user, merchant, card, device, network, amount, yen, email, country, known_days, rules, over, fx }
    })
}

#[derive(Clone, Debug)]
enum Step {
    /// Asks memory, and a provider if memory has nothing.
    Ask(Paid),
    /// A call to a provider begins.
    Begin(Paid),
    /// The oldest one ends: with this score (or an action that is no PASS), by this model.
    End(u32, bool, u8),
    Wait(u64),
    BumpUser(u8, u8),
    BumpMerchant(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let score = prop_oneof![Just(120_000), Just(200_000), Just(200_001), 0..300_000u32];
    let step = prop_oneof![
        8 => paid().prop_map(Step::Ask),
        5 => paid().prop_map(Step::Begin),
        6 => (score, prop::bool::weighted(0.1), prop_oneof![9 => Just(1), 1 => 1..3u8])
            .prop_map(|(score, worse, model)| Step::End(score, worse, model)),
        2 => prop_oneof![0..2_000u64, Just(60_000), Just(765_000), Just(1_035_000)].prop_map(Step::Wait),
        1 => (0..2u8, 0..2u8).prop_map(|(merchant, user)| Step::BumpUser(merchant, user)),
        1 => (0..2u8).prop_map(Step::BumpMerchant),
    ];
    prop::collection::vec(step, 1..120)
}

/// Everything that happened, in order.
#[derive(Clone, Debug)]
enum Event {
    /// A call began; its number.
    Began(usize),
    /// And ended, as a PASS with this score, or not.
    Ended {
        call: usize,
        id: String,
        paid: Paid,
        score: Option<u32>,
        model: u8,
    },
    /// The decision of this name was given again.
    Given {
        id: String,
        paid: Paid,
    },
    BumpedUser(u8, u8),
    BumpedMerchant(u8),
}

/// A list of everything and when, and the guards as sentences about it.
#[derive(Default)]
struct History(Vec<(u64, Event)>);

impl History {
    /// Fails if `paid` must not get the decision called `id` now.
    fn allows(&self, id: &str, paid: &Paid, now: u64) -> Result<(), TestCaseError> {
        let ended = self.0.iter().position(|(_, event)| matches!(event, Event::Ended { id: known, .. } if known == id));
        let ended = ended.ok_or_else(|| TestCaseError::fail("it was never decided"))?;
        let (at, Event::Ended { call, paid: first, score, model, .. }) = &self.0[ended] else { unreachable!() };
        let began =
            self.0.iter().position(|(_, event)| matches!(event, Event::Began(number) if number == call)).unwrap();
        prop_assert!(score.is_some_and(|score| score <= 200_000), "a PASS with a margin");
        prop_assert_eq!((first.user, first.merchant), (paid.user, paid.merchant));
        prop_assert_eq!((first.card, first.device, first.network), (paid.card, paid.device, paid.network));
        prop_assert!(paid.card != 0 && paid.device != 0, "both are named");
        prop_assert_eq!((first.email, first.country, first.fx), (paid.email, paid.country, paid.fx));
        prop_assert_eq!(first.rules, paid.rules, "the same rules");
        prop_assert!(paid.rules != 2 || score.is_some_and(|score| score <= 166_666), "a third of 0.25");
        prop_assert!(!paid.yen && !first.yen, "the cap is in CNY");
        prop_assert!(!paid.over, "a counter is over its limit");
        prop_assert!(paid.known_days >= 7);
        prop_assert!(now - at < 1_035_000, "15 minutes and 15 per cent");
        prop_assert!(paid.amount <= 20_000);
        let since = &self.0[began..];
        let passed = self.0.iter().filter(|(then, event)| {
            let like = |other: &Paid| {
                (other.user, other.merchant, other.card, other.device)
                    == (paid.user, paid.merchant, paid.card, paid.device)
            };
            now - then < 2 * 1_035_000
                && matches!(event, Event::Ended { paid, score: Some(_), .. } if like(paid) && !paid.yen)
        });
        let amounts = passed.map(|(_, event)| if let Event::Ended { paid, .. } = event { paid.amount } else { 0 });
        prop_assert!(paid.amount * 5 <= amounts.max().unwrap_or(0) * 6, "1.2 times the largest");
        let given: Vec<u32> = self
            .0
            .iter()
            .filter_map(|(_, event)| match event {
                Event::Given { id: known, paid } if known == id => Some(paid.amount),
                _ => None,
            })
            .collect();
        prop_assert!(given.len() < 3, "three times");
        prop_assert!(given.iter().sum::<u32>() + paid.amount <= 30_000, "300 together");
        for (_, event) in since {
            match event {
                Event::BumpedUser(merchant, user) => prop_assert!((*merchant, *user) != (paid.merchant, paid.user)),
                Event::BumpedMerchant(merchant) => prop_assert!(*merchant != paid.merchant),
                Event::Ended { paid: other, score: None, .. } => {
                    prop_assert!((other.user, other.merchant) != (paid.user, paid.merchant), "a worse verdict");
                }
                _ => {}
            }
        }
        for (_, event) in &self.0[ended..] {
            if let Event::Ended { model: other, .. } = event {
                prop_assert_eq!(other, model, "another model scores now");
            }
        }
        Ok(())
    }
}

struct World {
    cache: DecisionCache,
    routes: [Arc<RiskRoute>; 3],
    over: Readings,
    calls: usize,
}

impl World {
    fn new() -> Self {
        let usual = Arc::new(route());
        let with = |change: &dyn Fn(&mut Ruling)| {
            let mut ruling = Ruling::clone(&usual.ruling);
            change(&mut ruling);
            Arc::new(RiskRoute { ruling: Arc::new(ruling), ..RiskRoute::clone(&usual) })
        };
        let micro = |micro| Score::from_micro(micro).unwrap();
        let renamed = with(&|ruling| ruling.applied.rule = "another".into());
        let narrower = with(&|ruling| ruling.applied.bands = Bands::new(micro(250_000), micro(700_000), None).unwrap());
        Self { cache: DecisionCache::new([7; 32]), routes: [usual, renamed, narrower], over: over(), calls: 0 }
    }

    fn facts(&self, paid: &Paid) -> RiskFacts {
        let known = clock::rfc3339((clock::unix_ms() as i64 - i64::from(paid.known_days) * DAY_MS - 1_000) as u64);
        let named = |name: &str, number: u8| {
            if number == 0 { String::new() } else { format!(r#""{name}":"{name}{number}","#) }
        };
        let (amount, currency) = if paid.yen {
            (paid.amount.to_string(), "JPY")
        } else {
            (format!("{}.{:02}", paid.amount / 100, paid.amount % 100), "CNY")
        };
        let features = if paid.fx { r#"["fx"]"# } else { "[]" };
        let body = format!(
            r#"{{"out_trade_no":"T{}","total_amount":"{amount}","currency":"{currency}","subject":"s",
                "merchant":{{"id":"m{}"}},"user":{{"id":"u{}","email":"{}@x.test","country":"{}"}},
                "instrument":{{{}"type":"card"}},
                "device":{{{}"ip":"203.0.{}.9","known_since":"{known}"}},"features":{features}}}"#,
            self.calls,
            paid.merchant,
            paid.user,
            paid.email,
            ["CN", "TH"][usize::from(paid.country)],
            named("fingerprint", paid.card),
            named("id", paid.device),
            paid.network,
        );
        let assessment = decode(body.as_bytes()).unwrap_or_else(|errors| panic!("{errors:?}: {body}"));
        let route = Arc::clone(&self.routes[usize::from(paid.rules)]);
        let velocity = if paid.over { self.over.clone() } else { Readings::default() };
        RiskFacts { assessment, ruling: Arc::clone(&route.ruling), route, features_dropped: Vec::new(), velocity }
    }

    fn ask(&mut self, paid: &Paid, intent: Intent) -> Result<Found, Nothing> {
        self.calls += 1;
        let facts = self.facts(paid);
        self.cache.find(&policy().terms, &self.cache.asker("t", &facts), &facts, intent)
    }

    fn begin(&mut self, paid: &Paid) -> (Asker, RiskFacts) {
        self.calls += 1;
        let facts = self.facts(paid);
        (self.cache.asker("t", &facts), facts)
    }

    fn end(&self, (asker, facts): &(Asker, RiskFacts), decision: Decision) {
        self.cache.learn(&policy().terms, asker, facts, &Arc::new(decision));
    }

    /// A live verdict as if at once.
    fn live(&mut self, paid: &Paid, decision: Decision) -> DecisionId {
        let (id, call) = (decision.id.clone(), self.begin(paid));
        self.end(&call, decision);
        id
    }
}

/// Readings of a counter over its limit.
fn over() -> Readings {
    let rule = VelocityRule {
        name: "attempts".into(),
        by: Dimension::User,
        measure: Measure::Count,
        window: Duration::from_secs(60),
        limit: Some(0),
        over: None,
        most: 100,
    };
    let (rules, velocity) = (vec![Arc::new(rule)], Velocity::new([1; 32]));
    velocity.adopt(&rules, &Metrics::new());
    let body = br#"{"out_trade_no":"T","total_amount":"1.00","currency":"CNY","subject":"s","merchant":{"id":"m"},"user":{"id":"u"}}"#;
    velocity.count(&Counted { tenant: "t", assessment: &decode(body).unwrap(), body }, &rules)
}

fn verdict(micro: u32, action: Action, model: &str) -> Decision {
    let provider = ProviderReference {
        id: ProviderId::new("judge"),
        trace_id: None,
        model_version: Some(model.to_owned()),
        latency_ms: 1,
    };
    let verdict = Verdict {
        score: Score::from_micro(micro),
        recommendation: Some("PASS".to_owned()),
        explanation: None,
        provider,
        cost: None,
        priced: None,
        features_dropped: Vec::new(),
    };
    Decision {
        id: DecisionId::fresh(),
        action,
        source: DecisionSource::Live,
        verdict: Some(verdict),
        reasons: Vec::new(),
        applied: crate::domain::policy::Applied::sample(),
        late_verdict_expected: false,
        created_at_ms: 0,
        reused: None,
    }
}

async fn check(steps: Vec<Step>) -> Result<usize, TestCaseError> {
    let (mut world, mut history, mut now, mut served) = (World::new(), History::default(), 0, 0);
    let mut flying: std::collections::VecDeque<_> = std::collections::VecDeque::new();
    for step in steps {
        let event = match step {
            Step::Wait(ms) => {
                advance(Duration::from_millis(ms)).await;
                now += ms;
                continue;
            }
            Step::Ask(paid) => {
                let Ok(found) = world.ask(&paid, Intent::Give) else { continue };
                let id = found.decision.id.as_str().to_owned();
                prop_assert_eq!((found.decision.action, found.decision.source), (Action::Pass, DecisionSource::Live));
                prop_assert!(found.rest_ms > 0);
                history.allows(&id, &paid, now)?;
                served += 1;
                Event::Given { id, paid }
            }
            Step::Begin(paid) => {
                let (call, number) = (world.begin(&paid), world.calls);
                flying.push_back((call, number, paid));
                Event::Began(number)
            }
            Step::End(score, worse, model) => {
                let Some((call, number, paid)) = flying.pop_front() else { continue };
                let action = if worse { Action::Review } else { Action::Pass };
                let decision = verdict(score, action, &format!("m{model}"));
                let id = decision.id.as_str().to_owned();
                world.end(&call, decision);
                Event::Ended { call: number, id, paid, score: (!worse).then_some(score), model }
            }
            Step::BumpUser(merchant, user) => {
                world.cache.bump("t", &format!("m{merchant}"), Some(&format!("u{user}")));
                Event::BumpedUser(merchant, user)
            }
            Step::BumpMerchant(merchant) => {
                world.cache.bump("t", &format!("m{merchant}"), None);
                Event::BumpedMerchant(merchant)
            }
        };
        history.0.push((now, event));
    }
    Ok(served)
}

fn paused<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(work)
}

#[test]
fn no_sequence_of_calls_is_ever_given_a_pass_that_a_guard_forbids() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let (mut runner, served) = (proptest::test_runner::TestRunner::new(config), std::cell::Cell::new(0));
    let law = |steps| {
        served.set(served.get() + paused(check(steps))?);
        Ok(())
    };
    runner.run(&steps(), law).unwrap();
    assert!(served.get() > 200, "{} of all were given anything", served.get());
}

#[test]
fn the_law_above_is_about_something() {
    let usual = usual();
    let mut steps = vec![Step::Begin(usual), Step::End(120_000, false, 1)];
    steps.extend([Step::Ask(usual), Step::Ask(usual), Step::Ask(usual), Step::Ask(usual)]);
    assert_eq!(paused(check(steps)).unwrap(), 3);
}

fn usual() -> Paid {
    Paid {
        user: 0,
        merchant: 0,
        card: 1,
        device: 1,
        network: 0,
        amount: 10_000,
        yen: false,
        email: 0,
        country: 0,
        known_days: 8,
        rules: 0,
        over: false,
        fx: false,
    }
}

fn pass() -> Decision {
    verdict(120_000, Action::Pass, "m1")
}

/// The guard that refuses it.
fn guard(found: Result<Found, Nothing>) -> Guard {
    match found.err() {
        Some(Nothing::Refused(guard)) => guard,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_said_is_never_known() {
    let mut world = World::new();
    world.live(&usual(), pass());
    for nameless in [Paid { card: 0, ..usual() }, Paid { device: 0, ..usual() }] {
        world.live(&nameless, pass());
        assert!(world.ask(&nameless, Intent::Give).is_err());
    }
    assert_eq!(world.ask(&Paid { user: 1, ..usual() }, Intent::Give).err(), Some(Nothing::Unknown));
    assert!(world.ask(&usual(), Intent::Give).is_ok());
}

#[tokio::test(start_paused = true)]
async fn comparing_uses_nothing_up_and_giving_does() {
    let mut world = World::new();
    let id = world.live(&Paid { amount: 1_000, ..usual() }, pass());
    let small = Paid { amount: 1_000, ..usual() };
    for _ in 0..10 {
        assert_eq!(world.ask(&small, Intent::Compare).ok().unwrap().decision.id, id);
    }
    for _ in 0..3 {
        assert!(world.ask(&small, Intent::Give).is_ok());
    }
    assert_eq!(guard(world.ask(&small, Intent::Give)), Guard::Uses);
    world.live(&small, pass());
    assert!(world.ask(&small, Intent::Give).is_ok(), "a provider was asked since");
}

#[tokio::test(start_paused = true)]
async fn a_verdict_that_is_no_pass_makes_earlier_ones_worthless_also_those_on_their_way() {
    let mut world = World::new();
    for worse in [Action::Challenge, Action::Review, Action::Reject] {
        world.live(&usual(), pass());
        let slow = world.begin(&usual());
        world.live(&Paid { card: 2, ..usual() }, verdict(500_000, worse, "m1"));
        assert_eq!(world.ask(&usual(), Intent::Give).err(), Some(Nothing::Unknown));
        world.end(&slow, pass());
        assert_eq!(guard(world.ask(&usual(), Intent::Give)), Guard::Epoch, "it began before");
        world.live(&usual(), pass());
        assert!(world.ask(&usual(), Intent::Give).is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_bump_reaches_the_payer_or_the_whole_merchant_and_nobody_else() {
    let mut world = World::new();
    let (other_user, other_shop) = (Paid { user: 1, ..usual() }, Paid { merchant: 1, ..usual() });
    for paid in [usual(), other_user, other_shop] {
        world.live(&paid, pass());
    }
    world.cache.bump("elsewhere", "m0", None);
    assert!(world.ask(&usual(), Intent::Compare).is_ok(), "another tenant's merchant");
    world.cache.bump("t", "m0", Some("u0"));
    assert_eq!(guard(world.ask(&usual(), Intent::Give)), Guard::Epoch);
    assert!(world.ask(&other_user, Intent::Compare).is_ok());
    world.cache.bump("t", "m0", None);
    assert_eq!(guard(world.ask(&other_user, Intent::Give)), Guard::Epoch);
    assert!(world.ask(&other_shop, Intent::Give).is_ok());
}

#[tokio::test(start_paused = true)]
async fn more_bumps_than_can_be_remembered_make_everything_worthless() {
    let mut world = World::new();
    world.live(&usual(), pass());
    let slow = world.begin(&usual());
    for number in 0..=MOST_EPOCHS {
        world.cache.epochs().bump_person([u8::MAX - (number % 7) as u8; 16].map(|b| b ^ number as u8));
        let mut person = Mark::default();
        person[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
        world.cache.epochs().bump_person(person);
    }
    assert_eq!(guard(world.ask(&usual(), Intent::Give)), Guard::Epoch);
    world.end(&slow, pass());
    assert_eq!(guard(world.ask(&usual(), Intent::Give)), Guard::Epoch);
    assert!(world.cache.epochs().people.len() <= MOST_EPOCHS);
}

#[tokio::test(start_paused = true)]
async fn a_large_payment_of_long_ago_is_not_carried_on_by_small_ones() {
    let mut world = World::new();
    world.live(&Paid { amount: 15_000, ..usual() }, pass());
    for _ in 0..4 {
        advance(Duration::from_secs(300)).await;
        world.live(&Paid { amount: 100, ..usual() }, pass());
    }
    assert_eq!(guard(world.ask(&Paid { amount: 121, ..usual() }, Intent::Give)), Guard::Growth);
    world.live(&Paid { amount: 15_000, ..usual() }, pass());
    world.live(&Paid { amount: 100, ..usual() }, pass());
    assert!(world.ask(&Paid { amount: 18_000, ..usual() }, Intent::Give).is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_was_decided_together_does_not_expire_together() {
    let mut world = World::new();
    let rests: std::collections::BTreeSet<u64> = (0..20)
        .map(|_| {
            world.live(&usual(), pass());
            world.ask(&usual(), Intent::Compare).ok().unwrap().rest_ms
        })
        .collect();
    assert!(rests.len() > 15 && rests.iter().all(|rest| (765_000..=1_035_000).contains(rest)), "{rests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_payer_has_few_cards_remembered_and_the_newest_ones() {
    let mut world = World::new();
    for card in 1..=5 {
        world.live(&Paid { card, ..usual() }, pass());
    }
    assert_eq!(guard(world.ask(&usual(), Intent::Give)), Guard::Instrument);
    for card in 2..=5 {
        assert!(world.ask(&Paid { card, ..usual() }, Intent::Compare).is_ok(), "{card}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_merchant_whose_decisions_disagree_is_switched_off_alone() {
    let mut world = World::new();
    let metrics = Metrics::new();
    let (bad, good) = (world.begin(&usual()).0, world.begin(&Paid { merchant: 1, ..usual() }).0);
    for _ in 0..2 {
        world.cache.compare(&good, Agreed::Yes, &policy(), &metrics);
        world.cache.compare(&bad, Agreed::No, &policy(), &metrics);
    }
    assert!(world.cache.is_off(&bad) && !world.cache.is_off(&good));
    let text = metrics.render();
    for sample in [
        "weighbridge_reuse_merchants_off 1",
        r#"weighbridge_reuse_compared_total{result="disagreed"} 2"#,
        r#"weighbridge_reuse_compared_total{result="agreed"} 2"#,
    ] {
        assert!(text.contains(sample), "{sample}");
    }
    for _ in 0..189 {
        world.cache.compare(&bad, Agreed::Yes, &policy(), &metrics);
    }
    assert!(!world.cache.is_off(&bad), "it has shown that it is good enough");
}
