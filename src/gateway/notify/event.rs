//! One event, as it goes over the wire: the same bytes at each try and in each process, the signature anew.

use std::io;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::json;
use serde_json::value::RawValue;

use crate::config::table::Webhook;
use crate::domain::clock;
use crate::domain::decision::{Decision, DecisionSource};
use crate::sign::di::{self, ResponseParts};
use crate::store::outbox::Notice;
use crate::wire::risk::{DecisionView, encode_decision};

/// The event's id, for receivers that have seen it.
pub const EVENT_HEADER: &str = "wb-event-id";

/// One event, ready to be sent again and again.
pub(in crate::gateway) struct Event {
    id: String,
    body: Bytes,
    trace_id: String,
    model_version: String,
}

impl Event {
    /// Spells the decision of a notice. All of it follows from the two, so that it can be spelled again.
    pub(in crate::gateway) fn of(notice: &Notice, out_trade_no: &str, decision: &Decision) -> Option<Self> {
        let decision = Decision { source: DecisionSource::Late, ..decision.clone() };
        let told = String::from_utf8(encode_decision(&DecisionView { out_trade_no, decision: &decision }).to_vec());
        let (id, served) = (notice.id().to_owned(), notice.served());
        let body = json!({
            "id": id,
            "type": "decision.revised",
            "created_at": clock::rfc3339(decision.created_at_ms),
            "tenant": notice.tenant(),
            "served": {
                "id": served.id,
                "action": served.action,
                "source": served.source,
                "request_id": served.request_id,
            },
            "decision": RawValue::from_string(told.ok()?).ok()?,
        });
        let provider = decision.verdict.map(|verdict| verdict.provider);
        let (trace_id, model_version) =
            provider.map_or((None, None), |provider| (provider.trace_id, provider.model_version));
        Some(Self {
            id,
            body: Bytes::from(body.to_string()),
            trace_id: trace_id.unwrap_or_default(),
            model_version: model_version.unwrap_or_default(),
        })
    }

    /// Signed now, so that a late try is not a stale one.
    pub(super) fn request(&self, hook: &Webhook) -> io::Result<Request<Full<Bytes>>> {
        let key = hook.keys.signer();
        let parts = ResponseParts {
            key_id: &key.id,
            timestamp_ms: clock::unix_ms(),
            request_nonce: &self.id,
            status: StatusCode::OK.as_u16(),
            trace_id: &self.trace_id,
            model_version: &self.model_version,
            body: &self.body,
        };
        let signature = di::sign_response(key.secret.expose(), &parts).map_err(io::Error::other)?;
        let path = if hook.url.path.is_empty() { "/" } else { &hook.url.path };
        let mut request = Request::post(path)
            .header(HOST, hook.url.authority())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("weighbridge/", env!("CARGO_PKG_VERSION")))
            .header(EVENT_HEADER, &self.id)
            .header(di::RESPONSE_HEADER, signature);
        for (name, value) in [(di::TRACE_HEADER, &self.trace_id), (di::MODEL_HEADER, &self.model_version)] {
            if !value.is_empty() {
                request = request.header(name, value);
            }
        }
        request.body(Full::new(self.body.clone())).map_err(io::Error::other)
    }
}
