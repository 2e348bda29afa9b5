use super::*;

use crate::wire::risk;

fn small(seed: u64) -> Options {
    Options { customers: 200, terminals: 400, days: 60, ..Options::sandbox(seed) }
}

fn town(seed: u64) -> Simulator {
    Simulator::new(small(seed)).unwrap()
}

#[test]
fn a_seed_gives_the_same_town_every_time_and_another_seed_another() {
    let days = |seed| town(seed).day(40);
    assert_eq!(days(1), days(1));
    assert_ne!(days(1), days(2));
}

#[test]
fn every_payment_is_found_by_its_number_with_a_runs_name_or_without() {
    let town = town(5);
    let mut payments = 0;
    for day in 0..town.options.days {
        for payment in town.day(day) {
            let number = town.number(&payment);
            assert_eq!(number::seed(&number), Some(5));
            assert_eq!(town.find(&number), Some(payment), "{number}");
            assert_eq!(town.find(&format!("{number}-r7")), Some(payment));
            payments += 1;
        }
    }
    assert!(payments > 15_000, "{payments}");
    for stranger in ["", "sim-", "T0001", "sim-6-1-1-0", "sim-5-60-1-0", "sim-5-1-200-0", "sim-5-1-1-99", "sim-5-x-1-0"]
    {
        assert_eq!(town.find(stranger), None, "{stranger}");
    }
}

#[test]
fn what_a_merchant_would_send_is_a_good_request_whatever_the_payment() {
    let town = town(7);
    let (mut injected, mut currencies) = (0, std::collections::BTreeSet::new());
    for day in 0..10 {
        for payment in town.day(day) {
            let body = town.request(&payment, "r1");
            let read = risk::decode(body.to_string().as_bytes());
            let read = read.unwrap_or_else(|mistakes| panic!("{body}: {mistakes:?}"));
            assert_eq!(read.amount.minor(), payment.minor);
            injected += u32::from(!read.subject.contains(" purchase "));
            currencies.insert(read.amount.currency().code());
        }
    }
    assert!(injected > 0, "some subjects speak to a model");
    assert!(currencies.len() == 7, "{currencies:?}");
}

#[test]
fn a_later_scenario_takes_over_the_label_and_multiplies_an_amount_already_looked_at() {
    let town = town(9);
    let (mut over_large, mut multiplied, mut twice) = (0, 0, 0);
    for day in 0..town.options.days {
        for payment in town.day(day) {
            let Payer::Customer(number) = payment.payer else { continue };
            let before = town.drawn(number, day).into_iter().find(|own| own.index == payment.index).unwrap();
            let takes = town.frauds.hold_payment(number, (day, payment.index));
            let (large, terminal) = (before.minor > LARGE_AMOUNT, town.frauds.has_terminal(payment.terminal, day));
            let expected = match (takes, terminal, large) {
                (1.., ..) => Some(Scenario::Customer),
                (0, true, _) => Some(Scenario::Terminal),
                (0, false, true) => Some(Scenario::LargeAmount),
                (0, false, false) => None,
            };
            assert_eq!(payment.scenario, expected);
            assert_eq!(payment.minor, before.minor * 5i64.pow(u32::try_from(takes).unwrap()));
            over_large += u32::from(large && terminal);
            multiplied += u32::from(takes == 1);
            twice += u32::from(takes > 1);
        }
    }
    assert!(multiplied > 500 && twice > 0 && over_large > 0, "{multiplied} {twice} {over_large}");
}

#[test]
fn card_testing_is_many_cards_on_one_device_and_leaves_the_rest_as_it_was() {
    let with = town(11);
    let without = Simulator::new(Options { card_testing: CardTesting::Never, ..small(11) }).unwrap();
    let mut bursts = 0;
    for day in 0..with.options.days {
        let (burst, rest): (Vec<_>, Vec<_>) =
            with.day(day).into_iter().partition(|payment| payment.payer == Payer::CardTester);
        assert_eq!(rest, without.day(day));
        if let (Some(first), Some(last)) = (burst.first(), burst.last()) {
            let bodies: Vec<_> = burst.iter().map(|payment| with.request(payment, "")).collect();
            let different = |pointer: &str| {
                let all = bodies.iter().map(|body| body.pointer(pointer).unwrap().as_str().unwrap());
                all.collect::<std::collections::BTreeSet<_>>().len()
            };
            assert_eq!((different("/device/id"), different("/merchant/id")), (1, 1));
            assert_eq!(different("/instrument/fingerprint"), burst.len());
            assert!(burst.len() >= 40 && last.second - first.second < 1_300);
            bursts += 1;
        }
    }
    assert!((3..20).contains(&bursts), "{bursts} in 60 days");
}

/// How far scores and frauds are apart on average over ten bins, as a share, for each calibration.
fn calibration_errors(calibrations: [Calibration; 4]) -> [f64; 4] {
    let town = Simulator::new(Options { customers: 1_000, terminals: 2_000, ..Options::published(3) }).unwrap();
    let mut bins = [[[0.0f64; 2]; 10]; 4];
    let mut all = 0.0;
    for payment in (0..183).step_by(2).flat_map(|day| town.day(day)) {
        all += 1.0;
        for (calibration, bins) in calibrations.into_iter().zip(&mut bins) {
            let vendor = Vendor { calibration, change: None };
            let score = f64::from(vendor::opinion(3, town.prior, &vendor, &payment).score.micro());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 10")]
            let bin = &mut bins[((score / 1e5) as usize).min(9)];
            bin[0] += score / 1e6;
            bin[1] += if payment.scenario.is_some() { 1.0 } else { 0.0 };
        }
    }
    bins.map(|bins| bins.iter().map(|[said, were]| (said - were).abs()).sum::<f64>() / all)
}

#[test]
fn an_honest_provider_is_calibrated_and_the_others_are_not() {
    let bent = [Calibration::Overconfident, Calibration::Timid, Calibration::Alarmist];
    let [honest, others @ ..] = calibration_errors([Calibration::Honest, bent[0], bent[1], bent[2]]);
    assert!(honest < 0.005, "{honest}");
    for (bent, error) in bent.into_iter().zip(others) {
        assert!(error > 3.0 * honest, "{bent:?}: {error} against {honest}");
    }
}

#[test]
fn a_change_of_model_shows_from_its_day_on() {
    let vendor = Vendor { calibration: Calibration::Honest, change: Some((30, Calibration::Alarmist)) };
    let changed = Simulator::new(Options { vendor, ..small(13) }).unwrap();
    let same = town(13);
    let mean = |town: &Simulator, day: u32| {
        let scores: Vec<_> = town.day(day).iter().map(|payment| town.opinion(payment)).collect();
        let sum: u64 = scores.iter().map(|opinion| u64::from(opinion.score.micro())).sum();
        (sum / scores.len() as u64, scores[0].model_version)
    };
    assert_eq!(mean(&changed, 29), mean(&same, 29));
    assert_eq!((mean(&changed, 29).1, mean(&changed, 30).1), (MODEL_VERSION, NEXT_MODEL_VERSION));
    assert!(mean(&changed, 30).0 > mean(&same, 30).0 * 6 / 5);
}

#[test]
fn outcomes_come_as_late_and_as_wrong_as_they_should() {
    let town = town(17);
    let payments: Vec<_> = (0..60).flat_map(|day| town.day(day)).collect();
    let outcomes = |action, fraud: bool| {
        let such = payments.iter().filter(move |payment| payment.scenario.is_some() == fraud);
        such.map(|payment| town.outcome(payment, action)).collect::<Vec<_>>()
    };
    assert!(outcomes(Action::Reject, true).iter().all(Option::is_none), "nobody learns what was never paid");
    let mut delays: Vec<u32> = outcomes(Action::Pass, true).into_iter().map(|outcome| outcome.unwrap().after).collect();
    delays.sort_unstable();
    let days = |after: u32| f64::from(after) / f64::from(outcome::DAY);
    let median = days(delays[delays.len() / 2]);
    assert!((32.0..38.0).contains(&median) && days(*delays.last().unwrap()) <= 120.0, "{median}");
    assert!(outcomes(Action::Challenge, false).iter().all(|outcome| outcome.unwrap().label == "legitimate"));
    let share = |fraud, label| {
        let all = outcomes(Action::Review, fraud);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let share = all.iter().filter(|outcome| outcome.unwrap().label == label).count() as f64 / all.len() as f64;
        share
    };
    assert!((share(false, "confirmed") - 0.05).abs() < 0.01 && (share(false, "overturned") - 0.95).abs() < 0.01);
    assert!((share(true, "chargeback") - 0.1).abs() < 0.03 && (share(true, "confirmed") - 0.9).abs() < 0.03);
}

#[test]
fn one_day_in_seven_has_a_burst() {
    let options = Options { days: 3_650, ..small(1) };
    let bursts = (0..3_500).filter(|day| !burst::on(&options, *day).is_empty()).count();
    assert!((430..570).contains(&bursts), "{bursts} in 500 weeks");
}

#[test]
fn sizes_out_of_bounds_are_refused() {
    for (customers, terminals, days) in
        [(0, 1, 1), (1, 0, 1), (1, 1, 0), (100_001, 1, 1), (1, 200_001, 1), (1, 1, 3_651)]
    {
        assert!(Simulator::new(Options { customers, terminals, days, ..small(1) }).is_err());
    }
    assert!(Simulator::new(Options { customers: 1, terminals: 1, days: 1, ..small(1) }).is_ok());
}

#[test]
fn a_history_has_a_row_for_each_payment_in_order_and_knows_only_what_it_may() {
    let town = town(19);
    let written = |knowledge| {
        let (first_day, bands) = (20_454, history::usual_bands().unwrap());
        let mut out = Vec::new();
        let format = history::Format { first_day, bands, knowledge };
        let tally = history::write(&town, &format, &mut out, |_| {}).unwrap();
        (String::from_utf8(out).unwrap(), tally)
    };
    let rows = |text: &str| {
        let rows = text.lines().skip(1);
        rows.map(|row| row.split(',').map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let (text, tally) = written(history::Knowledge::Final);
    assert_eq!(text.lines().next(), Some(history::HEADER));
    let all = rows(&text);
    assert_eq!(all.len() as u64, tally.payments);
    assert!(all.iter().all(|row| row.len() == 19), "no value needs quoting");
    assert!(all.is_sorted_by_key(|row| row[0].clone()));
    assert!(all[0][0].starts_with("2026-01-01T") && all.last().unwrap()[0].starts_with("2026-03-01T"));
    assert!(all.iter().all(|row| (row[14] == "REJECT") == row[17].is_empty()));
    assert!(all.iter().all(|row| row[17].is_empty() || row[18] >= row[0]));

    let early = rows(&written(history::Knowledge::AsOf(61)).0);
    assert!(early.iter().all(|row| row[18].as_str() < "2026-03-03"));
    let known = early.iter().filter(|row| !row[17].is_empty()).count();
    assert!(known > 0 && known < all.len() / 5, "{known}");

    let truth = rows(&written(history::Knowledge::Truth).0);
    let frauds = truth.iter().filter(|row| row[17] == "fraud").count() as u64;
    assert_eq!(frauds, tally.all_frauds());
    assert_eq!(truth.iter().filter(|row| row[17] == "legitimate").count() as u64, tally.payments - frauds);
}
