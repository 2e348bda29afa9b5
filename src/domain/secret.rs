//! Secrets as a type: cannot be printed, cannot be serialised, wiped when dropped.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

/// Bytes nobody may print.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// The bytes, for the one place that signs or sends them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for Secret {}

/// Where secrets come from: the environment and files when serving, a map in tests and in the sandbox.
pub trait SecretSource: Send + Sync {
    /// The secret stored under an environment variable's name, `None` if it is absent.
    fn env(&self, name: &str) -> Option<Secret>;

    /// The secret stored in a file, one trailing newline removed, `None` if it cannot be read.
    fn file(&self, path: &str) -> Option<Secret>;

    /// A file of certificates or of a private key, `None` if it cannot be read.
    fn pem(&self, path: &str) -> Option<PemFile> {
        self.file(path).map(|content| PemFile { content, open_to_others: false })
    }
}

/// A file in PEM form, not yet looked into.
pub struct PemFile {
    /// All of it; a secret, because it may hold a private key.
    pub content: Secret,
    /// True if everybody on this machine may read or change it.
    pub open_to_others: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s11_a_secret_does_not_show_in_debug_output() {
        assert_eq!(format!("{:?}", Secret::new(b"sk-CANARY".to_vec())), "***");
    }
}
