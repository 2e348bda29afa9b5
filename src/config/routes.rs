//! What the routes and callers want, with every name looked up but no provider built yet.
//!
//! This step exists because only the providers that some route uses need their secret: who is used must be known before
//! any secret is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::asking::Asking;
use super::callers;
use super::catalog::{Catalog, Pick, picks};
use super::checks;
use super::client_certs;
use super::disabled::Disabled;
use super::error::Code;
use super::jurisdictions::Jurisdictions;
use super::keys::Resolving;
use super::laws::{self, Recorded};
use super::lists_plan::ListFiles;
use super::llm::{self, Beside};
use super::raw::cache::RawCache;
use super::raw::callers::RawCaller;
use super::raw::cases::RawCase;
use super::raw::llm::{RawRoute, RawTimeouts};
use super::raw::routes::{RawLimits, RawRoutes};
use super::raw::traces::RawTraces;
use super::raw::webhook::RawWebhook;
use super::read::suggest;
use super::reload::RollBack;
use super::reloading;
use super::report::{Field, Mistake, Report, accept};
use super::risk::{PlannedRisk, plan_risk};
use super::rules_plan::{self, PlannedRoute};
use super::secrets::{Secrets, Use};
use super::table::{Caller, Limits};
use crate::domain::deadline::Timeouts;
use crate::domain::id::{CallerId, RouteId, TenantId};
use crate::domain::overload::Class;

/// The id of the risk route.
pub(super) const RISK: &str = "risk";
const DEFAULT_ATTEMPTS: u32 = 3;
/// Together with [`MOST_CALLERS`] this bounds what `allow = ["*"]` expands to.
const MOST_ROUTES: usize = 500;
const MOST_CALLERS: usize = 5000;
const MIB: usize = 1 << 20;

/// Everything but the providers.
pub(super) struct Plan {
    pub(super) limits: Limits,
    pub(super) roll_back: Option<RollBack>,
    pub(super) callers: Vec<Arc<Caller>>,
    pub(super) llm: BTreeMap<RouteId, PlannedRoute>,
    pub(super) risk: Option<PlannedRisk>,
    pub(super) webhooks: Vec<RawWebhook>,
    pub(super) traces: Option<RawTraces>,
    pub(super) jurisdictions: Jurisdictions,
    pub(super) cases: Vec<RawCase>,
    /// Providers and candidates that are switched off.
    pub(super) disabled: Vec<String>,
}

impl Plan {
    /// Checks all files of routes as one. Reports what is wrong; what could not be read is left out of the plan.
    pub(super) fn make(
        files: Vec<RawRoutes>,
        catalog: &Catalog,
        (lists, secrets): (&ListFiles<'_>, Secrets<'_>),
        report: &Report<'_>,
    ) -> Self {
        let merged = merge(files, report);
        let names: BTreeSet<&str> = merged.models.iter().map(|route| route.name.value.as_str()).collect();
        let disabled = Disabled::new(&merged.disabled, catalog, report);
        let mut allowing =
            Allowing { names, has_risk: merged.risk.is_some(), implicit: BTreeMap::new(), disabled, catalog, report };
        // A caller's secret is always needed: without it nobody could tell its requests from forged ones.
        let resolving = Resolving { secrets, used: Use::ByRoute, report };
        let callers =
            merged.callers.iter().filter_map(|caller| plan_caller(caller, resolving, &mut allowing)).collect();
        let mut llm = allowing.implicit;
        for route in &merged.models {
            if let Err(mistake) = checks::route_name(&route.name) {
                report.add(mistake);
            }
            llm.insert(RouteId::new(route.name.value.as_str()), plan_route(route, catalog, report));
        }
        let mut risk = merged.risk.as_ref().and_then(|risk| plan_risk(risk, catalog, lists, report));
        disabled.apply(&merged, &mut llm, risk.as_mut());
        let disabled = disabled.names();
        let recorded = if merged.risk.is_some() { Recorded::Decisions } else { Recorded::Nothing };
        let jurisdictions = laws::plan(&merged.jurisdictions, recorded, report);
        let limits = plan_limits(merged.limits.as_ref(), report);
        let roll_back = reloading::roll_back(merged.reload.as_ref());
        let unique = merged.cases.iter().filter_map(|case| case.name.as_ref());
        checks::unique(unique, "the test's name", report);
        let (webhooks, traces, cases) = (merged.webhooks, merged.traces, merged.cases);
        Self { limits, roll_back, callers, llm, risk, webhooks, traces, jurisdictions, cases, disabled }
    }

    /// The ids of all providers that some route leads to.
    pub(super) fn used(&self) -> BTreeSet<&str> {
        let llm = self.llm.values().flat_map(PlannedRoute::all_picks);
        let risk = self.risk.iter().flat_map(|risk| &risk.picks);
        llm.chain(risk).map(|pick| pick.provider.as_str()).collect()
    }
}

/// Several files as one; the same thing in two of them is a mistake.
pub(super) fn merge(files: Vec<RawRoutes>, report: &Report<'_>) -> RawRoutes {
    let mut merged = RawRoutes::default();
    for file in files {
        merged.allowed.extend(file.allowed);
        merged.disabled.extend(file.disabled);
        merged.callers.extend(file.callers);
        merged.models.extend(file.models);
        merged.webhooks.extend(file.webhooks);
        merged.jurisdictions.extend(file.jurisdictions);
        merged.cases.extend(file.cases);
        if let (Some(first), Some(second)) = (&merged.limits, &file.limits) {
            report.add(twice(&second.at, &first.at, "[limits]", report));
        }
        if let (Some(first), Some(second)) = (&merged.reload, &file.reload) {
            report.add(twice(&second.at, &first.at, "[reload]", report));
        }
        if let (Some(first), Some(second)) = (&merged.risk, &file.risk) {
            report.add(twice(&second.at, &first.at, "[risk]", report));
        }
        if let (Some(first), Some(second)) = (&merged.traces, &file.traces) {
            report.add(twice(&second.at, &first.at, "[traces]", report));
        }
        merged.limits = merged.limits.or(file.limits);
        merged.traces = merged.traces.or(file.traces);
        merged.reload = merged.reload.or(file.reload);
        merged.risk = merged.risk.or(file.risk);
    }
    checks::unique(merged.models.iter().map(|route| &route.name), "the route", report);
    checks::unique(merged.callers.iter().filter_map(|caller| caller.id.as_ref()), "the caller's id", report);
    let digests = merged.callers.iter().filter_map(|caller| caller.key_digest.as_ref());
    // Hexadecimal digits have two spellings.
    let digests: Vec<_> = digests.map(|digest| digest.with(digest.value.to_ascii_lowercase())).collect();
    checks::unique(digests.iter(), "the key's digest", report);
    bound(&mut merged, report);
    merged
}

fn twice(second: &Field<()>, first: &Field<()>, what: &str, report: &Report<'_>) -> Mistake {
    let mistake = second.mistake(Code::Repeated, format!("{what} occurs twice"));
    mistake.hint(format!("first at {}", report.place_of(first.at)))
}

/// Reports and leaves out what is too much.
fn bound(routes: &mut RawRoutes, report: &Report<'_>) {
    if let Some(first_over) = routes.models.get(MOST_ROUTES) {
        report.add(first_over.name.mistake(Code::BadValue, format!("more than {MOST_ROUTES} routes")));
    }
    if let Some(id) = routes.callers.get(MOST_CALLERS).and_then(|caller| caller.id.as_ref()) {
        report.add(id.mistake(Code::BadValue, format!("more than {MOST_CALLERS} callers")));
    }
    routes.models.truncate(MOST_ROUTES);
    routes.callers.truncate(MOST_CALLERS);
}

/// What `allow` is checked against, and the routes that `provider/model` in it brings into being.
struct Allowing<'p> {
    names: BTreeSet<&'p str>,
    has_risk: bool,
    implicit: BTreeMap<RouteId, PlannedRoute>,
    disabled: Disabled<'p>,
    catalog: &'p Catalog,
    report: &'p Report<'p>,
}

impl Allowing<'_> {
    /// The routes an entry stands for.
    fn expand(&mut self, entry: &Field<String>) -> Result<Vec<RouteId>, Mistake> {
        match entry.value.as_str() {
            "*" => {
                let risk = self.has_risk.then_some(RISK);
                Ok(self.names.iter().copied().chain(risk).map(RouteId::new).collect())
            }
            RISK if self.has_risk => Ok(vec![RouteId::new(RISK)]),
            RISK => {
                Err(entry.mistake(Code::UnknownName, "there is no [risk] section").hint("add one, or remove it here"))
            }
            name if self.names.contains(name) => Ok(vec![RouteId::new(name)]),
            name => match name.split_once('/') {
                Some((provider, "*")) => {
                    let picks = self.catalog.llm_picks(entry, provider)?;
                    Ok(picks.into_iter().filter_map(|pick| self.direct_route(pick)).collect())
                }
                Some(_) => {
                    let pick = self.catalog.llm_pick(entry, self.report)?;
                    Ok(pick.into_iter().filter_map(|pick| self.direct_route(pick)).collect())
                }
                None => Err(self.no_such_route(entry)),
            },
        }
    }

    /// A route with one candidate, for callers who name a provider themselves; none if it is switched off.
    fn direct_route(&mut self, pick: Pick) -> Option<RouteId> {
        if !self.disabled.leaves(&pick) {
            return None;
        }
        let id = RouteId::new(pick.upstream());
        self.implicit.entry(id.clone()).or_insert_with(|| PlannedRoute {
            picks: vec![pick],
            timeouts: default_timeouts(),
            max_attempts: DEFAULT_ATTEMPTS,
            class: Class::default(),
            cache: None,
            asking: Asking { weights: vec![1], ..Asking::default() },
            shadow: None,
            rules: Vec::new(),
        });
        Some(id)
    }

    fn no_such_route(&self, entry: &Field<String>) -> Mistake {
        let risk = self.has_risk.then_some(RISK);
        let known: Vec<&str> = self.names.iter().copied().chain(risk).collect();
        let mistake = entry.mistake(Code::UnknownName, "no such route");
        mistake.hint(suggest(&entry.value, &known).unwrap_or_else(|| "add a [model.NAME] section".to_owned()))
    }
}

fn plan_caller(raw: &RawCaller, resolving: Resolving<'_>, allowing: &mut Allowing<'_>) -> Option<Arc<Caller>> {
    let report = allowing.report;
    let allow = raw.allow.as_ref().map(|allow| expand_all(allow, allowing));
    let key_digest = raw.key_digest.as_ref().and_then(|digest| accept(checks::key_digest(digest), report));
    let signature = raw.signature.as_ref().map(|signature| resolving.signature(signature));
    let id = raw.id.as_ref()?;
    let tenant = raw.tenant.as_ref().unwrap_or(id);
    Some(Arc::new(Caller {
        id: CallerId::new(id.value.as_str()),
        tenant: TenantId::new(tenant.value.as_str()),
        key_digest: key_digest?,
        client_certs: raw.client_certs.as_ref().map_or_else(Vec::new, |certs| client_certs::plan(certs, report)),
        class: callers::class(raw, report),
        allow: allow?,
        requests_per_minute: raw.requests_per_minute.as_ref().map(|limit| limit.value),
        in_flight: raw.in_flight.as_ref().map(|limit| limit.value),
        tokens_per_minute: raw.tokens_per_minute.as_ref().map(|limit| limit.value),
        budgets: callers::budgets(raw, report),
        unpriced: callers::unpriced(raw, report),
        // One that could not be read was reported, and must not become none.
        signature: match signature {
            Some(ringed) => Some(Arc::new(ringed?.keys)),
            None => None,
        },
    }))
}

fn expand_all(allow: &Field<Vec<Field<String>>>, allowing: &mut Allowing<'_>) -> Vec<RouteId> {
    let report = allowing.report;
    let _ = accept(checks::not_empty(allow, "name the routes the caller may use, or \"*\" for all"), report);
    checks::unique(allow.value.iter(), "the entry", report);
    let mut routes: BTreeSet<RouteId> = BTreeSet::new();
    let mut expanded: BTreeSet<&str> = BTreeSet::new();
    for entry in allow.value.iter().filter(|entry| expanded.insert(&entry.value)) {
        routes.extend(accept(allowing.expand(entry), report).unwrap_or_default());
    }
    routes.into_iter().collect()
}

fn plan_route(raw: &RawRoute, catalog: &Catalog, report: &Report<'_>) -> PlannedRoute {
    let pick = |candidate: &Field<String>| catalog.llm_pick(candidate, report);
    let picks = picks(raw.candidates.as_ref().map(llm::names).as_ref(), pick, report);
    let timeouts = plan_timeouts(&raw.timeouts, report);
    let max_attempts = raw.max_attempts.as_ref().map_or(DEFAULT_ATTEMPTS, |attempts| attempts.value);
    let beside = Beside { picks: &picks, timeouts: &timeouts, max_attempts, catalog };
    let route = PlannedRoute {
        asking: llm::asking(raw, &beside, report),
        shadow: raw.shadow.as_ref().and_then(|shadow| llm::shadow(shadow, catalog, report)),
        class: raw.class.as_ref().map(|class| class.value).unwrap_or_default(),
        cache: raw.cache.as_ref().map(RawCache::policy),
        rules: Vec::new(),
        picks,
        timeouts,
        max_attempts,
    };
    PlannedRoute { rules: rules_plan::plan(raw, &route, catalog, report), ..route }
}

fn default_timeouts() -> Timeouts {
    Timeouts {
        total: Duration::from_secs(600),
        connect: Duration::from_secs(1),
        first_content: Duration::from_secs(30),
        idle: Duration::from_secs(30),
        heartbeat: Some(Duration::from_secs(15)),
    }
}

/// Written limits must fit each other; defaults give way to what was written.
fn plan_timeouts(raw: &RawTimeouts, report: &Report<'_>) -> Timeouts {
    let default = default_timeouts();
    let total = raw.total.as_ref().map_or(default.total, |field| field.value);
    let within_total = |field: &Option<Field<Duration>>, default: Duration| match field {
        Some(field) => {
            let _ = accept(checks::not_longer(field, total, "timeouts.total"), report);
            field.value
        }
        None => default.min(total),
    };
    Timeouts {
        total,
        connect: within_total(&raw.connect, default.connect),
        first_content: within_total(&raw.first_content, default.first_content),
        // Silence may be allowed for longer than everything together: then `total` alone ends the call.
        idle: raw.idle.as_ref().map_or(default.idle.min(total), |field| field.value),
        heartbeat: raw.heartbeat.as_ref().map_or(default.heartbeat, |field| field.value),
    }
}

fn plan_limits(raw: Option<&RawLimits>, report: &Report<'_>) -> Limits {
    let count = |field: fn(&RawLimits) -> &Option<Field<usize>>, default: usize| {
        raw.and_then(|raw| field(raw).as_ref()).map_or(default, |field| field.value)
    };
    let seconds = |field: fn(&RawLimits) -> &Option<Field<Duration>>, default: u64| {
        raw.and_then(|raw| field(raw).as_ref()).map_or(Duration::from_secs(default), |field| field.value)
    };
    let limits = Limits {
        body_bytes: count(|raw| &raw.body, 32 * MIB),
        risk_body_bytes: count(|raw| &raw.risk_body, 64 << 10),
        json_depth: count(|raw| &raw.json_depth, 64),
        head_bytes: count(|raw| &raw.head, 16 << 10),
        head_fields: count(|raw| &raw.head_fields, 64),
        head_timeout: seconds(|raw| &raw.head_timeout, 10),
        body_idle: seconds(|raw| &raw.body_idle, 10),
        write_stall: seconds(|raw| &raw.write_stall, 30),
        keep_alive: seconds(|raw| &raw.keep_alive, 60),
        handshake: seconds(|raw| &raw.handshake, 5),
        connections: count(|raw| &raw.connections, 10_000),
        in_flight: count(|raw| &raw.in_flight, 2000),
        in_flight_bytes: count(|raw| &raw.in_flight_bytes, 512 * MIB),
        memory: raw.and_then(|raw| raw.memory.as_ref()).map(|memory| memory.value as u64),
    };
    let largest = limits.body_bytes.max(limits.risk_body_bytes);
    if let Some(raw) = raw.filter(|_| limits.in_flight_bytes < largest) {
        let culprit = raw.in_flight_bytes.as_ref().or(raw.body.as_ref()).map_or_else(|| raw.at.clone(), |f| f.with(()));
        let mistake = culprit.mistake(Code::Conflict, "one body could be larger than all bodies in flight may be");
        report.add(mistake.hint("raise in_flight_bytes, or lower body"));
    }
    limits
}
