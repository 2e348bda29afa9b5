//! What a client connection may take: sizes and times, with the defaults of the contract.

use std::time::Duration;

/// Bounds of a connection; read once, when it is accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionLimits {
    /// Largest request head, in bytes.
    pub head_bytes: usize,
    /// Most header fields in a request.
    pub head_fields: usize,
    /// From the connection's start, or the first byte of a later request, to the end of the request's head.
    pub head_timeout: Duration,
    /// Longest time the client may accept no bytes of an answer.
    pub write_stall: Duration,
    /// Longest idle time between requests.
    pub keep_alive: Duration,
    /// From the connection's start to the end of its TLS handshake.
    pub handshake: Duration,
    /// Most open connections of the listener.
    pub connections: usize,
    /// Whether each request carries its peer's `SocketAddr` as an extension. That is an allocation: only for a listener
    /// where it matters who asked.
    pub tells_peer: bool,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            head_bytes: 16 * 1024,
            head_fields: 64,
            head_timeout: Duration::from_secs(10),
            write_stall: Duration::from_secs(30),
            keep_alive: Duration::from_secs(60),
            handshake: Duration::from_secs(5),
            connections: 10_000,
            tells_peer: false,
        }
    }
}
