//! How long a person can be read of is the countries' word, kept on schedule; what is answered without a decision is on record.
//!
//! The record has a real thread and a real disk, so time is real here; days are let pass by the record's own calendar.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;
use weighbridge::store::book::{self, Book};
use weighbridge::store::db::FILE;
use weighbridge::store::writer::{Fault, Faults};

use crate::harness::*;
use crate::process::{Ended, run, weighbridge};

const LAWS: &str = r#"
[jurisdiction.TH]
retention = "1d"
redact = ["name", "phone", "national-id", "email"]

[jurisdiction.DE]
retention = "30d"

[jurisdiction.default]
retention = "365d"
"#;

struct Site {
    world: World,
    folder: TempDir,
    faults: Faults,
}

impl Site {
    fn new(laws: &str) -> Self {
        Self::with(plan(laws), tempfile::tempdir().unwrap())
    }

    fn with(plan: Plan, folder: TempDir) -> Self {
        let faults = Faults::default();
        let record = Some((folder.path().to_owned(), faults.clone()));
        Self { world: World::with(&Plan { record, ..plan }), folder, faults }
    }

    async fn decide(&self, number: &str, payer: Option<&str>, merchant: Option<&str>) -> Value {
        let answer = self.world.assess(&between(number, payer, merchant)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Lets days pass, and the record look at them: it does so with the next entries.
    async fn later(&self, days: u32) {
        self.faults.days_later(days);
        for number in 0..3 {
            self.decide(&format!("later-{days}-{number}"), None, None).await;
        }
    }

    async fn read(&self, decided: &Value) -> Value {
        let path = format!("/v1/risk/assessments/{}", decided["id"].as_str().unwrap());
        let answer = self.world.call(get(&path, SHOP)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    fn stop(self) -> TempDir {
        self.world.shared.clerk.as_ref().unwrap().records().stop();
        self.folder
    }
}

fn plan(laws: &str) -> Plan {
    let plan = Plan::default();
    Plan { routes: format!("{}{laws}", plan.routes), ..plan }
}

fn between(number: &str, payer: Option<&str>, merchant: Option<&str>) -> Value {
    let mut body = payment(number, "88.13");
    body["user"] =
        json!({ "id": format!("u-{number}"), "country": payer, "email": "CANARY-mail", "phone": "CANARY-phone" });
    body["merchant"] = json!({ "id": "m1", "country": merchant });
    for side in ["user", "merchant"] {
        let side = body[side].as_object_mut().unwrap();
        side.retain(|_, value| !value.is_null());
    }
    body
}

fn audit(folder: &Path, arguments: &[&str]) -> Ended {
    let (command, rest) = arguments.split_first().unwrap();
    run(weighbridge().args(["audit", command, "--data-dir"]).arg(folder).args(rest))
}

fn bodies(folder: &Path, kind: &str) -> Vec<Value> {
    let db = Connection::open(folder.join(FILE)).unwrap();
    let mut statement = db.prepare("SELECT body FROM records WHERE kind = ?1 ORDER BY seq").unwrap();
    let bodies = statement.query_map([kind], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    bodies.map(|body| serde_json::from_slice(&body.unwrap()).unwrap()).collect()
}

/// For how many days each decision is kept, in order.
fn days(folder: &Path) -> Vec<Option<i64>> {
    let day = |text: &str| {
        let form = time::macros::format_description!("[year]-[month]-[day]");
        i64::from(time::Date::parse(text, form).unwrap().to_julian_day())
    };
    let days = |body: &Value| {
        let decided = body["created_at_ms"].as_i64().unwrap() / 86_400_000;
        let epoch = day("1970-01-01");
        body["kept_until"].as_str().map(|until| day(until) - epoch - decided)
    };
    bodies(folder, "decision").iter().map(days).collect()
}

#[tokio::test]
async fn a_decision_under_a_short_law_is_unreadable_after_its_day_and_anothers_is_not() {
    let site = Site::new(LAWS);
    let (thai, german) = (site.decide("T1", Some("TH"), None).await, site.decide("T2", Some("DE"), None).await);
    site.later(1).await;
    assert_eq!(site.read(&thai).await, thai);
    site.later(2).await;
    let left = site.read(&thai).await;
    for same in ["id", "action", "recommendation", "risk_score", "policy", "provider", "cost", "created_at"] {
        assert_eq!(left[same], thai[same], "{same}: what was decided can still be read");
    }
    assert_eq!(site.read(&german).await, german);
    assert!((site.world.metric("weighbridge_audit_expired_keys_total", &[]) - 1.0).abs() < 1e-9);
    let folder = site.stop();
    let verified = audit(folder.path(), &["verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.err);
    assert!(verified.out.contains("7 personal parts can be read, 1 key is destroyed"), "{}", verified.out);
    let exported = audit(folder.path(), &["export"]);
    let rows: Vec<Value> = exported.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&rows[0]["id"], &rows[0]["user_id"], &rows[0]["country"]), (&thai["id"], &Value::Null, &Value::Null));
    assert_eq!((&rows[1]["user_id"], &rows[1]["country"]), (&json!("u-T2"), &json!("DE")));
    assert_eq!((&rows[0]["action"], &rows[0]["amount"]), (&thai["action"], &json!("88.13")));
}

#[tokio::test]
async fn the_strictest_of_payer_and_merchant_decides_how_long() {
    let site = Site::new(LAWS);
    let pairs = [
        (Some("TH"), Some("DE")),
        (Some("DE"), Some("TH")),
        (Some("CN"), Some("DE")),
        (None, Some("DE")),
        (Some("CN"), Some("FR")),
        (None, None),
    ];
    for (index, (payer, merchant)) in pairs.into_iter().enumerate() {
        site.decide(&format!("T{index}"), payer, merchant).await;
    }
    assert_eq!(days(site.stop().path()), [1, 1, 30, 30, 365, 365].map(Some));
}

#[tokio::test]
async fn laws_change_with_a_reload_for_what_is_decided_from_then_on() {
    let site = Site::new("");
    site.decide("T1", Some("TH"), None).await;
    site.world.reload(&plan(LAWS));
    site.decide("T2", Some("TH"), None).await;
    site.world.reload(&plan("[jurisdiction.TH]\nretention = \"7d\"\n"));
    site.decide("T3", Some("TH"), None).await;
    site.decide("T4", Some("DE"), None).await;
    assert_eq!(days(site.stop().path()), [None, Some(1), Some(7), None]);
}

#[tokio::test]
async fn an_attempt_that_is_answered_without_a_decision_is_on_record_with_why() {
    let site = Site::with(
        Plan {
            routes: Plan::replacing("on_exhausted = \"review\"", "on_exhausted = \"error\"").routes + LAWS,
            ..Plan::default()
        },
        tempfile::tempdir().unwrap(),
    );
    site.world.fault("alipay", "status:500");
    let refused = site.world.assess(&between("T1", Some("DE"), Some("CN"))).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    // The answer does not change, and does not wait, where that cannot be recorded.
    site.faults.set(Fault::Write);
    assert_eq!(site.world.assess(&between("T2", None, None)).await.status, 503);
    assert!((site.world.metric("weighbridge_audit_unrecorded_total", &["result=\"refused\""]) - 1.0).abs() < 1e-9);
    site.faults.set(Fault::None);
    // Somebody else's mistake is no refusal of ours.
    let id = refused.header("x-request-id").to_owned();
    let folder = site.stop();
    let told = bodies(folder.path(), "refusal");
    assert_eq!((told.len(), &told[0]["request_id"]), (1, &json!(id)));
    assert_eq!(
        (&told[0]["out_trade_no"], &told[0]["amount"], &told[0]["merchant_country"]),
        (&json!("T1"), &json!("88.13"), &json!("CN"))
    );
    assert_eq!((&told[0]["reason"], &told[0]["rule"]), (&json!("provider_unavailable"), &json!("default")));
    assert!(!told[0]["attempts"].as_array().unwrap().is_empty() && told[0]["kept_until"].is_string());
    assert!(!told[0].to_string().contains("CANARY"));
    assert_eq!(audit(folder.path(), &["export"]).out, "", "it is no decision");
    let verified = audit(folder.path(), &["verify"]);
    assert_eq!((verified.code, verified.out.contains("1 personal part can be read")), (Some(0), true), "{verified:?}");
}

#[tokio::test]
async fn a_repeat_of_an_erased_payment_gets_its_decision_also_after_a_restart() {
    let site = Site::new("");
    let first = site.decide("T1", None, None).await;
    let folder = site.stop();
    let keys = book::keys(folder.path()).unwrap();
    assert!(Book::open(folder.path(), keys).unwrap().erase("shop-eu", "u-T1").unwrap().is_some());
    let again = Site::with(plan(""), folder);
    let repeated = again.decide("T1", None, None).await;
    assert_eq!((&repeated["id"], &repeated["action"]), (&first["id"], &first["action"]));
    assert_eq!(repeated["source"], "replayed");
    let mut other = between("T1", None, None);
    other["total_amount"] = json!("88.14");
    assert_eq!(again.world.assess(&other).await.status, 409);
    assert_eq!(again.world.scorings(), 0);
    // And nothing of the person is on record again.
    sleep(Duration::from_millis(50)).await;
    let folder = again.stop();
    assert!(audit(folder.path(), &["verify"]).out.contains("0 personal parts can be read, 1 key is destroyed"));
}
