//! `crl` in `[tls]` of a provider file: revocation lists of the authorities in `ca`.
//!
//! With lists every certificate of a provider's chain, its authority's own left out, must be on none of them and be covered
//! by one: a list that is missing is not a certificate that is good. A list beyond its next update still counts, since an
//! older list is better than none and better than nobody to ask. Nothing is fetched here: a file that changes is a reload.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;

/// Most lists of one file.
const MOST: usize = 100;

/// Lists as they were read.
pub(super) type Lists = Arc<[CertificateRevocationListDer<'static>]>;

/// The lists in the text, each of a form that a verifier for `roots` can use.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn lists(bytes: &[u8], roots: &Arc<RootCertStore>) -> Result<Lists, String> {
    let read: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).take(MOST + 1).collect();
    let read = read.map_err(|_| "the PEM form is broken".to_owned())?;
    match read.len() {
        0 => return Err("no revocation list in PEM form (X509 CRL)".to_owned()),
        found if found > MOST => return Err(format!("more than {MOST} revocation lists")),
        _ => {}
    }
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::new(default_provider()));
    match builder.with_crls(read.iter().cloned()).build() {
        // Without authorities the mistake is theirs, and told.
        Ok(_) | Err(VerifierBuilderError::NoRootAnchors) => Ok(read.into()),
        Err(_) => Err("a revocation list in it cannot be read, it must be X.509 version 2".to_owned()),
    }
}
