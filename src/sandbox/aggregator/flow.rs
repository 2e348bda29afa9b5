//! A body as a list of steps in time, and the record of how far it got.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::Sleep;

use super::speech::Chunks;
use crate::sandbox::fault::Fault;

/// The pause before a body breaks off, in which what was sent before leaves the process.
const BEFORE_BREAK: Duration = Duration::from_millis(1);

/// What a body does next.
#[derive(Clone)]
pub(super) enum Step {
    Wait(Duration),
    Send(Bytes),
    /// The connection ends abnormally.
    Fail,
    /// Nothing more comes and nothing ends.
    Hang,
}

/// How far one answer got.
#[derive(Default)]
pub(super) struct Progress {
    finished: AtomicBool,
    cancelled: AtomicBool,
    chunks: AtomicUsize,
}

impl Progress {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub(super) fn chunks_sent(&self) -> usize {
        self.chunks.load(Ordering::Relaxed)
    }
}

/// Held by whoever is answering. Dropped before it is finished, it notes that the caller left.
pub(super) struct Watch(Arc<Progress>);

impl Watch {
    pub(super) fn new(progress: Arc<Progress>) -> Self {
        Self(progress)
    }

    /// The answer is all there is to be, or ends by our own will.
    pub(super) fn finish(&self) {
        self.0.finished.store(true, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.0.finished.load(Ordering::Relaxed) {
            self.0.cancelled.store(true, Ordering::Relaxed);
        }
    }
}

/// How fast events come.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Before the first content event.
    pub(super) first: Duration,
    /// Between two of them.
    pub(super) between: Duration,
}

/// The steps of a stream, as far as the fault lets it come.
pub(super) fn events(chunks: Chunks, fault: Option<&Fault>, pace: Pace) -> Vec<Step> {
    let broken = match fault {
        Some(Fault::CutAfter(events)) => Some((*events, Step::Fail)),
        Some(Fault::StallAfter(events)) => Some((*events, Step::Hang)),
        _ => None,
    };
    let mut steps = vec![Step::Send(chunks.start)];
    let shown = broken.as_ref().map_or(usize::MAX, |(events, _)| *events);
    for (number, chunk) in chunks.content.into_iter().enumerate().take(shown) {
        steps.push(Step::Wait(if number == 0 { pace.first } else { pace.between }));
        steps.push(Step::Send(chunk));
    }
    match broken {
        Some((_, step)) => steps.extend([Step::Wait(BEFORE_BREAK), step]),
        None => steps.extend(chunks.end.into_iter().map(Step::Send)),
    }
    steps
}

/// The steps of a whole answer, of which a fault lets half come.
pub(super) fn whole(json: &Bytes, fault: Option<&Fault>) -> Vec<Step> {
    let half = Step::Send(json.slice(..json.len() / 2));
    match fault {
        Some(Fault::CutAfter(_)) => vec![half, Step::Wait(BEFORE_BREAK), Step::Fail],
        Some(Fault::StallAfter(_)) => vec![half, Step::Hang],
        _ => vec![Step::Send(json.clone())],
    }
}

/// The body that takes the steps.
pub(super) struct Flow {
    steps: VecDeque<Step>,
    waiting: Option<Pin<Box<Sleep>>>,
    watch: Watch,
}

impl Flow {
    pub(super) fn new(steps: Vec<Step>, watch: Watch) -> Self {
        if steps.is_empty() {
            watch.finish();
        }
        Self { steps: steps.into(), waiting: None, watch }
    }
}

impl Body for Flow {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            if let Some(sleep) = &mut self.waiting {
                ready!(sleep.as_mut().poll(cx));
                self.waiting = None;
            }
            let Some(step) = self.steps.pop_front() else { return Poll::Ready(None) };
            // A body of known length is not polled again after its last byte.
            if self.steps.is_empty() && !matches!(step, Step::Hang) {
                self.watch.finish();
            }
            match step {
                Step::Wait(time) if time.is_zero() => {}
                Step::Wait(time) => self.waiting = Some(Box::pin(tokio::time::sleep(time))),
                Step::Send(bytes) => {
                    self.watch.0.chunks.fetch_add(1, Ordering::Relaxed);
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Step::Fail => return Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into()))),
                Step::Hang => {
                    // No waker is kept: only the caller leaving ends this, and hyper notices that by itself.
                    self.steps.push_front(Step::Hang);
                    return Poll::Pending;
                }
            }
        }
    }
}
