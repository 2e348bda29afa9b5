//! `[tls]` of a provider file to its settings.
//!
//! The files are read while a configuration is compiled, so that a missing one is a mistake with a place and a renewed one
//! is a reload. Messages name files and never say what is in them.

use std::sync::Arc;

use rustls::RootCertStore;
use sha2::{Digest, Sha256};

use super::crl::{self, Lists};
use super::error::Code;
use super::leaf;
use super::mask;
use super::options::CompileOptions;
use super::pem::{self, PairError};
use super::raw::provider::RawProvider;
use super::raw::tls::RawTls;
use super::report::{Field, Report, accept};
use super::secrets::{SecretPolicy, Use};
use super::table::BaseUrl;
use super::tls::{ClientCertificate, OwnRoots, Roots, TlsSettings};
use crate::domain::secret::PemFile;

/// What the settings of one provider file are made with.
pub(super) struct Securing<'s> {
    pub(super) options: &'s CompileOptions<'s>,
    pub(super) used: Use,
    pub(super) report: &'s Report<'s>,
}

impl Securing<'_> {
    /// The settings, `None` where there are none; every mistake is reported. Simulators have no certificates.
    pub(super) fn settings(&self, raw: &RawProvider, url: Option<&BaseUrl>) -> Option<Arc<TlsSettings>> {
        let tls = raw.tls.as_ref()?;
        if self.options.rewire.is_some() {
            return None;
        }
        if url.is_some_and(|url| !url.tls) {
            let mistake = tls.at.mistake(Code::Conflict, "the address is http, so nothing of this would be used");
            self.report.add(mistake.hint("write https:// in base_url, or remove [tls]"));
        }
        let settings = TlsSettings { roots: self.roots(tls), client: self.client(tls) };
        (settings != TlsSettings::default()).then(|| Arc::new(settings))
    }

    fn roots(&self, tls: &RawTls) -> Roots {
        let Some(path) = &tls.ca else {
            if let Some(crl) = &tls.crl {
                let mistake =
                    crl.mistake(Code::Conflict, "revocation lists count only beside the authorities they are of");
                self.report.add(mistake.hint("name the authorities' file as well: ca = \"ca.pem\""));
            }
            return tls.trust.as_ref().map_or(Roots::Usual, |trust| trust.value.clone());
        };
        if let Some(trust) = &tls.trust {
            let mistake = trust.mistake(Code::Conflict, "with `ca` only the authorities of that file are trusted");
            self.report.add(mistake.hint("remove one of the two"));
        }
        let file = self.file(path, "the authorities' certificates");
        let bytes = file.as_ref().map_or(&[][..], |file| file.content.expose());
        let store = file.as_ref().and_then(|_| self.sound(path, pem::authorities(bytes)));
        let store = Arc::new(store.unwrap_or_else(RootCertStore::empty));
        let digest = file.as_ref().map_or([0; 32], |_| Sha256::digest(bytes).into());
        let Some((revoked, lists)) = self.revoked(tls, &store) else {
            return Roots::Own(OwnRoots { store, revoked: Lists::default(), digest });
        };
        Roots::Own(OwnRoots { store, revoked, digest: Sha256::digest([digest, lists].concat()).into() })
    }

    /// What the authorities have revoked, and its digest.
    fn revoked(&self, tls: &RawTls, of: &Arc<RootCertStore>) -> Option<(Lists, [u8; 32])> {
        let path = tls.crl.as_ref()?;
        let file = self.file(path, "the authorities' revocation lists")?;
        let lists = self.sound(path, crl::lists(file.content.expose(), of))?;
        Some((lists, Sha256::digest(file.content.expose()).into()))
    }

    fn client(&self, tls: &RawTls) -> Option<ClientCertificate> {
        let (cert, key) = match (&tls.client_cert, &tls.client_key) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) => return None,
            (Some(one), None) | (None, Some(one)) => {
                if tls.sound {
                    let message = "a client certificate and its key belong together";
                    self.report
                        .add(one.mistake(Code::MissingKey, message).hint("write both client_cert and client_key"));
                }
                return None;
            }
        };
        let (cert_file, key_file) = (self.file(cert, "the client certificate"), self.file(key, "its private key"));
        let (cert_file, key_file) = (cert_file?, key_file?);
        if key_file.open_to_others {
            let message = "everybody on this machine can use the private key";
            self.report.add(key.mistake(Code::Secret, message).hint("take it from the others: chmod o= FILE"));
        }
        let chain = self.sound(cert, pem::certificates(cert_file.content.expose(), pem::LONGEST_CHAIN));
        let private = self.sound(key, pem::private_key(key_file.content.expose()).map_err(str::to_owned));
        let (chain, private) = (chain?, private?);
        let validity =
            chain.first().and_then(|own| leaf::validity(own)).ok_or("its validity cannot be read".to_owned());
        let validity = self.sound(cert, validity)?;
        let pair = match pem::pair(chain, private) {
            Ok(pair) => pair,
            Err(PairError::Certificate(reason)) => return self.sound(cert, Err(reason)),
            Err(PairError::Key(reason)) => return self.sound(key, Err(reason)),
            Err(PairError::Mismatch) => {
                let mistake = key.mistake(Code::Conflict, "not the key of the certificate in client_cert");
                self.report.add(mistake.hint("write both files anew"));
                return None;
            }
        };
        let digest = Sha256::new().chain_update(Sha256::digest(cert_file.content.expose()));
        let digest = digest.chain_update(Sha256::digest(key_file.content.expose())).finalize().into();
        Some(ClientCertificate { pair, validity, digest })
    }

    /// A file, or `None`: reported, unless nobody needs it to be there.
    fn file(&self, path: &Field<String>, what: &str) -> Option<PemFile> {
        let found = self.options.secrets.source.pem(&path.value).filter(|file| !file.content.expose().is_empty());
        if found.is_none() && self.used == Use::ByRoute && self.options.secrets.policy == SecretPolicy::Required {
            let shown = shown(path);
            let mistake = path.mistake(Code::Secret, format!("{shown} cannot be read or is empty"));
            self.report.add(mistake.hint(format!("put {what} there, in PEM form and readable by this process")));
        }
        found
    }

    fn sound<T>(&self, path: &Field<String>, read: Result<T, String>) -> Option<T> {
        let read = read.map_err(|reason| path.mistake(Code::BadValue, format!("{}: {reason}", shown(path))));
        accept(read.map_err(|mistake| mistake.hint("write the file anew, in PEM form")), self.report)
    }
}

fn shown(path: &Field<String>) -> String {
    let may = mask::may_be_shown(path.value.trim_start_matches(['.', '/']));
    if may { format!("the file {}", path.value) } else { "the file named here".to_owned() }
}
