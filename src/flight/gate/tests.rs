//! Laws of admission: nobody gets past what there is, the least goes first, nobody starves, and all comes back.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::config::table::RoutingTable;
use crate::upstream::testing::table;

fn limits(in_flight: usize, in_flight_bytes: usize, body_bytes: usize) -> Limits {
    let table: RoutingTable = table();
    Limits { in_flight, in_flight_bytes, body_bytes, risk_body_bytes: 1024, ..table.limits().clone() }
}

fn of(class: Class, seat: u8) -> Wish {
    Wish { standing: Standing { class, seat }, bytes: Some(0), now: Instant::now() }
}

fn empty(gate: &Gate) -> bool {
    (gate.in_flight(), gate.held_bytes(), gate.places.held(1), gate.weights.held(1)) == (0, 0, 0, 0)
}

#[test]
fn row_35_batch_is_shed_first_then_low_then_normal_and_payments_last() {
    let (gate, limits) = (Arc::new(Gate::default()), limits(20, 1 << 20, 1024));
    let mut held = Vec::new();
    for (class, places) in [(Class::Batch, 14), (Class::Low, 16), (Class::Normal, 18), (Class::Risk, 20)] {
        while let Ok(admitted) = gate.enter(&of(class, 1), &limits) {
            held.push(admitted);
        }
        assert_eq!(held.len(), places, "{class:?}");
    }
    assert_eq!(gate.enter(&of(Class::Risk, 1), &limits).err(), Some(ShedReason::InFlight));
    drop(held);
    assert!(empty(&gate));
}

#[test]
fn a_call_worth_less_by_its_route_may_stay_only_if_it_would_have_come_in() {
    let (gate, limits) = (Arc::new(Gate::default()), limits(10, 1 << 20, 1024));
    let held: Vec<_> = (0..8).map(|_| gate.enter(&of(Class::Normal, 1), &limits).unwrap()).collect();
    assert_eq!(gate.remains(Class::Low, &limits), Ok(()));
    assert_eq!(gate.remains(Class::Batch, &limits), Err(ShedReason::InFlight));
    drop(held);
    assert_eq!(gate.remains(Class::Batch, &limits), Ok(()));
}

#[test]
fn row_32_stages_shed_by_class_and_say_for_what() {
    let (gate, limits) = (Arc::new(Gate::default()), limits(10, 1 << 20, 1024));
    for (stage, shed) in Stage::ALL.into_iter().zip(0..) {
        gate.enter_stage(stage, Scarce::Descriptors);
        assert_eq!(gate.is_lean(), stage > Stage::Normal);
        for (class, rank) in Class::ALL.into_iter().zip(0..) {
            let refused = gate.enter(&of(class, 1), &limits).err();
            assert_eq!(refused, (rank < shed).then_some(ShedReason::Descriptors), "{stage:?} {class:?}");
        }
    }
    assert!(empty(&gate));
}

#[test]
fn row_32_bodies_get_less_room_than_asked_for_where_there_is_less_memory() {
    let (gate, limits) = (Arc::new(Gate::default()), limits(10, 8 << 20, 1 << 20));
    assert_eq!(gate.most_bytes(&limits), 8 << 20);
    gate.limit_bytes(2 << 20);
    assert_eq!(gate.most_bytes(&limits), 2 << 20);
    let body = |class| Wish { bytes: Some(1 << 20), ..of(class, 1) };
    let first = gate.enter(&body(Class::Normal), &limits);
    assert!(first.is_ok());
    assert_eq!(gate.enter(&body(Class::Normal), &limits).err(), Some(ShedReason::Bytes));
    assert!(gate.enter(&of(Class::Risk, 1), &limits).is_ok());
    // However little there is, one body can be read, and a payment beside it.
    drop(first);
    gate.limit_bytes(0);
    let only = gate.enter(&body(Class::Batch), &limits);
    assert!(only.is_ok() && gate.enter(&body(Class::Batch), &limits).is_err());
    assert!(gate.enter(&Wish { bytes: Some(1 << 10), ..of(Class::Risk, 1) }, &limits).is_ok());
}

#[test]
fn who_is_alone_gets_all_and_who_comes_later_gets_a_part_as_soon_as_some_is_free() {
    let (gate, limits) = (Arc::new(Gate::default()), limits(20, 1 << 20, 1024));
    let mut held: Vec<_> = (0..18).map(|_| gate.enter(&of(Class::Normal, 1), &limits).unwrap()).collect();
    // Full: the second caller is turned away, and remembered.
    assert_eq!(gate.enter(&of(Class::Normal, 2), &limits).err(), Some(ShedReason::InFlight));
    held.pop();
    assert_eq!(gate.enter(&of(Class::Normal, 1), &limits).err(), Some(ShedReason::CallerShare));
    assert!(gate.enter(&of(Class::Normal, 2), &limits).is_ok());
    // With a tenth to spare nobody is asked how much it has.
    held.pop();
    assert!(gate.enter(&of(Class::Normal, 1), &limits).is_ok());
}

#[test]
fn one_callers_large_bodies_do_not_keep_anothers_small_ones_out() {
    let (gate, limits) = (Arc::new(Gate::default()), limits(1000, 100 << 10, 10 << 10));
    let body = |seat, bytes| Wish { bytes: Some(bytes), ..of(Class::Normal, seat) };
    let mut held = Vec::new();
    while let Ok(admitted) = gate.enter(&body(1, 5 << 10), &limits) {
        held.push(admitted);
    }
    assert!(gate.enter(&body(2, 5 << 10), &limits).is_err());
    held.pop();
    assert_eq!(gate.enter(&body(1, 5 << 10), &limits).err(), Some(ShedReason::CallerShare));
    assert!(gate.enter(&body(2, 5 << 10), &limits).is_ok());
}

#[test]
fn row_32_a_body_of_unknown_length_is_counted_as_it_comes_until_the_reply_ends() {
    let (gate, limits, metrics) = (Arc::new(Gate::default()), limits(10, 1 << 20, 512 << 10), Metrics::new());
    let mut first = gate.enter(&Wish { bytes: None, ..of(Class::Normal, 1) }, &limits).unwrap();
    let growth = first.grow(&limits, &metrics);
    let sizes = [1, 65_536, 65_537, 300_000].map(|bytes| {
        growth.reach(bytes).unwrap();
        gate.held_bytes() >> 10
    });
    assert_eq!(sizes, [64, 64, 128, 320]);
    let mut second = gate.enter(&Wish { bytes: None, ..of(Class::Normal, 2) }, &limits).unwrap();
    let other = second.grow(&limits, &metrics);
    assert!(matches!(other.reach(700_000), Err(CallError::Shed { .. })));
    assert!(metrics.render().contains("weighbridge_shed_total{class=\"normal\",reason=\"bytes\"} 1\n"));
    drop((second, other));
    drop(growth);
    assert_eq!(gate.held_bytes() >> 10, 320, "the body was read, the reply has not ended");
    drop(first);
    assert!(empty(&gate));
}

#[test]
fn a_body_that_does_not_fit_is_shed_and_leaves_nothing_behind() {
    let (gate, limits) = (Arc::new(Gate::default()), limits(9, 100 << 10, 60 << 10));
    let body = Wish { bytes: Some(60 << 10), ..of(Class::Normal, 1) };
    let first = gate.enter(&body, &limits).unwrap();
    assert_eq!(gate.enter(&body, &limits).err(), Some(ShedReason::Bytes));
    assert_eq!((gate.in_flight(), gate.held_bytes()), (1, 60 << 10));
    drop(first);
    assert!(empty(&gate));
}

#[test]
fn a_body_declared_larger_than_any_may_be_is_left_to_those_who_refuse_it_for_that() {
    let (gate, limits) = (Arc::new(Gate::default()), limits(9, 100 << 10, 60 << 10));
    let body = Wish { bytes: Some(u64::MAX), ..of(Class::Normal, 1) };
    let admitted = gate.enter(&body, &limits).unwrap();
    assert_eq!(gate.held_bytes(), 60 << 10);
    drop(admitted);
}

/// What may happen to the gate.
#[derive(Clone, Debug)]
enum Event {
    Enter { class: u8, seat: u8, bytes: Option<u64> },
    Grow { which: usize, bytes: usize },
    Leave { which: usize },
    Stage(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let bytes = prop::option::of(0u64..200_000);
    prop_oneof![
        4 => (0u8..4, 0u8..70, bytes).prop_map(|(class, seat, bytes)| Event::Enter { class, seat, bytes }),
        2 => (0usize..50, 0usize..150_000).prop_map(|(which, bytes)| Event::Grow { which, bytes }),
        2 => (0usize..50).prop_map(|which| Event::Leave { which }),
        1 => (0u8..4).prop_map(Event::Stage),
    ]
}

proptest! {
    #[test]
    fn row_32_no_order_of_events_takes_more_than_there_is_or_keeps_anything(
        events in prop::collection::vec(event(), 1..300),
        (in_flight, budget, body) in (1usize..40, 100usize..2_000, 1usize..100),
    ) {
        let (gate, metrics) = (Arc::new(Gate::default()), Metrics::new());
        let limits = limits(in_flight, budget << 10, body << 10);
        let mut held: HashMap<usize, (Admitted, Option<Arc<Growth>>)> = HashMap::new();
        for (number, event) in events.into_iter().enumerate() {
            match event {
                Event::Enter { class, seat, bytes } => {
                    let wish = Wish { bytes, ..of(Class::ALL[usize::from(class)], seat) };
                    if let Ok(mut admitted) = gate.enter(&wish, &limits) {
                        let growth = bytes.is_none().then(|| admitted.grow(&limits, &metrics));
                        held.insert(number, (admitted, growth));
                    }
                }
                Event::Grow { which, bytes } => {
                    if let Some((_, Some(growth))) = held.values().nth(which) {
                        drop(growth.reach(bytes.min(body << 10)));
                    }
                }
                Event::Leave { which } => {
                    let key = held.keys().nth(which).copied();
                    key.and_then(|key| held.remove(&key));
                }
                Event::Stage(number) => gate.enter_stage(Stage::from_number(number), Scarce::Memory),
            }
            prop_assert!(gate.in_flight() as usize <= in_flight && gate.in_flight() as usize == held.len());
            // One body and a payment always fit.
            prop_assert!(gate.held_bytes() <= (budget.max(body + body / 10 + 1) as u64) << 10);
        }
        held.clear();
        prop_assert_eq!((gate.in_flight(), gate.held_bytes()), (0, 0));
        for seat in 0..64 {
            prop_assert_eq!((gate.places.held(seat), gate.weights.held(seat)), (0, 0));
        }
    }
}
