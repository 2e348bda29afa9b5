//! Orders by table and by law.

use proptest::prelude::*;

use super::*;

fn view(name: &str) -> View {
    View { name: hash(name.as_bytes()), weight: 1, ..View::default() }
}

fn rule(order: Order, seed: u64) -> Rule {
    Rule { order, seed, conversation: None }
}

fn indices(rule: &Rule, views: &[View]) -> Vec<usize> {
    order(rule, views).iter().map(|ranked| ranked.index).collect()
}

fn reasons(rule: &Rule, views: &[View]) -> Vec<Reason> {
    order(rule, views).iter().map(|ranked| ranked.reason).collect()
}

#[test]
fn as_listed_is_as_listed_but_for_those_who_would_refuse() {
    let views = [view("a"), view("b"), view("c")];
    assert_eq!(indices(&rule(Order::AsListed, 7), &views), [0, 1, 2]);
    let mut sick = views;
    sick[0].standing = Standing::Open;
    sick[1].standing = Standing::Unwelcome;
    assert_eq!(indices(&rule(Order::AsListed, 7), &sick), [2, 1, 0]);
    let expected = [Reason::Listed, Reason::NotWell(Standing::Unwelcome), Reason::NotWell(Standing::Open)];
    assert_eq!(reasons(&rule(Order::AsListed, 7), &sick), expected);
}

#[test]
fn the_cheapest_comes_first_and_the_unpriced_last() {
    let priced = |name, cost| View { cost, ..view(name) };
    let views = [priced("a", None), priced("b", Some(30)), priced("c", Some(20)), priced("d", Some(0))];
    assert_eq!(indices(&rule(Order::Cheapest, 1), &views), [3, 2, 1, 0]);
    assert_eq!(reasons(&rule(Order::Cheapest, 1), &views)[3], Reason::Unpriced);
}

#[test]
fn a_guess_follows_the_size_of_the_request() {
    let currency = crate::domain::currency::Currency::parse("USD").unwrap();
    let cost = |text| Cost::parse(text, currency).unwrap();
    let wordy = TokenPrice {
        input_per_million: cost("1.00"),
        cached_input_per_million: None,
        output_per_million: cost("10.00"),
    };
    let heavy = TokenPrice {
        input_per_million: cost("3.00"),
        cached_input_per_million: None,
        output_per_million: cost("3.00"),
    };
    let cheaper = |bytes| guess(wordy, bytes).unwrap().micro < guess(heavy, bytes).unwrap().micro;
    assert!(!cheaper(400) && cheaper(400_000));
}

#[test]
fn of_two_the_faster_one_goes_first_and_a_crowd_counts() {
    let fast = View { latency: Some(100_000), ..view("fast") };
    let slow = View { latency: Some(900_000), ..view("slow") };
    for seed in 0..50 {
        assert_eq!(indices(&rule(Order::Fastest, seed), &[slow, fast]), [1, 0]);
        let crowded = View { waiting: 9, ..fast };
        assert_eq!(indices(&rule(Order::Fastest, seed), &[slow, crowded]), [0, 1]);
    }
}

#[test]
fn an_unmeasured_one_is_tried_once_at_a_time() {
    let known = View { latency: Some(1), ..view("known") };
    let cold = view("cold");
    assert_eq!(order(&rule(Order::Fastest, 3), &[known, cold])[0], Ranked { index: 1, reason: Reason::Unmeasured });
    assert_eq!(indices(&rule(Order::Fastest, 3), &[known, View { waiting: 1, ..cold }]), [0, 1]);
    let both = [View { waiting: 2, ..cold }, View { waiting: 1, ..view("also cold") }];
    assert_eq!(indices(&rule(Order::Fastest, 3), &both), [1, 0]);
}

#[test]
fn the_slowest_of_three_is_first_for_nobody_and_no_single_one_for_everybody() {
    let views =
        [100_000, 200_000, 300_000].map(|latency| View { latency: Some(latency), ..view(&latency.to_string()) });
    let mut first = [0; 3];
    for seed in 0..3_000 {
        first[indices(&rule(Order::Fastest, seed), &views)[0]] += 1;
    }
    assert_eq!(first[2], 0);
    assert!((1_800..2_200).contains(&first[0]) && (800..1_200).contains(&first[1]), "{first:?}");
}

#[test]
fn a_weight_of_0_is_a_last_resort() {
    let views = [View { weight: 0, ..view("spare") }, view("a"), view("b")];
    for seed in 0..200 {
        let ranked = order(&rule(Order::Weighted, seed), &views);
        assert_eq!(ranked[2], Ranked { index: 0, reason: Reason::LastResort });
    }
}

#[test]
fn a_share_of_seeds_is_chosen() {
    let count = |millionths| (0..100_000u64).filter(|seed| chosen(*seed, millionths)).count();
    assert_eq!((count(0), count(1_000_000)), (0, 100_000));
    assert!((4_700..5_300).contains(&count(50_000)), "{}", count(50_000));
}

fn any_view() -> impl Strategy<Value = View> {
    let standing = prop::sample::select(vec![Standing::Well, Standing::Unwelcome, Standing::Paused, Standing::Open]);
    let known = (prop::option::of(0u64..1_000_000), prop::option::of(0u64..10_000_000), 0u32..5);
    (any::<u64>(), 0u32..5, standing, known).prop_map(|(name, weight, standing, (cost, latency, waiting))| View {
        name,
        weight,
        standing,
        cost,
        latency,
        waiting,
    })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let order = prop::sample::select(vec![Order::AsListed, Order::Weighted, Order::Fastest, Order::Cheapest]);
    (order, any::<u64>(), prop::option::of(any::<u64>())).prop_map(|(order, seed, conversation)| Rule {
        order,
        seed,
        conversation,
    })
}

proptest! {
    #[test]
    fn everybody_has_one_place_the_well_come_first_and_the_same_call_is_led_the_same_way(
        rule in any_rule(), views in prop::collection::vec(any_view(), 0..8)
    ) {
        let ranked = order(&rule, &views);
        let mut seen: Vec<usize> = ranked.iter().map(|ranked| ranked.index).collect();
        let standings: Vec<_> = ranked.iter().map(|ranked| views[ranked.index].standing).collect();
        prop_assert!(standings.is_sorted());
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..views.len()).collect::<Vec<_>>());
        prop_assert_eq!(ranked, order(&rule, &views));
    }

    #[test]
    fn calls_are_shared_out_by_weight(weights in prop::collection::vec(0u32..6, 2..5), from in any::<u32>()) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let views: Vec<View> = weights
            .iter()
            .enumerate()
            .map(|(index, weight)| View { weight: *weight, ..view(&format!("provider-{index}/model")) })
            .collect();
        const CALLS: u32 = 4_000;
        let mut first = vec![0u32; views.len()];
        for call in 0..CALLS {
            let seed = hash(format!("req_{from}_{call}").as_bytes());
            first[indices(&rule(Order::Weighted, seed), &views)[0]] += 1;
        }
        let total: u32 = weights.iter().sum();
        for (weight, first) in weights.iter().zip(first) {
            let share = f64::from(*weight) / f64::from(total);
            let expected = f64::from(CALLS) * share;
            // Five standard deviations.
            let slack = 5.0 * (f64::from(CALLS) * share * (1.0 - share)).sqrt();
            prop_assert!((f64::from(first) - expected).abs() <= slack.max(0.5), "{} instead of {}", first, expected);
        }
    }

    #[test]
    fn who_leaves_takes_along_only_its_own_conversations(
        weights in prop::collection::vec(1u32..4, 3..7), gone in any::<prop::sample::Index>(), conversations in prop::collection::vec(any::<u64>(), 50)
    ) {
        let views: Vec<View> = weights
            .iter()
            .enumerate()
            .map(|(index, weight)| View { weight: *weight, ..view(&format!("p{index}/m")) })
            .collect();
        let gone = gone.index(views.len());
        let rest: Vec<View> = views.iter().enumerate().filter(|(index, _)| *index != gone).map(|(_, view)| *view).collect();
        for conversation in conversations {
            let rule = Rule { conversation: Some(conversation), ..rule(Order::Weighted, 0) };
            let before = views[indices(&rule, &views)[0]].name;
            let after = rest[indices(&rule, &rest)[0]].name;
            prop_assert!(before == views[gone].name || before == after, "a conversation moved without need");
            // And one that is only ill for a while gives back what it had.
            let mut ill = views.clone();
            ill[gone].standing = Standing::Open;
            prop_assert_eq!(ill[indices(&rule, &ill)[0]].name, after);
        }
    }
}
