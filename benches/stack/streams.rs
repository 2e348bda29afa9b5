//! Many streams at once: when each shows its first content, how evenly its chunks come, and what an open one costs.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};

use crate::load::{find, percentile, request};

/// A stream that says nothing for so long is an error.
const GIVE_UP: Duration = Duration::from_secs(20);
/// Streams are opened this far apart, so that the first content of one does not wait behind the openings of all others.
const APART: Duration = Duration::from_millis(2);

/// Streams to open, all at the same time.
#[derive(Clone, Copy)]
pub struct Streams {
    /// How many.
    pub count: u32,
    /// Chunks in each.
    pub chunks: u64,
    /// Between two chunks.
    pub every: Duration,
}

/// What was seen of them.
#[derive(Default)]
pub struct Seen {
    /// From the request to the first event.
    first: Vec<Duration>,
    /// How much later (or earlier) than `every` an event came after the one before.
    off: Vec<Duration>,
    /// Streams that did not end in `[DONE]`.
    pub errors: usize,
}

impl Seen {
    /// Time to first content in microseconds, at this share of the streams.
    pub fn first(&self, share: f64) -> f64 {
        percentile(&self.first, share)
    }

    /// How far off an event's time was in microseconds, at this share of all events.
    pub fn jitter(&self, share: f64) -> f64 {
        percentile(&self.off, share)
    }
}

impl Streams {
    /// Reads them all to their end.
    pub fn read(self, to: SocketAddr, key: &str) -> Seen {
        self.run(to, key, || {})
    }

    /// As [`Self::read`]; `midway` is called once when all are open and none has ended.
    pub fn run(self, to: SocketAddr, key: &str, midway: impl FnOnce()) -> Seen {
        let members = format!(r#""stream":true,"chunks":{},"every_ms":{},"#, self.chunks, self.every.as_millis());
        let request: Rc<[u8]> = request(to, key, 840, &members).into();
        let seen = Rc::new(RefCell::new(Seen::default()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let mut open = Vec::new();
            for _ in 0..self.count {
                open.push(spawn_local(one_stream(to, Rc::clone(&request), self, Rc::clone(&seen))));
                tokio::time::sleep(APART).await;
            }
            while seen.borrow().first.len() + seen.borrow().errors < open.len() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            midway();
            for stream in open {
                stream.await.unwrap();
            }
        });
        let mut seen = seen.take();
        seen.first.sort_unstable();
        seen.off.sort_unstable();
        seen
    }
}

async fn one_stream(to: SocketAddr, request: Rc<[u8]>, streams: Streams, seen: Rc<RefCell<Seen>>) {
    let whole =
        tokio::time::timeout(GIVE_UP + streams.every * u32::try_from(streams.chunks).unwrap_or(u32::MAX), async {
            read_stream(to, &request, streams, &seen).await.is_ok()
        });
    if whole.await != Ok(true) {
        seen.borrow_mut().errors += 1;
    }
}

async fn read_stream(
    to: SocketAddr,
    request: &[u8],
    streams: Streams,
    seen: &RefCell<Seen>,
) -> Result<(), std::io::Error> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let asked = Instant::now();
    stream.write_all(request).await?;
    let mut last = None;
    let mut buffer = Vec::with_capacity(4 * 1024);
    loop {
        buffer.clear();
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let now = Instant::now();
        // Every event of the null upstream is written alone, so that a read that holds one holds it whole.
        if find(&buffer, b"data: {").is_some() {
            match last.replace(now) {
                None => seen.borrow_mut().first.push(now - asked),
                Some(before) => seen.borrow_mut().off.push((now - before).abs_diff(streams.every)),
            }
        }
        if find(&buffer, b"data: [DONE]").is_some() {
            return Ok(());
        }
    }
}
