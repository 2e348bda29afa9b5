//! One reply for several askers: who comes late is told what was said so far, then what is said next.
//!
//! One [`Pump`] asks and reads; whoever wants the answer has a [`Seat`]. Seats see exactly the events of the reply, in
//! order, from the first one on. The pump goes only a little ahead of the fastest seat, so that readers who are all slow
//! slow the provider as ever, and a slow one among fast ones does not: it may lag until it is too far behind, and then
//! its stream ends in one error event. When the last seat is given up, the pump drops what it was reading.
//!
//! It deliberately knows no keys, no stores and no runtime: who may share with whom is decided above, and the pump is a
//! future that somebody else runs.

mod hub;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http::{HeaderMap, StatusCode};
use http_body::Body as _;

use self::hub::{Hub, Step};
use crate::domain::outcome::{End, FailureClass, Sent};
use crate::flight::error::{AttemptError, CallError};
use crate::flight::reply::{Reply, ReplyBody, UsageSlot};
use crate::wire::sse::Event;

pub use self::hub::Room;

/// Largest sound that several share.
const SOUND_BYTES: usize = 32 << 20;

/// What is being asked.
pub type Asking = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send>>;

/// Told once how it ended, before any seat is; says whether the answer was kept.
pub type Done = Box<dyn FnOnce(&Landing<'_>) -> bool + Send>;

/// How a shared reply ended.
pub enum Landing<'a> {
    /// A whole answer.
    Whole(&'a Shown, &'a Bytes),
    /// A stream that ended well, with all its events.
    Events(&'a Shown, &'a [Event]),
    /// It failed, or was too long to be remembered, or nobody waited for it any more.
    Unkept,
}

/// What of a reply comes before its body.
#[derive(Clone)]
pub struct Shown {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Tokens; for the one who asked, so that nothing is counted twice.
    pub usage: UsageSlot,
    /// True if the answer is whole and final.
    pub complete: bool,
    /// True if [`Done`] kept it. Not yet known of a stream.
    pub kept: bool,
}

/// Where more seats are to be had.
#[derive(Clone)]
pub struct Shared(Arc<Hub>);

/// One asker's place. Given up when dropped.
pub struct Seat {
    hub: Arc<Hub>,
    id: u64,
}

/// Asks, and reads the answer for all seats.
pub struct Pump {
    hub: Arc<Hub>,
    asking: Option<Asking>,
    done: Option<Done>,
}

/// What a seat was answered.
pub struct Answered {
    /// What comes before the body.
    pub shown: Arc<Shown>,
    /// The body.
    pub content: Content,
}

/// A body, for one seat.
pub enum Content {
    /// All of it.
    Whole(Bytes),
    /// Its events, from the first one on.
    Events(Seat),
}

/// Shares the answer to `asking`: where to join, the first seat, and what somebody must run.
pub fn share(asking: Asking, room: Arc<Room>, done: Done) -> (Shared, Seat, Pump) {
    let hub = Hub::new(room);
    let pump = Pump { hub: Arc::clone(&hub), asking: Some(asking), done: Some(done) };
    let id = hub.lock().sit();
    (Shared(Arc::clone(&hub)), Seat { hub, id }, pump)
}

impl Shared {
    /// One more seat; `None` if it is over, given up, or its beginning is no longer remembered.
    pub fn join(&self) -> Option<Seat> {
        let mut state = self.0.lock();
        let open = state.recording && !state.closed && state.over.is_none();
        let id = open.then(|| state.sit())?;
        Some(Seat { hub: Arc::clone(&self.0), id })
    }
}

impl Pump {
    /// Asks, and reads the answer to its end or until every seat is given up.
    ///
    /// # Cancel safety
    /// Dropped, it tells the seats that the reply broke off.
    pub async fn run(mut self) {
        let Some(mut asking) = self.asking.take() else { return };
        let hub = Arc::clone(&self.hub);
        let answer =
            poll_fn(|cx| if hub.is_deserted(cx) { Poll::Ready(None) } else { asking.as_mut().poll(cx).map(Some) });
        let answer = answer.await;
        drop(asking);
        match answer {
            None => {}
            Some(Ok(reply)) => self.relay(reply).await,
            Some(Err(error)) => {
                self.landed(&Landing::Unkept);
                self.hub.tell(|state| state.shown = Some(Err(error)));
            }
        }
    }

    async fn relay(&mut self, reply: Reply) {
        let Reply { status, headers, mut body, usage, complete, decision: _ } = reply;
        let hub = Arc::clone(&self.hub);
        let mut shown = Shown { status, headers, usage, complete, kept: false };
        if body.is_bytes() {
            let Some(whole) = self.collected(body).await else { return };
            body = whole;
        }
        if let Some(bytes) = body.take_whole() {
            shown.kept = self.landed(&Landing::Whole(&shown, &bytes));
            self.hub.tell(|state| {
                (state.shown, state.whole) = (Some(Ok(Arc::new(shown))), Some(bytes));
                state.over = Some(End::Complete);
            });
            return;
        }
        self.hub.tell(|state| state.shown = Some(Ok(Arc::new(shown.clone()))));
        loop {
            match poll_fn(|cx| hub.poll_step(&mut body, cx)).await {
                Step::Told(event) => self.hub.push(event),
                Step::Deserted => return,
                Step::Over(end) => return self.over(&shown, end),
            }
        }
    }

    /// Sound in one piece, because what several share must be all of it. `None` if nobody waits any more, or if it broke
    /// off and they have been told: nothing of it was shown.
    async fn collected(&mut self, mut body: ReplyBody) -> Option<ReplyBody> {
        let hub = Arc::clone(&self.hub);
        let mut sound = BytesMut::new();
        loop {
            let next = poll_fn(|cx| {
                if hub.is_deserted(cx) { Poll::Ready(None) } else { Pin::new(&mut body).poll_frame(cx).map(Some) }
            });
            match next.await? {
                None => return Some(ReplyBody::whole(sound.freeze())),
                Some(Ok(frame)) if sound.len() < SOUND_BYTES => {
                    sound.extend_from_slice(&frame.into_data().unwrap_or_default());
                }
                Some(_) => {
                    let last = AttemptError::new(FailureClass::NoContent, Sent::Yes, "the sound broke off");
                    self.landed(&Landing::Unkept);
                    let failed = CallError::Exhausted { last, retry_after: None };
                    self.hub.tell(|state| state.shown = Some(Err(failed)));
                    return None;
                }
            }
        }
    }

    fn over(&mut self, shown: &Shown, end: End) {
        let recorded = {
            let state = self.hub.lock();
            (state.recording && end == End::Complete).then(|| state.events.iter().cloned().collect::<Vec<_>>())
        };
        self.landed(&recorded.as_deref().map_or(Landing::Unkept, |events| Landing::Events(shown, events)));
        self.hub.tell(|state| state.over = Some(end));
    }

    fn landed(&mut self, landing: &Landing<'_>) -> bool {
        self.done.take().is_some_and(|done| done(landing))
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.landed(&Landing::Unkept);
        self.hub.tell(|state| {
            state.closed = true;
            state.shown.get_or_insert(Err(CallError::Internal));
            state.over.get_or_insert(End::UpstreamFailed(FailureClass::StreamCut));
        });
    }
}

impl Seat {
    /// Waits for what comes before the body.
    ///
    /// # Errors
    /// As the one call that was made failed, for every seat alike.
    ///
    /// # Cancel safety
    /// Dropping the future gives the seat up.
    pub async fn answer(self) -> Result<Answered, CallError> {
        poll_fn(|cx| {
            let mut state = self.hub.lock();
            if state.shown.is_none() {
                state.wait(self.id, cx);
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        let (shown, whole) = {
            let state = self.hub.lock();
            (state.shown.clone(), state.whole.clone())
        };
        let shown = shown.unwrap_or(Err(CallError::Internal))?;
        let content = whole.map_or_else(|| Content::Events(self), Content::Whole);
        Ok(Answered { shown, content })
    }

    /// A moment that comes when the seat has fallen too far behind: a body that [ends](crate::flight::reply::ReplyBody::end_when) then.
    pub fn falls_behind(&self) -> impl Future<Output = ()> + Send + use<> {
        let (hub, id) = (Arc::clone(&self.hub), self.id);
        // The body asks its stream first, which leaves the waker.
        poll_fn(move |_| {
            let behind = hub.lock().seats.get(&id).is_some_and(|place| place.behind);
            if behind { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    fn poll_told(&self, cx: &Context<'_>) -> Poll<Option<Result<Event, FailureClass>>> {
        let mut state = self.hub.lock();
        let (first, over) = (state.dropped, state.over);
        let Some(place) = state.seats.get(&self.id) else { return Poll::Ready(None) };
        let number = place.at.events.checked_sub(first).filter(|_| !place.behind);
        let event = number.and_then(|number| state.events.get(number)).cloned();
        let Some(event) = event else {
            state.wait(self.id, cx);
            let behind = number.is_none();
            return match over {
                None => Poll::Pending,
                Some(_) if behind => Poll::Pending,
                Some(End::Complete) => Poll::Ready(None),
                Some(End::UpstreamFailed(class)) => Poll::Ready(Some(Err(class))),
                Some(_) => Poll::Ready(Some(Err(FailureClass::StreamCut))),
            };
        };
        if let Some(place) = state.seats.get_mut(&self.id) {
            place.at.pass(&event);
        }
        if !state.recording {
            state.trim();
        }
        let pump = state.pump_to_wake();
        drop(state);
        pump.into_iter().for_each(Waker::wake);
        Poll::Ready(Some(Ok(event)))
    }
}

impl Stream for Seat {
    type Item = Result<Event, FailureClass>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_told(cx)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let pump = {
            let mut state = self.hub.lock();
            state.seats.remove(&self.id);
            if !state.recording {
                state.trim();
            }
            // Nobody may be left, or the fastest may be gone.
            state.pump.take()
        };
        pump.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests;
