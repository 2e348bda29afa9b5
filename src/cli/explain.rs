//! `weighbridge explain`: why a call goes where it goes, from files alone or beside a running proxy.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::running::{Running, Said};
use super::secrets::Environment;
use super::{Paths, complain, say};
use crate::config::SecretPolicy;
use crate::config::error::{Style, render_all};
use crate::gateway::explain::{LONGEST_QUESTION, Question, explain};
use crate::gateway::origin::{Origin, Overlays};

#[derive(Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    paths: Paths,
    /// The JSON body of a call to a model or of a payment; - for standard input
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// Who asks; the default is the first who may
    #[arg(long)]
    caller: Option<String>,
    /// The model, where there is no request that names one
    #[arg(long)]
    model: Option<String>,
    /// What is asked, as in the access log (chat.completions, embeddings, messages, risk.assess, ...)
    #[arg(long)]
    operation: Option<String>,
    /// Providers or candidates that are taken to be down
    #[arg(long, value_name = "PROVIDER", value_delimiter = ',')]
    down: Vec<String>,
    /// The score that the risk provider is taken to give, 0 to 1
    #[arg(long)]
    score: Option<String>,
    /// The risk provider's own word
    #[arg(long, value_name = "WORD")]
    recommendation: Option<String>,
    /// Why there is no verdict: deadline, unavailable, no_verdict, not_authentic or budget
    #[arg(long, value_name = "CAUSE")]
    fails: Option<String>,
    /// What a counter of [[risk.velocity]] says
    #[arg(long, value_name = "NAME=NUMBER", value_parser = counter)]
    velocity: Vec<(String, i64)>,
    /// A request of the past, by the x-request-id of its answer, or a decision by its id; asks the running proxy
    #[arg(long, value_name = "ID", conflicts_with_all = ["request", "model", "down", "score", "recommendation", "fails"])]
    request_id: Option<String>,
    #[command(flatten)]
    running: Running,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn counter(text: &str) -> Result<(String, i64), String> {
    let (name, number) = text.split_once('=').ok_or("write NAME=NUMBER")?;
    Ok((name.to_owned(), number.parse().map_err(|_| "write NAME=NUMBER, a whole number")?))
}

/// Prints the explanation. Exit code 1 if there is none.
pub fn run(args: &ExplainArgs) -> ExitCode {
    let told = question(args).and_then(|question| {
        let past = args.request_id.is_some();
        if past || args.running.is_asked() { asked(&args.running, &question) } else { from_files(args, &question) }
    });
    match told {
        Ok((told, text)) => {
            say(if args.json { serde_json::to_string_pretty(&told).unwrap_or_default() } else { text }.trim_end());
            ExitCode::SUCCESS
        }
        Err(complaint) => {
            complain(&complaint);
            ExitCode::FAILURE
        }
    }
}

/// The same question whoever answers it.
fn question(args: &ExplainArgs) -> Result<String, String> {
    let mut question = Map::new();
    let words = [
        ("caller", &args.caller),
        ("model", &args.model),
        ("operation", &args.operation),
        ("score", &args.score),
        ("recommendation", &args.recommendation),
        ("fails", &args.fails),
        ("request_id", &args.request_id),
    ];
    for (name, word) in words {
        if let Some(word) = word {
            question.insert(name.to_owned(), json!(word));
        }
    }
    question.insert("down".to_owned(), json!(args.down));
    question.insert(
        "velocity".to_owned(),
        args.velocity.iter().cloned().map(|(name, number)| (name, json!(number))).collect(),
    );
    let mut question = Value::Object(question).to_string();
    if let Some(path) = &args.request {
        // As it is spelled: whether a key comes twice is part of the answer.
        question.truncate(question.len().saturating_sub(1));
        question = format!("{question},\"request\":{}}}", request(path)?.get());
    }
    Ok(question)
}

const NOT_JSON: &str = "the request is not one JSON value";

fn request(path: &Path) -> Result<Box<RawValue>, String> {
    let most = LONGEST_QUESTION as u64;
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(most).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_string(&mut text))
    };
    read.map_err(|error| format!("the request cannot be read from {}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|_| NOT_JSON.to_owned())
}

fn from_files(args: &ExplainArgs, question: &str) -> Result<(Value, String), String> {
    let origin = Origin {
        routes: args.paths.routes.clone(),
        without_routes: None,
        providers: args.paths.providers.clone(),
        overlays: Overlays::default(),
        secrets: Arc::new(Environment),
        policy: SecretPolicy::AllowMissing,
        rewiring: None,
    };
    let table = origin.untried().map_err(|errors| render_all(&errors, Style::Plain))?;
    let question = Question::read(question.as_bytes()).map_err(|error| error.to_string())?;
    let explanation = explain(&table, None, &question).map_err(|error| error.to_string())?;
    Ok((json!(explanation), explanation.to_string()))
}

fn asked(running: &Running, question: &str) -> Result<(Value, String), String> {
    match running.ask("/-/explain", question)? {
        Said::Answer(mut told) => {
            let text = told.get("text").and_then(Value::as_str).unwrap_or_default().to_owned();
            Ok((told.get_mut("explanation").map(Value::take).unwrap_or_default(), text))
        }
        Said::Refusal(told) => {
            Err(told.get("error").and_then(Value::as_str).unwrap_or("the running proxy does not know").to_owned())
        }
    }
}
