//! `weighbridge serve`: from arguments to a running proxy, and from signals to its end.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use super::secrets::Environment;
use super::{ServeArgs, chain, check, complain, say};
use crate::app::{App, AppConfig, StartError};
use crate::config::SecretPolicy;
use crate::config::error::{Style, render_all};
use crate::domain::secret::{Secret, SecretSource};
use crate::gateway::reload::{Origin, Overlays};
use crate::telemetry::access::AccessLog;
use crate::telemetry::lines::LineWriter;
use crate::telemetry::logs::{self, LogFormat};
use crate::telemetry::metrics::Metrics;

/// The environment variable of the admin token.
const ADMIN_TOKEN: &str = "WEIGHBRIDGE_ADMIN_TOKEN";

/// Runs until told to stop.
pub fn run(args: &ServeArgs) -> ExitCode {
    let origin = Origin {
        routes: args.paths.routes.clone(),
        providers: args.paths.providers.clone(),
        overlays: Overlays::default(),
        secrets: Arc::new(Environment),
        policy: SecretPolicy::Required,
        rewiring: None,
    };
    run_app(args, origin, |app| {
        say(&format!("data   http://{}", app.data_address()));
        say(&format!("admin  http://{}", app.admin_address()));
        let snapshot = app.live().load_full();
        for route in snapshot.table().llm_routes().values() {
            say(&check::line(route.id.as_str(), &route.candidates));
        }
        if let Some(route) = snapshot.table().risk_route() {
            say(&check::line(route.id.as_str(), &route.candidates));
        }
    })
}

/// Starts the proxy, greets, and waits for its end. Exit code 2 means that it never ran.
pub(super) fn run_app(args: &ServeArgs, origin: Origin, greet: impl FnOnce(&App)) -> ExitCode {
    let metrics = Metrics::new();
    let writer = match LineWriter::start(io::stderr(), metrics.log_dropped.clone()) {
        Ok(writer) => writer,
        Err(error) => return refuse(&StartError::System(error)),
    };
    let terminal = io::stderr().is_terminal();
    let format = args.log_format.map_or(if terminal { LogFormat::Text } else { LogFormat::Json }, LogFormat::from);
    if let Err(error) = logs::install(format, &args.log, &writer.lines()) {
        complain(&chain(&error));
        return ExitCode::from(2);
    }
    let config = AppConfig {
        origin,
        listen: args.listen,
        admin_listen: args.admin_listen,
        admin_token: Environment.env(ADMIN_TOKEN).filter(|token: &Secret| !token.expose().is_empty()),
        workers: args.workers.unwrap_or_else(|| available_parallelism().map_or(1, usize::from)),
        log: AccessLog::new(format, writer.lines()),
        metrics,
    };
    match App::start(config) {
        Ok(app) => {
            greet(&app);
            let code = wait(app, args);
            drop(writer);
            code
        }
        Err(error) => {
            drop(writer);
            refuse(&error)
        }
    }
}

fn refuse(error: &StartError) -> ExitCode {
    if let StartError::Config(errors) = error {
        let style = if io::stderr().is_terminal() { Style::Coloured } else { Style::Plain };
        complain(&render_all(errors, style));
    }
    complain(&chain(error));
    ExitCode::from(2)
}

/// SIGHUP reloads, SIGTERM or SIGINT drains, a second one stops at once.
fn wait(app: App, args: &ServeArgs) -> ExitCode {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&StartError::System(error)),
    };
    runtime.block_on(async {
        let signals = [SignalKind::hangup(), SignalKind::terminate(), SignalKind::interrupt()].map(signal);
        let [Ok(mut hangup), Ok(mut terminate), Ok(mut interrupt)] = signals else {
            complain("the system refused signal handlers");
            return ExitCode::from(2);
        };
        loop {
            tokio::select! {
                _ = hangup.recv() => app.reloads().reload(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        tracing::info!("draining");
        tokio::select! {
            report = app.drain(args.drain_delay, args.drain_timeout) => {
                let (in_flight, ended, aborted) = (report.in_flight, report.ended, report.aborted);
                tracing::info!(in_flight, ended, aborted, "drained");
                ExitCode::SUCCESS
            }
            _ = terminate.recv() => ExitCode::FAILURE,
            _ = interrupt.recv() => ExitCode::FAILURE,
        }
    })
}
