//! Which client certificates a caller's key is bound to.
//!
//! By the digest of the whole certificate and by nothing in it: names would have to be compared by rules that issuers,
//! libraries and people read differently. Two digests at once are how a certificate is renewed without a gap. Whether the
//! listener asks for certificates at all is a flag, and not known here.

use super::checks;
use super::error::Code;
use super::report::{Field, Report, accept};
use super::secrets::from_hex;

/// The old, the new, and some machines more.
const MOST_CERTIFICATES: usize = 16;

/// The digests, in any of the ways tools print them: `sha256:9f86…`, `9F:86:…`, `9f86…`.
pub(super) fn plan(certificates: &Field<Vec<Field<String>>>, report: &Report<'_>) -> Vec<[u8; 32]> {
    let _ = accept(checks::not_empty(certificates, "list the certificates, or remove the key"), report);
    if certificates.value.len() > MOST_CERTIFICATES {
        let mistake = certificates.mistake(Code::BadValue, format!("more than {MOST_CERTIFICATES} certificates"));
        report.add(mistake.hint("remove those that have expired"));
    }
    // Compared as they are meant, not as they are spelt.
    let spelt: Vec<_> = certificates.value.iter().map(|digest| digest.with(plain(&digest.value))).collect();
    checks::unique(spelt.iter(), "the certificate", report);
    spelt.iter().take(MOST_CERTIFICATES).filter_map(|digest| read(digest, report)).collect()
}

fn plain(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).replace(':', "").to_ascii_lowercase()
}

fn read(digest: &Field<String>, report: &Report<'_>) -> Option<[u8; 32]> {
    let bytes = from_hex(digest.value.as_bytes()).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    if bytes.is_none() {
        let mistake = digest.mistake(Code::BadValue, "not the 64 hexadecimal digits of a SHA-256");
        report.add(mistake.hint("print it with: openssl x509 -in client.pem -noout -fingerprint -sha256"));
    }
    bytes
}
