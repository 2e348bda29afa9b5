//! TLS on real sockets: who is let in, what is agreed on, certificates that are renewed, and clients that show one.
//! Nothing here is paused, so limits are short where one is waited for.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weighbridge::gateway::certificates::{CertificateError, CertificateFiles, Certificates, ClientAuth, ClientFiles};
use weighbridge::gateway::stack;
use weighbridge::server::limits::ConnectionLimits;
use weighbridge::server::shutdown::Shutdown;
use weighbridge::server::{Server, ServerConfig, bind};

use crate::harness::certificates::{Authority, Issued, until};
use crate::harness::*;

/// A listener with a certificate of its own authority.
struct Tls {
    world: World,
    certificates: Arc<Certificates>,
    server: Server,
    authority: Authority,
    folder: TempDir,
}

impl Tls {
    fn new() -> Self {
        Self::with(&Plan::default(), None)
    }

    fn with(plan: &Plan, clients: Option<(&Authority, ClientAuth)>) -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("authority"));
        let (cert, key) = authority.issue("server", &until(2099)).write(folder.path(), "server");
        let clients =
            clients.map(|(authority, auth)| ClientFiles { ca: authority.own.write(folder.path(), "ca").0, auth });
        let world = World::with(plan);
        let files = CertificateFiles { cert, key, clients };
        let certificates = Arc::new(Certificates::load(files, Arc::clone(&world.metrics)).unwrap());
        let (source, limits) = (Arc::clone(&certificates), plan.limits);
        let config = ServerConfig {
            listener: bind("127.0.0.1:0".parse().unwrap()).unwrap(),
            workers: 1,
            limits: Arc::new(move || limits),
            tls: Some(Arc::new(move || Arc::clone(&source.now().data))),
            metrics: Arc::clone(&world.metrics),
            shutdown: Shutdown::new(),
        };
        let service = stack::ingress(&world.live, &world.shared);
        let server = Server::start(config, move |_| service.clone()).unwrap();
        Self { world, certificates, server, authority, folder }
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A client that trusts the authority, offers these protocols and shows this certificate.
    fn client(&self, protocols: &[&str], own: Option<&Issued>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.own.der.clone().into()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match own.map(Issued::for_rustls) {
            Some((cert, key)) => builder.with_client_auth_cert(vec![cert], key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    async fn connect(&self, config: &Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address()).await?;
        TlsConnector::from(Arc::clone(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
    }

    /// One chat over HTTP/1.
    async fn chat(&self, config: ClientConfig, key: &str) -> std::io::Result<Answer> {
        let io = self.connect(&Arc::new(config)).await?;
        Ok(Client::over(io).await.call(chat_request(key, &chat("duo"))).await)
    }

    /// The certificate that a new connection is shown.
    async fn shown(&self) -> Vec<u8> {
        let io = self.connect(&Arc::new(self.client(&[], None))).await.unwrap();
        io.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    fn ended(&self, reason: &str) -> f64 {
        self.world.metric("weighbridge_connections_ended_total", &[&format!("reason=\"{reason}\"")])
    }

    async fn eventually(&self, what: &str, truth: impl Fn(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(10);
        while !truth(self) {
            assert!(Instant::now() < until, "still not so: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn t6_both_versions_and_both_protocols_are_served_and_the_client_chooses() {
    let tls = Tls::new();
    for (offered, agreed) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let io = tls.connect(&Arc::new(tls.client(offered, None))).await.unwrap();
        let found = io.get_ref().1.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap());
        assert_eq!(found.as_deref(), agreed, "{offered:?}");
        if agreed == Some("h2") {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
            tokio::spawn(connection);
            let mut request = chat_request(SHOP, &streamed("duo"));
            *request.uri_mut() = "https://localhost/v1/chat/completions".parse().unwrap();
            request.headers_mut().remove("host");
            let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
            assert!(body.ends_with(b"data: [DONE]\n\n"));
        } else {
            Client::over(io).await.call(chat_request(SHOP, &chat("duo"))).await.assert_served("alpha", 1);
        }
    }
    let mut old = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates({
            let mut roots = RootCertStore::empty();
            roots.add(tls.authority.own.der.clone().into()).unwrap();
            roots
        })
        .with_no_client_auth();
    old.alpn_protocols = vec![b"http/1.1".to_vec()];
    tls.chat(old, SHOP).await.unwrap().assert_served("alpha", 1);
}

#[tokio::test]
async fn t6_nothing_is_accepted_before_the_handshake_is_complete() {
    let tls = Tls::new();
    let now = tls.certificates.now();
    assert_eq!((now.data.max_early_data_size, now.admin.max_early_data_size), (0, 0));
    let mut config = tls.client(&[], None);
    config.enable_early_data = true;
    let config = Arc::new(config);
    let io = tls.connect(&config).await.unwrap();
    // Long enough for the tickets to arrive.
    Client::over(io).await.call(chat_request(SHOP, &chat("duo"))).await.assert_served("alpha", 1);
    let mut again = ClientConnection::new(Arc::clone(&config), ServerName::try_from("localhost").unwrap()).unwrap();
    assert!(again.early_data().is_none(), "its ticket says that nothing may come early");
}

/// A hello of this version with these suites, without extensions; as old clients send it.
fn hello(version: u16, suites: &[u16]) -> Vec<u8> {
    let suites: Vec<u8> = suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
    let mut body = version.to_be_bytes().to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend((suites.len() as u16).to_be_bytes());
    body.extend(suites);
    body.extend([1, 0]);
    let handshake = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    [&[22, 3, 1][..], &(handshake.len() as u16).to_be_bytes(), &handshake].concat()
}

#[tokio::test]
async fn t6_old_versions_weak_suites_and_noise_are_refused() {
    let tls = Tls::new();
    let (cbc, rc4, export, modern) =
        (&[0x002f, 0xc013, 0xc027][..], &[0x0005][..], &[0x0003, 0x0008][..], &[0xc02f][..]);
    let mut vectors = vec![
        hello(0x0300, modern),
        hello(0x0301, modern),
        hello(0x0302, modern),
        hello(0x0303, cbc),
        hello(0x0303, rc4),
        hello(0x0303, export),
        vec![22, 3, 1, 0xff, 0xff],
        vec![23, 3, 3, 0, 1, 0],
        vec![0; 64],
        vec![0x80, 0x2e, 1, 0, 2, 0, 0x15],
    ];
    vectors[9].resize(64, 1);
    let count = vectors.len();
    for bytes in vectors {
        let address = tls.address();
        let closed = tokio::task::spawn_blocking(move || {
            let mut io = std::net::TcpStream::connect(address).unwrap();
            io.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
            io.write_all(&bytes).unwrap();
            let mut answer = Vec::new();
            // A reset is as good an end as any.
            let _ = io.read_to_end(&mut answer);
            // Nothing but an alert.
            assert!(answer.is_empty() || (answer[0] == 21 && answer.len() == 7), "{bytes:x?}: {answer:x?}");
        });
        closed.await.unwrap();
    }
    tls.eventually("all of them have ended", |tls| {
        tls.ended("handshake_failed") + tls.ended("handshake_timeout") + tls.ended("closed") >= count as f64
    })
    .await;
    assert!(tls.ended("handshake_failed") >= 7.0, "{}", tls.ended("handshake_failed"));
    tls.chat(tls.client(&[], None), SHOP).await.unwrap().assert_served("alpha", 1);
}

#[tokio::test]
async fn t6_a_hello_that_drips_is_closed_at_its_deadline_and_holds_up_nobody() {
    let limits = ConnectionLimits { handshake: Duration::from_millis(400), ..ConnectionLimits::default() };
    let tls = Tls::with(&Plan { limits, ..Plan::default() }, None);
    let hello = hello(0x0303, &[0xc02f]);
    let dripping: Vec<_> = (0..50)
        .map(|_| {
            let (address, hello) = (tls.address(), hello.clone());
            tokio::spawn(async move {
                let mut io = TcpStream::connect(address).await.unwrap();
                for byte in hello {
                    if tokio::io::AsyncWriteExt::write_all(&mut io, &[byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
        })
        .collect();
    let silent = TcpStream::connect(tls.address()).await.unwrap();
    tls.chat(tls.client(&[], None), SHOP).await.unwrap().assert_served("alpha", 1);
    tls.eventually("all are given up", |tls| tls.ended("handshake_timeout") >= 51.0).await;
    drop(silent);
    dripping.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(tls.ended("handshake_failed").abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_client_that_speaks_plain_http_is_told_what_is_wrong() {
    let tls = Tls::new();
    let mut io = TcpStream::connect(tls.address()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut io, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut io, &mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\nthis port speaks TLS, use https://\n"),
        "{answer}"
    );
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections_and_open_ones_go_on() {
    let tls = Tls::new();
    let mut open = Client::over(tls.connect(&Arc::new(tls.client(&[], None))).await.unwrap()).await;
    let (first, before) = (tls.shown().await, tls.certificates.files().hash());
    let next = tls.authority.issue("next", &until(2098));
    next.write(tls.folder.path(), "server");
    assert_ne!(before, tls.certificates.files().hash(), "a change is seen");
    tls.certificates.reload().unwrap();
    assert!(tls.shown().await == next.der && next.der != first);
    open.call(chat_request(SHOP, &chat("duo"))).await.assert_served("alpha", 1);
    let expires = tls.world.metric("weighbridge_tls_certificate_expiry_timestamp_seconds", &[]);
    assert!((expires - 4_039_372_800.0).abs() < 1.0, "{expires}");
}

#[tokio::test]
async fn a_bad_pair_leaves_the_old_one_in_place_and_says_why() {
    let tls = Tls::new();
    let old = tls.shown().await;
    let (other, expired) = (tls.authority.issue("other", &until(2099)), tls.authority.issue("old", &until(2021)));
    let good = std::fs::read_to_string(tls.file("server.key")).unwrap();
    let encrypted = good.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let vectors: Vec<(&str, Option<String>, Option<String>, &str)> = vec![
        ("mismatch", None, Some(other.key_pem()), "not the key of the certificate"),
        ("malformed", None, Some("junk".to_owned()), "no private key in PEM form"),
        ("malformed", None, Some(encrypted), "encrypted"),
        ("malformed", Some("junk".to_owned()), None, "no certificate in PEM form"),
        ("malformed", Some(other.cert_pem().replace('M', "!")), None, "broken"),
        ("malformed", Some(good.clone()), None, "no certificate in PEM form"),
        ("expired", Some(expired.cert_pem()), Some(expired.key_pem()), "expired on 2021-01-01"),
        ("unreadable", None, None, "there is no such file"),
    ];
    for (result, cert, key, reason) in vectors {
        tls.authority.issue("server", &until(2099));
        let (cert_was, key_was) =
            (std::fs::read(tls.file("server.pem")).unwrap(), std::fs::read(tls.file("server.key")).unwrap());
        match (&cert, &key) {
            (None, None) => std::fs::remove_file(tls.file("server.key")).unwrap(),
            _ => {
                cert.iter().for_each(|text| std::fs::write(tls.file("server.pem"), text).unwrap());
                key.iter().for_each(|text| std::fs::write(tls.file("server.key"), text).unwrap());
            }
        }
        let error = tls.certificates.reload().unwrap_err();
        assert!(error.message.contains(reason), "{reason}: {error}");
        let told = tls.certificates.told();
        assert!(told.error.unwrap().to_string().contains(reason) && told.at_ms > 0);
        let count = tls.world.metric("weighbridge_tls_reloads_total", &[&format!("result=\"{result}\"")]);
        assert!(count >= 1.0, "{result}");
        assert_eq!(tls.shown().await, old, "{reason}");
        std::fs::write(tls.file("server.pem"), cert_was).unwrap();
        std::fs::write(tls.file("server.key"), key_was).unwrap();
    }
    tls.certificates.reload().unwrap();
    assert_eq!(tls.certificates.told().error, None);
}

#[test]
fn a_start_without_a_usable_pair_says_which_file_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = Authority::new("a").issue("server", &until(2099)).write(folder.path(), "server");
    let metrics = weighbridge::telemetry::metrics::Metrics::new();
    let load = |cert: &PathBuf, key: &PathBuf| {
        let files = CertificateFiles { cert: cert.clone(), key: key.clone(), clients: None };
        Certificates::load(files, Arc::clone(&metrics)).err()
    };
    assert_eq!(load(&cert, &key), None);
    assert!(
        matches!(load(&cert, &cert), Some(CertificateError::Malformed { file, .. }) if file.ends_with("server.pem"))
    );
    assert!(
        matches!(load(&folder.path().join("no"), &key), Some(CertificateError::Unreadable { file, .. }) if file.ends_with("no"))
    );
    assert!(matches!(load(&folder.path().to_owned(), &key), Some(CertificateError::Unreadable { .. })));
    // A restart must not be worse than going on.
    let (cert, key) = Authority::new("a").issue("server", &until(2021)).write(folder.path(), "old");
    assert_eq!(load(&cert, &key), None);
}

/// `shop` must show this certificate.
fn bound(certificates: &[&Issued]) -> Plan {
    let digests: Vec<String> = certificates.iter().map(|issued| format!("\"{}\"", issued.sha256())).collect();
    let binding = format!("tenant = \"shop-eu\"\nclient_cert_sha256 = [{}]\n", digests.join(", "));
    Plan::replacing("tenant = \"shop-eu\"\n", &binding)
}

#[tokio::test]
async fn g1_a_bound_key_counts_only_over_a_connection_with_its_certificate() {
    let clients = Authority::new("clients");
    let (own, own_next) = (clients.issue("shop", &until(2099)), clients.issue("shop", &until(2099)));
    let other = clients.issue("other", &until(2099));
    let tls = Tls::with(&bound(&[&own, &own_next]), Some((&clients, ClientAuth::Optional)));
    let unknown = tls.chat(tls.client(&[], None), "wb-no-such-key").await.unwrap();
    for (what, shown, status) in [
        ("its own", Some(&own), 200),
        ("its next", Some(&own_next), 200),
        ("another's", Some(&other), 401),
        ("none", None, 401),
    ] {
        let answer = tls.chat(tls.client(&[], shown), SHOP).await.unwrap();
        assert_eq!(answer.status, status, "{what}");
        if status == 401 {
            let known = ["x-request-id", "wb-overhead-us", "server-timing", "date"];
            let plain = |answer: &Answer| {
                let names: Vec<_> = answer.headers.iter().filter(|(name, _)| !known.contains(&name.as_str())).collect();
                format!("{names:?} {}", answer.json()["error"]["message"])
            };
            assert_eq!(plain(&answer), plain(&unknown), "told apart from a key that does not exist");
        }
    }
    // Others are not bound, with or without a certificate.
    for shown in [None, Some(&other)] {
        assert_eq!(tls.chat(tls.client(&[], shown), OFFICE).await.unwrap().status, 200);
    }
    // Neither in the clear.
    assert_eq!(tls.world.chat(&chat("duo")).await.status, 401);
}

#[tokio::test]
async fn g1_a_resumed_session_is_that_of_the_same_certificate() {
    let clients = Authority::new("clients");
    let own = clients.issue("shop", &until(2099));
    let tls = Tls::with(&bound(&[&own]), Some((&clients, ClientAuth::Optional)));
    for protocols in [&["http/1.1"][..], &["h2"]] {
        let config = Arc::new(tls.client(protocols, Some(&own)));
        for round in 0..3 {
            let io = tls.connect(&config).await.unwrap();
            let kind = io.get_ref().1.handshake_kind();
            if protocols == ["h2"] {
                let (mut sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
                tokio::spawn(connection);
                let mut request = chat_request(SHOP, &chat("duo"));
                *request.uri_mut() = "https://localhost/v1/chat/completions".parse().unwrap();
                request.headers_mut().remove("host");
                let answer = sender.send_request(request).await.unwrap();
                assert_eq!(answer.status(), 200);
                drop(answer.into_body().collect().await.unwrap());
            } else {
                Client::over(io).await.call(chat_request(SHOP, &chat("duo"))).await.assert_served("alpha", 1);
            }
            if round > 0 {
                assert_eq!(kind, Some(rustls::HandshakeKind::Resumed));
            }
        }
    }
}

#[tokio::test]
async fn where_certificates_are_required_nobody_is_served_without_a_good_one() {
    let (clients, strangers) = (Authority::new("clients"), Authority::new("strangers"));
    let (own, expired) = (clients.issue("shop", &until(2099)), clients.issue("shop", &until(2021)));
    let stranger = strangers.issue("shop", &until(2099));
    let tls = Tls::with(&Plan::default(), Some((&clients, ClientAuth::Required)));
    tls.chat(tls.client(&[], Some(&own)), SHOP).await.unwrap().assert_served("alpha", 1);
    for bad in [None, Some(&expired), Some(&stranger)] {
        // With TLS 1.3 the client is ready before it is refused.
        let refused = match tls.connect(&Arc::new(tls.client(&[], bad))).await {
            Err(_) => true,
            Ok(mut io) => tokio::io::AsyncReadExt::read(&mut io, &mut [0; 1]).await.is_err(),
        };
        assert!(refused);
    }
    assert_eq!(tls.world.counts(), [1, 0, 0]);
    tls.eventually("they are counted", |tls| tls.ended("handshake_failed") >= 3.0).await;
}

#[tokio::test]
async fn an_authority_that_is_taken_away_is_gone_for_sessions_that_could_be_resumed() {
    let (clients, next) = (Authority::new("clients"), Authority::new("next"));
    let own = clients.issue("shop", &until(2099));
    let tls = Tls::with(&bound(&[&own]), Some((&clients, ClientAuth::Optional)));
    let config = Arc::new(tls.client(&[], Some(&own)));
    let io = tls.connect(&config).await.unwrap();
    Client::over(io).await.call(chat_request(SHOP, &chat("duo"))).await.assert_served("alpha", 1);
    next.own.write(tls.folder.path(), "ca");
    tls.certificates.reload().unwrap();
    let refused = match tls.connect(&config).await {
        Err(_) => true,
        Ok(io) => {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake::<_, Full<bytes::Bytes>>(TokioIo::new(io)).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(chat_request(SHOP, &chat("duo"))).await.is_err()
        }
    };
    assert!(refused && tls.world.counts() == [1, 0, 0]);
}

#[tokio::test]
async fn row_42_a_drain_ends_handshakes_that_have_not_come_far() {
    let tls = Tls::new();
    let silent = TcpStream::connect(tls.address()).await.unwrap();
    tls.eventually("it is counted", |tls| tls.server.connections() == 1).await;
    let report = tls.server.drain(Duration::ZERO, Duration::from_secs(20)).await;
    assert_eq!((report.connections, report.aborted), (1, 0));
    drop(silent);
}

#[tokio::test]
async fn row_42_a_handshake_that_has_begun_is_finished_in_a_drain_and_its_request_answered() {
    let tls = Tls::new();
    let name = ServerName::try_from("localhost").unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(tls.client(&[], None)), name).unwrap();
    let mut io = std::net::TcpStream::connect(tls.address()).unwrap();
    session.write_tls(&mut io).unwrap();
    tls.eventually("it is counted", |tls| tls.server.connections() == 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Longer than a silent connection is waited for: a client with a long way.
    let far_away = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_millis(400));
        let mut stream = rustls::StreamOwned::new(session, io);
        std::io::Write::write_all(&mut stream, b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut start = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut start).unwrap();
        String::from_utf8_lossy(&start).into_owned()
    });
    let (report, answered) = tokio::join!(tls.server.drain(Duration::ZERO, Duration::from_secs(20)), far_away);
    assert_eq!(answered.unwrap(), "HTTP/1.1 401");
    assert_eq!(report.aborted, 0);
}
