//! Real sockets on loopback, for what only they can do: resets, half-closed connections, SYNs nobody answers, TLS
//! handshakes that stop. Nothing here is paused, so nothing here measures time.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::future::{Future, pending};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::{default_provider, sign};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use weighbridge::config::table::BaseUrl;
use weighbridge::upstream::dial::Origin;
use weighbridge::upstream::names::{Resolve, Resolving};

use super::Link;

/// How a peer's side of a connection ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Leave {
    /// With a FIN, and nobody listens any more.
    Close,
    /// With a FIN, while the peer goes on listening.
    HalfClose,
    /// With a reset.
    Reset,
    /// Not at all: it falls silent until the other side has left.
    Silence,
}

impl Leave {
    /// Every way.
    pub const ALL: [Self; 4] = [Self::Close, Self::HalfClose, Self::Reset, Self::Silence];

    /// Leaves so. Returns when the other side has left too, except after a close or a reset, which do not wait for it.
    pub async fn act(self, mut io: TcpStream) {
        match self {
            Self::Close => {}
            Self::Reset => SockRef::from(&io).set_linger(Some(Duration::ZERO)).unwrap(),
            Self::HalfClose => {
                // It may be gone already.
                let _ = io.shutdown().await;
                gone(&io).await;
            }
            Self::Silence => gone(&io).await,
        }
    }
}

/// Waits until the other side has closed or reset the connection.
pub async fn gone(io: &TcpStream) {
    let mut scratch = [0; 4096];
    loop {
        // An error of `readable` means the same.
        if io.readable().await.is_err() {
            return;
        }
        match io.try_read(&mut scratch) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// A provider on a real port, and how many connections it took and still has.
pub struct Peer {
    pub address: SocketAddr,
    pub taken: Arc<AtomicUsize>,
    pub open: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Counts itself as long as it lives.
struct Count(Arc<AtomicUsize>);

impl Count {
    fn new(of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(of))
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Peer {
    /// Does `act` with every connection.
    pub async fn new<F>(act: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::on("127.0.0.1:0", act).await
    }

    /// As [`Peer::new`], at this address.
    pub async fn on<F>(address: &str, act: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let (taken, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (address, counts) = (listener.local_addr().unwrap(), (Arc::clone(&taken), Arc::clone(&open)));
        let accepting = tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                counts.0.fetch_add(1, Ordering::SeqCst);
                io.set_nodelay(true).unwrap();
                let (act, count) = (act(io), Count::new(&counts.1));
                tokio::spawn(async move {
                    act.await;
                    drop(count);
                });
            }
        });
        Self { address, taken, open, accepting }
    }

    /// The way to it.
    pub fn link(&self) -> Link {
        at(self.address, false)
    }

    /// The way to it, through TLS.
    pub fn tls_link(&self) -> Link {
        at(self.address, true)
    }

    /// How many connections it took.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// Waits until it has no connection any more, however long that takes.
    pub async fn left_alone(&self) {
        while self.open.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn at(address: SocketAddr, tls: bool) -> Link {
    Link::At(origin(address.ip().to_string(), address.port(), tls))
}

/// The way to a name in the test's own [`Book`].
pub fn named(host: &str, port: u16) -> Link {
    Link::At(origin(host.to_owned(), port, false))
}

fn origin(host: String, port: u16, tls: bool) -> Origin {
    Origin::usual(&BaseUrl { tls, host, port, path: String::new() }, true)
}

/// A port whose SYNs are dropped: its queue is full and nobody takes anything out of it.
pub struct BlackHole {
    listener: Socket,
    _queued: Vec<Socket>,
}

impl BlackHole {
    /// Fills the queue of a listener.
    pub fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        // A queue of none holds one or two, depending on the kernel; the one that gets no answer is the last.
        while queued.len() < 16 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let answered = socket.connect_timeout(&address, Duration::from_millis(100)).is_ok();
            queued.push(socket);
            if !answered {
                return Self { listener, _queued: queued };
            }
        }
        panic!("this kernel's queues have no end");
    }

    /// The way into it.
    pub fn link(&self) -> Link {
        at(self.listener.local_addr().unwrap().as_socket().unwrap(), false)
    }
}

/// Numbers that look random and are the same every time.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `limit`.
    pub fn roll(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// What the test's name service says of a name.
#[derive(Clone)]
pub enum Entry {
    /// These, as many as there are.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    NoSuchName,
    /// The name service is broken.
    Failure,
    /// Nothing, ever.
    Silence,
}

/// The test's own name service. A name it does not know does not exist.
#[derive(Clone, Default)]
pub struct Book {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    asked: Arc<AtomicUsize>,
}

impl Book {
    /// From now on the name's entry is this.
    pub fn write(&self, name: &str, entry: Entry) {
        self.entries.lock().unwrap().insert(name.to_owned(), entry);
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Resolve for Book {
    fn resolve(&self, name: &str) -> Resolving {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let entry = self.entries.lock().unwrap().get(name).cloned().unwrap_or(Entry::NoSuchName);
        Box::pin(async move {
            match entry {
                Entry::Addresses(addresses) => Ok(addresses),
                // What the system's resolver makes of EAI_NONAME and EAI_AGAIN.
                Entry::NoSuchName => {
                    Err(io::Error::other("failed to lookup address information: Name or service not known"))
                }
                Entry::Failure => {
                    Err(io::Error::other("failed to lookup address information: Temporary failure in name resolution"))
                }
                Entry::Silence => pending().await,
            }
        })
    }
}

/// A TLS configuration that takes every certificate: what is tried here is the transport, not the trust.
pub fn trusting() -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().dangerous();
    Arc::new(builder.with_custom_certificate_verifier(Arc::new(Anybody)).with_no_client_auth())
}

/// Ends the TLS handshake on the provider's side. Its certificate is no certificate, and [`trusting`] does not mind.
pub async fn handshake(io: TcpStream) -> TlsStream<TcpStream> {
    // An Ed25519 key in PKCS #8: the fixed head, then any 32 bytes.
    let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let key = PrivateKeyDer::Pkcs8([&head[..], &[7; 32]].concat().into());
    let key = CertifiedKey::new(vec![CertificateDer::from(vec![0; 16])], sign::any_supported_type(&key).unwrap());
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = builder.with_cert_resolver(Arc::new(Always(Arc::new(key))));
    TlsAcceptor::from(Arc::new(config)).accept(io).await.unwrap()
}

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// This process's open sockets with one of these ports at either end, listening ones included. Other tests of the same
/// process have other ports.
pub fn sockets(ports: &[u16]) -> usize {
    let ends: Vec<String> = ports.iter().map(|port| format!(":{port:04X} ")).collect();
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    // Most lines are connections that are long over.
    let ours = table.lines().filter(|line| ends.iter().any(|end| line.contains(end)));
    let inodes: HashSet<String> =
        ours.filter_map(|line| line.split_whitespace().nth(9)).map(|inode| format!("socket:[{inode}]")).collect();
    let names = fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    names.filter(|name| inodes.contains(&*name.to_string_lossy())).count()
}
