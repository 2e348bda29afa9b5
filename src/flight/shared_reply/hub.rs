//! What a pump and its seats have in common: what was told, who has read how much of it, and who waits for whom.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::Shown;
use crate::domain::outcome::End;
use crate::flight::error::CallError;
use crate::flight::reply::ReplyBody;
use crate::wire::sse::Event;

/// How far the pump reads ahead of the fastest seat, in bytes.
pub(super) const AHEAD_BYTES: usize = 64 * 1024;
/// How far a seat may fall behind once a reply is too long to be remembered, in bytes.
pub(super) const LAG_BYTES: usize = 256 * 1024;

/// Bytes that all shared replies together may remember, and each.
#[derive(Debug)]
pub struct Room {
    used: AtomicUsize,
    most: usize,
    each: usize,
}

impl Room {
    /// Nothing used yet.
    pub fn new(most_bytes: usize, each_bytes: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), most: most_bytes, each: each_bytes })
    }

    pub(super) fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.most);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }

    pub(super) fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Bytes remembered now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }
}

/// A place in a stream.
#[derive(Clone, Copy, Default)]
pub(super) struct Spot {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl Spot {
    pub(super) fn pass(&mut self, event: &Event) {
        self.events += 1;
        self.bytes += event.raw().len();
    }
}

#[derive(Default)]
pub(super) struct Place {
    pub(super) at: Spot,
    pub(super) waker: Option<Waker>,
    pub(super) behind: bool,
}

/// Held for a few lines each time, never across an await and never while something else is polled.
#[derive(Default)]
pub(super) struct State {
    pub(super) shown: Option<Result<Arc<Shown>, CallError>>,
    pub(super) whole: Option<Bytes>,
    /// Events some seat has not read; all of them while `recording`.
    pub(super) events: VecDeque<Event>,
    /// How many are no longer in `events`.
    pub(super) dropped: usize,
    /// After the last event.
    pub(super) told: Spot,
    pub(super) over: Option<End>,
    pub(super) seats: HashMap<u64, Place>,
    pub(super) next_seat: u64,
    pub(super) pump: Option<Waker>,
    /// The pump waits for the fastest seat.
    pub(super) pump_waits: bool,
    pub(super) recording: bool,
    pub(super) charged: usize,
    /// Nobody may come any more.
    pub(super) closed: bool,
}

pub(super) struct Hub {
    pub(super) state: Mutex<State>,
    pub(super) room: Arc<Room>,
}

impl State {
    pub(super) fn sit(&mut self) -> u64 {
        let id = self.next_seat;
        self.next_seat += 1;
        self.seats.insert(id, Place::default());
        id
    }

    /// Takes every waker out, to be woken once the lock is gone.
    pub(super) fn all_wakers(&mut self) -> Vec<Waker> {
        self.seats.values_mut().filter_map(|place| place.waker.take()).collect()
    }

    /// The pump's waker, if it waits for a seat to read on and one has.
    pub(super) fn pump_to_wake(&mut self) -> Option<Waker> {
        self.pump_waits.then(|| self.pump.take()).flatten()
    }

    pub(super) fn has_room_ahead(&self) -> bool {
        let front = self.seats.values().map(|place| place.at.bytes).max().unwrap_or(0);
        self.told.bytes.saturating_sub(front) < AHEAD_BYTES
    }

    pub(super) fn wait(&mut self, seat: u64, cx: &Context<'_>) {
        if let Some(place) = self.seats.get_mut(&seat) {
            keep_waker(&mut place.waker, cx);
        }
    }

    /// Forgets what every seat has read, and who has fallen too far behind for that.
    pub(super) fn trim(&mut self) {
        let told = self.told.bytes;
        let mut least = self.told.events;
        for place in self.seats.values_mut() {
            place.behind |= told.saturating_sub(place.at.bytes) > LAG_BYTES;
            if !place.behind {
                least = least.min(place.at.events);
            }
        }
        while self.dropped < least && self.events.pop_front().is_some() {
            self.dropped += 1;
        }
    }
}

fn keep_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

impl Hub {
    pub(super) fn new(room: Arc<Room>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { recording: true, ..State::default() }), room })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Every section leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then wakes all seats.
    pub(super) fn tell(&self, change: impl FnOnce(&mut State)) {
        let wakers = {
            let mut state = self.lock();
            change(&mut state);
            state.all_wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn push(&self, event: Event) {
        self.tell(|state| {
            let bytes = event.raw().len();
            state.told.pass(&event);
            state.events.push_back(event);
            if state.recording {
                state.recording = state.told.bytes <= self.room.each && self.room.take(bytes);
                if state.recording {
                    state.charged += bytes;
                } else {
                    self.room.give(std::mem::take(&mut state.charged));
                }
            }
            if !state.recording {
                state.trim();
            }
        });
    }

    /// True, once and for all, if nobody is left.
    pub(super) fn is_deserted(&self, cx: &Context<'_>) -> bool {
        let mut state = self.lock();
        state.closed |= state.seats.is_empty();
        keep_waker(&mut state.pump, cx);
        state.closed
    }

    /// True if the pump has to wait until the fastest seat has read on.
    pub(super) fn is_far_ahead(&self) -> bool {
        let mut state = self.lock();
        state.pump_waits = !state.has_room_ahead();
        state.pump_waits
    }

    /// What comes next, unless nobody is left or nobody is near enough to what was told last.
    pub(super) fn poll_step(&self, body: &mut ReplyBody, cx: &mut Context<'_>) -> Poll<Step> {
        if self.is_deserted(cx) {
            return Poll::Ready(Step::Deserted);
        }
        // Ending a body reads nothing, and what is booked at its end is booked before its last event is seen.
        if !body.has_told_all() && self.is_far_ahead() {
            return Poll::Pending;
        }
        body.poll_event(cx).map(|told| told.map_or_else(Step::Over, Step::Told))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let charged = self.lock().charged;
        self.room.give(charged);
    }
}

pub(super) enum Step {
    Told(Event),
    Over(End),
    Deserted,
}
