//! Connections to providers as the built program makes them: where they lead (S5, S6), whom they believe (T7), what they
//! show, and HTTP/2. Every provider here is a real listener that writes down all it hears.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::peers::*;
use crate::harness::certificates::{Authority, Issued, until};
use crate::process::{Answer, Client, PATIENCE, Site, run, wait_until, weighbridge};
use crate::takeover::Served;

mod hostile;
mod peers;
mod revoked;

const KEY: &str = "wb-outbound-0123456789abcdef";

/// A provider file: its name, its address, and more of its keys.
fn provider(site: &Site, name: &str, base: &str, more: &str) {
    let text = format!(
        "id = \"{name}\"\nprotocol = \"openai\"\nbase_url = \"{base}/v1\"\nallow_private = true\n\
         source = {{ url = \"https://weighbridge.invalid/test\", checked = \"2026-11-22\" }}\n\
         auth = {{ kind = \"bearer\", secret_env = \"{}_KEY\" }}\noperations = [\"chat.completions\"]\n{more}\n\
         [[model]]\nid = \"m\"\n",
        name.to_uppercase()
    );
    site.replace(&format!("providers/{name}.toml"), &text);
}

fn credential(name: &str) -> String {
    format!("Bearer sk-of-{name}-0123456789")
}

/// A folder whose route `m` has these candidates, in this order.
fn site(candidates: &[&str]) -> Site {
    let site = Site::new();
    std::fs::remove_dir_all(site.path("providers")).unwrap();
    std::fs::create_dir(site.path("providers")).unwrap();
    let digest: String = Sha256::digest(KEY).iter().map(|byte| format!("{byte:02x}")).collect();
    let listed: Vec<String> = candidates.iter().map(|name| format!("\"{name}/m\"")).collect();
    site.write(
        "routes.toml",
        &format!(
            "version = 1\n[[caller]]\nid = \"shop\"\nkey_digest = \"sha256:{digest}\"\nallow = [\"*\"]\n[model.m]\n\
             candidates = [{}]\ntimeouts = {{ total = \"5s\", connect = \"1s\" }}\n",
            listed.join(", ")
        ),
    );
    site
}

fn command(site: &Site) -> Command {
    let mut command = weighbridge();
    command.current_dir(site.path(".")).args(["serve", "--log-format", "json", "--workers", "1"]);
    command.args(["--drain-timeout", "1s", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    for name in ["alpha", "beta"] {
        command.env(format!("{}_KEY", name.to_uppercase()), credential(name).trim_start_matches("Bearer "));
    }
    command
}

fn start(site: &Site) -> Served {
    Served::spawn(&mut command(site))
}

fn chat(served: &Served) -> Answer {
    Client::to(served.data).chat(KEY, "m", &json!({})).unwrap()
}

fn said(answer: &Answer) -> String {
    answer.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
}

/// Waits until a reload with this text in its effect.
fn until_version_changes(served: &Served, before: &Value) {
    wait_until(PATIENCE, "the reload", || served.status()["config_hash"] != *before);
}

fn version(served: &Served) -> Value {
    served.status()["config_hash"].clone()
}

#[test]
fn s5_a_redirect_leads_nowhere_and_takes_no_credential_along() {
    let runtime = runtime();
    let canary = Upstream::new(&runtime, None, saying("stolen"));
    let elsewhere = canary.address;
    let turn = AtomicUsize::new(0);
    let redirecting = Upstream::new(
        &runtime,
        None,
        Arc::new(move |_| {
            let status = [301, 302, 303, 307, 308][turn.fetch_add(1, Ordering::SeqCst) % 5];
            let head = Response::builder().status(status).header("location", format!("http://{elsewhere}/v1/x"));
            head.header("alt-svc", format!("h2=\"{elsewhere}\"")).body(Full::default()).unwrap()
        }),
    );
    let site = site(&["alpha"]);
    provider(&site, "alpha", &format!("http://{}", redirecting.address), "");
    let served = start(&site);
    for _ in 0..5 {
        let answer = chat(&served);
        assert!(answer.status >= 500 && !answer.body.contains("stolen"), "{answer:?}");
        assert!(answer.header("location").is_none());
    }
    assert!(redirecting.seen().len() >= 5);
    assert_eq!((canary.connections(), canary.seen().len()), (0, 0));
    served.stop();
}

#[test]
fn s6_proxies_named_in_the_environment_are_not_asked() {
    let runtime = runtime();
    let canary = Upstream::new(&runtime, None, saying("stolen"));
    let authority = Authority::new("authority");
    let own = authority.issue("provider", &until(2099));
    let secure = Upstream::new(&runtime, Some(tls(&own, &[], None)), saying("secure"));
    let plain = Upstream::new(&runtime, None, saying("plain"));
    let site = site(&["alpha"]);
    std::fs::write(site.path("ca.pem"), authority.own.cert_pem()).unwrap();
    let proxy = format!("http://{}", canary.address);
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "SOCKS_PROXY"];
    for (base, more, word) in [
        (format!("http://{}", plain.address), "", "plain"),
        (format!("https://{}", secure.address), "tls = { ca = \"ca.pem\" }", "secure"),
    ] {
        provider(&site, "alpha", &base, more);
        let mut command = command(&site);
        let served = Served::spawn(command.envs(names.map(|name| (name, &proxy))).env("NO_PROXY", ""));
        assert_eq!(said(&chat(&served)), word);
        served.stop();
    }
    assert_eq!(canary.connections(), 0);
}

#[test]
fn s6_nothing_a_caller_writes_names_where_a_request_goes() {
    let runtime = runtime();
    let (alpha, canary) =
        (Upstream::new(&runtime, None, saying("alpha")), Upstream::new(&runtime, None, saying("stolen")));
    let site = site(&["alpha"]);
    provider(&site, "alpha", &format!("http://{}", alpha.address), "");
    let served = start(&site);
    let elsewhere = canary.address.to_string();
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }] }).to_string();
    for path in ["/v1/chat/completions".to_owned(), format!("http://{elsewhere}/v1/chat/completions")] {
        for name in ["x-forwarded-host", "x-forwarded-proto", "x-original-url", "forwarded", "host", "x-host", "via"] {
            let headers = [
                ("authorization".to_owned(), format!("Bearer {KEY}")),
                (name.to_owned(), elsewhere.clone()),
                ("x-api-base".to_owned(), format!("http://{elsewhere}/v1")),
            ];
            let answer = Client::to(served.data).call("POST", &path, &headers, &body).unwrap();
            // An address of somebody else's may be refused, and must not be followed.
            assert!(
                answer.status == 200 || answer.status < 500 && path.starts_with("http"),
                "{path} {name}: {answer:?}"
            );
        }
    }
    assert_eq!(canary.connections(), 0);
    let seen = alpha.seen();
    assert!(seen.len() >= 7);
    for seen in seen {
        let at = (seen.uri.as_str(), seen.host, seen.authorization);
        assert_eq!(at, ("/v1/chat/completions", alpha.address.to_string(), credential("alpha")));
    }
    served.stop();
}

struct Stop<'s>(&'s AtomicUsize);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(1, Ordering::SeqCst);
    }
}

#[test]
fn s5_a_credential_stays_with_its_address_while_addresses_are_swapped_under_load() {
    let runtime = runtime();
    // Slow enough that reloads happen between a request's beginning and its end, failing often enough to move on.
    let slow = |word: &'static str| -> Reply {
        let turn = AtomicUsize::new(0);
        Arc::new(move |_| {
            std::thread::sleep(Duration::from_millis(3));
            if turn.fetch_add(1, Ordering::SeqCst).is_multiple_of(3) {
                return Response::builder().status(503).body(Full::default()).unwrap();
            }
            answer(word)
        })
    };
    let (one, two) = (Upstream::new(&runtime, None, slow("one")), Upstream::new(&runtime, None, slow("two")));
    let site = site(&["alpha", "beta"]);
    // The path says whose request it is: whoever is named in it has to have sent its own credential.
    let write = |swapped: bool, http: &str| {
        let at = if swapped { [two.address, one.address] } else { [one.address, two.address] };
        for (name, address) in ["alpha", "beta"].into_iter().zip(at) {
            provider(&site, name, &format!("http://{address}/{name}"), http);
        }
    };
    write(false, "");
    let served = start(&site);
    let stop = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // Also when the test fails.
        let _stop = Stop(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while stop.load(Ordering::SeqCst) == 0 {
                    let _ = chat(&served);
                }
            });
        }
        for (swapped, http) in [(true, ""), (false, "http = \"2\""), (true, "http = \"2\""), (false, "")] {
            let before = version(&served);
            write(swapped, http);
            until_version_changes(&served, &before);
            std::thread::sleep(Duration::from_millis(150));
        }
    });
    for upstream in [&one, &two] {
        let seen = upstream.seen();
        assert!(seen.iter().any(|seen| seen.http2) && seen.iter().any(|seen| !seen.http2));
        for name in ["alpha", "beta"] {
            assert!(seen.iter().any(|seen| seen.uri.starts_with(&format!("/{name}/"))), "nobody asked {name} here");
        }
        for seen in seen {
            let owner = seen.uri.split('/').nth(1).unwrap();
            assert_eq!((seen.authorization, seen.host), (credential(owner), upstream.address.to_string()));
        }
    }
    served.stop();
}

#[test]
fn t7_a_certificate_that_is_not_believed_is_a_failover_and_hears_no_byte_of_a_request() {
    let runtime = runtime();
    let (trusted, other) = (Authority::new("trusted"), Authority::new("other"));
    let good = trusted.issue("provider", &until(2099));
    let expired = trusted.issue("provider", &["20200101000000Z".to_owned(), "20210101000000Z".to_owned()]);
    let foreign = other.issue("provider", &until(2099));
    let with = |own: &Issued| Upstream::new(&runtime, Some(tls(own, &[], None)), saying("never"));
    let plaintext = Upstream::new(&runtime, None, saying("never"));
    let (expired, foreign, itself, wrong) = (with(&expired), with(&foreign), with(&other.own), with(&good));
    let beta = Upstream::new(&runtime, None, saying("beta"));
    let cases = [
        ("expired", &expired, "127.0.0.1", "certificate has expired"),
        ("of another authority", &foreign, "127.0.0.1", "of no authority that is trusted"),
        ("signed by itself", &itself, "127.0.0.1", "provider's certificate"),
        // The certificate is for 127.0.0.1 and localhost.
        ("for another name", &wrong, "127.0.0.2", "is for another name"),
        ("plain", &plaintext, "127.0.0.1", "no TLS handshake with the provider"),
    ];
    for (what, upstream, host, told) in cases {
        let site = site(&["alpha", "beta"]);
        std::fs::write(site.path("ca.pem"), trusted.own.cert_pem()).unwrap();
        let port = upstream.address.port();
        // 127.0.0.2 leads to a listener of its own there.
        let forwarded = (host != "127.0.0.1").then(|| forward(&runtime, host, upstream.address));
        let port = forwarded.map_or(port, |address| address.port());
        provider(&site, "alpha", &format!("https://{host}:{port}"), "[tls]\nca = \"ca.pem\"\n");
        provider(&site, "beta", &format!("http://{}", beta.address), "");
        let served = start(&site);
        for _ in 0..8 {
            let answer = chat(&served);
            assert_eq!((answer.status, said(&answer).as_str()), (200, "beta"), "{what}");
        }
        assert!(upstream.seen().is_empty(), "{what}: {:?}", upstream.seen());
        let tried = upstream.connections();
        assert!((1..=6).contains(&tried), "{what}: the breaker leaves it alone after a few, it was {tried}");
        wait_until(PATIENCE, what, || served.log().contains(told));
        served.stop();
    }
}

#[test]
fn t7_only_a_providers_own_authorities_count_and_a_new_file_counts_for_new_connections() {
    let runtime = runtime();
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let secure = |authority: &Authority| {
        let own = authority.issue("provider", &until(2099));
        Upstream::new(&runtime, Some(tls(&own, &[], None)), saying("alpha"))
    };
    let (old, new) = (secure(&first), secure(&second));
    let beta = Upstream::new(&runtime, None, saying("beta"));
    let site = site(&["alpha", "beta"]);
    std::fs::write(site.path("ca.pem"), first.own.cert_pem()).unwrap();
    provider(&site, "beta", &format!("http://{}", beta.address), "");
    provider(&site, "alpha", &format!("https://{}", old.address), "tls = { ca = \"ca.pem\" }");
    let served = start(&site);
    assert_eq!(said(&chat(&served)), "alpha");
    // The same provider, and then nobody's certificate but the second authority's.
    let before = version(&served);
    site.replace("ca.pem", &second.own.cert_pem());
    until_version_changes(&served, &before);
    assert_eq!(said(&chat(&served)), "beta", "a kept connection is not used on");
    let before = version(&served);
    provider(&site, "alpha", &format!("https://{}", new.address), "tls = { ca = \"ca.pem\" }");
    until_version_changes(&served, &before);
    assert_eq!(said(&chat(&served)), "alpha");
    // A file that cannot be read leaves all as it is.
    site.replace("ca.pem", "no certificate at all");
    wait_until(PATIENCE, "the refusal", || served.status().to_string().contains("no certificate in PEM form"));
    assert_eq!(said(&chat(&served)), "alpha");
    for trust in ["system", "bundled"] {
        site.replace("ca.pem", &second.own.cert_pem());
        let before = version(&served);
        provider(&site, "alpha", &format!("https://{}", new.address), &format!("tls = {{ trust = \"{trust}\" }}"));
        until_version_changes(&served, &before);
        assert_eq!(said(&chat(&served)), "beta", "{trust} roots do not have the test's authority");
    }
    served.stop();
}

#[test]
fn a_client_certificate_is_shown_and_a_renewed_one_counts_without_a_restart() {
    let runtime = runtime();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let own = servers.issue("provider", &until(2099));
    let alpha = Upstream::new(&runtime, Some(tls(&own, &["h2", "http/1.1"], Some(&clients))), saying("alpha"));
    let site = site(&["alpha"]);
    std::fs::write(site.path("ca.pem"), servers.own.cert_pem()).unwrap();
    let issue = || {
        let issued = clients.issue("us", &until(2099));
        site.replace("us.pem", &issued.cert_pem());
        site.replace("us.key", &issued.key_pem());
        std::fs::set_permissions(site.path("us.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        issued.sha256()
    };
    for http in ["1.1", "2"] {
        let first = issue();
        let settings =
            format!("http = \"{http}\"\n[tls]\nca = \"ca.pem\"\nclient_cert = \"us.pem\"\nclient_key = \"us.key\"\n");
        provider(&site, "alpha", &format!("https://{}", alpha.address), &settings);
        let served = start(&site);
        let last = || alpha.seen().last().cloned().unwrap();
        assert_eq!(said(&chat(&served)), "alpha");
        assert_eq!((last().shown, last().http2), (Some(first), http == "2"));
        let before = version(&served);
        let second = issue();
        until_version_changes(&served, &before);
        wait_until(PATIENCE, "the new certificate", || {
            assert_eq!(chat(&served).status, 200);
            last().shown.as_ref() == Some(&second)
        });
        served.stop();
    }
    // Everybody's key is nobody's: refused with its place, before anything starts.
    std::fs::set_permissions(site.path("us.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let ended = run(command(&site).stdin(Stdio::null()));
    assert!(ended.err.contains("everybody on this machine can use the private key (tls.client_key)"), "{ended:?}");
    assert!(!ended.err.contains("BEGIN"));
}

#[test]
fn http_2_is_one_connection_for_all_and_a_provider_without_it_is_told_apart() {
    let runtime = runtime();
    let authority = Authority::new("authority");
    let own = authority.issue("provider", &until(2099));
    let alpha = Upstream::new(&runtime, Some(tls(&own, &["h2", "http/1.1"], None)), saying("alpha"));
    let old = Upstream::new(&runtime, Some(tls(&own, &["http/1.1"], None)), saying("never"));
    let older = Upstream::new(&runtime, Some(tls(&own, &[], None)), saying("never"));
    let beta = Upstream::new(&runtime, None, saying("beta"));
    let site = site(&["alpha", "beta"]);
    std::fs::write(site.path("ca.pem"), authority.own.cert_pem()).unwrap();
    let settings = "http = \"2\"\ntls = { ca = \"ca.pem\" }";
    provider(&site, "alpha", &format!("https://{}", alpha.address), settings);
    provider(&site, "beta", &format!("http://{}", beta.address), "");
    let served = start(&site);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..5).for_each(|_| assert_eq!(said(&chat(&served)), "alpha")));
        }
    });
    assert_eq!((alpha.connections(), alpha.seen().len()), (1, 40));
    assert!(alpha.seen().iter().all(|seen| seen.http2 && seen.host == alpha.address.to_string()));
    for without in [&old, &older] {
        let before = version(&served);
        provider(&site, "alpha", &format!("https://{}", without.address), settings);
        until_version_changes(&served, &before);
        assert_eq!(said(&chat(&served)), "beta");
        assert!(without.seen().is_empty());
    }
    wait_until(PATIENCE, "the reason in the log", || served.log().contains("does not agree on HTTP/2"));
    // Without TLS it is known beforehand.
    let before = version(&served);
    provider(&site, "alpha", &format!("http://{}", beta.address), "http = \"2\"");
    until_version_changes(&served, &before);
    assert_eq!(said(&chat(&served)), "beta");
    assert!(beta.seen().last().unwrap().http2);
    served.stop();
}

#[test]
fn the_settings_are_told_where_providers_are_and_the_doctor_uses_them() {
    let runtime = runtime();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let own = servers.issue("provider", &until(2099));
    let alpha = Upstream::new(
        &runtime,
        Some(tls(&own, &["h2"], Some(&clients))),
        Arc::new(|_| Response::builder().status(StatusCode::OK).body(Full::from("{\"data\":[]}")).unwrap()),
    );
    let site = site(&["alpha"]);
    std::fs::write(site.path("ca.pem"), servers.own.cert_pem()).unwrap();
    let issued = clients.issue("us", &until(2099));
    site.write("us.pem", &issued.cert_pem());
    std::fs::File::create(site.path("us.key")).unwrap().write_all(issued.key_pem().as_bytes()).unwrap();
    std::fs::set_permissions(site.path("us.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let settings = "http = \"2\"\n[tls]\nca = \"ca.pem\"\nclient_cert = \"us.pem\"\nclient_key = \"us.key\"\n";
    provider(&site, "alpha", &format!("https://{}", alpha.address), settings);
    let listed = run(weighbridge().current_dir(site.path(".")).arg("providers"));
    assert!(listed.out.contains("tls          own authorities (1), client certificate until 2099-01-01"), "{listed:?}");
    assert!(listed.out.contains("http         2"), "{listed:?}");
    let mut doctor = weighbridge();
    doctor.current_dir(site.path(".")).args(["doctor", "--json", "--data-dir", "kept"]);
    doctor.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    doctor.env("ALPHA_KEY", credential("alpha").trim_start_matches("Bearer "));
    let ended = run(&mut doctor);
    let told: Value = serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{ended:?}"));
    let of = |check: &str| told["checks"].as_array().unwrap().iter().find(|one| one["check"] == check).cloned();
    assert_eq!(of("alpha certificate").unwrap()["verdict"], "OK", "{told:#}");
    assert_eq!(of("alpha key").unwrap()["verdict"], "OK", "{told:#}");
    assert!(alpha.seen().iter().all(|seen| seen.http2 && seen.shown == Some(issued.sha256())));
}

/// A peer that speaks no HTTP at all still gets nothing of a request before TLS is agreed on.
#[test]
fn t7_a_peer_that_answers_tls_with_noise_hears_only_a_greeting() {
    let runtime = runtime();
    let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
    let told = Arc::clone(&heard);
    let address = runtime.listen("127.0.0.1", move |mut io| {
        let told = Arc::clone(&told);
        async move {
            let mut bytes = vec![0; 4096];
            for _ in 0..2 {
                let read = io.read(&mut bytes).await.unwrap_or(0);
                told.lock().unwrap().extend(&bytes[..read]);
                let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
            }
        }
    });
    let site = site(&["alpha"]);
    provider(&site, "alpha", &format!("https://{address}"), "");
    let served = start(&site);
    assert_eq!(chat(&served).status, 502);
    let heard = String::from_utf8_lossy(&heard.lock().unwrap()).into_owned();
    assert!(!heard.is_empty() && !heard.contains("POST") && !heard.contains("sk-of-alpha"));
    served.stop();
}
