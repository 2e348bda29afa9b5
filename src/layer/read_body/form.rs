//! Receives the beginning of a form: as much as is needed to know where it goes, and to send it again.
//!
//! A form is read until its `model` is known, and up to [`KEPT`] bytes beyond that so that a small one is whole and can
//! fail over like any other call. Many clients (curl, the Node SDK) write the file first and the model after it: those
//! are received whole, within the limit of all bodies. The rest of the others stays with the caller until a provider
//! polls it ([`Upload`]).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use http_body::Body;
use http_body_util::BodyExt;

use crate::flight::error::CallError;
use crate::flight::trail::Trail;
use crate::flight::upload::{BrokeOff, Coming, Received, Upload};
use crate::layer::read_body::Room;
use crate::upstream::patience::within;
use crate::wire::multipart::{Boundary, FormError, Scanner};

/// What of a form is kept at least: a minute of speech at 128 kbit/s. A larger one is tried once, and it is worth asking
/// its caller for it again rather than keeping it in memory for as long as a provider listens.
const KEPT: usize = 1024 * 1024;

/// How a form is to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Keep {
    /// Its beginning, if that says enough.
    Beginning,
    /// All of it: it may be compared with another.
    All,
}

/// Receives a form, or its beginning.
pub(super) async fn receive<B>(
    mut body: B,
    boundary: &Boundary,
    (room, keep, weigh): (Room, Keep, &mut (dyn FnMut(usize) -> Result<(), CallError> + Send)),
    trail: &Trail,
) -> Result<Received, CallError>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    let mut scanner = Scanner::new(boundary);
    let mut kept = BytesMut::new();
    let complete = loop {
        if body.is_end_stream() {
            break true;
        }
        if keep == Keep::Beginning && kept.len() >= KEPT && scanner.fields().model.is_some() {
            break false;
        }
        let frame = within(room.idle, body.frame()).await.map_err(|_| CallError::BodyIncomplete)?;
        let Some(frame) = frame else { break true };
        let frame = frame.map_err(|_| CallError::Framing("the request body is malformed or broke off"))?;
        let Ok(chunk) = frame.into_data() else { continue };
        if kept.len() + chunk.len() > room.limit_bytes {
            return Err(CallError::BodyTooLarge { limit_bytes: room.limit_bytes });
        }
        weigh(kept.len() + chunk.len())?;
        scanner.feed(&chunk).map_err(refused)?;
        kept.extend_from_slice(&chunk);
    };
    if complete {
        scanner.finish().map_err(refused)?;
    }
    trail.lock().bytes_in = kept.len() as u64;
    let content_type = HeaderValue::try_from(boundary.content_type()).map_err(|_| CallError::Internal)?;
    let fields = scanner.fields().clone();
    let left = room.limit_bytes - kept.len();
    let coming = (!complete).then(|| Coming {
        body: body.map_err(|_| BrokeOff).boxed_unsync(),
        scanner,
        left,
        limit_bytes: room.limit_bytes,
        idle: room.idle,
        trail: trail.clone(),
    });
    let upload = Arc::new(Upload::new(content_type, fields, coming));
    Ok(Received { bytes: kept.freeze(), upload: Some(upload) })
}

pub(super) fn refused(error: FormError) -> CallError {
    CallError::BadRequest { message: error.message.to_owned(), param: error.param.map(str::to_owned) }
}
