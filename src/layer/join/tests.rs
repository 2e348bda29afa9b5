//! Who joins whom, and what is found on the ground.

use std::future::{pending, ready};

use super::*;
use crate::flight::shared_reply::Landing;
use crate::upstream::testing::whole;

const KEYS: (Key, Key) = ([1; 32], [2; 32]);

fn never() -> (Asking, Done) {
    (Box::pin(pending()), Box::new(|_| false))
}

fn board(flights: &Flights, keys: (Key, Key), found: Option<u8>) -> Boarded<u8> {
    flights.board(keys, || found, never)
}

#[tokio::test]
async fn the_first_leads_the_rest_join_and_another_body_does_not() {
    let flights = Flights::new(1 << 20);
    let Boarded::Leads(leader) = board(&flights, KEYS, None) else { panic!("leads") };
    let Boarded::Joins(other) = board(&flights, KEYS, Some(1)) else { panic!("joins before it looks") };
    assert!(matches!(board(&flights, (KEYS.0, [3; 32]), None), Boarded::OtherBody));
    let Boarded::Leads(elsewhere) = board(&flights, ([9; 32], KEYS.1), None) else { panic!("another key") };
    drop((leader, other, elsewhere));
    tokio::task::yield_now().await;
    assert!(flights.flying().is_empty(), "flights go with their last seat");
}

#[tokio::test]
async fn what_has_landed_is_found_before_anybody_leads() {
    let flights = Flights::new(1 << 20);
    assert!(matches!(board(&flights, KEYS, Some(7)), Boarded::Found(7)));
    assert!(flights.flying().is_empty());
}

#[tokio::test]
async fn an_answer_is_kept_before_its_flight_is_over() {
    let flights = Flights::new(1 << 20);
    let seen = flights.clone();
    let lead = move || -> (Asking, Done) {
        let done = move |landing: &Landing<'_>| {
            assert!(seen.flying().contains_key(&KEYS.0), "it is still in the air");
            matches!(landing, Landing::Whole(..))
        };
        (Box::pin(ready(Ok(whole("{}")))), Box::new(done))
    };
    let Boarded::Leads(seat) = flights.board(KEYS, || None::<u8>, lead) else { panic!("leads") };
    assert!(seat.answer().await.unwrap().shown.kept);
    assert!(flights.flying().is_empty());
}

#[tokio::test]
async fn a_flight_that_takes_anothers_place_is_not_removed_by_it() {
    let flights = Flights::new(1 << 20);
    let Boarded::Leads(first) = board(&flights, KEYS, None) else { panic!("leads") };
    drop(first);
    // Its task has not noticed yet, so the seat is taken over; the next one leads anew once it has.
    let Boarded::Joins(second) = board(&flights, KEYS, None) else { panic!("joins") };
    drop(second);
    tokio::task::yield_now().await;
    let Boarded::Leads(third) = board(&flights, KEYS, None) else { panic!("leads") };
    tokio::task::yield_now().await;
    assert_eq!(flights.flying().len(), 1);
    drop(third);
}
