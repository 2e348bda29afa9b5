//! The dashboard's files and its JSON over the admin port; how it looks is tested in a browser (`tests/sdk`).

use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{Answer, Client, Sandbox, Site, routes_with, wait_until};

const FILES: [&str; 3] = ["/dashboard", "/dashboard.js", "/dashboard.css"];
const TOKEN: &str = "an-admin-token-of-some-length";

fn overview(sandbox: &Sandbox) -> Value {
    sandbox.admin_get("/api/overview").json()
}

/// The one series of a metric with these labels.
fn series(overview: &Value, name: &str, labels: &Value) -> Value {
    let all = overview["series"][name].as_array().cloned().unwrap_or_default();
    let fits = |one: &&Value| labels.as_object().unwrap().iter().all(|(key, value)| one["labels"][key] == *value);
    all.iter().find(fits).cloned().unwrap_or_else(|| panic!("{name} {labels}: {all:?}"))
}

fn locked_down(answer: &Answer) {
    let policy = answer.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"),
        "{policy}"
    );
    assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"), "{policy}");
    for part in ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[test]
fn s14_the_page_may_run_and_load_nothing_but_its_own() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    for (path, media_type) in FILES.into_iter().zip(["text/html", "text/javascript", "text/css"]) {
        let answer = sandbox.admin_get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").unwrap().starts_with(media_type));
        locked_down(&answer);
        assert_eq!(Client::to(sandbox.admin).head_of(path).status, 200);
        let posted = Client::to(sandbox.admin).call("POST", path, &[], "").unwrap();
        assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")));
        let foreign = [("host".to_owned(), "evil.example".to_owned())];
        assert_eq!(Client::to(sandbox.admin).call("GET", path, &foreign, "").unwrap().status, 421, "{path}");
        assert_eq!(sandbox.client().call("GET", path, &[], "").unwrap().status, 404, "not on the data port");
    }
    let foreign = [("host".to_owned(), "evil.example".to_owned())];
    assert_eq!(Client::to(sandbox.admin).call("GET", "/api/overview", &foreign, "").unwrap().status, 421);
    assert_eq!(sandbox.client().call("GET", "/api/overview", &[], "").unwrap().status, 404);
}

#[test]
fn s14_with_a_token_the_empty_page_is_there_for_all_and_what_it_shows_is_not() {
    let sandbox = Sandbox::start_with(&Site::new(), &[("WEIGHBRIDGE_ADMIN_TOKEN", TOKEN)], &[]);
    for path in FILES {
        let answer = sandbox.admin_get(path);
        assert_eq!(answer.status, 200, "{path}");
        locked_down(&answer);
        let posted = Client::to(sandbox.admin).call("POST", path, &[], "").unwrap();
        assert_eq!(posted.status, 401, "{path}");
    }
    assert_eq!(sandbox.admin_get("/api/overview").status, 401);
    assert_eq!(sandbox.admin_get("/dashboard/").status, 401);
    let token = [("authorization".to_owned(), format!("Bearer {TOKEN}"))];
    let told = Client::to(sandbox.admin).call("GET", "/api/overview", &token, "").unwrap();
    assert_eq!(told.status, 200);
    assert!(!told.body.contains(TOKEN) && !told.body.contains(&sandbox.key));
}

#[test]
fn what_happened_is_in_the_overview_with_its_percentiles() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    for _ in 0..10 {
        sandbox.chat("sandbox/fail-503", &json!({}));
    }
    let told = overview(&sandbox);
    assert_eq!(told["data"], format!("http://{}", sandbox.data));
    assert_eq!(told["record"], "kept");
    assert_eq!(told["status"]["config_hash"], sandbox.version());
    let ok = series(&told, "weighbridge_requests_total", &json!({ "route": "sandbox/fail-503", "outcome": "ok" }));
    assert_eq!(ok["value"], 10.0);
    let took = series(&told, "weighbridge_request_duration_seconds", &json!({ "route": "sandbox/fail-503" }));
    assert_eq!(took["count"], 10);
    let of = |name: &str| took[name].as_f64().unwrap();
    assert!(0.0 < of("p50") && of("p50") <= of("p95") && of("p95") <= of("p99"), "{took}");
    assert_eq!(took["buckets"].as_array().unwrap().last().unwrap()[1], 10);
    let overhead = series(&told, "weighbridge_overhead_seconds", &json!({ "route": "sandbox/fail-503" }));
    assert!(overhead["p99"].as_f64().unwrap() <= of("p99") * 2.0, "{overhead}");
    let routes = told["status"]["routes"].as_array().unwrap();
    let failing = routes.iter().find(|route| route["id"] == "sandbox/fail-503").unwrap();
    assert_eq!(failing["candidates"][0]["breaker"], "open");
    assert!(!told.to_string().contains(&sandbox.key));
}

#[test]
fn what_can_run_out_and_who_is_let_in_is_told() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let told = overview(&sandbox)["status"]["overload"].clone();
    let disk = &told["disk_bytes"];
    assert!(disk["used"].as_u64() > Some(0) && disk["used"].as_u64() <= disk["limit"].as_u64(), "{told}");
    let classes = json!([
        { "class": "batch", "in_flight": 1400, "admitted": true },
        { "class": "low", "in_flight": 1600, "admitted": true },
        { "class": "normal", "in_flight": 1800, "admitted": true },
        { "class": "risk", "in_flight": 2000, "admitted": true },
    ]);
    assert_eq!(told["classes"], classes);
}

#[test]
fn what_never_happened_takes_no_room() {
    let sandbox = Sandbox::start(&Site::new(), &[]);
    let told = overview(&sandbox);
    assert_eq!(told["series"].get("weighbridge_requests_total"), None);
    assert_eq!(told["series"].get("weighbridge_decisions_total"), None);
}

#[test]
fn a_refused_reload_is_in_the_overview_with_place_and_caret() {
    let site = Site::new();
    let sandbox = Sandbox::start(&site, &[]);
    let broken =
        routes_with("more").replace("[model.more]\ncandidates = [\"tokenmix", "[model.more]\ncandidates = [\"nobody");
    site.replace("routes.toml", &broken);
    wait_until(Duration::from_secs(10), "the refusal", || {
        overview(&sandbox)["status"]["last_reload"]["errors"][0].is_object()
    });
    let told = overview(&sandbox)["status"]["last_reload"].clone();
    assert!(told["errors"][0]["line"].as_u64().unwrap() > 1 && told["errors"][0]["column"].as_u64().unwrap() > 1);
    assert!(told["rendered"][0].as_str().unwrap().contains('^'));
}
