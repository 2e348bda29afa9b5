//! What a provider's certificates say, seen while the usual checks are made: this decides nothing, it only looks on.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::config::tls::{Roots, TlsSettings};
use crate::upstream::secure;

/// A certificate in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Facts {
    /// Who vouches for it.
    pub(super) issuer: String,
    /// Seconds since 1970.
    pub(super) not_after: u64,
}

/// Certificates as they were shown, the server's own first.
#[derive(Clone, Default)]
pub(super) struct Shown(Arc<Mutex<Vec<Facts>>>);

impl Shown {
    /// The server's own certificate, and when the first of all of them ends.
    pub(super) fn facts(&self) -> Option<(Facts, u64)> {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first_end = shown.iter().map(|facts| facts.not_after).min()?;
        Some((shown.first()?.clone(), first_end))
    }
}

/// The checks that `serve` makes of this provider, and what was shown to them.
///
/// # Errors
/// [`Error`] if there is no trust store.
pub(super) fn client(settings: Option<&TlsSettings>) -> Result<(Arc<ClientConfig>, Shown), Error> {
    let shown = Shown::default();
    let judge = secure::verifier(settings.map_or(&Roots::Usual, |settings| &settings.roots))?;
    let mut config = secure::client(Arc::new(Witness { judge, shown: shown.clone() }))?;
    if let Some(settings) = settings {
        secure::show(&mut config, settings);
    }
    Ok((Arc::new(config), shown))
}

struct Witness {
    judge: Arc<dyn ServerCertVerifier>,
    shown: Shown,
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Witness").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let facts = [own].into_iter().chain(others).filter_map(|der| read(der)).collect();
        *self.shown.0.lock().unwrap_or_else(PoisonError::into_inner) = facts;
        self.judge.verify_server_cert(own, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}

fn read(der: &[u8]) -> Option<Facts> {
    let certificate = Certificate::from_der(der).ok()?;
    let told = certificate.tbs_certificate();
    // A stranger's text goes to a terminal: only what can be printed, and not too much of it.
    let issuer = told.issuer().to_string().chars().filter(|c| !c.is_control()).take(120).collect();
    Some(Facts { issuer, not_after: told.validity().not_after.to_unix_duration().as_secs() })
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// Made with openssl for this test: CN=doctor.test, O=Weighbridge tests, signed by itself, until 2036-11-20.
    const SELF_SIGNED: &str = "MIIBujCCAV+gAwIBAgIUNvvDXzQMV55xZi2U27SG6EDFnr4wCgYIKoZIzj0EAwIwMjEaMBgGA1UECgwRV2VpZ2hicmlkZ2Ug\
         dGVzdHMxFDASBgNVBAMMC2RvY3Rvci50ZXN0MB4XDTI2MTEyMzEwNTUxOVoXDTM2MTEyMDEwNTUxOVowMjEaMBgGA1UECgwR\
         V2VpZ2hicmlkZ2UgdGVzdHMxFDASBgNVBAMMC2RvY3Rvci50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaLkearMX\
         4g21zzGdt13XzrTLymxhE+vASoM2SfiYOcCahdy8yvsVZDHasBnUXE8muqx9QQ3Gn9Q9ZoXGGyAghaNTMFEwHQYDVR0OBBYE\
         FHlQW6Z4GYCjJQu2XuygRmiHE0vxMB8GA1UdIwQYMBaAFHlQW6Z4GYCjJQu2XuygRmiHE0vxMA8GA1UdEwEB/wQFMAMBAf8w\
         CgYIKoZIzj0EAwIDSQAwRgIhAKkKCiJ4FcctA7Blp6x4P1Rhx1Sk7iAwMcL09s9Kgd/RAiEAnDAt0yFPsYwMUH+DlIhbFtiB\
         MjoYbedpWkcQLD1YRcI=";

    #[test]
    fn issuer_and_end_are_read() {
        let facts = read(&STANDARD.decode(SELF_SIGNED).unwrap()).unwrap();
        assert!(facts.issuer.contains("CN=doctor.test") && facts.issuer.contains("O=Weighbridge tests"), "{facts:?}");
        assert_eq!(facts.not_after, 2_110_791_319);
    }

    #[test]
    fn what_is_no_certificate_is_none() {
        for der in [&b""[..], b"\x30\x03\x02\x01\x01", b"certificate"] {
            assert_eq!(read(der), None);
        }
    }
}
