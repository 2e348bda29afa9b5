//! The load generator: kept-alive connections, raw bytes, one thread, latencies from the moment a request was due.
//!
//! At a constant rate a request that had to wait for a free connection counts from when it should have left, so a
//! stall is not hidden by the requests it held back (one that left late because of our timer counts from then). Every run ends: at its time, or at its number of requests.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};

/// A request without an answer for so long is an error.
const GIVE_UP: Duration = Duration::from_secs(20);

/// When the next request leaves.
#[derive(Clone, Copy)]
pub enum Pace {
    /// As soon as its connection is free.
    Closed,
    /// This many a second over all connections.
    Rate(u32),
    /// As `Rate`, and stop after this many.
    Count(u32, u64),
}

/// Where to send what.
#[derive(Clone)]
pub struct Load {
    to: SocketAddr,
    connections: usize,
    key: String,
    streaming: bool,
    prompt_bytes: usize,
    answer_bytes: usize,
}

/// One of a kilobyte, as most requests are.
const PROMPT_BYTES: usize = 840;

/// What happened.
pub struct Report {
    /// Good answers.
    pub done: u64,
    /// Stream events seen, `[DONE]` not counted.
    pub chunks: u64,
    /// Everything else than a good answer.
    pub errors: u64,
    /// How long it really ran.
    pub took: Duration,
    latencies: Vec<Duration>,
}

impl Report {
    /// In microseconds; `NaN` without any answer.
    pub fn percentile(&self, share: f64) -> f64 {
        percentile(&self.latencies, share)
    }
}

/// Of sorted times, in microseconds; `NaN` if there are none.
pub fn percentile(sorted: &[Duration], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into a vector")]
    let rank = (sorted.len() as f64 * share) as usize;
    sorted.get(rank).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

/// What the connections share.
struct Shared {
    request: Vec<u8>,
    start: Instant,
    end: Instant,
    pace: Pace,
    sent: Cell<u64>,
    chunks: Cell<u64>,
    errors: Cell<u64>,
    latencies: RefCell<Vec<Duration>>,
}

impl Load {
    /// Chat completions to an address, as many connections at once.
    pub fn new(to: SocketAddr, connections: usize) -> Self {
        Self { to, connections, key: "none".to_owned(), streaming: false, prompt_bytes: PROMPT_BYTES, answer_bytes: 0 }
    }

    /// With a caller's key.
    pub fn with_key(mut self, key: &str) -> Self {
        key.clone_into(&mut self.key);
        self
    }

    /// The same, asking for streams.
    pub fn streaming(&self) -> Self {
        Self { streaming: true, ..self.clone() }
    }

    /// The same with a prompt of this many bytes.
    pub fn with_prompt(&self, prompt_bytes: usize) -> Self {
        Self { prompt_bytes, ..self.clone() }
    }

    /// The same, asking for answers of this many bytes; 0 for what the null upstream says by itself.
    pub fn with_answer(&self, answer_bytes: usize) -> Self {
        Self { answer_bytes, ..self.clone() }
    }

    fn members(&self) -> String {
        let stream = if self.streaming { STREAM } else { "" };
        let answer =
            if self.answer_bytes == 0 { String::new() } else { format!(r#""answer_bytes":{},"#, self.answer_bytes) };
        [stream, &answer].concat()
    }

    /// Sends until the time is up (or the count is reached) and every request has its answer.
    pub fn run(&self, pace: Pace, time: Duration) -> Report {
        let start = Instant::now();
        let shared = Rc::new(Shared {
            request: request(self.to, &self.key, self.prompt_bytes, &self.members()),
            start,
            end: start + time,
            pace,
            sent: Cell::new(0),
            chunks: Cell::new(0),
            errors: Cell::new(0),
            latencies: RefCell::new(Vec::new()),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let tasks: Vec<_> =
                (0..self.connections).map(|_| spawn_local(one_connection(self.to, Rc::clone(&shared)))).collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
        let mut latencies = shared.latencies.take();
        latencies.sort_unstable();
        Report {
            done: latencies.len() as u64,
            chunks: shared.chunks.get(),
            errors: shared.errors.get(),
            took: start.elapsed(),
            latencies,
        }
    }
}

/// Asks for a stream.
const STREAM: &str = r#""stream":true,"#;

/// A chat completion as bytes; `members` go into its body, each with its comma.
pub fn request(to: SocketAddr, key: &str, prompt_bytes: usize, members: &str) -> Vec<u8> {
    const SENTENCE: &str = "Summarise this purchase in one short sentence for the customer's statement, please. ";
    let prompt: String = SENTENCE.chars().cycle().take(prompt_bytes).collect();
    let body = format!(
        r#"{{"model":"summary",{members}"messages":[{{"role":"system","content":"Be brief."}},{{"role":"user","content":"{prompt}"}}],"temperature":0.2}}"#
    );
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {to}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         accept: application/json\r\nuser-agent: bench\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

impl Shared {
    /// When the next request is due; `None` when there is none.
    fn next(&self) -> Option<Instant> {
        let number = self.sent.get();
        let (rate, most) = match self.pace {
            Pace::Closed => return (Instant::now() < self.end).then(Instant::now),
            Pace::Rate(rate) => (rate, u64::MAX),
            Pace::Count(rate, most) => (rate, most),
        };
        let due = self.start + Duration::from_secs_f64(number as f64 / f64::from(rate));
        let more = number < most && (most < u64::MAX || due < self.end);
        more.then(|| {
            self.sent.set(number + 1);
            due
        })
    }
}

async fn one_connection(to: SocketAddr, shared: Rc<Shared>) {
    let mut connection = None;
    let mut give_up = std::pin::pin!(tokio::time::sleep(GIVE_UP));
    while let Some(mut due) = shared.next() {
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
            // The timer's own lateness (up to a millisecond) is not the proxy's.
            due = Instant::now();
        }
        // One timer a connection, moved when it is near: the load must be able to fill the proxy's core.
        if give_up.deadline() < (Instant::now() + GIVE_UP / 2).into() {
            give_up.as_mut().reset((Instant::now() + GIVE_UP).into());
        }
        let answer = tokio::select! {
            biased;
            answer = exchange(to, &mut connection, &shared.request) => Some(answer),
            () = &mut give_up => None,
        };
        if let Some(Ok(chunks)) = answer {
            shared.chunks.set(shared.chunks.get() + chunks);
            shared.latencies.borrow_mut().push(due.elapsed());
        } else {
            connection = None;
            shared.errors.set(shared.errors.get() + 1);
            // A proxy that refuses everything must not be hammered.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// One request and its whole answer; the number of events in it.
async fn exchange(to: SocketAddr, kept: &mut Option<Connection>, request: &[u8]) -> Result<u64, std::io::Error> {
    let mut connection = if let Some(connection) = kept.take() {
        connection
    } else {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Connection { stream, buffer: Vec::with_capacity(8 * 1024) }
    };
    connection.stream.write_all(request).await?;
    connection.buffer.clear();
    let head = loop {
        connection.more().await?;
        if let Some(end) = find(&connection.buffer, b"\r\n\r\n") {
            break end + 4;
        }
    };
    let lines = &connection.buffer[..head];
    if !lines.starts_with(b"HTTP/1.1 200") {
        return Err(std::io::Error::other("not a 200"));
    }
    let (length, closes) = (content_length(lines), find(lines, b"connection: close").is_some());
    let chunks = match length {
        Some(length) => connection.whole(head + length).await?,
        None => connection.chunked(head).await?,
    };
    if !closes {
        *kept = Some(connection);
    }
    Ok(chunks)
}

/// All servers here are hyper or nginx: the one writes header names in lower case, the other capitalised.
fn content_length(lines: &[u8]) -> Option<usize> {
    let name = find(lines, b"ontent-length: ").or_else(|| find(lines, b"ontent-Length: "))?;
    let digits = lines[name + 15..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0')))
}

impl Connection {
    async fn more(&mut self) -> Result<(), std::io::Error> {
        let read = self.stream.read_buf(&mut self.buffer).await?;
        if read == 0 { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    async fn whole(&mut self, length: usize) -> Result<u64, std::io::Error> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Ok(0)
    }

    /// Reads to the last chunk and counts events; a stream without `[DONE]` is an error.
    async fn chunked(&mut self, head: usize) -> Result<u64, std::io::Error> {
        while !self.buffer.ends_with(b"\r\n0\r\n\r\n") {
            self.more().await?;
        }
        let body = &self.buffer[head..];
        let events = body.windows(6).filter(|window| *window == b"data: ").count() as u64;
        let done = find(body, b"data: [DONE]").is_some();
        if events > 0 && !done { Err(std::io::Error::other("no [DONE]")) } else { Ok(events.saturating_sub(1)) }
    }
}

pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(hay, needle)
}
