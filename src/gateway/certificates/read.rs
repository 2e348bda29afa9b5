//! Files to TLS configurations.
//!
//! TLS 1.2 and 1.3 with the AEAD suites of `ring`, which has no others; nothing is accepted before a handshake is
//! complete (0-RTT could be replayed), and nothing is renegotiated.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use sha2::{Digest, Sha256};

use super::{
    CertificateError, CertificateFiles, ClientAuth, ClientFiles, InForce, LARGEST_FILE, names, read_bytes, shown,
};
use crate::config::leaf;
use crate::config::pem::{self, PairError};

/// What the listener speaks, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

pub(super) fn read(files: &CertificateFiles) -> Result<InForce, CertificateError> {
    let chain = certificates(&files.cert)?;
    let own = chain.first().ok_or_else(|| malformed(&files.cert, "no certificate in PEM form"))?;
    let sha256 = Sha256::digest(own).into();
    let names = names::names(own);
    let validity = leaf::validity(own).ok_or_else(|| malformed(&files.cert, "its validity cannot be read"))?;
    let key = pem::pair(chain, private_key(&files.key)?).map_err(|error| pair(files, error))?;
    let admin = config(&key, WebPkiClientVerifier::no_client_auth(), files)?;
    let data = match &files.clients {
        Some(clients) => config(&key, verifier(clients)?, files)?,
        None => Arc::clone(&admin),
    };
    Ok(InForce { data, admin, sha256, validity, names })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    pem::certificates(&bytes(path)?, pem::LONGEST_CHAIN).map_err(|reason| malformed(path, reason))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let bytes = zeroize::Zeroizing::new(bytes(path)?);
    pem::private_key(&bytes).map_err(|reason| malformed(path, reason))
}

fn bytes(path: &Path) -> Result<Vec<u8>, CertificateError> {
    read_bytes(path, LARGEST_FILE).map_err(|reason| CertificateError::Unreadable { file: shown(path), reason })
}

fn pair(files: &CertificateFiles, error: PairError) -> CertificateError {
    match error {
        PairError::Mismatch => CertificateError::Mismatch { cert: shown(&files.cert), key: shown(&files.key) },
        PairError::Certificate(reason) => malformed(&files.cert, reason),
        PairError::Key(reason) => malformed(&files.key, reason),
    }
}

fn verifier(clients: &ClientFiles) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    let roots = pem::authorities(&bytes(&clients.ca)?).map_err(|reason| malformed(&clients.ca, reason))?;
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
