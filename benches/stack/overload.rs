//! Ten times as much as can be served: a provider of 20 places that takes 200 ms, so that 100 calls a second are all there
//! is, and 1,000 a second offered, most of them by one caller, with payments among them.
//!
//! In order: what is served in a closed loop (the peak), at 80 % of it, at ten times of it, and right after. The run fails
//! unless nine tenths of the peak are served under overload, what is served takes no longer than twice as long, the rest is
//! refused within 10 ms with a `retry-after`, the modest caller is served, no payment is refused, and all is as before
//! within five seconds. The numbers are ratios and machine times: pin nothing else to its cores. The last two columns say how long
//! the proxy and this load generator stood ready without a core, a call: where that is not small beside the time of a
//! refusal, the machine was measured.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};
use weighbridge::domain::secret::Secret;
use weighbridge::sandbox::aggregator::{Aggregator, AggregatorConfig};
use weighbridge::sandbox::listen;

use crate::deadline::{Provider, whole_message};
use crate::load::{find, percentile, request};
use crate::process::{PROVIDER_KEY, Pinned, Proxy, queued};

const PLACES: u32 = 20;
const TAKES: Duration = Duration::from_millis(200);
/// Ten times what the places can serve.
const OFFERED: u32 = 1_000;
/// What the modest caller asks for, and payments, within that.
const MODEST: u32 = 20;
const PAYMENTS: u32 = 50;
const MODEST_KEY: &str = "wb-bench-modest-0123456789abcdef0123456789abcdef";
const PROMPT_BYTES: usize = 840;
const REFUSED_WITHIN: f64 = 10_000.0;
const RECOVERS_WITHIN: Duration = Duration::from_secs(5);

/// Payments made so far.
static PAID: AtomicU64 = AtomicU64::new(0);

const ROUTES: &str = r#"version = 1

[[caller]]
id = "greedy"
key_digest = "sha256:KEY_DIGEST"
allow = ["risk", "summary"]

[[caller]]
id = "modest"
key_digest = "sha256:MODEST_DIGEST"
allow = ["summary"]

[model.summary]
candidates = ["llm/model-1"]
timeouts = { total = "10s", first_content = "5s", idle = "5s" }

[risk]
candidates = ["alipay"]
bands = { pass_below = 0.3, review_from = 0.7 }
on_exhausted = "review"
"#;

/// All phases, then the verdict.
pub fn run(pinned: &Pinned, seconds: f64) {
    let (alipay, llm) = (Provider::sound(), simulated());
    let digest = Sha256::digest(MODEST_KEY).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let routes = ROUTES.replace("MODEST_DIGEST", &digest);
    let proxy = Proxy::configured_with(pinned, &routes, &[("alipay", &alipay.file()), ("llm", &provider_file(llm))]);
    let crowd = Crowd { to: proxy.address(), greedy: proxy.key() };
    let time = Duration::from_secs_f64(seconds.max(2.0));
    println!("{OFFERED} calls a second at a provider of {PLACES} places and {TAKES:?}, {time:?} a phase, {pinned}\n");
    let columns = ["served/s", "p99 ms", "refused/s", "p99 ms", "proxy CPU us", "no core us", "we: no core us"];
    let [served, took, refused, soon, cpu, idle, ours] = columns;
    println!("{:<22}{served:>10}{took:>10}{refused:>12}{soon:>12}{cpu:>14}{idle:>12}{ours:>16}", "");

    let peak = phase(&proxy, "peak (closed loop)", || crowd.closed(PLACES, time));
    let rate = f64::from(PLACES) / TAKES.as_secs_f64() * 0.8;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "80")]
    let calm = phase(&proxy, "80 %", || crowd.open([rate as u32, 0, 0], time));
    let greedy = OFFERED - MODEST - PAYMENTS;
    let flood = phase(&proxy, "ten times", || crowd.open([greedy, MODEST, PAYMENTS], time));
    let after = phase(&proxy, "right after", || crowd.open([50, MODEST, PAYMENTS], time.max(RECOVERS_WITHIN)));

    let payments = flood.of(Kind::Payment);
    let [refused, served_p99, calm_p99] =
        [flood.times(false), flood.times(true), calm.times(true)].map(|times| percentile(&times, 0.99));
    let modest = flood.of(Kind::Modest);
    let last_refusal = after.answers.iter().filter(|answer| !answer.served).map(|answer| answer.at).max();
    let checks = [
        ("nine tenths of the peak are served", flood.rate() >= 0.9 * peak.rate()),
        ("what is served takes at most twice as long", served_p99 <= 2.0 * calm_p99),
        ("refusals come within 10 ms", refused <= REFUSED_WITHIN),
        ("and say when to come back", flood.answers.iter().all(|answer| answer.served || answer.says_when)),
        ("the modest caller is served", modest.served() * 10 >= modest.answers.len() * 9),
        ("no payment is refused", payments.served() == payments.answers.len() && !payments.answers.is_empty()),
        ("all is as before within 5 s", last_refusal.is_none_or(|at| at < RECOVERS_WITHIN)),
    ];
    println!();
    for (what, kept) in checks {
        println!("{:<48}{}", what, if kept { "yes" } else { "NO" });
    }
    if checks.iter().any(|(_, kept)| !kept) {
        std::process::exit(1);
    }
}

fn phase(proxy: &Proxy, name: &str, run: impl FnOnce() -> Told) -> Told {
    let read = || [proxy.cpu(), proxy.queued(), queued(std::process::id())];
    let before = read();
    let told = run();
    let each = |(after, before): (Duration, Duration)| {
        after.saturating_sub(before).as_secs_f64() * 1e6 / told.answers.len().max(1) as f64
    };
    let [cpu, idle, ours] = read();
    let [cpu, idle, ours] = [(cpu, before[0]), (idle, before[1]), (ours, before[2])].map(each);
    let refused = told.answers.len() - told.served();
    println!(
        "{name:<22}{:>10.1}{:>10.1}{:>12.1}{:>12.2}{cpu:>14.1}{idle:>12.1}{ours:>16.1}",
        told.rate(),
        percentile(&told.times(true), 0.99) / 1e3,
        refused as f64 / told.ran.as_secs_f64(),
        percentile(&told.times(false), 0.99) / 1e3,
    );
    told
}

/// The provider, on a thread that ends with the process.
fn simulated() -> SocketAddr {
    let config = AggregatorConfig { first_token: TAKES, ..AggregatorConfig::new(Secret::new(PROVIDER_KEY.into())) };
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let llm = Aggregator::new(config);
            let anywhere = "127.0.0.1:0".parse().unwrap();
            let listening = listen(anywhere, move |request| {
                let llm = llm.clone();
                async move { llm.handle(request).await }
            });
            let listening = listening.await.unwrap();
            tell.send(listening.addr).unwrap();
            std::future::pending::<()>().await;
        });
    });
    told.recv().unwrap()
}

fn provider_file(at: SocketAddr) -> String {
    format!(
        r#"id = "llm"
protocol = "openai"
base_url = "http://{at}/llm/v1"
source = {{ url = "https://example.org/", checked = "2026-11-23" }}
auth = {{ kind = "bearer", secret_env = "WEIGHBRIDGE_BENCH_KEY" }}
operations = ["chat.completions"]
limits = {{ in_flight = {PLACES} }}
allow_private = true

[[model]]
id = "model-1"
name = "model-1"
price = "free"
"#
    )
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Greedy,
    Modest,
    Payment,
}

#[derive(Clone, Copy)]
struct Answer {
    kind: Kind,
    /// When it was due, from the start of its phase.
    at: Duration,
    took: Duration,
    served: bool,
    says_when: bool,
}

struct Told {
    answers: Vec<Answer>,
    ran: Duration,
}

impl Told {
    fn of(&self, kind: Kind) -> Self {
        Self { answers: self.answers.iter().filter(|answer| answer.kind == kind).copied().collect(), ran: self.ran }
    }

    fn served(&self) -> usize {
        self.answers.iter().filter(|answer| answer.served).count()
    }

    /// Calls to the model that were served, a second.
    fn rate(&self) -> f64 {
        (self.served() - self.of(Kind::Payment).served()) as f64 / self.ran.as_secs_f64()
    }

    /// How long calls to the model took, in order.
    fn times(&self, served: bool) -> Vec<Duration> {
        let models = self.answers.iter().filter(|answer| answer.served == served && answer.kind != Kind::Payment);
        let mut times: Vec<Duration> = models.map(|answer| answer.took).collect();
        times.sort_unstable();
        times
    }
}

/// Who asks.
struct Crowd {
    to: SocketAddr,
    greedy: &'static str,
}

/// What the tasks of a phase share.
struct Shared {
    requests: [Vec<u8>; 2],
    to: SocketAddr,
    key: &'static str,
    start: Instant,
    /// Connections that wait for their next request.
    idle: RefCell<Vec<TcpStream>>,
    answers: RefCell<Vec<Answer>>,
}

impl Crowd {
    fn shared(&self) -> Rc<Shared> {
        let chat = |key| request(self.to, key, PROMPT_BYTES, "");
        Rc::new(Shared {
            requests: [chat(self.greedy), chat(MODEST_KEY)],
            to: self.to,
            key: self.greedy,
            start: Instant::now(),
            idle: RefCell::default(),
            answers: RefCell::default(),
        })
    }

    /// So many at a time, the next when one is done.
    fn closed(&self, at_once: u32, time: Duration) -> Told {
        let shared = self.shared();
        local(async {
            let one = |shared: Rc<Shared>| async move {
                while shared.start.elapsed() < time {
                    shared.ask(Kind::Greedy, shared.start.elapsed()).await;
                }
            };
            let tasks: Vec<_> = (0..at_once).map(|_| spawn_local(one(Rc::clone(&shared)))).collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
        shared.told()
    }

    /// So many a second of each kind, whatever becomes of them.
    fn open(&self, rates: [u32; 3], time: Duration) -> Told {
        let shared = self.shared();
        local(async {
            let steady = |kind, rate: u32, shared: Rc<Shared>| async move {
                let mut asked = Vec::new();
                for number in 0..u32::MAX {
                    let due = Duration::from_secs_f64(f64::from(number) / f64::from(rate.max(1)));
                    if rate == 0 || due >= time {
                        break;
                    }
                    tokio::time::sleep_until((shared.start + due).into()).await;
                    let shared = Rc::clone(&shared);
                    asked.push(spawn_local(async move { shared.ask(kind, due).await }));
                }
                for asked in asked {
                    asked.await.unwrap();
                }
            };
            let kinds = [Kind::Greedy, Kind::Modest, Kind::Payment];
            let tasks: Vec<_> = kinds.into_iter().zip(rates).collect();
            let tasks = tasks.into_iter().map(|(kind, rate)| spawn_local(steady(kind, rate, Rc::clone(&shared))));
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
        });
        shared.told()
    }
}

fn local(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future);
}

impl Shared {
    fn told(&self) -> Told {
        Told { answers: self.answers.take(), ran: self.start.elapsed() }
    }

    async fn ask(&self, kind: Kind, at: Duration) {
        let started = Instant::now();
        let request = match kind {
            Kind::Greedy => self.requests[0].clone(),
            Kind::Modest => self.requests[1].clone(),
            Kind::Payment => self.payment(),
        };
        let answer = tokio::time::timeout(Duration::from_secs(20), self.exchange(&request)).await;
        let answer = answer.ok().flatten().unwrap_or_default();
        let fallback = kind == Kind::Payment && find(&answer, br#""source":"fallback""#).is_some();
        self.answers.borrow_mut().push(Answer {
            kind,
            at,
            took: started.elapsed(),
            served: answer.starts_with(b"HTTP/1.1 200") && !fallback,
            says_when: answer.starts_with(b"HTTP/1.1 503") && find(&answer, b"\r\nretry-after: ").is_some(),
        });
    }

    async fn exchange(&self, request: &[u8]) -> Option<Vec<u8>> {
        let kept = self.idle.borrow_mut().pop();
        let mut io = match kept {
            Some(io) => io,
            None => TcpStream::connect(self.to).await.ok()?,
        };
        io.set_nodelay(true).ok()?;
        io.write_all(request).await.ok()?;
        let answer = whole_message(&mut io).await?;
        if find(&answer, b"\r\nconnection: close").is_none() {
            self.idle.borrow_mut().push(io);
        }
        Some(answer)
    }

    fn payment(&self) -> Vec<u8> {
        // Unique over all phases.
        let number = PAID.fetch_add(1, Ordering::Relaxed);
        let body = format!(
            r#"{{"out_trade_no":"T{number}","total_amount":"1.00","currency":"CNY","subject":"bench","merchant":{{"id":"m1"}},"user":{{"id":"u1"}}}}"#
        );
        let head = format!(
            "POST /v1/risk/assessments HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.to,
            self.key,
            body.len()
        );
        [head, body].concat().into_bytes()
    }
}
