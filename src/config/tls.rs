//! How connections to one provider are secured: whose certificates are believed there, and what we show.
//!
//! What was read and checked, and in words. Nothing here can switch the verification off. Reading is `tls_plan`'s, and
//! handshakes are made above, in `upstream`.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};

use super::crl::Lists;
use super::leaf::Validity;

/// The version of HTTP that is spoken to a provider.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum HttpVersion {
    /// HTTP/1.1, one request at a time on a connection.
    #[default]
    One,
    /// HTTP/2, agreed on in the TLS handshake; without TLS it is known beforehand.
    Two,
}

impl HttpVersion {
    /// As provider files spell it.
    pub fn label(self) -> &'static str {
        match self {
            Self::One => "1.1",
            Self::Two => "2",
        }
    }
}

/// Whose certificates are believed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Roots {
    /// The operating system's trust store, or the bundled roots where there is none.
    #[default]
    Usual,
    /// The roots that came with the program, and no others.
    Bundled,
    /// The operating system's, and no others.
    System,
    /// The authorities of a file, and no others.
    Own(OwnRoots),
}

/// Authorities from a file, and what they have revoked. Compared by the files' content.
#[derive(Clone)]
pub struct OwnRoots {
    pub(super) store: Arc<RootCertStore>,
    pub(super) revoked: Lists,
    pub(super) digest: [u8; 32],
}

/// What is shown to a provider that asks who we are. Compared by the content of both files.
#[derive(Clone)]
pub struct ClientCertificate {
    pub(super) pair: Arc<CertifiedKey>,
    pub(super) validity: Validity,
    pub(super) digest: [u8; 32],
}

/// `[tls]` of a provider file.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TlsSettings {
    /// Whose certificates are believed.
    pub roots: Roots,
    /// What we show if we are asked.
    pub client: Option<ClientCertificate>,
}

impl TlsSettings {
    /// In words, without anything of the files: `own authorities (2), client certificate until …`.
    pub fn words(&self) -> String {
        let roots = match &self.roots {
            Roots::Usual => None,
            Roots::Bundled => Some("bundled roots".to_owned()),
            Roots::System => Some("system roots".to_owned()),
            Roots::Own(own) => Some(match own.revoked.len() {
                0 => format!("own authorities ({})", own.store.len()),
                lists => format!("own authorities ({}), revocation lists ({lists})", own.store.len()),
            }),
        };
        let client = self.client.as_ref().map(|client| format!("client certificate until {}", day(client.validity)));
        roots.into_iter().chain(client).collect::<Vec<_>>().join(", ")
    }

    /// Of all that is in the files.
    pub(super) fn digest(&self) -> [u8; 32] {
        let roots = if let Roots::Own(own) = &self.roots { own.digest } else { [0; 32] };
        let client = self.client.as_ref().map_or([0; 32], |client| client.digest);
        Sha256::digest([roots, client].concat()).into()
    }
}

fn day(validity: Validity) -> String {
    let seconds = u64::try_from(validity.not_after).unwrap_or(0);
    crate::domain::clock::rfc3339(seconds.saturating_mul(1000)).chars().take(10).collect()
}

impl OwnRoots {
    /// The authorities.
    pub fn store(&self) -> &Arc<RootCertStore> {
        &self.store
    }

    /// What they have revoked; without any nothing is looked up.
    pub fn revoked(&self) -> &[CertificateRevocationListDer<'static>] {
        &self.revoked
    }
}

impl ClientCertificate {
    /// The chain and its key.
    pub fn pair(&self) -> &Arc<CertifiedKey> {
        &self.pair
    }

    /// When the certificate counts.
    pub fn validity(&self) -> Validity {
        self.validity
    }
}

impl PartialEq for OwnRoots {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for OwnRoots {}

impl fmt::Debug for OwnRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} authorities", self.store.len())
    }
}

impl PartialEq for ClientCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for ClientCertificate {}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client certificate until {}", day(self.validity))
    }
}
