//! The TLS handshake of one client connection: its deadline, what was agreed on, and who the client proved to be.
//!
//! It runs in the connection's own task, so a client that drips its hello holds up nobody, and it counts as an idle
//! connection: eviction and drain reach it. Which certificate is shown is decided above; what comes after the handshake
//! is [`connection`](super::connection)'s.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use rustls::ServerConfig;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::Service;

use super::activity::Activity;
use super::connection::{self, LAST_CHANCE, LAST_HEAD, Patience, Settled, has_left};
use super::limits::ConnectionLimits;
use crate::flight::arrival::Secured;
use crate::telemetry::labels::ConnectionEnd;

/// What ALPN calls HTTP/2.
const HTTP2: &[u8] = b"h2";
/// Said to a client that speaks HTTP without TLS.
const IN_THE_CLEAR: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 35\r\n\
connection: close\r\n\r\nthis port speaks TLS, use https://\n";
/// How long that client may take to read it.
const GOODBYE: Duration = Duration::from_millis(500);

/// Serves one connection through TLS, under the commands that `activity` is given.
pub(super) async fn drive<S, B>(
    io: TcpStream,
    config: Arc<ServerConfig>,
    service: S,
    limits: ConnectionLimits,
    activity: Arc<Activity>,
) -> ConnectionEnd
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let late = pin!(sleep_until(Instant::now() + limits.handshake));
    let mut patience = Patience { late, too_late: ConnectionEnd::HandshakeTimeout, last: LAST_CHANCE };
    let first = match patience.with(first_byte(&io), &activity).await {
        Ok(Ok(first)) => first,
        Ok(Err(end)) | Err(end) => return end,
    };
    // A client far away needs round trips for the rest, and would take a close for a failure.
    patience.has_begun(LAST_HEAD);
    let stream = match patience.with(handshake(io, first, config), &activity).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(end)) | Err(end) => return end,
    };
    let (_, session) = stream.get_ref();
    let settled = Settled {
        // Who offers no protocol may still mean either.
        http2: session.alpn_protocol().map(|agreed| agreed == HTTP2),
        secured: Some(Arc::new(Secured {
            client_certificate: session
                .peer_certificates()
                .and_then(<[_]>::first)
                .map(|leaf| Sha256::digest(leaf).into()),
        })),
    };
    connection::drive(stream, service, limits, activity, settled).await
}

/// What the client begins with; it stays to be read.
async fn first_byte(io: &TcpStream) -> Result<u8, ConnectionEnd> {
    let mut first = [0];
    let seen = io.peek(&mut first).await.map_err(|error| verdict(&error))?;
    let [first] = first;
    if seen == 0 { Err(ConnectionEnd::Closed) } else { Ok(first) }
}

async fn handshake(
    mut io: TcpStream,
    first: u8,
    config: Arc<ServerConfig>,
) -> Result<Box<TlsStream<TcpStream>>, ConnectionEnd> {
    // Methods and HTTP/2's preface begin with a capital letter, TLS records with a number below 32.
    if first.is_ascii_uppercase() {
        // However it went, the client is gone or has had its chance.
        let _ = timeout(GOODBYE, point_to_tls(&mut io)).await;
        return Err(ConnectionEnd::HandshakeFailed);
    }
    let accepted = TlsAcceptor::from(config).accept(io).await;
    accepted.map(Box::new).map_err(|error| verdict(&error))
}

fn verdict(error: &io::Error) -> ConnectionEnd {
    if has_left(error) {
        return ConnectionEnd::Closed;
    }
    tracing::debug!(%error, "no TLS handshake");
    ConnectionEnd::HandshakeFailed
}

/// Closing on bytes we have not read would reset the connection, and the client would see that instead of the answer.
async fn point_to_tls(io: &mut TcpStream) -> io::Result<()> {
    io.write_all(IN_THE_CLEAR).await?;
    io.shutdown().await?;
    let mut scratch = [0; 1024];
    while io.read(&mut scratch).await? > 0 {}
    Ok(())
}
