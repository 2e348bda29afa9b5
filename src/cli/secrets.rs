//! Secrets from the environment and from files, for `serve` and `check`.

use std::path::{Component, Path, PathBuf};

use crate::config::load::{pem_file, secret_file};
use crate::domain::secret::{PemFile, Secret, SecretSource};

/// What a `secret_file` begins with that is one of the service's credentials (systemd.exec(5), `LoadCredential=`).
const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY/";

/// The process's own environment and file system.
pub struct Environment;

impl SecretSource for Environment {
    fn env(&self, name: &str) -> Option<Secret> {
        #[expect(clippy::disallowed_methods, reason = "this is the one reader of secrets in the environment")]
        let value = std::env::var_os(name)?;
        Some(Secret::new(value.into_encoded_bytes()))
    }

    fn file(&self, path: &str) -> Option<Secret> {
        secret_file(&place(path)?)
    }

    fn pem(&self, path: &str) -> Option<PemFile> {
        pem_file(&place(path)?)
    }
}

fn place(path: &str) -> Option<PathBuf> {
    match path.strip_prefix(CREDENTIALS) {
        Some(name) => credential(name),
        None => Some(PathBuf::from(path)),
    }
}

/// Where the credential of this name is: in the folder that systemd made for this service alone, and nowhere else.
fn credential(name: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "systemd says in the environment where a service's credentials are")]
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let plain = matches!(Path::new(name).components().collect::<Vec<_>>().as_slice(), [Component::Normal(_)]);
    plain.then(|| Path::new(&folder).join(name))
}
