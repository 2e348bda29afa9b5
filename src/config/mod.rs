//! Floor 2: text to a validated [`table::RoutingTable`].
//!
//! The way of a configuration: [`load`] reads files, [`compile`](compile::compile) turns their text into a table or into
//! every mistake at once, [`diff`] says what a new table would change. Serving code sees only [`table`].
//!
//! What it deliberately does not do: read the environment (a [`SecretSource`](crate::domain::secret::SecretSource) is
//! handed in), watch files, or keep anything between two calls.

pub mod asking;
pub mod audit;
pub mod budgets;
pub mod builtin;
pub mod cases;
pub mod compile;
pub mod diff;
mod disabled;
pub mod error;
pub mod expr;
pub mod format;
pub mod import;
pub mod jurisdictions;
pub mod leaf;
pub mod lint;
pub mod lists;
pub mod load;
pub mod options;
pub mod pem;
pub mod policy;
pub mod prices;
pub mod reload;
pub mod remarks;
pub mod reuse;
pub mod rule;
pub mod schema;
pub mod source;
pub mod table;
pub mod tls;
pub mod units;
pub mod velocity;
pub mod words;

mod address;
mod alike;
mod budgeting;
mod callers;
mod cases_plan;
mod catalog;
mod checks;
mod client_certs;
mod counters;
mod crl;
mod descriptor;
mod keys;
mod laws;
mod lists_plan;
mod llm;
mod mask;
mod policy_plan;
mod raw;
mod read;
mod reloading;
mod renames;
mod report;
mod reusing;
mod risk;
mod routes;
mod rules_plan;
mod secrets;
mod shape;
mod tls_plan;
mod traces;
mod webhooks;

pub use compile::compile;
pub use diff::TableDiff;
pub use error::{Code, ConfigError, Style, render_all};
pub use load::{content_hash, read_sources, secret_file};
pub use options::{CompileOptions, Rewire};
pub use secrets::{SecretPolicy, Secrets, is_placeholder};
pub use source::{ListSource, SourceFile, Sources};

#[cfg(test)]
mod tests;
