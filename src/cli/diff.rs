//! `weighbridge diff`: what a reload would change, before it does.
//!
//! Two routes files are compared here. Against a running proxy the texts are handed to it, and it says what they would change
//! in what it has in force: so both are compiled by the same program with the same additions.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::running::{Running, Said};
use super::secrets::Environment;
use super::{given_up, say};
use crate::config::diff::TableDiff;
use crate::config::error::{ConfigError, Style, render_all};
use crate::config::source::{SourceFile, Sources};
use crate::config::table::RoutingTable;
use crate::config::{SecretPolicy, read_sources};
use crate::gateway::origin::{Origin, Overlays};

const DIFFERS: u8 = 1;

#[derive(Args)]
pub struct DiffArgs {
    /// The routes file as it is, or the new one if there is only one
    #[arg(value_name = "A")]
    first: PathBuf,
    /// The routes file as it would be; without it A is compared with the running proxy
    #[arg(value_name = "B")]
    second: Option<PathBuf>,
    /// The folder of provider files of A, or of both
    #[arg(long, env = "WEIGHBRIDGE_PROVIDERS", default_value = "providers", value_name = "DIR")]
    providers: PathBuf,
    /// The folder of provider files of B, where that is another one
    #[arg(long, value_name = "DIR")]
    providers_b: Option<PathBuf>,
    #[command(flatten)]
    running: Running,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints what differs. Exit code 0 for nothing, 1 for something, 2 for files with mistakes or a proxy that is not there.
pub fn run(args: &DiffArgs) -> ExitCode {
    let compared = match &args.second {
        Some(second) => between(args, second),
        None => against(args),
    };
    match compared {
        Ok((told, text, differs)) => {
            say(&if args.json { serde_json::to_string_pretty(&told).unwrap_or_default() } else { text });
            if differs { ExitCode::from(DIFFERS) } else { ExitCode::SUCCESS }
        }
        Err(complaint) => given_up(&complaint),
    }
}

type Compared = Result<(Value, String, bool), String>;

fn between(args: &DiffArgs, second: &Path) -> Compared {
    let providers = args.providers_b.as_ref().unwrap_or(&args.providers);
    let (old, new) = (table(&args.first, &args.providers)?, table(second, providers)?);
    let diff = TableDiff::between(&old, &new);
    Ok((json!({ "diff": diff }), text(diff.is_empty(), &diff.in_full()), !diff.is_empty()))
}

fn text(same: bool, changes: &str) -> String {
    if same { "nothing would change".to_owned() } else { changes.trim_end().to_owned() }
}

fn table(routes: &Path, providers: &Path) -> Result<RoutingTable, String> {
    let origin = Origin {
        routes: routes.to_owned(),
        without_routes: None,
        providers: providers.to_owned(),
        overlays: Overlays::default(),
        secrets: Arc::new(Environment),
        policy: SecretPolicy::AllowMissing,
        rewiring: None,
    };
    origin.load().map_err(|errors| wrong(&errors))
}

fn wrong(errors: &[ConfigError]) -> String {
    render_all(errors, Style::Plain)
}

/// The new file against what the running proxy has in force. Secrets are the proxy's own and are not compared.
fn against(args: &DiffArgs) -> Compared {
    let sources =
        read_sources(Some(&args.first), Some(&args.providers), Vec::new()).map_err(|errors| wrong(&errors))?;
    match args.running.ask("/-/diff", &question(&sources).to_string())? {
        Said::Answer(told) => {
            let same = told.pointer("/diff/changes").and_then(Value::as_array).is_some_and(Vec::is_empty);
            let changes = told.get("text").and_then(Value::as_str).unwrap_or_default();
            let text = text(same, changes);
            Ok((told, text, !same))
        }
        Said::Refusal(told) => Err(refused(&told)),
    }
}

/// A line for each mistake that a running proxy found.
pub(super) fn refused(told: &Value) -> String {
    let word = |error: &Value, name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let line = |error: &Value| {
        let number = |name: &str| error.get(name).and_then(Value::as_u64).unwrap_or_default();
        let hint = error.get("hint").and_then(Value::as_str).map(|hint| format!("; {hint}")).unwrap_or_default();
        let (file, message) = (word(error, "file"), word(error, "message"));
        format!("{file}:{}:{}: {message}{hint}", number("line"), number("column"))
    };
    let errors = told.get("errors").and_then(Value::as_array);
    errors.map(|errors| errors.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap_or_default()
}

fn question(sources: &Sources) -> Value {
    let file = |file: &SourceFile| json!({ "name": file.name, "text": file.text });
    let lists = sources.lists.iter().map(|list| {
        let (name, text) = list.content.as_ref().map_or((None, None), |file| (Some(&file.name), Some(&file.text)));
        json!({ "path": list.path, "name": name.unwrap_or(&list.path), "text": text })
    });
    json!({
        "routes": sources.routes.first().map(file),
        "providers": sources.providers.iter().map(file).collect::<Vec<_>>(),
        "lists": lists.collect::<Vec<_>>(),
    })
}
