//! Floor 2: text to a validated [`table::RoutingTable`].
pub mod table;
