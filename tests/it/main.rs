//! The one integration binary: each extra one would link the whole crate again, and CI has two cores.
//!
//! One module per behaviour; add yours to the list.

// clippy's "allow in tests" settings only see `#[test]` functions, and here the helpers are tests too.
#![allow(
    clippy::pedantic,
    clippy::excessive_nesting,
    clippy::large_futures,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod aborts;
mod adaptive;
mod admin;
mod admin_tls;
mod answers;
mod audio;
mod audit;
mod audit_process;
mod auth;
mod cache;
mod carried_over;
mod cli;
mod coalesce;
mod dashboard;
mod deadline;
mod disabled;
mod disk;
mod doctor;
mod explain;
mod failover;
mod faults;
mod governance;
mod harness;
mod headers;
mod heartbeat;
mod hedge;
mod hostile_bodies;
mod idempotency_llm;
mod lifecycle;
mod limits;
mod listener;
mod llm;
mod machine;
mod made_up;
mod money;
mod order;
mod outbound;
mod outbox;
mod overload;
mod pains;
mod policy;
mod power_loss;
mod process;
mod relay;
mod reload;
mod retention;
mod retold;
mod reuse;
mod revalidate;
mod risk;
mod roll_back;
mod rules;
mod runbook;
mod shape;
mod shutdown;
mod signed;
mod simulator;
mod soak;
mod sockets;
mod strays;
mod stream;
mod surface;
mod syncs;
mod tail;
mod takeover;
mod takeover_streams;
mod tidy;
mod timing;
mod tooling;
mod torn;
mod traces;
mod unreadable;
mod velocity;
mod vendor;
mod wall_clock;
mod webhooks;
