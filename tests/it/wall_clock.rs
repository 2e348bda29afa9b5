//! The wall clock of a real process jumps, and only dates change. Needs libfaketime (Debian's package `faketime`).

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{Sandbox, Site, run, wait_until, weighbridge};

/// Where Debian puts it, whatever the processor.
fn library() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten();
    let found = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect("libfaketime is not installed: apt-get install faketime")
}

fn post(sandbox: &Sandbox, path: &str, body: &Value) -> Value {
    let key = [("authorization".to_owned(), format!("Bearer {}", sandbox.key))];
    let answer = sandbox.client().call("POST", path, &key, &body.to_string()).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}\n{}", sandbox.log());
    answer.json()
}

fn pay(sandbox: &Sandbox, out_trade_no: &str) -> Value {
    let body = json!({
        "out_trade_no": out_trade_no, "total_amount": "1.00", "currency": "CNY", "subject": "clock",
        "merchant": { "id": "m1" }, "user": { "id": "u1" },
    });
    post(sandbox, "/v1/risk/assessments", &body)
}

/// A process whose wall clock says what the file `clock` says.
fn start(site: &Site, arguments: &[&str]) -> Sandbox {
    site.write("clock", "+0s\n");
    let (preload, clock) = (library().display().to_string(), site.path("clock").display().to_string());
    let variables = [
        ("LD_PRELOAD", preload.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", clock.as_str()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    Sandbox::start_with(site, &variables, arguments)
}

#[test]
fn row_30_whatever_the_wall_clock_does_decisions_answers_and_the_record_go_on() {
    let site = Site::new();
    let sandbox = start(&site, &["--data-dir", "kept"]);
    let first = pay(&sandbox, "T-first");
    let year = |decision: &Value| decision["created_at"].as_str().unwrap()[..4].parse::<i32>().unwrap();
    let today = year(&first);
    for (step, (jump, moved)) in
        [("+3600s", 0), ("-3600s", 0), ("+315576000s", 10), ("@1970-01-02 00:00:00", 1970 - today), ("+0s", 0)]
            .into_iter()
            .enumerate()
    {
        site.write("clock", &format!("{jump}\n"));
        for number in 0..5 {
            let decision = pay(&sandbox, &format!("T-{step}-{number}"));
            assert_eq!(decision["source"], "live", "{jump}: {decision}");
            // A jump near New Year's Eve may show the other year.
            assert!((year(&decision) - today - moved).abs() <= 1, "{jump}: {decision}");
        }
        assert_eq!(pay(&sandbox, "T-first")["id"], first["id"], "{jump}: what was decided stays decided");
        let asked = json!({ "model": "summary", "messages": [{ "role": "user", "content": "hi" }] });
        assert!(
            post(&sandbox, "/v1/chat/completions", &asked)["choices"][0]["message"]["content"].is_string(),
            "{jump}"
        );
    }
    let status = sandbox.status().to_string();
    assert!(!status.contains("\"open\"") && !status.contains("half"), "no breaker moved: {status}");
    // A reload is a file's doing, not the clock's.
    let version = sandbox.version();
    site.replace("routes.toml", &crate::process::routes_with("later"));
    wait_until(Duration::from_secs(10), "the reload", || sandbox.version() != version);
    sandbox.signal("TERM");
    let (ended, log) = sandbox.ended(Duration::from_secs(30));
    assert!(ended.success(), "{log}");
    let verified = run(weighbridge().args(["audit", "verify", "--data-dir"]).arg(site.path("kept")));
    assert_eq!(verified.code, Some(0), "{}", verified.err);
    let exported = run(weighbridge().args(["audit", "export", "--data-dir"]).arg(site.path("kept"))).out;
    let rows: Vec<Value> = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = rows.iter().map(|row| row["out_trade_no"].as_str().unwrap()).collect();
    let decided = (0..5).flat_map(|step| (0..5).map(move |number| format!("T-{step}-{number}")));
    assert_eq!(names, std::iter::once("T-first".to_owned()).chain(decided).collect::<Vec<_>>(), "in order, once each");
}

#[test]
fn a_process_that_nobody_asks_anything_forgets_a_person_when_the_day_has_come() {
    let site = Site::new();
    let law = "\n[jurisdiction.TH]\nretention = \"1d\"\n";
    site.write("routes.toml", &format!("{}{law}", crate::process::routes_with("kept")));
    let sandbox = start(&site, &["--data-dir", "kept"]);
    site.write("clock", "@2026-11-20 12:00:00\n");
    let body = json!({
        "out_trade_no": "T1", "total_amount": "1.00", "currency": "CNY", "subject": "clock",
        "merchant": { "id": "m1" }, "user": { "id": "payer-17", "country": "TH", "phone": "0812345678" },
    });
    let decided = post(&sandbox, "/v1/risk/assessments", &body);
    let exported = || run(weighbridge().args(["audit", "export", "--data-dir"]).arg(site.path("kept"))).out;
    let readable = || exported().contains("payer-17");
    assert!(readable(), "{}", exported());
    site.write("clock", "@2026-11-21 23:50:00\n");
    thread::sleep(Duration::from_secs(1));
    assert!(readable(), "its last day is not over");
    site.write("clock", "@2026-11-22 00:00:01\n");
    wait_until(Duration::from_secs(30), "the person being forgotten", || !readable());
    assert!(exported().contains(decided["id"].as_str().unwrap()), "the decision stays");
    sandbox.signal("TERM");
    assert!(sandbox.ended(Duration::from_secs(30)).0.success());
    let verified = run(weighbridge().args(["audit", "verify", "--data-dir"]).arg(site.path("kept")));
    assert_eq!(verified.code, Some(0), "{}", verified.err);
}
