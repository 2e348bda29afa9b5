//! Floor 1: what is signed, and with what. Pure; keys come in as arguments.

pub mod di;
pub mod hmac;
pub mod keyring;
