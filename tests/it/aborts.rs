//! Ten thousand clients that leave, in every phase of a call and in every way a client can leave (row 45 of the fault
//! matrix): afterwards no task, socket, place, byte or breaker is other than it was before, and every provider that was
//! asked has seen its call closed.
//!
//! Both ends are real sockets of this process. Nothing here measures time, and every client is sure of the phase it
//! leaves in, because the provider tells it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use weighbridge::gateway::build::build;
use weighbridge::upstream::breaker::State;

use crate::harness::sockets::{Dice, Leave, Peer, gone, sockets};
use crate::harness::*;

/// Calls over HTTP/1, each on a connection of its own.
const CALLS: u64 = 9_000;
/// Connections of HTTP/2, and the streams of each that are reset.
const SHARED: u64 = 50;
const STREAMS: u64 = 20;
/// Clients at a time.
const AT_ONCE: u64 = 60;
/// What a client's end and ours buffer of an answer, in bytes.
const SMALL: u32 = 4_096;
/// Far more than anything here takes, on the slowest machine.
const EVER: Duration = Duration::from_secs(120);

/// Where a call is when its client leaves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Phase {
    /// The client has sent half of its request body.
    Sending,
    /// The proxy opens a connection that the provider never finishes to secure.
    Connecting,
    /// Anywhere: the client leaves as soon as it has asked.
    AtOnce,
    /// The provider has the request and says nothing.
    BeforeHeaders,
    /// A stream has begun, without content.
    BeforeContent,
    /// A stream has content, and is silent.
    Silent,
    /// A stream's words keep coming.
    Streaming,
    /// Half of a whole answer has reached the proxy.
    HalfAnswer,
    /// A whole answer that is larger than what the client reads of it.
    Reading,
}

impl Phase {
    const ALL: [Self; 9] = [
        Self::Sending,
        Self::Connecting,
        Self::AtOnce,
        Self::BeforeHeaders,
        Self::BeforeContent,
        Self::Silent,
        Self::Streaming,
        Self::HalfAnswer,
        Self::Reading,
    ];

    fn name(self) -> String {
        format!("{self:?}")
    }

    fn of(request: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| request.contains(&format!("\"user\":\"{}-", phase.name())))
    }

    fn body(self, id: u64) -> Value {
        let model = match self {
            Self::Connecting => "dark",
            Self::HalfAnswer if id.is_multiple_of(2) => "kept",
            _ => "solo",
        };
        let stream = match self {
            Self::BeforeContent | Self::Silent | Self::Streaming => true,
            Self::AtOnce | Self::HalfAnswer | Self::Reading => false,
            _ => id.is_multiple_of(2),
        };
        let text = if self == Self::Sending { "x".repeat(2_000) } else { "hi".to_owned() };
        json!({ "model": model, "stream": stream, "user": format!("{}-{id}", self.name()),
                "messages": [{ "role": "user", "content": text }] })
    }
}

/// What the providers saw of the calls, and who waits to hear of it.
#[derive(Default)]
struct Board {
    waiting: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    arrived: Mutex<BTreeMap<Phase, HashSet<u64>>>,
    closed: Mutex<BTreeMap<Phase, HashSet<u64>>>,
    /// One at a time: a connection that is not secured does not say which call it is for.
    connecting: tokio::sync::Mutex<()>,
}

impl Board {
    async fn turn(&self, phase: Phase) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if phase == Phase::Connecting { Some(self.connecting.lock().await) } else { None }
    }

    /// Ready when the provider has done what the phase needs of it.
    fn expect(&self, id: u64) -> oneshot::Receiver<()> {
        let (reached, waits) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, reached);
        waits
    }

    fn reached(&self, id: u64) {
        // A client that left at once waits for nothing.
        if let Some(waiting) = self.waiting.lock().unwrap().remove(&id) {
            let _ = waiting.send(());
        }
    }

    fn note(list: &Mutex<BTreeMap<Phase, HashSet<u64>>>, phase: Phase, id: u64) {
        assert!(list.lock().unwrap().entry(phase).or_default().insert(id), "{phase:?}-{id} was sent twice");
    }

    fn counted(list: &Mutex<BTreeMap<Phase, HashSet<u64>>>) -> BTreeMap<Phase, usize> {
        list.lock().unwrap().iter().map(|(phase, ids)| (*phase, ids.len())).collect()
    }
}

const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const ROLE: &str =
    "data: {\"id\":\"s\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const WORD: &str = "data: {\"id\":\"s\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"word \"}}]}\n\n";

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn answer(content: &str) -> String {
    let body = json!({ "id": "w", "choices": [{ "message": { "content": content }, "finish_reason": "stop" }] });
    http_reply("200 OK", "", &body.to_string())
}

/// A provider that does what the phase of each request asks for. Kept connections close when `closing` says so.
async fn provider(board: Arc<Board>, closing: watch::Receiver<bool>) -> Peer {
    let large: Arc<str> = Arc::from(answer(&"y".repeat(30_000)));
    Peer::new(move |mut io| {
        let (board, mut closing, large) = (Arc::clone(&board), closing.clone(), Arc::clone(&large));
        async move {
            loop {
                let request = tokio::select! {
                    request = read_request(&mut io) => request,
                    _ = closing.wait_for(|closing| *closing) => return,
                };
                if request.is_empty() {
                    return;
                }
                let Some(phase) = Phase::of(&request) else {
                    io.write_all(answer("healthy").as_bytes()).await.unwrap();
                    continue;
                };
                let id = request.split(&format!("\"user\":\"{}-", phase.name())).nth(1).unwrap();
                let id = id.split('"').next().unwrap().parse().unwrap();
                Board::note(&board.arrived, phase, id);
                if act(phase, id, &mut io, (&board, &large)).await {
                    Board::note(&board.closed, phase, id);
                    return;
                }
            }
        }
    })
    .await
}

/// True if the call was closed from the other side, false if it was answered whole.
async fn act(phase: Phase, id: u64, io: &mut TcpStream, (board, large): (&Board, &str)) -> bool {
    let half = answer("half an answer");
    let says = match phase {
        Phase::BeforeContent => format!("{EVENTS}{}", chunk(ROLE)),
        Phase::Silent | Phase::Streaming => format!("{EVENTS}{}{}", chunk(ROLE), chunk(WORD)),
        Phase::HalfAnswer => half[..half.len() / 2].to_owned(),
        Phase::Reading => large.to_owned(),
        Phase::AtOnce => return io.write_all(answer("too late").as_bytes()).await.is_err(),
        _ => String::new(),
    };
    // Whoever leaves in these phases may leave before all of this is written.
    let whole = io.write_all(says.as_bytes()).await.is_ok();
    board.reached(id);
    match phase {
        Phase::Reading => return !whole,
        Phase::Streaming => {
            let word = chunk(WORD);
            while io.write_all(word.as_bytes()).await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
        }
        _ => gone(io).await,
    }
    true
}

/// A provider that takes connections and never says hello.
async fn dark(board: Arc<Board>) -> Peer {
    Peer::new(move |mut io| {
        let board = Arc::clone(&board);
        async move {
            let mut hello = [0; 1];
            io.read_exact(&mut hello).await.unwrap();
            let waiting = board.waiting.lock().unwrap().keys().copied().find(|id| *id % PHASES == CONNECTING);
            board.reached(waiting.expect("one at a time"));
            gone(&io).await;
        }
    })
    .await
}

const PHASES: u64 = Phase::ALL.len() as u64;
const CONNECTING: u64 = 1;

/// The phase of a call follows from its number.
fn phase_of(id: u64) -> Phase {
    Phase::ALL[(id % PHASES) as usize]
}

/// A connection whose system buffers little, so that an answer that is not read stays where it is.
async fn connected(proxy: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(SMALL).unwrap();
    socket.connect(proxy).await.unwrap()
}

/// One client over HTTP/1 that leaves. What it sends and how it leaves follows from its number.
async fn leave(id: u64, proxy: SocketAddr, board: Arc<Board>) {
    let phase = phase_of(id);
    let ways = [Leave::Close, Leave::Reset, Leave::HalfClose];
    let way = ways[Dice::new(id).roll(ways.len() as u64) as usize];
    let body = phase.body(id).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: proxy.test\r\nauthorization: Bearer {SHOP}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let sent = if phase == Phase::Sending { &body[..body.len() / 2] } else { &body };
    let _turn = board.turn(phase).await;
    let reached = board.expect(id);
    let mut io = connected(proxy).await;
    io.write_all(format!("{head}{sent}").as_bytes()).await.unwrap();
    match phase {
        Phase::Sending | Phase::AtOnce => {}
        Phase::Silent | Phase::Streaming | Phase::Reading => {
            let mut some = [0; 1024];
            let read = io.read(&mut some).await.unwrap();
            assert!(some.starts_with(b"HTTP/1.1 200 OK"), "{phase:?}: {}", String::from_utf8_lossy(&some[..read]));
        }
        _ => reached.await.unwrap(),
    }
    way.act(io).await;
}

/// A client whose streams share one connection of HTTP/2: each is reset in its phase, one is answered.
async fn reset_streams(number: u64, proxy: SocketAddr, board: Arc<Board>) {
    let io = connected(proxy).await;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    let driver = tokio::spawn(connection);
    let ask = |body: Value| {
        let request =
            Request::post("http://proxy.test/v1/chat/completions").header("authorization", format!("Bearer {SHOP}"));
        let request = request.header("content-type", "application/json").body(Full::<Bytes>::from(body.to_string()));
        sender.clone().send_request(request.unwrap())
    };
    let resets = (0..STREAMS).map(|stream| CALLS + number * STREAMS + stream).map(async |id| {
        let phase = phase_of(id);
        let _turn = board.turn(phase).await;
        let reached = board.expect(id);
        let mut asked = Box::pin(ask(phase.body(id)));
        match phase {
            // Over HTTP/2 the client's body is one frame: it is all there, or the call is not made.
            Phase::Sending | Phase::AtOnce => drop(timeout(Duration::from_millis(1), asked).await),
            Phase::Silent | Phase::Streaming | Phase::Reading => {
                let mut answer = asked.await.unwrap();
                assert_eq!(answer.status(), 200, "{phase:?}");
                drop(answer.frame().await.unwrap().unwrap());
            }
            _ => tokio::select! {
                _ = &mut asked => panic!("{phase:?} was answered"),
                reached = reached => reached.unwrap(),
            },
        }
    });
    join_all(resets).await;
    let answered = ask(chat("solo")).await.unwrap();
    assert_eq!(answered.status(), 200, "resets of other streams do it no harm");
    assert!(answered.collect().await.unwrap().to_bytes().starts_with(b"{"));
    drop(sender);
    driver.await.unwrap().unwrap();
}

/// A thread of their own for clients and providers, so that the proxy has its runtime to itself.
struct Outside {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Outside {
    fn new() -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        std::thread::spawn(move || runtime.block_on(stopped));
        Self { handle, _stop: stop }
    }

    async fn run<T: Send + 'static>(&self, what: impl Future<Output = T> + Send + 'static) -> T {
        self.handle.spawn(what).await.unwrap()
    }
}

/// All clients, so many at a time.
async fn all_leave(proxy: SocketAddr, board: Arc<Board>) {
    let mut running = JoinSet::new();
    for id in 0..CALLS {
        if id >= AT_ONCE {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(leave(id, proxy, Arc::clone(&board)));
        if id % (CALLS / SHARED) == 0 {
            running.spawn(reset_streams(id / (CALLS / SHARED), proxy, Arc::clone(&board)));
        }
    }
    while let Some(left) = running.join_next().await {
        left.unwrap();
    }
}

/// Polls until `left` is nothing; fails with what is left.
async fn until_none<T: std::fmt::Debug + Default + PartialEq>(what: &str, left: impl Fn() -> T) {
    let none = async {
        while left() != T::default() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(EVER, none).await.is_ok(), "{what}: {:?} are left", left());
}

fn plan() -> Plan {
    let routes = ROUTES.replace("\"kept\"]", "\"kept\", \"dark\"]");
    let dark = "[model.dark]\ncandidates = [\"gamma/fast\"]\ntimeouts = { connect = \"60s\" }\n\n[risk]";
    let slow = r#"total = "600s", connect = "60s", first_content = "600s", idle = "600s""#;
    let usual = r#"total = "30s", connect = "1s", first_content = "5s", idle = "10s""#;
    // No limit of ours ends a call: only its client does.
    Plan { routes: routes.replace(usual, slow).replace("[risk]", dark), ..Plan::default() }
}

#[tokio::test]
async fn row_45_ten_thousand_clients_that_leave_in_every_phase_leave_nothing_behind() {
    assert_eq!(phase_of(CONNECTING), Phase::Connecting);
    let (board, (close, closing)) = (Arc::new(Board::default()), watch::channel(false));
    let outside = Outside::new();
    let (first, second) = (provider(Arc::clone(&board), closing), dark(Arc::clone(&board)));
    let (alpha, gamma) = outside.run(async { (first.await, second.await) }).await;
    let world = World::with(&plan());
    world.net.always("alpha", alpha.link());
    world.net.always("gamma", gamma.tls_link());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let ports = [proxy.port(), alpha.address.port(), gamma.address.port()];
    let healthy = async || assert_eq!(world.chat(&chat("solo")).await.said(), "healthy");
    let idle = || world.live.load().providers()["alpha"].pool.idle();
    let alive = || (Handle::current().metrics().num_alive_tasks(), outside.handle.metrics().num_alive_tasks());
    let more = |now: (usize, usize), then: (usize, usize)| (now.0.abs_diff(then.0), now.1.abs_diff(then.1));

    healthy().await;
    // The kept connection of the one call, and outside its other end and two who accept.
    let tasks = (1, 3);
    until_none("tasks", || more(alive(), tasks)).await;
    let (kept, open) = (idle(), sockets(&ports));
    assert_eq!((kept, open), (1, 3 + 2), "three listeners, and one kept connection with its two ends");

    let serving = async {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            io.set_nodelay(true).unwrap();
            SockRef::from(&io).set_send_buffer_size(SMALL as usize).unwrap();
            world.accept(io);
        }
    };
    tokio::select! {
        () = serving => {}
        left = timeout(EVER, outside.run(all_leave(proxy, Arc::clone(&board)))) => left.unwrap(),
    }

    until_none("requests", || world.shared.gate.in_flight()).await;
    until_none("body bytes", || world.shared.gate.held_bytes()).await;
    world.assert_idle();
    until_none("calls that their provider did not see closed", || {
        let (arrived, closed) = (Board::counted(&board.arrived), Board::counted(&board.closed));
        let unanswered = |phase: &Phase| ![Phase::AtOnce, Phase::Reading].contains(phase);
        let open = |(phase, count): (Phase, usize)| (phase, count - closed.get(&phase).copied().unwrap_or(0));
        let open = arrived.into_iter().filter(|(phase, _)| unanswered(phase)).map(open);
        open.filter(|(_, count)| *count > 0).collect::<Vec<_>>()
    })
    .await;
    until_none("connections that were not secured", || gamma.open.load(std::sync::atomic::Ordering::SeqCst)).await;
    assert!(idle() <= 64, "{} idle connections", idle());

    // Kept connections are no leak; when the provider closes them, all is as before.
    close.send(true).unwrap();
    alpha.left_alone().await;
    close.send(false).unwrap();
    healthy().await;
    until_none("tasks", || more(alive(), tasks)).await;
    until_none("sockets", || sockets(&ports).saturating_sub(open)).await;
    assert_eq!((idle(), sockets(&ports), alive()), (kept, open, tasks));

    let each = (CALLS + SHARED * STREAMS) as usize / Phase::ALL.len();
    let arrived = Board::counted(&board.arrived);
    for phase in Phase::ALL {
        let count = arrived.get(&phase).copied().unwrap_or(0);
        match phase {
            Phase::Sending | Phase::Connecting => assert!(count <= each / 10, "{phase:?}: {count}"),
            Phase::AtOnce => assert!(count <= each, "{count}"),
            _ => assert!(count.abs_diff(each) <= 1, "{phase:?}: {count} of {each}"),
        }
    }
    for upstream in ["alpha/fast", "gamma/fast"] {
        assert_eq!(world.breaker(upstream), State::Closed, "{upstream}: clients that leave say nothing of a provider");
    }
    let failed = world.metric("weighbridge_upstream_attempts_total", &["outcome=\"failed\""]);
    assert!(failed.abs() < f64::EPSILON, "{failed}");
    let gone = world.metric("weighbridge_requests_total", &["outcome=\"client_gone\""]);
    assert!(gone >= 7.0 * each as f64, "all but those that never asked or left too soon to be noticed: {gone}");

    // Nobody holds the configuration they came with.
    let next = build(table(&plan()), Some(&world.live.load_full()), &world.shared);
    world.live.store(Arc::new(next));
    until_none("old snapshots", || world.metric("weighbridge_config_snapshots_alive", &[]) as usize - 1).await;
}
