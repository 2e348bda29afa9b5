//! What the tests of this floor and those above are made of: configurations from a few lines of text, calls, replies,
//! and a network in memory whose other end is a simulated provider or a few scripted bytes.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

use crate::config::table::RoutingTable;
use crate::config::{CompileOptions, SecretPolicy, Secrets, SourceFile, Sources, compile};
use crate::domain::deadline::Deadline;
use crate::domain::id::UpstreamId;
use crate::domain::operation::{Dialect, Operation};
use crate::domain::outcome::FailureClass;
use crate::domain::secret::{Secret, SecretSource};
use crate::flight::call::{CacheWish, Call, CallContext, Facts, RiskFacts};
use crate::flight::facts::LlmFacts;
use crate::flight::reply::{Reply, ReplyBody, UsageSlot};
use crate::flight::shares::Standing;
use crate::flight::trail::Trail;
use crate::flight::velocity::Readings;
use crate::sandbox::{SandboxBody, serve_connection};
use crate::telemetry::metrics::Metrics;
use crate::upstream::attempt::Attempt;
use crate::upstream::dial::{Dial, Dialling, Io, Origin};
use crate::upstream::live::{Fleet, LiveUpstream};
use crate::wire::openai::peek_request;
use crate::wire::risk::decode;
use crate::wire::sse::Event;

/// The secret of every credential: 32 bytes once read as hex, long enough as a key.
pub(crate) const SECRET_TEXT: &str = "4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f";

struct SameForAll;

impl SecretSource for SameForAll {
    fn env(&self, _: &str) -> Option<Secret> {
        Some(Secret::new(SECRET_TEXT.into()))
    }

    fn file(&self, path: &str) -> Option<Secret> {
        self.env(path)
    }
}

/// Two LLM providers that can be told apart, and one that judges payments.
pub(crate) const PROVIDERS: [&str; 3] = [
    r#"
id = "agg"
protocol = "openai"
base_url = "https://agg.example/agg/v1"
source = { url = "https://agg.example/docs", checked = "2026-11-22" }
auth = { kind = "bearer", secret_env = "AGG_API_KEY" }
operations = ["chat.completions"]
quota_group = "shared"
[[model]]
id = "fast"
name = "vendor/fast-2"
price = { input_per_million_tokens = "0.30 USD", output_per_million_tokens = "1.20 USD", source = "https://agg.example/prices", checked = "2026-11-22" }
[[model]]
id = "clever"
name = "vendor/clever"
"#,
    r#"
id = "other"
protocol = "openai"
base_url = "https://other.example/other/v1"
source = { url = "https://other.example/docs", checked = "2026-11-22" }
auth = { kind = "bearer", secret_env = "OTHER_API_KEY" }
operations = ["chat.completions"]
quota_group = "shared"
[[model]]
id = "fast"
name = "fast-too"
"#,
    r#"
id = "judge"
protocol = "di-hmac"
base_url = "https://judge.example"
source = { url = "https://judge.example/docs", checked = "2026-11-22" }
auth = { kind = "di-hmac", key_id = "sandbox-1", secret_env = "JUDGE_SECRET", secret_encoding = "hex" }
operations = ["risk.assess"]
price = { standard = "0.02 CNY", source = "https://judge.example/prices", checked = "2026-11-22" }
"#,
];

const ROUTES: &str = r#"
version = 1
[[caller]]
id = "checkout"
key_digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
allow = ["risk", "summary"]
[[caller]]
id = "back-office"
tenant = "elsewhere"
key_digest = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
allow = ["risk", "summary"]
[model.summary]
candidates = ["agg/fast", "other/fast", "agg/clever"]
[risk]
candidates = ["judge"]
bands = { pass_below = 0.3, review_from = 0.7 }
"#;

/// The table of [`PROVIDERS`] and their routes.
pub(crate) fn table() -> RoutingTable {
    table_of(&PROVIDERS)
}

/// The table of these provider files.
pub(crate) fn table_of(providers: &[&str]) -> RoutingTable {
    let file = |name: String, text: &str| SourceFile { name, text: text.to_owned() };
    let providers = providers.iter().enumerate().map(|(index, text)| file(format!("providers/{index}.toml"), text));
    let sources = Sources {
        routes: vec![file("routes.toml".into(), ROUTES)],
        providers: providers.collect(),
        ..Sources::default()
    };
    let secrets = Secrets { source: &SameForAll, policy: SecretPolicy::Required };
    compile(&sources, &CompileOptions { secrets, rewire: None }).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

type Peer = Box<dyn Fn(usize, DuplexStream) + Send + Sync>;

/// A network in memory: every connection gets the same kind of peer.
pub(crate) struct Memory {
    peer: Peer,
    dialled: AtomicUsize,
    refusing: AtomicBool,
}

impl Memory {
    /// Every connection, numbered from 0, is handed to `peer`, which runs in a task of its own.
    pub(crate) fn scripted<F>(peer: impl Fn(usize, DuplexStream) -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let peer = Box::new(move |number, io| drop(tokio::spawn(peer(number, io))));
        Arc::new(Self { peer, dialled: AtomicUsize::new(0), refusing: AtomicBool::new(false) })
    }

    /// Every connection is served over real HTTP.
    pub(crate) fn serving<H, F>(handler: H) -> Arc<Self>
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = io::Result<Response<SandboxBody>>> + Send + 'static,
    {
        Self::scripted(move |_, io| {
            let handler = handler.clone();
            async move { serve_connection(io, handler).await }
        })
    }

    /// From now on nobody is at home, or again somebody.
    pub(crate) fn refuse(&self, refusing: bool) {
        self.refusing.store(refusing, Ordering::SeqCst);
    }

    /// Connections made so far.
    pub(crate) fn dialled(&self) -> usize {
        self.dialled.load(Ordering::SeqCst)
    }
}

impl Dial for Memory {
    fn dial<'a>(&'a self, _: &'a Origin, _: Duration) -> Dialling<'a> {
        if self.refusing.load(Ordering::SeqCst) {
            return Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) });
        }
        let (near, far) = tokio::io::duplex(64 * 1024);
        (self.peer)(self.dialled.fetch_add(1, Ordering::SeqCst), far);
        Box::pin(async { Ok(Box::new(near) as Box<dyn Io>) })
    }
}

/// Everything of `table` made live over `dial`.
pub(crate) fn fleet(table: &RoutingTable, dial: &Arc<Memory>) -> Fleet {
    let dial: Arc<dyn Dial> = Arc::clone(dial) as Arc<dyn Dial>;
    Fleet::build(table, &Fleet::default(), &dial, &Metrics::new())
}

/// One live upstream of [`table`] over `dial`.
pub(crate) fn live(upstream: &str, dial: &Arc<Memory>) -> Arc<LiveUpstream> {
    Arc::clone(&fleet(&table(), dial).upstreams[&UpstreamId::new(upstream)])
}

fn context(table: &RoutingTable, caller: usize) -> CallContext {
    CallContext {
        quota: None,
        allowance: None,
        id: crate::domain::id::RequestId::parse("req_test").unwrap(),
        caller: Arc::clone(&table.callers()[caller]),
        arrived: Instant::now(),
        standing: Standing::default(),
        trail: Trail::default(),
        cache: CacheWish::Default,
        forwarded: HeaderMap::new(),
        conversation: None,
        idempotency_key: None,
        trace: None,
    }
}

/// A chat call that arrived now and has a minute.
pub(crate) fn llm_call(body: impl Into<Bytes>) -> Call {
    llm_call_of(0, body, CacheWish::Default)
}

/// As [`llm_call`], by caller 0 (tenant `checkout`) or 1 (tenant `elsewhere`).
pub(crate) fn llm_call_of(caller: usize, body: impl Into<Bytes>, cache: CacheWish) -> Call {
    let body = body.into();
    let facts = peek_request(&body, 64).unwrap();
    let facts = LlmFacts {
        stream: facts.stream,
        include_usage: facts.include_usage,
        keeps_usage: false,
        has_stream_options: facts.has_stream_options,
        plain: false,
        anchored: false,
        model_at: facts.model_at(&body).map(|at| crate::flight::facts::Span { start: at.start, end: at.end }),
    };
    let context = CallContext { cache, ..context(&table(), caller) };
    Call {
        operation: Operation::ChatCompletions,
        deadline: Deadline::after(context.arrived, Duration::from_secs(60)),
        facts: Facts::Llm(facts),
        upload: None,
        carried: None,
        context: Arc::new(context),
        body,
    }
}

/// A payment attempt over `amount` CNY that arrived now; its deadlines are the route's.
pub(crate) fn risk_call(out_trade_no: &str, amount: &str) -> Call {
    risk_call_of(0, out_trade_no, amount)
}

/// As [`risk_call`], by one of the two callers.
pub(crate) fn risk_call_of(caller: usize, out_trade_no: &str, amount: &str) -> Call {
    let table = table();
    let route = Arc::clone(table.risk_route().unwrap());
    let ruling = Arc::clone(&route.ruling);
    let body = format!(
        r#"{{"out_trade_no":"{out_trade_no}","total_amount":"{amount}","currency":"CNY","subject":"shoes",
            "merchant":{{"id":"m-1"}},"user":{{"id":"u-1"}}}}"#
    );
    let assessment = decode(body.as_bytes()).unwrap_or_else(|errors| panic!("{errors:?}"));
    let context = context(&table, caller);
    Call {
        operation: Operation::RiskAssess,
        deadline: Deadline::after(context.arrived, route.hard_limit),
        facts: Facts::Risk(Arc::new(RiskFacts {
            assessment,
            route,
            ruling,
            features_dropped: Vec::new(),
            velocity: Readings::default(),
        })),
        upload: None,
        carried: None,
        context: Arc::new(context),
        body: body.into(),
    }
}

/// A first attempt with ten seconds to its first content and five of patience within the body.
pub(crate) fn attempt(call: Call) -> Attempt {
    let begun = Instant::now();
    let limit = begun + Duration::from_secs(10);
    Attempt {
        call,
        number: 1,
        begun,
        limit,
        fair: limit,
        patience: Duration::ZERO,
        connect: Duration::from_secs(1),
        idle: Duration::from_secs(5),
    }
}

fn reply(body: ReplyBody, complete: bool) -> Reply {
    let (status, headers, usage) = (StatusCode::OK, HeaderMap::new(), UsageSlot::default());
    Reply { status, headers, body, usage, complete, decision: None }
}

/// A complete whole answer.
pub(crate) fn whole(text: &'static str) -> Reply {
    reply(ReplyBody::whole(Bytes::from_static(text.as_bytes())), true)
}

/// A streamed answer.
pub(crate) fn streamed(events: impl Stream<Item = Result<Event, FailureClass>> + Send + 'static) -> Reply {
    reply(ReplyBody::events(Box::pin(events), Dialect::OpenAi), false)
}

/// These events and nothing more.
pub(crate) fn events(texts: &[&str]) -> impl Stream<Item = Result<Event, FailureClass>> + Send + use<> {
    let event = |text: &&str| if *text == "[DONE]" { Event::done() } else { Event::from_data(text.as_bytes()) };
    stream::iter(texts.iter().map(event).collect::<Vec<_>>()).map(Ok)
}

/// The value of the series that starts with this text, 0 if there is none.
pub(crate) fn sample(metrics: &Metrics, series: &str) -> f64 {
    let text = metrics.render();
    let line = text.lines().find(|line| line.starts_with(series));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
}

/// The next request a raw peer is sent, head and body, or nothing if the other side closed first.
pub(crate) async fn read_request(io: &mut DuplexStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
            if body.len() >= length.parse().unwrap() {
                return Some(text);
            }
        }
        if io.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// Answers as a raw peer, with a length.
pub(crate) async fn answer(io: &mut DuplexStream, body: &str) {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    io.write_all(head.as_bytes()).await.unwrap();
}

/// What a raw peer does after its head.
#[derive(Clone)]
pub(crate) enum Piece {
    /// One chunk.
    Say(&'static str),
    /// A pause.
    Wait(Duration),
    /// The connection closes in the middle.
    Cut,
    /// Nothing more, and it stays open.
    Hang,
}

/// A peer that answers every request with an event stream of these pieces, and ends it well if none says otherwise.
pub(crate) fn events_of(pieces: &[Piece]) -> Arc<Memory> {
    let pieces = pieces.to_vec();
    Memory::scripted(move |_, mut io| {
        let pieces = pieces.clone();
        async move {
            while read_request(&mut io).await.is_some() {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                io.write_all(head.as_bytes()).await.unwrap();
                for piece in &pieces {
                    match piece {
                        Piece::Say(text) => {
                            let chunk = format!("{:x}\r\n{text}\r\n", text.len());
                            if io.write_all(chunk.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                        Piece::Wait(time) => tokio::time::sleep(*time).await,
                        Piece::Cut => return,
                        Piece::Hang => drop(read_request(&mut io).await),
                    }
                }
                io.write_all(b"0\r\n\r\n").await.unwrap();
            }
        }
    })
}
