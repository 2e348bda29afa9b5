//! Providers on real ports, over TCP and TLS and in both versions of HTTP, that write down all they hear.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::server::{WantsServerCert, WebPkiClientVerifier};
use rustls::{ConfigBuilder, RootCertStore, ServerConfig};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::harness::certificates::{Authority, Issued};

/// One request as a provider saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub uri: String,
    /// `host`, or the authority where there is none.
    pub host: String,
    pub authorization: String,
    pub http2: bool,
    /// Of the certificate that was shown.
    pub shown: Option<String>,
}

/// What a provider does with a request.
pub type Reply = Arc<dyn Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync>;

/// A provider. Its connections end with the test's runtime.
pub struct Upstream {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

pub fn answer(word: &str) -> Response<Full<Bytes>> {
    let body = json!({ "id": "x", "choices": [{ "message": { "content": word }, "finish_reason": "stop" }] });
    let head = Response::builder().header("content-type", "application/json");
    head.body(Full::from(body.to_string())).unwrap()
}

pub fn saying(word: &'static str) -> Reply {
    Arc::new(move |_| answer(word))
}

impl Upstream {
    pub fn new(runtime: &Runtime, tls: Option<Arc<ServerConfig>>, reply: Reply) -> Self {
        let (connections, seen): (Arc<AtomicUsize>, Arc<Mutex<Vec<Seen>>>) = Default::default();
        let (count, told) = (Arc::clone(&connections), Arc::clone(&seen));
        let address = runtime.listen("127.0.0.1", move |io| {
            count.fetch_add(1, Ordering::SeqCst);
            let (tls, told, reply) = (tls.clone(), Arc::clone(&told), Arc::clone(&reply));
            async move {
                let Some(tls) = tls else { return serve(io, None, told, reply).await };
                let Ok(io) = TlsAcceptor::from(tls).accept(io).await else { return };
                let shown = io.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let shown = shown.map(|leaf| weighbridge::sign::hmac::sha256_hex(leaf));
                serve(io, shown, told, reply).await;
            }
        });
        Self { address, connections, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve<I>(io: I, shown: Option<String>, told: Arc<Mutex<Vec<Seen>>>, reply: Reply)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (told, reply, shown) = (Arc::clone(&told), Arc::clone(&reply), shown.clone());
        async move {
            let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            let authority = request.uri().authority().map(ToString::to_string);
            let seen = Seen {
                uri: request.uri().path().to_owned(),
                host: header("host").or(authority).unwrap_or_default(),
                authorization: header("authorization").unwrap_or_default(),
                http2: request.version() == http::Version::HTTP_2,
                shown,
            };
            told.lock().unwrap().push(seen.clone());
            let _ = request.into_body().collect().await;
            Ok::<_, std::convert::Infallible>(reply(&seen))
        }
    });
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service).await;
}

/// A listener's TLS with this certificate, that agrees on these protocols and asks for certificates of that authority.
pub fn tls(own: &Issued, protocols: &[&str], clients: Option<&Authority>) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = match clients {
        None => builder.unwrap().with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.own.for_rustls().0).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.unwrap().with_client_cert_verifier(verifier)
        }
    };
    config(builder, (own, &[]), protocols)
}

/// As [`tls`], with the certificates of authorities between.
pub fn tls_below(own: &Issued, between: &[&Authority]) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    config(builder.with_no_client_auth(), (own, between), &[])
}

fn config(
    builder: ConfigBuilder<ServerConfig, WantsServerCert>,
    (own, between): (&Issued, &[&Authority]),
    protocols: &[&str],
) -> Arc<ServerConfig> {
    let (cert, key) = own.for_rustls();
    let chain = std::iter::once(cert).chain(between.iter().map(|authority| authority.own.for_rustls().0));
    let mut config = builder.with_single_cert(chain.collect(), key).unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// Where providers live: a thread that ends with the test.
pub struct Runtime {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

pub fn runtime() -> Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (handle, (stop, stopped)) = (runtime.handle().clone(), oneshot::channel());
    std::thread::spawn(move || runtime.block_on(stopped));
    Runtime { handle, _stop: stop }
}

impl Runtime {
    /// Does `act` with every connection that comes in there.
    pub fn listen<F>(&self, host: &str, act: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind((host, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        self.handle.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((io, _)) = listener.accept().await {
                tokio::spawn(act(io));
            }
        });
        address
    }
}

/// Hands every connection on, as it is.
pub fn forward(runtime: &Runtime, host: &str, to: SocketAddr) -> SocketAddr {
    runtime.listen(host, move |mut near| async move {
        let mut far = TcpStream::connect(to).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    })
}
