//! `weighbridge providers`: who can be asked, for what, at what price, and who says so.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value as Json, json};

use super::secrets::Environment;
use super::{complain, say};
use crate::config::error::{Style, render_all};
use crate::config::source::{SourceFile, Sources};
use crate::config::table::{Fact, Model, Protocol, Provider, ProviderFacts, RoutingTable};
use crate::config::tls::HttpVersion;
use crate::config::{CompileOptions, SecretPolicy, Secrets, compile, read_sources};
use crate::domain::money::{Cost, TokenPrice};
use crate::domain::operation::Operation;

#[derive(Args)]
pub struct ProvidersArgs {
    /// The folder of provider files; what is not in it comes from the binary
    #[arg(long, env = "WEIGHBRIDGE_PROVIDERS", default_value = "providers", value_name = "DIR")]
    providers: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints every provider.
pub fn run(args: &ProvidersArgs) -> ExitCode {
    let routes = SourceFile { name: "routes".to_owned(), text: "version = 1\n".to_owned() };
    let read = read_sources(None, Some(&args.providers), vec![routes]);
    let secrets = Secrets { source: &Environment, policy: SecretPolicy::AllowMissing };
    let compiled = read
        .and_then(|sources| compile(&sources, &CompileOptions { secrets, rewire: None }).map(|table| (table, sources)));
    match compiled {
        Ok((table, sources)) => {
            let listed = Listed { table: &table, sources: &sources };
            say(&if args.json { format!("{:#}", listed.json()) } else { listed.text() });
            ExitCode::SUCCESS
        }
        Err(errors) => {
            complain(&render_all(&errors, Style::Plain));
            ExitCode::FAILURE
        }
    }
}

struct Listed<'l> {
    table: &'l RoutingTable,
    sources: &'l Sources,
}

impl Listed<'_> {
    fn each(&self) -> impl Iterator<Item = (&Arc<Provider>, Option<&ProviderFacts>, &str)> {
        self.table
            .providers()
            .iter()
            .map(|(id, provider)| (provider, self.table.facts().get(id), self.file(id.as_str())))
    }

    /// The file that says so.
    fn file(&self, id: &str) -> &str {
        let has_id = |text: &str| {
            let table = text.parse::<toml::Table>();
            table.is_ok_and(|table| table.get("id").and_then(|told| told.as_str()) == Some(id))
        };
        self.sources.providers.iter().find(|file| has_id(&file.text)).map_or("", |file| file.name.as_str())
    }

    fn text(&self) -> String {
        self.each().map(|(provider, facts, file)| text(provider, facts, file)).collect::<Vec<_>>().join("\n\n")
    }

    fn json(&self) -> Json {
        let providers: Vec<Json> = self.each().map(|(provider, facts, file)| object(provider, facts, file)).collect();
        json!({ "providers": providers })
    }
}

fn protocol(provider: &Provider) -> &'static str {
    match provider.protocol {
        Protocol::OpenAi => "openai",
        Protocol::DiHmac => "di-hmac",
    }
}

fn address(provider: &Provider) -> String {
    let url = &provider.base_url;
    format!("{}://{}{}", if url.tls { "https" } else { "http" }, url.authority(), url.path)
}

fn operations(provider: &Provider) -> Vec<&'static str> {
    provider.operations.iter().map(|operation: &Operation| operation.label()).collect()
}

fn text(provider: &Provider, facts: Option<&ProviderFacts>, file: &str) -> String {
    let seen = |fact: &Fact| format!("{}, {}", fact.url, fact.checked);
    let mut lines = vec![
        format!("{:<14} {} {}", provider.id.as_str(), protocol(provider), address(provider)),
        format!("  file         {file}"),
    ];
    lines.extend(facts.map(|facts| format!("  source       {}", seen(&facts.source))));
    lines.push(format!("  operations   {}", operations(provider).join(", ")));
    lines.extend(provider.tls.as_ref().map(|tls| format!("  tls          {}", tls.words())));
    lines.extend((provider.http == HttpVersion::Two).then(|| format!("  http         {}", provider.http.label())));
    for model in &provider.models {
        let price = model.price.map_or_else(|| "price unknown".to_owned(), of_tokens);
        let fact = facts.and_then(|facts| facts.model_prices.get(&model.id));
        let fact = fact.map(|fact| format!(" ({})", seen(fact))).unwrap_or_default();
        lines.push(format!("  model        {}: {}{price}{fact}", model.id, limits(model)));
    }
    if let Some(price) = &provider.price {
        let fact = facts.and_then(|facts| facts.price.as_ref()).map(|fact| format!(" ({})", seen(fact)));
        lines.push(format!("  price        {} a call{}", price.standard, fact.unwrap_or_default()));
    }
    lines.join("\n")
}

fn limits(model: &Model) -> String {
    let context = model.context.map(|tokens| format!("context {tokens}, "));
    let output = model.max_output.map(|tokens| format!("answers to {tokens}, "));
    format!("{}{}", context.unwrap_or_default(), output.unwrap_or_default())
}

fn of_tokens(price: TokenPrice) -> String {
    if price == TokenPrice::FREE {
        return "free".to_owned();
    }
    let cached = price.cached_input_per_million.map(|cached| format!(" (cached {cached})")).unwrap_or_default();
    format!("{}{cached} in, {} out, a million tokens", price.input_per_million, price.output_per_million)
}

fn object(provider: &Provider, facts: Option<&ProviderFacts>, file: &str) -> Json {
    let seen = |fact: Option<&Fact>| fact.map(|fact| json!({ "url": fact.url, "checked": fact.checked }));
    let cost = |cost: Cost| cost.to_string();
    let models = provider.models.iter().map(|model| {
        let price = model.price.map(|price| {
            json!({
                "input_per_million_tokens": cost(price.input_per_million),
                "cached_input_per_million_tokens": price.cached_input_per_million.map(cost),
                "output_per_million_tokens": cost(price.output_per_million),
                "source": seen(facts.and_then(|facts| facts.model_prices.get(&model.id))),
            })
        });
        json!({ "id": model.id, "name": model.name, "price": price, "context": model.context, "max_output": model.max_output })
    });
    let price = provider.price.as_ref().map(|price| {
        json!({ "standard": cost(price.standard), "source": seen(facts.and_then(|facts| facts.price.as_ref())) })
    });
    json!({
        "id": provider.id.as_str(),
        "file": file,
        "protocol": protocol(provider),
        "base_url": address(provider),
        "source": seen(facts.map(|facts| &facts.source)),
        "operations": operations(provider),
        "tls": provider.tls.as_ref().map(|tls| tls.words()),
        "http": provider.http.label(),
        "models": models.collect::<Vec<_>>(),
        "price": price,
    })
}
