//! Text to [`RoutingTable`], or every mistake at once.
//!
//! Pure: the same text, secrets and options give the same table. It reads no file, no environment and no clock, so that
//! `serve`, `check`, `explain`, the sandbox and the tests all compile through this one function.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::cases_plan;
use super::catalog::{Catalog, Pick};
use super::descriptor::{Builder, Built};
use super::error::ConfigError;
use super::jurisdictions::Jurisdictions;
use super::lists_plan::ListFiles;
use super::llm::PlannedShadow;
use super::options::CompileOptions;
use super::raw::Document;
use super::raw::routes::{Part, RawRoutes};
use super::report::Report;
use super::risk::PlannedRisk;
use super::routes::{Plan, RISK};
use super::rules_plan::{PlannedRoute, PlannedRule};
use super::schema;
use super::secrets::Use;
use super::source::Sources;
use super::table::{
    Caller, Candidate, ConfigVersion, LlmRoute, LlmRule, Protocol, Provider, RiskRoute, RoutingTable, Shadow, Traces,
    Webhooks,
};
use super::traces;
use super::webhooks;
use crate::domain::id::{ProviderId, RouteId, UpstreamId};
use crate::domain::policy::{Applied, DEFAULT_RULE, Ruling};

/// Compiles a configuration.
///
/// # Errors
/// Every mistake of all files (at most 200), by file and line. Messages contain neither values nor secrets.
pub fn compile(sources: &Sources, options: &CompileOptions<'_>) -> Result<RoutingTable, Vec<ConfigError>> {
    let lists = sources.lists.iter().filter_map(|list| list.content.as_ref().ok());
    let report = Report::new(sources.routes.iter().chain(&sources.providers).chain(lists));
    let table = compile_reporting(sources, options, &report);
    let errors = report.into_errors();
    match table {
        Some(table) if errors.is_empty() => Ok(table),
        _ if errors.is_empty() => Err(vec![ConfigError::of_file(
            sources.routes.first().map(|file| file.name.clone()).unwrap_or_default(),
            "the configuration could not be compiled".to_owned(),
            None,
        )]),
        _ => Err(errors),
    }
}

fn compile_reporting(sources: &Sources, options: &CompileOptions<'_>, report: &Report<'_>) -> Option<RoutingTable> {
    let all = sources.routes.iter().chain(&sources.providers).enumerate();
    let mut documents: Vec<Document<'_>> = all.map(|(file, source)| Document::parse(source, file, report)).collect();
    let providers = documents.split_off(sources.routes.len());
    let catalog = Catalog::read(&providers, report);
    let parts = std::iter::once(Part::Main).chain(std::iter::repeat(Part::Overlay));
    let sound = documents.iter().all(|document| document.sound);
    let raw = documents.iter().zip(parts).filter(|(document, _)| document.sound);
    let raw: Vec<RawRoutes> =
        raw.map(|(document, part)| RawRoutes::read(&document.root(schema::ROUTES, report), part)).collect();
    // Half of the routes would make the other half's references look wrong.
    let lists = ListFiles::of(sources);
    let plan = sound.then(|| Plan::make(raw, &catalog, (&lists, options.secrets), report));
    let built = build_providers(&catalog, plan.as_ref(), options, report);
    let builder = Builder { options, report };
    let hooks = plan.as_ref().map(|plan| webhooks::build(&plan.webhooks, &plan.callers, &builder));
    let traces = plan.as_ref().and_then(|plan| traces::build(plan.traces.as_ref()?, &built, &builder));
    let mut plan = plan.filter(|_| report.is_clean())?;
    let hooks = hooks.unwrap_or_default();
    let version = version_of(sources, &built, &plan.callers, (&hooks, traces.as_deref()));
    let raw = std::mem::take(&mut plan.cases);
    let table = RoutingTable { webhooks: hooks, traces, ..assemble(plan, built, version)? };
    // Last, because a name that is missing for another reason is no mistake of a test.
    let cases = cases_plan::plan(&raw, &table, report);
    Some(RoutingTable { cases, ..table })
}

fn build_providers(
    catalog: &Catalog,
    plan: Option<&Plan>,
    options: &CompileOptions<'_>,
    report: &Report<'_>,
) -> BTreeMap<ProviderId, Built> {
    let used = plan.map(Plan::used).unwrap_or_default();
    let builder = Builder { options, report };
    let build = |(id, raw): (&String, _)| {
        let used = if used.contains(id.as_str()) { Use::ByRoute } else { Use::None };
        builder.build(raw, used).map(|built| (built.provider.id.clone(), built))
    };
    catalog.providers().iter().filter_map(build).collect()
}

/// Puts routes and providers together; `None` only if something is missing that no check reported.
fn assemble(mut plan: Plan, built: BTreeMap<ProviderId, Built>, version: ConfigVersion) -> Option<RoutingTable> {
    let facts = built.iter().map(|(id, built)| (id.clone(), built.facts.clone())).collect();
    let providers: BTreeMap<ProviderId, Arc<Provider>> =
        built.into_iter().map(|(id, built)| (id, built.provider)).collect();
    let llm = std::mem::take(&mut plan.llm)
        .into_iter()
        .map(|(id, route)| Some((id.clone(), Arc::new(llm_route(id, &route, &providers)?))));
    let llm = llm.collect::<Option<_>>()?;
    let risk = match plan.risk.take() {
        Some(risk) => {
            let route = risk_route(&risk, &providers, &version)?;
            Some(Arc::new(RiskRoute { jurisdictions: std::mem::take(&mut plan.jurisdictions), ..route }))
        }
        None => None,
    };
    let Plan { limits, roll_back, callers, disabled, .. } = plan;
    let (webhooks, traces, cases) = (Webhooks::new(), None, Vec::new());
    Some(RoutingTable {
        version,
        limits,
        roll_back,
        callers,
        providers,
        llm,
        risk,
        facts,
        webhooks,
        traces,
        cases,
        disabled,
    })
}

fn llm_route(id: RouteId, plan: &PlannedRoute, providers: &BTreeMap<ProviderId, Arc<Provider>>) -> Option<LlmRoute> {
    let candidates = candidates(&plan.picks, providers)?;
    let fingerprint = fingerprint(&candidates);
    let shadow = match &plan.shadow {
        Some(plan) => Some(shadow(plan, providers)?),
        None => None,
    };
    let rule = |rule: &PlannedRule| {
        let route = Arc::new(llm_route(id.clone(), &rule.route, providers)?);
        Some(Arc::new(LlmRule { name: Arc::clone(&rule.name), when: rule.when.clone(), route }))
    };
    let rules = plan.rules.iter().map(rule).collect::<Option<_>>()?;
    let (asking, &PlannedRoute { timeouts, max_attempts, class, cache, .. }) = (plan.asking.clone(), plan);
    Some(LlmRoute { id, candidates, timeouts, max_attempts, class, cache, asking, shadow, fingerprint, rules })
}

fn shadow(plan: &PlannedShadow, providers: &BTreeMap<ProviderId, Arc<Provider>>) -> Option<Shadow> {
    let candidate = candidates(std::slice::from_ref(&plan.pick), providers)?.pop()?;
    Some(Shadow { candidate, share: plan.share, in_flight: plan.in_flight })
}

fn risk_route(
    plan: &PlannedRisk,
    providers: &BTreeMap<ProviderId, Arc<Provider>>,
    version: &ConfigVersion,
) -> Option<RiskRoute> {
    let version: Arc<str> = version.to_string().into();
    let applied = Applied { rule: DEFAULT_RULE.into(), version: Arc::clone(&version), bands: plan.bands };
    Some(RiskRoute {
        id: RouteId::new(RISK),
        candidates: candidates(&plan.picks, providers)?,
        deadline: plan.deadline,
        hard_limit: plan.hard_limit,
        connect: plan.connect,
        max_attempts: plan.max_attempts,
        audit: plan.audit,
        budgets: plan.budgets.clone().map(Arc::new),
        ruling: Arc::new(Ruling::plain(applied, plan.vendor_action, plan.on_exhausted)),
        rules: plan.rules.of_version(&version),
        velocity: plan.velocity.clone(),
        reuse: plan.reuse.clone(),
        jurisdictions: Jurisdictions::default(),
    })
}

fn candidates(picks: &[Pick], providers: &BTreeMap<ProviderId, Arc<Provider>>) -> Option<Vec<Candidate>> {
    let candidate = |pick: &Pick| {
        let provider = Arc::clone(providers.get(pick.provider.as_str())?);
        let model = match &pick.model {
            Some(id) => Some(Arc::clone(provider.models.iter().find(|model| model.id == *id)?)),
            None => None,
        };
        Some(Candidate { upstream: UpstreamId::new(pick.upstream()), provider, model })
    };
    picks.iter().map(candidate).collect()
}

/// Changes with everything that decides what an answer says: who is asked, where, in which dialect, for which model.
fn fingerprint(candidates: &[Candidate]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for candidate in candidates {
        let provider = &candidate.provider;
        let protocol = match provider.protocol {
            Protocol::OpenAi => "openai",
            Protocol::DiHmac => "di-hmac",
        };
        let scheme = if provider.base_url.tls { "https" } else { "http" };
        let authority = provider.base_url.authority();
        let model = candidate.model.as_ref().map_or("", |model| model.name.as_str());
        for part in [candidate.upstream.as_str(), protocol, scheme, &authority, &provider.base_url.path, model] {
            add(&mut hash, part.as_bytes());
        }
        add(&mut hash, format!("{:?}{:?}", provider.shape, provider.paths).as_bytes());
        hash.update(length(provider.headers.len()));
        for (name, value) in &provider.headers {
            add(&mut hash, name.as_bytes());
            add(&mut hash, value.as_bytes());
        }
    }
    hash.finalize().into()
}

/// SHA-256 over the names and bytes of all files, of lists, certificates and keys too, and the fingerprints of all secrets.
fn version_of(
    sources: &Sources,
    built: &BTreeMap<ProviderId, Built>,
    callers: &[Arc<Caller>],
    (hooks, traces): (&Webhooks, Option<&Traces>),
) -> ConfigVersion {
    let mut hash = Sha256::new();
    for files in [&sources.routes, &sources.providers] {
        hash.update(length(files.len()));
        for file in files {
            add(&mut hash, file.name.as_bytes());
            add(&mut hash, file.text.as_bytes());
        }
    }
    hash.update(length(sources.lists.len()));
    for list in &sources.lists {
        add(&mut hash, list.path.as_bytes());
        add(&mut hash, list.content.as_ref().map_or(&[][..], |file| file.text.as_bytes()));
    }
    for (id, built) in built.iter().filter(|(_, built)| built.secret_is_real) {
        for secret in built.provider.auth.secrets() {
            add(&mut hash, id.as_str().as_bytes());
            add(&mut hash, &Sha256::digest(secret.expose()));
        }
    }
    for (id, tls) in built.iter().filter_map(|(id, built)| Some((id, built.provider.tls.as_ref()?))) {
        add(&mut hash, id.as_str().as_bytes());
        add(&mut hash, &tls.digest());
    }
    for caller in callers {
        for key in caller.signature.iter().flat_map(|keys| keys.keys()) {
            add(&mut hash, caller.id.as_str().as_bytes());
            add(&mut hash, &Sha256::digest(key.secret.expose()));
        }
    }
    for hook in hooks.values().filter(|hook| hook.secret_is_real) {
        for key in hook.keys.keys() {
            add(&mut hash, hook.tenant.as_str().as_bytes());
            add(&mut hash, &Sha256::digest(key.secret.expose()));
        }
    }
    for secret in traces.iter().filter(|traces| traces.secret_is_real).flat_map(|traces| traces.auth.secrets()) {
        add(&mut hash, b"traces");
        add(&mut hash, &Sha256::digest(secret.expose()));
    }
    ConfigVersion(hash.finalize().into())
}

/// Adds a part with its length, so that no two lists of parts have the same bytes.
pub(super) fn add(hash: &mut Sha256, part: &[u8]) {
    hash.update(length(part.len()));
    hash.update(part);
}

fn length(length: usize) -> [u8; 8] {
    u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes()
}
