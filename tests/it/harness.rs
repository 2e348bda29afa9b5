//! The whole product in memory: the real stack between a client and simulated providers, every wire a pipe, every clock
//! paused. It starts no listener, no worker and no admin plane: those have tests of their own.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::{Future, pending};
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use weighbridge::config::table::{BaseUrl, Protocol, RoutingTable};
use weighbridge::config::{CompileOptions, SecretPolicy, Secrets, SourceFile, Sources, compile, render_all};
use weighbridge::domain::id::ProviderId;
use weighbridge::domain::secret::{Secret, SecretSource};
use weighbridge::gateway::snapshot::{Live, Shared, Snapshot};
use weighbridge::gateway::stack;
use weighbridge::layer::admission::Gate;
use weighbridge::layer::cache::Store;
use weighbridge::layer::idempotency::Ledger;
use weighbridge::sandbox::aggregator::{self, Aggregator, AggregatorConfig};
use weighbridge::sandbox::alipay::{Alipay, AlipayConfig};
use weighbridge::sandbox::fault::{Fault, Faults};
use weighbridge::sandbox::serve_connection;
use weighbridge::server::connection::{ConnectionLimits, serve};
use weighbridge::server::shutdown::Shutdown;
use weighbridge::sign::hmac::sha256_hex;
use weighbridge::telemetry::access::AccessLog;
use weighbridge::telemetry::labels::ConnectionEnd;
use weighbridge::telemetry::lines::LineWriter;
use weighbridge::telemetry::logs::LogFormat;
use weighbridge::telemetry::metrics::Metrics;
use weighbridge::upstream::breaker::State;
use weighbridge::upstream::dial::{Dial, Io, Origin};

/// The key of the caller `shop`, who may do everything.
pub const SHOP: &str = "wb-test-shop-0123456789abcdef";
/// The key of the caller `office` of another tenant, who may not ask for decisions.
pub const OFFICE: &str = "wb-test-office-0123456789abcdef";
/// The simulated LLM providers.
pub const LLMS: [&str; 3] = ["alpha", "beta", "gamma"];
/// Where a client's bytes wait.
pub const PIPE: usize = 64 * 1024;

/// Routes as most tests want them. `solo` has one candidate, `duo` two, `trio` three, `kept` a cache.
pub const ROUTES: &str = r#"
version = 1

[[caller]]
id = "shop"
tenant = "shop-eu"
key_digest = "sha256:SHOP_DIGEST"
allow = ["risk", "solo", "duo", "trio", "kept"]

[[caller]]
id = "office"
tenant = "other"
key_digest = "sha256:OFFICE_DIGEST"
allow = ["duo", "kept"]

[model.solo]
candidates = ["alpha/fast"]
timeouts = { total = "30s", connect = "1s", first_content = "5s", idle = "10s" }

[model.duo]
candidates = ["alpha/fast", "beta/fast"]
timeouts = { total = "30s", connect = "1s", first_content = "5s", idle = "10s" }

[model.trio]
candidates = ["alpha/fast", "beta/fast", "gamma/fast"]
timeouts = { total = "30s", connect = "1s", first_content = "5s", idle = "10s" }

[model.kept]
candidates = ["alpha/fast", "beta/fast"]
timeouts = { total = "30s", connect = "1s", first_content = "5s", idle = "10s" }
cache = { ttl = "10m" }

[risk]
candidates = ["alipay"]
bands = { pass_below = 0.3, review_from = 0.7 }
on_exhausted = "review"

[limits]
head_timeout = "10s"
"#;

/// What a provider's key is here.
pub fn provider_key(provider: &str) -> String {
    format!("sk-CANARY-{provider}-0123456789abcdef")
}

/// What the simulated Alipay and the proxy sign with, as configuration spells it.
pub fn signing_secret() -> String {
    "4f".repeat(32)
}

/// What a connection to a provider leads to.
#[derive(Clone)]
pub enum Link {
    /// The simulator.
    Simulator,
    /// Nobody listens there.
    Refused,
    /// No answer to the connection attempt, ever.
    BlackHole,
    /// A peer made of a few lines of test.
    Scripted(Script),
}

type Script = Arc<dyn Fn(DuplexStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A peer that does `act` with every connection.
pub fn peer<F>(act: impl Fn(DuplexStream) -> F + Send + Sync + 'static) -> Link
where
    F: Future<Output = ()> + Send + 'static,
{
    Link::Scripted(Arc::new(move |io| Box::pin(act(io))))
}

/// A peer that reads one request, says `reply` and closes.
pub fn says(reply: impl Into<Vec<u8>>) -> Link {
    let reply: Arc<[u8]> = reply.into().into();
    peer(move |mut io| {
        let reply = Arc::clone(&reply);
        async move {
            read_request(&mut io).await;
            // The proxy may hang up in the middle, which is its right.
            let _ = io.write_all(&reply).await;
        }
    })
}

/// A whole JSON reply as a provider writes it.
pub fn http_reply(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// Reads one request with a declared length. Empty if there was none.
pub async fn read_request(io: &mut DuplexStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        match io.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return String::new(),
            Ok(_) => {}
        }
    }
}

/// The network between the proxy and its providers.
pub struct Net {
    llms: BTreeMap<&'static str, Aggregator>,
    alipay: Alipay,
    plans: Mutex<HashMap<String, (VecDeque<Link>, Link)>>,
    dialled: Mutex<Vec<String>>,
    pipe: usize,
}

impl Net {
    /// The next connections to `provider` lead to these, later ones to `then`.
    pub fn script(&self, provider: &str, links: impl IntoIterator<Item = Link>, then: Link) {
        self.plans.lock().unwrap().insert(provider.to_owned(), (links.into_iter().collect(), then));
    }

    /// All connections to `provider` lead there.
    pub fn always(&self, provider: &str, link: Link) {
        self.script(provider, [], link);
    }

    /// How often somebody connected, or tried to.
    pub fn dialled(&self, provider: &str) -> usize {
        self.dialled.lock().unwrap().iter().filter(|host| provider_of(host) == provider).count()
    }

    /// Every host anybody connected to.
    pub fn hosts(&self) -> Vec<String> {
        self.dialled.lock().unwrap().clone()
    }

    fn next(&self, provider: &str) -> Link {
        let mut plans = self.plans.lock().unwrap();
        match plans.get_mut(provider) {
            Some((script, then)) => script.pop_front().unwrap_or_else(|| then.clone()),
            None => Link::Simulator,
        }
    }

    fn simulate(&self, provider: &str, io: DuplexStream) {
        if let Some(llm) = self.llms.get(provider).cloned() {
            tokio::spawn(serve_connection(io, move |request| {
                let llm = llm.clone();
                async move { llm.handle(request).await }
            }));
        } else {
            let alipay = self.alipay.clone();
            tokio::spawn(serve_connection(io, move |request| {
                let alipay = alipay.clone();
                async move { alipay.handle(request).await }
            }));
        }
    }

    async fn connect(&self, origin: &Origin) -> io::Result<Box<dyn Io>> {
        self.dialled.lock().unwrap().push(origin.host.clone());
        let provider = provider_of(&origin.host);
        let (near, far) = duplex(self.pipe);
        match self.next(provider) {
            Link::Simulator => self.simulate(provider, far),
            Link::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
            Link::BlackHole => pending().await,
            Link::Scripted(script) => drop(tokio::spawn(script(far))),
        }
        Ok(Box::new(near))
    }
}

impl Dial for Net {
    fn dial<'a>(&'a self, origin: &'a Origin) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send + 'a>> {
        Box::pin(self.connect(origin))
    }
}

fn provider_of(host: &str) -> &str {
    host.strip_suffix(".test").unwrap_or(host)
}

/// Everything a test touches.
pub struct World {
    pub net: Arc<Net>,
    pub faults: Faults,
    pub alipay: Alipay,
    pub metrics: Arc<Metrics>,
    pub shared: Shared,
    pub live: Live,
    pub shutdown: Shutdown,
    writer: Option<LineWriter>,
    written: Written,
    serve: Box<dyn Fn(DuplexStream) -> JoinHandle<ConnectionEnd>>,
}

/// How a [`World`] differs from the usual one.
pub struct Plan {
    /// `routes.toml`.
    pub routes: String,
    /// Bytes a pipe to a provider holds.
    pub upstream_pipe: usize,
    /// Between two words of a simulated LLM.
    pub pace: Duration,
    /// Bounds of a client's connection.
    pub limits: ConnectionLimits,
    /// Most requests in flight to one LLM provider.
    pub provider_in_flight: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            routes: ROUTES.to_owned(),
            upstream_pipe: PIPE,
            pace: Duration::from_millis(20),
            limits: ConnectionLimits::default(),
            provider_in_flight: 200,
        }
    }
}

impl Plan {
    /// The usual routes with one text replaced by another.
    pub fn replacing(from: &str, to: &str) -> Self {
        assert!(ROUTES.contains(from), "the routes do not say {from}");
        Self { routes: ROUTES.replacen(from, to, 1), ..Self::default() }
    }
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Answers by the variable's name: `ALPHA_KEY` and so on.
struct Keys;

impl SecretSource for Keys {
    fn env(&self, name: &str) -> Option<Secret> {
        let provider = name.strip_suffix("_KEY")?.to_ascii_lowercase();
        let secret = if provider == "alipay" { signing_secret() } else { provider_key(&provider) };
        Some(Secret::new(secret.into_bytes()))
    }

    fn file(&self, _: &str) -> Option<Secret> {
        None
    }
}

fn llm_file(id: &str, in_flight: u32) -> String {
    let key = id.to_ascii_uppercase();
    format!(
        r#"
id = "{id}"
protocol = "openai"
base_url = "https://{id}.example/v1"
source = {{ url = "https://{id}.example/docs", checked = "2026-11-22" }}
auth = {{ kind = "bearer", secret_env = "{key}_KEY" }}
operations = ["chat.completions"]
limits = {{ in_flight = {in_flight} }}
[[model]]
id = "fast"
name = "{id}-fast-1"
price = {{ input_per_million_tokens = "1.00 USD", output_per_million_tokens = "2.00 USD", source = "https://{id}.example/p", checked = "2026-11-22" }}
"#
    )
}

const ALIPAY_FILE: &str = r#"
id = "alipay"
protocol = "di-hmac"
base_url = "https://alipay.example"
source = { url = "https://alipay.example/docs", checked = "2026-11-22" }
auth = { kind = "di-hmac", key_id = "k1", secret_env = "ALIPAY_KEY", secret_encoding = "hex" }
operations = ["risk.assess"]
price = { standard = "0.02 CNY", cross_border = "0.05 CNY", source = "https://alipay.example/p", checked = "2026-11-22" }
"#;

/// The table of these routes, led to the simulators.
pub fn table(plan: &Plan) -> RoutingTable {
    let digest = |key: &str| sha256_hex(key.as_bytes());
    let routes = plan.routes.replace("SHOP_DIGEST", &digest(SHOP)).replace("OFFICE_DIGEST", &digest(OFFICE));
    let file = |name: &str, text: String| SourceFile { name: name.to_owned(), text };
    let mut providers = vec![file("providers/alipay.toml", ALIPAY_FILE.to_owned())];
    providers.extend(LLMS.map(|id| file(&format!("providers/{id}.toml"), llm_file(id, plan.provider_in_flight))));
    let rewire = |provider: &ProviderId, protocol| BaseUrl {
        tls: false,
        host: format!("{provider}.test"),
        port: 80,
        path: if protocol == Protocol::OpenAi { format!("/{provider}/v1") } else { String::new() },
    };
    let sources = Sources { routes: vec![file("routes.toml", routes)], providers };
    let secrets = Secrets { source: &Keys, policy: SecretPolicy::Required };
    compile(&sources, &CompileOptions { secrets, rewire: Some(&rewire) })
        .unwrap_or_else(|errors| panic!("{}", render_all(&errors, weighbridge::config::Style::Plain)))
}

impl World {
    /// The usual one.
    pub fn new() -> Self {
        Self::with(Plan::default())
    }

    /// One with a difference.
    pub fn with(plan: Plan) -> Self {
        let faults = Faults::new();
        let alipay = Alipay::new(AlipayConfig {
            keys: vec![("k1".to_owned(), Secret::new(vec![0x4f; 32]))],
            faults: faults.clone(),
            token_life: Duration::from_secs(3600),
        });
        let llm = |id: &'static str| {
            let key = Secret::new(provider_key(id).into_bytes());
            let config = AggregatorConfig { faults: faults.clone(), pace: plan.pace, ..AggregatorConfig::new(key) };
            (id, Aggregator::new(config))
        };
        let net = Arc::new(Net {
            llms: LLMS.map(llm).into(),
            alipay: alipay.clone(),
            plans: Mutex::default(),
            dialled: Mutex::default(),
            pipe: plan.upstream_pipe,
        });
        let (metrics, written, shutdown) = (Metrics::new(), Written::default(), Shutdown::new());
        let writer = LineWriter::start(written.clone(), metrics.log_dropped.clone()).unwrap();
        let shared = Shared {
            store: Store::new(64 << 20, [7; 32], &metrics),
            ledger: Ledger::default(),
            gate: Arc::new(Gate::default()),
            drained: shutdown.signal().ending(),
            log: AccessLog::new(LogFormat::Json, writer.lines()),
            dial: Arc::clone(&net) as Arc<dyn Dial>,
            metrics: Arc::clone(&metrics),
        };
        let live: Live = Arc::new(ArcSwap::from_pointee(Snapshot::build(table(&plan), None, &shared)));
        let (service, signal, limits) = (stack::ingress(&live, &shared), shutdown.signal(), plan.limits);
        let serve = Box::new(move |io| tokio::spawn(serve(io, service.clone(), limits, signal.clone())));
        Self { net, faults, alipay, metrics, shared, live, shutdown, writer: Some(writer), written, serve }
    }

    /// A connection of which the test writes and reads the bytes, and how it ended.
    pub fn raw(&self) -> (DuplexStream, JoinHandle<ConnectionEnd>) {
        self.raw_with(PIPE)
    }

    /// As [`World::raw`], with room for `pipe` bytes on their way.
    pub fn raw_with(&self, pipe: usize) -> (DuplexStream, JoinHandle<ConnectionEnd>) {
        let (near, far) = duplex(pipe);
        (near, (self.serve)(far))
    }

    /// Everything that comes back for `bytes`, until the proxy closes or two seconds pass in silence.
    pub async fn exchange(&self, bytes: &[u8]) -> String {
        let (mut io, _end) = self.raw();
        io.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_secs(2), io.read_buf(&mut answer)).await {}
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A kept-alive HTTP/1 client.
    pub async fn client(&self) -> Client {
        let (io, _) = self.raw();
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
        Client { sender, driver: tokio::spawn(async move { drop(connection.await) }) }
    }

    /// One request on a connection of its own, read to the end.
    pub async fn call(&self, request: Request<Full<Bytes>>) -> Answer {
        self.client().await.call(request).await
    }

    /// A chat completion for the shop.
    pub async fn chat(&self, body: &Value) -> Answer {
        self.call(chat_request(SHOP, body)).await
    }

    /// A chat completion whose answer the test reads event by event.
    pub async fn open(&self, body: &Value) -> Open {
        let mut client = self.client().await;
        let response = client.sender.send_request(chat_request(SHOP, body)).await.unwrap();
        Open { response, _client: client }
    }

    /// A decision for the shop.
    pub async fn assess(&self, body: &Value) -> Answer {
        self.call(risk_request(SHOP, body)).await
    }

    /// What the simulated LLM provider saw.
    pub fn seen(&self, provider: &str) -> Vec<aggregator::Seen> {
        self.net.llms[provider].seen()
    }

    /// How many requests each simulated LLM provider saw.
    pub fn counts(&self) -> [usize; 3] {
        LLMS.map(|provider| self.seen(provider).len())
    }

    /// How many scoring calls the simulated Alipay saw, whatever it made of them.
    pub fn scorings(&self) -> usize {
        self.alipay.seen().iter().filter(|seen| seen.path.ends_with("/gateway.do")).count()
    }

    /// Every later request of the provider shows this fault; the text is [`Fault::parse`]'s.
    pub fn fault(&self, provider: &str, text: &str) {
        assert!(self.faults.always(provider, Fault::parse(text).unwrap()));
    }

    /// The provider's next requests show these faults, one each.
    pub fn faults(&self, provider: &str, texts: &[&str]) {
        let script = texts.iter().map(|text| Fault::parse(text).unwrap()).collect();
        assert!(self.faults.set(provider, script));
    }

    /// The sum of all samples of a series whose labels contain `labels`, written `name="value"`.
    pub fn metric(&self, series: &str, labels: &[&str]) -> f64 {
        let text = self.metrics.render();
        let samples = text.lines().filter(|line| {
            let name = line.split(['{', ' ']).next();
            name == Some(series) && labels.iter().all(|label| line.contains(label))
        });
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The breaker of `alpha/fast`, `alipay` and the like.
    pub fn breaker(&self, upstream: &str) -> State {
        self.live.load().upstreams()[upstream].health.state(Instant::now())
    }

    /// Fails unless every place, permit and gauge is free again.
    pub fn assert_idle(&self) {
        let snapshot = self.live.load();
        assert_eq!(self.shared.gate.in_flight(), 0, "process-wide places");
        for (id, provider) in snapshot.providers() {
            assert_eq!(provider.bulkhead.taken(), 0, "places at {id}");
        }
        assert!(snapshot.callers_in_flight().all(|(_, taken)| taken == 0), "callers' places");
        let in_flight = self.metric("weighbridge_in_flight", &[]);
        assert!(in_flight.abs() < f64::EPSILON, "weighbridge_in_flight is {in_flight}");
    }

    /// Ends the log and returns its lines. Later ones are lost.
    pub fn log(&mut self) -> Vec<Value> {
        self.log_text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Ends the log and returns its bytes as text.
    pub fn log_text(&mut self) -> String {
        drop(self.writer.take());
        String::from_utf8(self.written.0.lock().unwrap().clone()).unwrap()
    }
}

/// A client's connection, closed when it is dropped.
pub struct Client {
    pub sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    /// One request, read to the end of its answer.
    pub async fn call(&mut self, request: Request<Full<Bytes>>) -> Answer {
        self.sender.ready().await.unwrap();
        let started = Instant::now();
        let (head, body) = self.sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body, took: started.elapsed() }
    }
}

/// A POST of JSON.
pub fn post(path: &str, key: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path)
        .header(HOST, "proxy.test")
        .header(AUTHORIZATION, format!("Bearer {key}"))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

/// A GET.
pub fn get(path: &str, key: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(Method::GET).uri(path).header(HOST, "proxy.test");
    request.header(AUTHORIZATION, format!("Bearer {key}")).body(Full::default()).unwrap()
}

pub fn chat_request(key: &str, body: &Value) -> Request<Full<Bytes>> {
    post("/v1/chat/completions", key, body.to_string())
}

pub fn risk_request(key: &str, body: &Value) -> Request<Full<Bytes>> {
    post("/v1/risk/assessments", key, body.to_string())
}

/// A chat request with one message.
pub fn chat(model: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": "hello there" }] })
}

/// The same, streamed.
pub fn streamed(model: &str) -> Value {
    json!({ "model": model, "stream": true, "messages": [{ "role": "user", "content": "hello there" }] })
}

/// A payment attempt in CNY.
pub fn payment(out_trade_no: &str, amount: &str) -> Value {
    json!({
        "out_trade_no": out_trade_no, "total_amount": amount, "currency": "CNY", "subject": "demo",
        "merchant": { "id": "m1" }, "user": { "id": "u1" },
    })
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub took: Duration,
}

impl Answer {
    /// A header's text, empty without it.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    /// The data of all events.
    pub fn events(&self) -> Vec<String> {
        events(&self.text())
    }

    /// The words of all content events, or of the whole answer.
    pub fn said(&self) -> String {
        if self.header("content-type").starts_with("text/event-stream") {
            return said(&self.events());
        }
        self.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
    }

    /// Fails unless it is a good answer of `provider` after `attempts`.
    pub fn assert_served(&self, provider: &str, attempts: u32) {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!((self.header("wb-provider"), self.header("wb-attempts")), (provider, &*attempts.to_string()));
        let said = self.said();
        assert!(said.starts_with(&format!("This is {provider},")) && said.ends_with("can be seen."), "{said}");
        if self.header("content-type").starts_with("text/event-stream") {
            self.assert_coherent();
        }
    }

    /// Fails unless the stream is one whole stream of one provider.
    fn assert_coherent(&self) {
        let events = self.events();
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
        let ids: std::collections::BTreeSet<String> = events
            .iter()
            .filter(|event| *event != "[DONE]")
            .map(|event| serde_json::from_str::<Value>(event).unwrap()["id"].to_string())
            .collect();
        assert_eq!(ids.len(), 1, "one answer, not two: {ids:?}");
        let roles = events.iter().filter(|event| event.contains("\"role\":\"assistant\"")).count();
        assert_eq!(roles, 1, "one role frame");
    }

    /// Fails unless it is an error in OpenAI's shape; returns its code.
    pub fn openai_error(&self) -> String {
        assert_eq!(self.header("content-type"), "application/json");
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        for field in ["param", "code"] {
            assert!(error.get(field).is_some_and(|value| value.is_null() || value.is_string()), "{field}: {error}");
        }
        error["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// The data of all events in `text`, comments left out.
pub fn events(text: &str) -> Vec<String> {
    text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).map(str::to_owned).collect()
}

/// The words in content events.
pub fn said(events: &[String]) -> String {
    let words = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    words.filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

/// An answer whose body is read bit by bit.
pub struct Open {
    pub response: Response<Incoming>,
    _client: Client,
}

impl Open {
    /// The next bytes, `None` at the end.
    pub async fn next(&mut self) -> Option<String> {
        let frame = self.response.body_mut().frame().await?.unwrap();
        Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
    }

    /// All bytes that are left.
    pub async fn rest(&mut self) -> String {
        let mut text = String::new();
        while let Some(more) = self.next().await {
            text.push_str(&more);
        }
        text
    }
}
