//! What Weighbridge costs, beside the least that a hyper reverse proxy can do.
//!
//! `cargo bench --bench stack` runs a null upstream, a bare proxy and the product (and nginx, if installed) as processes
//! of their own and measures each in interleaved rounds: throughput and CPU in a closed loop, latency at a constant
//! arrival rate, CPU per relayed stream chunk; bodies of 100 KB and 1 MB; 200 streams at once, when each shows its first
//! content and how evenly it comes; once, what each of 2,000 open streams costs in memory. With taskset and two cores the
//! proxy has core 0 to itself and everything else runs on core 1. Quote the ratios: absolute numbers belong to the
//! machine. The 2,000 streams need `ulimit -n` of at least 10,000. `cargo run --release -p weighbridge-bench --` does the
//! same with the program of the last release build.
//!
//! Options after `--`: `--seconds N` a phase, `--rounds N`, `--connections N`, `--rate N` for the latency phase,
//! `--only bare,weighbridge`, `--smoke` (a short run that fails on any error), `--callgrind [--budget N]` (user
//! instructions a request, see benches/callgrind.sh; `--prompt N` and `--answer N` for bodies of that many bytes), `--deadline` (the risk route under each fault of its provider: its
//! slowest answer must leave by the deadline and 20 ms), `--decisions` (the risk route with its record: decisions a second,
//! and latencies at 2,000 a second, asked of the provider and given again), `--town` (what memory is worth to a simulated
//! town whose provider is slow), `--overload` (1,000 calls a second where 100 can be served, and payments beside them: what
//! is served, how soon the rest is refused, and how soon it is over). Every run ends by itself.
//!
//! It does not measure the network, TLS or real providers.

// Benches have no error path worth having: what fails should stop the run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_precision_loss
)]

mod callgrind;
mod deadline;
mod decisions;
mod load;
mod overload;
mod process;
mod servers;
mod streams;
mod town;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use load::{Load, Pace, Report};
use process::{Kind, Pinned, Proxy, Upstream};
use streams::Streams;

/// What to run, from the command line.
pub struct Options {
    seconds: f64,
    rounds: usize,
    connections: usize,
    rate: u32,
    only: Vec<String>,
    smoke: bool,
    callgrind: bool,
    deadline: bool,
    decisions: bool,
    town: bool,
    overload: bool,
    budget: Option<f64>,
    sizes: callgrind::Sizes,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["null", listen] => servers::null(listen),
        ["bare", listen, to] => servers::bare(listen, to),
        _ => measure(&options(&arguments)),
    }
}

fn options(arguments: &[String]) -> Options {
    let value =
        |name: &str| arguments.iter().position(|argument| argument == name).and_then(|at| arguments.get(at + 1));
    let number = |name: &str, default: f64| value(name).map_or(default, |text| text.parse().expect(name));
    let smoke = arguments.iter().any(|argument| argument == "--smoke");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers that a person typed")]
    let whole = |name: &str, default: f64| number(name, default).max(1.0) as u32;
    let size = |name: &str| value(name).map_or(0, |text| text.parse().expect(name));
    Options {
        seconds: number("--seconds", if smoke { 0.3 } else { 4.0 }).clamp(0.1, 60.0),
        rounds: whole("--rounds", if smoke { 1.0 } else { 5.0 }).min(50) as usize,
        connections: whole("--connections", 16.0).min(256) as usize,
        rate: whole("--rate", if smoke { 200.0 } else { 1_000.0 }).min(20_000),
        only: value("--only").map_or_else(Vec::new, |list| list.split(',').map(str::to_owned).collect()),
        smoke,
        callgrind: arguments.iter().any(|argument| argument == "--callgrind"),
        deadline: arguments.iter().any(|argument| argument == "--deadline"),
        decisions: arguments.iter().any(|argument| argument == "--decisions"),
        town: arguments.iter().any(|argument| argument == "--town"),
        overload: arguments.iter().any(|argument| argument == "--overload"),
        budget: value("--budget").map(|text| text.parse().expect("--budget")),
        sizes: callgrind::Sizes { prompt: size("--prompt"), answer: size("--answer") },
    }
}

fn measure(options: &Options) {
    let pinned = Pinned::detect();
    pinned.pin_self();
    if options.deadline {
        deadline::run(&pinned);
        return;
    }
    if options.decisions {
        decisions::run(&pinned, options.seconds);
        return;
    }
    if options.town {
        town::run(&pinned);
        return;
    }
    if options.overload {
        overload::run(&pinned, options.seconds);
        return;
    }
    let upstream = Upstream::start(&pinned);
    let wanted = |kind: &Kind| options.only.is_empty() || options.only.iter().any(|name| name == kind.name());
    let kinds: Vec<Kind> = Kind::available().into_iter().filter(wanted).collect();
    if options.callgrind {
        callgrind::run(&kinds, &upstream, &pinned, (options.sizes, options.budget));
        return;
    }
    println!("{} s a phase, {} rounds, {} connections, {pinned}", options.seconds, options.rounds, options.connections);
    let mut rows = Rows::default();
    let started = Instant::now();
    for round in 0..options.rounds {
        rows.take(Row::DIRECT, &latency_only(options, &upstream));
        rows.take(Row::DIRECT, &at_once(options, upstream.address(), "none"));
        for kind in &kinds {
            if round == 0 {
                // A process of its own: what others left in its memory would be counted as streams.
                let proxy = Proxy::start(kind, &upstream, &pinned, &[]);
                rows.take(kind.name(), &open_streams(options, &proxy));
            }
            let proxy = Proxy::start(kind, &upstream, &pinned, &[]);
            rows.take(kind.name(), &one_round(options, &proxy));
            rows.take(kind.name(), &large(options, &proxy));
            rows.take(kind.name(), &at_once(options, proxy.address(), proxy.key()));
        }
    }
    rows.print();
    println!("{:.0} s in all", started.elapsed().as_secs_f64());
    if options.smoke && rows.errors > 0 {
        eprintln!("{} requests failed", rows.errors);
        std::process::exit(1);
    }
}

/// What one round measured, by name.
type Figures = Vec<(&'static str, f64)>;

fn latency_only(options: &Options, upstream: &Upstream) -> Figures {
    let load = Load::new(upstream.address(), options.connections);
    let steady = load.run(Pace::Rate(options.rate), Duration::from_secs_f64(options.seconds));
    latencies(&steady)
}

fn latencies(report: &Report) -> Figures {
    vec![("p50 us", report.percentile(0.50)), ("p99 us", report.percentile(0.99)), ("errors", report.errors as f64)]
}

fn one_round(options: &Options, proxy: &Proxy) -> Figures {
    let phase = Duration::from_secs_f64(options.seconds);
    let load = Load::new(proxy.address(), options.connections).with_key(proxy.key());
    let warm = load.run(Pace::Closed, phase.mul_f64(0.2));

    let before = proxy.cpu();
    let closed = load.run(Pace::Closed, phase);
    let cpu = proxy.cpu().saturating_sub(before).as_secs_f64();

    let steady = load.run(Pace::Rate(options.rate), phase);

    let before = proxy.cpu();
    let streams = load.streaming().run(Pace::Closed, phase);
    let stream_cpu = proxy.cpu().saturating_sub(before).as_secs_f64();

    let errors = warm.errors + closed.errors + steady.errors + streams.errors;
    let mut figures = vec![
        ("req/s", closed.done as f64 / closed.took.as_secs_f64()),
        ("req/s a core", closed.done as f64 / cpu),
        ("cpu us/req", cpu * 1e6 / closed.done as f64),
    ];
    figures.extend(latencies(&steady).into_iter().filter(|(name, _)| *name != "errors"));
    figures.push(("cpu us/chunk", stream_cpu * 1e6 / streams.chunks as f64));
    figures.push(("rss MiB", proxy.resident_mib()));
    figures.push(("errors", errors as f64));
    figures
}

/// Bodies that no longer fit into one read.
fn large(options: &Options, proxy: &Proxy) -> Figures {
    let phase = Duration::from_secs_f64(options.seconds);
    let load = Load::new(proxy.address(), options.connections).with_key(proxy.key());
    let mut figures = Figures::new();
    for (column, prompt_bytes) in [("cpu us 100 KB", 100_000), ("cpu us 1 MB", 1_000_000)] {
        let before = proxy.cpu();
        let closed = load.with_prompt(prompt_bytes).run(Pace::Closed, phase);
        let cpu = proxy.cpu().saturating_sub(before).as_secs_f64();
        figures.push((column, cpu * 1e6 / closed.done as f64));
        figures.push(("errors", closed.errors as f64));
    }
    figures
}

/// 200 streams with a chunk every 20 ms each.
fn at_once(options: &Options, to: std::net::SocketAddr, key: &str) -> Figures {
    let count = if options.smoke { 20 } else { 200 };
    let seen = Streams { count, chunks: 100, every: Duration::from_millis(20) }.read(to, key);
    vec![
        ("first p50 us", seen.first(0.50)),
        ("first p99 us", seen.first(0.99)),
        ("jitter p50 us", seen.jitter(0.50)),
        ("jitter p99 us", seen.jitter(0.99)),
        ("errors", seen.errors as f64),
    ]
}

/// What a stream that waits for its next chunk holds on to.
fn open_streams(options: &Options, proxy: &Proxy) -> Figures {
    let (count, chunks) = if options.smoke { (50, 2) } else { (2_000, 6) };
    let streams = Streams { count, chunks, every: Duration::from_secs(if options.smoke { 1 } else { 2 }) };
    let (before, mut open) = (proxy.resident_mib(), f64::NAN);
    let seen = streams.run(proxy.address(), proxy.key(), || open = proxy.resident_mib());
    let each = (open - before) * 1024.0 / f64::from(count);
    vec![("KiB a stream", each), ("errors", seen.errors as f64)]
}

/// All rounds of all proxies.
#[derive(Default)]
struct Rows {
    order: Vec<&'static str>,
    figures: BTreeMap<(&'static str, &'static str), Vec<f64>>,
    errors: u64,
}

struct Row;

impl Row {
    const DIRECT: &'static str = "direct";
    const COLUMNS: [&'static str; 8] =
        ["req/s", "req/s a core", "cpu us/req", "p50 us", "p99 us", "cpu us/chunk", "rss MiB", "errors"];
    const MORE: [&'static str; 7] = [
        "cpu us 100 KB",
        "cpu us 1 MB",
        "first p50 us",
        "first p99 us",
        "jitter p50 us",
        "jitter p99 us",
        "KiB a stream",
    ];
}

impl Rows {
    fn take(&mut self, name: &'static str, figures: &Figures) {
        if !self.order.contains(&name) {
            self.order.push(name);
        }
        for &(column, value) in figures {
            if column == "errors" && value > 0.0 {
                self.errors += 1;
            }
            self.figures.entry((name, column)).or_default().push(value);
        }
    }

    fn median(&self, name: &'static str, column: &'static str) -> Option<f64> {
        let mut values = self.figures.get(&(name, column))?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().filter(|value| value.is_finite())
    }

    /// Medians, then each proxy over `bare`.
    fn print(&self) {
        for (title, columns) in [("median of the rounds", &Row::COLUMNS[..]), ("bodies and streams", &Row::MORE[..])] {
            println!("\n{}", line(title, columns.iter().map(|&column| column.to_owned())));
            for &name in &self.order {
                println!("{}", line(name, columns.iter().map(|&column| shown(self.median(name, column), 1))));
            }
        }
        let columns = ["cpu/req", "cpu/chunk", "cpu 100 KB", "cpu 1 MB", "added p50 us", "added p99 us", "added first"];
        println!("\n{}", line("over bare", columns.iter().map(|&column| column.to_owned())));
        for &name in self.order.iter().filter(|name| **name != Row::DIRECT) {
            let ratio = |column| Some(self.median(name, column)? / self.median("bare", column)?);
            let added = |column| Some(self.median(name, column)? - self.median(Row::DIRECT, column)?);
            let cells = [
                ratio("cpu us/req"),
                ratio("cpu us/chunk"),
                ratio("cpu us 100 KB"),
                ratio("cpu us 1 MB"),
                added("p50 us"),
                added("p99 us"),
                added("first p50 us"),
            ];
            println!("{}", line(name, cells.iter().map(|&cell| shown(cell, 2))));
        }
    }
}

fn line(name: &str, cells: impl Iterator<Item = String>) -> String {
    cells.fold(format!("{name:<22}"), |line, cell| format!("{line}{cell:>14}"))
}

fn shown(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}
