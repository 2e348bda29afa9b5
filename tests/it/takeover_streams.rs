//! A restart while a hundred streams are open and a hundred requests a second come in (row 42).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{Client, PATIENCE, Sandbox, Site, wait_until};
use crate::takeover::{KEY, Served};

const STREAMS: usize = 100;
/// Of each stream, 20 ms apart: about eight seconds, several times as long as a start takes.
const WORDS: usize = 400;
const CLIENTS: usize = 10;
/// Between two requests of one client: a hundred a second of all.
const GAP: Duration = Duration::from_millis(100);

/// What clients were told that come and go, each request over a connection of its own.
#[derive(Default)]
struct Told {
    stop: AtomicBool,
    answered: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

fn offering(served: &Served, told: &Arc<Told>) -> Vec<JoinHandle<()>> {
    let (to, begun) = (served.data, Instant::now());
    let client = |number: u32| {
        let told = Arc::clone(told);
        thread::spawn(move || {
            for round in 0.. {
                // Offered on time, however long answers take.
                let due = GAP * round + GAP / CLIENTS as u32 * number;
                thread::sleep(due.saturating_sub(begun.elapsed()));
                if told.stop.load(Ordering::SeqCst) {
                    return;
                }
                match Client::to(to).chat(KEY, "steady", &json!({})) {
                    Ok(answer) if answer.status == 200 => drop(told.answered.fetch_add(1, Ordering::SeqCst)),
                    other => told.failed.lock().unwrap().push(format!("{other:?}")),
                }
            }
        })
    };
    (0..CLIENTS as u32).map(client).collect()
}

/// The access lines of requests, as far as they are written.
fn lines(served: &Served) -> Vec<Value> {
    let log = served.log();
    let all = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    all.filter(|line| line["target"] == "access").collect()
}

fn whole_streams(served: &Served) -> usize {
    lines(served).iter().filter(|line| line["stream.end"] == "complete").count()
}

#[test]
fn row_42_a_takeover_with_a_hundred_streams_open_refuses_nobody_and_cuts_none() {
    let upstream = Sandbox::start(&Site::new(), &[]);
    let site = Served::site(&upstream);
    let start = || Served::spawn(Served::command_draining(&site, &upstream, "30s").args(["--takeover", "takeover"]));
    let mut old = start();
    let told = Arc::new(Told::default());
    let clients = offering(&old, &told);
    let opened: Vec<_> = (0..STREAMS)
        .map(|_| {
            let to = old.data;
            thread::spawn(move || Client::to(to).stream(KEY, "steady", WORDS))
        })
        .collect();
    let streams: Vec<_> = opened.into_iter().map(|opened| opened.join().unwrap().unwrap()).collect();
    assert!(streams.iter().all(|stream| stream.head.status == 200));
    let readers: Vec<_> = streams.into_iter().map(|stream| thread::spawn(move || stream.rest())).collect();

    let new = start();
    assert_eq!((new.data, new.admin), (old.data, old.admin), "the same sockets");
    assert!(old.is_alive() && whole_streams(&old) == 0, "all streams are still on their way");
    let before = told.answered.load(Ordering::SeqCst);
    wait_until(PATIENCE, "requests after it", || told.answered.load(Ordering::SeqCst) >= before + 100);
    for reader in readers {
        let text = reader.join().unwrap().unwrap();
        assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\""), "{text}");
        assert!(text.matches("data: ").count() > WORDS, "every event");
    }
    old.ended();
    told.stop.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().unwrap());

    let failed = told.failed.lock().unwrap();
    let answered = told.answered.load(Ordering::SeqCst);
    assert!(failed.is_empty(), "{} noticed, {answered} did not: {:?}", failed.len(), failed.first());
    wait_until(PATIENCE, "the log of the old one", || whole_streams(&old) == STREAMS);
    wait_until(PATIENCE, "all lines", || lines(&old).len() + lines(&new).len() == STREAMS + answered);
    let both = [lines(&old), lines(&new)].concat();
    assert!(both.iter().all(|line| line["attempts"] == "tokenmix/steady:ok"), "each was asked for once");
    assert_eq!(whole_streams(&new), 0, "streams end where they began");
    assert!(lines(&new).len() >= 100, "and what came later is the new one's");
    println!("{STREAMS} streams and {answered} requests, {} of them by the new one", lines(&new).len());
    new.stop();
}
