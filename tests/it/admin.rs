//! The admin plane over its own port: health, metrics, status, and who may see them.

use std::collections::HashMap;

use serde_json::json;
use weighbridge::telemetry::catalog::{Kind, TABLE};

use crate::process::{Client, Sandbox, Site, run, weighbridge};

const PATHS: [&str; 4] = ["/livez", "/readyz", "/metrics", "/status.json"];

fn field(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn health_is_plain_text_that_is_never_stored() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    for (path, body) in [("/livez", "alive\n"), ("/readyz", "ready\n")] {
        let answer = sandbox.admin_get(path);
        assert_eq!((answer.status, answer.body.as_str()), (200, body));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    }
    assert_eq!(sandbox.admin_get("/").status, 404);
}

/// Rows whose series need a name that only traffic or a merchant's budget gives.
const AFTER_TRAFFIC: [&str; 11] = [
    "weighbridge_failovers_total",
    "weighbridge_risk_score",
    "weighbridge_velocity_events_total",
    "weighbridge_velocity_keys",
    "weighbridge_cost_micro_total",
    "weighbridge_extra_cost_micro_total",
    "weighbridge_merchant_budget_limit_micro",
    "weighbridge_merchant_budget_spent_micro",
    "weighbridge_merchant_budget_reserved_micro",
    "weighbridge_features_dropped_total",
    "weighbridge_tls_certificate_expiry_timestamp_seconds",
];

#[test]
fn metrics_are_prometheus_text_with_every_row_of_the_catalogue_from_the_start() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let answer = sandbox.admin_get("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4"));
    let samples = parse(&answer.body);
    let missing: Vec<_> = TABLE.iter().map(|row| row.name).filter(|name| !samples.contains_key(*name)).collect();
    assert_eq!(missing, AFTER_TRAFFIC, "at the start");
    assert!(!answer.body.contains(&sandbox.key));

    sandbox.chat("sandbox/fail-503", &json!({}));
    assert!(parse(&sandbox.admin_get("/metrics").body).contains_key("weighbridge_failovers_total"));
}

/// Names of families with their number of samples. Panics at anything that is not the text format.
fn parse(text: &str) -> HashMap<String, usize> {
    let (mut kinds, mut samples) = (HashMap::new(), HashMap::new());
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (word, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            match word {
                "HELP" => assert!(rest.ends_with('.'), "{line}"),
                "TYPE" => assert!(kinds.insert(name.to_owned(), rest.to_owned()).is_none(), "{line} twice"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let (name, labels) = series.split_once('{').map_or((series, ""), |(name, labels)| (name, labels));
        assert!(labels.is_empty() || labels.ends_with("\"}"), "{line}");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let family = family.filter(|family| kinds.get(*family).is_some_and(|kind| kind == "histogram")).unwrap_or(name);
        let kind = kinds.get(family).unwrap_or_else(|| panic!("{line} comes before its TYPE"));
        let row = TABLE.iter().find(|row| row.name == family).unwrap_or_else(|| panic!("{line}: not in the catalogue"));
        let expected = match row.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        assert_eq!(kind, expected, "{line}");
        *samples.entry(family.to_owned()).or_default() += 1;
    }
    samples
}

#[test]
fn status_says_what_is_in_force_and_how_it_does() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let status = sandbox.status();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["config_hash"].as_str().unwrap().len(), 12);
    assert!(status["config_age_seconds"].as_u64().unwrap() < 10);
    assert_eq!((&status["draining"], &status["in_flight"]), (&json!(false), &json!(0)));
    assert_eq!(status["last_reload"], json!({ "at": null, "errors": [], "rendered": [] }));
    let of = |kind: &str, id: &str| {
        let found = status[kind].as_array().unwrap().iter().find(|known| known["id"] == id).cloned();
        found.unwrap_or_else(|| panic!("{kind} {id}"))
    };
    let candidate =
        |upstream: &str| json!({ "upstream": upstream, "breaker": "closed", "standing": "well", "paused_for_ms": 0 });
    let candidates = [candidate("tokenmix/deepseek-chat"), candidate("openrouter/deepseek-chat")];
    assert_eq!(
        of("routes", "summary"),
        json!({ "id": "summary", "order": "as-listed", "in_flight": 0, "candidates": candidates })
    );
    assert_eq!(of("routes", "risk")["candidates"], json!([candidate("alipay")]));
    assert_eq!(of("providers", "tokenmix"), json!({ "id": "tokenmix", "in_flight": 0, "limit": 200 }));
    assert_eq!(of("callers", "backoffice"), json!({ "id": "backoffice", "in_flight": 0 }));
    assert!(!status.to_string().contains(&sandbox.key));
}

#[test]
fn s14_a_page_that_resolves_its_own_name_to_loopback_sees_nothing() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    for host in ["evil", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0", "metadata.internal"] {
        for path in PATHS.iter().chain(&["/-/reload"]) {
            let answer = Client::to(sandbox.admin).call("GET", path, &[field("host", host)], "").unwrap();
            assert_eq!(answer.status, 421, "{host} {path}");
            assert_eq!(answer.body, "use localhost or a loopback address as host\n");
        }
    }
    for host in ["localhost", "127.0.0.1:9090", "[::1]:1", "LocalHost:80"] {
        let answer = Client::to(sandbox.admin).call("GET", "/livez", &[field("host", host)], "").unwrap();
        assert_eq!(answer.status, 200, "{host}");
    }
}

#[test]
fn s14_nothing_of_the_admin_plane_is_on_the_data_port() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let key = field("authorization", &format!("Bearer {}", sandbox.key));
    for path in PATHS.iter().chain(&["/-/reload", "/-/explain", "/dashboard", "/api/decisions"]) {
        for headers in [&[][..], std::slice::from_ref(&key)] {
            for method in ["GET", "POST"] {
                let answer = sandbox.client().call(method, path, headers, "").unwrap();
                assert_eq!(answer.status, 404, "{method} {path}: {answer:?}");
            }
        }
    }
}

#[test]
fn s14_a_caller_key_opens_nothing_on_an_admin_port_with_a_token() {
    let token = "an-admin-token-of-some-length";
    let site = Site::new();
    let sandbox = Sandbox::start_with(&site, &[("WEIGHBRIDGE_ADMIN_TOKEN", token)], &[]);
    let get =
        |headers: &[(String, String)]| Client::to(sandbox.admin).call("GET", "/status.json", headers, "").unwrap();
    for bearer in [None, Some(sandbox.key.as_str()), Some(""), Some("an-admin-token-of-some-lengt")] {
        let headers: Vec<_> = bearer.map(|key| field("authorization", &format!("Bearer {key}"))).into_iter().collect();
        let refused = get(&headers);
        assert_eq!((refused.status, refused.body.contains("config_hash")), (401, false), "{bearer:?}");
        assert!(!refused.body.contains(token));
    }
    let granted = get(&[field("authorization", &format!("Bearer {token}"))]);
    assert_eq!(granted.status, 200);
    // The token is for operators: it opens nothing on the data port.
    let data = sandbox.client().call("GET", "/v1/models", &[field("authorization", &format!("Bearer {token}"))], "");
    assert_eq!(data.unwrap().status, 401);
    assert!(!sandbox.log().contains(token));
}

#[test]
fn a_known_path_with_another_method_is_405_and_says_which() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    for path in PATHS {
        for method in ["POST", "PUT", "DELETE"] {
            let answer = Client::to(sandbox.admin).call(method, path, &[], "").unwrap();
            assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
        }
        // Load balancers ask this way.
        let mut client = Client::to(sandbox.admin);
        let head = client.head_of(path);
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
    }
    let answer = sandbox.admin_get("/-/reload");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    assert_eq!(sandbox.metric(r#"weighbridge_config_reloads_total{result="success"}"#), 0.0, "a GET changes nothing");
}

#[test]
fn the_version_says_what_is_running() {
    let told = run(weighbridge().arg("--version"));
    assert_eq!((told.code, told.out), (Some(0), format!("weighbridge {}\n", env!("CARGO_PKG_VERSION"))));
}
