//! Floor 6: composition. [`stack`] shows every tower stack; [`snapshot`] is one configuration made runnable.

pub mod build;
mod casebook;
pub mod certificates;
pub mod collector;
mod counting;
pub mod counts;
pub mod courier;
mod decode;
pub mod dispatch;
pub mod explain;
pub mod handover;
pub mod last_good;
pub mod notify;
pub mod origin;
pub mod pin;
pub mod pressure;
pub mod reload;
pub mod snapshot;
pub mod spending;
pub mod stack;
pub mod trial;
