//! `weighbridge serve`: from arguments to a running proxy, and from signals to its end.

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::life::{self, LifeArgs, Supervisor};
use super::secrets::Environment;
use super::{ServeArgs, chain, check, complain, given_up, say};
use crate::app::{App, AppConfig, Life, StartError};
use crate::config::SecretPolicy;
use crate::config::error::{Code, Style, render_all};
use crate::domain::secret::{Secret, SecretSource};
use crate::gateway::reload::{Fate, Origin, Overlays};
use crate::server::DrainReport;
use crate::telemetry::access::AccessLog;
use crate::telemetry::lines::LineWriter;
use crate::telemetry::logs::{self, LogFormat};
use crate::telemetry::metrics::Metrics;

/// The environment variable of the admin token.
pub(super) const ADMIN_TOKEN: &str = "WEIGHBRIDGE_ADMIN_TOKEN";
/// Signals so soon after the first are the same one: `timeout`, shells and process groups deliver it twice.
const ECHO: Duration = Duration::from_millis(100);

/// Where data is kept unless told otherwise.
pub(super) const DATA: &str = "data";

/// Merchant categories that decisions are counted by; any other counts as `other`.
const MERCHANT_CATEGORIES: &[&str] =
    &["digital", "electronics", "fashion", "food", "gaming", "health", "home", "services", "travel"];

/// `serve` alone, and what it has in common with the sandbox.
#[derive(clap::Args)]
pub struct Served {
    #[command(flatten)]
    serve: ServeArgs,
    #[command(flatten)]
    life: LifeArgs,
}

/// Runs until told to stop.
pub fn run(args: &Served) -> ExitCode {
    let Served { serve: args, life } = args;
    let data_dir = args.data_dir.clone().or_else(|| Some(DATA.into()));
    let args = &ServeArgs { data_dir, ..args.clone() };
    let supervisor = Supervisor::from_environment();
    let life = match life.life(&supervisor) {
        Ok(life) => life,
        Err(error) => return refuse(&StartError::System(error)),
    };
    let origin = Origin {
        routes: args.paths.routes.clone(),
        without_routes: None,
        providers: args.paths.providers.clone(),
        overlays: Overlays::default(),
        secrets: Arc::new(Environment),
        policy: SecretPolicy::Required,
        rewiring: None,
    };
    let start = Start { record_dir: args.data_dir.clone(), origin, life, supervisor };
    run_app(args, start, |app| {
        if app.serves_last_good() {
            say(
                "the configuration on disk is refused, this is the last good one; weighbridge check says what is wrong",
            );
        }
        say(&format!("data   {}", app.data_url()));
        say(&format!("admin  {}", app.admin_url()));
        let snapshot = app.live().load_full();
        for route in snapshot.table().llm_routes().values() {
            say(&check::line(route.id.as_str(), &route.candidates));
        }
        if let Some(route) = snapshot.table().risk_route() {
            say(&check::line(route.id.as_str(), &route.candidates));
        }
    })
}

/// What a start needs beside the flags.
pub(super) struct Start {
    /// Where decisions are recorded.
    pub(super) record_dir: Option<PathBuf>,
    /// Where configuration comes from.
    pub(super) origin: Origin,
    /// How the process begins and ends among others.
    pub(super) life: Life,
    /// Who wants to know.
    pub(super) supervisor: Arc<Supervisor>,
}

/// Starts the proxy, greets, and waits for its end. Exit code 2 means that it never ran.
pub(super) fn run_app(args: &ServeArgs, start: Start, greet: impl FnOnce(&App)) -> ExitCode {
    let Start { record_dir, origin, life, supervisor } = start;
    life::set_limits();
    let metrics = Metrics::with_merchant_categories(MERCHANT_CATEGORIES);
    let writer = match LineWriter::start(io::stderr(), metrics.log_dropped.clone()) {
        Ok(writer) => writer,
        Err(error) => return refuse(&StartError::System(error)),
    };
    let terminal = io::stderr().is_terminal();
    let format = args.log_format.map_or(if terminal { LogFormat::Text } else { LogFormat::Json }, LogFormat::from);
    if let Err(error) = logs::install(format, &args.log, &writer.lines()) {
        return given_up(&chain(&error));
    }
    let config = AppConfig {
        origin,
        listen: args.listen,
        admin_listen: args.admin_listen,
        admin_token: Environment.env(ADMIN_TOKEN).filter(|token: &Secret| !token.expose().is_empty()),
        tls: args.tls.files(),
        admin_tls: args.tls.admin(),
        workers: args.workers.unwrap_or_else(|| available_parallelism().map_or(1, usize::from)),
        data_dir: args.data_dir.clone(),
        record_dir,
        checkpoints: args.audit_checkpoints.clone(),
        log: AccessLog::new(format, writer.lines()),
        metrics,
        life,
    };
    // Signals first: whoever reads the greeting may send one at once.
    let started = Ears::open().and_then(|ears| Ok((App::start(config)?, ears)));
    match started {
        Ok((app, ears)) => {
            greet(&app);
            let (data, admin) = (app.data_address(), app.admin_address());
            let version = app.live().load().table().version();
            let release = env!("CARGO_PKG_VERSION");
            tracing::info!(%release, %data, %admin, config.version = %version, "serving");
            life::check_limits(app.live().load().table().limits().connections);
            let on_disk = if app.serves_last_good() { Fate::Refused } else { Fate::Taken };
            supervisor.ready(app.took_over(), on_disk);
            let code = ears.wait(app, args, &supervisor);
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
        complain(&format!("{}\n", render_all(errors, style)));
    }
    complain(&chain(error));
    if matches!(error, StartError::Config(errors) if errors.iter().all(|error| error.code == Code::Secret)) {
        complain("to try it without any key: weighbridge sandbox");
    }
    ExitCode::from(2)
}

/// Hears signals: SIGHUP reloads, SIGTERM or SIGINT drains, a second one stops at once.
struct Ears {
    runtime: Runtime,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Ears {
    fn open() -> Result<Self, StartError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(StartError::System)?;
        let inside = runtime.enter();
        let hear = |kind| signal(kind).map_err(StartError::System);
        let (hangup, terminate) = (hear(SignalKind::hangup())?, hear(SignalKind::terminate())?);
        let interrupt = hear(SignalKind::interrupt())?;
        drop(inside);
        Ok(Self { runtime, hangup, terminate, interrupt })
    }

    /// Serves until told to stop, then stops.
    fn wait(self, mut app: App, args: &ServeArgs, supervisor: &Supervisor) -> ExitCode {
        let Self { runtime, mut hangup, mut terminate, mut interrupt } = self;
        let mut stop = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        runtime.block_on(async {
            let heir = loop {
                tokio::select! {
                    _ = hangup.recv() => app.reloads().reload(),
                    heir = app.heir() => break Some(heir),
                    () = stop() => break None,
                    () = pulse(supervisor) => {
                        if app.is_alive() {
                            supervisor.alive();
                        }
                    }
                }
            };
            let (limit, limit_seconds) = (args.drain_timeout, args.drain_timeout.as_secs_f64());
            let ending: Pin<Box<dyn Future<Output = DrainReport>>> = if let Some(heir) = heir {
                tracing::info!(limit_seconds, "another process takes over, finishing what is in flight here");
                Box::pin(app.hand_over(heir, limit))
            } else {
                // The heir tells the supervisor who it is; a process that leaves to it must not say that the service stops.
                supervisor.stopping();
                tracing::info!(limit_seconds, "draining, a second signal stops at once");
                Box::pin(app.drain(args.drain_delay, limit))
            };
            tokio::select! {
                report = ending => {
                    let (in_flight, ended, aborted) = (report.in_flight, report.ended, report.aborted);
                    tracing::info!(in_flight, ended, aborted, "drained");
                    ExitCode::SUCCESS
                }
                never = beat(supervisor) => match never {},
                () = second(stop) => {
                    tracing::warn!("stopped by a second signal, requests in flight were cut");
                    ExitCode::FAILURE
                }
            }
        })
    }
}

/// Goes on being alive while it ends.
async fn beat(supervisor: &Supervisor) -> Infallible {
    loop {
        pulse(supervisor).await;
        supervisor.alive();
    }
}

/// Waits until the supervisor wants to hear of us again; for ever if it does not.
async fn pulse(supervisor: &Supervisor) {
    match supervisor.pulse() {
        Some(every) => sleep(every).await,
        None => std::future::pending().await,
    }
}

/// Waits for a signal that was meant as a second one.
async fn second(mut stop: impl AsyncFnMut()) {
    let echoes = async {
        loop {
            stop().await;
        }
    };
    // Its end is always that the time is up.
    let _ = timeout(ECHO, echoes).await;
    stop().await;
}
