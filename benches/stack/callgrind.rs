//! User instructions a request, exact to about 1 %: the difference of a short and a long run under callgrind, so that
//! start-up and connection set-up fall out.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::load::{Load, Pace};
use crate::process::{Kind, Pinned, Proxy, Upstream};

const SHORT: u64 = 1_000;
const LONG: u64 = 3_000;
/// Slow enough for an emulated processor, so that nothing queues.
const RATE: u32 = 400;
/// Bodies of so many bytes more are asked for one part less often.
const LARGER: usize = 20_000;
const FEWEST: u32 = 20;
const CONNECTIONS: usize = 16;

/// Bytes of a request's prompt and of its answer; 0 for a kilobyte, as most are.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub prompt: usize,
    pub answer: usize,
}

/// Prints instructions a request for each proxy, and fails if the product is more than `budget` over bare.
pub fn run(kinds: &[Kind], upstream: &Upstream, pinned: &Pinned, (sizes, budget): (Sizes, Option<f64>)) {
    let (few, many) = (SHORT / u64::from(part(sizes)), LONG / u64::from(part(sizes)));
    let mut bare = None;
    println!("{:<16}{:>16}{:>16}", "", "instructions", "over bare");
    for kind in kinds.iter().filter(|kind| !matches!(kind, Kind::Nginx)) {
        let count = |requests| instructions(kind, upstream, pinned, (sizes, requests));
        let each = (count(many) - count(few)) / (many - few) as f64;
        let over = each - *bare.get_or_insert(each);
        println!("{:<16}{each:>16.0}{over:>16.0}", kind.name());
        if let Some(budget) = budget.filter(|budget| over > *budget) {
            eprintln!("{} takes {over:.0} instructions over bare, the budget is {budget:.0}", kind.name());
            std::process::exit(1);
        }
    }
}

fn part(sizes: Sizes) -> u32 {
    u32::try_from((sizes.prompt + sizes.answer) / LARGER).unwrap_or(FEWEST).clamp(1, FEWEST)
}

fn instructions(kind: &Kind, upstream: &Upstream, pinned: &Pinned, (sizes, requests): (Sizes, u64)) -> f64 {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("callgrind.out");
    let prefix: Vec<String> = vec![
        "valgrind".into(),
        "-q".into(),
        "--tool=callgrind".into(),
        format!("--callgrind-out-file={}", out.display()),
    ];
    let proxy = Proxy::start(kind, upstream, pinned, &prefix);
    let mut load = Load::new(proxy.address(), CONNECTIONS).with_key(proxy.key()).with_answer(sizes.answer);
    if sizes.prompt > 0 {
        load = load.with_prompt(sizes.prompt);
    }
    let report = load.run(Pace::Count(RATE / part(sizes), requests), Duration::from_secs(60));
    assert_eq!((report.done, report.errors), (requests, 0), "every request is answered");
    drop(proxy);
    // For who wants to look into it, with callgrind_annotate.
    if let Some(kept) = std::env::var_os("WEIGHBRIDGE_BENCH_CALLGRIND") {
        fs::copy(&out, PathBuf::from(kept).join(format!("{}.{requests}", kind.name()))).unwrap();
    }
    let text = fs::read_to_string(&out).expect("callgrind wrote its counts when the proxy stopped");
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    total.and_then(|total| total.trim().parse().ok()).expect("a line with the total")
}
