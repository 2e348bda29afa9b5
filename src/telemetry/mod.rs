//! Floor 2: metrics and logs: every name in one table, every handle resolved before a request needs it.
//!
//! [`catalog`] names the metrics, [`cells`] holds the numbers, [`metrics`] hands out handles at configuration time, and
//! [`logs`] writes the diagnostic log and the access log. Nothing here decides *when* something is counted.

pub mod catalog;
pub mod cells;
mod families;
pub mod handles;
pub mod labels;
pub mod metrics;
