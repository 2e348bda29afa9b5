//! `weighbridge sandbox`: the product with simulated providers, so that everything can be tried with no key and no network.
//!
//! The proxy runs the given `routes.toml` and provider files; only addresses and credentials are replaced. One overlay
//! adds a caller with a fresh key, and a route for every magic model.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::runtime::Builder;

use super::serve::{Start, run_app};
use super::{ROUTES, ServeArgs, chain, check, complain, given_up, say};
use crate::app::{App, Life};
use crate::config::SecretPolicy;
use crate::config::builtin;
use crate::config::error::{Style, render_all};
use crate::config::source::SourceFile;
use crate::config::table::{Auth, BaseUrl, Protocol, RoutingTable};
use crate::domain::clock;
use crate::domain::id::ProviderId;
use crate::domain::operation::Operation;
use crate::domain::secret::{Secret, SecretSource};
use crate::gateway::reload::{Origin, Overlays, Rewiring};
use crate::sandbox::aggregator::{Aggregator, AggregatorConfig, MAGIC_MODELS};
use crate::sandbox::alipay::{Alipay, AlipayConfig};
use crate::sandbox::fault::Faults;
use crate::sandbox::keys::{ALIPAY_KEY_ID, ALIPAY_NEXT_KEY_ID, SandboxKeys};
use crate::sandbox::listen;
use crate::sandbox::merchant::Traffic;
use crate::sign::hmac::sha256_hex;

/// Life of a simulated access token.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// What makes the caller key that of the caller who must sign.
const SIGNS: &str = "-signed";
/// For curl, Python and Node, which trust no authority that was made on the spot.
const TRUST: &str =
    "\n  export CURL_CA_BUNDLE=ca.pem SSL_CERT_FILE=ca.pem NODE_EXTRA_CA_CERTS=ca.pem   # who signed the certificate";
/// The provider whose models misbehave by name.
const MAGIC: &str = "sandbox";
/// The provider behind it, which does not: another account, so that a 429 of the first does not pause it.
const STEADY: &str = "sandbox-steady";

#[derive(Args)]
pub struct SandboxArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Print one line of JSON instead of the lines for people
    #[arg(long)]
    json: bool,
    /// Send so many simulated payments a second to the risk route, and say every ten seconds what was decided
    #[arg(long, value_name = "A_SECOND", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    #[arg(conflicts_with = "tls_cert")]
    traffic: Option<u32>,
    /// Which town the simulated payments come from
    #[arg(long, value_name = "NUMBER", default_value = "1", requires = "traffic")]
    seed: u64,
}

/// Runs simulators and proxy until told to stop.
pub fn run(args: &SandboxArgs) -> ExitCode {
    match prepare(&args.serve) {
        Ok((origin, peers)) => {
            // Kept until the end, and then nowhere.
            let scratch = args.serve.data_dir.is_none().then(Scratch::new).flatten();
            let own = scratch.as_ref().map(|Scratch(folder)| folder.clone());
            let record_dir = args.serve.data_dir.clone().or(own);
            // No last good configuration: whoever tries one wants to see what is wrong with it.
            let start = Start { record_dir, origin, life: Life::default(), supervisor: Arc::default() };
            run_app(&args.serve, start, |app| {
                say(&if args.json { peers.json(app) } else { peers.banner(app) });
                if let Some(a_second) = args.traffic {
                    send(args, a_second, app.data_address(), peers.caller_key.clone());
                }
            })
        }
        Err(complaint) => given_up(&complaint),
    }
}

/// A folder for the record of a sandbox that was told of none: gone when the sandbox is.
struct Scratch(PathBuf);

impl Scratch {
    /// `None` where there is no place for one; then nothing is recorded.
    fn new() -> Option<Self> {
        let name = format!("weighbridge-sandbox-{}-{}", std::process::id(), clock::unix_ms());
        let folder = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&folder).ok().map(|()| Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where the simulators are, and the key for the proxy.
struct Peers {
    example: bool,
    alipay: SocketAddr,
    aggregator: SocketAddr,
    caller_key: String,
    /// What the caller who must sign signs with, in hex.
    caller_secret: String,
    /// The first signing key the provider files use, for those who want to speak to the simulated Alipay themselves.
    signing_key: Option<(String, Secret)>,
}

fn prepare(args: &ServeArgs) -> Result<(Origin, Peers), String> {
    let keys = SandboxKeys::fresh().map_err(|error| chain(&error))?;
    let caller_key = String::from_utf8_lossy(keys.caller.expose()).into_owned();
    let origin = Origin {
        routes: args.paths.routes.clone(),
        without_routes: example(&args.paths.routes),
        providers: args.paths.providers.clone(),
        overlays: overlays(&caller_key),
        secrets: Arc::new(OneForAll(keys.alipay_hex())),
        policy: SecretPolicy::Required,
        rewiring: Some(rewiring([SocketAddr::from((Ipv4Addr::LOCALHOST, 1)); 2])),
    };
    // Compiled once for the key ids the provider files use: the simulated Alipay must know them.
    let table = origin.load().map_err(|errors| render_all(&errors, Style::Plain))?;
    let [alipay, aggregator] = start(&table, keys.alipay_hex()).map_err(|error| chain(&*error))?;
    let origin = Origin { rewiring: Some(rewiring([alipay, aggregator])), ..origin };
    let signing_key = own_signing_keys(&table).into_iter().next();
    let example = origin.without_routes.is_some();
    let caller_secret = String::from_utf8_lossy(keys.alipay_hex().expose()).into_owned();
    Ok((origin, Peers { example, alipay, aggregator, caller_key, caller_secret, signing_key }))
}

/// The built-in example where nobody asked for another file and there is none; a path that was given must exist.
fn example(routes: &Path) -> Option<SourceFile> {
    (routes == Path::new(ROUTES) && !routes.exists()).then(builtin::routes)
}

/// Answers every name with the same secret: whatever variable a provider file names, the simulators know its value.
struct OneForAll(Secret);

impl SecretSource for OneForAll {
    fn env(&self, _: &str) -> Option<Secret> {
        Some(self.0.clone())
    }

    fn file(&self, _: &str) -> Option<Secret> {
        Some(self.0.clone())
    }
}

fn rewiring([alipay, aggregator]: [SocketAddr; 2]) -> Rewiring {
    Arc::new(move |provider: &ProviderId, protocol| {
        let (address, path) = match protocol {
            Protocol::DiHmac => (alipay, String::new()),
            // The path tells the aggregator whose part it plays.
            Protocol::OpenAi => (aggregator, format!("/{provider}/v1")),
        };
        BaseUrl { tls: false, host: address.ip().to_string(), port: address.port(), path }
    })
}

/// A caller with our key, and the magic models, each with a steady one behind it: the first answers every operation in
/// its own form, the steady one leaves Responses and Messages to be carried over chat.
fn overlays(caller_key: &str) -> Overlays {
    let digest = sha256_hex(caller_key.as_bytes());
    let mut routes =
        format!("version = 1\n[[caller]]\nid = \"sandbox\"\nkey_digest = \"sha256:{digest}\"\nallow = [\"*\"]\n");
    // One more that must sign, with what everybody signs with here.
    let digest = sha256_hex(format!("{caller_key}{SIGNS}").as_bytes());
    let _ = write!(
        routes,
        "[[caller]]\nid = \"sandbox-signed\"\ntenant = \"sandbox\"\nkey_digest = \"sha256:{digest}\"\nallow = [\"*\"]\n\
         signature = {{ key_id = \"{ALIPAY_KEY_ID}\", secret_env = \"SANDBOX_KEY\", secret_encoding = \"hex\" }}\n"
    );
    let everything = Operation::ALL.into_iter().filter(|operation| operation.asks_a_model());
    let carried = |operation: &Operation| operation.carried_by().is_none() && *operation != Operation::CountTokens;
    let listed = |operations: Vec<Operation>| {
        operations.iter().map(|operation| format!("\"{}\"", operation.label())).collect::<Vec<_>>().join(", ")
    };
    let provider = |id: &str, operations: &str| {
        format!(
            "id = \"{id}\"\nprotocol = \"openai\"\nbase_url = \"http://127.0.0.1/v1\"\nallow_private = true\n\
         source = {{ url = \"https://weighbridge.invalid/sandbox\", checked = \"2026-11-22\" }}\n\
         auth = {{ kind = \"bearer\", secret_env = \"SANDBOX_KEY\" }}\noperations = [{operations}]\n"
        )
    };
    let mut magic = provider(MAGIC, &listed(everything.clone().collect()));
    let steady = provider(STEADY, &listed(everything.filter(carried).collect()))
        + "[[model]]\nid = \"steady\"\nname = \"steady\"\n";
    for (name, ..) in MAGIC_MODELS {
        let behind = if *name == "steady" { String::new() } else { format!(", \"{STEADY}/steady\"") };
        let _ = write!(
            routes,
            "[model.\"{MAGIC}/{name}\"]\ncandidates = [\"{MAGIC}/{name}\"{behind}]\n\
             timeouts = {{ total = \"60s\", first_content = \"2s\", idle = \"3s\" }}\n"
        );
        let _ = write!(magic, "[[model]]\nid = \"{name}\"\nname = \"{name}\"\n{}", price(name));
    }
    // The slow one with a second one beside it, and a third one that gets copies.
    let _ = write!(
        routes,
        "[model.\"{MAGIC}/hedged\"]\ncandidates = [\"{MAGIC}/slow\", \"{STEADY}/steady\"]\n\
         hedge = {{ after = \"500ms\", max_share = 1 }}\n\
         shadow = {{ use = \"{MAGIC}/steady\", percent = 100 }}\n"
    );
    let file = |name: &str, text| SourceFile { name: name.to_owned(), text };
    Overlays {
        routes: vec![file("sandbox/routes.toml", routes)],
        providers: vec![file("sandbox/magic.toml", magic), file("sandbox/steady.toml", steady)],
    }
}

/// What the slow model asks for, so that there is an estimate of what it cost to leave it.
fn price(name: &str) -> &'static str {
    if name == "slow" {
        "price = { input_per_million_tokens = \"1.00 USD\", output_per_million_tokens = \"2.00 USD\", \
         source = \"https://weighbridge.invalid/sandbox\", checked = \"2026-11-22\" }\n"
    } else {
        ""
    }
}

/// Starts both simulators on a thread of their own and tells their addresses.
fn start(table: &RoutingTable, key: Secret) -> Result<[SocketAddr; 2], Box<dyn std::error::Error>> {
    let alipay = Alipay::new(AlipayConfig { keys: signing_keys(table), faults: Faults::new(), token_life: TOKEN_LIFE });
    let aggregator = Aggregator::new(AggregatorConfig::new(key));
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (tell, told) = mpsc::sync_channel(1);
    thread::Builder::new().name("sandbox".to_owned()).spawn(move || {
        runtime.block_on(async move {
            let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let first = listen(anywhere, move |request| {
                let alipay = alipay.clone();
                async move { alipay.handle(request).await }
            });
            let second = listen(anywhere, move |request| {
                let aggregator = aggregator.clone();
                async move { aggregator.handle(request).await }
            });
            match tokio::try_join!(first, second) {
                Ok((first, second)) => {
                    let _ = tell.send(Ok([first.addr, second.addr]));
                    // Dropping either ends it; the process's end does.
                    std::future::pending::<()>().await;
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        });
    })?;
    Ok(told.recv()??)
}

/// Plays the merchants on a thread of their own; what fails there is told and costs nothing else.
fn send(args: &SandboxArgs, a_second: u32, to: SocketAddr, key: String) {
    let traffic = Traffic { to, key, seed: args.seed, a_second };
    let quiet = args.json;
    let started = thread::Builder::new().name("traffic".to_owned()).spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime.map_err(|error| complain(&format!("no traffic: {}", chain(&error)))) else { return };
        let told = runtime.block_on(traffic.run(|counts| {
            if !quiet {
                say(&format!("traffic: {counts}"));
            }
        }));
        if let Err(error) = told {
            complain(&format!("no traffic: {}", chain(&error)));
        }
    });
    if let Err(error) = started {
        complain(&format!("no traffic: {}", chain(&error)));
    }
}

/// The keys of the provider files.
fn own_signing_keys(table: &RoutingTable) -> BTreeMap<String, Secret> {
    let keys = table
        .providers()
        .values()
        .filter_map(|provider| match &provider.auth {
            Auth::DiHmac { keys } => Some(keys.keys()),
            Auth::None | Auth::Bearer { .. } | Auth::Header { .. } => None,
        })
        .flatten()
        .map(|key| (key.id.clone(), key.secret.clone()));
    keys.collect()
}

/// What the simulated Alipay knows.
fn signing_keys(table: &RoutingTable) -> Vec<(String, Secret)> {
    let keys = own_signing_keys(table);
    // A rotation can be tried with an id that no file names yet: every secret is the same one here.
    let secret = keys.values().next().cloned();
    let more = secret
        .into_iter()
        .flat_map(|secret| [ALIPAY_KEY_ID, ALIPAY_NEXT_KEY_ID].map(|id| (id.to_owned(), secret.clone())));
    let known: BTreeMap<_, _> = more.chain(keys).collect();
    known.into_iter().collect()
}

impl Peers {
    fn json(&self, app: &App) -> String {
        let snapshot = app.live().load_full();
        let table = snapshot.table();
        let llm = table.llm_routes().values().map(|route| (route.id.to_string(), &route.candidates));
        let risk = table.risk_route().map(|route| (route.id.to_string(), &route.candidates));
        let names = |candidates: &Vec<crate::config::table::Candidate>| -> Vec<String> {
            candidates.iter().map(|candidate| candidate.upstream.to_string()).collect()
        };
        let routes: BTreeMap<_, _> = llm.chain(risk).map(|(id, candidates)| (id, names(candidates))).collect();
        let hex = |secret: &Secret| {
            secret.expose().iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
        };
        json!({
            "data": app.data_url(),
            "base_url": format!("{}/v1", app.data_url()),
            "admin": app.admin_url(),
            "api_key": self.caller_key,
            "signed_api_key": format!("{}{SIGNS}", self.caller_key),
            "signing_key_id": ALIPAY_KEY_ID,
            "signing_secret": self.caller_secret,
            "routes": routes,
            "alipay": format!("http://{}", self.alipay),
            "aggregator": format!("http://{}", self.aggregator),
            "alipay_key_id": self.signing_key.as_ref().map(|(id, _)| id),
            "alipay_secret": self.signing_key.as_ref().map(|(_, secret)| hex(secret)),
        })
        .to_string()
    }

    fn banner(&self, app: &App) -> String {
        let (data, admin, key) = (app.data_url(), app.admin_url(), &self.caller_key);
        let mut routes = String::new();
        let snapshot = app.live().load_full();
        let table = snapshot.table();
        let named = table.llm_routes().values().filter(|route| !route.id.as_str().starts_with("sandbox/"));
        for route in named {
            let _ = writeln!(routes, "{}", check::llm_line(route));
        }
        if let Some(route) = table.risk_route() {
            let _ = writeln!(routes, "{}", check::line(route.id.as_str(), &route.candidates));
        }
        format!(
            "weighbridge sandbox: nothing here is real, no call leaves this machine

listeners
  data                         {data}
  admin                        {admin}   (/dashboard, /status.json, /metrics)
  simulated Alipay             http://{alipay}
  simulated aggregator         http://{aggregator}

routes, candidates in order (configuration {version})
{routes}
in another terminal, first: the commands below and those of README.md use it
  export WB_URL={data} WB_ADMIN={admin} WB_KEY={key}
  export WB_SIGNING_SECRET={secret}   # of $WB_KEY{SIGNS}, which must sign, as {ALIPAY_KEY_ID}{trust}

a risk decision
  curl -s $WB_URL/v1/risk/assessments -H \"authorization: Bearer $WB_KEY\" \\
    -H 'content-type: application/json' -d '{{\"out_trade_no\":\"T0001\",\"total_amount\":\"88.13\",
    \"currency\":\"CNY\",\"subject\":\"demo\",\"merchant\":{{\"id\":\"m1\"}},\"user\":{{\"id\":\"u1\"}}}}'

an OpenAI SDK
  export OPENAI_BASE_URL=$WB_URL/v1 OPENAI_API_KEY=$WB_KEY
  python3 -c 'from openai import OpenAI; print(OpenAI().chat.completions.create(model=\"summary\",
    messages=[{{\"role\": \"user\", \"content\": \"hi\"}}]).choices[0].message.content)'

watch a failover: the first candidate answers 503, wb-attempts says 2
  curl -si $WB_URL/v1/chat/completions -H \"authorization: Bearer $WB_KEY\" \\
    -H 'content-type: application/json' -d '{{\"model\":\"sandbox/fail-503\",
    \"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}'

{edit} while this runs; Ctrl-C stops
",
            edit = if self.example {
                "there is no routes.toml here, so this is the built-in example; write one, or a file in providers/,"
            } else {
                "edit routes.toml or a provider file"
            },
            trust = if data.starts_with("https:") { TRUST } else { "" },
            secret = self.caller_secret,
            alipay = self.alipay,
            aggregator = self.aggregator,
            version = table.version(),
        )
    }
}
