//! `/dashboard`: one page with its script and its style, all three in the binary, and the JSON they read.
//!
//! The page is the same for everybody and shows nothing by itself, so it needs no token; what it shows comes from
//! `/api/overview`, which does. It may load nothing from elsewhere and run nothing but its own script. Nothing here is
//! computed before somebody asks.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::status::{Status, status};
use super::{Admin, typed};
use crate::domain::clock;
use crate::telemetry::catalog::{self, Row};
use crate::telemetry::samples::{Reading, Sample};

/// Nothing but this listener's own script, style and JSON.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const OPENER: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// What the page reads of the metrics.
static SHOWN: &[&Row] = &[
    &catalog::REQUESTS,
    &catalog::REQUEST_DURATION,
    &catalog::OVERHEAD,
    &catalog::UPSTREAM_ATTEMPTS,
    &catalog::UPSTREAM_DURATION,
    &catalog::FIRST_CONTENT,
    &catalog::FAILOVERS,
    &catalog::STREAM_OUTCOMES,
    &catalog::CACHE_EVENTS,
    &catalog::SHED,
    &catalog::DECISIONS,
    &catalog::TOKENS,
    &catalog::COST,
    &catalog::EXTRA_COST,
    &catalog::UNPRICED,
    &catalog::OUTCOMES,
    &catalog::AUDIT_COMMIT,
    &catalog::AUDIT_BACKLOG,
    &catalog::AUDIT_UNRECORDED,
    &catalog::AUDIT_EXPIRED,
    &catalog::WEBHOOK_NOTICES,
    &catalog::CONFIG_RELOADS,
    &catalog::CONNECTIONS_OPEN,
    &catalog::PANICS,
    &catalog::LOG_DROPPED,
];

/// A file of the page, if this is the path of one.
pub(super) fn file(path: &str) -> Option<Response<Full<Bytes>>> {
    let (media_type, text) = match path {
        "/dashboard" => ("text/html; charset=utf-8", include_str!("dashboard.html")),
        "/dashboard.js" => ("text/javascript; charset=utf-8", include_str!("dashboard.js")),
        "/dashboard.css" => ("text/css; charset=utf-8", include_str!("dashboard.css")),
        _ => return None,
    };
    let mut response = typed(StatusCode::OK, media_type, text);
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (OPENER, "same-origin"),
        (RESOURCE, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}

/// `/api/overview`: the status page, what the metrics hold, and what snippets need.
#[derive(Serialize)]
pub(super) struct Overview {
    /// RFC 3339.
    at: String,
    /// Where applications connect, as a URL.
    data: String,
    status: Status,
    /// `kept`, `unavailable` (a risk route would refuse) or `off`.
    record: &'static str,
    /// By metric; series that never counted anything are absent.
    series: BTreeMap<&'static str, Vec<Value>>,
}

/// Describes the present.
pub(super) fn overview(admin: &Admin) -> Overview {
    let mut series: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for sample in admin.shared.metrics.samples(SHOWN) {
        series.entry(sample.row.name).or_default().push(spelled(sample));
    }
    let record = admin.shared.clerk.as_ref().map_or("off", |clerk| match clerk.records().reader() {
        Some(_) => "kept",
        None => "unavailable",
    });
    Overview { at: clock::rfc3339(clock::unix_ms()), data: admin.data.clone(), status: status(admin), record, series }
}

/// Percentiles are over everything since the start; buckets let a reader of two answers have those of the time between.
fn spelled(sample: Sample) -> Value {
    let labels = sample.row.labels.iter().map(|&name| name.to_owned());
    let labels: Map<_, _> = labels.zip(sample.labels.into_iter().map(Value::from)).collect();
    match sample.reading {
        Reading::Number(value) => json!({ "labels": labels, "value": value }),
        Reading::Observed(observed) => json!({
            "labels": labels,
            "count": observed.count,
            "sum": observed.sum,
            "p50": observed.quantile(0.50),
            "p95": observed.quantile(0.95),
            "p99": observed.quantile(0.99),
            "buckets": observed.cumulative,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s14_the_page_names_no_other_place() {
        for path in ["/dashboard", "/dashboard.js", "/dashboard.css"] {
            assert!(file(path).is_some(), "{path}");
        }
        for text in [include_str!("dashboard.html"), include_str!("dashboard.js"), include_str!("dashboard.css")] {
            let elsewhere = [
                "https:",
                "//cdn",
                "@import",
                "innerHTML",
                "eval(",
                "<script>",
                "<style",
                " style=\"",
                "onclick=",
                "localStorage",
            ];
            for word in elsewhere {
                assert!(!text.contains(word), "{word}");
            }
        }
    }
}
