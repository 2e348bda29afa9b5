//! TLS towards providers: who is believed, what we show, and which protocol is agreed on.
//!
//! What is dear is made once and shared: the trust stores, and one configuration with its sessions for all providers that
//! set nothing of their own. A provider with settings of its own gets one that shares no sessions with others, so that a
//! connection after a renewed certificate is never a resumption of one before it. Nothing is sent before the handshake is
//! complete, and nothing can switch the verification off.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::ServerCertVerifierBuilder;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::tls::{HttpVersion, Roots, TlsSettings};

/// What ALPN calls HTTP/2.
pub const HTTP2: &[u8] = b"h2";
/// Sessions kept for one provider with settings of its own.
const MOST_SESSIONS: usize = 32;

/// One provider's settings, and what handshakes use once it was made. Compared by the settings.
pub struct Security {
    settings: Arc<TlsSettings>,
    made: OnceLock<Arc<ClientConfig>>,
}

impl Security {
    /// Nothing is made before the first connection.
    pub fn new(settings: Arc<TlsSettings>) -> Self {
        Self { settings, made: OnceLock::new() }
    }

    /// What handshakes use; `usual` is what providers without settings use.
    ///
    /// # Errors
    /// There is no system trust store, and no other one may take its place.
    pub fn config(&self, usual: &Arc<ClientConfig>) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(made) = self.made.get() {
            return Ok(Arc::clone(made));
        }
        let mut config = match &self.settings.roots {
            // A clone shares the trust store.
            Roots::Usual => ClientConfig::clone(usual),
            roots => client(verifier(roots)?)?,
        };
        config.resumption = Resumption::in_memory_sessions(MOST_SESSIONS);
        show(&mut config, &self.settings);
        Ok(Arc::clone(self.made.get_or_init(|| Arc::new(config))))
    }
}

impl PartialEq for Security {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Eq for Security {}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.settings.fmt(f)
    }
}

/// Shows the provider's client certificate, if it has one, to whoever asks.
pub fn show(config: &mut ClientConfig, settings: &TlsSettings) {
    if let Some(client) = &settings.client {
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(Arc::clone(client.pair())));
    }
}

/// A configuration that believes whom `verifier` believes, and shows nothing.
///
/// # Errors
/// The protocol versions do not fit the provider of the cryptography.
pub fn client(verifier: Arc<dyn ServerCertVerifier>) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Who is believed. The two trust stores are read once in the life of the process.
///
/// # Errors
/// There is no system trust store, and no other one may take its place.
pub fn verifier(roots: &Roots) -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    match roots {
        Roots::Usual => system().or_else(|error| {
            tracing::warn!(%error, "no system trust store, using the bundled roots");
            bundled()
        }),
        Roots::Bundled => bundled(),
        Roots::System => system(),
        Roots::Own(own) => {
            let builder =
                WebPkiServerVerifier::builder_with_provider(Arc::clone(own.store()), Arc::new(default_provider()));
            built(builder.with_crls(own.revoked().iter().cloned()))
        }
    }
}

fn system() -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    static SYSTEM: OnceLock<Arc<rustls_platform_verifier::Verifier>> = OnceLock::new();
    if let Some(read) = SYSTEM.get() {
        return Ok(Arc::clone(read) as Arc<dyn ServerCertVerifier>);
    }
    // One that failed is tried again: the store may be installed later.
    let read = Arc::new(rustls_platform_verifier::Verifier::new(Arc::new(default_provider()))?);
    Ok(Arc::clone(SYSTEM.get_or_init(|| read)) as Arc<dyn ServerCertVerifier>)
}

fn bundled() -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    static BUNDLED: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = BUNDLED.get_or_init(|| Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }));
    believing(Arc::clone(roots))
}

/// Believes these authorities and no others.
///
/// # Errors
/// There is none.
pub fn believing(roots: Arc<RootCertStore>) -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    built(WebPkiServerVerifier::builder_with_provider(roots, Arc::new(default_provider())))
}

fn built(builder: ServerCertVerifierBuilder) -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    builder.build().map(|verifier| verifier as _).map_err(|error| rustls::Error::General(error.to_string()))
}

/// The other side does not speak HTTP/2, and it is to be spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the provider does not agree on HTTP/2, set http = \"1.1\" in its file")]
pub struct NotHttp2;

/// Shakes hands as the provider's settings say. Where HTTP/2 is to be spoken it is agreed on here, and where it is not
/// nothing is offered, which every server takes for HTTP/1.1.
///
/// # Errors
/// The handshake's, or [`NotHttp2`]; nothing of a request was sent.
pub async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    host: &str,
    http: HttpVersion,
    io: S,
) -> io::Result<TlsStream<S>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(config);
    if http == HttpVersion::One {
        return connector.connect(name, io).await;
    }
    let stream = connector.with_alpn(vec![HTTP2.to_vec()]).connect(name, io).await.map_err(told_apart)?;
    if stream.get_ref().1.alpn_protocol() == Some(HTTP2) { Ok(stream) } else { Err(io::Error::other(NotHttp2)) }
}

/// Some servers end the handshake themselves where nothing that is offered suits them.
fn told_apart(error: io::Error) -> io::Error {
    let alert = rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol);
    let refused = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) == Some(&alert);
    if refused { io::Error::other(NotHttp2) } else { error }
}

/// Why there is no connection, in words that an operator can do something with, and without anything the other side said.
pub fn why(error: &io::Error) -> &'static str {
    let source = error.get_ref();
    if source.and_then(|error| error.downcast_ref::<NotHttp2>()).is_some() {
        return "the provider does not agree on HTTP/2, set http = \"1.1\" in its file";
    }
    match source.and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(reason)) => distrust(reason),
        Some(_) => "no TLS handshake with the provider",
        None => UNREACHED,
    }
}

/// What is said where nobody was met at all.
pub const UNREACHED: &str = "no connection to the provider";

fn distrust(reason: &CertificateError) -> &'static str {
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "the provider's certificate has expired",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the provider's certificate is for another name"
        }
        CertificateError::UnknownIssuer => "the provider's certificate is of no authority that is trusted for it",
        CertificateError::Revoked => "the provider's certificate, or one above it, was revoked",
        CertificateError::UnknownRevocationStatus => {
            "no revocation list covers the provider's certificate or one above it, put the list of each authority into the file at crl"
        }
        _ => "the provider's certificate was not believed",
    }
}
