//! `weighbridge check`: what a reload would say, beforehand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::findings::{Findings, Format};
use super::secrets::Environment;
use super::{Paths, say};
use crate::config::SecretPolicy;
use crate::config::asking::{Order, Sticky};
use crate::config::budgets::{MerchantBudget, RiskBudgets, WhenSpent};
use crate::config::jurisdictions::Jurisdictions;
use crate::config::lint::lint;
use crate::config::policy::Rules;
use crate::config::table::{Auth, Caller, Candidate, LlmRoute, Provider, RoutingTable, Unpriced};
use crate::domain::id::RouteId;
use crate::domain::overload::Class;
use crate::gateway::reload::{Origin, Overlays};
use crate::sign::keyring::{Keyring, SigningKey};

#[derive(Args)]
pub struct CheckArgs {
    /// The routes file; overrides --routes
    file: Option<PathBuf>,
    #[command(flatten)]
    paths: Paths,
    /// Do not ask for secrets: for machines that do not have them
    #[arg(long, env = "WEIGHBRIDGE_ALLOW_MISSING_SECRETS")]
    allow_missing_secrets: bool,
    /// How mistakes and warnings are written
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// Fail on warnings, too
    #[arg(long)]
    strict: bool,
}

/// Prints what is right, or everything that is wrong.
pub fn run(args: &CheckArgs) -> ExitCode {
    let policy = if args.allow_missing_secrets { SecretPolicy::AllowMissing } else { SecretPolicy::Required };
    let origin = Origin {
        routes: args.file.clone().unwrap_or_else(|| args.paths.routes.clone()),
        without_routes: None,
        providers: args.paths.providers.clone(),
        overlays: Overlays::default(),
        secrets: Arc::new(Environment),
        policy,
        rewiring: None,
    };
    let findings = match origin.load_with_sources() {
        Ok((table, sources)) => {
            if args.format == Format::Text {
                say(&describe(&table));
            }
            let warnings = lint(&sources, &table);
            Findings { errors: Vec::new(), warnings, version: Some(table.version()) }
        }
        Err(errors) => Findings { errors, warnings: Vec::new(), version: None },
    };
    findings.tell(args.format);
    let failed = !findings.errors.is_empty() || (args.strict && !findings.warnings.is_empty());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn describe(table: &RoutingTable) -> String {
    let llm = table.llm_routes().values().map(|route| llm_line(route));
    let risk = table.risk_route().map(|route| line(route.id.as_str(), &route.candidates));
    let rules = table.risk_route().into_iter().flat_map(|route| rules(&route.rules));
    let laws = table.risk_route().into_iter().flat_map(|route| jurisdictions(&route.jurisdictions));
    let routes: Vec<_> = llm.chain(risk).chain(rules).chain(laws).collect();
    let budgets: Vec<_> = table.callers().iter().filter_map(|caller| budgets(table, caller)).collect();
    let signatures: Vec<_> = table.callers().iter().filter_map(|caller| signature(caller)).collect();
    let classes: Vec<_> = table.callers().iter().filter_map(|caller| class(caller)).collect();
    let keys: Vec<_> = table.providers().values().filter_map(|provider| keys(provider)).collect();
    let merchants =
        table.risk_route().and_then(|route| route.budgets.as_deref()).map(merchant_budgets).unwrap_or_default();
    let roll_back = table.roll_back().map(|terms| format!("  put back if {terms}\n")).unwrap_or_default();
    let disabled = match table.disabled() {
        [] => String::new(),
        names => format!("  disabled                     {}\n", names.join(", ")),
    };
    let callers = table.callers().len();
    let tests = match table.cases().len() {
        0 => String::new(),
        1 => ", 1 test passed".to_owned(),
        tests => format!(", {tests} tests passed"),
    };
    format!(
        "{}\n{disabled}{}{merchants}{}{}{}{roll_back}ok, version {}, {callers} callers{tests}",
        routes.join("\n"),
        budgets.concat(),
        signatures.concat(),
        classes.concat(),
        keys.concat(),
        table.version()
    )
}

/// A caller that must sign, and with what.
fn signature(caller: &Caller) -> Option<String> {
    let ring = caller.signature.as_ref()?;
    Some(format!("  signature of {:<15} {}\n", caller.id.as_str(), states(ring)))
}

/// A caller whose calls are shed before others'.
fn class(caller: &Caller) -> Option<String> {
    let class = (caller.class < Class::Normal).then(|| caller.class.label())?;
    Some(format!("  class of {:<19} {class}\n", caller.id.as_str()))
}

/// Which key a provider's requests are signed with, where there is more than one.
fn keys(provider: &Provider) -> Option<String> {
    let Auth::DiHmac { keys } = &provider.auth else { return None };
    let several = keys.keys().len() > 1;
    several.then(|| format!("  keys of {:<20} {}\n", provider.id.as_str(), states(keys)))
}

fn states(ring: &Keyring) -> String {
    let state = |key: &SigningKey| format!("{} {}", key.id, key.state.label());
    ring.keys().iter().map(state).collect::<Vec<_>>().join(", ")
}

/// Policies with the thresholds they come to, in their order, and lists with their lengths, never their values.
fn rules(rules: &Rules) -> Vec<String> {
    let policies = rules.policies.iter().map(|policy| {
        let bands = policy.ruling.applied.bands;
        let reject = bands.reject_from().map(|score| format!(", reject from {score}")).unwrap_or_default();
        let least = policy.ruling.at_least.map(|action| format!(", at least {}", action.as_str())).unwrap_or_default();
        let (pass, review) = (bands.pass_below(), bands.review_from());
        format!("    policy {:<28} pass below {pass}, review from {review}{reject}{least}", policy.name())
    });
    let lists = rules.lists.iter().map(|list| {
        format!("    list {:<30} {} by {}, {} values", list.name, list.kind.as_str(), list.by.as_str(), list.len())
    });
    policies.chain(lists).collect()
}

/// How long a person can be read of, by country, and what is not kept at all.
fn jurisdictions(jurisdictions: &Jurisdictions) -> impl Iterator<Item = String> {
    jurisdictions.all().map(|(name, keeping)| {
        let days = keeping.days.map_or("until erased".to_owned(), |days| format!("for {days}d"));
        let without = keeping.redact.words().collect::<Vec<_>>().join(", ");
        let without = if without.is_empty() { without } else { format!(", without {without}") };
        format!("    jurisdiction {name:<22} personal data {days}{without}")
    })
}

/// A caller's budgets, and the routes on which they cannot count everything.
fn budgets(table: &RoutingTable, caller: &Caller) -> Option<String> {
    let amounts: Vec<_> =
        caller.budgets.iter().map(|budget| format!("{} a {}", budget.amount, budget.per.label())).collect();
    let blind: Vec<_> =
        caller.allow.iter().filter(|route| !counts(table, caller, route)).map(RouteId::as_str).collect();
    let meaning = match caller.unpriced {
        Unpriced::Allow => "not counted, and let through",
        Unpriced::Refuse => "refused",
    };
    let blind = match &*blind {
        [] => String::new(),
        routes => format!("; without a price in its currency, so {meaning}: {}", routes.join(", ")),
    };
    (!amounts.is_empty()).then(|| format!("  budget of {:<18} {}{blind}\n", caller.id.as_str(), amounts.join(" and ")))
}

/// What merchants' decisions may cost, and what is given up for it.
fn merchant_budgets(budgets: &RiskBudgets) -> String {
    let line = |budget: &MerchantBudget| {
        let (kind, name) = budget.whose.label();
        let tenant = budget.tenant.as_ref().map(|tenant| format!(" of {tenant}")).unwrap_or_default();
        let then = match budget.when_spent {
            WhenSpent::Score => "the bare score",
            WhenSpent::FallBack => "nobody is asked",
        };
        let whose = format!("{kind} {name}{tenant}");
        format!("  budget of {whose:<18} {} a {}, then {then}\n", budget.amount, budget.per.label())
    };
    let lines: String = budgets.all().iter().map(line).collect();
    let ladder = budgets.ladder().join(", then ");
    if ladder.is_empty() { lines } else { format!("{lines}  given up first               {ladder}\n") }
}

/// True if the budgets can count every candidate of the route.
fn counts(table: &RoutingTable, caller: &Caller, route: &RouteId) -> bool {
    let counted = |currency| caller.budgets.iter().any(|budget| budget.amount.currency == currency);
    let Some(llm) = table.llm_routes().get(route) else { return true };
    llm.candidates.iter().all(|candidate| {
        let price = candidate.model.as_ref().and_then(|model| model.price);
        price.is_some_and(|price| counted(price.input_per_million.currency))
    })
}

/// An LLM route, and what it says of its order beside the list.
pub(super) fn llm_line(route: &LlmRoute) -> String {
    let asking = &route.asking;
    let fallback = [
        asking.fallback_on.too_long.then_some("context_length_exceeded"),
        asking.fallback_on.content_policy.then_some("content_policy"),
    ];
    let fallback: Vec<_> = fallback.into_iter().flatten().collect();
    let notes = [
        (asking.order != Order::AsListed).then(|| format!("order {}", asking.order.label())),
        (asking.order == Order::Weighted).then(|| format!("weights {}", joined(&asking.weights))),
        asking.sticky.map(|Sticky::Conversation| "sticky by conversation".to_owned()),
        (!fallback.is_empty()).then(|| format!("fallback on {}", fallback.join(", "))),
        asking.hedge.map(|_| "hedged".to_owned()),
        route.shadow.as_ref().map(|shadow| format!("shadow {}", shadow.candidate.upstream)),
        (!route.rules.is_empty()).then(|| {
            let names: Vec<_> = route.rules.iter().map(|rule| &*rule.name).collect();
            format!("other settings by rule: {}", names.join(", "))
        }),
        (route.class < Class::Normal).then(|| format!("class {}", route.class.label())),
    ];
    let notes: Vec<_> = notes.into_iter().flatten().collect();
    let line = line(route.id.as_str(), &route.candidates);
    if notes.is_empty() { line } else { format!("{line}  ({})", notes.join("; ")) }
}

fn joined(weights: &[u32]) -> String {
    weights.iter().map(u32::to_string).collect::<Vec<_>>().join(":")
}

/// A route and its candidates in order.
pub(super) fn line(id: &str, candidates: &[Candidate]) -> String {
    let order: Vec<_> = candidates.iter().map(|candidate| candidate.upstream.as_str()).collect();
    format!("  {id:<28} {}", order.join(", then "))
}
