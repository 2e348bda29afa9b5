//! Weighbridge, a multi-provider AI routing proxy.
//!
//! The modules below are in floor order; each may import only from lower floors (`tests/it/tidy.rs` checks it, and
//! ARCHITECTURE.md explains it).

#![cfg_attr(
    test,
    allow(
        clippy::pedantic,
        clippy::excessive_nesting,
        clippy::large_futures,
        reason = "style of production code; tests are tables and scripts"
    )
)]

pub mod domain;

pub mod sign;
pub mod wire;

pub mod config;
pub mod sandbox;
pub mod store;
pub mod telemetry;

pub mod flight;
pub mod routing;

pub mod upstream;

pub mod layer;

pub mod gateway;

pub mod admin;
pub mod server;

pub mod app;

pub mod cli;
