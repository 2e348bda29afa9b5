//! Secrets from the environment and from files, for `serve` and `check`.

use std::path::Path;

use crate::config::load::secret_file;
use crate::domain::secret::{Secret, SecretSource};

/// The process's own environment and file system.
pub struct Environment;

impl SecretSource for Environment {
    fn env(&self, name: &str) -> Option<Secret> {
        #[expect(clippy::disallowed_methods, reason = "this is the one reader of secrets in the environment")]
        let value = std::env::var_os(name)?;
        Some(Secret::new(value.into_encoded_bytes()))
    }

    fn file(&self, path: &str) -> Option<Secret> {
        secret_file(Path::new(path))
    }
}
