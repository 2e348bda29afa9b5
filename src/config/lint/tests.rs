//! Each warning is shown by the smallest configuration that earns it, is gone where its cause is, and can be silenced.

use super::{Rule, Warning, lint};
use crate::config::tests::{LLM, Map, RISK, compile_with, file, sources};
use crate::config::{ListSource, Sources, builtin};

const CALLER: &str = "[[caller]]\nid = \"shop\"\nallow = [\"*\"]\n\
    key_digest = \"sha256:1111111111111111111111111111111111111111111111111111111111111111\"\n";
const TWO: &str = "candidates = [\"agg/fast\", \"other/fast\"]\n";
const RISKY: &str = "[risk]\ncandidates = [\"judge\"]\nbands = { pass_below = 0.3, review_from = 0.7 }\n";

fn warned_of(sources: &Sources) -> Vec<Warning> {
    let table = compile_with(sources, &Map::default(), None).unwrap_or_else(|errors| panic!("{errors:#?}"));
    lint(sources, &table)
}

/// `agg`, another one of it at another host, and `judge`; what no route leads to is left out.
fn sources_of(routes: &str) -> Sources {
    let other = LLM.replace("agg", "other");
    let named = |id: &str| routes.contains(&format!("\"{id}"));
    let files = [("agg", LLM), ("other", &other), ("judge", RISK)];
    let files: Vec<&str> = files.into_iter().filter(|(id, _)| named(id)).map(|(_, text)| text).collect();
    sources(&format!("version = 1\n{routes}"), &files)
}

fn warned(routes: &str) -> Vec<Warning> {
    warned_of(&sources_of(routes))
}

/// Exactly this warning, at this line, and none once it is allowed, for all or for this one thing.
#[track_caller]
fn earns(rule: Rule, about: &str, line: usize, routes: &str) -> String {
    let found = warned(routes);
    let told: Vec<_> = found.iter().map(|warning| (warning.rule, &*warning.about, warning.found.line)).collect();
    assert_eq!(told, [(rule, about, line)], "{found:#?}");
    for entry in [rule.code().to_owned(), format!("{}:{about}", rule.code())] {
        let silenced = warned(&format!("lint = {{ allow = [\"{entry}\"] }}\n{routes}"));
        assert!(silenced.is_empty(), "{entry}: {silenced:#?}");
    }
    let another = warned(&format!("lint = {{ allow = [\"{}:another\"] }}\n{routes}", rule.code()));
    let mut another: Vec<Rule> = another.iter().map(|warning| warning.rule).collect();
    another.sort();
    let mut expected = [rule, Rule::IdleAllowance];
    expected.sort();
    assert_eq!(another, expected);
    assert!(found[0].found.hint.is_some(), "what to do");
    found[0].found.message.clone()
}

#[test]
fn a_sound_configuration_has_no_warnings() {
    let found = warned(&format!("{CALLER}[model.m]\n{TWO}{RISKY}"));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn codes_are_in_order_and_each_is_one() {
    let codes: Vec<String> = Rule::ALL.iter().map(|rule| rule.code().to_owned()).collect();
    let counted: Vec<String> = (1..=codes.len()).map(|number| format!("W{number:03}")).collect();
    assert_eq!(codes, counted);
}

#[test]
fn w002_a_policy_that_never_decides() {
    let policies = "[[risk.policy]]\nname = \"all\"\n[[risk.policy]]\nname = \"some\"\nwhen = 'hour_utc < 6'\n";
    let message = earns(Rule::UnreachablePolicy, "some", 12, &format!("{CALLER}{RISKY}{policies}"));
    assert!(message.contains("\"all\" before it matches everything"), "{message}");
    let twice = "[[risk.policy]]\nname = \"a\"\nwhen = '(hour_utc < 6)'\n[[risk.policy]]\nname = \"b\"\nwhen = 'hour_utc < 6'\n";
    let message = earns(Rule::UnreachablePolicy, "b", 13, &format!("{CALLER}{RISKY}{twice}"));
    assert!(message.contains("has the same condition"), "{message}");
}

#[test]
fn w021_a_rule_of_a_route_that_never_holds() {
    let rules = |first: &str, second: &str| {
        let rule = |when: &str| format!("[[model.m.rule]]\nwhen = '{when}'\nmax_attempts = 1\n");
        format!("{CALLER}[model.m]\n{TWO}{}{}", rule(first), rule(second))
    };
    let message = earns(Rule::UnreachableRule, "m.rule 2", 11, &rules("true", "request.stream"));
    assert!(message.contains("\"rule 1\" before it matches everything"), "{message}");
    let message = earns(Rule::UnreachableRule, "m.rule 2", 11, &rules("hour_utc < 6", "(hour_utc < 6)"));
    assert!(message.contains("has the same condition"), "{message}");
    assert!(warned(&rules("hour_utc < 6", "hour_utc < 7")).is_empty());
}

#[test]
fn w003_local_rules_that_let_nobody_pass() {
    earns(Rule::IdleLocalRules, "default", 9, &format!("{CALLER}{RISKY}on_exhausted = \"local_rules\"\n"));
    let policy = "[[risk.policy]]\nname = \"p\"\nwhen = 'hour_utc < 6'\non_exhausted = \"local_rules\"\n";
    earns(Rule::IdleLocalRules, "p", 12, &format!("{CALLER}{RISKY}{policy}"));
}

#[test]
fn w004_a_budget_of_a_tenant_that_calls_nobody() {
    let budget = "[[risk.budget]]\nmerchant = \"*\"\ntenant = \"gone\"\namount = \"5.00 CNY\"\nper = \"day\"\n";
    earns(Rule::BudgetForNobody, "gone", 11, &format!("{CALLER}{RISKY}{budget}"));
}

#[test]
fn w005_a_rung_that_saves_nothing() {
    let budget = "[[risk.budget]]\nmerchant = \"*\"\namount = \"5.00 CNY\"\nper = \"day\"\n";
    earns(Rule::IdleRung, "poems", 9, &format!("{CALLER}{RISKY}ladder = [\"poems\"]\n{budget}"));
}

#[test]
fn w006_the_cheapest_of_unknown_prices() {
    let route = "[model.m]\norder = \"cheapest\"\ncandidates = [\"agg/fast\", \"other/clever\"]\n";
    earns(Rule::UnknownPriceLast, "m", 7, &format!("{CALLER}{route}"));
}

#[test]
fn w007_nobody_behind_the_only_candidate() {
    earns(Rule::OneCandidate, "m", 7, &format!("{CALLER}[model.m]\ncandidates = [\"agg/fast\"]\n"));
    // One provider of decisions is usual; one that nobody stands in for is not.
    let risky = format!("{CALLER}{RISKY}");
    assert!(warned(&risky).is_empty());
    earns(Rule::OneCandidate, "risk", 7, &format!("{risky}on_exhausted = \"error\"\n"));
}

#[test]
fn w008_all_candidates_at_one_host() {
    earns(Rule::OnePlace, "m", 7, &format!("{CALLER}[model.m]\ncandidates = [\"agg/fast\", \"agg/clever\"]\n"));
}

#[test]
fn w009_phases_that_are_longer_than_the_whole() {
    let with = |times: &str| format!("{CALLER}[model.m]\n{TWO}timeouts = {{ {times} }}\n");
    let message = earns(Rule::PhasesTooLong, "m", 8, &with("total = \"5s\", connect = \"2s\", first_content = \"4s\""));
    assert!(message.contains("(2s)") && message.contains("which is 5s"), "{message}");
    assert!(warned(&with("total = \"6s\", connect = \"2s\", first_content = \"4s\"")).is_empty());
    assert!(warned(&with("total = \"5s\"")).is_empty(), "defaults give way, nobody wrote them");
}

#[test]
fn w010_a_budget_that_cannot_count() {
    let budget = "budget = { amount = \"5.00 USD\", per = \"day\" }\n";
    let route = "[model.m]\ncandidates = [\"agg/fast\", \"other/clever\"]\n";
    let message = earns(Rule::UncountedBudget, "shop", 6, &format!("{CALLER}{budget}{route}"));
    assert!(
        message.contains("other/clever, defined at providers/p1.toml:15, so calls are not counted on: m"),
        "{message}"
    );
    let refused = warned(&format!("{CALLER}{budget}unpriced = \"refuse\"\n{route}"));
    assert!(refused[0].found.message.contains("so calls are refused on: m"), "{refused:#?}");
    let yuan = warned(&format!("{CALLER}{}[model.m]\n{TWO}", budget.replace("USD", "CNY")));
    assert!(yuan[0].found.message.contains("agg/fast"), "a price in another currency is none: {yuan:#?}");
}

#[test]
fn w011_a_draw_that_is_given_again() {
    let cache = "cache = { ttl = \"1m\" }\n";
    earns(Rule::CachedDraw, "m", 8, &format!("{CALLER}[model.m]\n{TWO}order = \"weighted\"\n{cache}"));
    let sticky = format!("{CALLER}[model.m]\n{TWO}order = \"fastest\"\nsticky = \"conversation\"\n{cache}");
    earns(Rule::CachedDraw, "m", 9, &sticky);
}

#[test]
fn w012_callers_without_routes_and_routes_without_callers() {
    earns(Rule::IdleCaller, "shop", 4, CALLER);
    earns(Rule::IdleCaller, "caller", 1, &format!("[model.m]\n{TWO}"));
}

#[test]
fn w013_a_route_that_no_caller_may_use() {
    let routes = format!("{}[model.m]\n{TWO}[model.n]\n{TWO}", CALLER.replace("\"*\"", "\"m\""));
    earns(Rule::IdleRoute, "n", 8, &routes);
    let routes = format!("{}[model.m]\n{TWO}{RISKY}", CALLER.replace("\"*\"", "\"m\""));
    earns(Rule::IdleRoute, "risk", 8, &routes);
}

#[test]
fn w014_a_list_with_nobody_on_it() {
    let list = "[[risk.list]]\nname = \"friends\"\nkind = \"allow\"\nby = \"user\"\n";
    earns(Rule::EmptyList, "friends", 10, &format!("{CALLER}{RISKY}{list}values = []\n"));
    let mut of_a_file = sources_of(&format!("{CALLER}{RISKY}{list}file = \"friends.txt\"\n"));
    let content = Ok(file("friends.txt", "# none yet\n\n"));
    of_a_file.lists.push(ListSource { path: "friends.txt".to_owned(), content });
    assert_eq!(warned_of(&of_a_file)[0].rule, Rule::EmptyList);
}

#[test]
fn w015_a_counter_that_nobody_reads() {
    let counter = "[[risk.velocity]]\nname = \"seen\"\nby = \"user\"\nmeasure = \"count\"\nwindow = \"1h\"\n";
    let routes = format!("{CALLER}{RISKY}{counter}");
    earns(Rule::IdleCounter, "seen", 10, &routes);
    for reader in [
        "[[risk.policy]]\nname = \"p\"\nwhen = 'hour_utc < 3 && !(velocity.seen > 5)'\n",
        "[[risk.policy]]\nname = \"p\"\nwhen = '7 <= velocity.seen || hour_utc == 1'\n",
    ] {
        assert!(warned(&format!("{routes}{reader}")).is_empty(), "{reader}");
    }
    assert!(warned(&format!("{routes}limit = 5\n")).is_empty(), "it is told over its limit");
}

#[test]
fn w016_a_provider_that_no_route_leads_to() {
    let sources =
        sources(&format!("version = 1\n{CALLER}[model.m]\n{TWO}"), &[LLM, &LLM.replace("agg", "other"), RISK]);
    let found = warned_of(&sources);
    let told: Vec<_> = found.iter().map(|warning| (warning.rule, &*warning.about, &*warning.found.file)).collect();
    assert_eq!(told, [(Rule::IdleProvider, "judge", "providers/p2.toml")]);
    // A folder that was copied from the repository is not a fault.
    let mut shipped = sources_of(&format!("{CALLER}[model.m]\n{TWO}"));
    shipped.providers.extend(builtin::providers().into_iter().map(|embedded| file("providers/x.toml", &embedded.text)));
    assert!(warned_of(&shipped).is_empty());
}

#[test]
fn w017_a_candidate_behind_the_last_attempt() {
    let route = "[model.m]\ncandidates = [\"agg/fast\", \"other/fast\", \"other/clever\"]\nmax_attempts = 2\n";
    let message = earns(Rule::CandidateOutOfReach, "m", 7, &format!("{CALLER}{route}"));
    let facts =
        "ends after 2 attempts (max_attempts at routes.toml:8), so this candidate, defined at providers/p1.toml:15,";
    assert!(message.contains(facts), "{message}");
    let drawn = route.replace("max_attempts", "order = \"fastest\"\nmax_attempts");
    assert!(warned(&format!("{CALLER}{drawn}")).is_empty(), "any may come first");
}

#[test]
fn w018_a_key_that_everybody_knows() {
    let digest = "88207c57eb9adfeaafac72db07bb11f632740eab18c10730930fda14f84bc7f4";
    let routes = format!("{}[model.m]\n{TWO}", CALLER.replace(&"1".repeat(64), digest));
    earns(Rule::DemoKey, "shop", 5, &routes);
    let example = sources_of("").routes[0].name.clone();
    let example = Sources {
        routes: vec![file(&example, builtin::ROUTES)],
        providers: builtin::providers(),
        ..Sources::default()
    };
    assert!(
        warned_of(&example).is_empty(),
        "the example as it is shipped is for trying out: {:#?}",
        warned_of(&example)
    );
}

#[test]
fn w019_a_provider_that_is_this_proxy() {
    let loops = LLM.replace("https://agg.example/v1", "http://127.0.0.1:8080/v1\"\nallow_private = true #");
    let routes = format!("version = 1\n{CALLER}[model.m]\n{TWO}");
    let found = warned_of(&sources(&routes, &[&loops, &LLM.replace("agg", "other")]));
    let told: Vec<_> = found.iter().map(|warning| (warning.rule, &*warning.about, warning.found.line)).collect();
    assert_eq!(told, [(Rule::Loop, "agg", 4)]);
}

#[test]
fn w020_an_allowance_that_nothing_needs() {
    let found = warned(&format!("lint = {{ allow = [\"W007\"] }}\n{CALLER}[model.m]\n{TWO}"));
    let told: Vec<_> = found.iter().map(|warning| (warning.rule, warning.found.line)).collect();
    assert_eq!(told, [(Rule::IdleAllowance, 2)]);
}

#[test]
fn a_model_that_only_the_replaced_file_had_is_told_as_that() {
    let routes = "version = 1\n[model.m]\ncandidates = [\"openrouter/claude-opus\"]\n";
    let mine = LLM.replace("agg\"", "openrouter\"");
    let errors = compile_with(&sources(routes, &[&mine]), &Map::default(), None).unwrap_err();
    let hint = errors[0].hint.as_deref().unwrap();
    assert!(hint.starts_with("the built-in file of this provider has it; the file at providers/p0.toml:2"), "{hint}");
}
