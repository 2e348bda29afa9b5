//! Floor 9: speaks to a person. Only this floor reads arguments and the environment, and prints.

mod audit;
mod check;
mod completions;
mod diff;
mod digest;
mod doctor;
mod explain;
mod findings;
mod fmt;
mod import;
mod life;
mod listen;
mod notices;
mod place;
mod providers;
mod reach;
mod reload;
mod running;
mod sandbox;
mod schema;
mod secrets;
mod serve;
mod simulate;
mod tail;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::units;
use crate::telemetry::logs::LogFormat;

/// The routes file where none is named.
const ROUTES: &str = "routes.toml";

/// Multi-provider AI routing proxy: risk decisions on time, LLM calls that survive outages.
#[derive(Parser)]
#[command(name = "weighbridge", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy against simulated providers on loopback; needs no key and no network
    Sandbox(sandbox::SandboxArgs),
    /// Run the proxy with real providers
    Serve(serve::Served),
    /// Compile routes.toml and the provider files, and print every mistake
    Check(check::CheckArgs),
    /// Tidy a routes or provider file, keeping its comments
    Fmt(fmt::FmtArgs),
    /// Turn another gateway's configuration into a first routes.toml
    Import(import::ImportArgs),
    /// List who can be asked, for what, and at what price
    Providers(providers::ProvidersArgs),
    /// Print the JSON Schema of routes.toml or of provider files
    Schema(schema::SchemaArgs),
    /// Say where a call would go, and why: route, policy, candidates, timers, cache key
    Explain(explain::ExplainArgs),
    /// Say what a reload would change: between two routes files, or between one and the running proxy
    Diff(diff::DiffArgs),
    /// Have a running proxy read its files now, and hear how that went: its exit code says whether they are in force
    Reload(reload::ReloadArgs),
    /// Verify or export the record of decisions, forget a person in it, or see to notices nobody took
    Audit(audit::AuditArgs),
    /// Probe this machine and every provider in use, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Read a caller key on standard input and print its digest for routes.toml
    Digest(digest::DigestArgs),
    /// Write a history of simulated payments whose frauds are known
    Simulate(simulate::SimulateArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
    /// Show the calls of a running proxy as they end
    Tail(tail::TailArgs),
}

/// Where the configuration is.
#[derive(Args, Clone)]
struct Paths {
    /// The routes file
    #[arg(long, env = "WEIGHBRIDGE_ROUTES", default_value = ROUTES, value_name = "FILE")]
    routes: PathBuf,
    /// The folder of provider files; what is not in it comes from the binary
    #[arg(long, env = "WEIGHBRIDGE_PROVIDERS", default_value = "providers", value_name = "DIR")]
    providers: PathBuf,
}

#[derive(Args, Clone)]
struct ServeArgs {
    #[command(flatten)]
    paths: Paths,
    /// Where applications connect
    #[arg(long, env = "WEIGHBRIDGE_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where operators connect; any other address than loopback needs WEIGHBRIDGE_ADMIN_TOKEN
    #[arg(long, env = "WEIGHBRIDGE_ADMIN_LISTEN", default_value = "127.0.0.1:9090", value_name = "ADDRESS")]
    admin_listen: SocketAddr,
    #[command(flatten)]
    tls: listen::TlsArgs,
    /// How log lines are written; the default is text on a terminal and json elsewhere
    #[arg(long, env = "WEIGHBRIDGE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogStyle>,
    /// What is logged beside the access lines
    #[arg(long, env = "WEIGHBRIDGE_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// The folder for what must outlive a restart; `serve` uses `data`, the sandbox one that is gone at its end
    #[arg(long, env = "WEIGHBRIDGE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The file that signed checkpoints of the record of decisions are appended to, best on another machine's disk; the
    /// default is checkpoints.jsonl in the data folder
    #[arg(long, env = "WEIGHBRIDGE_AUDIT_CHECKPOINTS", value_name = "FILE")]
    audit_checkpoints: Option<PathBuf>,
    /// How long requests may take to finish after SIGTERM
    #[arg(long, env = "WEIGHBRIDGE_DRAIN_TIMEOUT", default_value = "30s", value_parser = duration, value_name = "TIME")]
    drain_timeout: Duration,
    /// How long to go on accepting after SIGTERM, already unready
    #[arg(long, env = "WEIGHBRIDGE_DRAIN_DELAY", default_value = "0s", value_parser = duration, value_name = "TIME")]
    drain_delay: Duration,
    /// Runtimes; the default is one per core
    #[arg(long, env = "WEIGHBRIDGE_WORKERS", value_name = "NUMBER")]
    workers: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogStyle {
    /// For people
    Text,
    /// For machines
    Json,
}

impl From<LogStyle> for LogFormat {
    fn from(style: LogStyle) -> Self {
        match style {
            LogStyle::Text => Self::Text,
            LogStyle::Json => Self::Json,
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    if text == "0s" || text == "0" {
        return Ok(Duration::ZERO);
    }
    units::duration(text).map_err(|error| error.to_string())
}

/// Runs the command the arguments ask for.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Sandbox(args) => sandbox::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Digest(args) => digest::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Fmt(args) => fmt::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Providers(args) => providers::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Tail(args) => tail::run(&args),
    }
}

/// Prints a line for a person or a pipe; a reader that has gone away is not an error.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints a line about what went wrong.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints why a command could not do what it was asked to, and is the exit code that says so, too.
fn given_up(why: &str) -> ExitCode {
    complain(why);
    ExitCode::from(2)
}

/// An error with everything that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
