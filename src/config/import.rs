//! Configurations of other gateways, turned into ours: a first `routes.toml` that compiles, with a comment on everything
//! that did not come along.
//!
//! No secret is ever copied: a key that stands in the other file becomes the name of an environment variable. What the
//! other gateway does and this one does not is said, not imitated.

mod deployments;
mod litellm;
mod upstreams;
mod write;
mod yaml;

#[cfg(test)]
mod tests;

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Imported {
    /// The text of `routes.toml`.
    pub routes: String,
    /// Provider files, by name and text, that go into the providers folder.
    pub providers: Vec<(String, String)>,
    /// How many things did not come along; each is a comment in `routes`.
    pub left_out: usize,
}

/// What an import needs beside the file.
#[derive(Clone, Copy, Debug)]
pub struct Given<'g> {
    /// The name of the file, for comments.
    pub name: &'g str,
    /// `sha256:…` of the one caller's key.
    pub key_digest: &'g str,
    /// The day of the import, `2026-11-23`.
    pub day: &'g str,
}

/// Why a file cannot be imported. Never quotes it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImportError {
    /// Not YAML; the parser's word for it.
    #[error("line {line}: not YAML: {what}")]
    Syntax {
        /// From 1.
        line: usize,
        /// A fixed sentence.
        what: &'static str,
    },
    /// More than a configuration has.
    #[error("line {line}: {what}")]
    TooMuch {
        /// From 1.
        line: usize,
        /// Which bound.
        what: &'static str,
    },
    /// Nothing to route to.
    #[error("there is no model_list with a model in it")]
    NoModels,
}

/// Reads a LiteLLM proxy `config.yaml`.
///
/// # Errors
/// [`ImportError`] if it is not YAML within bounds, or has no model.
pub fn litellm(text: &str, given: Given<'_>) -> Result<Imported, ImportError> {
    let root = yaml::parse(text)?;
    litellm::import(&root, given)
}
