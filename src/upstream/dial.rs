//! The one seam to the network. Only this file opens outgoing connections.
//!
//! Names and ports come from configuration alone. The class of every *connected* address is checked after resolution,
//! so a name that suddenly means 127.0.0.1 or a metadata service leads nowhere (S6). There are no proxies from the
//! environment and no redirects.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::config::table::{BaseUrl, Provider};
use crate::config::tls::HttpVersion;
use crate::upstream::names::{Names, Resolve, System};
use crate::upstream::secure::{self, Security};

/// Most addresses tried for one connection.
const MOST_ADDRESSES: usize = 4;
/// How long one address is waited for before the next is tried beside it, at most (RFC 8305, section 8, recommends this).
const STAGGER: Duration = Duration::from_millis(250);
/// Of the time there is: one part in so many.
const STAGGER_PARTS: u32 = 3;

/// A connection of any kind.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Where a connection leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// True for TLS.
    pub tls: bool,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// True lets the connected address be loopback or private.
    pub allow_private: bool,
    /// Whose certificates are believed and what is shown, if that is not as usual.
    pub security: Option<Arc<Security>>,
    /// What is spoken there.
    pub http: HttpVersion,
}

impl Origin {
    /// An address where everything is as usual.
    pub fn usual(url: &BaseUrl, allow_private: bool) -> Self {
        let (host, port) = (url.host.clone(), url.port);
        Self { tls: url.tls, host, port, allow_private, security: None, http: HttpVersion::One }
    }

    /// Where a provider is, with all that its file says of connections.
    pub fn of(provider: &Provider) -> Self {
        let security = provider.tls.clone().map(|settings| Arc::new(Security::new(settings)));
        Self { security, http: provider.http, ..Self::usual(&provider.base_url, provider.allow_private) }
    }
}

/// A connection on its way.
pub type Dialling<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send + 'a>>;

/// Opens connections: over TCP and TLS when serving, in memory in tests.
pub trait Dial: Send + Sync {
    /// Connects. The caller waits for at most `within` and bounds the time.
    fn dial<'a>(&'a self, origin: &'a Origin, within: Duration) -> Dialling<'a>;
}

/// TCP with NODELAY, and TLS where the origin wants it.
pub struct TcpDial {
    tls: Arc<ClientConfig>,
    names: Names,
}

impl TcpDial {
    /// Uses this TLS configuration for every provider without settings of its own, and the operating system's name service.
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self::resolving(tls, System)
    }

    /// As [`TcpDial::new`], with another name service.
    pub fn resolving(tls: Arc<ClientConfig>, resolver: impl Resolve + 'static) -> Self {
        Self { tls, names: Names::new(resolver) }
    }

    async fn connect(&self, origin: &Origin, within: Duration) -> io::Result<Box<dyn Io>> {
        let stream = tcp(origin, &self.names, within).await?;
        stream.set_nodelay(true)?;
        if !origin.tls {
            return Ok(Box::new(stream));
        }
        let config = match &origin.security {
            None => Arc::clone(&self.tls),
            Some(security) => security.config(&self.tls).map_err(io::Error::other)?,
        };
        Ok(Box::new(secure::shake_hands(config, &origin.host, origin.http, stream).await?))
    }
}

impl Dial for TcpDial {
    fn dial<'a>(&'a self, origin: &'a Origin, within: Duration) -> Dialling<'a> {
        Box::pin(self.connect(origin, within))
    }
}

async fn tcp(origin: &Origin, names: &Names, within: Duration) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut addresses = Vec::new();
    for ip in names.addresses(&origin.host).await?.iter().take(MOST_ADDRESSES) {
        if origin.allow_private || is_public(*ip) {
            addresses.push(SocketAddr::new(*ip, origin.port));
        } else {
            failure = io::Error::new(io::ErrorKind::PermissionDenied, "the name resolves to a private address");
        }
    }
    if addresses.is_empty() { Err(failure) } else { staggered(&addresses, within, TcpStream::connect).await }
}

/// Tries one address after the other: the next one when the one before has failed, or beside it when it is silent for a
/// while, so that one that swallows packets does not take all the time there is. A silent address without others is tried
/// once more: what was lost may have been one packet, and the system sends it again after a second only.
async fn staggered<T, F>(addresses: &[SocketAddr], within: Duration, connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let stagger = STAGGER.min(within / STAGGER_PARTS);
    let mut left = addresses.iter().copied();
    let mut again = addresses.first().copied().filter(|_| addresses.len() == 1);
    let mut trying: FuturesUnordered<F> = left.next().map(&connect).into_iter().collect();
    loop {
        tokio::select! {
            biased;
            Some(tried) = trying.next() => match (tried, left.next()) {
                (Ok(stream), _) => return Ok(stream),
                (Err(_), Some(next)) => trying.push(connect(next)),
                (Err(failure), None) if trying.is_empty() => return Err(failure),
                (Err(_), None) => {}
            },
            () = sleep(stagger) => trying.extend(left.next().or_else(|| again.take()).map(&connect)),
        }
    }
}

/// True for addresses that belong to the public internet.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    let carrier_grade_nat = a == 100 && (64..128).contains(&b);
    let benchmarking = a == 198 && (b == 18 || b == 19);
    let special = ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified() || ip.is_broadcast();
    let unroutable = a == 0 || a >= 224 || ip.is_documentation();
    !(special || unroutable || carrier_grade_nat || benchmarking)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    if let Some(v4) = ip.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let [first, second, ..] = ip.segments();
    let unique_local = first & 0xfe00 == 0xfc00;
    let link_local = first & 0xffc0 == 0xfe80;
    // Prefixes that carry an IPv4 address inside would be a way round the check above.
    let translated = (first == 0x64 && second == 0xff9b) || first == 0x2002;
    let documentation = first == 0x2001 && second == 0xdb8;
    let low = first == 0;
    !(ip.is_multicast() || unique_local || link_local || translated || documentation || low)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn s6_private_addresses_are_not_public_in_any_spelling() {
        let private = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "fc00::1",
            "fe80::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::127.0.0.1",
        ];
        for ip in private {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn public_addresses_are_public() {
        for ip in ["1.1.1.1", "203.0.114.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    #[tokio::test]
    async fn s6_a_provider_that_may_not_be_private_is_not_dialled_on_loopback() {
        let url = BaseUrl { tls: false, host: "127.0.0.1".into(), port: 9, path: String::new() };
        let origin = Origin::usual(&url, false);
        let err = tcp(&origin, &Names::new(System), Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::PermissionDenied);
    }

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 443))
    }

    /// Who was tried when, in milliseconds, and what came of it.
    async fn tried(count: u8, within: Duration, answers: &[(u64, bool)]) -> (Vec<(u8, u128)>, io::Result<u8>, u128) {
        let (begun, log) = (Instant::now(), std::cell::RefCell::new(Vec::new()));
        let addresses: Vec<_> = (1..=count).map(address).collect();
        let result = staggered(&addresses, within, |at| {
            let number = log.borrow().len();
            let SocketAddr::V4(at) = at else { unreachable!() };
            let [.., last] = at.ip().octets();
            log.borrow_mut().push((last, begun.elapsed().as_millis()));
            let (after, answers) = answers[number];
            async move {
                sleep(Duration::from_millis(after)).await;
                if answers { Ok(last) } else { Err(io::Error::from(io::ErrorKind::ConnectionRefused)) }
            }
        })
        .await;
        (log.into_inner(), result, begun.elapsed().as_millis())
    }

    const NEVER: u64 = 86_400_000;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_swallows_packets_does_not_take_all_the_time() {
        let (tried, result, took) = tried(3, Duration::from_secs(5), &[(NEVER, true), (NEVER, true), (30, true)]).await;
        assert_eq!(tried, [(1, 0), (2, 250), (3, 500)]);
        assert_eq!((result.unwrap(), took), (3, 530));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_is_followed_by_the_next_at_once_and_the_last_refusal_is_told() {
        let (tried, result, took) = tried(2, Duration::from_secs(5), &[(10, false), (20, false)]).await;
        assert_eq!((tried, took), (vec![(1, 0), (2, 10)], 30));
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_address_is_tried_once_more_when_it_is_silent_and_not_when_it_refuses() {
        let (silent, result, took) = tried(1, Duration::from_millis(150), &[(NEVER, true), (20, true)]).await;
        assert_eq!((silent, result.unwrap(), took), (vec![(1, 0), (1, 50)], 1, 70));
        let (refused, result, _) = tried(1, Duration::from_millis(150), &[(10, false)]).await;
        assert_eq!((refused, result.is_err()), (vec![(1, 0)], true));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_answer_is_taken_whoever_gives_it() {
        let (tried, result, took) = tried(2, Duration::from_secs(5), &[(400, true), (300, true)]).await;
        assert_eq!((tried.len(), result.unwrap(), took), (2, 1, 400));
    }
}
