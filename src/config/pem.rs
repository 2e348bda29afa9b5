//! Certificates and private keys from the bytes of PEM files: the listener's own, and those of `[tls]` in provider files.
//!
//! It says what is wrong with a file and never what is in it. Where the files are and who may read them is decided above.

use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, RootCertStore};

/// Longest chain that is shown; each handshake carries it.
pub const LONGEST_CHAIN: usize = 16;
/// Most authorities of one file.
pub const MOST_AUTHORITIES: usize = 1_000;

/// What is wrong with a pair of a certificate and a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PairError {
    /// Something about the certificate.
    Certificate(String),
    /// Something about the key.
    Key(String),
    /// Both are well-formed, and are not each other's.
    Mismatch,
}

/// Every certificate in the text, at most `most`.
///
/// # Errors
/// What is wrong, in words.
pub fn certificates(bytes: &[u8], most: usize) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).take(most + 1).collect();
    let read = read.map_err(|_| "the PEM form is broken".to_owned())?;
    match read.len() {
        0 => Err("no certificate in PEM form".to_owned()),
        found if found > most => Err(format!("more than {most} certificates")),
        _ => Ok(read),
    }
}

/// The authorities in the text.
///
/// # Errors
/// What is wrong, in words.
pub fn authorities(bytes: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(bytes, MOST_AUTHORITIES)? {
        roots.add(authority).map_err(|_| "a certificate in it cannot be read".to_owned())?;
    }
    Ok(roots)
}

/// The first private key in the text.
///
/// # Errors
/// What is wrong, in words.
pub fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, &'static str> {
    let encrypted = memchr::memmem::find(bytes, b"ENCRYPTED").is_some();
    let reason =
        if encrypted { "the private key is encrypted, store it in the clear" } else { "no private key in PEM form" };
    PrivateKeyDer::from_pem_slice(bytes).map_err(|_| reason)
}

/// A chain and its key, if they are each other's.
///
/// # Errors
/// [`PairError`].
pub fn pair(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Arc<CertifiedKey>, PairError> {
    CertifiedKey::from_der(chain, key, &default_provider()).map(Arc::new).map_err(|error| match error {
        Error::InconsistentKeys(_) => PairError::Mismatch,
        Error::InvalidCertificate(_) => {
            PairError::Certificate("the certificate cannot be read, it must be X.509 version 3".to_owned())
        }
        _ => {
            PairError::Key("a key of a kind that is not supported, use ECDSA P-256 or P-384, Ed25519 or RSA".to_owned())
        }
    })
}
