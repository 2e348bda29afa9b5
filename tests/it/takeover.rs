//! Restarts that nobody notices (row 43): the built program with real sockets, its providers played by a sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use serde_json::{Value, json};

use crate::process::{Answer, Client, PATIENCE, Sandbox, Site, collect, run, wait_until, weighbridge};

/// SHA-256 of it is in the routes file.
pub const KEY: &str = "wb-a-key-of-the-takeover-tests";
/// Requests that must not notice anything.
const REQUESTS: usize = 10_000;
const RESTARTS: usize = 10;
const CLIENTS: usize = 16;

/// A running `weighbridge serve`; killed when dropped.
pub struct Served {
    child: Child,
    pub data: SocketAddr,
    pub admin: SocketAddr,
    log: Arc<Mutex<String>>,
    _reader: Option<JoinHandle<()>>,
}

impl Served {
    /// Files that send everything to the sandbox's simulators.
    pub fn site(upstream: &Sandbox) -> Site {
        let told = |key: &str| upstream.told[key].as_str().unwrap().to_owned();
        let site = Site::new();
        let alipay = fs::read_to_string(site.path("providers/alipay.toml")).unwrap();
        fs::remove_dir_all(site.path("providers")).unwrap();
        fs::create_dir(site.path("providers")).unwrap();
        let address = format!("base_url = \"{}\"\nallow_private = true #", told("alipay"));
        let alipay = alipay.replace("base_url = \"https://openapi.alipay.com\"", &address);
        site.write("providers/alipay.toml", &alipay.replace("\"k1\"", &format!("\"{}\"", told("alipay_key_id"))));
        let tokenmix = format!(
            "id = \"tokenmix\"\nprotocol = \"openai\"\nbase_url = \"{}/tokenmix/v1\"\nallow_private = true\n\
             source = {{ url = \"https://weighbridge.invalid/test\", checked = \"2026-11-22\" }}\n\
             auth = {{ kind = \"bearer\", secret_env = \"TOKENMIX_API_KEY\" }}\noperations = [\"chat.completions\"]\n\
             [[model]]\nid = \"steady\"\nname = \"steady\"\n",
            told("aggregator")
        );
        site.write("providers/tokenmix.toml", &tokenmix);
        let mut digest = weighbridge();
        let digest = digest.arg("digest").stdin(std::process::Stdio::piped()).spawn().and_then(|mut child| {
            io::Write::write_all(&mut child.stdin.take().unwrap(), KEY.as_bytes())?;
            child.wait_with_output()
        });
        let digest = String::from_utf8(digest.unwrap().stdout).unwrap();
        let routes = format!(
            "version = 1\n[[caller]]\nid = \"shop\"\nkey_digest = \"{}\"\nallow = [\"*\"]\n[risk]\n\
             candidates = [\"alipay\"]\ndeadline = \"5s\"\nhard_limit = \"9s\"\nconnect = \"2s\"\n\
             bands = {{ pass_below = 0.3, review_from = 0.7 }}\n[model.steady]\ncandidates = [\"tokenmix/steady\"]\n",
            digest.trim()
        );
        site.write("routes.toml", &routes);
        site
    }

    /// `serve` on ports of its own; those of its predecessor where it takes over.
    pub fn command(site: &Site, upstream: &Sandbox) -> Command {
        Self::command_draining(site, upstream, "2s")
    }

    /// The same with so long for what is in flight.
    pub fn command_draining(site: &Site, upstream: &Sandbox, limit: &str) -> Command {
        let mut command = weighbridge();
        let secret = upstream.told["alipay_secret"].as_str().unwrap();
        command.envs([("ALIPAY_SECRET", secret), ("TOKENMIX_API_KEY", secret)]).current_dir(site.path("."));
        command.args(["serve", "--log-format", "json", "--workers", "2", "--drain-timeout", limit]);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command
    }

    pub fn start(site: &Site, upstream: &Sandbox, arguments: &[&str]) -> Self {
        Self::spawn(Self::command(site, upstream).args(arguments))
    }

    pub fn spawn(command: &mut Command) -> Self {
        Self::of(command.spawn().unwrap())
    }

    pub fn of(mut child: Child) -> Self {
        let log = Arc::new(Mutex::new(String::new()));
        let reader = child.stderr.take().map(|pipe| collect(pipe, Arc::clone(&log)));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
        let mut address = |word: &str| {
            let line = lines.find(|line| line.starts_with(word)).unwrap_or_else(|| {
                thread::sleep(Duration::from_millis(100));
                panic!("{}", log.lock().unwrap().clone())
            });
            line.rsplit_once("://").unwrap().1.parse().unwrap()
        };
        let (data, admin) = (address("data"), address("admin"));
        Self { child, data, admin, log, _reader: reader }
    }

    /// True until it has ended.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("sh").args(["-c", "kill -$0 $1", name, &pid]).status().unwrap().success());
    }

    /// Ends it in good order.
    pub fn stop(mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal("TERM");
        }
        self.ended();
    }

    /// Waits for its end, which must be a good one.
    pub fn ended(&mut self) {
        let mut status = None;
        wait_until(PATIENCE, "the process's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(0), "{}", self.log());
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn admin(&self, path: &str) -> Answer {
        Client::to(self.admin).call("GET", path, &[], "").unwrap()
    }

    pub fn status(&self) -> Value {
        self.admin("/status.json").json()
    }

    pub fn metric(&self, sample: &str) -> f64 {
        let text = self.admin("/metrics").body;
        text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')).map_or(0.0, |v| v.parse().unwrap())
    }

    pub fn chat(&self) -> Answer {
        Client::to(self.data).chat(KEY, "steady", &json!({})).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key() -> [(String, String); 1] {
    [("authorization".to_owned(), format!("Bearer {KEY}"))]
}

fn assess(client: &mut Client, name: &str) -> io::Result<Answer> {
    let body = json!({
        "out_trade_no": name, "total_amount": "1.13", "currency": "CNY", "subject": "a",
        "merchant": { "id": "m1" }, "user": { "id": "u1" },
    });
    client.call("POST", "/v1/risk/assessments", &key(), &body.to_string())
}

/// What became of the requests of all clients.
#[derive(Default)]
struct Told {
    asked: AtomicUsize,
    stop: AtomicBool,
    failed: Mutex<Vec<String>>,
    /// The decisions of each payment.
    ids: Mutex<BTreeMap<String, BTreeSet<String>>>,
    slowest: Mutex<Duration>,
}

impl Told {
    fn note(&self, name: &str, answer: io::Result<Answer>, took: Duration) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut slowest = self.slowest.lock().unwrap();
        *slowest = took.max(*slowest);
        match answer {
            Ok(answer) if answer.status == 200 && name.is_empty() => {}
            Ok(answer) if answer.status == 200 && answer.json()["source"] != "fallback" => {
                let id = answer.json()["id"].as_str().unwrap().to_owned();
                self.ids.lock().unwrap().entry(name.to_owned()).or_default().insert(id);
            }
            other => self.failed.lock().unwrap().push(format!("{name} after {took:?}: {other:?}")),
        }
    }
}

/// Two of three requests are payments, and a third of those were asked before or are being asked by another client.
fn client(number: usize, to: SocketAddr, told: &Arc<Told>) -> JoinHandle<()> {
    let told = Arc::clone(told);
    thread::spawn(move || {
        let mut client = Client::to(to);
        for round in 0.. {
            if told.stop.load(Ordering::SeqCst) {
                return;
            }
            let name = match round % 6 {
                0 | 3 => String::new(),
                1 | 4 => format!("shared-{}", told.asked.load(Ordering::SeqCst) / 40),
                _ => format!("own-{number}-{round}"),
            };
            let begun = Instant::now();
            let answer =
                if name.is_empty() { client.chat(KEY, "steady", &json!({})) } else { assess(&mut client, &name) };
            told.note(&name, answer, begun.elapsed());
        }
    })
}

#[test]
fn row_43_ten_restarts_under_load_refuse_nobody_reset_nobody_and_decide_nothing_twice() {
    let upstream = Sandbox::start(&Site::new(), &[]);
    let site = Served::site(&upstream);
    let start = || Served::start(&site, &upstream, &["--takeover", "takeover"]);
    let mut served = vec![start()];
    let (data, admin) = (served[0].data, served[0].admin);
    let told = Arc::new(Told::default());
    let clients: Vec<_> = (0..CLIENTS).map(|number| client(number, data, &told)).collect();
    let begun = Instant::now();
    for restart in 1..=RESTARTS {
        let due = REQUESTS * restart / (RESTARTS + 1);
        wait_until(Duration::from_secs(120), "requests", || told.asked.load(Ordering::SeqCst) >= due);
        let next = start();
        assert_eq!((next.data, next.admin), (data, admin), "the same sockets");
        assert_eq!(next.admin("/readyz").status, 200);
        served.push(next);
    }
    wait_until(Duration::from_secs(120), "requests", || told.asked.load(Ordering::SeqCst) >= REQUESTS);
    told.stop.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().unwrap());
    let (asked, slowest) = (told.asked.load(Ordering::SeqCst), told.slowest.lock().unwrap());
    println!("{asked} requests over {RESTARTS} restarts in {:?}, the slowest {slowest:?}", begun.elapsed());
    let failed = told.failed.lock().unwrap();
    assert!(failed.is_empty(), "{} of {asked} noticed: {:#?}", failed.len(), &failed[..failed.len().min(5)]);
    let last = served.pop().unwrap();
    served.iter_mut().for_each(Served::ended);
    last.stop();

    let ids = told.ids.lock().unwrap();
    let twice: Vec<_> = ids.iter().filter(|(_, ids)| ids.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    // Each verdict is on record, so two calls to the provider for one payment would be two records.
    let exported = run(weighbridge().args(["audit", "export", "--data-dir"]).arg(site.path("data")));
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    for row in exported.out.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        *rows.entry(row["out_trade_no"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert!(rows.values().all(|rows| *rows == 1), "{:?}", rows.iter().find(|(_, rows)| **rows > 1));
    assert!(ids.keys().all(|name| rows.contains_key(name)));
    let verified = run(weighbridge().args(["audit", "verify", "--data-dir"]).arg(site.path("data")));
    assert_eq!(verified.code, Some(0), "{}", verified.err);
    let left: Vec<_> = fs::read_dir(site.path("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name == "claims") && !site.path("takeover").exists(), "{left:?}");
}

#[test]
fn row_43_one_that_cannot_start_leaves_the_one_that_serves_alone() {
    let upstream = Sandbox::start(&Site::new(), &[]);
    let site = Served::site(&upstream);
    let first = Served::start(&site, &upstream, &["--takeover", "takeover"]);
    let mut command = Served::command(&site, &upstream);
    // It gets the sockets, and then has no place for the record.
    site.write("no-folder", "");
    let refused = run(command.args(["--takeover", "takeover", "--data-dir", "no-folder"]));
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert_eq!((first.chat().status, first.admin("/readyz").status), (200, 200));
    // A process that crashed leaves its socket file behind.
    first.signal("KILL");
    drop(first);
    assert!(site.path("takeover").exists());
    let second = Served::start(&site, &upstream, &["--takeover", "takeover"]);
    assert_eq!(second.chat().status, 200);
    second.signal("TERM");
    second.stop();
    assert!(!site.path("takeover").exists());
}
