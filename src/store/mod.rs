//! Floor 2: the record of risk decisions, durable before an answer leaves.
//!
//! One SQLite file, one writer thread ([`writer`]), readers beside it ([`query`]). Every row is a link of a hash chain
//! ([`chain`]); what it says of a person is under that person's own key ([`keys`]), so that it can be forgotten while the
//! chain still verifies. It knows nothing of routes, deadlines or HTTP: who waits how long, and what happens if the record
//! cannot be had, is `layer/audit.rs`.

pub mod book;
pub mod chain;
mod checkpoints;
pub mod db;
pub mod disk;
mod file;
mod held;
pub mod keys;
mod missing;
pub mod outbox;
pub mod query;
pub mod record;
pub mod refusal;
pub mod retention;
mod sealed;
mod sweep;
pub mod writer;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
