//! A restart while a hundred streams are open and a hundred requests a second come in (row 42).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{Client, PATIENCE, Sandbox, Site, wait_until};
use crate::takeover::{KEY, Served};

const STREAMS: usize = 100;
/// Between two words of a stream.
const PACE: Duration = Duration::from_millis(250);
const CLIENTS: usize = 10;
/// Between two requests of one client: a hundred a second of all.
const GAP: Duration = Duration::from_millis(100);

/// A provider whose streams go on until they are told to end, so that no clock decides when.
#[derive(Default)]
struct Provider {
    end: AtomicBool,
    streams: AtomicUsize,
    whole: AtomicUsize,
}

impl Provider {
    fn start() -> (Arc<Self>, String) {
        let (provider, listener) = (Arc::new(Self::default()), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let serving = Arc::clone(&provider);
        thread::spawn(move || {
            for io in listener.incoming() {
                let serving = Arc::clone(&serving);
                thread::spawn(move || serving.serve(io.unwrap()));
            }
        });
        (provider, address)
    }

    /// One connection, for as long as it is kept.
    fn serve(&self, io: TcpStream) -> io::Result<()> {
        let mut io = BufReader::new(io);
        loop {
            let (mut length, mut line) = (0, String::new());
            loop {
                line.clear();
                if io.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; length];
            io.read_exact(&mut body)?;
            let body: Value = serde_json::from_slice(&body).unwrap();
            if body["stream"] == true { self.stream(io.get_mut())? } else { self.answer(io.get_mut())? }
        }
    }

    fn answer(&self, io: &mut TcpStream) -> io::Result<()> {
        self.whole.fetch_add(1, Ordering::SeqCst);
        let message = json!({ "role": "assistant", "content": "hi" });
        let body = json!({
            "id": "c", "object": "chat.completion", "created": 1, "model": "steady",
            "choices": [{ "index": 0, "message": message, "finish_reason": "stop" }],
            "usage": { "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2 },
        });
        let body = body.to_string();
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
        io.write_all(format!("{head}{body}").as_bytes())
    }

    fn stream(&self, io: &mut TcpStream) -> io::Result<()> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
        let mut say = |event: &str| {
            let event = format!("data: {event}\n\n");
            io.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
        };
        let chunk = |delta: Value, finish: Option<&str>| {
            let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
            json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "steady", "choices": [choice] })
                .to_string()
        };
        while !self.end.load(Ordering::SeqCst) {
            say(&chunk(json!({ "content": "word " }), None))?;
            thread::sleep(PACE);
        }
        say(&chunk(json!({ "content": "last" }), None))?;
        say(&chunk(json!({}), Some("stop")))?;
        say("[DONE]")?;
        io.write_all(b"0\r\n\r\n")
    }
}

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
    let (provider, address) = Provider::start();
    let file = std::fs::read_to_string(site.path("providers/tokenmix.toml")).unwrap();
    let theirs = format!("{}/tokenmix/v1", upstream.told["aggregator"].as_str().unwrap());
    site.write("providers/tokenmix.toml", &file.replace(&theirs, &address));
    let start = || Served::spawn(Served::command_draining(&site, &upstream, "30s").args(["--takeover", "takeover"]));
    let mut old = start();
    let told = Arc::new(Told::default());
    let clients = offering(&old, &told);
    let opened: Vec<_> = (0..STREAMS)
        .map(|_| {
            let to = old.data;
            thread::spawn(move || Client::to(to).stream(KEY, "steady", 1))
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
    assert!(old.is_alive() && whole_streams(&old) == 0, "still");
    provider.end.store(true, Ordering::SeqCst);
    for reader in readers {
        let text = reader.join().unwrap().unwrap();
        assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\""), "{text}");
        assert!(text.contains("\"last\""), "{text}");
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
    let asked = (provider.streams.load(Ordering::SeqCst), provider.whole.load(Ordering::SeqCst));
    assert_eq!(asked, (STREAMS, answered), "what the provider saw");
    assert!(lines(&new).len() >= 100, "and what came later is the new one's");
    println!("{STREAMS} streams and {answered} requests, {} of them by the new one", lines(&new).len());
    new.stop();
}
