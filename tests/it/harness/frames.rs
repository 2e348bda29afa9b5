//! HTTP/2 frame by frame, for what no client library agrees to send (RFC 9113, RFC 7541). Header blocks are literals
//! without any compression.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PROTOCOL_ERROR: u32 = 1;
pub const CANCEL: u32 = 8;

/// A request's or an answer's fields, in order.
pub type Fields<'a> = Vec<(&'a str, Vec<u8>)>;

/// One frame that came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of a RST_STREAM.
    pub fn code(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }

    /// The status of an answer, if it is one of those with a number of their own in HPACK's table, else 0.
    pub fn status(&self) -> u16 {
        match self.payload.first() {
            Some(0x88) => 200,
            Some(0x8c) => 400,
            Some(0x8d) => 404,
            Some(0x8e) => 500,
            _ => 0,
        }
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub fn block(fields: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name.as_bytes(), value] {
            match text.len() {
                short @ 0..127 => bytes.push(short as u8),
                long => {
                    bytes.push(127);
                    let mut left = long - 127;
                    while left >= 128 {
                        bytes.push((left % 128 + 128) as u8);
                        left /= 128;
                    }
                    bytes.push(left as u8);
                }
            }
            bytes.extend(text);
        }
    }
    bytes
}

/// The fields of a POST of JSON.
pub fn post_fields<'a>(path: &str, key: &str, length: usize) -> Fields<'a> {
    vec![
        (":method", b"POST".to_vec()),
        (":scheme", b"http".to_vec()),
        (":authority", b"proxy.test".to_vec()),
        (":path", path.as_bytes().to_vec()),
        ("authorization", format!("Bearer {key}").into_bytes()),
        ("content-type", b"application/json".to_vec()),
        ("content-length", length.to_string().into_bytes()),
    ]
}

/// A connection of which each frame is written and read by hand.
pub struct Frames<I>(pub I);

impl<I: AsyncRead + AsyncWrite + Unpin> Frames<I> {
    /// Says hello, with these settings.
    pub async fn hello(mut io: I, settings: &[(u16, u32)]) -> Self {
        let settings: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        io.write_all(&frame(SETTINGS, 0, 0, &settings)).await.unwrap();
        Self(io)
    }

    /// Writes; the other side may have hung up, which is its right.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    /// The next frame, pings answered and left out; `None` at the end or after five seconds of silence.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            let found = timeout(Duration::from_secs(5), self.read()).await.ok()?;
            match &found {
                // At the end nothing else would make a paused clock go on.
                None => sleep(Duration::from_secs(1)).await,
                Some(Frame { kind: PING, flags: 0, payload, .. }) => {
                    self.send(&frame(PING, ACK, 0, payload)).await;
                    continue;
                }
                Some(_) => {}
            }
            return found;
        }
    }

    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The first frame that begins or resets this stream, or ends the connection; `None` if nothing comes.
    pub async fn verdict(&mut self, stream: u32) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            let ours = frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM);
            if ours || frame.kind == GOAWAY {
                return Some(frame);
            }
        }
    }
}
