//! `weighbridge doctor`: what is wrong between this machine and the providers, before a payment finds out.
//!
//! Probes ask only what costs nothing: names, connections, certificates, a list of models, an access token. Each has five
//! seconds, and all run at once. No secret is shown, only whether it is there and how long it is.

mod ask;
mod certificate;
mod local;
mod ports;
mod provider;
mod report;
mod strings;
mod watching;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args;
use futures_util::future::{join, join_all};
use tokio::runtime::Builder;

use self::report::{Finding, Report};
use super::reach::Trust;
use super::secrets::Environment;
use super::serve::DATA;
use super::{Paths, chain};
use crate::config::SecretPolicy;
use crate::config::error::{Code, ConfigError};
use crate::config::remarks::remarks;
use crate::config::table::{Candidate, Provider, RoutingTable};
use crate::domain::id::ProviderId;
use crate::gateway::reload::{Origin, Overlays};

/// How long each probe may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Mistakes of the configuration that are told; `weighbridge check` has all, with their places marked.
const MOST_TOLD: usize = 10;

#[derive(Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    paths: Paths,
    /// The data folder the proxy uses
    #[arg(long, env = "WEIGHBRIDGE_DATA_DIR", default_value = DATA, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where applications connect
    #[arg(long, env = "WEIGHBRIDGE_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where operators connect
    #[arg(long, env = "WEIGHBRIDGE_ADMIN_LISTEN", default_value = "127.0.0.1:9090", value_name = "ADDRESS")]
    admin_listen: SocketAddr,
    #[command(flatten)]
    trust: Trust,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
    /// Probe nothing: read a request or an answer as JSON on standard input, and print what is signed of it
    #[arg(long)]
    string_to_sign: bool,
    /// What the other side signed, to be told the first byte that differs
    #[arg(long, requires = "string_to_sign", value_name = "FILE")]
    theirs: Option<PathBuf>,
}

/// Probes everything and says what to do about it. Exit code 1 if something will not work.
pub fn run(args: &DoctorArgs) -> ExitCode {
    if args.string_to_sign {
        return strings::run(args);
    }
    let mut report = Report::default();
    let table = configuration(args, &mut report);
    let needed = table.as_ref().map(local::descriptors_needed);
    // The local probes block, so they have a thread of their own while the network is waited for.
    let network = thread::scope(|scope| {
        let here = scope.spawn(|| local::probe(args, needed));
        let network = probe_network(args, table.as_ref());
        report.extend(here.join().unwrap_or_default());
        network
    });
    report.extend(network);
    report.print(args.json)
}

/// Loads as `serve` would. Where only secrets are missing, what does not need them is probed all the same.
fn configuration(args: &DoctorArgs, report: &mut Report) -> Option<RoutingTable> {
    let finding = |said: String| Finding::new("configuration", said);
    match origin(args, SecretPolicy::Required).load() {
        Ok(table) => {
            let (routes, providers) = (table.llm_routes().len(), used(&table).len());
            let routes = routes + usize::from(table.risk_route().is_some());
            let what = format!("version {}, {routes} routes, {providers} providers in use", table.version());
            report.extend([finding(what).ok()]);
            report.extend(
                remarks(&table).into_iter().map(|remark| finding(remark.clone()).warn("see weighbridge check")),
            );
            Some(table)
        }
        Err(errors) => {
            let advice = |error: &ConfigError| error.hint.clone().unwrap_or_else(|| "see weighbridge check".to_owned());
            let told = errors.iter().take(MOST_TOLD).map(|error| {
                let place = format!("{}:{}:{}: {}", error.file, error.line, error.column, error.message);
                finding(place).fail(&advice(error))
            });
            report.extend(told);
            if errors.len() > MOST_TOLD {
                let more = format!("and {} more mistakes", errors.len() - MOST_TOLD);
                report.extend([finding(more).fail("see weighbridge check")]);
            }
            let secrets_alone = errors.iter().all(|error| error.code == Code::Secret);
            secrets_alone.then(|| origin(args, SecretPolicy::AllowMissing).load().ok()).flatten()
        }
    }
}

fn origin(args: &DoctorArgs, policy: SecretPolicy) -> Origin {
    Origin {
        routes: args.paths.routes.clone(),
        without_routes: None,
        providers: args.paths.providers.clone(),
        overlays: Overlays::default(),
        secrets: Arc::new(Environment),
        policy,
        rewiring: None,
    }
}

/// Every provider that a route or a shadow leads to.
fn used(table: &RoutingTable) -> BTreeMap<&ProviderId, &Provider> {
    let llm = table.llm_routes().values();
    let shadows = llm.clone().filter_map(|route| route.shadow.as_ref()).map(|shadow| &shadow.candidate);
    let risk = table.risk_route().into_iter().flat_map(|route| &route.candidates);
    let candidates = llm.flat_map(|route| &route.candidates).chain(shadows).chain(risk);
    candidates.map(|Candidate { provider, .. }| (&provider.id, &**provider)).collect()
}

fn probe_network(args: &DoctorArgs, table: Option<&RoutingTable>) -> Vec<Finding> {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return vec![Finding::new("network", chain(&error)).fail("free threads and descriptors, then try again")];
        }
    };
    let used = table.map(used).unwrap_or_default();
    let providers = join_all(used.values().map(|provider| provider::probe(provider)));
    let (mut findings, of_providers) = runtime.block_on(join(ports::probe(args), providers));
    findings.extend(of_providers.into_iter().flatten());
    // A resolver that hangs holds a thread that nobody waits for.
    runtime.shutdown_background();
    findings
}
