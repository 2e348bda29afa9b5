//! The whole product in memory: the real stack between a client and simulated providers, every wire a pipe, every clock
//! paused. It starts no listener, no worker and no admin plane: those have tests of their own.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use weighbridge::config::table::{BaseUrl, Protocol, RoutingTable};
use weighbridge::config::{CompileOptions, SecretPolicy, Secrets, SourceFile, Sources, compile, render_all};
use weighbridge::domain::id::ProviderId;
use weighbridge::domain::secret::{Secret, SecretSource};
use weighbridge::flight::quota::Calendar;
use weighbridge::flight::velocity::Velocity;
use weighbridge::gateway::build::build;
use weighbridge::gateway::snapshot::{Live, Shared};
use weighbridge::gateway::stack;
use weighbridge::layer::admission::Gate;
use weighbridge::layer::audit::Clerk;
use weighbridge::layer::cache::Store;
use weighbridge::layer::decision_cache::DecisionCache;
use weighbridge::layer::idempotency::Ledger;
use weighbridge::layer::idempotency_key::Answers;
use weighbridge::layer::verify_signature::Nonces;
use weighbridge::sandbox::aggregator::{self, Aggregator, AggregatorConfig};
use weighbridge::sandbox::alipay::{Alipay, AlipayConfig};
use weighbridge::sandbox::fault::{Fault, Faults};
use weighbridge::server::connection::serve;
use weighbridge::server::limits::ConnectionLimits;
use weighbridge::server::shutdown::Shutdown;
use weighbridge::sign::hmac::sha256_hex;
use weighbridge::store::writer::{Faults as RecordFaults, Records, RecordsConfig};
use weighbridge::telemetry::access::AccessLog;
use weighbridge::telemetry::labels::ConnectionEnd;
use weighbridge::telemetry::lines::LineWriter;
use weighbridge::telemetry::logs::LogFormat;
use weighbridge::telemetry::metrics::Metrics;
use weighbridge::telemetry::traces::Spans;
use weighbridge::upstream::breaker::State;
use weighbridge::upstream::dial::{Dial, Io};

pub use self::client::*;
pub use self::net::*;

pub mod certificates;
mod client;
pub mod forms;
pub mod frames;
mod net;
pub mod sockets;

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

/// Everything a test touches.
pub struct World {
    pub net: Arc<Net>,
    pub faults: Faults,
    pub alipay: Alipay,
    pub metrics: Arc<Metrics>,
    pub shared: Shared,
    pub live: Live,
    _shutdown: Shutdown,
    writer: Option<LineWriter>,
    written: Written,
    serve: Box<dyn Fn(Box<dyn Io>) -> JoinHandle<ConnectionEnd>>,
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
    /// What `alpha` offers; the others have chat alone.
    pub alpha_offers: &'static str,
    /// More keys of `alpha`'s file.
    pub alpha_keys: &'static str,
    /// `limits` of `alpha`'s file, if not the usual ones.
    pub alpha_limits: Option<&'static str>,
    /// What `beta` offers.
    pub beta_offers: &'static str,
    /// What the clock says at the start, milliseconds since 1970; it goes on with the paused one.
    pub starts: u64,
    /// Where decisions are recorded and what goes wrong there. It has a real thread and a real disk: use real time.
    pub record: Option<(PathBuf, RecordFaults)>,
    /// Nonces of an earlier process, or with little room.
    pub nonces: Option<Nonces>,
    /// `auth` of Alipay's file.
    pub alipay_auth: String,
    /// What becomes of an LLM provider's file, by its id.
    pub edit: fn(&str, String) -> String,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            routes: ROUTES.to_owned(),
            upstream_pipe: PIPE,
            pace: Duration::from_millis(20),
            limits: ConnectionLimits::default(),
            provider_in_flight: 200,
            alpha_offers: r#""chat.completions""#,
            alpha_keys: "",
            alpha_limits: None,
            beta_offers: r#""chat.completions""#,
            // 2026-11-30T23:59:00Z: a minute before a day and a month turn.
            starts: 1_796_083_140_000,
            record: None,
            nonces: None,
            alipay_auth: ALIPAY_AUTH.to_owned(),
            edit: |_, file| file,
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

/// Waits until `holds`, in real time, with more patience than any machine needs.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), waiting)
        .await
        .unwrap_or_else(|_| panic!("waited too long for {what}"));
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
        let secret = match provider.as_str() {
            "alipay" => signing_secret(),
            "alipay_next" => "5e".repeat(32),
            _ => provider_key(&provider),
        };
        Some(Secret::new(secret.into_bytes()))
    }

    fn file(&self, _: &str) -> Option<Secret> {
        None
    }
}

fn llm_file(id: &str, plan: &Plan) -> String {
    let in_flight = plan.provider_in_flight;
    let offers = match id {
        "alpha" => plan.alpha_offers,
        "beta" => plan.beta_offers,
        _ => r#""chat.completions""#,
    };
    let key = id.to_ascii_uppercase();
    let alpha = id == "alpha";
    let more = if alpha { plan.alpha_keys } else { "" };
    let usual = format!("{{ in_flight = {in_flight} }}");
    let limits = plan.alpha_limits.filter(|_| alpha).unwrap_or(&usual);
    let file = format!(
        r#"
id = "{id}"
protocol = "openai"
base_url = "https://{id}.example/v1"
source = {{ url = "https://{id}.example/docs", checked = "2026-11-22" }}
auth = {{ kind = "bearer", secret_env = "{key}_KEY" }}
operations = [{offers}]
limits = {limits}
{more}
[[model]]
id = "fast"
name = "{id}-fast-1"
price = {{ input_per_million_tokens = "1.00 USD", output_per_million_tokens = "2.00 USD", source = "https://{id}.example/p", checked = "2026-11-22" }}
[[model]]
id = "unpriced"
name = "{id}-unpriced-1"
"#
    );
    (plan.edit)(id, file)
}

/// One key, as most files have it.
const ALIPAY_AUTH: &str = r#"{ kind = "di-hmac", key_id = "k1", secret_env = "ALIPAY_KEY", secret_encoding = "hex" }"#;

const ALIPAY_FILE: &str = r#"
id = "alipay"
protocol = "di-hmac"
base_url = "https://alipay.example"
source = { url = "https://alipay.example/docs", checked = "2026-11-22" }
auth = ALIPAY_AUTH
operations = ["risk.assess"]
price = { version = "2026-11", standard = "0.02 CNY", cross_border = "0.05 CNY", features = { receipt_ocr = "0.01 CNY", wording = "0.005 CNY" }, source = "https://alipay.example/p", checked = "2026-11-22" }
"#;

fn open((folder, faults): &(PathBuf, RecordFaults), metrics: &Arc<Metrics>) -> Records {
    let watch = Arc::new(metrics.audit.clone());
    Records::open(RecordsConfig { folder: folder.clone(), checkpoints: None, watch, faults: faults.clone() }).unwrap()
}

/// The table of these routes, led to the simulators.
pub fn table(plan: &Plan) -> RoutingTable {
    let digest = |key: &str| sha256_hex(key.as_bytes());
    let routes = plan.routes.replace("SHOP_DIGEST", &digest(SHOP)).replace("OFFICE_DIGEST", &digest(OFFICE));
    let file = |name: &str, text: String| SourceFile { name: name.to_owned(), text };
    let mut providers = vec![file("providers/alipay.toml", ALIPAY_FILE.replace("ALIPAY_AUTH", &plan.alipay_auth))];
    providers.extend(LLMS.map(|id| file(&format!("providers/{id}.toml"), llm_file(id, plan))));
    let rewire = |provider: &ProviderId, protocol| BaseUrl {
        tls: false,
        host: format!("{provider}.test"),
        port: 80,
        path: if protocol == Protocol::OpenAi { format!("/{provider}/v1") } else { String::new() },
    };
    let sources = Sources { routes: vec![file("routes.toml", routes)], providers, ..Sources::default() };
    let secrets = Secrets { source: &Keys, policy: SecretPolicy::Required };
    compile(&sources, &CompileOptions { secrets, rewire: Some(&rewire) })
        .unwrap_or_else(|errors| panic!("{}", render_all(&errors, weighbridge::config::Style::Plain)))
}

impl World {
    /// The usual one.
    pub fn new() -> Self {
        Self::with(&Plan::default())
    }

    /// One with a difference.
    pub fn with(plan: &Plan) -> Self {
        let faults = Faults::new();
        let alipay = Alipay::new(AlipayConfig {
            keys: vec![("k1".to_owned(), Secret::new(vec![0x4f; 32])), ("k2".to_owned(), Secret::new(vec![0x5e; 32]))],
            faults: faults.clone(),
            token_life: Duration::from_secs(3600),
        });
        let llm = |id: &'static str| {
            let key = Secret::new(provider_key(id).into_bytes());
            let config = AggregatorConfig { faults: faults.clone(), pace: plan.pace, ..AggregatorConfig::new(key) };
            (id, Aggregator::new(config))
        };
        let net = Arc::new(Net::new(LLMS.map(llm).into(), alipay.clone(), plan.upstream_pipe));
        let (metrics, written, shutdown) = (Metrics::new(), Written::default(), Shutdown::new());
        let writer = LineWriter::start(written.clone(), metrics.log_dropped.clone()).unwrap();
        let (ledger, records) = (Ledger::default(), plan.record.as_ref().map(|record| open(record, &metrics)));
        if let Some(records) = &records {
            ledger.remember(records.reader().unwrap()).unwrap();
        }
        let clerk = records.map(|records| Clerk::new(records, Arc::clone(&metrics)));
        let shared = Shared {
            store: Store::new(64 << 20, [7; 32], &metrics),
            answers: Answers::new(64 << 20),
            velocity: Arc::new(Velocity::new([7; 32])),
            decisions: Arc::new(DecisionCache::new([7; 32])),
            ledger,
            clerk,
            nonces: plan.nonces.clone().unwrap_or_else(Nonces::in_memory),
            notices: Arc::default(),
            spans: Arc::new(Spans::new(metrics.traces.clone())),
            recent: Arc::default(),
            gate: Arc::new(Gate::default()),
            calendar: Calendar::at(plan.starts),
            drained: shutdown.signal().ending(),
            log: AccessLog::new(LogFormat::Json, writer.lines()),
            dial: Arc::clone(&net) as Arc<dyn Dial>,
            metrics: Arc::clone(&metrics),
        };
        let live: Live = Arc::new(ArcSwap::from_pointee(build(table(plan), None, &shared)));
        let (service, signal, limits) = (stack::ingress(&live, &shared), shutdown.signal(), plan.limits);
        let serve = Box::new(move |io| tokio::spawn(serve(io, service.clone(), limits, signal.clone())));
        Self { net, faults, alipay, metrics, shared, live, _shutdown: shutdown, writer: Some(writer), written, serve }
    }

    /// Puts another configuration in force.
    pub fn reload(&self, plan: &Plan) {
        let next = build(table(plan), Some(&self.live.load()), &self.shared);
        self.live.store(Arc::new(next));
    }

    /// A connection of which the test writes and reads the bytes, and how it ended.
    pub fn raw(&self) -> (DuplexStream, JoinHandle<ConnectionEnd>) {
        self.raw_with(PIPE)
    }

    /// As [`World::raw`], with room for `pipe` bytes on their way.
    pub fn raw_with(&self, pipe: usize) -> (DuplexStream, JoinHandle<ConnectionEnd>) {
        let (near, far) = duplex(pipe);
        (near, self.accept(far))
    }

    /// Serves a client that connected in some other way.
    pub fn accept(&self, io: impl Io + 'static) -> JoinHandle<ConnectionEnd> {
        (self.serve)(Box::new(io))
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
        Client::over(self.raw().0).await
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
        Open::new(self.client().await, chat_request(SHOP, body)).await
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
