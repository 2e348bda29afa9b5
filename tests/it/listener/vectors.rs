//! RELIABILITY table 1.2, vector by vector: each row of the table, and each spelling a row lists, is one numbered vector.
//! It is written byte by byte to a real listener on loopback, in front of a provider that keeps every byte it is sent.
//!
//! A vector that is refused has a whole and harmless request right behind it: whoever cuts the first one wrongly would
//! serve the second. One that is served has it too, and must be cut so that it is served as well.
//!
//! F3, which is about HTTP/2, has its vectors in `h2.rs`.

mod slow;
mod table;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use weighbridge::gateway::stack;
use weighbridge::server::shutdown::Shutdown;
use weighbridge::server::{Server, ServerConfig, bind};

use crate::harness::sockets::Peer;
use crate::harness::*;

/// The body of a vector, and of the request behind it.
const BODY: &str = r#"{"model":"solo","messages":[{"role":"user","content":"the vector"}]}"#;
const NEXT: &str = r#"{"model":"solo","messages":[{"role":"user","content":"the next"}]}"#;
const ANSWER: &str = r#"{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;
/// Longer than anything here takes on a slow machine; nothing waits for it unless it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the table demands of a vector.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Rule {
    /// Answered with this, closed, and nobody else hears of it or of what follows.
    Refuse(u16),
    /// Answered with this, as is what follows it, which is no request any more; closed, and nobody else hears of either.
    RefuseBoth(u16),
    /// Answered with this, and nobody else hears of it; what follows is a request of its own.
    Decline(u16),
    /// Served, and so is what follows.
    Serve,
    /// As [`Rule::Serve`], and told to go on first.
    Continue,
    /// As many requests, each answered with this; nobody else hears of them. What follows is a request of its own.
    DeclineAll(u16, usize),
    /// As many are served, then one is answered with this and all is closed.
    ServeThenRefuse(usize, u16),
    /// Served or refused, but in either case closed, with what follows unread.
    ServeOrRefuse,
}

/// One of the table's.
struct Vector {
    /// The row, as the table writes it.
    row: &'static str,
    /// Which of its spellings.
    what: &'static str,
    bytes: Vec<u8>,
    rule: Rule,
}

/// A listener with the real stack behind it, and a provider that records.
struct Site {
    world: World,
    server: Server,
    _provider: Peer,
    recorded: Arc<Mutex<Vec<u8>>>,
}

impl Site {
    async fn new() -> Self {
        Self::with(&Plan::default()).await
    }

    async fn with(plan: &Plan) -> Self {
        let (world, recorded) = (World::with(plan), Arc::<Mutex<Vec<u8>>>::default());
        let kept = Arc::clone(&recorded);
        let provider = Peer::new(move |io| record(io, Arc::clone(&kept))).await;
        world.net.always("alpha", provider.link());
        let limits = plan.limits;
        let config = ServerConfig {
            listener: bind("127.0.0.1:0".parse().unwrap()).unwrap(),
            workers: 1,
            limits: Arc::new(move || limits),
            tls: None,
            metrics: Arc::clone(&world.metrics),
            shutdown: Shutdown::new(),
        };
        let service = stack::ingress(&world.live, &world.shared);
        let server = Server::start(config, move |_| service.clone()).unwrap();
        Self { world, server, _provider: provider, recorded }
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What the provider was sent since it was last asked.
    fn sent(&self) -> Vec<u8> {
        std::mem::take(&mut *self.recorded.lock().unwrap())
    }

    /// Writes `bytes` and reads until the other side closes. The second is whether it did.
    async fn said(&self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let (mut from, mut to) = TcpStream::connect(self.address()).await.unwrap().into_split();
        let bytes = bytes.to_vec();
        // Written apart: it may answer and hang up before all of it is read. Our side stays open meanwhile.
        let writing = tokio::spawn(async move {
            let _ = to.write_all(&bytes).await;
            to
        });
        let mut answer = Vec::new();
        let closed = timeout(PATIENCE, from.read_to_end(&mut answer)).await;
        // A reset is a close too, if a rude one: what came before it counts.
        drop(writing.await);
        (answer, closed.is_ok())
    }

    /// What is wrong if the vector was not treated as its rule says.
    async fn wrong(&self, number: usize, vector: &Vector) -> Option<String> {
        let what = format!("vector {number}, {}: {}", vector.row, vector.what);
        let (answer, closed) = self.said(&[&vector.bytes, next().as_bytes()].concat()).await;
        let (statuses, sent) = (statuses(&answer), self.sent());
        let requests = match requests(&sent) {
            Ok(requests) => requests,
            Err(odd) => return Some(format!("{what}: the provider read {odd}: {}", String::from_utf8_lossy(&sent))),
        };
        if !closed {
            return Some(format!("{what}: the connection is still open after {statuses:?}"));
        }
        let renamed = |body: &str| body.replace("solo", "alpha-fast-1");
        let both = [renamed(BODY), renamed(NEXT)];
        let held = match vector.rule {
            Rule::Refuse(status) => statuses == [status] && requests.is_empty(),
            Rule::RefuseBoth(status) => statuses == [status; 2] && requests.is_empty(),
            Rule::Decline(status) => statuses == [status, 200] && requests == both[1..],
            Rule::DeclineAll(status, many) => {
                statuses == [vec![status; many], vec![200]].concat() && requests == both[1..]
            }
            Rule::ServeThenRefuse(many, status) => {
                statuses == [vec![200; many], vec![status]].concat() && requests == vec![both[0].clone(); many]
            }
            Rule::Serve => statuses == [200, 200] && requests == both,
            Rule::Continue => statuses == [100, 200, 200] && requests == both,
            Rule::ServeOrRefuse => match statuses[..] {
                [400] => requests.is_empty(),
                [200] => requests == both[..1],
                _ => false,
            },
        };
        (!held).then(|| format!("{what}: not {:?}, but {statuses:?} and {requests:?}", vector.rule))
    }
}

/// Keeps all it reads, and answers each request in it.
async fn record(mut io: TcpStream, kept: Arc<Mutex<Vec<u8>>>) {
    let (mut unanswered, mut piece) = (Vec::new(), [0; 16 * 1024]);
    while let Ok(many @ 1..) = io.read(&mut piece).await {
        kept.lock().unwrap().extend_from_slice(&piece[..many]);
        unanswered.extend_from_slice(&piece[..many]);
        while let Ok((_, rest)) = request(&unanswered) {
            unanswered = rest.to_vec();
            if io.write_all(http_reply("200 OK", "", ANSWER).as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Every status in an answer, interim ones included.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    text.split("HTTP/1.").skip(1).map(|rest| rest[2..5].parse().unwrap()).collect()
}

/// The bodies of requests, of which each is written in the one way that everybody reads alike.
fn requests(mut bytes: &[u8]) -> Result<Vec<String>, String> {
    let mut bodies = Vec::new();
    while !bytes.is_empty() {
        let (body, rest) = request(bytes)?;
        bodies.push(body);
        bytes = rest;
    }
    Ok(bodies)
}

/// The body of the first request, and what follows it.
fn request(bytes: &[u8]) -> Result<(String, &[u8]), String> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or("no whole head")?;
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is no text")?;
    let mut lines = head.split("\r\n");
    if lines.next() != Some("POST /alpha/v1/chat/completions HTTP/1.1") {
        return Err("another request line".to_owned());
    }
    let allowed = ["host", "user-agent", "content-type", "accept-encoding", "authorization", "content-length"];
    let (mut names, mut length) = (Vec::new(), None);
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or("a line that is no field")?;
        let odd = |byte: u8| byte.is_ascii_control();
        if !allowed.contains(&name) || names.contains(&name) || value.bytes().any(odd) || value.trim() != value {
            return Err(format!("the line {line:?}"));
        }
        names.push(name);
        if name == "content-length" {
            length = value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse::<usize>().unwrap());
        }
    }
    let rest = &bytes[end + 4..];
    let length = length.ok_or("no length")?;
    let body = rest.get(..length).ok_or("half a body")?;
    Ok((String::from_utf8_lossy(body).into_owned(), &rest[length..]))
}

fn raw(line: &str, headers: &str, body: &str) -> String {
    format!("{line}\r\nauthorization: Bearer {SHOP}\r\ncontent-type: application/json\r\n{headers}\r\n{body}")
}

/// A chat completion with these framing fields; all have a host.
fn post(headers: &str, body: &str) -> String {
    raw("POST /v1/chat/completions HTTP/1.1", &format!("host: a\r\n{headers}"), body)
}

fn length(of: &str) -> String {
    format!("content-length: {}\r\n", of.len())
}

/// The last request of a connection.
fn next() -> String {
    post(&format!("{}connection: close\r\n", length(NEXT)), NEXT)
}

#[tokio::test]
async fn each_vector_of_the_table_is_treated_as_the_table_says() {
    let site = Site::new().await;
    let vectors = table::vectors();
    let mut wrong = Vec::new();
    for (at, vector) in vectors.iter().enumerate() {
        wrong.extend(site.wrong(at + 1, vector).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Those of `slow` are told apart by when something happens.
    let (told, timed) = (vectors.len(), slow::VECTORS);
    assert!(told + timed >= 61, "{told} vectors and {timed} with a clock");
    let rows: std::collections::BTreeSet<_> = vectors.iter().map(|vector| vector.row).collect();
    assert_eq!(rows.len() + slow::ROWS, table::ROWS, "a row of the table is missing: {rows:?}");
    assert!(site.sent().is_empty(), "nothing came later");
    site.world.assert_idle();
}

#[test]
fn the_provider_of_these_tests_takes_only_canonical_requests_for_canonical() {
    let good = "POST /alpha/v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi";
    assert_eq!(requests(good.repeat(2).as_bytes()), Ok(vec!["hi".to_owned(); 2]));
    for (from, to) in [
        ("\r\nhost", "\nhost"),
        ("host: a", "host: a\r\ncontent-length: 2"),
        ("host: a", "host: a\r\ntransfer-encoding: chunked"),
        ("length: 2", "length: +2"),
        ("length: 2", "length: 3"),
        ("length: 2", "length: 1"),
        ("host: a", "host: a\rb"),
        ("host: a", "host: a\r\nx-evil: 1"),
        ("/alpha/v1/chat", "/alpha/v1/../chat"),
    ] {
        assert!(requests(good.replacen(from, to, 1).as_bytes()).is_err(), "{to:?}");
    }
}
