//! The executable: everything is in the library.

use std::process::ExitCode;

/// A request makes some eighty small allocations; this allocator does them in a third of the instructions.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weighbridge::cli::run()
}
