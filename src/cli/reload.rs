//! `weighbridge reload`: asks a running proxy to read its files now, and says how that went.
//!
//! It is `POST /-/reload` for whoever wants an exit code: systemd above all, which takes a failed `ExecReload=` for a failed
//! reload and leaves the service running. SIGHUP asks for the same and nobody hears the answer.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::running::{Running, Said};
use super::{complain, given_up, say};

const REFUSED: u8 = 1;

#[derive(Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    running: Running,
    /// Where operators connect, as `serve` was told; what `--admin` says comes first
    #[arg(long, env = "WEIGHBRIDGE_ADMIN_LISTEN", value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
}

/// Asks. Exit code 0 when what is on disk is in force, 1 if it has mistakes and what was in force still is, 2 if no proxy
/// could be asked.
pub fn run(args: &ReloadArgs) -> ExitCode {
    match args.running.or_at(args.admin_listen).ask("/-/reload", "") {
        Ok(Said::Answer(told)) => {
            let version = told.get("config_hash").and_then(Value::as_str).unwrap_or_default();
            say(&format!("in force: version {}", version.get(..12).unwrap_or(version)));
            ExitCode::SUCCESS
        }
        Ok(Said::Refusal(told)) => {
            complain(&super::diff::refused(&told));
            complain("the configuration on disk is refused, what was in force still is");
            ExitCode::from(REFUSED)
        }
        Err(complaint) => given_up(&complaint),
    }
}
