//! Rows 1 to 16 of the fault matrix where a single request does not show them: outages under load and over time, with
//! the clock paused and every request counted on the provider's side.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use weighbridge::gateway::build::build;
use weighbridge::upstream::breaker::State;

use crate::harness::*;

const MS: Duration = Duration::from_millis(1);

/// One request every so often, whatever becomes of those before; when each was sent, and its answer.
async fn load(world: &World, body: &Value, every: Duration, count: u32) -> Vec<(Instant, Answer)> {
    let start = Instant::now();
    let calls = (0..count).map(async |number| {
        let at = start + every * number;
        sleep_until(at).await;
        (at, world.chat(body).await)
    });
    join_all(calls).await
}

/// The time that all but one in a hundred took at most.
fn p99<'a>(answers: impl Iterator<Item = &'a Answer>) -> Duration {
    let mut took: Vec<Duration> = answers.map(|answer| answer.took).collect();
    took.sort_unstable();
    took[(took.len() * 99).div_ceil(100) - 1]
}

fn served(answers: &[(Instant, Answer)]) -> usize {
    answers.iter().filter(|(_, answer)| answer.status == 200).count()
}

#[tokio::test(start_paused = true)]
async fn row_1_refused_connections_cost_no_request_and_no_time_and_then_only_probes_are_made() {
    let world = World::new();
    world.net.always("alpha", Link::Refused);
    let answers = load(&world, &chat("duo"), 400 * MS, 150).await;
    answers.iter().for_each(|(_, answer)| assert_eq!((answer.status, answer.header("wb-provider")), (200, "beta")));
    assert!(p99(answers.iter().map(|(_, answer)| answer)) <= 5 * MS);
    // Five to open it, then one after 1, 2, 4, 8, 16 and 32 seconds, a fifth more or less.
    let dialled = world.net.dialled("alpha");
    assert!((8..=13).contains(&dialled), "{dialled} connections in a minute");
}

#[tokio::test(start_paused = true)]
async fn row_1_those_in_flight_when_an_outage_begins_are_all_that_it_costs() {
    let world = World::new();
    world.net.always("alpha", Link::BlackHole);
    let body = chat("duo");
    let first = join_all((0..40).map(|_| world.chat(&body))).await;
    first.iter().for_each(|answer| answer.assert_served("beta", 2));
    assert_eq!((world.net.dialled("alpha"), world.breaker("alpha/fast")), (40, State::Open));
    let answers = load(&world, &body, 400 * MS, 150).await;
    assert_eq!(served(&answers), 150);
    let probes = world.net.dialled("alpha") - 40;
    assert!((3..=8).contains(&probes), "{probes} probes in a minute");
    let waited = answers.iter().filter(|(_, answer)| answer.took > 5 * MS).count();
    assert_eq!(waited, probes, "whoever probes waits, and nobody else");
}

#[tokio::test(start_paused = true)]
async fn row_4_a_payment_waits_150_ms_for_a_connection_and_then_for_nothing() {
    let world = World::new();
    world.net.always("alipay", Link::BlackHole);
    let mut dialled = 0;
    for number in 0..8 {
        let answer = world.assess(&payment(&format!("T{number}"), "1.00")).await;
        assert_eq!((answer.status, &answer.json()["source"]), (200, &json!("fallback")));
        let tried = world.net.dialled("alipay") - dialled;
        dialled += tried;
        // Once more, after a pause of 50 ms and up to a quarter more, as long as the retry budget allows.
        let most = u32::try_from(tried).unwrap() * 150 * MS + 63 * MS;
        assert!(tried <= 2 && answer.took <= most + 5 * MS, "{number}: {tried} in {:?}", answer.took);
        assert!(number < 5 || answer.took <= 5 * MS, "{number}: {:?}", answer.took);
    }
    assert_eq!((dialled, world.scorings(), world.breaker("alipay")), (5, 0, State::Open));
}

#[tokio::test(start_paused = true)]
async fn row_9_during_a_pause_not_one_request_arrives_however_many_there_are() {
    let world = World::new();
    world.faults("alpha", &["status:429;retry-after=2"]);
    world.chat(&chat("duo")).await.assert_served("beta", 2);
    let answers = load(&world, &chat("duo"), 20 * MS, 99).await;
    answers.iter().for_each(|(_, answer)| answer.assert_served("beta", 1));
    assert_eq!(world.counts(), [1, 100, 0]);
    sleep(50 * MS).await;
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
}

#[tokio::test(start_paused = true)]
async fn row_9_a_date_in_the_past_is_no_pause_and_a_date_without_a_clock_is_garbage() {
    let (past, future) = ("Sun, 06 Nov 1994 08:49:00 GMT", "Sun, 06 Nov 1994 08:49:40 GMT");
    let dated = "date=Sun, 06 Nov 1994 08:49:37 GMT";
    for (headers, wait, jitter) in [
        (format!("{dated};retry-after={past}"), 0, 0),
        ("retry-after=0".to_owned(), 0, 0),
        (format!("{dated};retry-after={future}"), 3_000, 0),
        (format!("{dated};retry-after={future}x"), 1_000, 250),
        ("retry-after-ms=-5".to_owned(), 1_000, 250),
        ("retry-after-ms=1e12".to_owned(), 300_000, 0),
    ] {
        let world = World::new();
        world.faults("alpha", &[&format!("status:429;{headers}")]);
        world.chat(&chat("duo")).await.assert_served("beta", 2);
        if wait > 0 {
            sleep((wait - 5) * MS).await;
            world.chat(&chat("duo")).await.assert_served("beta", 1);
            sleep((jitter + 10) * MS).await;
        }
        world.chat(&chat("duo")).await.assert_served("alpha", 1);
    }
}

#[tokio::test(start_paused = true)]
async fn row_10_a_used_up_account_is_asked_once_in_five_minutes_and_never_twice_for_one_call() {
    let used_up =
        r#"status:429;body={"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota"}}"#;
    for model in ["duo", "solo"] {
        let mut world = World::new();
        world.fault("alpha", used_up);
        let answers = load(&world, &chat(model), 10_000 * MS, 180).await;
        let asked = world.seen("alpha").len();
        assert!((2..=6).contains(&asked), "{model}: {asked} in half an hour");
        match model {
            "duo" => assert_eq!(served(&answers), 180),
            _ => answers.iter().for_each(|(_, answer)| {
                assert_eq!(answer.status, 503);
                assert!(["0", "1"].contains(&answer.header("wb-attempts")), "{}", answer.header("wb-attempts"));
            }),
        }
        // Who operates it is told apart from other failures why.
        let told = world.metric("weighbridge_upstream_attempts_total", &["reason=\"quota_exhausted\""]);
        assert!((told - asked as f64).abs() < f64::EPSILON, "{told} of {asked}");
        let lines = world.log();
        let told = lines.iter().filter(|line| line["attempts"].to_string().contains("alpha/fast:quota_exhausted"));
        assert_eq!(told.count(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn row_11_a_storm_of_any_kind_costs_no_request_and_hardly_an_attempt() {
    for status in [500, 502, 503, 504, 529] {
        let world = World::new();
        world.fault("alpha", &format!("status:{status}"));
        let answers = load(&world, &chat("duo"), 400 * MS, 150).await;
        assert_eq!(served(&answers), 150, "{status}");
        let attempts: usize = world.counts().iter().sum();
        assert!(attempts * 10 <= 150 * 11, "{status}: {attempts} attempts for 150 requests");
        assert!((8..=13).contains(&world.seen("alpha").len()), "{status}: {:?}", world.counts());
    }
}

#[tokio::test(start_paused = true)]
async fn row_12_an_outage_of_all_costs_hardly_an_attempt_and_ends_within_five_seconds_of_its_end() {
    for (model, down, rate) in [("duo", 60, 2), ("duo", 600, 1), ("solo", 600, 1)] {
        let world = World::new();
        world.fault("alpha", "status:500");
        world.fault("beta", "status:500");
        let answers = load(&world, &chat(model), 1_000 * MS / rate, down * rate / 3).await;
        let (answers, attempts) = (answers.into_iter().map(|(_, answer)| answer), world.counts().iter().sum::<usize>());
        let answers: Vec<Answer> = answers.collect();
        assert!(answers.iter().all(|answer| [502, 503].contains(&answer.status)));
        assert!(attempts * 10 <= answers.len() * 11, "{model}: {attempts} attempts for {} requests", answers.len());
        assert!(
            p99(answers.iter()) <= 73 * MS,
            "with the one pause, of 63 ms at most, before a retry: {:?}",
            p99(answers.iter())
        );
        let refused = answers.iter().filter(|answer| answer.status == 503);
        refused.for_each(|answer| {
            assert!(answer.took <= 20 * MS, "{:?}", answer.took);
            let wait: u64 = answer.header("retry-after-ms").parse().unwrap();
            assert!(wait <= 2_400, "who is told {wait} ms would come too late");
        });
        world.faults.clear(if model == "duo" { "beta" } else { "alpha" });
        let healed = Instant::now();
        let after = load(&world, &chat(model), 200 * MS, 50).await;
        let bad = after.iter().rfind(|(_, answer)| answer.status != 200);
        let recovered = bad.map_or(Duration::ZERO, |(at, _)| *at - healed);
        assert!(recovered <= Duration::from_secs(5), "{model}, down for {down} s: {recovered:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn row_12_probes_of_providers_that_are_all_down_do_not_come_in_step() {
    let world = World::new();
    world.fault("alpha", "status:500");
    world.fault("beta", "status:500");
    let (mut client, mut probes, mut before) = (world.client().await, [Vec::new(), Vec::new()], [0, 0, 0]);
    let start = Instant::now();
    for _ in 0..600 {
        client.call(chat_request(SHOP, &chat("duo"))).await;
        let now = world.counts();
        for (of, probes) in probes.iter_mut().enumerate() {
            probes.extend((now[of] > before[of]).then(|| start.elapsed().as_millis()));
        }
        before = now;
        sleep(100 * MS).await;
    }
    for probes in &probes {
        let late = &probes[probes.len() / 2..];
        let gaps: BTreeSet<u128> = late.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.len() >= 3 && gaps.iter().all(|gap| (1_600..=2_700).contains(gap)), "{gaps:?}");
    }
    let together = probes[0].iter().filter(|at| probes[1].contains(at)).count();
    assert!(together < probes[0].len() / 2, "{probes:?}");
}

#[tokio::test(start_paused = true)]
async fn row_13_a_refused_credential_costs_no_request_and_the_log_names_the_provider_and_not_the_key() {
    for status in [401, 402, 403] {
        let mut world = World::new();
        let key = provider_key("alpha");
        let said = json!({ "error": { "message": format!("no such key: {key}"), "type": "x", "code": null } });
        world.fault("alpha", &format!("status:{status};body={said}"));
        for (body, count) in [(chat("duo"), 60), (streamed("duo"), 10)] {
            let answers = load(&world, &body, 250 * MS, count).await;
            assert_eq!(served(&answers), count as usize, "{status}");
        }
        let attempts: usize = world.counts().iter().sum();
        assert!(attempts * 10 <= 70 * 11, "{status}: {attempts} attempts for 70 requests");
        let alone = world.chat(&chat("solo")).await;
        assert!([502, 503].contains(&alone.status) && !alone.text().contains(&key), "{status}: {}", alone.text());
        let (metrics, log) = (world.metrics.render(), world.log_text());
        let reason = if status == 402 { "quota_exhausted" } else { "unauthorised" };
        assert!(log.contains(&format!("alpha/fast:{reason}")), "{status}: {log}");
        assert!(metrics.contains(&format!("reason=\"{reason}\"")));
        assert!(!log.contains("CANARY") && !metrics.contains("CANARY"), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn row_14_a_refusal_is_passed_on_without_what_is_not_the_callers_business() {
    let key = provider_key("alpha");
    let said = json!({ "error": { "message": format!("bad image, seen with {key}"), "type": "invalid_request_error",
                                  "param": "messages", "code": "bad_image" } });
    for status in [400, 404, 413, 422] {
        let world = World::new();
        let fault = format!("status:{status};set-cookie=a=b;server=secret/1;x-internal=10.0.0.7;body={said}");
        world.fault("alpha", &fault);
        let answer = world.chat(&chat("trio")).await;
        assert_eq!((answer.status, answer.openai_error().as_str()), (status, "bad_image"));
        assert_eq!(answer.json()["error"]["param"], "messages", "what it names in the request is the caller's to know");
        assert!(!answer.text().contains(&key), "{}", answer.text());
        for header in ["set-cookie", "server", "x-internal"] {
            assert!(!answer.headers.contains_key(header), "{header}");
        }
        assert_eq!((world.counts(), answer.header("wb-attempts")), ([1, 0, 0], "1"));
    }
}

#[tokio::test(start_paused = true)]
async fn row_15_who_becomes_slow_without_a_failure_loses_its_share_within_ten_seconds() {
    let duo = "[model.duo]\ncandidates";
    let world = World::with(&Plan::replacing(duo, "[model.duo]\norder = \"fastest\"\ncandidates"));
    world.fault("alpha", "delay:50ms");
    world.fault("beta", "delay:50ms");
    let well = load(&world, &chat("duo"), 100 * MS, 100).await;
    let (baseline, before) = (p99(well.iter().map(|(_, answer)| answer)), world.counts());
    assert!(before[0] > 10 && before[1] > 10, "both serve: {before:?}");

    world.fault("alpha", "delay:1s");
    let first = load(&world, &chat("duo"), 100 * MS, 100).await;
    let then = world.counts();
    let after = load(&world, &chat("duo"), 100 * MS, 200).await;
    let now = world.counts();
    assert_eq!((served(&well), served(&first), served(&after)), (100, 100, 200));
    assert!(now[1] - then[1] >= 180, "{} of 200 went to the one that is well", now[1] - then[1]);
    let slow = p99(after.iter().map(|(_, answer)| answer));
    assert!(slow <= 3 * baseline, "{slow:?} after {baseline:?}");
    assert_eq!(world.breaker("alpha/fast"), State::Closed, "slowness is no failure");
}

#[tokio::test(start_paused = true)]
async fn row_16_a_flapping_provider_costs_no_request_and_is_met_down_by_few() {
    let world = World::new();
    let (mut client, mut states, mut met_down, mut met_up) = (world.client().await, Vec::new(), 0, 0);
    for half in 0..20 {
        let is_down = half % 2 == 1;
        if is_down {
            world.fault("alpha", "status:503");
        } else {
            world.faults.clear("alpha");
        }
        let before = world.seen("alpha").len();
        for _ in 0..40 {
            assert_eq!(client.call(chat_request(SHOP, &chat("duo"))).await.status, 200);
            states.push(world.breaker("alpha/fast"));
            sleep(75 * MS).await;
        }
        let met = world.seen("alpha").len() - before;
        if is_down { met_down += met } else { met_up += met }
    }
    assert!(met_down * 10 <= states.len(), "{met_down} of {} met it down", states.len());
    // In a minute of it, it opens, tries again and closes with pauses of 1, 2, 4, 8, 16 and 32 seconds between.
    states.dedup();
    assert!(states.len() <= 3 * 6, "{} changes", states.len());
    assert!(met_up >= 40, "it serves while it is up: {met_up}");

    // Back for good, it serves all of them again within the longest pause.
    world.faults.clear("alpha");
    sleep(Duration::from_secs(72)).await;
    let (before, mut client) = (world.seen("alpha").len(), world.client().await);
    for _ in 0..40 {
        assert_eq!(client.call(chat_request(SHOP, &chat("duo"))).await.status, 200);
    }
    assert_eq!(world.seen("alpha").len() - before, 40);
}

#[tokio::test(start_paused = true)]
async fn row_40_a_call_in_flight_keeps_the_candidates_it_came_with() {
    let world = World::new();
    world.faults("alpha", &["delay:3s", "stall", "status:500"]);
    let (kept, moved, quick) = (streamed("duo"), streamed("duo"), chat("duo"));
    let without = ROUTES.replace("\"alpha/fast\", ", "").replace("\"alpha/fast\"", "\"gamma/fast\"");
    let (kept, moved, new) = tokio::join!(
        world.chat(&kept),
        async {
            sleep(10 * MS).await;
            world.chat(&moved).await
        },
        async {
            sleep(Duration::from_secs(1)).await;
            let next = build(
                table(&Plan { routes: without, ..Plan::default() }),
                Some(&world.live.load_full()),
                &world.shared,
            );
            world.live.store(Arc::new(next));
            world.chat(&quick).await
        }
    );
    kept.assert_served("alpha", 1);
    moved.assert_served("beta", 2);
    new.assert_served("beta", 1);
    assert_eq!(kept.header("wb-config"), moved.header("wb-config"));
    assert_ne!(kept.header("wb-config"), new.header("wb-config"));
    assert_eq!(world.counts(), [2, 2, 0]);
    let alive = world.metric("weighbridge_config_snapshots_alive", &[]);
    assert!((alive - 1.0).abs() < f64::EPSILON, "the old configuration went with its last call");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_46_a_thousand_equal_misses_at_expiry_are_one_request_though_the_first_client_leaves() {
    let world = World::new();
    let question = chat("kept");
    world.chat(&question).await.assert_served("alpha", 1);
    sleep(Duration::from_secs(661)).await;
    world.fault("alpha", "delay:2s");
    let first = tokio::time::timeout(100 * MS, world.chat(&question));
    let others = join_all((0..999).map(async |_| {
        sleep(MS).await;
        world.chat(&question).await
    }));
    let (first, others) = tokio::join!(first, others);
    assert!(first.is_err(), "it left before the answer");
    assert!(others.iter().all(|answer| answer.status == 200 && answer.body == others[0].body));
    assert!(others.iter().all(|answer| answer.header("wb-cache") == "coalesced"));
    assert_eq!(world.counts(), [2, 0, 0], "one before it expired, one after");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_46_answers_made_together_do_not_expire_together() {
    let world = World::new();
    let question = |number: u32| json!({ "model": "kept", "messages": [], "seed": number });
    let hits = async || {
        let answers = join_all((0..40).map(|number| {
            let mut request = chat_request(SHOP, &question(number));
            request.headers_mut().insert("wb-cache", "only-if-cached".parse().unwrap());
            world.call(request)
        }));
        answers.await.iter().filter(|answer| answer.status == 200).count()
    };
    for number in 0..40 {
        assert_eq!(world.chat(&question(number)).await.status, 200);
    }
    sleep(Duration::from_secs(539)).await;
    assert_eq!(hits().await, 40);
    sleep(Duration::from_secs(61)).await;
    let half = hits().await;
    assert!((8..=32).contains(&half), "{half} of 40 after the time that the route says");
    sleep(Duration::from_secs(61)).await;
    assert_eq!(hits().await, 0);
}
