//! How a connection is taken out of hyper's hands between an answer's head and its body.
//!
//! Three parties share a [`Hold`]: the connection's bytes ([`super::interim`]), which keep back what follows the head; the
//! task that drives hyper, which lets go of the connection; and the pool, which decides. It holds no policy: which answers
//! are read without hyper, and why, is in [`super::pool`].

use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::task::AtomicWaker;

use crate::upstream::dial::Io;

/// Everything passes: the state of every connection that serves no stream.
const PASS: u8 = 0;
/// The next head is the last that hyper shall see for now.
const WANTED: u8 = 1;
/// That head was read, and nothing that follows it is shown.
const HELD: u8 = 2;
/// hyper's task shall let go.
const LEAVING: u8 = 3;
/// hyper's task has ended.
const GONE: u8 = 4;

/// A connection without hyper, and the bytes that were read and not shown.
pub struct Given {
    /// What carries it.
    pub io: Box<dyn Io>,
    /// What comes before its next byte.
    pub rest: Bytes,
}

/// What the three parties know of each other.
#[derive(Default)]
pub struct Hold {
    state: AtomicU8,
    reader: AtomicWaker,
    driver: AtomicWaker,
    taker: AtomicWaker,
    given: Mutex<Option<Given>>,
}

impl Hold {
    /// Asks for the next head to be hyper's last. Say so before its request is handed over.
    pub fn want(&self) {
        self.state.store(WANTED, Ordering::Release);
    }

    /// True if something is asked for: all others need not look any further.
    pub fn is_on(&self) -> bool {
        self.state.load(Ordering::Acquire) != PASS
    }

    /// True between the request and the end of its answer's head.
    pub fn is_wanted(&self) -> bool {
        self.state.load(Ordering::Acquire) == WANTED
    }

    /// Notes that the head was read, and what follows is kept back.
    pub fn head_is_over(&self) {
        self.state.store(HELD, Ordering::Release);
    }

    /// Lets hyper read on.
    pub fn release(&self) {
        self.state.store(PASS, Ordering::Release);
        self.reader.wake();
    }

    /// Ready while hyper may read.
    pub fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        self.reader.register(cx.waker());
        match self.state.load(Ordering::Acquire) {
            HELD | LEAVING => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }

    /// Takes the connection out of hyper's hands; `None` if it is not held, or has broken meanwhile.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the connection to nobody: it is closed with the last of the three.
    pub async fn take(&self) -> Option<Given> {
        self.state.compare_exchange(HELD, LEAVING, Ordering::AcqRel, Ordering::Acquire).ok()?;
        self.driver.wake();
        poll_fn(|cx| {
            self.taker.register(cx.waker());
            if self.state.load(Ordering::Acquire) == GONE { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.given.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// True if hyper's task shall let go now; if not yet, `waker` is told.
    pub fn is_leaving(&self, waker: &Waker) -> bool {
        self.driver.register(waker);
        self.state.load(Ordering::Acquire) == LEAVING
    }

    /// Hands the connection over.
    pub fn give(&self, given: Given) {
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = Some(given);
    }

    /// Notes that hyper's task has ended.
    pub fn driver_ended(&self) {
        self.state.store(GONE, Ordering::Release);
        self.taker.wake();
    }
}
