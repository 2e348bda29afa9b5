//! What a new configuration would change, in words an operator can read before a reload.
//!
//! In the log it names what changed, never the old or new value. `weighbridge diff` shows both, as far as `words` has words
//! for them: addresses, digests and secrets have none.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::lists::List;
use super::policy::{self, Rules};
use super::table::{
    Auth, Caller, Candidate, Limits, LlmRoute, LlmRule, Provider, RiskRoute, RoutingTable, Shadow, Traces, Webhook,
};
use super::words::Told;
use crate::sign::keyring::{KeyState, Keyring};

/// The setting that says that a secret is another one. Others never depend on a secret.
const SECRET: &str = "secret";

/// The differences between two tables, in the order limits, callers, providers, routes, policies, lists.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct TableDiff {
    changes: Vec<Change>,
}

/// One thing that differs.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Change {
    /// Whether it is new, gone or different.
    pub kind: ChangeKind,
    /// What it is: `route summary`, `provider alipay`, `caller checkout`, `limits`.
    pub subject: String,
    /// Which settings of it differ; of what is new or gone, those that say most.
    pub settings: Vec<Setting>,
}

/// A setting, before and after.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Setting {
    /// Its name in the file.
    pub name: Cow<'static, str>,
    /// Before; `None` if it was absent, or if its value is nobody's business.
    pub from: Option<String>,
    /// After.
    pub to: Option<String>,
}

impl Setting {
    fn told<T: Told>(name: &'static str, old: Option<&T>, new: Option<&T>) -> Self {
        let words = |side: Option<&T>| side.and_then(|side| side.told(name));
        Self { name: name.into(), from: words(old), to: words(new) }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.from, &self.to) {
            (Some(from), Some(to)) if from == to => write!(f, "{}: changed (now {to})", self.name),
            (Some(from), Some(to)) => write!(f, "{}: {from} → {to}", self.name),
            (Some(from), None) => write!(f, "{}: {from} → none", self.name),
            (None, Some(to)) => write!(f, "{}: none → {to}", self.name),
            (None, None) => write!(f, "{}: changed", self.name),
        }
    }
}

/// How something differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// Only in the new table.
    Added,
    /// In both, with other settings.
    Changed,
    /// Only in the old table.
    Removed,
}

impl TableDiff {
    /// Compares two tables.
    pub fn between(old: &RoutingTable, new: &RoutingTable) -> Self {
        let mut diff = Self::default();
        let limits = changed_limits(&old.limits, &new.limits);
        diff.changed("limits".to_owned(), &limits, (&old.limits, &new.limits));
        let reload = differing([("roll_back", old.roll_back == new.roll_back)]);
        diff.changed("reload".to_owned(), &reload, (&old.roll_back, &new.roll_back));
        diff.compare("caller", &callers(old), &callers(new), changed_caller);
        let provider = |table: &RoutingTable| -> BTreeMap<String, Arc<Provider>> {
            table.providers.iter().map(|(id, provider)| (id.to_string(), Arc::clone(provider))).collect()
        };
        diff.compare("provider", &provider(old), &provider(new), |before, after| {
            let mut settings = changed_provider(before, after);
            settings.extend((old.facts.get(&before.id) != new.facts.get(&after.id)).then_some("sources"));
            settings
        });
        let route = |table: &RoutingTable| -> BTreeMap<String, Arc<LlmRoute>> {
            table.llm.iter().map(|(id, route)| (id.to_string(), Arc::clone(route))).collect()
        };
        diff.compare("route", &route(old), &route(new), changed_route);
        let risk = |table: &RoutingTable| -> BTreeMap<String, Arc<RiskRoute>> {
            table.risk.iter().map(|risk| (risk.id.to_string(), Arc::clone(risk))).collect()
        };
        diff.compare("route", &risk(old), &risk(new), changed_risk);
        let none = Rules::default();
        let rules = |table: &'_ RoutingTable| table.risk.as_ref().map(|risk| risk.rules.clone());
        let (before, after) = (rules(old).unwrap_or_else(|| none.clone()), rules(new).unwrap_or(none));
        diff.compare("policy", &policy::by_name(&before), &policy::by_name(&after), policy::changed_policy);
        diff.compare("list", &lists(&before), &lists(&after), changed_list);
        let hooks = |table: &RoutingTable| -> BTreeMap<String, Arc<Webhook>> {
            table.webhooks.iter().map(|(tenant, hook)| (tenant.to_string(), Arc::clone(hook))).collect()
        };
        diff.compare("webhook", &hooks(old), &hooks(new), changed_webhook);
        diff.compare_traces(old.traces.as_deref(), new.traces.as_deref());
        diff
    }

    /// True if a reload would change nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// All differences.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The same for people who want to see what is now and what would be.
    pub fn in_full(&self) -> String {
        let full = |change: &Change| {
            let head = change.to_string();
            let head = head.split_once(": ").map_or(head.as_str(), |(head, _)| head);
            let settings = change.settings.iter().map(|setting| format!("    {}\n", change.told(setting)));
            format!("{head}\n{}", settings.collect::<String>())
        };
        self.changes.iter().map(full).collect()
    }

    /// Without what only whoever has the secrets can tell.
    #[must_use]
    pub fn but_secrets(mut self) -> Self {
        // Of keys the names are told: where those are the same, only what they stand for is not.
        let of_keys = |setting: &Setting| ["signature", "auth"].contains(&&*setting.name) && setting.from == setting.to;
        let tells = |setting: &Setting| setting.name != SECRET && !of_keys(setting);
        self.changes.iter_mut().for_each(|change| change.settings.retain(tells));
        self.changes.retain(|change| change.kind != ChangeKind::Changed || !change.settings.is_empty());
        self
    }

    fn compare<T: Told>(
        &mut self,
        what: &str,
        old: &BTreeMap<String, Arc<T>>,
        new: &BTreeMap<String, Arc<T>>,
        changed: impl Fn(&T, &T) -> Vec<&'static str>,
    ) {
        for (name, after) in new {
            match old.get(name) {
                Some(before) => self.changed(format!("{what} {name}"), &changed(before, after), (&**before, &**after)),
                None => self.alone(ChangeKind::Added, format!("{what} {name}"), (None, Some(&**after))),
            }
        }
        for (name, before) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
            self.alone(ChangeKind::Removed, format!("{what} {name}"), (Some(&**before), None));
        }
    }

    fn compare_traces(&mut self, old: Option<&Traces>, new: Option<&Traces>) {
        let subject = "traces".to_owned();
        match (old, new) {
            (Some(before), Some(after)) => self.changed(subject, &changed_traces(before, after), (before, after)),
            (None, Some(_)) => self.alone(ChangeKind::Added, subject, (old, new)),
            (Some(_), None) => self.alone(ChangeKind::Removed, subject, (old, new)),
            (None, None) => {}
        }
    }

    fn changed<T: Told>(&mut self, subject: String, settings: &[&'static str], (old, new): (&T, &T)) {
        if !settings.is_empty() {
            let told = |name: &&'static str| Setting::told(name, Some(old), Some(new));
            let settings = settings.iter().map(told).collect();
            self.changes.push(Change { kind: ChangeKind::Changed, subject, settings });
        }
    }

    fn alone<T: Told>(&mut self, kind: ChangeKind, subject: String, (old, new): (Option<&T>, Option<&T>)) {
        let told = T::FIRST.iter().map(|name| Setting::told(name, old, new));
        let settings = told.filter(|setting| setting.from.is_some() || setting.to.is_some()).collect();
        self.changes.push(Change { kind, subject, settings });
    }
}

impl Change {
    /// A setting: of what is new or gone only the side that there is.
    fn told(&self, setting: &Setting) -> String {
        let only = match self.kind {
            ChangeKind::Changed => return setting.to_string(),
            ChangeKind::Added => &setting.to,
            ChangeKind::Removed => &setting.from,
        };
        format!("{}: {}", setting.name, only.as_deref().unwrap_or_default())
    }
}

impl fmt::Display for TableDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.changes.iter().try_for_each(|change| writeln!(f, "{change}"))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ChangeKind::Added => write!(f, "+ {}", self.subject),
            ChangeKind::Removed => write!(f, "- {}", self.subject),
            ChangeKind::Changed => {
                let names: Vec<_> = self.settings.iter().map(|setting| &*setting.name).collect();
                write!(f, "~ {}: {}", self.subject, names.join(", "))
            }
        }
    }
}

/// The names whose settings differ.
fn differing<const N: usize>(settings: [(&'static str, bool); N]) -> Vec<&'static str> {
    settings.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

fn callers(table: &RoutingTable) -> BTreeMap<String, Arc<Caller>> {
    table.callers.iter().map(|caller| (caller.id.to_string(), Arc::clone(caller))).collect()
}

fn changed_webhook(old: &Webhook, new: &Webhook) -> Vec<&'static str> {
    differing([
        ("url", old.url == new.url),
        ("allow_private", old.allow_private == new.allow_private),
        ("auth", old.keys == new.keys),
    ])
}

fn changed_traces(old: &Traces, new: &Traces) -> Vec<&'static str> {
    differing([
        ("otlp", old.url == new.url),
        ("sample", old.share == new.share),
        ("auth", same_auth_but_secret(&old.auth, &new.auth)),
        (SECRET, old.auth.secrets().eq(new.auth.secrets())),
        ("headers", old.headers == new.headers),
        ("queue", old.queue == new.queue),
        ("timeout", old.timeout == new.timeout),
        ("forward_to", old.forward_to == new.forward_to),
    ])
}

fn changed_limits(old: &Limits, new: &Limits) -> Vec<&'static str> {
    differing([
        ("body", old.body_bytes == new.body_bytes),
        ("risk_body", old.risk_body_bytes == new.risk_body_bytes),
        ("json_depth", old.json_depth == new.json_depth),
        ("head", old.head_bytes == new.head_bytes),
        ("head_fields", old.head_fields == new.head_fields),
        ("head_timeout", old.head_timeout == new.head_timeout),
        ("body_idle", old.body_idle == new.body_idle),
        ("write_stall", old.write_stall == new.write_stall),
        ("keep_alive", old.keep_alive == new.keep_alive),
        ("handshake", old.handshake == new.handshake),
        ("connections", old.connections == new.connections),
        ("in_flight", old.in_flight == new.in_flight),
        ("in_flight_bytes", old.in_flight_bytes == new.in_flight_bytes),
        ("memory", old.memory == new.memory),
    ])
}

fn changed_caller(old: &Caller, new: &Caller) -> Vec<&'static str> {
    differing([
        ("tenant", old.tenant == new.tenant),
        ("key_digest", old.key_digest == new.key_digest),
        ("client_cert_sha256", old.client_certs == new.client_certs),
        ("allow", old.allow == new.allow),
        ("limits.requests_per_minute", old.requests_per_minute == new.requests_per_minute),
        ("limits.in_flight", old.in_flight == new.in_flight),
        ("limits.tokens_per_minute", old.tokens_per_minute == new.tokens_per_minute),
        ("budget", old.budgets == new.budgets),
        ("unpriced", old.unpriced == new.unpriced),
        ("signature", old.signature == new.signature),
        ("class", old.class == new.class),
    ])
}

fn changed_provider(old: &Provider, new: &Provider) -> Vec<&'static str> {
    differing([
        ("protocol", old.protocol == new.protocol),
        ("base_url", old.base_url == new.base_url),
        ("auth", same_auth_but_secret(&old.auth, &new.auth)),
        (SECRET, old.auth.secrets().eq(new.auth.secrets())),
        ("operations", old.operations == new.operations),
        ("headers", old.headers == new.headers),
        ("limits.in_flight", (old.in_flight, old.adaptive_least) == (new.in_flight, new.adaptive_least)),
        ("quota_group", old.quota_group == new.quota_group),
        ("stream_usage", old.stream_usage == new.stream_usage),
        ("errors", old.errors == new.errors),
        ("error_codes", old.error_codes == new.error_codes),
        ("body, drop or rename", old.shape == new.shape),
        ("paths", old.paths == new.paths),
        ("models", old.models == new.models),
        ("price", old.price == new.price),
        ("allow_private", old.allow_private == new.allow_private),
        ("tls", old.tls == new.tls),
        ("http", old.http == new.http),
    ])
}

fn same_auth_but_secret(old: &Auth, new: &Auth) -> bool {
    match (old, new) {
        (Auth::None, Auth::None) | (Auth::Bearer { .. }, Auth::Bearer { .. }) => true,
        (Auth::Header { name: old, .. }, Auth::Header { name: new, .. }) => old == new,
        (Auth::DiHmac { keys: old }, Auth::DiHmac { keys: new }) => names(old) == names(new),
        _ => false,
    }
}

/// Keys but for what they are.
fn names(ring: &Keyring) -> Vec<(&str, KeyState)> {
    ring.keys().iter().map(|key| (key.id.as_str(), key.state)).collect()
}

/// By name: what changed inside a provider is said once, at the provider.
fn same_candidates(old: &[Candidate], new: &[Candidate]) -> bool {
    old.iter().map(|candidate| &candidate.upstream).eq(new.iter().map(|candidate| &candidate.upstream))
}

fn same_shadow(old: Option<&Shadow>, new: Option<&Shadow>) -> bool {
    let told = |shadow: &Shadow| (shadow.candidate.upstream.clone(), shadow.share, shadow.in_flight);
    old.map(told) == new.map(told)
}

fn changed_route(old: &LlmRoute, new: &LlmRoute) -> Vec<&'static str> {
    differing([
        ("candidates", same_candidates(&old.candidates, &new.candidates)),
        ("timeouts.total", old.timeouts.total == new.timeouts.total),
        ("timeouts.connect", old.timeouts.connect == new.timeouts.connect),
        ("timeouts.first_content", old.timeouts.first_content == new.timeouts.first_content),
        ("timeouts.idle", old.timeouts.idle == new.timeouts.idle),
        ("timeouts.heartbeat", old.timeouts.heartbeat == new.timeouts.heartbeat),
        ("max_attempts", old.max_attempts == new.max_attempts),
        ("cache", old.cache == new.cache),
        ("order", old.asking.order == new.asking.order),
        ("weights", old.candidates.len() != new.candidates.len() || old.asking.weights == new.asking.weights),
        ("sticky", old.asking.sticky == new.asking.sticky),
        ("fallback_on", old.asking.fallback_on == new.asking.fallback_on),
        ("hedge", old.asking.hedge == new.asking.hedge),
        ("shadow", same_shadow(old.shadow.as_ref(), new.shadow.as_ref())),
        ("class", old.class == new.class),
        ("rules", same_rules(old, new)),
    ])
}

fn same_rules(old: &LlmRoute, new: &LlmRoute) -> bool {
    const OWN: [&str; 8] = [
        "candidates",
        "order",
        "weights",
        "timeouts.total",
        "timeouts.connect",
        "timeouts.first_content",
        "timeouts.idle",
        "max_attempts",
    ];
    let same = |(old, new): (&Arc<LlmRule>, &Arc<LlmRule>)| {
        let changed = changed_route(&old.route, &new.route);
        old.name == new.name && old.when == new.when && !changed.iter().any(|setting| OWN.contains(setting))
    };
    old.rules.len() == new.rules.len() && old.rules.iter().zip(&new.rules).all(same)
}

fn changed_risk(old: &RiskRoute, new: &RiskRoute) -> Vec<&'static str> {
    differing([
        ("candidates", same_candidates(&old.candidates, &new.candidates)),
        ("deadline", old.deadline == new.deadline),
        ("hard_limit", old.hard_limit == new.hard_limit),
        ("connect", old.connect == new.connect),
        ("max_attempts", old.max_attempts == new.max_attempts),
        ("bands", old.ruling.applied.bands == new.ruling.applied.bands),
        ("vendor_action", old.ruling.vendor_action == new.ruling.vendor_action),
        ("on_exhausted", old.ruling.on_exhausted == new.ruling.on_exhausted),
        ("velocity", old.velocity == new.velocity),
        ("reuse", old.reuse == new.reuse),
        ("audit", old.audit == new.audit),
        ("budget or ladder", old.budgets == new.budgets),
        ("jurisdiction", old.jurisdictions == new.jurisdictions),
        ("order of policies", same_order(&old.rules, &new.rules)),
    ])
}

/// True if the policies that are in both come in the same order: the first match decides.
fn same_order(old: &Rules, new: &Rules) -> bool {
    let in_both = |these: &Rules, those: &Rules| -> Vec<Arc<str>> {
        let there = |name: &&Arc<str>| those.policies.iter().any(|policy| policy.name() == *name);
        these.policies.iter().map(policy::Policy::name).filter(there).cloned().collect()
    };
    in_both(old, new) == in_both(new, old)
}

fn lists(rules: &Rules) -> BTreeMap<String, Arc<List>> {
    rules.lists.iter().map(|list| (list.name.to_string(), Arc::clone(list))).collect()
}

fn changed_list(old: &List, new: &List) -> Vec<&'static str> {
    differing([("kind", old.kind == new.kind), ("by", old.by == new.by), ("values", old.same_values(new))])
}
