//! What a setting says, in words, for a diff that is read by the people who wrote it.
//!
//! Never a secret, a digest, the path of an address that may be a credential, or who is on a list. What has no words here is
//! told as changed and no more, so that a setting somebody adds is never shown by accident.

use std::sync::Arc;

use super::asking::{HedgeAfter, Order, Sticky};
use super::budgets::RiskBudgets;
use super::cases::bands_in_words;
use super::lists::List;
use super::policy::{Policy, Rules};
use super::reload::RollBack;
use super::reuse::{ReuseMode, ReusePolicy};
use super::table::{
    Auth, BaseUrl, CachePolicy, Caller, Candidate, CutAnswers, Limits, LlmRoute, LlmRule, Model, Protocol, Provider,
    RiskRoute, StreamUsage, Traces, Unpriced, Webhook,
};
use super::units::shown;
use super::velocity::{Measure, VelocityRule};
use crate::config::audit::OnUnrecorded;
use crate::domain::operation::Operation;
use crate::domain::policy::{FailureModes, OnExhausted, VendorAction};
use crate::sign::keyring::Keyring;

/// Says what its settings are.
pub(super) trait Told {
    /// The settings that are told of one that is new or gone.
    const FIRST: &'static [&'static str] = &[];

    /// A setting in words; `None` if it has none, and for what is absent.
    fn told(&self, setting: &str) -> Option<String>;
}

/// A setting of it in words; `None` if it has none, and for what is absent.
#[expect(private_bounds, reason = "who has words is decided here")]
pub fn setting(of: &impl Told, name: &str) -> Option<String> {
    of.told(name)
}

fn list<T: ToString>(all: impl IntoIterator<Item = T>) -> Option<String> {
    let all: Vec<_> = all.into_iter().map(|one| one.to_string()).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

fn bytes(bytes: usize) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}

fn percent(millionths: u32) -> String {
    format!("{} %", f64::from(millionths) / 10_000.0)
}

/// Candidates in their order.
pub fn in_turn(candidates: &[Candidate]) -> String {
    candidates.iter().map(|candidate| candidate.upstream.as_str()).collect::<Vec<_>>().join(", then ")
}

impl Told for Limits {
    fn told(&self, setting: &str) -> Option<String> {
        match setting {
            "body" => Some(bytes(self.body_bytes)),
            "risk_body" => Some(bytes(self.risk_body_bytes)),
            "json_depth" => Some(self.json_depth.to_string()),
            "head" => Some(bytes(self.head_bytes)),
            "head_fields" => Some(self.head_fields.to_string()),
            "head_timeout" => Some(shown(self.head_timeout)),
            "body_idle" => Some(shown(self.body_idle)),
            "write_stall" => Some(shown(self.write_stall)),
            "keep_alive" => Some(shown(self.keep_alive)),
            "connections" => Some(self.connections.to_string()),
            "in_flight" => Some(self.in_flight.to_string()),
            "in_flight_bytes" => Some(bytes(self.in_flight_bytes)),
            _ => None,
        }
    }
}

impl Told for Option<RollBack> {
    fn told(&self, setting: &str) -> Option<String> {
        self.filter(|_| setting == "roll_back").map(|terms| terms.to_string())
    }
}

impl Told for Caller {
    const FIRST: &'static [&'static str] =
        &["tenant", "allow", "limits.requests_per_minute", "limits.in_flight", "limits.tokens_per_minute", "budget"];

    fn told(&self, setting: &str) -> Option<String> {
        match setting {
            "tenant" => Some(self.tenant.to_string()),
            "allow" => list(&self.allow),
            "limits.requests_per_minute" => self.requests_per_minute.map(|limit| limit.to_string()),
            "limits.in_flight" => self.in_flight.map(|limit| limit.to_string()),
            "limits.tokens_per_minute" => self.tokens_per_minute.map(|limit| limit.to_string()),
            "budget" => list(self.budgets.iter().map(|budget| format!("{} a {}", budget.amount, budget.per.label()))),
            "unpriced" => Some(if self.unpriced == Unpriced::Refuse { "refuse" } else { "allow" }.to_owned()),
            "signature" => self.signature.as_deref().map(keys),
            _ => None,
        }
    }
}

/// Keys by their names, which are on the wire anyway.
fn keys(ring: &Keyring) -> String {
    ring.keys().iter().map(|key| format!("{} {}", key.id, key.state.label())).collect::<Vec<_>>().join(", ")
}

fn place(url: &BaseUrl) -> String {
    format!("{}://{}", if url.tls { "https" } else { "http" }, url.authority())
}

impl Told for Provider {
    const FIRST: &'static [&'static str] = &["base_url", "operations", "limits.in_flight", "models", "price"];

    fn told(&self, setting: &str) -> Option<String> {
        match setting {
            "protocol" => Some(if self.protocol == Protocol::OpenAi { "openai" } else { "di-hmac" }.to_owned()),
            // Some addresses hold a key in their path.
            "base_url" => Some(place(&self.base_url)),
            "auth" => Some(auth(&self.auth)),
            "operations" => list(self.operations.iter().map(|operation: &Operation| operation.label())),
            "headers" => list(self.headers.iter().map(|(name, _)| name)),
            "limits.in_flight" => Some(match self.adaptive_least {
                Some(least) => format!("adaptive, {least} to {}", self.in_flight),
                None => self.in_flight.to_string(),
            }),
            "quota_group" => Some(self.quota_group.clone()),
            "stream_usage" => Some(
                match self.stream_usage {
                    StreamUsage::OnRequest => "on request",
                    StreamUsage::Always => "always",
                    StreamUsage::Never => "never",
                }
                .to_owned(),
            ),
            "errors" => list(self.errors.iter().map(|(status, class)| format!("{status} {}", class.label()))),
            "error_codes" => list(self.error_codes.iter().map(|(code, class)| format!("{code} {}", class.label()))),
            "paths" => list(self.paths.keys().map(|operation| operation.label())),
            "models" => list(self.models.iter().map(|one| model(one))),
            "price" => self.price.as_ref().map(|price| {
                let crossing = price.cross_border.map(|cost| format!("cross-border {cost}"));
                let features = price.features.iter().map(|(feature, cost)| format!("{feature} {cost}"));
                let all = [format!("standard {}", price.standard)].into_iter().chain(crossing).chain(features);
                all.collect::<Vec<_>>().join(", ")
            }),
            "allow_private" => Some(self.allow_private.to_string()),
            "tls" => self.tls.as_ref().map(|tls| tls.words()),
            "http" => Some(self.http.label().to_owned()),
            _ => None,
        }
    }
}

fn auth(auth: &Auth) -> String {
    match auth {
        Auth::None => "none".to_owned(),
        Auth::Bearer { .. } => "bearer".to_owned(),
        Auth::Header { name, .. } => format!("header {name}"),
        Auth::DiHmac { keys: ring } => format!("di-hmac, {}", keys(ring)),
    }
}

fn model(model: &Model) -> String {
    let mut words = Vec::new();
    if model.name != model.id {
        words.push(format!("named {}", model.name));
    }
    words.push(match model.price {
        Some(price) => {
            let cached = price.cached_input_per_million.map(|cost| format!(", cached {cost}")).unwrap_or_default();
            format!("{} in{cached}, {} out per million", price.input_per_million, price.output_per_million)
        }
        None => "price unknown".to_owned(),
    });
    words.extend(model.context.map(|tokens| format!("context {tokens}")));
    words.extend(model.max_output.map(|tokens| format!("output {tokens}")));
    format!("{} ({})", model.id, words.join("; "))
}

impl Told for LlmRoute {
    const FIRST: &'static [&'static str] =
        &["candidates", "order", "timeouts.total", "timeouts.first_content", "cache", "hedge", "shadow", "rules"];

    fn told(&self, setting: &str) -> Option<String> {
        let (timeouts, asking) = (&self.timeouts, &self.asking);
        match setting {
            "candidates" => Some(in_turn(&self.candidates)),
            "timeouts.total" => Some(shown(timeouts.total)),
            "timeouts.connect" => Some(shown(timeouts.connect)),
            "timeouts.first_content" => Some(shown(timeouts.first_content)),
            "timeouts.idle" => Some(shown(timeouts.idle)),
            "max_attempts" => Some(self.max_attempts.to_string()),
            "cache" => self.cache.map(cache),
            "order" => Some(asking.order.label().to_owned()),
            "weights" => {
                let named = self.candidates.iter().zip(&asking.weights);
                list(named.map(|(candidate, weight)| format!("{} {weight}", candidate.upstream)))
            }
            "rules" => {
                let rule = |rule: &Arc<LlmRule>| {
                    let (own, theirs) = (&rule.route, self);
                    let changed = ["candidates", "order", "weights", "timeouts.total", "timeouts.connect"];
                    let changed =
                        changed.into_iter().chain(["timeouts.first_content", "timeouts.idle", "max_attempts"]);
                    let weighs = |setting: &&str| *setting != "weights" || own.asking.order == Order::Weighted;
                    let changed = changed.filter(weighs).filter(|setting| own.told(setting) != theirs.told(setting));
                    let changed = changed.filter_map(|setting| Some(format!("{setting} {}", own.told(setting)?)));
                    format!("\"{}\" when {}: {}", rule.name, rule.when, changed.collect::<Vec<_>>().join(", "))
                };
                list(self.rules.iter().map(rule))
            }
            "sticky" => asking.sticky.map(|Sticky::Conversation| "conversation".to_owned()),
            "fallback_on" => {
                let words = [
                    asking.fallback_on.too_long.then_some("context_length_exceeded"),
                    asking.fallback_on.content_policy.then_some("content_policy"),
                ];
                list(words.into_iter().flatten())
            }
            "hedge" => asking.hedge.map(|hedge| {
                let after = match hedge.after {
                    HedgeAfter::P95 => "p95".to_owned(),
                    HedgeAfter::Fixed(after) => shown(after),
                };
                let spend = hedge.max_spend.map(|most| format!(", at most {} of the money", percent(most)));
                format!("after {after}, at most {} of calls{}", percent(hedge.max_share), spend.unwrap_or_default())
            }),
            "shadow" => self.shadow.as_ref().map(|shadow| {
                let (name, share) = (&shadow.candidate.upstream, percent(shadow.share));
                format!("{name}, {share} of calls, {} at a time", shadow.in_flight)
            }),
            _ => None,
        }
    }
}

fn cache(policy: CachePolicy) -> String {
    let more = |window: std::time::Duration, what: &str| {
        if window.is_zero() { String::new() } else { format!(", {} more while {what}", shown(window)) }
    };
    let stale = more(policy.stale_while_revalidate, "a fresh one is asked for");
    let stale = stale + &more(policy.stale_if_error, "everybody fails");
    let cut = if policy.cut_by_length == CutAnswers::Store { ", answers cut by length too" } else { "" };
    format!("{}{stale}{cut}", shown(policy.ttl))
}

impl Told for RiskRoute {
    const FIRST: &'static [&'static str] = &["candidates", "deadline", "hard_limit", "bands", "on_exhausted", "reuse"];

    fn told(&self, setting: &str) -> Option<String> {
        match setting {
            "candidates" => Some(in_turn(&self.candidates)),
            "deadline" => Some(shown(self.deadline)),
            "hard_limit" => Some(shown(self.hard_limit)),
            "connect" => Some(shown(self.connect)),
            "max_attempts" => Some(self.max_attempts.to_string()),
            "bands" => Some(bands_in_words(self.ruling.applied.bands)),
            "vendor_action" => Some(vendor_action(self.ruling.vendor_action).to_owned()),
            "on_exhausted" => Some(modes(&self.ruling.on_exhausted)),
            "velocity" => list(self.velocity.iter().map(|rule| counter(rule))),
            "reuse" => Some(self.reuse.as_ref().map_or_else(|| "off".to_owned(), reuse)),
            "audit" => Some(if self.audit == OnUnrecorded::Refuse { "refuse" } else { "continue" }.to_owned()),
            "budget or ladder" => self.budgets.as_deref().map(budgets),
            "order of policies" => Some(policies(&self.rules)),
            _ => None,
        }
    }
}

fn policies(rules: &Rules) -> String {
    rules.policies.iter().map(|policy| policy.name().to_string()).collect::<Vec<_>>().join(", then ")
}

/// What a provider's word may do, as it is written.
pub fn vendor_action(action: VendorAction) -> &'static str {
    match action {
        VendorAction::Floor => "floor",
        VendorAction::Advisory => "advisory",
    }
}

/// A failure mode as it is written.
pub fn mode(mode: OnExhausted) -> String {
    match mode {
        OnExhausted::Review => "review".to_owned(),
        OnExhausted::Reject => "reject".to_owned(),
        OnExhausted::Error => "error".to_owned(),
        OnExhausted::LocalRules => "local_rules".to_owned(),
        OnExhausted::AcceptUpTo(most) => format!("accept up to {most}"),
    }
}

/// Failure modes by cause; one word if they are all the same.
pub fn modes(modes: &FailureModes) -> String {
    if *modes == FailureModes::all(modes.otherwise) {
        return mode(modes.otherwise);
    }
    let causes = [
        ("deadline", modes.deadline),
        ("unavailable", modes.unavailable),
        ("no_verdict", modes.no_verdict),
        ("not_authentic", modes.not_authentic),
        ("budget", modes.budget),
        ("default", modes.otherwise),
    ];
    causes.map(|(cause, of)| format!("{cause} {}", mode(of))).join(", ")
}

/// A counter in words.
pub fn counter(rule: &VelocityRule) -> String {
    format!("{}: {}", rule.name, counting(rule))
}

/// What a counter counts, in words.
pub fn counting(rule: &VelocityRule) -> String {
    let measure = match rule.measure {
        Measure::Count => "attempts".to_owned(),
        Measure::Sum(currency) => format!("sum in {}", currency.code()),
        Measure::Distinct(of) => format!("different {}", of.as_str()),
    };
    let limit = rule.limit.map(|limit| format!(", limit {limit}")).unwrap_or_default();
    let over = rule.over.map(|over| format!(", over it at least {}", over.as_str())).unwrap_or_default();
    let most = rule.most;
    format!("{measure} by {} within {}{limit}{over}, {most} keys", rule.by.as_str(), shown(rule.window))
}

/// When decisions are given again, in words.
pub fn reuse(policy: &ReusePolicy) -> String {
    let terms = &policy.terms;
    let mode = if policy.mode == ReuseMode::First { "first" } else { "when-late" };
    format!(
        "{mode}, for {}, up to {} each and {} together, {} times, score up to {}, device known {}, {} asked all the same, \
         at most {} disagreeing",
        shown(terms.ttl),
        terms.max_amount,
        terms.max_sum,
        terms.max_uses,
        terms.max_score,
        shown(terms.known_device),
        percent(policy.self_audit),
        percent(policy.max_disagreement)
    )
}

fn budgets(budgets: &RiskBudgets) -> String {
    let one = |budget: &super::budgets::MerchantBudget| {
        let (kind, name) = budget.whose.label();
        let tenant = budget.tenant.as_ref().map(|tenant| format!(" of {tenant}")).unwrap_or_default();
        let (amount, per, then) = (budget.amount, budget.per.label(), budget.when_spent.label());
        format!("{kind} {name}{tenant} {amount} a {per} (ladder from {}, then {then})", percent(budget.ladder_from))
    };
    let ladder = if budgets.ladder().is_empty() {
        Vec::new()
    } else {
        vec![format!("ladder {}", budgets.ladder().join(", then "))]
    };
    budgets.all().iter().map(one).chain(ladder).collect::<Vec<_>>().join(", ")
}

impl Told for Policy {
    const FIRST: &'static [&'static str] = &["when", "bands", "vendor_action", "on_exhausted", "action"];

    fn told(&self, setting: &str) -> Option<String> {
        match setting {
            "when" => Some(self.when.as_ref().map_or_else(|| "always".to_owned(), ToString::to_string)),
            "bands" => Some(bands_in_words(self.ruling.applied.bands)),
            "vendor_action" => Some(vendor_action(self.ruling.vendor_action).to_owned()),
            "on_exhausted" => Some(modes(&self.ruling.on_exhausted)),
            "action" => self.ruling.at_least.map(|action| format!("at least {}", action.as_str())),
            _ => None,
        }
    }
}

impl Told for List {
    const FIRST: &'static [&'static str] = &["kind", "by", "values"];

    fn told(&self, setting: &str) -> Option<String> {
        match setting {
            "kind" => Some(self.kind.as_str().to_owned()),
            "by" => Some(self.by.as_str().to_owned()),
            "values" => Some(format!("{} values", self.len())),
            _ => None,
        }
    }
}

impl Told for Webhook {
    const FIRST: &'static [&'static str] = &["url"];

    fn told(&self, setting: &str) -> Option<String> {
        match setting {
            // Its path may be a credential.
            "url" => Some(place(&self.url)),
            "allow_private" => Some(self.allow_private.to_string()),
            "auth" => Some(keys(&self.keys)),
            _ => None,
        }
    }
}

impl Told for Traces {
    const FIRST: &'static [&'static str] = &["otlp", "sample"];

    fn told(&self, setting: &str) -> Option<String> {
        match setting {
            "otlp" => Some(place(&self.url)),
            "sample" => Some(percent(self.share)),
            "auth" => Some(auth(&self.auth)),
            "queue" => Some(self.queue.to_string()),
            "timeout" => Some(shown(self.timeout)),
            "forward_to" => list(&self.forward_to),
            _ => None,
        }
    }
}
