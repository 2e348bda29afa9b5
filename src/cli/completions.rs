//! `weighbridge completions`: what a shell completes from.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

#[derive(Args)]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints a script for the shell to source.
pub fn run(args: &CompletionsArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "weighbridge", &mut script);
    // A reader that has gone away is not an error.
    let _ = std::io::stdout().lock().write_all(&script);
    ExitCode::SUCCESS
}
