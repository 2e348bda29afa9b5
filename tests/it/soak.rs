//! Hours in seconds: everything callers do, at once, against the built program, and afterwards it is no larger than before
//! (pain 31: others grow until they are killed).
//!
//! A few seconds here; `WEIGHBRIDGE_SOAK_SECONDS` makes it as long as wished. Measured from outside, after a warm-up and at
//! the end: memory, open files, sockets among them, threads, and series in `/metrics`.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{Client, PATIENCE, Sandbox, Site, wait_until};

/// How long it goes on if nobody says.
const USUAL_SECONDS: u64 = 4;
/// Callers at a time.
const CALLERS: u64 = 32;
/// What memory may differ by: the allocator keeps what it once had, and the record of recent calls fills up. A leak of a
/// hundred bytes a call is more than that in an hour.
const SLACK_KIB: u64 = 24 * 1_024;

/// What the process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    memory_kib: u64,
    files: usize,
    threads: u64,
    series: usize,
}

fn status(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn held(sandbox: &Sandbox) -> Held {
    let series = sandbox.admin_get("/metrics").body.lines().filter(|line| !line.starts_with('#')).count();
    let pid = sandbox.pid();
    Held { memory_kib: status(pid, "VmRSS:"), files: files(pid), threads: status(pid, "Threads:"), series }
}

/// A body that is another one at each call.
fn body(number: u64, model: &str, path: &str, stream: bool) -> Value {
    let text = format!("question {number} {}", "x".repeat((number % 7 * 3_000) as usize));
    let mut body = json!({ "model": model, "stream": stream, "user": format!("user-{number}") });
    match path {
        "/v1/responses" => body["input"] = json!(text),
        _ => body["messages"] = json!([{ "role": "user", "content": text }]),
    }
    if path == "/v1/messages" {
        body["max_tokens"] = json!(100);
        body.as_object_mut().unwrap().remove("user");
    }
    body
}

/// One thing that callers do. What becomes of it is other tests' concern; a connection that breaks is a mistake here.
fn act(number: u64, data: SocketAddr, key: &str) -> io::Result<()> {
    let paths = ["/v1/chat/completions", "/v1/responses", "/v1/messages"];
    let path = paths[(number % 3) as usize];
    let models =
        ["sandbox/steady", "sandbox/steady", "summary", "sandbox/fail-cut", "sandbox/fail-429", "no-such-model"];
    let model = models[(number / 3 % 6) as usize];
    let stream = number.is_multiple_of(2);
    let headers = [
        ("authorization".to_owned(), format!("Bearer {key}")),
        ("user-agent".to_owned(), format!("soak/{number}")),
        ("wb-timeout-ms".to_owned(), "3000".to_owned()),
        ("idempotency-key".to_owned(), format!("soak-{}", number / 2)),
    ];
    let body = body(number, model, path, stream).to_string();
    // Every fifth leaves before its answer, or in the middle of it.
    if number.is_multiple_of(5) {
        let mut io = TcpStream::connect_timeout(&data, PATIENCE)?;
        let named: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("POST {path} HTTP/1.1\r\nhost: soak\r\n{named}content-length: {}\r\n\r\n", body.len());
        io.write_all(head.as_bytes())?;
        io.write_all(&body.as_bytes()[..body.len() - (number % 2) as usize])?;
        thread::sleep(Duration::from_millis(number % 60));
        return Ok(());
    }
    Client::to(data).call("POST", path, &headers, &body).map(drop)
}

/// Callers until the time is over; how many calls they made.
fn soak(sandbox: &Sandbox, lasts: Duration, numbers: &Arc<AtomicU64>) -> u64 {
    let (before, over) = (numbers.load(Ordering::Relaxed), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (numbers, over) = (Arc::clone(numbers), Arc::clone(&over));
            let (data, key) = (sandbox.data, sandbox.key.clone());
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    act(numbers.fetch_add(1, Ordering::Relaxed), data, &key).unwrap();
                }
            })
        })
        .collect();
    let begun = Instant::now();
    while begun.elapsed() < lasts {
        thread::sleep(Duration::from_millis(50));
    }
    over.store(true, Ordering::Relaxed);
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    numbers.load(Ordering::Relaxed) - before
}

#[test]
fn pain_31_a_soak_leaves_memory_files_threads_and_series_as_they_were() {
    let seconds = std::env::var("WEIGHBRIDGE_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let lasts = Duration::from_secs(seconds.unwrap_or(USUAL_SECONDS));
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let numbers = Arc::new(AtomicU64::new(0));
    let idle = || {
        let in_flight = |line: &str| line.starts_with("weighbridge_in_flight") && !line.ends_with(" 0");
        wait_until(PATIENCE, "nothing in flight", || !sandbox.admin_get("/metrics").body.lines().any(in_flight));
        held(&sandbox)
    };
    soak(&sandbox, lasts.min(Duration::from_secs(30)), &numbers);
    let warm = idle();
    let calls = soak(&sandbox, lasts, &numbers);
    let last = idle();
    let told = format!("{calls} calls: {warm:?} became {last:?}");
    println!("{told}");
    assert!(calls >= 40, "{told}");
    assert!(last.memory_kib <= warm.memory_kib + SLACK_KIB, "{told}");
    // One that has a reason of its own may be seen for the first time; what callers say would make one for each call.
    assert!(last.series <= warm.series + 40, "{told}");
    // Connections that are kept come and go; a leak is one for every call.
    wait_until(PATIENCE, "files closed", || files(sandbox.pid()) <= warm.files + 8);
    assert!(last.threads <= warm.threads + 4, "{told}");
}
