//! `decision.revised`: tells a tenant's webhook that a late verdict is worse than the answer that was served.
//!
//! At least once: the same event, under the same id, until the receiver answers 2xx or all tries are used up. It is signed
//! in the response form of `di-hmac`, the event's id in the place of the nonce. Everything has a bound: notices under way,
//! tries, their times, the dead letters that are kept to be seen. A notice goes where the configuration of its request
//! said. It does not outlive the process: what is under way when that ends is lost, and the verdict itself can still be
//! asked for under the same `out_trade_no` as long as it is remembered.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};

use crate::config::table::{Webhook, Webhooks};
use crate::domain::clock;
use crate::domain::decision::{Decision, DecisionSource};
use crate::layer::BoxFuture;
use crate::layer::soft_deadline::{Revise, Revision};
use crate::sign::di::{self, ResponseParts};
use crate::telemetry::labels::Notice;
use crate::telemetry::metrics::Metrics;
use crate::upstream::dial::{Dial, Origin};
use crate::wire::risk::{DecisionView, encode_decision};

/// Notices under way at once.
const MOST_PENDING: usize = 1_000;
/// Dead letters kept to be seen.
const MOST_DEAD: usize = 100;
/// What one try may take.
const TRY: Duration = Duration::from_secs(10);
/// Between tries, in seconds; one more try than there are pauses.
const PAUSES: [u64; 6] = [1, 5, 30, 120, 600, 1_800];
/// The event's id, for receivers that have seen it.
pub const EVENT_HEADER: &str = "wb-event-id";

/// What became of notices, for the life of the process.
#[derive(Default)]
pub struct Notices {
    pending: AtomicUsize,
    delivered: AtomicU64,
    /// A blocking lock, held for a push or a copy.
    dead: Mutex<VecDeque<DeadLetter>>,
}

/// A notice that was given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    /// The event.
    pub event: String,
    /// Whose it is.
    pub tenant: String,
    /// The decision it tells of.
    pub decision: String,
    /// When it was given up, milliseconds since 1970.
    pub at_ms: u64,
    /// Tries made.
    pub tries: usize,
    /// What the last one ended with.
    pub failure: &'static str,
}

impl Notices {
    /// Under way now.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Accepted by their receivers since the start.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// The newest hundred that were given up, oldest first.
    pub fn dead(&self) -> Vec<DeadLetter> {
        self.letters().iter().cloned().collect()
    }

    fn letters(&self) -> MutexGuard<'_, VecDeque<DeadLetter>> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bury(&self, letter: DeadLetter) {
        let mut letters = self.letters();
        if letters.len() >= MOST_DEAD {
            letters.pop_front();
        }
        letters.push_back(letter);
    }

    fn enter(self: &Arc<Self>) -> Option<Pending> {
        let more = |pending| (pending < MOST_PENDING).then_some(pending + 1);
        let entered = self.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        entered.ok().map(|_| Pending(Arc::clone(self)))
    }
}

/// A place among those under way.
struct Pending(Arc<Notices>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends notices to the webhooks of one configuration.
pub struct Notifier {
    hooks: Webhooks,
    dial: Arc<dyn Dial>,
    notices: Arc<Notices>,
    metrics: Arc<Metrics>,
}

/// One event, ready to be sent again and again.
struct Event {
    id: String,
    body: Bytes,
    trace_id: String,
    model_version: String,
}

impl Notifier {
    /// `None` without any webhook, so that nothing is prepared for nobody.
    pub fn wanted(
        hooks: &Webhooks,
        dial: &Arc<dyn Dial>,
        notices: &Arc<Notices>,
        metrics: &Arc<Metrics>,
    ) -> Option<Arc<dyn Revise>> {
        let (dial, notices, metrics) = (Arc::clone(dial), Arc::clone(notices), Arc::clone(metrics));
        (!hooks.is_empty()).then(|| Arc::new(Self { hooks: hooks.clone(), dial, notices, metrics }) as Arc<dyn Revise>)
    }

    async fn deliver(&self, hook: &Webhook, revision: &Revision) {
        let Some(event) = event(revision) else { return };
        let Some(_pending) = self.notices.enter() else {
            return self.give_up(revision, &event, 0, "too many notices are under way");
        };
        let mut failure = "";
        for pause in PAUSES.map(Some).into_iter().chain([None]) {
            match timeout(TRY, self.attempt(hook, &event)).await {
                Ok(Ok(status)) if status.is_success() => {
                    self.metrics.notice(Notice::Delivered);
                    self.notices.delivered.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Ok(Ok(_)) => failure = "the receiver did not answer 2xx",
                Ok(Err(_)) => failure = "the receiver could not be reached",
                Err(_) => failure = "the receiver did not answer in time",
            }
            self.metrics.notice(Notice::Failed);
            if let Some(seconds) = pause {
                // 80 % to 120 %, so that a receiver that comes back is not met by all at once.
                sleep(Duration::from_millis(seconds * 10 * (80 + clock::unix_ms() % 41))).await;
            }
        }
        self.give_up(revision, &event, PAUSES.len() + 1, failure);
    }

    fn give_up(&self, revision: &Revision, event: &Event, tries: usize, failure: &'static str) {
        self.metrics.notice(Notice::Dead);
        let (decision, tenant) = (revision.decision.id.to_string(), revision.context.caller.tenant.to_string());
        tracing::warn!(event = %event.id, %tenant, %decision, tries, failure, "a late verdict could not be told");
        let (event, at_ms) = (event.id.clone(), clock::unix_ms());
        self.notices.bury(DeadLetter { event, tenant, decision, at_ms, tries, failure });
    }

    /// Signed anew each time, so that a late try is not a stale one.
    async fn attempt(&self, hook: &Webhook, event: &Event) -> io::Result<StatusCode> {
        let (host, port) = (hook.url.host.clone(), hook.url.port);
        let origin = Origin { tls: hook.url.tls, host, port, allow_private: hook.allow_private };
        let request = signed(hook, event)?;
        let stream = self.dial.dial(&origin).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let (mut answer, mut connection) = (pin!(sender.send_request(request)), pin!(connection));
        let answer = tokio::select! {
            answer = &mut answer => answer,
            // A receiver that answers and closes ends both at once.
            _ = &mut connection => answer.await,
        };
        // The answer's body is nobody's business, and a redirect leads nowhere.
        answer.map(|answer| answer.status()).map_err(io::Error::other)
    }
}

impl Revise for Notifier {
    fn revised(self: Arc<Self>, revision: Revision) -> BoxFuture<()> {
        Box::pin(async move {
            if let Some(hook) = self.hooks.get(&revision.context.caller.tenant) {
                self.deliver(hook, &revision).await;
            }
        })
    }
}

fn event(revision: &Revision) -> Option<Event> {
    let id = di::fresh_nonce().ok()?;
    let decision = Decision { source: DecisionSource::Late, ..revision.decision.as_ref().clone() };
    let view = DecisionView { out_trade_no: &revision.facts.assessment.out_trade_no, decision: &decision };
    let told = String::from_utf8(encode_decision(&view).to_vec()).ok()?;
    let body = json!({
        "id": id,
        "type": "decision.revised",
        "created_at": clock::rfc3339(clock::unix_ms()),
        "tenant": revision.context.caller.tenant.as_str(),
        "served": {
            "id": revision.served.id.as_str(),
            "action": revision.served.action.as_str(),
            "source": revision.served.source.as_str(),
            "request_id": revision.context.id.as_str(),
        },
        "decision": RawValue::from_string(told).ok()?,
    });
    let provider = decision.verdict.map(|verdict| verdict.provider);
    let (trace_id, model_version) =
        provider.map_or((None, None), |provider| (provider.trace_id, provider.model_version));
    Some(Event {
        id,
        body: Bytes::from(body.to_string()),
        trace_id: trace_id.unwrap_or_default(),
        model_version: model_version.unwrap_or_default(),
    })
}

fn signed(hook: &Webhook, event: &Event) -> io::Result<Request<Full<Bytes>>> {
    let key = hook.keys.signer();
    let parts = ResponseParts {
        key_id: &key.id,
        timestamp_ms: clock::unix_ms(),
        request_nonce: &event.id,
        status: StatusCode::OK.as_u16(),
        trace_id: &event.trace_id,
        model_version: &event.model_version,
        body: &event.body,
    };
    let signature = di::sign_response(key.secret.expose(), &parts).map_err(io::Error::other)?;
    let path = if hook.url.path.is_empty() { "/" } else { &hook.url.path };
    let mut request = Request::post(path)
        .header(HOST, hook.url.authority())
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("weighbridge/", env!("CARGO_PKG_VERSION")))
        .header(EVENT_HEADER, &event.id)
        .header(di::RESPONSE_HEADER, signature);
    for (name, value) in [(di::TRACE_HEADER, &event.trace_id), (di::MODEL_HEADER, &event.model_version)] {
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    request.body(Full::new(event.body.clone())).map_err(io::Error::other)
}
