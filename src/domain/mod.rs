//! Floor 0: values and rules. No I/O, no async, no serde on rules.

pub mod aftermath;
pub mod agreement;
pub mod clock;
pub mod currency;
pub mod deadline;
pub mod decision;
pub mod id;
pub mod jitter;
pub mod money;
pub mod operation;
pub mod outcome;
pub mod overload;
pub mod period;
pub mod policy;
pub mod retention;
pub mod reuse;
pub mod secret;
pub mod usage;
pub mod worker;
