//! What memory is worth: the simulated town pays, and a provider takes 350 ms, give or take 150.
//!
//! Payments of the published simulator that are in one currency (the terms of reuse are in one), a day of the town in ten
//! seconds, the time to live as much shorter: ten seconds, too.
//!
//! The simulator has terminals and no merchants, and reuse is for a payer at a merchant, so who owns the terminals decides
//! what memory is worth. A terminal is a till. A merchant is who asks: a checkout that integrates the proxy is one merchant,
//! however many tills it has, so the case that answers "what would it do for my checkout" is one merchant with all tills. A
//! platform whose shops are merchants of their own is one of the others: ten or a hundred chains whose tills are all over
//! town, and at the far end each till a merchant of its own, where hardly anybody comes back within a day. What is simulated
//! is simulated: how often a payer comes back is the town's, not the world's.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};
use weighbridge::sandbox::simulator::{Options, Simulator};

use crate::deadline::{Provider, ROUTES, whole_message};
use crate::load::find;
use crate::process::{Pinned, Proxy};

/// After it as many terminals are compromised as ever.
const FIRST_DAY: u32 = 28;
const DAYS: u32 = 3;
const A_DAY: Duration = Duration::from_secs(10);
/// More than are ever under way.
const LANES: usize = 256;
const REUSE: &str = r#"reuse = { mode = "first", ttl = "10s", max_amount = "200.00 CNY", max_sum = "1000.00 CNY" }
"#;

/// Prints what came from memory and how long the town waited.
pub fn run(pinned: &Pinned) {
    println!("{DAYS} days of the town, 10 s each; the provider takes 200 to 500 ms; {pinned}\n");
    println!("{:<44}{:>10}{:>14}{:>10}{:>10}{:>10}", "", "payments", "from memory", "mean ms", "p50 ms", "p99 ms");
    let with_memory = format!("{ROUTES}{REUSE}");
    for (name, routes, merchants) in [
        ("without memory", ROUTES, Merchants::Chains(1)),
        ("reuse = first, one merchant", &with_memory, Merchants::Chains(1)),
        ("reuse = first, 10 merchants", &with_memory, Merchants::Chains(10)),
        ("reuse = first, 100 merchants", &with_memory, Merchants::Chains(100)),
        ("reuse = first, each terminal a merchant", &with_memory, Merchants::Terminals),
    ] {
        let provider = Provider::taking(200, 500);
        let proxy = Proxy::configured(pinned, routes, &provider.file());
        print(name, play(&proxy, &payments(merchants)));
    }
}

fn print(name: &str, played: Played) {
    let Played { mut took, cached, errors } = played;
    took.sort_unstable();
    let count = took.len().max(1);
    let mean = took.iter().sum::<Duration>().as_secs_f64() * 1e3 / count as f64;
    let at = |share: usize| took.get(count * share / 100).copied().unwrap_or_default().as_secs_f64() * 1e3;
    println!(
        "{name:<44}{:>10}{:>12.1} %{mean:>10.1}{:>10.1}{:>10.1}{}",
        took.len(),
        100.0 * cached as f64 / count as f64,
        at(50),
        at(99),
        if errors > 0 { format!("  {errors} ERRORS") } else { String::new() },
    );
}

/// Who owns the terminals.
#[derive(Clone, Copy)]
enum Merchants {
    /// So many chains, each with terminals all over town.
    Chains(u32),
    /// Nobody has two.
    Terminals,
}

impl Merchants {
    fn of(self, terminal: u32) -> String {
        match self {
            Self::Chains(chains) => format!("chain-{}", terminal % chains),
            Self::Terminals => format!("terminal-{terminal}"),
        }
    }
}

/// When each leaves, and its body.
fn payments(merchants: Merchants) -> Vec<(Duration, String)> {
    let town = Simulator::new(Options::published(1)).unwrap();
    let of_a_day = |day: u32| {
        let begin = A_DAY * (day - FIRST_DAY);
        town.day(day).into_iter().map(move |payment| (begin + A_DAY * payment.second / 86_400, payment))
    };
    let all = (FIRST_DAY..FIRST_DAY + DAYS).flat_map(of_a_day);
    let in_one_currency = all.filter_map(|(due, payment)| {
        let mut body = town.request(&payment, "");
        body["merchant"]["id"] = Value::from(merchants.of(payment.terminal));
        (body["currency"] == "CNY").then(|| (due, body.to_string()))
    });
    in_one_currency.collect()
}

struct Played {
    took: Vec<Duration>,
    cached: u64,
    errors: u64,
}

fn play(proxy: &Proxy, payments: &[(Duration, String)]) -> Played {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let head = format!(
        "POST /v1/risk/assessments HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n",
        proxy.address(),
        proxy.key()
    );
    let dues: Vec<Duration> = payments.iter().map(|(due, _)| *due).collect();
    let payments: Rc<[Vec<u8>]> = payments
        .iter()
        .map(|(_, body)| format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes())
        .collect::<Vec<_>>()
        .into();
    let dues: Rc<[Duration]> = dues.into();
    let (next, played) =
        (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Played { took: Vec::new(), cached: 0, errors: 0 })));
    let (to, start) = (proxy.address(), Instant::now());
    LocalSet::new().block_on(&runtime, async {
        let lanes: Vec<_> = (0..LANES)
            .map(|_| {
                let (payments, dues, next, played) = (payments.clone(), dues.clone(), next.clone(), played.clone());
                spawn_local(async move {
                    let mut io = TcpStream::connect(to).await.unwrap();
                    io.set_nodelay(true).unwrap();
                    while let Some((request, due)) = payments.get(next.get()).zip(dues.get(next.get())) {
                        next.set(next.get() + 1);
                        tokio::time::sleep_until((start + *due).into()).await;
                        let sent = Instant::now();
                        io.write_all(request).await.unwrap();
                        let answer = whole_message(&mut io).await.unwrap_or_default();
                        let mut played = played.borrow_mut();
                        if answer.starts_with(b"HTTP/1.1 200") {
                            played.took.push(sent.elapsed());
                            played.cached += u64::from(find(&answer, br#""source":"cached""#).is_some());
                        } else {
                            played.errors += 1;
                        }
                    }
                })
            })
            .collect();
        for lane in lanes {
            lane.await.unwrap();
        }
    });
    played.replace(Played { took: Vec::new(), cached: 0, errors: 0 })
}
