//! Files to TLS configurations.
//!
//! TLS 1.2 and 1.3 with the AEAD suites of `ring`, which has no others; nothing is accepted before a handshake is
//! complete (0-RTT could be replayed), and nothing is renegotiated.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};

use super::{
    CertificateError, CertificateFiles, ClientAuth, ClientFiles, InForce, LARGEST_FILE, leaf, names, read_bytes, shown,
};

/// Longest chain sent to clients; each handshake carries it.
const MOST_CERTIFICATES: usize = 16;
/// Most authorities of clients.
const MOST_AUTHORITIES: usize = 1_000;
/// What the listener speaks, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

pub(super) fn read(files: &CertificateFiles) -> Result<InForce, CertificateError> {
    let chain = certificates(&files.cert, MOST_CERTIFICATES)?;
    let own = chain.first().ok_or_else(|| malformed(&files.cert, "no certificate in PEM form"))?;
    let sha256 = Sha256::digest(own).into();
    let names = names::names(own);
    let validity = leaf::validity(own).ok_or_else(|| malformed(&files.cert, "its validity cannot be read"))?;
    let key = private_key(&files.key)?;
    let key = CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| pair(files, &error))?;
    let key = Arc::new(key);
    let admin = config(&key, WebPkiClientVerifier::no_client_auth(), files)?;
    let data = match &files.clients {
        Some(clients) => config(&key, verifier(clients)?, files)?,
        None => Arc::clone(&admin),
    };
    Ok(InForce { data, admin, sha256, validity, names })
}

fn certificates(path: &Path, most: usize) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let bytes = bytes(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).take(most + 1).collect();
    let read = read.map_err(|_| malformed(path, "the PEM form is broken"))?;
    match read.len() {
        0 => Err(malformed(path, "no certificate in PEM form")),
        found if found > most => Err(malformed(path, format!("more than {most} certificates"))),
        _ => Ok(read),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let bytes = zeroize::Zeroizing::new(bytes(path)?);
    let encrypted = memchr::memmem::find(&bytes, b"ENCRYPTED").is_some();
    let reason =
        if encrypted { "the private key is encrypted, store it in the clear" } else { "no private key in PEM form" };
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| malformed(path, reason))
}

fn bytes(path: &Path) -> Result<Vec<u8>, CertificateError> {
    read_bytes(path, LARGEST_FILE).map_err(|reason| CertificateError::Unreadable { file: shown(path), reason })
}

fn pair(files: &CertificateFiles, error: &Error) -> CertificateError {
    match error {
        Error::InconsistentKeys(_) => CertificateError::Mismatch { cert: shown(&files.cert), key: shown(&files.key) },
        Error::InvalidCertificate(_) => malformed(&files.cert, "the certificate cannot be read"),
        _ => malformed(&files.key, "a key of a kind that is not supported, use ECDSA P-256 or P-384, Ed25519 or RSA"),
    }
}

fn verifier(clients: &ClientFiles) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&clients.ca, MOST_AUTHORITIES)? {
        roots.add(authority).map_err(|_| malformed(&clients.ca, "a certificate in it cannot be read"))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()));
    let builder = match clients.auth {
        ClientAuth::Optional => builder.allow_unauthenticated(),
        ClientAuth::Required => builder,
    };
    builder.build().map_err(|error| malformed(&clients.ca, error.to_string()))
}

fn config(
    key: &Arc<CertifiedKey>,
    clients: Arc<dyn ClientCertVerifier>,
    files: &CertificateFiles,
) -> Result<Arc<ServerConfig>, CertificateError> {
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| malformed(&files.cert, error.to_string()))?;
    let resolver = Arc::new(SingleCertAndKey::from(Arc::clone(key)));
    let mut config = builder.with_client_cert_verifier(clients).with_cert_resolver(resolver);
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    // The default; a request that arrives twice may be paid twice.
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn malformed(path: &Path, reason: impl Into<String>) -> CertificateError {
    CertificateError::Malformed { file: shown(path), reason: reason.into() }
}
