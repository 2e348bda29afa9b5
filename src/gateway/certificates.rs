//! The listener's certificate: from files to what a TLS handshake needs, again whenever the files change.
//!
//! Where the files are is a flag and fixed; what is in them is as hot as `routes.toml`, because certificates are renewed
//! by robots at night. New content is put in force whole or not at all: a pair that does not fit leaves the old one in
//! place, and the log, the status page and a counter say why. Handshakes that have begun and connections that are open
//! keep what they began with; sessions of an earlier content cannot be resumed, so a client authority that was taken
//! away is gone at once for new connections.
//!
//! It deliberately does not fetch certificates, look at revocation lists or choose by name (SNI): one listener, one
//! certificate. Nothing here is on the path of a request.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use sha2::{Digest, Sha256};

use crate::config::error::ConfigError;
use crate::config::leaf::Validity;
use crate::config::load::read_bytes;
use crate::domain::clock;
use crate::telemetry::labels::CertificateReload;
use crate::telemetry::metrics::Metrics;

mod names;
mod read;

/// Most bytes of one file: a bundle of client authorities may be long.
const LARGEST_FILE: u64 = 1 << 20;
/// Others may neither read nor change a private key.
const OTHERS: u32 = 0o007;

/// Where certificates are, and who must show one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateFiles {
    /// The listener's own certificate, then those that lead to its authority; PEM.
    pub cert: PathBuf,
    /// The private key of the first of them; PEM, not encrypted.
    pub key: PathBuf,
    /// Whose client certificates are believed; `None` if clients are not asked for any.
    pub clients: Option<ClientFiles>,
}

/// How client certificates are checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientFiles {
    /// The authorities; PEM.
    pub ca: PathBuf,
    /// Whether a client without one is served.
    pub auth: ClientAuth,
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientAuth {
    /// Only callers whose key is bound to one need it.
    Optional,
    /// No handshake without one.
    Required,
}

impl ClientAuth {
    /// The word for it, as the flag spells it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }
}

/// Why certificate files cannot be used. Names files, never what is in them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not there, not allowed, not a file.
    #[error("{file}: {reason}")]
    Unreadable {
        /// Which.
        file: String,
        /// Why not.
        reason: &'static str,
    },
    /// Something else than was expected.
    #[error("{file}: {reason}")]
    Malformed {
        /// Which.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Two files that are no pair.
    #[error("{key}: not the key of the certificate in {cert}, write both anew")]
    Mismatch {
        /// One.
        cert: String,
        /// The other.
        key: String,
    },
    /// It would replace one that is still good.
    #[error("{cert}: expired on {at}, renew it")]
    Expired {
        /// Which.
        cert: String,
        /// When.
        at: String,
    },
}

impl CertificateError {
    fn result(&self) -> CertificateReload {
        match self {
            Self::Unreadable { .. } => CertificateReload::Unreadable,
            Self::Malformed { .. } => CertificateReload::Malformed,
            Self::Mismatch { .. } => CertificateReload::Mismatch,
            Self::Expired { .. } => CertificateReload::Expired,
        }
    }

    /// As the answer to a reload tells it.
    fn as_mistake(&self, files: &CertificateFiles) -> ConfigError {
        let file = match self {
            Self::Unreadable { file, .. } | Self::Malformed { file, .. } => file.clone(),
            Self::Mismatch { key, .. } => key.clone(),
            Self::Expired { .. } => files.cert.display().to_string(),
        };
        let told = self.to_string();
        let told = told.strip_prefix(&format!("{file}: ")).unwrap_or(&told).to_owned();
        let hint = "the certificate in use stays; the configuration was reloaded on its own".to_owned();
        ConfigError::of_file(file, told, Some(hint))
    }
}

/// What handshakes use now.
#[derive(Debug)]
pub struct InForce {
    /// For applications.
    pub data: Arc<ServerConfig>,
    /// For operators: the same certificate, and no client certificates.
    pub admin: Arc<ServerConfig>,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    /// When it counts.
    pub validity: Validity,
    /// Whom it is for: host names and addresses, the first twenty.
    pub names: Vec<String>,
}

/// What the last reload of the files said.
#[derive(Clone, Default)]
pub struct Told {
    /// Why it failed, `None` if it went well.
    pub error: Option<CertificateError>,
    /// When, milliseconds since 1970; 0 if there was none since the start.
    pub at_ms: u64,
}

/// The listener's certificate, now and later.
pub struct Certificates {
    files: CertificateFiles,
    now: ArcSwap<InForce>,
    told: Mutex<Told>,
    metrics: Arc<Metrics>,
}

impl Certificates {
    /// Reads the files for the first time. A certificate that has expired is used all the same, and complained about: a
    /// restart must not be worse than going on.
    ///
    /// # Errors
    /// [`CertificateError`]: then there is nothing to begin with.
    pub fn load(files: CertificateFiles, metrics: Arc<Metrics>) -> Result<Self, CertificateError> {
        let first = read::read(&files)?;
        metrics.tls_expiry(first.validity.not_after);
        look_closer(&files, &first);
        Ok(Self { files, now: ArcSwap::from_pointee(first), told: Mutex::default(), metrics })
    }

    /// What handshakes use now.
    pub fn now(&self) -> Arc<InForce> {
        self.now.load_full()
    }

    /// Where the files are.
    pub fn files(&self) -> &CertificateFiles {
        &self.files
    }

    /// What the last reload said.
    pub fn told(&self) -> Told {
        self.lock().clone()
    }

    /// The folders the files are in, to be watched.
    pub fn folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = self.files.all().map(|path| folder(path).to_owned()).collect();
        folders.sort();
        folders.dedup();
        folders
    }

    /// Reads the files again.
    ///
    /// # Errors
    /// Why the content in use stays; it has been told already.
    pub fn reload(&self) -> Result<(), Box<ConfigError>> {
        let next = read::read(&self.files).and_then(|next| self.is_no_worse(next));
        let result = next.as_ref().err().map_or(CertificateReload::Success, CertificateError::result);
        self.metrics.tls_reload(result);
        *self.lock() = Told { error: next.as_ref().err().cloned(), at_ms: clock::unix_ms() };
        match next {
            Ok(next) => {
                tracing::info!(certificate = %hex(&next.sha256), expires = %day(next.validity.not_after), "certificate in force");
                look_closer(&self.files, &next);
                self.metrics.tls_expiry(next.validity.not_after);
                self.now.store(Arc::new(next));
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "certificate refused, the one in use stays");
                Err(Box::new(error.as_mistake(&self.files)))
            }
        }
    }

    /// Robots sometimes write back an old certificate.
    fn is_no_worse(&self, next: InForce) -> Result<InForce, CertificateError> {
        let now = now_seconds();
        if next.validity.not_after <= now && self.now.load().validity.not_after > now {
            let (cert, at) = (shown(&self.files.cert), day(next.validity.not_after));
            return Err(CertificateError::Expired { cert, at });
        }
        Ok(next)
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CertificateFiles {
    /// The hash of all that [`Certificates::reload`] reads. What cannot be read counts as absent, so that its return is a
    /// change too.
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for path in self.all() {
            let content = read_bytes(path, LARGEST_FILE).ok();
            hash.update([u8::from(content.is_some())]);
            hash.update(Sha256::digest(content.unwrap_or_default()));
        }
        hash.finalize().into()
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        [&*self.cert, &*self.key].into_iter().chain(self.clients.as_ref().map(|clients| &*clients.ca))
    }
}

/// What is usable and still wrong.
fn look_closer(files: &CertificateFiles, read: &InForce) {
    let now = now_seconds();
    let (expires, starts) = (day(read.validity.not_after), day(read.validity.not_before));
    if read.validity.not_after <= now {
        tracing::error!(file = %files.cert.display(), %expires, "the listener's certificate has expired");
    } else if read.validity.not_before > now {
        tracing::warn!(file = %files.cert.display(), %starts, "the listener's certificate does not count yet");
    }
    let mode = fs::metadata(&files.key).map_or(0, |metadata| metadata.permissions().mode());
    if mode & OTHERS != 0 {
        let mode = format!("{:o}", mode & 0o777);
        tracing::warn!(file = %files.key.display(), %mode, "everybody on this machine can use the private key: chmod o= it");
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn now_seconds() -> i64 {
    i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX)
}

/// RFC 3339, of seconds since 1970.
pub fn day(unix_seconds: i64) -> String {
    clock::rfc3339(u64::try_from(unix_seconds).unwrap_or(0).saturating_mul(1000))
}

/// As `openssl` and `client_cert_sha256` spell a digest, without colons.
pub fn hex(digest: &[u8; 32]) -> String {
    digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
