//! How commands reach the admin listener of a running proxy: one bounded connection, in the clear or over TLS.
//!
//! Over TLS it believes a server that shows the very certificate in `--ca`, whatever name it is for: the file is this
//! machine's own, and so is the address. Otherwise the certificate must be signed by an authority in that file, or without a
//! file by one the operating system believes, and be for the address. It asks nothing; what is asked is the callers' own.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http::Uri;
use http::uri::Authority;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, StreamOwned,
};

use super::secrets::Environment;
use super::serve::ADMIN_TOKEN;
use crate::config::tls::Roots;
use crate::domain::secret::SecretSource;
use crate::upstream::secure;

const CONNECT: Duration = Duration::from_secs(3);
/// No chain and no bundle of authorities is larger.
const LONGEST_FILE: u64 = 1 << 20;
const IN_THE_CLEAR: &str = "http://127.0.0.1:9090";
const SECURED: &str = "https://127.0.0.1:9090";
/// What stands for the usual address where the flag has no value.
pub(super) const USUAL: &str = "usual";

/// What is believed of the admin listener.
#[derive(Args, Clone, Default)]
pub(super) struct Trust {
    /// The certificates that are believed of an https:// admin address, in PEM form: the proxy's own, or its authority's;
    /// without it those that the operating system believes
    #[arg(long, env = "WEIGHBRIDGE_TLS_CERT", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The admin listener speaks TLS, as `serve` was told: the usual address is https://127.0.0.1:9090 then
    #[arg(long, env = "WEIGHBRIDGE_ADMIN_TLS")]
    admin_tls: bool,
}

/// Why nobody could be asked.
#[derive(Debug)]
pub(super) enum Unreached {
    /// What was asked for cannot be: to try again is of no use.
    Never(String),
    /// Nobody is there, or not now.
    NotNow(String),
}

impl Unreached {
    /// The words alone.
    pub(super) fn told(self) -> String {
        let (Self::Never(told) | Self::NotNow(told)) = self;
        told
    }
}

/// A connection to an admin listener.
pub(super) enum Wire {
    Clear(TcpStream),
    Secured(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// `--admin` as it is written; nothing for the usual address.
#[derive(Clone, Default)]
pub(super) struct Address(Option<Uri>);

impl Address {
    /// Reads it.
    ///
    /// # Errors
    /// A sentence for the person who wrote it.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        if text == USUAL {
            return Ok(Self(None));
        }
        let address = text.parse().map_err(|_| "give the admin address as in http://127.0.0.1:9090".to_owned())?;
        Ok(Self(Some(address)))
    }

    /// The address, or the usual one.
    pub(super) fn of(self, trust: &Trust) -> Uri {
        let usual = Uri::from_static(if trust.admin_tls { SECURED } else { IN_THE_CLEAR });
        self.0.unwrap_or(usual)
    }
}

impl Trust {
    /// True if the admin listener is said to speak TLS.
    pub(super) fn speaks_tls(&self) -> bool {
        self.admin_tls
    }

    /// Connects, and shakes hands where the address wants it. Nothing on it may be silent for longer than `silence`.
    ///
    /// # Errors
    /// A sentence for the person who asked.
    pub(super) fn connect(&self, admin: &Uri, silence: Duration) -> Result<(Wire, Authority), Unreached> {
        let never = |why: &str| Unreached::Never(why.to_owned());
        let authority = admin.authority().ok_or_else(|| never("give the admin address as in http://127.0.0.1:9090"))?;
        let secured = match admin.scheme_str() {
            None | Some("http") => None,
            Some("https") => Some(self.config().map_err(Unreached::Never)?),
            Some(_) => return Err(never("the admin address must begin with http:// or https://")),
        };
        let gone = |error: io::Error| {
            Unreached::NotNow(format!(
                "no proxy answers at {authority} ({error}): start one, or give its --admin-listen address with --admin"
            ))
        };
        let host = authority.host().trim_matches(['[', ']']);
        let port = authority.port_u16().unwrap_or(if secured.is_some() { 443 } else { 80 });
        let address = (host, port).to_socket_addrs().map_err(gone)?.next();
        let address = address.ok_or_else(|| never("the admin address leads nowhere"))?;
        let stream = TcpStream::connect_timeout(&address, CONNECT).map_err(gone)?;
        stream.set_read_timeout(Some(silence)).map_err(gone)?;
        stream.set_write_timeout(Some(silence)).map_err(gone)?;
        let wire = match secured {
            Some(config) => secure(stream, config, host).map_err(Unreached::Never)?,
            None => Wire::Clear(stream),
        };
        Ok((wire, authority.clone()))
    }

    /// What is believed, ready for a handshake.
    ///
    /// # Errors
    /// A sentence for the person who gave the file.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let known = self.ca.as_deref().map(read).transpose()?.unwrap_or_default();
        let judge = judge(&known).map_err(|error| format!("there is no trust store to use: {error}"))?;
        let config = secure::client(Arc::new(Known { certificates: known, judge }));
        config.map(Arc::new).map_err(|error| error.to_string())
    }
}

/// The header that says who asks, with its line's end; empty without a token.
pub(super) fn bearer() -> String {
    let token = Environment.env(ADMIN_TOKEN).filter(|token| token.expose().iter().all(u8::is_ascii_graphic));
    let line = |token: &[u8]| format!("authorization: Bearer {}\r\n", String::from_utf8_lossy(token));
    token.map(|token| line(token.expose())).unwrap_or_default()
}

fn secure(mut stream: TcpStream, config: Arc<ClientConfig>, host: &str) -> Result<Wire, String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "the admin address names no host".to_owned())?;
    let mut connection = ClientConnection::new(config, name).map_err(|error| error.to_string())?;
    connection.complete_io(&mut stream).map_err(|error| {
        format!(
            "the admin listener's certificate is not believed, or it speaks no TLS ({error}): give its file with --ca"
        )
    })?;
    Ok(Wire::Secured(Box::new(StreamOwned::new(connection, stream))))
}

fn read(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let cannot = |why: &dyn fmt::Display| format!("no certificate can be read from {} ({why})", file.display());
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).and_then(|open| open.take(LONGEST_FILE).read_to_end(&mut bytes));
    opened.map_err(|error| cannot(&error))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let read = read.map_err(|_| cannot(&"it is not PEM"))?;
    if read.is_empty() { Err(cannot(&"there is none in it")) } else { Ok(read) }
}

/// Those in the file as authorities; without any whom a provider without settings of its own is judged by.
fn judge(known: &[CertificateDer<'static>]) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    if known.is_empty() {
        return secure::verifier(&Roots::Usual);
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(known.iter().cloned());
    secure::believing(Arc::new(roots))
}

/// Believes certificates it knows, and asks the usual judge about others.
struct Known {
    certificates: Vec<CertificateDer<'static>>,
    judge: Arc<dyn ServerCertVerifier>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The first of a file is its owner's; an authority's in the same file must not be believed as a server.
        if self.certificates.first().is_some_and(|known| known.as_ref() == own.as_ref()) {
            return Ok(ServerCertVerified::assertion());
        }
        self.judge.verify_server_cert(own, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Clear(stream) => stream.read(buffer),
            Self::Secured(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(stream) => stream.write(bytes),
            Self::Secured(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(stream) => stream.flush(),
            Self::Secured(stream) => stream.flush(),
        }
    }
}
