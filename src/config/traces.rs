//! Where traces go, which ones, and who else may learn of them.
//!
//! The destination comes from the configuration alone: OpenTelemetry's own environment variables are not read, because
//! they would send the names of callers and routes somewhere that no `weighbridge check` has seen. In the sandbox, where
//! nothing may leave the machine, only a collector at a private address remains.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::address::{self, Reach};
use super::checks;
use super::compile::add;
use super::descriptor::{Builder, Built};
use super::error::Code;
use super::raw::provider::{AuthKind, RawAuth};
use super::raw::traces::RawTraces;
use super::read::{shown, suggest};
use super::report::{Field, Mistake, accept};
use super::secrets::Use;
use super::table::{Auth, BaseUrl, Protocol};
use crate::domain::id::ProviderId;

/// Below the collector's address, as the protocol fixes it
/// (<https://opentelemetry.io/docs/specs/otlp/#otlphttp-request>, read Nov 2026).
const PATH: &str = "/v1/traces";
/// One new trace in ten.
const DEFAULT_SHARE: u32 = 100_000;
const DEFAULT_QUEUE: usize = 2_048;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// `[traces]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Traces {
    /// Where spans are posted; its path is the whole path.
    pub url: BaseUrl,
    /// How many of the traces that begin here are taken, in millionths.
    pub share: u32,
    /// What the collector wants to see.
    pub auth: Auth,
    /// Headers that are always sent. Lower-case names.
    pub headers: Vec<(String, String)>,
    /// Most requests whose spans wait to be sent.
    pub queue: usize,
    /// Longest time one try may take.
    pub timeout: Duration,
    /// Providers whose requests carry `traceparent` and `tracestate`.
    pub forward_to: BTreeSet<ProviderId>,
    /// False if the secret is a placeholder.
    secret_is_real: bool,
}

impl Traces {
    /// What every request to the collector carries, its credential marked as one.
    pub fn header_fields(&self) -> Vec<(HeaderName, HeaderValue)> {
        let plain = self.headers.iter().filter_map(|(name, value)| {
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?))
        });
        plain.chain(self.credential()).collect()
    }

    fn credential(&self) -> Option<(HeaderName, HeaderValue)> {
        let (name, value) = match &self.auth {
            Auth::Bearer { secret } => ("authorization", [b"Bearer ", secret.expose()].concat()),
            Auth::Header { name, secret } => (name.as_str(), secret.expose().to_vec()),
            Auth::None | Auth::DiHmac { .. } => return None,
        };
        let mut value = HeaderValue::from_bytes(&value).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
    }

    /// Adds the secret's fingerprint, so that a new secret is a new version.
    pub(super) fn fingerprint(&self, hash: &mut Sha256) {
        for secret in self.auth.secrets().filter(|_| self.secret_is_real) {
            add(hash, PATH.as_bytes());
            add(hash, &Sha256::digest(secret.expose()));
        }
    }
}

/// Checks it; reports what is wrong.
pub(super) fn build(
    raw: &RawTraces,
    providers: &BTreeMap<ProviderId, Built>,
    builder: &Builder<'_>,
) -> Option<Arc<Traces>> {
    let report = builder.report;
    let url = raw.otlp.as_ref().and_then(|url| accept(address(url), report));
    let auth = raw.auth.as_ref().map_or(Some((Auth::None, true)), |auth| credential(auth, builder));
    let headers = raw.headers.iter().filter_map(|(name, value)| accept(checks::fixed_header(name, value), report));
    let headers = headers.collect();
    let known = |id: &Field<String>| accept(forwarded(id, providers), report);
    let forward_to = raw.forward_to.iter().filter_map(known).collect();
    let (url, (auth, secret_is_real)) = (url?, auth?);
    if builder.options.rewire.is_some() && address::reach(&url.host) == Reach::Public {
        return None;
    }
    Some(Arc::new(Traces {
        url: BaseUrl { path: format!("{}{PATH}", url.path), ..url },
        share: raw.sample.as_ref().map_or(DEFAULT_SHARE, |share| share.value),
        auth,
        headers,
        queue: raw.queue.as_ref().map_or(DEFAULT_QUEUE, |queue| queue.value),
        timeout: raw.timeout.as_ref().map_or(DEFAULT_TIMEOUT, |timeout| timeout.value),
        forward_to,
        secret_is_real,
    }))
}

fn credential(raw: &RawAuth, builder: &Builder<'_>) -> Option<(Auth, bool)> {
    if let Some(kind) = raw.kind.as_ref().filter(|kind| kind.value == AuthKind::DiHmac) {
        let mistake = kind.mistake(Code::Conflict, "what is sent to a collector is not signed");
        builder.report.add(mistake.hint("write kind = \"bearer\" or kind = \"header\""));
        return None;
    }
    builder.auth(raw, None, Use::ByRoute)
}

/// A collector usually is on this machine or in this network, so that needs no permission.
fn address(url: &Field<String>) -> Result<BaseUrl, Mistake> {
    let read = checks::base_url(url, Some(&url.with(true)))?;
    if read.path.ends_with(PATH) {
        let mistake = url.mistake(Code::BadValue, "the path of the protocol is added to the address");
        return Err(mistake.hint(format!("leave {PATH} out")));
    }
    Ok(read)
}

/// A provider that may learn of traces: one that speaks HTTP without a signature over its headers.
fn forwarded(id: &Field<String>, providers: &BTreeMap<ProviderId, Built>) -> Result<ProviderId, Mistake> {
    let Some((known, built)) = providers.get_key_value(id.value.as_str()) else {
        let mistake = id.mistake(Code::UnknownName, format!("no provider {}", shown(&id.value, "of this name")));
        let names: Vec<&str> = providers.keys().map(ProviderId::as_str).collect();
        return Err(match suggest(&id.value, &names) {
            Some(hint) => mistake.hint(hint),
            None => mistake,
        });
    };
    if built.provider.protocol == Protocol::DiHmac {
        let mistake = id.mistake(Code::Conflict, "the provider speaks di-hmac, which knows no traceparent");
        return Err(mistake.hint("remove it"));
    }
    Ok(known.clone())
}
