//! `[tls]` and `http` of a provider file.

use crate::config::error::Code;
use crate::config::read::{Table, Value};
use crate::config::report::Field;
use crate::config::tls::{HttpVersion, Roots};

const KEYS: [&str; 5] = ["ca", "crl", "trust", "client_cert", "client_key"];
/// How other programs switch the checks off. There is no such switch here, and whoever looks for one is told so.
pub(super) const SWITCHES: [&str; 9] = [
    "verify",
    "insecure",
    "skip_verify",
    "insecure_skip_verify",
    "tls_verify",
    "tls_insecure",
    "ssl_verify",
    "verify_ssl",
    "verify_tls",
];
const VERSIONS: [(&str, HttpVersion); 2] = [("1.1", HttpVersion::One), ("2", HttpVersion::Two)];

#[derive(Clone, Debug)]
pub(in crate::config) struct RawTls {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) ca: Option<Field<String>>,
    pub(in crate::config) crl: Option<Field<String>>,
    pub(in crate::config) trust: Option<Field<Roots>>,
    pub(in crate::config) client_cert: Option<Field<String>>,
    pub(in crate::config) client_key: Option<Field<String>>,
    /// False if some key is there but could not be read, so that it is not missing.
    pub(in crate::config) sound: bool,
}

impl RawTls {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let table = value.table()?.only_besides(&KEYS, &[], &SWITCHES);
        refuse_switches(&table);
        let text = |name: &str| table.get(name).and_then(|value| value.string());
        let trusts = [("bundled", TrustWord::Bundled), ("system", TrustWord::System)];
        let trust = table.get("trust").and_then(|value| value.word(&trusts));
        let trust =
            trust.map(|word| word.with(if word.value == TrustWord::System { Roots::System } else { Roots::Bundled }));
        let at = Field { value: (), at: table.at, key: table.key.clone() };
        let read = Self {
            at,
            ca: text("ca"),
            crl: text("crl"),
            trust,
            client_cert: text("client_cert"),
            client_key: text("client_key"),
            sound: true,
        };
        let readable = [("client_cert", read.client_cert.is_some()), ("client_key", read.client_key.is_some())];
        let sound = readable.iter().all(|&(key, read)| read || table.get(key).is_none());
        Some(Self { sound, ..read })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TrustWord {
    Bundled,
    System,
}

pub(super) fn http(value: &Value<'_>) -> Option<Field<HttpVersion>> {
    value.word(&VERSIONS)
}

/// Says of every switch that there is none.
pub(super) fn refuse_switches(table: &Table<'_>) {
    for value in SWITCHES.iter().filter_map(|name| table.get(name)) {
        let message = "providers' certificates are always verified, there is no switch for it";
        let mistake = value.mistake(Code::Unsupported, message);
        table.report().add(mistake.hint("name the authority that signed the certificate: [tls] ca = \"ca.pem\""));
    }
}
