//! Floor 3: pure decisions about where a call goes. Nothing here waits, and the same functions answer `explain`.

pub mod lineup;
pub mod order;
pub mod policy;
pub mod rehearsal;
pub mod rule;
pub mod select;
