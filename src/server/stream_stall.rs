//! The write deadline of HTTP/2, where a client refuses one stream's bytes by not opening its window (T3, P5).
//!
//! No write waits then, so [`super::io_deadline`] sees nothing: hyper holds the stream's next frame and polls its body no
//! more. Each stream is a task; [`Watched`] is that task. The body tells it, through a thread-local that only lives for
//! the duration of one poll, whether hyper still holds a frame. A stream that makes no progress for too long is dropped,
//! which resets it and leaves the connection's other streams alone.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

#[derive(Clone, Copy, Default)]
struct Seen {
    /// hyper took a frame and has not asked for another.
    holds_frame: bool,
    /// The body was polled at all.
    polled: bool,
}

thread_local! {
    static SEEN: Cell<Seen> = const { Cell::new(Seen { holds_frame: false, polled: false }) };
}

/// A body was polled, and did or did not give a frame.
pub(super) fn body_polled(gave_frame: bool) {
    SEEN.set(Seen { holds_frame: gave_frame, polled: true });
}

/// Runs HTTP/2 streams as tasks of the current runtime, each under its own write deadline.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamExecutor {
    pub(super) write_stall: Duration,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(Watched {
            stream,
            write_stall: self.write_stall,
            seen: Seen::default(),
            timer: None,
            armed: false,
        });
    }
}

pin_project! {
    struct Watched<F> {
        #[pin]
        stream: F,
        write_stall: Duration,
        seen: Seen,
        timer: Option<Pin<Box<Sleep>>>,
        armed: bool,
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        SEEN.set(Seen { polled: false, ..*this.seen });
        let done = this.stream.poll(cx);
        *this.seen = SEEN.take();
        if done.is_ready() {
            return done;
        }
        if !this.seen.holds_frame {
            *this.armed = false;
            return Poll::Pending;
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(*this.write_stall)));
        if this.seen.polled || !*this.armed {
            *this.armed = true;
            timer.as_mut().reset(Instant::now() + *this.write_stall);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(())
    }
}
