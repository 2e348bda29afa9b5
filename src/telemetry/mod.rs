//! Floor 2: metrics and logs: every name in one table, every handle resolved before a request needs it.
//!
//! [`catalog`] names the metrics, [`cells`] holds the numbers, [`metrics`] hands out [`handles`] at configuration time,
//! [`genai`] those under OpenTelemetry's names;
//! [`access`] writes a line for each call, [`logs`] sets up diagnostics, and both go out through [`lines`]; [`tail`] lets
//! people read along; [`traces`] puts into OpenTelemetry's form what a collector is told. Nothing here decides *when* something is counted or said.

pub mod access;
pub mod catalog;
pub mod cells;
mod families;
pub mod genai;
pub mod handles;
pub mod labels;
pub mod lines;
pub mod logs;
pub mod metrics;
pub mod pressure;
pub mod process;
pub mod samples;
pub mod tail;
pub mod traces;
