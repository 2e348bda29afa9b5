//! Commands that ask a running proxy whose admin listener speaks TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::harness::certificates::{Authority, until};
use crate::process::{Ended, Sandbox, Site, run, weighbridge};
use crate::takeover::Served;

struct Secured {
    site: Site,
    served: Served,
    authority: Authority,
    _upstream: Sandbox,
}

fn secured(make: impl Fn(&Authority, &Path)) -> Secured {
    let upstream = Sandbox::start(&Site::new(), &[]);
    let site = Served::site(&upstream);
    let authority = Authority::new("ours");
    make(&authority, &site.path("."));
    authority.own.write(&site.path("."), "authority");
    Authority::new("theirs").own.write(&site.path("."), "other");
    let served = Served::start(&site, &upstream, &["--tls-cert", "own.pem", "--tls-key", "own.key", "--admin-tls"]);
    Secured { site, served, authority, _upstream: upstream }
}

fn issued() -> Secured {
    secured(|authority, folder| drop(authority.issue("proxy.example", &until(2099)).write(folder, "own")))
}

impl Secured {
    fn at(&self, host: &str) -> String {
        format!("https://{host}:{}", self.served.admin.port())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = weighbridge();
        command.current_dir(self.site.path(".")).args(arguments);
        command
    }

    fn explain(&self, more: &[&str]) -> Ended {
        run(self.command(&["explain", "--model", "steady"]).args(more))
    }
}

#[test]
fn explain_and_diff_ask_over_tls_and_believe_the_certificate_or_its_authority() {
    let secured = issued();
    let (address, name) = (secured.at("127.0.0.1"), secured.at("localhost"));
    for more in [[&address, "--ca", "own.pem"], [&address, "--ca", "authority.pem"], [&name, "--ca", "authority.pem"]] {
        let told = secured.explain(&[&["--admin"], &more[..]].concat());
        assert_eq!(told.code, Some(0), "{more:?}: {told:?}");
        assert!(told.out.contains("tokenmix/steady"), "{told:?}");
    }
    let same = run(&mut secured.command(&["diff", "routes.toml", "--admin", &address, "--ca", "own.pem"]));
    assert_eq!((same.code, same.out.trim()), (Some(0), "nothing would change"), "{same:?}");
    // What the service's own environment says is enough.
    let variables = [("WEIGHBRIDGE_TLS_CERT", "own.pem"), ("WEIGHBRIDGE_ADMIN_TLS", "true")];
    let told = run(secured.command(&["explain", "--model", "steady", "--admin", &address]).envs(variables));
    assert_eq!(told.code, Some(0), "{told:?}");
    let usual = run(secured.command(&["explain", "--model", "steady", "--admin"]).envs(variables));
    // Whoever is there, or nobody: it is the usual address.
    assert!(usual.code == Some(0) || usual.err.contains("127.0.0.1:9090") || usual.err.contains("--ca"), "{usual:?}");
}

#[test]
fn a_certificate_nobody_vouches_for_is_refused_and_the_token_is_not_shown_to_it() {
    let secured = issued();
    let address = secured.at("127.0.0.1");
    for more in [&["--admin", &address][..], &["--admin", &address, "--ca", "other.pem"]] {
        let told = run(secured
            .command(&["explain", "--model", "steady"])
            .args(more)
            .env("WEIGHBRIDGE_ADMIN_TOKEN", "a-token-of-thirty-two-characters"));
        assert_eq!((told.code, told.out.as_str()), (Some(1), ""), "{more:?}: {told:?}");
        assert!(told.err.contains("give its file with --ca"), "{told:?}");
    }
    for (file, why) in [("nowhere.pem", "no certificate can be read"), ("routes.toml", "there is none in it")] {
        let told = secured.explain(&["--admin", &address, "--ca", file]);
        assert_eq!(told.code, Some(1));
        assert!(told.err.contains(why) && told.err.contains(file), "{told:?}");
    }
    let clear = secured.explain(&["--admin", &format!("http://127.0.0.1:{}", secured.served.admin.port())]);
    assert_eq!(clear.code, Some(1));
    assert!(clear.err.contains("https"), "{clear:?}");
}

/// As `openssl req -x509` makes them: its own authority, for a name that is not the address, and out of date.
#[test]
fn a_certificate_that_signed_itself_is_believed_if_it_is_the_file() {
    let secured = secured(|authority, folder| drop(authority.own.write(folder, "own")));
    let told = secured.explain(&["--admin", &secured.at("127.0.0.1"), "--ca", "own.pem"]);
    assert_eq!(told.code, Some(0), "{told:?}");
}

#[test]
fn tail_follows_over_tls() {
    let secured = issued();
    let mut command = secured.command(&["tail", "--admin", &secured.at("127.0.0.1"), "--ca", "own.pem"]);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Until it is heard of.
    let stop = Arc::new(AtomicBool::new(false));
    let asking = {
        let (stop, to) = (stop.clone(), secured.served.data);
        let mut roots = RootCertStore::empty();
        roots.add(secured.authority.own.der.clone().into()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                unknown_caller(&config, to);
                thread::sleep(Duration::from_millis(50));
            }
        })
    };
    let line = lines.next().unwrap().unwrap();
    stop.store(true, Ordering::SeqCst);
    asking.join().unwrap();
    let _ = child.kill();
    let _ = child.wait();
    assert!(line.contains("401") && line.contains("unauthorised"), "{line}");
}

/// Somebody without a key.
fn unknown_caller(config: &Arc<ClientConfig>, to: SocketAddr) {
    let connection = ClientConnection::new(Arc::clone(config), ServerName::from(to.ip())).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(to).unwrap());
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[test]
fn doctor_sees_a_proxy_behind_tls() {
    let secured = issued();
    let (data, admin) = (secured.served.data.to_string(), secured.served.admin.to_string());
    let told = |more: &[&str]| {
        let mut command = secured.command(&["doctor", "--json", "--listen", &data, "--admin-listen", &admin]);
        let ended = run(command.args(more));
        let told: Value = serde_json::from_str(&ended.out).unwrap();
        let checks = told["checks"].as_array().unwrap();
        let verdict = |name: &str| checks.iter().find(|check| check["check"] == name).unwrap()["verdict"].clone();
        (verdict("admin port"), verdict("data port"))
    };
    assert_eq!(told(&["--ca", "own.pem"]), ("OK".into(), "OK".into()));
    assert_eq!(told(&["--ca", "own.pem", "--admin-tls"]), ("OK".into(), "OK".into()));
    assert_eq!(told(&[]), ("WARN".into(), "WARN".into()), "somebody who speaks TLS");
}
