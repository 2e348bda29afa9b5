//! Which core's runtime the current thread drives.
//!
//! Connections, metric cells and tasks are kept per core so that no request wakes another core. Threads that drive no
//! worker runtime (the admin plane, tests) share index 0.

use std::cell::Cell;

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

/// The most workers one process may have; sizes per-core arrays.
pub const MOST_WORKERS: usize = 64;

/// Declares the current thread to be worker `index` (taken modulo [`MOST_WORKERS`]).
pub fn enter(index: usize) {
    INDEX.set(index % MOST_WORKERS);
}

/// The current thread's worker, below [`MOST_WORKERS`].
pub fn index() -> usize {
    INDEX.get()
}
