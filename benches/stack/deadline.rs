//! The deadline of the risk route in real time: under each fault of its provider, 200 payments at 100 a second over
//! loopback, each on a connection of its own and counted from before it connects.
//!
//! The tests say the same with a paused clock; this says that a real machine's timers and sockets keep it too. The run
//! fails if one answer of the table is later than the deadline and 20 ms, or is no decision.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};
use weighbridge::domain::secret::Secret;
use weighbridge::sandbox::alipay::{Alipay, AlipayConfig};
use weighbridge::sandbox::fault::{Fault, Faults};
use weighbridge::sandbox::listen;

use crate::load::{find, percentile};
use crate::process::{Pinned, Proxy};

const DEADLINE: Duration = Duration::from_millis(800);
/// What a machine may take to notice.
const ALLOWED: Duration = Duration::from_millis(20);
const CALLS: u32 = 200;
const APART: Duration = Duration::from_millis(10);

/// What is wrong with the provider.
#[derive(Clone, Copy)]
enum Wrong {
    /// Nothing: for comparison.
    Nothing,
    /// Nobody listens.
    Refuses,
    /// Its SYNs are not answered.
    DropsSyn,
    /// It takes connections and says nothing of TLS.
    StallsInTls,
    /// The simulator's fault of this name, after a good token.
    Shows(&'static str),
    /// One byte of an endless answer every 20 ms, after a good token.
    Drips,
}

const ROWS: [(&str, Wrong); 9] = [
    ("nothing", Wrong::Nothing),
    ("refuses connections", Wrong::Refuses),
    ("drops SYNs", Wrong::DropsSyn),
    ("stalls in TLS", Wrong::StallsInTls),
    ("closes when asked", Wrong::Shows("refuse")),
    ("stalls before headers", Wrong::Shows("stall")),
    ("stalls in the body", Wrong::Shows("stall:10")),
    ("drips", Wrong::Drips),
    ("answers in 2 s", Wrong::Shows("delay:2s")),
];

/// One caller, one provider, nothing else.
pub const ROUTES: &str = r#"version = 1

[[caller]]
id = "bench"
tenant = "bench"
key_digest = "sha256:KEY_DIGEST"
allow = ["risk"]

[risk]
candidates = ["alipay"]
bands = { pass_below = 0.3, review_from = 0.7 }
on_exhausted = "review"
"#;

/// Every row, then the verdict.
pub fn run(pinned: &Pinned) {
    println!("{CALLS} payments a row, one every {APART:?}, deadline {DEADLINE:?} and {ALLOWED:?}, {pinned}\n");
    println!("{:<24}{:>10}{:>10}{:>10}{:>12}{:>10}", "the provider", "p50 ms", "p99 ms", "p100 ms", "fallbacks", "");
    let mut failed = false;
    for (name, wrong) in ROWS {
        let provider = Provider::start(wrong);
        let proxy = Proxy::configured(pinned, ROUTES, &provider.file());
        let answers = payments(proxy.address(), proxy.key());
        let mut took: Vec<Duration> = answers.iter().map(|answer| answer.took).collect();
        took.sort_unstable();
        let slowest = took.last().copied().unwrap_or(Duration::MAX);
        let errors = answers.iter().filter(|answer| !answer.decided).count();
        let fallbacks = answers.iter().filter(|answer| answer.fallback).count();
        let verdict = match (errors, slowest <= DEADLINE + ALLOWED) {
            (0, true) => "on time".to_owned(),
            (0, false) => "LATE".to_owned(),
            (errors, _) => format!("{errors} ERRORS"),
        };
        failed |= verdict != "on time";
        let [p50, p99] = [0.50, 0.99].map(|share| percentile(&took, share) / 1e3);
        let p100 = slowest.as_secs_f64() * 1e3;
        println!("{name:<24}{p50:>10.1}{p99:>10.1}{p100:>10.1}{fallbacks:>12}{verdict:>10}");
    }
    if failed {
        std::process::exit(1);
    }
}

/// A provider with something wrong, as long as it lives.
pub struct Provider {
    address: SocketAddr,
    tls: bool,
    /// What keeps a port as it is.
    held: Vec<Socket>,
    /// Ends the simulator's thread.
    _stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Provider {
    /// One with nothing wrong.
    pub fn sound() -> Self {
        Self::start(Wrong::Nothing)
    }

    /// One that takes between so many milliseconds and so many, each as often: from a fixed seed.
    pub fn taking(least: u64, most: u64) -> Self {
        simulated(None, false, Some((least, most)))
    }

    fn start(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Refuses => Self::at(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()),
            Wrong::DropsSyn => full_queue(),
            Wrong::StallsInTls => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                // A queue long enough for all who try: the kernel accepts, and nobody ever answers.
                Self { tls: true, held: vec![listener.into()], ..Self::at(SocketAddr::from(([0, 0, 0, 0], 0))) }
                    .where_held()
            }
            Wrong::Nothing => simulated(None, false, None),
            Wrong::Shows(fault) => simulated(Some(fault), false, None),
            Wrong::Drips => simulated(None, true, None),
        }
    }

    fn at(address: SocketAddr) -> Self {
        Self { address, tls: false, held: Vec::new(), _stop: None }
    }

    /// With the address of what it holds.
    fn where_held(mut self) -> Self {
        self.address = self.held[0].local_addr().unwrap().as_socket().unwrap();
        self
    }

    /// Its file in the providers folder.
    pub fn file(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!(
            r#"id = "alipay"
protocol = "di-hmac"
base_url = "{scheme}://{}"
source = {{ url = "https://example.org/", checked = "2026-11-23" }}
auth = {{ kind = "di-hmac", key_id = "k1", secret_env = "WEIGHBRIDGE_BENCH_SECRET", secret_encoding = "hex" }}
operations = ["risk.assess"]
limits = {{ in_flight = 1_000 }}
allow_private = true
"#,
            self.address
        )
    }
}

/// A listener whose queue has no room.
fn full_queue() -> Provider {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = vec![listener];
    while held.len() < 16 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let answered = socket.connect_timeout(&address, Duration::from_millis(100)).is_ok();
        held.push(socket);
        if !answered {
            break;
        }
    }
    Provider { held, ..Provider::at(SocketAddr::from(([0, 0, 0, 0], 0))) }.where_held()
}

/// The simulated Alipay on a thread of its own.
fn simulated(fault: Option<&str>, drips: bool, takes: Option<(u64, u64)>) -> Provider {
    let faults = Faults::new();
    if let Some(fault) = fault {
        assert!(faults.always("alipay", Fault::parse(fault).unwrap()));
    }
    let keys = vec![("k1".to_owned(), Secret::new(vec![0x4f; 32]))];
    let alipay = Alipay::new(AlipayConfig { keys, faults, token_life: Duration::from_secs(3_600) });
    let (tell, told) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let anywhere = "127.0.0.1:0".parse().unwrap();
            let calls = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
            let listening = listen(anywhere, move |request| {
                let alipay = alipay.clone();
                let number = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let pause = takes.map(|(least, most)| least + scattered(number) % (most - least));
                async move {
                    if let Some(pause) = pause {
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                    }
                    alipay.handle(request).await
                }
            });
            let listening = listening.await.unwrap();
            let dripping = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(if drips { dripping.local_addr().unwrap() } else { listening.addr }).unwrap();
            let dripping = async {
                while let Ok((io, _)) = dripping.accept().await {
                    tokio::spawn(drip(io, listening.addr));
                }
            };
            tokio::select! {
                () = dripping => {}
                _ = stopped => {}
            }
        });
    });
    Provider { _stop: Some(stop), ..Provider::at(told.recv().unwrap()) }
}

/// Counted numbers, scattered (`SplitMix64`'s finisher, <https://prng.di.unimi.it/splitmix64.c>, read 2026-11-23).
fn scattered(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Has the simulator answer the call for a token, and drips at any other.
async fn drip(mut io: TcpStream, simulator: SocketAddr) {
    while let Some(request) = whole_message(&mut io).await {
        if request.starts_with(b"POST /oauth2/token") {
            let mut near = TcpStream::connect(simulator).await.unwrap();
            near.write_all(&request).await.unwrap();
            let answer = whole_message(&mut near).await.unwrap_or_default();
            let _ = io.write_all(&answer).await;
            continue;
        }
        let mut head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{".to_vec().into_iter();
        while io.write_all(&[head.next().unwrap_or(b' ')]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A request or an answer with a declared length.
pub async fn whole_message(io: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
            if bytes.len() >= end + 4 + length.unwrap_or(0) {
                return Some(bytes);
            }
        }
        if io.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

struct Answer {
    took: Duration,
    decided: bool,
    fallback: bool,
}

fn payments(to: SocketAddr, key: &str) -> Vec<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (key, answers) = (key.to_owned(), Rc::new(std::cell::RefCell::new(Vec::new())));
    LocalSet::new().block_on(&runtime, async {
        let start = Instant::now();
        let mut running = Vec::new();
        for number in 0..CALLS {
            tokio::time::sleep_until((start + APART * number).into()).await;
            let (key, answers) = (key.clone(), Rc::clone(&answers));
            running.push(spawn_local(async move {
                let answer = pay(to, &key, number).await;
                answers.borrow_mut().push(answer);
            }));
        }
        for running in running {
            running.await.unwrap();
        }
    });
    answers.take()
}

async fn pay(to: SocketAddr, key: &str, number: u32) -> Answer {
    let body = format!(
        r#"{{"out_trade_no":"T{number}","total_amount":"1.00","currency":"CNY","subject":"bench","merchant":{{"id":"m1"}},"user":{{"id":"u1"}}}}"#
    );
    let request = format!(
        "POST /v1/risk/assessments HTTP/1.1\r\nhost: {to}\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let start = Instant::now();
    let answer = async {
        let mut io = TcpStream::connect(to).await.ok()?;
        io.write_all(request.as_bytes()).await.ok()?;
        whole_message(&mut io).await
    };
    let answer = tokio::time::timeout(Duration::from_secs(20), answer).await.ok().flatten().unwrap_or_default();
    let took = start.elapsed();
    let decided = answer.starts_with(b"HTTP/1.1 200") && find(&answer, br#""action":"#).is_some();
    Answer { took, decided, fallback: find(&answer, br#""source":"fallback""#).is_some() }
}
