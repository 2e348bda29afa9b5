//! User instructions a request, exact to about 1 %: the difference of a short and a long run under callgrind, so that
//! start-up and connection set-up fall out.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use crate::load::{Load, Pace};
use crate::process::{Kind, Pinned, Proxy, Upstream};

const SHORT: u64 = 1_000;
const LONG: u64 = 3_000;
/// Slow enough for an emulated processor, so that nothing queues.
const RATE: u32 = 400;
const CONNECTIONS: usize = 16;

/// Prints instructions a request for each proxy, and fails if the product is more than `budget` over bare.
pub fn run(kinds: &[Kind], upstream: &Upstream, pinned: &Pinned, budget: Option<f64>) {
    let mut bare = None;
    println!("{:<16}{:>16}{:>16}", "", "instructions", "over bare");
    for kind in kinds.iter().filter(|kind| !matches!(kind, Kind::Nginx)) {
        let (short, long) = (instructions(kind, upstream, pinned, SHORT), instructions(kind, upstream, pinned, LONG));
        let each = (long - short) / (LONG - SHORT) as f64;
        let over = each - *bare.get_or_insert(each);
        println!("{:<16}{each:>16.0}{over:>16.0}", kind.name());
        if let Some(budget) = budget.filter(|budget| over > *budget) {
            eprintln!("{} takes {over:.0} instructions over bare, the budget is {budget:.0}", kind.name());
            std::process::exit(1);
        }
    }
}

fn instructions(kind: &Kind, upstream: &Upstream, pinned: &Pinned, requests: u64) -> f64 {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("callgrind.out");
    let prefix: Vec<String> = vec![
        "valgrind".into(),
        "-q".into(),
        "--tool=callgrind".into(),
        format!("--callgrind-out-file={}", out.display()),
    ];
    let proxy = Proxy::start(kind, upstream, pinned, &prefix);
    let load = Load::new(proxy.address(), CONNECTIONS).with_key(proxy.key());
    let report = load.run(Pace::Count(RATE, requests), Duration::from_secs(60));
    assert_eq!((report.done, report.errors), (requests, 0), "every request is answered");
    drop(proxy);
    let text = fs::read_to_string(&out).expect("callgrind wrote its counts when the proxy stopped");
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    total.and_then(|total| total.trim().parse().ok()).expect("a line with the total")
}
