//! `weighbridge check`: what a reload would say, beforehand.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::secrets::Environment;
use super::{Paths, complain, say};
use crate::config::SecretPolicy;
use crate::config::error::{Style, render_all};
use crate::config::table::{Candidate, RoutingTable};
use crate::gateway::reload::{Origin, Overlays};

#[derive(Args)]
pub struct CheckArgs {
    /// The routes file; overrides --routes
    file: Option<PathBuf>,
    #[command(flatten)]
    paths: Paths,
    /// Do not ask for secrets: for machines that do not have them
    #[arg(long, env = "WEIGHBRIDGE_ALLOW_MISSING_SECRETS")]
    allow_missing_secrets: bool,
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
    match origin.load() {
        Ok(table) => {
            say(&describe(&table));
            ExitCode::SUCCESS
        }
        Err(errors) => {
            let style = if std::io::stderr().is_terminal() { Style::Coloured } else { Style::Plain };
            let plural = if errors.len() == 1 { "" } else { "s" };
            complain(&format!("{}\n\n{} mistake{plural}", render_all(&errors, style), errors.len()));
            ExitCode::FAILURE
        }
    }
}

fn describe(table: &RoutingTable) -> String {
    let llm = table.llm_routes().values().map(|route| line(route.id.as_str(), &route.candidates));
    let risk = table.risk_route().map(|route| line(route.id.as_str(), &route.candidates));
    let routes: Vec<_> = llm.chain(risk).collect();
    format!("{}\nok, version {}, {} callers", routes.join("\n"), table.version(), table.callers().len())
}

/// A route and its candidates in order.
pub(super) fn line(id: &str, candidates: &[Candidate]) -> String {
    let order: Vec<_> = candidates.iter().map(|candidate| candidate.upstream.as_str()).collect();
    format!("  {id:<28} {}", order.join(", then "))
}
