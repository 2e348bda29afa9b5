//! A stream's heartbeat: a comment in each stretch of time in which its client was told nothing else.
//!
//! Load balancers close what is silent for a minute, and models think for longer. Readers of server-sent events skip
//! comments. It looks once in a stretch whether something was said, and never at the clock in between, so that a stream
//! that flows pays next to nothing for it; a silence is therefore broken after one stretch at the earliest and two at the
//! latest.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep};

/// What is said.
const COMMENT: &[u8] = b": keep-alive\n\n";

/// One stream's.
pub(super) struct Heartbeat {
    every: Duration,
    /// From the first time that nothing was there to be said.
    alarm: Option<Pin<Box<Sleep>>>,
    /// How much had been said when it last looked.
    frames: u64,
}

impl Heartbeat {
    /// One that has not begun.
    pub(super) fn new(every: Duration) -> Self {
        Self { every, alarm: None, frames: 0 }
    }

    /// Ready with a comment once a stretch has passed in which the number of `frames` stayed what it was.
    pub(super) fn poll(&mut self, frames: u64, cx: &mut Context<'_>) -> Poll<Bytes> {
        let alarm = self.alarm.get_or_insert_with(|| {
            self.frames = frames;
            Box::pin(sleep(self.every))
        });
        loop {
            ready!(alarm.as_mut().poll(cx));
            alarm.as_mut().reset(Instant::now() + self.every);
            let silent = self.frames == frames;
            self.frames = frames;
            if silent {
                return Poll::Ready(Bytes::from_static(COMMENT));
            }
        }
    }
}
