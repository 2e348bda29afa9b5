//! What is answered is on record; what is not on record is not answered, unless the route says so.
//!
//! The record has a real thread and a real disk, so time is real here.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;
use weighbridge::store::db::{FILE, StoreError};
use weighbridge::store::query::{Reader, Stored, Verified, Wanted, verify};
use weighbridge::store::writer::{CHECKPOINTS, Fault, Faults, SLOW};

use crate::harness::*;
use crate::machine::Stopwatch;

const DEADLINE: Duration = Duration::from_millis(800);

/// A proxy with a record.
struct Site {
    world: World,
    folder: TempDir,
    faults: Faults,
}

impl Site {
    fn new() -> Self {
        Self::with(Plan::default(), tempfile::tempdir().unwrap())
    }

    fn with(plan: Plan, folder: TempDir) -> Self {
        let faults = Faults::default();
        let record = Some((folder.path().to_owned(), faults.clone()));
        Self { world: World::with(&Plan { record, ..plan }), folder, faults }
    }

    /// Stops in good order and gives the folder back.
    fn stop(self) -> TempDir {
        self.world.shared.clerk.as_ref().unwrap().records().stop();
        self.folder
    }
}

fn decisions(folder: &Path) -> Vec<Stored> {
    let (reader, mut seqs) = (Reader::open(folder).unwrap(), Vec::new());
    let walk = |stored: Option<&Stored>, _| {
        seqs.extend(stored.map(|stored| (stored.tenant.clone(), stored.id.clone())));
        Ok::<_, StoreError>(())
    };
    reader.walk(&Wanted::default(), walk).unwrap();
    seqs.iter().map(|(tenant, id)| reader.decision(tenant, id).unwrap().unwrap()).collect()
}

fn sound(folder: &Path) {
    let checkpoints = std::fs::read_to_string(folder.join(CHECKPOINTS)).unwrap();
    let verified = verify(folder, Some(&checkpoints), |_| ()).unwrap();
    assert!(matches!(verified, Verified::Sound(_)), "{verified:?}");
}

/// The parts of a record that only its bytes show.
fn body(folder: &Path, id: &str) -> Value {
    let db = Connection::open(folder.join(FILE)).unwrap();
    let text = "SELECT body FROM records WHERE kind = 'decision' AND id = ?1";
    let bytes: Vec<u8> = db.query_row(text, [id], |row| row.get(0)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn id(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn unavailable(answer: &Answer) {
    assert_eq!((answer.status, answer.header("content-type")), (503, "application/problem+json"), "{}", answer.text());
    assert!(answer.json()["detail"].as_str().unwrap().starts_with("audit_unavailable"), "{}", answer.text());
}

#[tokio::test]
async fn every_answer_is_on_record_when_it_is_given_and_says_how_it_came_about() {
    let site = Site::new();
    let live = site.world.assess(&payment("T1", "88.13")).await;
    let stored = decisions(site.folder.path());
    assert_eq!((stored.len(), &stored[0].id), (1, &id(&live)));
    let kept = body(site.folder.path(), &id(&live));
    assert_eq!(
        (&kept["out_trade_no"], &kept["merchant_id"], &kept["amount"]),
        (&json!("T1"), &json!("m1"), &json!("88.13"))
    );
    assert_eq!(
        (&kept["action"], &kept["source"], &kept["score_micro"]),
        (&json!("REVIEW"), &json!("live"), &json!(420_000))
    );
    assert_eq!((&kept["rule"], &kept["config"]), (&json!("default"), &live.json()["policy"]["version"]));
    assert_eq!(kept["bands"], json!([300_000, 700_000, null]));
    assert_eq!(
        (&kept["trace_id"], &kept["model_version"]),
        (&live.json()["provider"]["trace_id"], &json!("di-2026.01.0"))
    );
    assert_eq!((&kept["caller"], &kept["request_id"]), (&json!("shop"), &json!(live.header("x-request-id"))));
    assert_eq!(kept["cost"], json!([20_000, "CNY"]));
    assert_eq!((&kept["attempts"][0]["upstream"], &kept["attempts"][0]["outcome"]), (&json!("alipay"), &json!("ok")));
    site.world.fault("alipay", "status:500");
    let fallback = site.world.assess(&payment("T2", "1.00")).await;
    assert_eq!(body(site.folder.path(), &id(&fallback))["fallback"], "provider_unavailable");
    let again = site.world.assess(&payment("T1", "88.13")).await;
    assert_eq!((id(&again), again.json()["source"].as_str()), (id(&live), Some("replayed")));
    assert_eq!(decisions(site.folder.path()).len(), 2, "given again is not decided again");
    assert!(site.world.metric("weighbridge_audit_commit_seconds_count", &[]) >= 2.0);
    assert!(site.world.metric("weighbridge_audit_backlog", &[]).abs() < f64::EPSILON);
    sound(site.stop().path());
}

#[tokio::test]
async fn a_late_verdict_is_recorded_with_the_answer_it_came_too_late_for() {
    let site = Site::new();
    site.world.faults("alipay", &["delay:2s"]);
    let watch = Stopwatch::of_this_thread();
    let first = site.world.assess(&payment("T1", "1.00")).await;
    assert_eq!(first.json()["source"], "fallback");
    assert!(first.took <= DEADLINE + Duration::from_millis(50) + watch.withheld(), "{:?}", first.took);
    until("the late verdict", || decisions(site.folder.path()).len() > 1).await;
    let stored = decisions(site.folder.path());
    assert_eq!(stored.iter().map(|stored| stored.body.source.as_str()).collect::<Vec<_>>(), ["fallback", "late"]);
    assert_eq!(body(site.folder.path(), &stored[1].id)["instead_of"], json!(id(&first)));
    let again = site.world.assess(&payment("T1", "1.00")).await;
    assert_eq!((id(&again), again.json()["source"].as_str()), (stored[1].id.clone(), Some("late")));
    sound(site.stop().path());
}

#[tokio::test]
async fn row_24_without_room_on_the_disk_risk_is_refused_llm_goes_on_and_it_heals_by_itself() {
    let site = Site::new();
    id(&site.world.assess(&payment("T0", "1.00")).await);
    site.faults.set(Fault::DiskFull);
    let mut refused = Vec::new();
    for number in 1..40 {
        let answer = site.world.assess(&payment(&format!("T{number}"), "1.00")).await;
        if answer.status != 200 {
            unavailable(&answer);
            refused.push(number);
        }
        assert!(answer.took < DEADLINE);
    }
    assert!(refused.len() > 20, "{refused:?}");
    assert_eq!(site.world.chat(&chat("solo")).await.status, 200, "calls to models do not care");
    site.faults.set(Fault::None);
    let scorings = site.world.scorings();
    for number in &refused {
        id(&site.world.assess(&payment(&format!("T{number}"), "1.00")).await);
    }
    assert_eq!(site.world.scorings(), scorings, "what was decided is recorded and given, nobody is asked again");
    assert!(site.world.metric("weighbridge_audit_unrecorded_total", &["result=\"refused\""]) >= 20.0);
    let folder = site.stop();
    assert_eq!(decisions(folder.path()).len(), 40);
    sound(folder.path());
}

#[tokio::test]
async fn row_25_a_failed_write_or_sync_never_leaves_an_acknowledged_decision_missing_or_twice() {
    for fault in [Fault::Write, Fault::Sync] {
        let site = Site::new();
        let mut given = Vec::new();
        for number in 0..24 {
            site.faults.set(if number % 3 == 1 { fault } else { Fault::None });
            let answer = site.world.assess(&payment(&format!("T{number}"), "1.00")).await;
            if answer.status == 200 { given.push(id(&answer)) } else { unavailable(&answer) }
        }
        site.faults.set(Fault::None);
        for number in 0..24 {
            given.push(id(&site.world.assess(&payment(&format!("T{number}"), "1.00")).await));
        }
        let folder = site.stop();
        let mut stored: Vec<_> = decisions(folder.path()).into_iter().map(|stored| stored.id).collect();
        stored.sort();
        given.sort();
        given.dedup();
        assert_eq!(stored, given, "{fault:?}");
        sound(folder.path());
    }
}

#[tokio::test]
async fn row_29_a_slow_disk_widens_commits_and_never_makes_an_answer_late() {
    let site = Site::new();
    id(&site.world.assess(&payment("T-warm", "1.00")).await);
    site.faults.set(Fault::Slow);
    let commits = site.world.metric("weighbridge_audit_commit_seconds_count", &[]);
    let payments: Vec<Value> = (0..30).map(|number| payment(&format!("T{number}"), "1.00")).collect();
    let watch = Stopwatch::of_this_thread();
    let answers = join_all(payments.iter().map(|payment| site.world.assess(payment))).await;
    let withheld = watch.withheld();
    for answer in &answers {
        assert!(answer.took <= DEADLINE + Duration::from_millis(50) + withheld, "{:?}, {withheld:?}", answer.took);
    }
    let given: Vec<String> = answers.iter().filter(|answer| answer.status == 200).map(id).collect();
    answers.iter().filter(|answer| answer.status != 200).for_each(unavailable);
    let stored: Vec<String> = decisions(site.folder.path()).into_iter().map(|stored| stored.id).collect();
    assert!(given.iter().all(|id| stored.contains(id)), "what was given is on record");
    // What was withheld is written all the same, in few commits, and is the answer to the next try.
    site.faults.set(Fault::None);
    let idle = || site.world.live.load().providers().iter().all(|(_, provider)| provider.bulkhead.taken() == 0);
    until("each to be written", || decisions(site.folder.path()).len() >= 31 && idle()).await;
    sleep(SLOW * 2).await;
    let written = decisions(site.folder.path()).len();
    assert!(written >= 31, "{written}: each, and on a busy machine a fallback before a late verdict");
    let commits = site.world.metric("weighbridge_audit_commit_seconds_count", &[]) - commits;
    assert!(commits <= 5.0, "{commits} commits for 30 decisions");
    for payment in &payments {
        id(&site.world.assess(payment).await);
    }
    assert_eq!(
        (decisions(site.folder.path()).len(), site.world.scorings()),
        (written, 31),
        "and nobody was asked twice"
    );
    sound(site.stop().path());
}

#[tokio::test]
async fn where_the_route_says_continue_the_answer_is_given_and_counted() {
    let plan = Plan::replacing("on_exhausted = \"review\"", "on_exhausted = \"review\"\naudit = \"continue\"");
    let mut site = Site::with(plan, tempfile::tempdir().unwrap());
    site.faults.set(Fault::Write);
    let given = site.world.assess(&payment("T1", "1.00")).await;
    id(&given);
    assert!((site.world.metric("weighbridge_audit_unrecorded_total", &["result=\"continued\""]) - 1.0).abs() < 1e-9);
    assert!(decisions(site.folder.path()).is_empty());
    site.faults.set(Fault::None);
    let again = site.world.assess(&payment("T1", "1.00")).await;
    assert_eq!(id(&again), id(&given));
    assert_eq!(decisions(site.folder.path()).len(), 1, "given again it is recorded after all");
    assert!(!site.world.log_text().contains("audit_unavailable"));
}

#[tokio::test]
async fn a_restart_decides_nothing_twice() {
    let site = Site::new();
    let first = site.world.assess(&payment("T1", "88.13")).await;
    site.world.fault("alipay", "status:500");
    site.world.assess(&payment("T2", "1.00")).await;
    let again = Site::with(Plan::default(), site.stop());
    let answers = join_all((0..100).map(|_| {
        let body = payment("T1", "88.13");
        let world = &again.world;
        async move { world.assess(&body).await }
    }));
    for answer in answers.await {
        let (mut was, mut is) = (first.json(), answer.json());
        assert_eq!((was["source"].take(), is["source"].take()), (json!("live"), json!("replayed")));
        assert_eq!(was, is, "but for its source it is the same answer");
    }
    assert_eq!(again.world.scorings(), 0);
    assert_eq!(again.world.assess(&payment("T1", "88.14")).await.status, 409);
    // What was a fallback is no verdict, and another try is as good as the first.
    assert_eq!(again.world.assess(&payment("T2", "1.00")).await.json()["source"], "live");
    let folder = again.stop();
    assert_eq!(decisions(folder.path()).len(), 3);
    sound(folder.path());
}

#[tokio::test]
async fn a_hundred_equal_requests_at_once_are_one_record() {
    let site = Site::new();
    site.world.faults("alipay", &["delay:50ms"]);
    let body = payment("T1", "1.00");
    let answers = join_all((0..100).map(|_| site.world.assess(&body))).await;
    let first = id(&answers[0]);
    assert!(answers.iter().all(|answer| id(answer) == first));
    assert_eq!(site.world.scorings(), 1);
    let folder = site.stop();
    let stored = decisions(folder.path());
    assert_eq!(stored.len(), 1);
    assert_eq!(body_attempts(folder.path(), &first), 1, "and it knows the attempt it came from");
}

fn body_attempts(folder: &Path, id: &str) -> usize {
    body(folder, id)["attempts"].as_array().unwrap().len()
}

fn two_shops() -> Plan {
    Plan::replacing("allow = [\"duo\", \"kept\"]", "allow = [\"duo\", \"risk\"]")
}

#[tokio::test]
async fn g9_a_decision_can_be_read_again_by_its_own_tenant_and_by_nobody_else() {
    let site = Site::with(two_shops(), tempfile::tempdir().unwrap());
    let decided = site.world.assess(&payment("T1", "88.13")).await;
    let path = format!("/v1/risk/assessments/{}", id(&decided));
    let read = site.world.call(get(&path, SHOP)).await;
    assert_eq!((read.status, read.json()), (200, decided.json()));
    assert_eq!((read.header("wb-route"), read.header("content-type")), ("risk", "application/json"));
    let theirs = site.world.call(get(&path, OFFICE)).await;
    let nobodys = site.world.call(get("/v1/risk/assessments/ra_0", SHOP)).await;
    for missing in [theirs, nobodys] {
        assert_eq!((missing.status, missing.header("content-type")), (404, "application/problem+json"));
        assert_eq!(missing.json()["detail"], "there is no decision of this id");
    }
    assert_eq!(site.world.call(get(&path, "wb-not-a-key-0123456789")).await.status, 401);
    let mut request = get(&path, SHOP);
    *request.method_mut() = http::Method::POST;
    assert_eq!(site.world.call(request).await.status, 405);
    site.world.assert_idle();
}

#[tokio::test]
async fn an_outcome_is_added_to_the_chain_and_counted() {
    let site = Site::with(two_shops(), tempfile::tempdir().unwrap());
    let decided = id(&site.world.assess(&payment("T1", "88.13")).await);
    let path = format!("/v1/risk/assessments/{decided}/outcome");
    let report = json!({ "label": "chargeback", "by": "anna", "at": "2026-11-22T10:00:00Z", "note": "CANARY" });
    let noted = site.world.call(post(&path, SHOP, report.to_string())).await;
    assert_eq!(noted.status, 201, "{}", noted.text());
    let expected = json!({
        "id": decided, "label": "chargeback", "by": "anna", "at": "2026-11-22T10:00:00.000Z", "recorded": true,
    });
    assert_eq!(noted.json(), expected);
    assert_eq!(site.world.call(post(&path, OFFICE, report.to_string())).await.status, 404);
    let bad = site.world.call(post(&path, SHOP, r#"{"label":"good"}"#)).await;
    assert_eq!(bad.status, 400);
    assert_eq!(bad.json()["errors"].as_array().unwrap().len(), 2, "{}", bad.text());
    site.faults.set(Fault::Write);
    unavailable(&site.world.call(post(&path, SHOP, report.to_string())).await);
    site.faults.set(Fault::None);
    assert!((site.world.metric("weighbridge_outcomes_total", &["label=\"chargeback\""]) - 1.0).abs() < 1e-9);
    site.world.assert_idle();
    let folder = site.stop();
    assert_eq!(decisions(folder.path())[0].outcome.as_ref().unwrap().label, "chargeback");
    sound(folder.path());
}

#[tokio::test]
async fn without_a_record_nothing_can_be_read_again_and_that_is_said() {
    let world = World::new();
    let decided = id(&world.assess(&payment("T1", "88.13")).await);
    let read = world.call(get(&format!("/v1/risk/assessments/{decided}"), SHOP)).await;
    assert_eq!(read.status, 503);
    assert!(read.text().contains("without a data folder"), "{}", read.text());
}

/// How much of the deadline is kept for it is a law of `layer/audit`; that the deadline holds is proven on a paused clock.
#[tokio::test]
async fn what_is_answered_for_a_silent_provider_is_on_record_too() {
    let plan = Plan::replacing("on_exhausted = \"review\"", "on_exhausted = \"review\"\naudit = \"continue\"");
    let site = Site::with(plan, tempfile::tempdir().unwrap());
    site.world.fault("alipay", "stall");
    for number in 0..3 {
        let answer = site.world.assess(&payment(&format!("T{number}"), "1.00")).await;
        assert_eq!(answer.json()["source"], "fallback");
        assert!(answer.took >= Duration::from_millis(700), "{:?}", answer.took);
    }
    assert_eq!(decisions(site.stop().path()).len(), 3);
}

/// Payments of a known payer, whose decisions may be given again.
fn reusing() -> Plan {
    let reuse =
        "reuse = { mode = \"first\", max_amount = \"200.00 CNY\", max_sum = \"400.00 CNY\", self_audit = 0.01 }";
    Plan::replacing("on_exhausted = \"review\"", &format!("on_exhausted = \"review\"\n{reuse}"))
}

fn of_a_known_payer(number: &str) -> Value {
    let mut body = payment(number, "10.00");
    body["instrument"] = json!({ "type": "card", "fingerprint": "f1", "bin": "621234", "last4": "1234" });
    body["device"] = json!({ "id": "d1", "ip": "203.0.113.7", "known_since": "2025-06-01T00:00:00Z" });
    body
}

#[tokio::test]
async fn a_decision_that_was_given_again_is_a_record_of_its_own_and_survives_a_restart() {
    let site = Site::with(reusing(), tempfile::tempdir().unwrap());
    let live = site.world.assess(&of_a_known_payer("T1")).await;
    let cached = site.world.assess(&of_a_known_payer("T2")).await;
    assert_eq!(cached.json()["source"], "cached", "{}", cached.text());
    let read = site.world.call(get(&format!("/v1/risk/assessments/{}", id(&cached)), SHOP)).await;
    assert_eq!(read.json(), cached.json());
    let again = Site::with(reusing(), site.stop());
    let replayed = again.world.assess(&of_a_known_payer("T2")).await;
    let (mut was, mut is) = (cached.json(), replayed.json());
    assert_eq!((was["source"].take(), is["source"].take()), (json!("cached"), json!("replayed")));
    assert_eq!(was, is);
    assert_eq!(again.world.scorings(), 0);
    let folder = again.stop();
    let stored = decisions(folder.path());
    assert_eq!((stored.len(), &stored[1].id), (2, &id(&cached)));
    assert_eq!(
        body(folder.path(), &id(&cached))["reused"]["of"],
        live.json()["id"],
        "{}",
        body(folder.path(), &id(&cached))
    );
    sound(folder.path());
}

#[tokio::test]
async fn a_fraud_ends_what_could_be_given_again_to_its_payer_and_a_good_outcome_does_not() {
    let site = Site::with(reusing(), tempfile::tempdir().unwrap());
    let live = id(&site.world.assess(&of_a_known_payer("T1")).await);
    let report = async |label: &str| {
        let body = json!({ "label": label, "by": "anna" }).to_string();
        site.world.call(post(&format!("/v1/risk/assessments/{live}/outcome"), SHOP, body)).await.status
    };
    let source = async |number: &str| site.world.assess(&of_a_known_payer(number)).await.json()["source"].clone();
    assert_eq!(report("legitimate").await, 201);
    assert_eq!(source("T2").await, "cached");
    assert_eq!(report("chargeback").await, 201);
    assert_eq!(source("T3").await, "live");
    assert_eq!(site.world.scorings(), 2);
}
