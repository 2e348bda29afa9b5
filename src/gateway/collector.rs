//! Tells a collector what requests came to: takes what waits in [`Spans`], sends it over HTTP, and gives up in time.
//!
//! It runs on a thread of its own and goes by the configuration in force, so a reload turns it on, off or elsewhere. What
//! cannot be sent is tried a few times and then dropped and counted; meanwhile requests run on and the queue has a bound.
//! The log has one line when it begins to fail and one when it works again. What is told is [`crate::telemetry::traces`]'s
//! business.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::config::table::Traces;
use crate::gateway::snapshot::{Live, Shared};
use crate::telemetry::labels::TraceDrop;
use crate::telemetry::traces::{self, Instance, Spans, Told, encode, rejected};
use crate::upstream::dial::{Dial, Origin};

/// How long a request waits for others before it is told.
const GATHER: Duration = Duration::from_secs(1);
/// Between two looks at the configuration while there are no traces.
const SWEEP: Duration = Duration::from_secs(5);
/// Between tries of one message; one more try than there are pauses.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];
/// What the end of the process waits for.
const FLUSH: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const ANSWER_BYTES: usize = 64 * 1024;

/// Sends what waits.
pub struct Collector {
    live: Live,
    spans: Arc<Spans>,
    dial: Arc<dyn Dial>,
    instance: Instance,
    /// Taken from the queue and not sent yet.
    in_hand: Vec<Told>,
    failing: bool,
}

/// Why a message was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum Failure {
    /// It may be taken later.
    #[error("{0}")]
    Later(&'static str),
    /// It will never be.
    #[error("the collector answered {0}")]
    Never(StatusCode),
}

/// How often one message is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Patience {
    /// After each pause once more.
    Pauses,
    /// Once, because the process ends.
    Once,
}

impl Collector {
    /// Sends what requests of this process leave.
    pub fn new(live: &Live, shared: &Shared) -> Self {
        Self {
            live: Arc::clone(live),
            spans: Arc::clone(&shared.spans),
            dial: Arc::clone(&shared.dial),
            instance: Instance::default(),
            in_hand: Vec::new(),
            failing: false,
        }
    }

    /// Sends until `stop` says so or is gone, and then what still waits, as far as there is time.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        while self.gather(&mut stop).await {
            tokio::select! {
                () = self.send_all(Patience::Pauses) => {}
                // What is in hand is sent once more below: the collector knows a span by its id.
                _ = &mut stop => break,
            }
        }
        if timeout(FLUSH, self.send_all(Patience::Once)).await.is_err() {
            self.drop_in_hand(TraceDrop::Unreachable);
            self.spans.clear(TraceDrop::Unreachable);
        }
    }

    /// False once it is time to stop.
    async fn gather(&self, stop: &mut oneshot::Receiver<()>) -> bool {
        let pause = if self.live.load().table().traces().is_some() { GATHER } else { SWEEP };
        tokio::select! {
            _ = stop => false,
            () = sleep(pause) => true,
            () = self.spans.crowded() => true,
        }
    }

    async fn send_all(&mut self, patience: Patience) {
        loop {
            if self.in_hand.is_empty() {
                self.in_hand = self.spans.take();
            }
            if self.in_hand.is_empty() {
                return;
            }
            self.send(patience).await;
        }
    }

    /// Sends what is in hand, or drops it.
    async fn send(&mut self, patience: Patience) {
        let message = Bytes::from(encode(&self.in_hand, &self.instance));
        let mut pauses = PAUSES.into_iter().take(if patience == Patience::Once { 0 } else { PAUSES.len() });
        loop {
            let Some(traces) = self.live.load().table().traces().cloned() else {
                self.drop_in_hand(TraceDrop::Off);
                return self.spans.clear(TraceDrop::Off);
            };
            let tried = timeout(traces.timeout, post(&*self.dial, &traces, message.clone())).await;
            let tried = tried.unwrap_or(Err(Failure::Later("the collector did not answer in time")));
            self.say(&traces, tried);
            match tried {
                Ok(()) => {
                    self.spans.counts().exported(self.in_hand.len());
                    return self.in_hand.clear();
                }
                Err(Failure::Never(_)) => return self.drop_in_hand(TraceDrop::Refused),
                Err(Failure::Later(_)) => match pauses.next() {
                    Some(pause) => sleep(pause).await,
                    None => return self.drop_in_hand(TraceDrop::Unreachable),
                },
            }
        }
    }

    fn drop_in_hand(&mut self, why: TraceDrop) {
        self.spans.counts().dropped(why, self.in_hand.len());
        self.in_hand.clear();
    }

    /// Says it when it begins to fail and when it works again, and not a thousand times between.
    fn say(&mut self, traces: &Traces, tried: Result<(), Failure>) {
        let collector = traces.url.authority();
        match tried {
            Err(why) if !self.failing => {
                self.failing = true;
                let queue = traces.queue;
                tracing::warn!(collector, %why, queue, "traces are not taken by the collector; those beyond [traces] queue are dropped");
            }
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!(collector, "traces are taken by the collector again");
            }
            _ => {}
        }
    }
}

/// One try. A redirect leads nowhere.
async fn post(dial: &dyn Dial, traces: &Traces, message: Bytes) -> Result<(), Failure> {
    let request =
        request(traces, message).map_err(|_| Failure::Later("the request to the collector cannot be made"))?;
    let (status, answer) =
        exchange(dial, traces, request).await.map_err(|_| Failure::Later("the collector could not be reached"))?;
    match status.as_u16() {
        // As the protocol has it (<https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes>, read Nov 2026).
        429 | 502 | 503 | 504 => Err(Failure::Later("the collector cannot take them now")),
        _ if !status.is_success() => Err(Failure::Never(status)),
        _ => {
            let spans = rejected(&answer);
            if spans > 0 {
                tracing::debug!(spans, "the collector did not take some spans");
            }
            Ok(())
        }
    }
}

fn request(traces: &Traces, message: Bytes) -> http::Result<Request<Full<Bytes>>> {
    let length = message.len();
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(traces.url.path.as_str())
        .header(HOST, traces.url.authority())
        .header(CONTENT_TYPE, traces::CONTENT_TYPE)
        .header(CONTENT_LENGTH, length)
        .header(USER_AGENT, HeaderValue::from_static(concat!("weighbridge/", env!("CARGO_PKG_VERSION"))))
        .body(Full::new(message))?;
    request.headers_mut().extend(traces.header_fields());
    Ok(request)
}

/// A connection for each message: there is at most one a second, or one for each batch.
async fn exchange(dial: &dyn Dial, traces: &Traces, request: Request<Full<Bytes>>) -> io::Result<(StatusCode, Bytes)> {
    let url = &traces.url;
    let origin = Origin::usual(url, true);
    let (mut sender, connection) =
        handshake(TokioIo::new(dial.dial(&origin, traces.timeout).await?)).await.map_err(io::Error::other)?;
    let answered = async move {
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        Ok((status, body.map(Collected::to_bytes).unwrap_or_default()))
    };
    let (mut answered, mut connection) = (pin!(answered), pin!(connection));
    tokio::select! {
        answer = &mut answered => answer,
        // A collector that answers and closes ends both at once.
        _ = &mut connection => answered.await,
    }
}
