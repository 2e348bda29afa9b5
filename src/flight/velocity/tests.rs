//! The numbers against a plain list of everything that ever happened.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::counter::SLOTS;
use super::*;
use crate::config::velocity::MOST_DISTINCT;
use crate::domain::currency::Currency;
use crate::wire::risk::decode;

const MINUTE: u64 = 60_000;

fn key(number: u8) -> Key {
    [number; 16]
}

/// Every event there ever was: when, whose, what.
#[derive(Default)]
struct Model(Vec<(u64, u8, i64)>);

impl Model {
    fn of(&self, tally: Tally, whose: u8, since_ms: u64) -> i64 {
        let events = self.0.iter().filter(|(at, who, _)| *at >= since_ms && *who == whose).map(|(_, _, what)| *what);
        match tally {
            Tally::Sum => events.fold(0, i64::saturating_add),
            Tally::Distinct => (events.collect::<BTreeSet<_>>().len() as i64).min(i64::from(MOST_DISTINCT)),
        }
    }

    /// What the counter is documented to say: everything in the slot that runs and the ones before it.
    fn exact(&self, tally: Tally, whose: u8, now_ms: u64, window_ms: u64) -> i64 {
        let slot_ms = window_ms.div_ceil(u64::from(SLOTS));
        self.of(tally, whose, (now_ms / slot_ms).saturating_sub(u64::from(SLOTS)) * slot_ms)
    }
}

fn tallies() -> impl Strategy<Value = Tally> {
    prop_oneof![Just(Tally::Sum), Just(Tally::Distinct)]
}

/// How long after the event before, whose, what.
fn events(keys: u8, whats: std::ops::Range<i64>) -> impl Strategy<Value = Vec<(u64, u8, i64)>> {
    let step = prop_oneof![Just(0), 0..2_000u64, Just(1_000), Just(59_000), Just(60_000), Just(61_000), 0..90_000u64];
    prop::collection::vec((step, 0..keys, whats), 1..120)
}

proptest! {
    #[test]
    fn with_room_every_number_is_exact_within_a_slot(
        tally in tallies(),
        window in prop::sample::select(vec![MINUTE, 61_234, 3_600_000]),
        events in events(4, 0..40),
    ) {
        let mut counter = Counter::new(tally, window, 100);
        let (mut model, mut now) = (Model::default(), 0);
        for (step, whose, what) in events {
            now += step;
            model.0.push((now, whose, what));
            prop_assert_eq!(counter.add(key(whose), what, now), Value::Known(model.exact(tally, whose, now, window)));
            for whose in 0..4 {
                let Value::Known(number) = counter.read(key(whose), now) else { return Err(TestCaseError::fail("room")) };
                prop_assert_eq!(number, model.exact(tally, whose, now, window));
                let slot = window.div_ceil(u64::from(SLOTS));
                // Never fewer than the window holds, never more than the window and a slot.
                prop_assert!(number >= model.of(tally, whose, (now + 1).saturating_sub(window)));
                prop_assert!(number <= model.of(tally, whose, now.saturating_sub(slot * u64::from(SLOTS + 1))));
            }
        }
    }

    #[test]
    fn without_room_a_number_is_exact_or_unknown_and_never_small(
        tally in tallies(),
        most in 1usize..4,
        events in events(12, 0..60),
    ) {
        let mut counter = Counter::new(tally, MINUTE, most);
        let (mut model, mut now) = (Model::default(), 0);
        for (step, whose, what) in events {
            now += step;
            model.0.push((now, whose, what));
            counter.add(key(whose), what, now);
            prop_assert!(counter.keys() <= most);
            for whose in 0..12 {
                if let Value::Known(number) = counter.read(key(whose), now) {
                    prop_assert_eq!(number, model.exact(tally, whose, now, MINUTE), "{}", whose);
                }
            }
        }
    }

    #[test]
    fn a_counter_that_keeps_fewer_keys_after_a_reload_stays_honest(before in events(8, 0..9), after in events(8, 0..9)) {
        let mut counter = Counter::new(Tally::Sum, MINUTE, 8);
        let (mut model, mut now) = (Model::default(), 0);
        for (index, (step, whose, what)) in before.iter().chain(&after).enumerate() {
            if index == before.len() {
                counter.keep(2);
            }
            now += step;
            model.0.push((now, *whose, *what));
            if let Value::Known(number) = counter.add(key(*whose), *what, now) {
                prop_assert_eq!(number, model.exact(Tally::Sum, *whose, now, MINUTE));
            }
        }
    }
}

#[test]
fn an_attempt_counts_through_its_window_and_is_gone_a_slot_later() {
    let mut counter = Counter::new(Tally::Sum, MINUTE, 10);
    assert_eq!(counter.add(key(1), 1, 10_500), Value::Known(1));
    assert_eq!(counter.read(key(1), 10_500 + 59_999), Value::Known(1));
    assert_eq!(counter.read(key(1), 10_500 + 60_499), Value::Known(1));
    assert_eq!(counter.read(key(1), 10_500 + 60_500), Value::Known(0));
}

#[test]
fn a_distinct_number_stops_at_its_bound_and_comes_down_when_values_expire() {
    let mut counter = Counter::new(Tally::Distinct, MINUTE, 1_000);
    for value in 0..300 {
        counter.add(key(1), value, if value < 100 { 0 } else { 30_000 });
    }
    assert_eq!(counter.read(key(1), 60_000), Value::Known(256), "300 of them, and no more than 256 told apart");
    assert_eq!(counter.read(key(1), 61_000), Value::Known(200));
    assert_eq!(counter.read(key(1), 91_000), Value::Known(0));
}

#[test]
fn a_sum_too_large_for_a_number_stays_as_large_as_a_number_can_be() {
    let mut counter = Counter::new(Tally::Sum, MINUTE, 10);
    assert_eq!(counter.add(key(1), i64::MAX - 1, 0), Value::Known(i64::MAX - 1));
    assert_eq!(counter.add(key(1), 5, 0), Value::Known(i64::MAX));
    assert_eq!(counter.add(key(1), 5, 2_000), Value::Known(i64::MAX));
    assert_eq!(counter.read(key(1), 61_000), Value::Known(5));
}

#[test]
fn a_key_without_room_is_unknown_until_what_it_lost_would_have_expired() {
    let mut counter = Counter::new(Tally::Sum, MINUTE, 2);
    for number in [1, 2] {
        assert_eq!(counter.add(key(number), 1, 0), Value::Known(1));
    }
    assert_eq!(counter.add(key(3), 1, 5_000), Value::Unknown);
    assert_eq!(counter.read(key(4), 5_000), Value::Unknown, "it may be one of those that found none");
    assert_eq!(counter.add(key(1), 1, 5_000), Value::Known(2), "whoever is kept is known");
    // The second key expires and makes room; what came before is still missing.
    assert_eq!(counter.add(key(3), 1, 61_000), Value::Unknown);
    assert_eq!(counter.read(key(3), 65_999), Value::Unknown);
    assert_eq!(counter.read(key(3), 66_000), Value::Known(1));
}

fn rule(name: &str, by: Dimension, measure: Measure) -> VelocityRule {
    let window = Duration::from_secs(3600);
    VelocityRule { name: name.into(), by, measure, window, limit: Some(2), over: Some(Action::Reject), most: 100 }
}

fn assessment(number: u32, device: &str, card: &str, amount: &str) -> Assessment {
    let body = format!(
        r#"{{"out_trade_no":"T{number}","total_amount":"{amount}","currency":"CNY","subject":"s","merchant":{{"id":"m"}},
            "user":{{"id":"u"}},"device":{{"id":"{device}","ip":"2001:db8::{number}"}},
            "instrument":{{"fingerprint":"{card}"}}}}"#
    );
    decode(body.as_bytes()).unwrap()
}

struct Fixture {
    velocity: Velocity,
    metrics: Arc<Metrics>,
    rules: Vec<Arc<VelocityRule>>,
}

impl Fixture {
    fn new(rules: Vec<VelocityRule>) -> Self {
        let rules: Vec<_> = rules.into_iter().map(Arc::new).collect();
        let (velocity, metrics) = (Velocity::new([7; 32]), Metrics::new());
        velocity.adopt(&rules, &metrics);
        Self { velocity, metrics, rules }
    }

    fn count(&self, tenant: &str, assessment: &Assessment, body: &str) -> Readings {
        self.velocity.count(&Counted { tenant, assessment, body: body.as_bytes() }, &self.rules)
    }

    fn numbers(&self, tenant: &str, assessment: &Assessment, body: &str) -> Vec<i64> {
        self.count(tenant, assessment, body).values().map(|(_, number)| number).collect()
    }
}

fn all_measures() -> Vec<VelocityRule> {
    let cny = Currency::parse("CNY").unwrap();
    vec![
        rule("attempts", Dimension::User, Measure::Count),
        rule("spent", Dimension::User, Measure::Sum(cny)),
        rule("spent_usd", Dimension::User, Measure::Sum(Currency::USD)),
        rule("cards", Dimension::Device, Measure::Distinct(Dimension::Instrument)),
        rule("network", Dimension::Ip, Measure::Count),
        rule("bins", Dimension::Bin, Measure::Count),
    ]
}

#[tokio::test(start_paused = true)]
async fn the_same_attempt_counts_once_however_often_it_is_asked() {
    let fixture = Fixture::new(all_measures());
    let first = assessment(1, "d", "c1", "1.50");
    for _ in 0..5 {
        assert_eq!(fixture.numbers("t", &first, "body"), [1, 150, 0, 1, 1, 0]);
    }
    assert_eq!(fixture.numbers("t", &first, "another body"), [2, 300, 0, 1, 2, 0]);
    assert_eq!(fixture.numbers("t", &assessment(2, "d", "c2", "0.01"), ""), [3, 301, 0, 2, 3, 0]);
    assert_eq!(fixture.numbers("t", &assessment(3, "e", "c2", "0.01"), ""), [4, 302, 0, 1, 4, 0]);
    assert_eq!(fixture.numbers("other", &first, "body"), [1, 150, 0, 1, 1, 0], "another tenant's user is another");
}

#[tokio::test(start_paused = true)]
async fn numbers_survive_a_reload_by_definition_and_a_changed_one_begins_anew() {
    let mut fixture = Fixture::new(all_measures());
    let before = fixture.rules.clone();
    assert_eq!(fixture.numbers("t", &assessment(1, "d", "c", "1.00"), "")[0], 1);
    let mut longer = rule("spent", Dimension::User, Measure::Count);
    longer.window = Duration::from_secs(60);
    let mut looser = rule("attempts", Dimension::User, Measure::Count);
    (looser.limit, looser.most) = (Some(9), 500);
    fixture.rules = vec![Arc::new(longer), Arc::new(looser)];
    fixture.velocity.adopt(&fixture.rules, &fixture.metrics);
    assert_eq!(fixture.numbers("t", &assessment(2, "d", "c", "1.00"), ""), [1, 2]);
    // A call of the configuration before is still counted by it.
    let (late, body) = (assessment(3, "d", "c", "1.00"), b"");
    let readings = fixture.velocity.count(&Counted { tenant: "t", assessment: &late, body }, &before);
    assert_eq!(readings.values().find(|(name, _)| *name == "cards"), Some(("cards", 1)));
    assert_eq!(fixture.numbers("t", &assessment(4, "d", "c", "1.00"), "")[1], 4);
}

#[tokio::test(start_paused = true)]
async fn over_the_limit_the_action_is_raised_and_the_reason_names_the_counter() {
    let fixture = Fixture::new(vec![rule("cards", Dimension::Device, Measure::Distinct(Dimension::Instrument))]);
    for number in 1..=2 {
        let readings = fixture.count("t", &assessment(number, "d", &format!("c{number}"), "1.00"), "");
        assert_eq!((readings.raise(Action::Pass), readings.is_over()), ((Action::Pass, Vec::new()), false));
    }
    let readings = fixture.count("t", &assessment(3, "d", "c3", "1.00"), "");
    let (action, reasons) = readings.raise(Action::Challenge);
    assert_eq!((action, reasons[0].code.as_str()), (Action::Reject, "velocity.cards"));
    assert_eq!(reasons[0].text, "counted 3 within 1h, the limit is 2");
    assert!(readings.is_over());
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_counted_is_over_and_for_a_person_to_look_at() {
    let mut narrow = rule("attempts", Dimension::Device, Measure::Count);
    narrow.most = 1;
    let fixture = Fixture::new(vec![narrow]);
    assert!(!fixture.count("t", &assessment(1, "a", "c", "1.00"), "").is_over());
    let readings = fixture.count("t", &assessment(2, "b", "c", "1.00"), "");
    assert_eq!((readings.is_over(), readings.raise(Action::Pass).0), (true, Action::Review));
    assert_eq!(readings.values().collect::<Vec<_>>(), [("attempts", i64::MAX)]);
    assert_eq!(readings.raise(Action::Reject).0, Action::Reject);
    let text = fixture.metrics.render();
    for sample in [
        r#"weighbridge_velocity_events_total{counter="attempts",event="counted"} 2"#,
        r#"weighbridge_velocity_events_total{counter="attempts",event="unknown"} 1"#,
        r#"weighbridge_velocity_keys{counter="attempts"} 1"#,
    ] {
        assert!(text.contains(sample), "{sample}: {text}");
    }
}

#[test]
fn one_address_has_one_name_and_a_v6_network_is_one_place() {
    assert_eq!(network("203.0.113.7"), "203.0.113.7");
    assert_eq!(network("::ffff:203.0.113.7"), "203.0.113.7");
    assert_eq!(network("2001:db8:0:1::1"), network("2001:DB8::1:0:0:0:77"));
    assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:0:2::1"));
}

#[test]
fn attempts_are_recognised_for_a_day_and_in_bounded_memory() {
    let mut seen = Seen::default();
    let name = |number: u64| {
        let mut key = Key::default();
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    };
    assert!(seen.note(name(0), 0));
    assert!(!seen.note(name(0), SEEN_FOR_MS - 1));
    assert!(!seen.note(name(0), SEEN_FOR_MS + 1), "it moved to the older half");
    assert!(seen.note(name(0), 3 * SEEN_FOR_MS));
    for number in 0..MOST_SEEN as u64 {
        seen.note(name(number + 1), 3 * SEEN_FOR_MS);
    }
    assert!(!seen.note(name(2), 3 * SEEN_FOR_MS));
    assert!(seen.younger.len() + seen.older.len() <= 2 * MOST_SEEN);
}

#[tokio::test(start_paused = true)]
async fn numbers_go_on_in_the_next_process_and_what_was_counted_is_not_counted_again() {
    let before = Fixture::new(all_measures());
    let first = assessment(1, "d", "c1", "1.50");
    assert_eq!(before.numbers("t", &first, "body"), [1, 150, 0, 1, 1, 0]);
    tokio::time::advance(Duration::from_secs(1_800)).await;
    let carried = before.velocity.carried(1_000_000).unwrap();
    assert!(carried.left_out.is_empty());
    let next = |unix_ms| {
        let mut rules = all_measures();
        // Another definition begins anew.
        rules[1].window = Duration::from_secs(60);
        let mut next = Fixture::new(rules);
        next.velocity = Velocity::new([8; 32]);
        next.velocity.adopt(&next.rules, &next.metrics);
        assert_eq!(next.velocity.go_on(&carried.bytes, unix_ms), Some(5));
        next
    };
    let soon = next(1_010_000);
    assert_eq!(soon.numbers("t", &first, "body"), [1, 0, 0, 1, 1, 0], "known already");
    assert_eq!(soon.numbers("t", &assessment(2, "d", "c2", "0.01"), ""), [2, 1, 0, 2, 2, 0]);
    assert_eq!(soon.velocity.go_on(&carried.bytes, 0), None, "once");
    let late = next(1_000_000 + 1_900_000);
    assert_eq!(late.numbers("t", &assessment(2, "d", "c2", "0.01"), ""), [1, 1, 0, 1, 1, 0], "an hour is over");
    let back = next(0);
    assert_eq!(back.numbers("t", &assessment(2, "d", "c2", "0.01"), "")[0], 2, "a clock that was set back");
    assert!(Fixture::new(all_measures()).velocity.carried(0).is_none(), "nothing was counted");
    let mut torn = carried.bytes.clone();
    torn.pop();
    assert!(Velocity::new([9; 32]).go_on(&torn, 0).is_none());
}
