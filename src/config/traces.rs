//! Where traces go, which ones, and who else may learn of them.
//!
//! The destination comes from the configuration alone: OpenTelemetry's own environment variables are not read, because
//! they would send the names of callers and routes somewhere that no `weighbridge check` has seen. In the sandbox, where
//! nothing may leave the machine, only a collector at a private address remains.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::address::{self, Reach};
use super::checks;
use super::descriptor::{Builder, Built};
use super::error::Code;
use super::raw::provider::{AuthKind, RawAuth};
use super::raw::traces::RawTraces;
use super::read::{shown, suggest};
use super::report::{Field, Mistake, accept};
use super::secrets::Use;
use super::table::{Auth, BaseUrl, Protocol, Traces};
use crate::domain::id::ProviderId;

/// Below the collector's address, as the protocol fixes it
/// (<https://opentelemetry.io/docs/specs/otlp/#otlphttp-request>, read Nov 2026).
const PATH: &str = "/v1/traces";
/// One new trace in ten.
const DEFAULT_SHARE: u32 = 100_000;
const DEFAULT_QUEUE: usize = 2_048;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::table::RoutingTable;
    use crate::config::tests::{LLM, Map, RISK, compile_with, file, sources, table_of};
    use crate::config::{Rewire, TableDiff};

    fn rewired(otlp: &str) -> RoutingTable {
        let loopback: &Rewire<'_> =
            &|_, _| BaseUrl { tls: false, host: "127.0.0.1".into(), port: 9, path: String::new() };
        let routes = format!("version = 1\n[traces]\notlp = \"{otlp}\"\n");
        compile_with(&sources(&routes, &[LLM, RISK]), &Map::default(), Some(loopback)).unwrap()
    }

    #[test]
    fn what_is_not_said_has_a_default_and_the_protocols_path_is_added() {
        let table = table_of("[traces]\notlp = \"http://localhost:4318\"\n");
        let traces = table.traces().unwrap();
        assert_eq!((traces.url.authority().as_str(), traces.url.path.as_str()), ("localhost:4318", "/v1/traces"));
        assert_eq!((traces.share, traces.queue, traces.timeout), (100_000, 2_048, Duration::from_secs(10)));
        assert!(traces.forward_to.is_empty() && traces.header_fields().is_empty());
        assert!(table_of("").traces().is_none());
    }

    #[test]
    fn a_credential_goes_into_a_header_that_is_never_shown() {
        let auth = "auth = { kind = \"bearer\", secret_env = \"OTLP_TOKEN\" }\nheaders = { x-scope = \"shop\" }";
        let table = table_of(&format!("[traces]\notlp = \"https://collector.example/shop/\"\n{auth}\n"));
        let traces = table.traces().unwrap();
        assert_eq!(traces.url.path, "/shop/v1/traces");
        let fields = traces.header_fields();
        let [(plain, value), (name, credential)] = fields.as_slice() else { panic!("{fields:?}") };
        assert_eq!((plain.as_str(), value.as_bytes()), ("x-scope", b"shop".as_slice()));
        assert_eq!(
            (name.as_str(), credential.to_str().unwrap()),
            ("authorization", &*format!("Bearer {}", "4f".repeat(32)))
        );
        assert!(credential.is_sensitive() && !format!("{traces:?}").contains("4f4f"));
    }

    #[test]
    fn in_the_sandbox_only_a_collector_nearby_is_told_anything() {
        assert!(rewired("http://127.0.0.1:4318").traces().is_some());
        assert!(rewired("https://collector.example").traces().is_none());
    }

    #[test]
    fn two_tables_of_traces_are_a_mistake_and_one_may_be_an_overlays() {
        let part = "[traces]\notlp = \"http://localhost:4318\"\n";
        let mut two = sources("version = 1\n", &[LLM, RISK]);
        two.routes.push(file("routes.d/10.toml", part));
        assert!(compile_with(&two, &Map::default(), None).unwrap().traces().is_some());
        two.routes.push(file("routes.d/20.toml", part));
        let told = compile_with(&two, &Map::default(), None).unwrap_err();
        let told: Vec<_> = told.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["routes.d/20.toml:1:1: [traces] occurs twice (traces); first at routes.d/10.toml:1"]);
    }

    #[test]
    fn a_diff_tells_of_traces_without_their_secret() {
        let traces = |more: &str| table_of(&format!("[traces]\notlp = \"http://localhost:4318\"\n{more}\n"));
        let (off, on) = (table_of(""), traces(""));
        assert_eq!(TableDiff::between(&off, &on).to_string(), "+ traces\n");
        assert_eq!(TableDiff::between(&on, &off).to_string(), "- traces\n");
        let (bearer, sampled) = (traces("auth = { kind = \"bearer\", secret_env = \"A\" }"), traces("sample = 1"));
        assert_eq!(TableDiff::between(&on, &bearer).to_string(), "~ traces: auth, secret\n");
        assert_eq!(TableDiff::between(&on, &sampled).in_full(), "~ traces\n    sample: 10 % → 100 %\n");
        assert_ne!(on.version(), bearer.version());
    }
}
