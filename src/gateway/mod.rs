//! Floor 6: composition. [`stack`] shows every tower stack; [`snapshot`] is one configuration made runnable.

pub mod build;
mod casebook;
mod decode;
pub mod dispatch;
pub mod handover;
pub mod last_good;
pub mod notify;
pub mod origin;
pub mod pin;
pub mod reload;
pub mod snapshot;
pub mod spending;
pub mod stack;
