//! What a compile starts from: texts with names.

/// One configuration file.
#[derive(Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// As shown to people: the path they gave.
    pub name: String,
    /// What it says.
    pub text: String,
}

impl std::fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.text.len())
    }
}

/// The file of a list, as `routes.toml` names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListSource {
    /// What `file = ".."` says.
    pub path: String,
    /// The file, or why it cannot be read.
    pub content: Result<SourceFile, &'static str>,
}

/// All text of one configuration.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Sources {
    /// The first is `routes.toml`; further ones are overlays whose sections are added. The same section, caller or
    /// route in two files is a mistake.
    pub routes: Vec<SourceFile>,
    /// One per provider.
    pub providers: Vec<SourceFile>,
    /// The files of `[[risk.list]]`.
    pub lists: Vec<ListSource>,
}
