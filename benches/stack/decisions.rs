//! What a decision costs that is on disk before it is given, and what one costs that is given again from memory.
//!
//! Payments of their own over kept-alive connections against the simulated Alipay on loopback: as many as go in a closed
//! loop, then 2,000 a second. The proxy and its disk thread have one core, load and provider the other; a last row has all
//! of them on both cores. The overhead is the proxy's own word (`wb-overhead-us`: from arrival until the answer's head, the
//! provider's time taken off, the wait for the disk included); beside it the same less that wait (`record` in
//! `server-timing`).

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};

use crate::deadline::{Provider, ROUTES, whole_message};
use crate::load::{find, percentile};
use crate::process::{Pinned, Proxy};

const CONNECTIONS: u64 = 64;
/// Where as many decisions as possible are wanted from both cores: what waits for one commit goes into the next.
const MANY_CONNECTIONS: u64 = 256;
const RATE: u32 = 2_000;

const REUSE: &str = r#"reuse = { mode = "first", ttl = "1h", max_amount = "1000000.00 CNY", max_sum = "1000000.00 CNY", max_uses = 1000, self_audit = 0.01 }
"#;

/// Both kinds at both paces.
pub fn run(pinned: &Pinned, seconds: f64) {
    println!("{CONNECTIONS} connections, {seconds} s a phase, {RATE} a second where it is open, {pinned}\n");
    println!(
        "{:<27}{:>12}{:>9}{:>9}{:>9}{:>14}{:>14}{:>16}{:>13}",
        "",
        "decisions/s",
        "CPU us",
        "p50 ms",
        "p99 ms",
        "overhead p50",
        "overhead p99",
        "p99 less commit",
        "from memory"
    );
    let phase = Duration::from_secs_f64(seconds);
    for (name, routes) in [("live", ROUTES.to_owned()), ("reuse = first", format!("{ROUTES}{REUSE}"))] {
        let provider = Provider::sound();
        let proxy = Proxy::configured(pinned, &routes, &provider.file());
        // The first of a payer must have been decided before others can be like it.
        let _ = pay(&proxy, None, CONNECTIONS, Duration::from_millis(200));
        for (pace, rate) in [("closed loop", None), ("open", Some(RATE))] {
            measure(&format!("{name}, {pace}"), &proxy, rate, CONNECTIONS, phase);
        }
    }
    pinned.release_self();
    let provider = Provider::sound();
    let proxy = Proxy::configured(&Pinned::nowhere(), ROUTES, &provider.file());
    let _ = pay(&proxy, None, MANY_CONNECTIONS, Duration::from_millis(200));
    measure("live, closed, both cores", &proxy, None, MANY_CONNECTIONS, phase);
}

fn measure(name: &str, proxy: &Proxy, rate: Option<u32>, connections: u64, phase: Duration) {
    let before = proxy.cpu();
    let told = pay(proxy, rate, connections, phase);
    let cpu = proxy.cpu().checked_sub(before).unwrap_or_default();
    print(name, &told, cpu);
}

fn print(name: &str, told: &Told, cpu: Duration) {
    let took = sorted(&told.answers, |answer| answer.took);
    let overhead = sorted(&told.answers, |answer| answer.overhead);
    let own = sorted(&told.answers, |answer| answer.overhead.saturating_sub(answer.record));
    let (done, cached) = (told.answers.len() as f64, told.answers.iter().filter(|answer| answer.cached).count() as f64);
    let ms = |times: &[Duration], share| percentile(times, share) / 1e3;
    println!(
        "{name:<27}{:>12.0}{:>9.1}{:>9.2}{:>9.2}{:>14.2}{:>14.2}{:>16.2}{:>11.0} %{}",
        done / told.ran.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / done,
        ms(&took, 0.50),
        ms(&took, 0.99),
        ms(&overhead, 0.50),
        ms(&overhead, 0.99),
        ms(&own, 0.99),
        100.0 * cached / done,
        if told.errors > 0 { format!("  {} ERRORS", told.errors) } else { String::new() },
    );
}

fn sorted(answers: &[Answer], time: fn(&Answer) -> Duration) -> Vec<Duration> {
    let mut times: Vec<Duration> = answers.iter().map(time).collect();
    times.sort_unstable();
    times
}

struct Answer {
    took: Duration,
    overhead: Duration,
    /// Of it, the wait for the disk.
    record: Duration,
    cached: bool,
}

struct Told {
    answers: Vec<Answer>,
    errors: u64,
    ran: Duration,
}

struct Shared {
    to: SocketAddr,
    key: &'static str,
    start: Instant,
    end: Instant,
    rate: Option<u32>,
    sent: Cell<u64>,
    errors: Cell<u64>,
    answers: RefCell<Vec<Answer>>,
}

fn pay(proxy: &Proxy, rate: Option<u32>, connections: u64, time: Duration) -> Told {
    let start = Instant::now();
    let shared = Rc::new(Shared {
        to: proxy.address(),
        key: proxy.key(),
        start,
        end: start + time,
        rate,
        sent: Cell::new(0),
        errors: Cell::new(0),
        answers: RefCell::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let payers: Vec<_> = (0..connections).map(|payer| spawn_local(one_payer(payer, Rc::clone(&shared)))).collect();
        for payer in payers {
            payer.await.unwrap();
        }
    });
    Told { answers: shared.answers.take(), errors: shared.errors.get(), ran: start.elapsed() }
}

/// A connection is a payer with a card and a device of its own.
async fn one_payer(payer: u64, shared: Rc<Shared>) {
    let mut io = TcpStream::connect(shared.to).await.unwrap();
    io.set_nodelay(true).unwrap();
    loop {
        let number = shared.sent.get();
        shared.sent.set(number + 1);
        let mut due = Instant::now();
        if let Some(rate) = shared.rate {
            let wanted = shared.start + Duration::from_secs_f64(number as f64 / f64::from(rate));
            tokio::time::sleep_until(wanted.into()).await;
            // What waited for a free connection counts from when it should have left, less our timer's own lateness.
            due = if due > wanted { wanted } else { Instant::now() };
        }
        if due >= shared.end {
            return;
        }
        io.write_all(&request(&shared, payer, number)).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(20), whole_message(&mut io)).await;
        let answer = answer.ok().flatten().unwrap_or_default();
        let took = due.elapsed();
        let live = find(&answer, br#""source":"live""#).is_some();
        let cached = find(&answer, br#""source":"cached""#).is_some();
        if answer.starts_with(b"HTTP/1.1 200") && (live || cached) {
            shared.answers.borrow_mut().push(Answer {
                took,
                overhead: overhead(&answer),
                record: recording(&answer),
                cached,
            });
        } else {
            shared.errors.set(shared.errors.get() + 1);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn request(shared: &Shared, payer: u64, number: u64) -> Vec<u8> {
    // Unique over all phases: each has a start of its own.
    let run = shared.end.duration_since(shared.start).as_millis() + u128::from(shared.rate.unwrap_or(1));
    let body = format!(
        r#"{{"out_trade_no":"T{run}-{number}","total_amount":"1.00","currency":"CNY","subject":"bench","merchant":{{"id":"m1","country":"CN"}},"user":{{"id":"u{payer}","country":"CN"}},"instrument":{{"type":"card","fingerprint":"f{payer}","bin":"621234","last4":"1234"}},"device":{{"id":"d{payer}","ip":"203.0.113.7","known_since":"2025-06-01T00:00:00Z"}}}}"#
    );
    let head = format!(
        "POST /v1/risk/assessments HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        shared.to,
        shared.key,
        body.len()
    );
    [head, body].concat().into_bytes()
}

fn recording(answer: &[u8]) -> Duration {
    let name = b"record;dur=";
    let Some(at) = find(answer, name) else { return Duration::ZERO };
    let rest = answer[at + name.len()..].iter().take_while(|byte| !byte.is_ascii_whitespace());
    let number: String = rest.map(|byte| char::from(*byte)).collect();
    Duration::from_secs_f64(number.parse::<f64>().unwrap_or_default() / 1e3)
}

fn overhead(answer: &[u8]) -> Duration {
    let name = b"wb-overhead-us: ";
    let digits = find(answer, name).and_then(|at| answer.get(at + name.len()..)).unwrap_or_default();
    let number: String = digits.iter().take_while(|byte| byte.is_ascii_digit()).map(|byte| char::from(*byte)).collect();
    Duration::from_micros(number.parse().unwrap_or(u64::MAX / 1_000))
}
