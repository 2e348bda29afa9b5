//! One request over a connection of its own, dialled as the proxy dials, with what was seen on the way.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use tokio::time::Instant;

use super::super::chain;
use super::PATIENCE;
use crate::config::table::BaseUrl;
use crate::config::tls::HttpVersion;
use crate::domain::clock;
use crate::upstream::dial::{Dial, Io, Origin, TcpDial};
use crate::upstream::secure;

/// Largest answer looked at; a longer list of models is no mistake, only not read to its end.
const LONGEST_ANSWER: usize = 64 * 1024;

/// An answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// `None` if it was longer than anybody needs here.
    pub(super) body: Option<Bytes>,
    /// What our clock said when its head was here, milliseconds since 1970, and how long that took.
    pub(super) here_ms: u64,
    pub(super) round_trip: Duration,
}

/// Opens a TCP connection.
///
/// # Errors
/// Why not, in words.
pub(super) async fn connect(
    url: &BaseUrl,
    allow_private: bool,
    tls: &Arc<ClientConfig>,
) -> Result<Box<dyn Io>, String> {
    let origin = Origin { tls: false, ..Origin::usual(url, allow_private) };
    TcpDial::new(Arc::clone(tls)).dial(&origin, PATIENCE).await.map_err(|error| chain(&error))
}

/// Shakes hands where the address wants it.
///
/// # Errors
/// Why not, in words.
pub(super) async fn secure(
    url: &BaseUrl,
    http: HttpVersion,
    io: Box<dyn Io>,
    tls: &Arc<ClientConfig>,
) -> Result<Box<dyn Io>, String> {
    if !url.tls {
        return Ok(io);
    }
    let secured = secure::shake_hands(Arc::clone(tls), &url.host, http, io).await;
    Ok(Box::new(secured.map_err(|error| chain(&error))?))
}

/// Sends one request and reads its answer.
///
/// # Errors
/// Why not, in words.
pub(super) async fn exchange(http: HttpVersion, io: Box<dyn Io>, request: Request<Bytes>) -> Result<Answer, String> {
    let (io, request) = (TokioIo::new(io), request.map(Full::new));
    match http {
        HttpVersion::One => {
            let (mut sender, connection) = http1::handshake(io).await.map_err(|error| chain(&error))?;
            answered(sender.send_request(request), connection).await
        }
        HttpVersion::Two => {
            let builder = http2::Builder::new(TokioExecutor::new());
            let (mut sender, connection) = builder.handshake(io).await.map_err(|error| chain(&error))?;
            answered(sender.send_request(request), connection).await
        }
    }
}

async fn answered(
    response: impl Future<Output = hyper::Result<Response<Incoming>>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<Answer, String> {
    let left = Instant::now();
    let asked = async {
        let response = response.await.map_err(|error| chain(&error))?;
        let (here_ms, round_trip) = (clock::unix_ms(), left.elapsed());
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await.ok().map(http_body_util::Collected::to_bytes);
        Ok(Answer { status: head.status, headers: head.headers, body, here_ms, round_trip })
    };
    match select(pin!(asked), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        // The connection has ended; what it brought is still there to be read.
        Either::Right((_, asked)) => asked.await,
    }
}
