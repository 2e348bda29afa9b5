//! The simulated merchants: they ask the proxy about every payment of a simulated town, at a steady rate, and count what
//! they are told.
//!
//! It exists so that a curious user sees decisions without writing a client. It speaks plain HTTP/1 to one address, the
//! proxy's own, and tells nobody what is true: that stays with the simulated Alipay. It measures nothing; benches do.

use std::fmt;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep, sleep_until, timeout};

use super::simulator::{Options, Payment, Simulator};
use crate::domain::clock;

/// The day the traffic begins with: the first one on which as many terminals are compromised as ever.
const FIRST_DAY: u32 = 28;
/// Requests at once. A proxy that needs longer gets less traffic, not more connections.
const MOST_LANES: u32 = 64;
/// How often the counts are told.
const REPORT: Duration = Duration::from_secs(10);
/// An answer is far smaller.
const LARGEST_ANSWER: usize = 64 * 1024;
/// Longer than any deadline of a risk route.
const GIVE_UP: Duration = Duration::from_secs(60);
/// After a failure, so that a proxy that is going away is not hammered.
const PAUSE: Duration = Duration::from_millis(200);

/// What to send where.
#[derive(Clone)]
pub struct Traffic {
    /// The proxy's data address.
    pub to: SocketAddr,
    /// The caller's key.
    pub key: String,
    /// Which town pays.
    pub seed: u64,
    /// Payments a second.
    pub a_second: u32,
}

/// What the proxy said so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// PASS, CHALLENGE, REVIEW and REJECT.
    pub actions: [u64; 4],
    /// Those of them that are a fallback's.
    pub fallbacks: u64,
    /// Anything else than a decision.
    pub errors: u64,
}

const ACTIONS: [&str; 4] = ["PASS", "CHALLENGE", "REVIEW", "REJECT"];

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} decisions", self.actions.iter().sum::<u64>())?;
        for (action, count) in ACTIONS.iter().zip(self.actions) {
            write!(f, ", {count} {action}")?;
        }
        write!(f, "; {} without the provider, {} errors", self.fallbacks, self.errors)
    }
}

/// The payments still to be sent, in order, day after day and then from the beginning.
struct Feed {
    town: Simulator,
    run: String,
    day: u32,
    today: std::vec::IntoIter<Payment>,
    due: Instant,
    apart: Duration,
}

impl Feed {
    /// The next body, and when it leaves.
    fn next(&mut self) -> Option<(Instant, Bytes)> {
        // A town of this size has payments every day, but the loop must end for any.
        let mut days = 0;
        let payment = loop {
            if let Some(payment) = self.today.next() {
                break payment;
            }
            days += 1;
            if days > self.town.options().days {
                return None;
            }
            self.day = (self.day + 1) % self.town.options().days;
            if self.day == 0 {
                self.run = run_name();
            }
            self.today = self.town.day(self.day).into_iter();
        };
        // What could not be sent in time is not made up for.
        self.due = (self.due + self.apart).max(Instant::now());
        Some((self.due, Bytes::from(self.town.request(&payment, &self.run).to_string())))
    }
}

/// Tells one run's numbers from another's: seconds since 1970.
fn run_name() -> String {
    format!("{:x}", clock::unix_ms() / 1_000)
}

/// What the lanes share. Blocking locks, never held across an await.
struct Shared {
    traffic: Traffic,
    feed: Mutex<Feed>,
    counts: Mutex<Counts>,
}

impl Traffic {
    /// Sends until it is dropped; `tell` hears the counts every ten seconds.
    ///
    /// # Errors
    /// When there is no such town.
    ///
    /// # Cancel safety
    /// Dropping the future ends every request at once.
    pub async fn run(self, mut tell: impl FnMut(&Counts)) -> io::Result<()> {
        let town = Simulator::new(Options::sandbox(self.seed)).map_err(io::Error::other)?;
        let apart = Duration::from_secs(1) / self.a_second.max(1);
        let (day, today) = (FIRST_DAY, town.day(FIRST_DAY).into_iter());
        let feed = Feed { town, run: run_name(), day, today, due: Instant::now(), apart };
        let lanes = self.a_second.clamp(1, MOST_LANES);
        let shared = Arc::new(Shared { traffic: self, feed: Mutex::new(feed), counts: Mutex::default() });
        let mut running = JoinSet::new();
        for _ in 0..lanes {
            running.spawn(lane(Arc::clone(&shared)));
        }
        let mut reports = interval_at(Instant::now() + REPORT, REPORT);
        loop {
            reports.tick().await;
            let counts = *shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
            tell(&counts);
        }
    }
}

async fn lane(shared: Arc<Shared>) {
    let mut kept = None;
    loop {
        let next = shared.feed.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some((due, body)) = next else { return pending().await };
        sleep_until(due).await;
        let answer = timeout(GIVE_UP, ask(&shared.traffic, &mut kept, body)).await;
        let said = answer.map_or(None, Result::ok).as_deref().and_then(decision);
        if said.is_none() {
            kept = None;
            sleep(PAUSE).await;
        }
        let mut counts = shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match said.and_then(|(action, fallback)| Some((counts.actions.get_mut(action)?, fallback))) {
            Some((count, fallback)) => {
                *count += 1;
                counts.fallbacks += u64::from(fallback);
            }
            None => counts.errors += 1,
        }
    }
}

/// Which action it is, and whether the provider had no part in it.
fn decision(answer: &[u8]) -> Option<(usize, bool)> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let action = answer.get("action")?.as_str()?;
    let fallback = answer.get("source")?.as_str()? == "fallback";
    Some((ACTIONS.iter().position(|known| *known == action)?, fallback))
}

async fn ask(traffic: &Traffic, kept: &mut Option<SendRequest<Full<Bytes>>>, body: Bytes) -> io::Result<Bytes> {
    let mut sender = match kept.take().filter(|sender| !sender.is_closed()) {
        Some(sender) => sender,
        None => connect(traffic.to).await?,
    };
    sender.ready().await.map_err(io::Error::other)?;
    let request = Request::post("/v1/risk/assessments")
        .header(HOST, traffic.to.to_string())
        .header(AUTHORIZATION, format!("Bearer {}", traffic.key))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let answer = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await.map_err(io::Error::other)?;
    *kept = Some(sender);
    Ok(answer.to_bytes())
}

async fn connect(to: SocketAddr) -> io::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // It ends with its sender, and what it fails of the sender is told too.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_read_and_anything_else_is_none() {
        assert_eq!(decision(br#"{"action":"REVIEW","source":"fallback"}"#), Some((2, true)));
        assert_eq!(decision(br#"{"action":"PASS","source":"live"}"#), Some((0, false)));
        for other in [&b""[..], b"[]", br#"{"action":"MAYBE","source":"live"}"#, br#"{"action":"PASS"}"#] {
            assert_eq!(decision(other), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn payments_leave_at_the_rate_and_no_two_have_one_number() {
        let town = Simulator::new(Options { customers: 50, terminals: 100, days: 31, ..Options::sandbox(1) }).unwrap();
        let (apart, today) = (Duration::from_millis(100), town.day(FIRST_DAY).into_iter());
        let start = Instant::now();
        let mut feed = Feed { town, run: "r".into(), day: FIRST_DAY, today, due: start, apart };
        let mut numbers = std::collections::HashSet::new();
        for number in 1..=200 {
            let (due, body) = feed.next().unwrap();
            assert_eq!(due, start + apart * number);
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert!(numbers.insert(body["out_trade_no"].as_str().unwrap().to_owned()));
        }
        assert!(feed.day > FIRST_DAY, "the next day follows");
    }
}
