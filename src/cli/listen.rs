//! The flags of TLS: where the certificate is, and which clients must show one.
//!
//! Where files are is fixed for the life of the process, because a listener that changes between TLS and none under its
//! clients helps nobody; what is in them is read again whenever it changes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::gateway::certificates::{CertificateFiles, ClientAuth, ClientFiles};

#[derive(Args, Clone)]
pub(super) struct TlsArgs {
    /// Speak TLS to applications, with the certificate chain in this PEM file; read again when it changes
    #[arg(long, env = "WEIGHBRIDGE_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate, in PEM form and not encrypted
    #[arg(long, env = "WEIGHBRIDGE_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The authorities whose client certificates are believed, in PEM form; callers are bound to one with
    /// client_cert_sha256 in routes.toml
    #[arg(long, env = "WEIGHBRIDGE_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Whether clients without a certificate are served
    #[arg(
        long,
        env = "WEIGHBRIDGE_TLS_CLIENT_AUTH",
        value_name = "WHEN",
        default_value_if("tls_client_ca", clap::builder::ArgPredicate::IsPresent, "optional"),
        requires = "tls_client_ca"
    )]
    tls_client_auth: Option<When>,
    /// Speak TLS to operators too, with the same certificate
    #[arg(long, env = "WEIGHBRIDGE_ADMIN_TLS", requires = "tls_cert")]
    admin_tls: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum When {
    /// Only callers that are bound to a certificate need one
    Optional,
    /// Nobody is served without one
    Required,
}

impl TlsArgs {
    /// Where the certificate is, `None` without TLS.
    pub(super) fn files(&self) -> Option<CertificateFiles> {
        let (cert, key) = (self.tls_cert.clone()?, self.tls_key.clone()?);
        let auth = match self.tls_client_auth {
            Some(When::Required) => ClientAuth::Required,
            Some(When::Optional) | None => ClientAuth::Optional,
        };
        let clients = self.tls_client_ca.clone().map(|ca| ClientFiles { ca, auth });
        Some(CertificateFiles { cert, key, clients })
    }

    /// Whether operators get TLS.
    pub(super) fn admin(&self) -> bool {
        self.admin_tls
    }
}
