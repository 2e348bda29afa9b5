//! The provider files and the example `routes.toml` that `build.rs` put into the program.

use super::SourceFile;

include!(concat!(env!("OUT_DIR"), "/builtin.rs"));

/// The embedded example of a routes file: what the sandbox runs where there is no file yet.
pub fn routes() -> SourceFile {
    SourceFile { name: "builtin/routes.toml".to_owned(), text: ROUTES.to_owned() }
}

/// The embedded provider files, in name order. A file of the operator with the same `id` takes the place of one of them.
pub fn providers() -> Vec<SourceFile> {
    let file = |&(name, text): &(&str, &str)| SourceFile { name: format!("builtin/{name}"), text: text.to_owned() };
    PROVIDERS.iter().map(file).collect()
}
