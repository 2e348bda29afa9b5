//! The provider files and the example `routes.toml` that `build.rs` put into the program.

use toml::de::DeTable;

use super::SourceFile;

include!(concat!(env!("OUT_DIR"), "/builtin.rs"));

/// What the names of embedded files begin with.
pub const FOLDER: &str = "builtin/";

/// The embedded example of a routes file: what the sandbox runs where there is no file yet.
pub fn routes() -> SourceFile {
    SourceFile { name: format!("{FOLDER}routes.toml"), text: ROUTES.to_owned() }
}

/// The embedded provider files, in name order. A file of the operator with the same `id` takes the place of one of them.
pub fn providers() -> Vec<SourceFile> {
    let file = |&(name, text): &(&str, &str)| SourceFile { name: format!("{FOLDER}{name}"), text: text.to_owned() };
    PROVIDERS.iter().map(file).collect()
}

/// True if the embedded file of this provider has the model: then a file of the operator has taken its place.
pub(super) fn has_model(id: &str, model: &str) -> bool {
    let has = |text: &str| {
        let (entries, _) = DeTable::parse_recoverable(text);
        let entries = entries.into_inner();
        let said = |table: &DeTable<'_>, word: &str| table.get("id").and_then(|id| id.get_ref().as_str()) == Some(word);
        let models = entries.get("model").and_then(|models| models.get_ref().as_array());
        let mut models = models.map(|models| models.iter()).into_iter().flatten();
        said(&entries, id) && models.any(|known| known.get_ref().as_table().is_some_and(|known| said(known, model)))
    };
    PROVIDERS.iter().any(|(_, text)| has(text))
}
