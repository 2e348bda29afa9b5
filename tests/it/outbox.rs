//! Notices of late verdicts outlive the process that made them: killed, restarted, given up, revived.
//!
//! The receiver is a plain socket, so that what it saw is what was on the wire.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::time::sleep;
use weighbridge::store::outbox::State;
use weighbridge::store::writer::{Fault, Faults};

use crate::audit_process::{audit, key, payment};
use crate::harness::{self, until};
use crate::process::{PATIENCE, Sandbox, Site, repository, wait_until};

/// A webhook's receiver on a port of its own.
struct Receiver {
    port: u16,
    status: Arc<AtomicU16>,
    read: Arc<Mutex<Vec<(String, String)>>>,
}

impl Receiver {
    fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (status, read) = (Arc::new(AtomicU16::new(status)), Arc::<Mutex<Vec<_>>>::default());
        let (now, kept) = (Arc::clone(&status), Arc::clone(&read));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let (mut id, mut length) = (String::new(), 0);
                for line in stream.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
                    if let Some(value) = line.strip_prefix("wb-event-id: ") {
                        value.clone_into(&mut id);
                    }
                    if let Some(value) = line.strip_prefix("content-length: ") {
                        length = value.parse().unwrap();
                    }
                }
                let mut body = vec![0; length];
                // A process that is killed may leave half a notice behind: that was not received.
                if length == 0 || stream.read_exact(&mut body).is_err() {
                    continue;
                }
                kept.lock().unwrap().push((id, String::from_utf8(body).unwrap()));
                let status = now.load(Ordering::SeqCst);
                let _ =
                    write!(stream.get_mut(), "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        });
        Self { port, status, read }
    }

    fn read(&self) -> Vec<(String, String)> {
        self.read.lock().unwrap().clone()
    }

    /// Waits until it has read what was sent to it: connections wait in a queue, and this one is the last of them.
    fn caught_up(&self) {
        let mut last = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        last.shutdown(Shutdown::Write).unwrap();
        assert_eq!(last.read_to_end(&mut Vec::new()).unwrap(), 0, "there was nothing to answer");
    }

    fn answers(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }
}

/// Small amounts pass without a verdict, and the verdict that comes two seconds later is to review them.
fn routes() -> String {
    let text = fs::read_to_string(repository().join("routes.toml")).unwrap();
    let edits = [
        (r#"deadline = "800ms""#, r#"deadline = "500ms""#),
        (r#"audit = "refuse""#, r#"audit = "continue""#),
        ("bands = { pass_below = 0.3, review_from = 0.7 }", "bands = { pass_below = 0.1, review_from = 0.11 }"),
        ("on_exhausted = \"review\"\n", "on_exhausted = { accept_up_to = \"50.00 CNY\" }\n"),
    ];
    // The shipped tests are of the shipped bands.
    let text = text.split("[[test]]").next().unwrap().to_owned();
    edits.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "routes.toml does not say {from}");
        text.replacen(from, to, 1)
    })
}

fn with_webhook(port: u16) -> String {
    let auth = r#"{ kind = "di-hmac", key_id = "hook-1", secret_env = "HOOK", secret_encoding = "hex" }"#;
    let url = format!("http://127.0.0.1:{port}/hooks");
    format!("{}\n[[webhook]]\ntenant = \"sandbox\"\nurl = \"{url}\"\nallow_private = true\nauth = {auth}\n", routes())
}

fn start(site: &Site) -> Sandbox {
    Sandbox::start(site, &["--data-dir", "kept"])
}

/// Served as a PASS; its verdict comes two seconds after it was asked for.
fn late(sandbox: &Sandbox, out_trade_no: &str) -> Value {
    let body = payment(out_trade_no, "u1").replace("\"1.00\"", "\"1.50\"");
    let answer = sandbox.client().call("POST", "/v1/risk/assessments", &key(sandbox), &body).unwrap();
    let answer = answer.json();
    assert_eq!((&answer["action"], &answer["source"]), (&json!("PASS"), &json!("fallback")), "{answer}");
    answer
}

fn notices(folder: &Path, state: &str) -> Vec<Value> {
    let listed = audit(folder, &["notices", "--state", state]);
    assert_eq!((listed.code, listed.err.as_str()), (Some(0), ""));
    listed.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn row_26_a_notice_of_a_killed_process_arrives_after_the_restart_under_its_first_id() {
    let (site, refusing) = (Site::new(), Receiver::start(503));
    let folder = site.path("kept");
    site.write("routes.toml", &with_webhook(refusing.port));
    let sandbox = start(&site);
    let served = late(&sandbox, "T1");
    wait_until(PATIENCE, "the first try to be noted", || {
        notices(&folder, "pending").first().is_some_and(|notice| notice["tries"] != 0)
    });
    sandbox.signal("KILL");
    drop(sandbox);
    refusing.caught_up();
    let (id, body) = refusing.read().first().unwrap().clone();
    let pending = notices(&folder, "pending");
    assert_eq!((pending.len(), &pending[0]["event"], &pending[0]["served"]), (1, &json!(id), &served["id"]));
    let tried = pending[0]["tries"].as_u64().unwrap();

    // Nobody to tell: it waits. Then there is somebody, elsewhere.
    site.write("routes.toml", &routes());
    let sandbox = start(&site);
    assert_eq!(notices(&folder, "pending"), pending);
    let willing = Receiver::start(204);
    site.replace("routes.toml", &with_webhook(willing.port));
    assert_eq!(sandbox.reload().status, 200);
    wait_until(PATIENCE, "the notice", || !willing.read().is_empty());
    assert_eq!(willing.read(), [(id.clone(), body)], "the same bytes from another process");
    wait_until(PATIENCE, "the delivery to be noted", || notices(&folder, "delivered").len() == 1);
    let delivered = &notices(&folder, "delivered")[0];
    assert_eq!((&delivered["event"], &delivered["tries"]), (&json!(id), &json!(tried + 1)));
    assert_eq!(sandbox.status()["webhooks"]["delivered"], 1);
    drop(sandbox);

    let sandbox = start(&site);
    thread::sleep(Duration::from_secs(1));
    assert_eq!((willing.read().len(), notices(&folder, "pending").len()), (1, 0), "delivered is delivered");
    drop(sandbox);
    let verified = audit(&folder, &["verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.err);
}

#[test]
fn row_26_killed_while_verdicts_come_late_each_one_on_record_has_its_notice() {
    let (site, receiver) = (Site::new(), Receiver::start(503));
    let folder = site.path("kept");
    site.write("routes.toml", &with_webhook(receiver.port));
    for round in 0..3_u64 {
        let sandbox = start(&site);
        let before = recorded_late(&folder).len();
        thread::scope(|scope| {
            for number in 0..12 {
                let (sandbox, name) = (&sandbox, format!("R{round}-{number}"));
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(number * 15));
                    late(sandbox, &name);
                });
            }
        });
        wait_until(PATIENCE, "the first late verdicts", || recorded_late(&folder).len() > before);
        thread::sleep(Duration::from_millis(round * 30));
        sandbox.signal("KILL");
        drop(sandbox);
        let (recorded, noticed) = (recorded_late(&folder), noticed(&folder));
        assert_eq!(recorded, noticed, "round {round}");
    }
    let all = noticed(&folder);
    receiver.answers(204);
    let sandbox = start(&site);
    wait_until(PATIENCE, "all of them to be delivered", || notices(&folder, "delivered").len() == all.len());
    drop(sandbox);
    let told: BTreeSet<_> = receiver.read().iter().map(|(_, body)| decision(body)).collect();
    assert_eq!(told, all, "each decision that overtook an answer was told");
}

fn decision(body: &str) -> String {
    let event: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&event["served"]["action"], &event["decision"]["action"]), (&json!("PASS"), &json!("REVIEW")));
    event["decision"]["id"].as_str().unwrap().to_owned()
}

fn ids(folder: &Path, question: &str) -> BTreeSet<String> {
    let db = Connection::open(folder.join("decisions.db")).unwrap();
    let mut statement = db.prepare(question).unwrap();
    let ids = statement.query_map([], |row| row.get(0)).unwrap();
    ids.collect::<Result<_, _>>().unwrap()
}

fn recorded_late(folder: &Path) -> BTreeSet<String> {
    ids(
        folder,
        "SELECT id FROM records WHERE kind = 'decision' AND json_extract(CAST(body AS TEXT), '$.instead_of') IS NOT NULL",
    )
}

fn noticed(folder: &Path) -> BTreeSet<String> {
    ids(folder, "SELECT decision FROM notices")
}

#[test]
fn dead_letters_stay_to_be_seen_and_can_be_sent_again_or_dropped() {
    let (site, receiver) = (Site::new(), Receiver::start(503));
    let folder = site.path("kept");
    site.write("routes.toml", &with_webhook(receiver.port));
    let sandbox = start(&site);
    late(&sandbox, "T1");
    late(&sandbox, "T2");
    late(&sandbox, "T3");
    wait_until(PATIENCE, "the first tries", || {
        let pending = notices(&folder, "pending");
        pending.len() == 3 && pending.iter().all(|notice| notice["tries"] != 0)
    });
    sandbox.signal("KILL");
    drop(sandbox);
    // An hour of refusals later.
    let db = Connection::open(folder.join("decisions.db")).unwrap();
    db.execute("UPDATE notices SET state = 'dead', tries = 7, failure = 'the receiver did not answer 2xx'", [])
        .unwrap();
    drop(db);
    receiver.caught_up();
    let tried = receiver.read().len();
    let sandbox = start(&site);
    wait_until(PATIENCE, "the dead letters", || sandbox.status()["webhooks"]["dead"].as_array().unwrap().len() == 3);
    let dead = sandbox.status()["webhooks"]["dead"].clone();
    assert_eq!((&dead[0]["tries"], &dead[0]["kept"], &dead[0]["tenant"]), (&json!(7), &json!(true), &json!("sandbox")));
    let events: Vec<_> = (0..3).map(|number| dead[number]["event"].as_str().unwrap().to_owned()).collect();

    // No such notice is another end than an argument that is none; an id may begin with a hyphen.
    for unknown in ["nothing", "-nothing"] {
        for what in ["--resend", "--drop"] {
            assert_eq!(audit(&folder, &["notices", what, unknown]).code, Some(1), "{what} {unknown}");
        }
    }
    receiver.answers(200);
    let again = audit(&folder, &["notices", "--resend", &events[0]]);
    assert!(again.out.starts_with("1 notice will be sent again"), "{again:?}");
    wait_until(PATIENCE, "the revived one", || receiver.read().len() > tried);
    assert_eq!(receiver.read().last().unwrap().0, events[0]);
    wait_until(PATIENCE, "its delivery", || notices(&folder, "delivered").len() == 1);
    let dropped = audit(&folder, &["notices", "--drop", "all"]);
    assert!(dropped.out.starts_with("2 notices dropped"), "{dropped:?}");
    assert_eq!(notices(&folder, "dead").len(), 0);
    wait_until(PATIENCE, "nobody to be seen", || sandbox.status()["webhooks"]["dead"] == json!([]));
    assert_eq!(receiver.read().len(), tried + 1);
}

#[test]
fn s11_the_outbox_repeats_nothing_that_is_about_a_person() {
    let (site, receiver) = (Site::new(), Receiver::start(503));
    let folder = site.path("kept");
    site.write("routes.toml", &with_webhook(receiver.port));
    let sandbox = start(&site);
    late(&sandbox, "T1");
    wait_until(PATIENCE, "the notice", || notices(&folder, "pending").len() == 1);
    wait_until(PATIENCE, "the first try", || !receiver.read().is_empty());
    assert!(receiver.read()[0].1.contains("nothing unusual about this payment"), "it is told");
    sandbox.signal("KILL");
    drop(sandbox);
    let erased = audit(&folder, &["erase", "--tenant", "sandbox", "--user", "u1"]);
    assert_eq!(erased.code, Some(0), "{}", erased.err);
    receiver.caught_up();
    receiver.answers(204);
    let before = receiver.read().len();
    let _sandbox = start(&site);
    wait_until(PATIENCE, "the notice again", || receiver.read().len() > before);
    let (id, body) = receiver.read().last().unwrap().clone();
    assert_eq!(id, receiver.read()[0].0);
    assert!(!body.contains("nothing unusual"), "who was forgotten is forgotten: {body}");
}

#[tokio::test]
async fn while_the_record_cannot_be_written_a_notice_is_sent_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let auth = r#"{ kind = "di-hmac", key_id = "hook-1", secret_env = "ALIPAY_KEY", secret_encoding = "hex" }"#;
    let hook = format!(
        "[[webhook]]\ntenant = \"shop-eu\"\nurl = \"http://10.9.9.9/h\"\nallow_private = true\nauth = {auth}\n\n[risk]\naudit = \"continue\""
    );
    let plan = harness::Plan::replacing("[risk]", &hook);
    let record = Some((folder.path().to_owned(), faults.clone()));
    let world = harness::World::with(&harness::Plan { record, ..plan });
    world.net.always("10.9.9.9", harness::says("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"));
    let reader = Arc::clone(world.shared.clerk.as_ref().unwrap().records().reader().unwrap());
    for (name, fault, kept) in [("T1", Fault::Write, 0), ("T2", Fault::None, 1)] {
        faults.set(fault);
        world.faults("alipay", &["delay:2s"]);
        let served = world.assess(&harness::payment(name, "1.91")).await.json();
        assert_eq!((&served["action"], &served["source"]), (&json!("REVIEW"), &json!("fallback")));
        let count = |state| reader.notices(state, 10).unwrap().len();
        let seen = || (world.shared.notices.pending(), count(State::Pending), count(State::Delivered));
        until("the notice to be delivered", || world.net.dialled("10.9.9.9") > kept && seen() == (0, 0, kept)).await;
        sleep(Duration::from_millis(100)).await;
        assert_eq!(seen(), (0, 0, kept), "and nothing after it");
    }
    assert_eq!((world.shared.notices.delivered(), world.net.dialled("10.9.9.9")), (2, 2));
}
