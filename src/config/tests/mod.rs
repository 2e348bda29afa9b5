//! The configuration as a whole: text in, table or mistakes out.

use std::collections::BTreeMap;

use super::table::{BaseUrl, Protocol, RoutingTable};
use super::{CompileOptions, ConfigError, ListSource, Rewire, SecretPolicy, Secrets, SourceFile, Sources, compile};
use crate::domain::id::ProviderId;
use crate::domain::secret::{PemFile, Secret, SecretSource};

mod compiled;
mod files;
mod leaks;
mod mistakes;

pub(in crate::config) use files::compile_golden;

/// Secrets by name; any other name has one that is good for every use, unless `strict`.
#[derive(Default)]
pub(in crate::config) struct Map {
    known: BTreeMap<String, String>,
    strict: bool,
}

impl SecretSource for Map {
    fn env(&self, name: &str) -> Option<Secret> {
        match self.known.get(name) {
            Some(secret) => Some(Secret::new(secret.clone().into_bytes())),
            None if self.strict => None,
            None => Some(Secret::new("4f".repeat(32).into_bytes())),
        }
    }

    fn file(&self, path: &str) -> Option<Secret> {
        self.env(path)
    }

    fn pem(&self, path: &str) -> Option<PemFile> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config/pem");
        let content = Secret::new(std::fs::read(folder.join(path.strip_prefix("pem/")?)).ok()?);
        Some(PemFile { content, open_to_others: path.ends_with("open.key") })
    }
}

fn only(secrets: &[(&str, &str)]) -> Map {
    Map { known: secrets.iter().map(|(name, secret)| ((*name).into(), (*secret).into())).collect(), strict: true }
}

pub(in crate::config) const LLM: &str = r#"
id = "agg"
protocol = "openai"
base_url = "https://agg.example/v1"
source = { url = "https://agg.example/docs", checked = "2026-11-22" }
auth = { kind = "bearer", secret_env = "AGG_API_KEY" }
operations = ["chat.completions"]

[[model]]
id = "fast"
name = "vendor/fast-2"
price = { input_per_million_tokens = "0.30 USD", output_per_million_tokens = "1.20 USD", source = "https://agg.example/prices", checked = "2026-11-22" }

[[model]]
id = "clever"
"#;

pub(in crate::config) const RISK: &str = r#"
id = "judge"
protocol = "di-hmac"
base_url = "https://judge.example"
source = { url = "https://judge.example/docs", checked = 2026-11-22 }
auth = { kind = "di-hmac", key_id = "k1", secret_env = "JUDGE_SECRET", secret_encoding = "hex" }
operations = ["risk.assess"]
price = { standard = "0.02 CNY", cross_border = "0.05 CNY", features = { receipt_ocr = "0.01 CNY" }, source = "https://judge.example/prices", checked = "2026-11-22" }
"#;

const ROUTES: &str = r#"
version = 1

[[caller]]
id = "checkout"
key_digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
allow = ["risk", "summary"]

[model.summary]
candidates = ["agg/fast", "agg/clever"]
cache = { ttl = "10m" }

[risk]
candidates = ["judge"]
bands = { pass_below = 0.3, review_from = 0.7 }
"#;

pub(in crate::config) fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.to_owned(), text: text.to_owned() }
}

pub(in crate::config) fn sources(routes: &str, providers: &[&str]) -> Sources {
    let name = |index: usize| format!("providers/p{index}.toml");
    let providers = providers.iter().enumerate().map(|(index, text)| file(&name(index), text)).collect();
    Sources { routes: vec![file("routes.toml", routes)], providers, ..Sources::default() }
}

pub(in crate::config) fn compile_with(
    sources: &Sources,
    secrets: &Map,
    rewire: Option<&Rewire<'_>>,
) -> Result<RoutingTable, Vec<ConfigError>> {
    compile(sources, &CompileOptions { secrets: Secrets { source: secrets, policy: SecretPolicy::Required }, rewire })
}

fn compiled(routes: &str, providers: &[&str]) -> Result<RoutingTable, Vec<ConfigError>> {
    compile_with(&sources(routes, providers), &Map::default(), None)
}

/// The table of text that must compile.
fn table(routes: &str) -> RoutingTable {
    compiled(routes, &[LLM, RISK]).unwrap_or_else(|errors| panic!("{}", lines(&errors)))
}

/// As [`ROUTES`], more text at the end of its `[risk]`, and files of lists.
pub(super) fn compiled_with_lists(
    risk: &str,
    files: &[(&str, Result<&str, &'static str>)],
) -> Result<RoutingTable, Vec<ConfigError>> {
    let lists = files.iter().map(|(path, content)| ListSource {
        path: (*path).to_owned(),
        content: content.map(|text| file(&format!("lists/{path}"), text)),
    });
    let sources = Sources { lists: lists.collect(), ..sources(&format!("{ROUTES}{risk}"), &[LLM, RISK]) };
    compile_with(&sources, &Map::default(), None)
}

/// The table of [`ROUTES`] with more text at the end of its `[risk]`.
pub(super) fn table_of(risk: &str) -> RoutingTable {
    table(&format!("{ROUTES}{risk}"))
}

/// The one-line messages of [`ROUTES`] with more text, which must not compile.
pub(super) fn mistakes_of(risk: &str) -> String {
    mistakes(&format!("{ROUTES}{risk}"), &[LLM, RISK])
}

/// The one-line messages of text that must not compile.
fn mistakes(routes: &str, providers: &[&str]) -> String {
    lines(&compiled(routes, providers).expect_err("this must not compile"))
}

pub(super) fn lines(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Replaces text that must be there.
fn with(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in the text");
    text.replacen(from, to, 1)
}

fn loopback(_: &ProviderId, _: Protocol) -> BaseUrl {
    BaseUrl { tls: false, host: "127.0.0.1".into(), port: 9, path: String::new() }
}
