//! Floor 3: what travels through the stacks: an [`arrival::Arrival`] through the ingress, a [`call::Call`] through a
//! route, a [`reply::Reply`] back up, an [`error`] instead of it, and a [`trail::Trail`] that sees all of it.

pub mod allowance;
pub mod arrival;
pub mod bucket;
pub mod call;
pub mod carried;
pub mod ending;
pub mod error;
pub mod facts;
pub mod gate;
pub mod gathered;
mod heartbeat;
pub mod merchants;
pub mod purse;
pub mod quota;
pub mod reply;
pub mod shared_reply;
pub mod shares;
pub mod showing;
pub mod trail;
pub mod upload;
pub mod velocity;
