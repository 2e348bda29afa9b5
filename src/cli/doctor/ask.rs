//! One request over a connection of its own, dialled as the proxy dials, with what was seen on the way.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::super::chain;
use super::PATIENCE;
use crate::config::table::BaseUrl;
use crate::domain::clock;
use crate::upstream::dial::{Dial, Io, Origin, TcpDial};

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
    let origin = Origin { tls: false, host: url.host.clone(), port: url.port, allow_private };
    TcpDial::new(Arc::clone(tls)).dial(&origin, PATIENCE).await.map_err(|error| chain(&error))
}

/// Shakes hands where the address wants it.
///
/// # Errors
/// Why not, in words.
pub(super) async fn secure(url: &BaseUrl, io: Box<dyn Io>, tls: &Arc<ClientConfig>) -> Result<Box<dyn Io>, String> {
    if !url.tls {
        return Ok(io);
    }
    let name = ServerName::try_from(url.host.clone()).map_err(|error| chain(&error))?;
    let secured = TlsConnector::from(Arc::clone(tls)).connect(name, io).await.map_err(|error| chain(&error))?;
    Ok(Box::new(secured))
}

/// Sends one request and reads its answer.
///
/// # Errors
/// Why not, in words.
pub(super) async fn exchange(io: Box<dyn Io>, request: Request<Bytes>) -> Result<Answer, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|error| chain(&error))?;
    let left = Instant::now();
    let asked = async {
        let response = sender.send_request(request.map(Full::new)).await.map_err(|error| chain(&error))?;
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
