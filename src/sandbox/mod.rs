//! Floor 2, beside the tower: simulated providers. Only `cli` and tests may import it, and it imports only floors 0 and 1.

pub mod fault;
