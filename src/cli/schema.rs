//! `weighbridge schema`: what editors complete and check from.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::say;
use crate::config::schema;

#[derive(Args)]
pub struct SchemaArgs {
    /// Of which file
    #[arg(value_enum, default_value_t)]
    of: Of,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Of {
    /// routes.toml
    #[default]
    Routes,
    /// A provider file
    Provider,
}

/// Prints a JSON Schema.
pub fn run(args: &SchemaArgs) -> ExitCode {
    let name = match args.of {
        Of::Routes => schema::ROUTES,
        Of::Provider => schema::PROVIDER,
    };
    say(schema::text(name).unwrap_or_default().trim_end());
    ExitCode::SUCCESS
}
