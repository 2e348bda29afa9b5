//! What calls come under which rule.

use std::collections::BTreeMap;

use super::*;
use crate::config::expr::told::{terms, text_of};
use crate::config::table::RoutingTable;
use crate::config::{CompileOptions, SecretPolicy, Secrets, SourceFile, Sources, Style, builtin, compile, render_all};
use crate::domain::secret::{Secret, SecretSource};

const ROUTE: &str = r#"
version = 1

[[caller]]
id = "checkout"
key_digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
allow = ["*"]

[model.summary]
candidates = ["tokenmix/deepseek-chat", "openrouter/deepseek-chat"]
cache = { ttl = "10m" }

[[model.summary.rule]]
name = "long"
when = 'request.estimated_tokens > 20000'
candidates = ["tokenmix/deepseek-chat"]
timeouts = { total = "20s" }

[[model.summary.rule]]
name = "team"
when = 'header("X-Team") in ["search", "ads"] && !request.stream'
max_attempts = 1

[[model.summary.rule]]
name = "rest"
when = 'header("x-tier") != "gold" && caller.id == "checkout" && request.operation == "embeddings"'
order = "cheapest"
"#;

struct Nothing;

impl SecretSource for Nothing {
    fn env(&self, _: &str) -> Option<Secret> {
        None
    }

    fn file(&self, _: &str) -> Option<Secret> {
        None
    }
}

fn table() -> RoutingTable {
    let routes = vec![SourceFile { name: "routes.toml".to_owned(), text: ROUTE.to_owned() }];
    let sources = Sources { routes, providers: builtin::providers(), ..Sources::default() };
    let secrets = Secrets { source: &Nothing, policy: SecretPolicy::AllowMissing };
    let compiled = compile(&sources, &CompileOptions { secrets, rewire: None });
    compiled.unwrap_or_else(|errors| panic!("{}", render_all(&errors, Style::Plain)))
}

struct Of<'t> {
    table: &'t RoutingTable,
    bytes: usize,
    stream: bool,
    operation: Operation,
    headers: BTreeMap<&'static str, &'static str>,
}

impl Of<'_> {
    fn with<T>(&self, ask: impl FnOnce(&Asked<'_>) -> T) -> T {
        ask(&Asked {
            caller: &self.table.callers()[0],
            operation: self.operation,
            stream: self.stream,
            bytes: self.bytes,
            header: &|name| self.headers.get(name).copied(),
            now_ms: 0,
        })
    }

    fn rule(&self) -> Option<&str> {
        self.with(|asked| rule_for(&self.table.llm_routes()["summary"], asked).map(|(_, rule)| &*rule.name))
    }
}

fn of(table: &RoutingTable) -> Of<'_> {
    let (operation, headers) = (Operation::ChatCompletions, BTreeMap::new());
    Of { table, bytes: 100, stream: false, operation, headers }
}

#[test]
fn the_first_rule_whose_condition_holds_is_the_calls() {
    let table = table();
    assert_eq!(of(&table).rule(), None);
    assert_eq!(Of { bytes: 80_000, ..of(&table) }.rule(), None);
    assert_eq!(Of { bytes: 80_001, ..of(&table) }.rule(), Some("long"));
    let team = || BTreeMap::from([("x-team", "ads"), ("x-tier", "iron")]);
    assert_eq!(Of { headers: team(), ..of(&table) }.rule(), Some("team"));
    assert_eq!(Of { headers: team(), bytes: 80_001, ..of(&table) }.rule(), Some("long"));
    assert_eq!(Of { headers: team(), stream: true, ..of(&table) }.rule(), None);
    let embeddings = Of { operation: Operation::Embeddings, ..of(&table) };
    assert_eq!(embeddings.rule(), None, "a header that is not there is not different");
    assert_eq!(Of { headers: team(), stream: true, ..embeddings }.rule(), Some("rest"));
}

#[test]
fn a_rule_changes_what_it_says_and_has_the_rest_from_its_route() {
    let table = table();
    let route = &table.llm_routes()["summary"];
    let [long, team, rest] = &route.rules[..] else { panic!("three rules") };
    assert_eq!((&long.route.id, long.route.candidates.len(), long.route.rules.len()), (&route.id, 1, 0));
    assert_eq!(long.route.timeouts.total.as_secs(), 20);
    assert!(long.route.timeouts.first_content <= long.route.timeouts.total);
    assert_eq!((team.route.max_attempts, team.route.timeouts), (1, route.timeouts));
    assert_eq!((&team.route.candidates, team.route.cache), (&route.candidates, route.cache));
    assert_ne!(long.route.fingerprint, route.fingerprint, "answers of others are not given again");
    assert_eq!((team.route.fingerprint, rest.route.asking.order.label()), (route.fingerprint, "cheapest"));
}

#[test]
fn what_a_condition_looks_at_can_be_told() {
    let table = table();
    let rules = &table.llm_routes()["summary"].rules;
    let mut call = of(&table);
    call.headers = BTreeMap::from([("x-team", "ads")]);
    let told = |number: usize| -> Vec<String> {
        let node = rules[number].when.root();
        let one = |term: &&Node| {
            call.with(|asked| format!("{}: {} {}", text_of(term), seen(term, asked).unwrap(), holds(term, asked)))
        };
        terms(node).iter().map(one).collect()
    };
    assert_eq!(told(0), ["request.estimated_tokens > 20000: request.estimated_tokens is 25 false"]);
    assert_eq!(told(1)[0], "header(\"x-team\") in [\"search\", \"ads\"]: header x-team is ads true");
    assert_eq!(told(1)[1], "request.stream: request.stream is false false");
    assert_eq!(told(2)[1], "caller.id == \"checkout\": caller.id is checkout true");
}
