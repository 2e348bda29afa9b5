//! How the log is set up, and what its fields are called.
//!
//! Diagnostic events go through `tracing`; the access log, one line a call, is formatted by [`super::access`]. Both end in
//! the same [`Lines`] and so on the same stream, which is standard error: standard output belongs to commands.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::lines::Lines;

/// The names of log fields, so that a search for one finds all.
pub mod field {
    /// The identity of one call, `x-request-id` outside.
    pub const CALL_ID: &str = "call.id";
    /// The call that was the cause of this one, if no client was.
    pub const CAUSE: &str = "cause";
    /// Who called.
    pub const CALLER_ID: &str = "caller.id";
    /// Whose data it is.
    pub const TENANT_ID: &str = "tenant.id";
    /// The route that was chosen.
    pub const ROUTE_ID: &str = "route.id";
    /// What was asked for.
    pub const OPERATION: &str = "operation";
    /// The HTTP status sent.
    pub const STATUS: &str = "status";
    /// How the call ended for its caller.
    pub const OUTCOME: &str = "outcome";
    /// The upstream that answered, provider and model.
    pub const UPSTREAM_ID: &str = "upstream.id";
    /// Which attempt, from 1.
    pub const ATTEMPT_N: &str = "attempt.n";
    /// Every attempt and how it ended.
    pub const ATTEMPTS: &str = "attempts";
    /// The provider that answered.
    pub const PROVIDER_ID: &str = "provider.id";
    /// The model that answered.
    pub const MODEL: &str = "model";
    /// What the cache did.
    pub const CACHE: &str = "cache";
    /// Milliseconds from the first byte of the request to the last byte of the answer.
    pub const DURATION_MS: &str = "duration_ms";
    /// Microseconds spent in this process.
    pub const OVERHEAD_US: &str = "overhead_us";
    /// Bytes of the request's body.
    pub const BYTES_IN: &str = "bytes_in";
    /// Bytes of the answer's body.
    pub const BYTES_OUT: &str = "bytes_out";
    /// Prompt tokens.
    pub const TOKENS_IN: &str = "tokens_in";
    /// Completion tokens.
    pub const TOKENS_OUT: &str = "tokens_out";
    /// What the call cost, with its currency.
    pub const COST: &str = "cost";
    /// How a streamed answer ended.
    pub const STREAM_END: &str = "stream.end";
    /// What a risk call was answered.
    pub const DECISION: &str = "decision";
    /// Where that answer came from.
    pub const DECISION_SOURCE: &str = "decision.source";
    /// The stable word for what went wrong.
    pub const ERROR_CODE: &str = "error.code";
    /// The configuration that was in use.
    pub const CONFIG_VERSION: &str = "config.version";
    /// How often the client says it has tried before.
    pub const CLIENT_RETRIES: &str = "client.retries";
    /// The trace it belongs to.
    pub const TRACE_ID: &str = "trace_id";
    /// What an operator did, or tried to do.
    pub const ACTION: &str = "action";
    /// The address an operator came from.
    pub const PEER: &str = "peer";
    /// What let an operator in: `token`, or `loopback` where none is asked for.
    pub const BY: &str = "by";
    /// How an operator's action ended.
    pub const RESULT: &str = "result";
    /// Lines that are not there.
    pub const MISSED: &str = "missed";
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people at a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter cannot be read.
    #[error("the log filter cannot be read; write a level such as \"info\", or \"info,weighbridge::upstream=debug\"")]
    Filter,
    /// Another subscriber is in place.
    #[error("logging is already set up; set it up once")]
    AlreadySet,
}

/// Sends the process's diagnostic events to `lines`. `filter` is a level (`info`) or a list of targets with levels.
///
/// # Errors
/// [`LogError`] if the filter is wrong or logging was set up before.
pub fn install(format: LogFormat, filter: &str, lines: &Lines) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(filter).map_err(|_| LogError::Filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines.clone()).with_ansi(false);
    let installed = match format {
        LogFormat::Text => tracing::subscriber::set_global_default(builder.finish()),
        LogFormat::Json => tracing::subscriber::set_global_default(
            builder.json().flatten_event(true).with_current_span(false).with_span_list(false).finish(),
        ),
    };
    installed.map_err(|_| LogError::AlreadySet)
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
