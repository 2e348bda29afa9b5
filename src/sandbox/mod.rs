//! Floor 2, beside the tower: simulated providers. Only `cli` and tests may import it, and it imports only floors 0 and 1.
//!
//! The simulated providers speak real HTTP/1 over any byte stream, so that what is tested against them is what runs
//! against the real ones. This file has the connection they share; it knows no protocol and no fault.

pub mod aggregator;
pub mod alipay;
pub mod fault;
pub mod keys;
pub mod merchant;
pub mod simulator;

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// What a simulated provider answers with. A body that fails breaks the connection, so the peer never sees a clean end.
pub type SandboxBody = UnsyncBoxBody<Bytes, io::Error>;

/// Connections one listener serves at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1_024;

/// How long a peer may take over a request head, and how long a kept-alive connection may idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause after a failed accept, which is nearly always a shortage of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A body of known length.
pub fn full(bytes: impl Into<Bytes>) -> SandboxBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The error a handler returns to close the connection without a byte.
pub fn refused() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// The error a handler returns to have the connection reset; over anything but TCP it is merely closed.
pub fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// Serves one HTTP/1 connection until it ends. An `Err` from `handler` ends it at once, without an answer.
///
/// # Cancel safety
///
/// Dropping the future drops the connection, the handler's future and the body being sent.
pub async fn serve_connection<I, H, F>(io: I, handler: H)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<SandboxBody>, io::Error>>,
{
    serve(io, handler, &AtomicBool::new(false)).await;
}

/// Serves one connection; `reset` becomes true, before the connection is dropped, when the handler asked for that.
async fn serve<I, H, F>(io: I, handler: H, reset: &AtomicBool)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<SandboxBody>, io::Error>>,
{
    let service = hyper::service::service_fn(handler);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    if let Err(error) = connection.as_mut().await {
        let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        let wanted = cause.is_some_and(|cause| cause.kind() == io::ErrorKind::ConnectionReset);
        reset.store(wanted, Ordering::Relaxed);
    }
}

/// A listener with its accept loop; dropping it ends the loop and every connection it accepted.
#[derive(Debug)]
pub struct Listening {
    /// The address it accepts on, with the port the system chose.
    pub addr: SocketAddr,
    /// The accept loop, which ends only by being aborted.
    pub task: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts on `addr` and serves every connection with `handler`, 1,024 at a time.
///
/// # Errors
///
/// When the address cannot be bound.
pub async fn listen<H, F>(addr: SocketAddr, handler: H) -> io::Result<Listening>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<SandboxBody>, io::Error>> + Send + 'static,
{
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let task = tokio::spawn(accept(listener, handler));
    Ok(Listening { addr, task })
}

async fn accept<H, F>(listener: TcpListener, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<SandboxBody>, io::Error>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => { connections.spawn(serve_socket(stream, handler.clone())); }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_socket<H, F>(stream: TcpStream, handler: H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<SandboxBody>, io::Error>>,
{
    // Paced events must leave one by one; if the option cannot be set they merely leave later.
    let _ = stream.set_nodelay(true);
    let reset = Arc::new(AtomicBool::new(false));
    serve(Socket { stream, reset: Arc::clone(&reset) }, handler, &reset).await;
}

/// A TCP connection that is reset instead of closed if `reset` is set when it is dropped. It exists because hyper owns
/// the stream until then.
struct Socket {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // Without the option the peer sees an ordinary close, which is the documented second best.
            let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\n\r\n";

    async fn answer(request: Request<Incoming>) -> Result<Response<SandboxBody>, io::Error> {
        match request.uri().path() {
            "/" => Ok(Response::new(full("hello"))),
            "/reset" => Err(reset()),
            _ => Err(refused()),
        }
    }

    #[tokio::test]
    async fn a_connection_over_memory_is_answered() {
        let (mut near, far) = tokio::io::duplex(4_096);
        let server = tokio::spawn(serve_connection(far, answer));
        near.write_all(REQUEST).await.unwrap();
        let mut text = String::new();
        near.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("hello"));
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_refusal_closes_without_a_byte() {
        let (mut near, far) = tokio::io::duplex(4_096);
        let server = tokio::spawn(serve_connection(far, answer));
        near.write_all(b"GET /refuse HTTP/1.1\r\nhost: sandbox\r\n\r\n").await.unwrap();
        let mut bytes = Vec::new();
        near.read_to_end(&mut bytes).await.unwrap();
        assert!(bytes.is_empty());
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_listener_answers_resets_and_ends_when_dropped() {
        let listening = listen("127.0.0.1:0".parse().unwrap(), answer).await.unwrap();
        let addr = listening.addr;
        let mut text = String::new();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.ends_with("hello"));

        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET /reset HTTP/1.1\r\nhost: sandbox\r\n\r\n").await.unwrap();
        let error = stream.read_to_string(&mut text).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        drop(listening);
        tokio::task::yield_now().await;
        assert!(TcpStream::connect(addr).await.is_err());
    }
}
