//! The end of the built program: nothing that can still finish is cut, and it ends when it said it would (row 42).

use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::machine::Stopwatch;
use crate::process::{Client, PATIENCE, Sandbox, Site, Traffic, wait_of_its_own};

fn access_lines(log: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
    lines.filter(|line| line.get("call.id").is_some()).collect()
}

#[test]
fn row_42_sigterm_cuts_no_request_that_can_finish_and_tells_the_others_once() {
    // Long enough for the short streams on a machine that has little time for them.
    let limit = Duration::from_secs(8);
    let sandbox = Sandbox::start(&Site::new(), &["--drain-timeout", "8s"]);
    let traffic = Traffic::start(&sandbox, 20);
    let long: Vec<_> = (0..10).map(|_| sandbox.stream("sandbox/steady", 1_000)).collect();
    let short: Vec<_> = (0..10).map(|_| sandbox.stream("sandbox/steady", 40)).collect();
    let mut watcher = Client::to(sandbox.admin);
    assert_eq!(watcher.call("GET", "/readyz", &[], "").unwrap().status, 200);

    let told = Stopwatch::of(sandbox.pid());
    sandbox.signal("TERM");
    let unready = wait_of_its_own(sandbox.pid(), Duration::from_millis(500), "readiness to go", || {
        Client::to(sandbox.admin).call("GET", "/readyz", &[], "").unwrap().status == 503
    });
    println!("unready after {unready:?}");
    let (admin, data) = (sandbox.admin, sandbox.data);
    assert_eq!(Client::to(admin).call("GET", "/livez", &[], "").unwrap().status, 200, "alive until the end");
    wait_of_its_own(sandbox.pid(), Duration::from_millis(1000), "the data port to close", || {
        TcpStream::connect(data).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });

    for stream in short {
        let text = stream.rest().unwrap();
        assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\""), "{text}");
    }
    assert!(told.elapsed() < limit, "the short ones were not waited for but finished");
    for stream in long {
        let text = stream.rest().unwrap();
        let events: Vec<_> = text.split("\n\n").filter(|event| event.starts_with("data: ")).collect();
        let last: Value = serde_json::from_str(events.last().unwrap().strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!((&last["error"]["code"], text.contains("[DONE]")), (&json!("shutting_down"), false), "{last}");
        assert_eq!(text.matches("\"error\"").count(), 1, "{last}");
        assert!(last["error"]["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{last}");
    }
    let (status, log) = sandbox.ended(limit + Duration::from_secs(2));
    assert!(told.elapsed() < limit + Duration::from_secs(2), "{:?}", told.elapsed());
    assert_eq!(status.code(), Some(0), "{log}");

    let answers = traffic.all_answered();
    let lines = access_lines(&log);
    assert_eq!(lines.len(), answers.len() + 20, "one line for each request");
    for answer in answers {
        let id = answer.header("x-request-id").unwrap();
        assert_eq!(lines.iter().filter(|line| line["call.id"] == id).count(), 1, "{id}");
    }
    let ended = lines.iter().filter(|line| line["outcome"] == "shutting_down").count();
    assert_eq!(ended, 10);
    assert!(log.contains("\"drained\"") && log.contains("\"ended\":10"), "{log}");
}

#[test]
fn row_42_an_idle_proxy_ends_at_once() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let mut kept = sandbox.client();
    assert_eq!(kept.chat(&sandbox.key, "sandbox/steady", &json!({})).unwrap().status, 200);
    sandbox.signal("TERM");
    let told = Stopwatch::of(sandbox.pid());
    let (status, _) = sandbox.ended(Duration::from_secs(2));
    assert_eq!(status.code(), Some(0));
    assert!(
        told.elapsed() < Duration::from_secs(1),
        "an idle kept connection is no reason to wait: {:?}",
        told.elapsed()
    );
}

#[test]
fn row_42_a_second_signal_stops_at_once_and_an_echo_of_the_first_does_not() {
    let sandbox = Sandbox::start(&Site::new(), &["--drain-timeout", "30s"]);
    let stream = sandbox.stream("sandbox/steady", 1000);
    // `timeout` and process groups deliver one signal twice.
    let twice = format!("kill -TERM {0}; kill -TERM {0}", sandbox.pid());
    assert!(Command::new("sh").args(["-c", &twice]).status().unwrap().success());
    thread::sleep(Duration::from_millis(400));
    assert_eq!(sandbox.admin_get("/readyz").body, "draining\n", "still there");
    let told = Stopwatch::of(sandbox.pid());
    sandbox.signal("TERM");
    let (status, log) = sandbox.ended(Duration::from_secs(2));
    assert!(told.elapsed() < Duration::from_secs(1), "{:?}", told.elapsed());
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("second signal"), "{log}");
    assert!(stream.rest().is_err());
}

#[test]
fn row_42_a_lame_duck_is_unready_and_still_answers_new_connections() {
    let sandbox = Sandbox::start(&Site::new(), &["--drain-delay", "4s", "--drain-timeout", "2s"]);
    let (told, begun) = (Stopwatch::of(sandbox.pid()), Instant::now());
    sandbox.signal("INT");
    wait_of_its_own(sandbox.pid(), Duration::from_millis(500), "readiness to go", || {
        sandbox.admin_get("/readyz").status == 503
    });
    assert_eq!(sandbox.status()["draining"], true);
    while begun.elapsed() < Duration::from_millis(2_500) {
        assert_eq!(sandbox.chat("sandbox/steady", &json!({})).status, 200, "the load balancer has not noticed yet");
    }
    let (status, _) = sandbox.ended(PATIENCE);
    assert_eq!(status.code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(6), "{:?}", told.elapsed());
}
