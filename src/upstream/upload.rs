//! One attempt with a form: its beginning with the provider's model name, then the rest as the caller sends it.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;

use crate::domain::outcome::{FailureClass, Sent};
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::flight::upload::Upload;
use crate::upstream::attempt::Attempt;
use crate::upstream::body::RequestBody;
use crate::upstream::exchange::exchange_once;
use crate::upstream::live::LiveUpstream;
use crate::upstream::openai::{self, Spoken};

/// Sends the form to one upstream.
///
/// # Errors
/// [`AttemptError`], classified. What the caller did wrong is nobody's failure here; the upload knows it.
///
/// # Cancel safety
/// Dropping the future closes the upstream connection, and nothing more is taken from the caller.
pub async fn send(
    upload: &Arc<Upload>,
    spoken: &Spoken<'_>,
    attempt: &Attempt,
    upstream: &LiveUpstream,
) -> Result<Reply, AttemptError> {
    if upload.is_spent() {
        return Err(AttemptError::local(FailureClass::Full, None, "an earlier attempt took the upload"));
    }
    let turn = upload.turn();
    let body = RequestBody::Upload(Box::new(turn.body(renamed(&attempt.call.body, upload, &upstream.names.model))));
    let mut request = openai::request(body, spoken, &attempt.call, upstream);
    request.headers_mut().insert(CONTENT_TYPE, upload.content_type.clone());
    // A kept connection may have died unseen, and what an upload sends into one cannot be sent again.
    let answered = match exchange_once(&upstream.provider, request, attempt.connect).await {
        Ok(response) => openai::read(response, spoken, attempt, upstream).await,
        Err(error) => Err(error),
    };
    let mut reply = answered.map_err(|error| if upload.fault().is_some() { callers_fault() } else { error })?;
    reply.body.on_end(move |_| drop(turn));
    Ok(reply)
}

/// The beginning around another name. Nothing is copied.
fn renamed(kept: &Bytes, upload: &Upload, model: &str) -> [Bytes; 3] {
    let at = upload.fields.model.clone().unwrap_or_default();
    let (start, end) = (at.start.min(kept.len()), at.end.min(kept.len()));
    [kept.slice(..start), Bytes::copy_from_slice(model.as_bytes()), kept.slice(end..)]
}

fn callers_fault() -> AttemptError {
    AttemptError::new(FailureClass::DeadlinePassed, Sent::Maybe, "the caller's upload broke off")
}
