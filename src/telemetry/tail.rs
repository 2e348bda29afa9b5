//! Access lines for people who read along while it happens.
//!
//! Each reader has a short queue of finished lines. Nobody waits for a reader: what finds its queue full is left out and
//! counted, and the reader is told how many lines it missed. While nobody reads, a call pays one load.
//!
//! It deliberately keeps nothing: who comes later sees later calls. What a line says is the access log's business.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::labels::RequestOutcome;

/// Most readers at once.
pub const MOST_READERS: usize = 8;
/// Lines that wait for one reader: 50 ms of them at 5,000 calls a second.
const QUEUE: usize = 256;
/// Longest line that is shown; names are far shorter, so this only bounds what a reader can hold.
const LONGEST_LINE: usize = 16 * 1024;

/// Which calls somebody wants to see; the default is all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Only of this route.
    pub route: Option<String>,
    /// Only of this caller.
    pub caller: Option<String>,
    /// Only those that ended in one of these ways; empty for all.
    pub outcomes: Vec<RequestOutcome>,
}

/// What a call is filtered by.
#[derive(Clone, Copy, Debug)]
pub struct Traits<'a> {
    /// The route that was chosen.
    pub route: Option<&'a str>,
    /// Who called.
    pub caller: Option<&'a str>,
    /// How it ended for the caller.
    pub outcome: RequestOutcome,
}

/// As many read along as may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{MOST_READERS} readers follow already, end one of them")]
pub struct Crowded;

/// Where lines are handed out.
#[derive(Default)]
pub struct Tail {
    /// How many seats are taken; read for each call.
    readers: AtomicUsize,
    seats: Mutex<Vec<Arc<Seat>>>,
}

struct Seat {
    filter: Filter,
    lines: mpsc::Sender<Bytes>,
    missed: AtomicU64,
}

/// One who reads along. Dropping it gives its seat back.
pub struct Reader {
    tail: Arc<Tail>,
    seat: Arc<Seat>,
    lines: mpsc::Receiver<Bytes>,
}

impl Filter {
    fn wants(&self, call: Traits<'_>) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
        is(&self.route, call.route)
            && is(&self.caller, call.caller)
            && (self.outcomes.is_empty() || self.outcomes.contains(&call.outcome))
    }
}

impl Tail {
    /// True while somebody reads.
    pub fn is_read(&self) -> bool {
        self.readers.load(Relaxed) > 0
    }

    /// Takes a seat.
    ///
    /// # Errors
    /// [`Crowded`] if all are taken.
    pub fn follow(self: &Arc<Self>, filter: Filter) -> Result<Reader, Crowded> {
        let (send, lines) = mpsc::channel(QUEUE);
        let seat = Arc::new(Seat { filter, lines: send, missed: AtomicU64::new(0) });
        let mut seats = self.seats();
        if seats.len() >= MOST_READERS {
            return Err(Crowded);
        }
        seats.push(Arc::clone(&seat));
        self.readers.store(seats.len(), Relaxed);
        drop(seats);
        Ok(Reader { tail: Arc::clone(self), seat, lines })
    }

    /// Hands the line that `write` makes of a call to everybody who wants it. Never waits for a reader.
    #[cold]
    pub fn offer(&self, call: Traits<'_>, write: impl Fn(&mut Vec<u8>)) {
        let mut line: Option<Bytes> = None;
        for seat in self.seats().iter().filter(|seat| seat.filter.wants(call)) {
            let line = line.get_or_insert_with(|| {
                let mut text = Vec::with_capacity(1_024);
                write(&mut text);
                text.into()
            });
            if line.len() > LONGEST_LINE || seat.lines.try_send(line.clone()).is_err() {
                seat.missed.fetch_add(1, Relaxed);
            }
        }
    }

    fn leave(&self, seat: &Arc<Seat>) {
        let mut seats = self.seats();
        seats.retain(|other| !Arc::ptr_eq(other, seat));
        self.readers.store(seats.len(), Relaxed);
    }

    fn seats(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// The next line, newline included.
    ///
    /// # Cancel safety
    /// A poll that is not repeated loses nothing.
    pub fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        // The seat holds a sender, so the queue never ends.
        self.lines.poll_recv(cx).map(Option::unwrap_or_default)
    }

    /// A line that is there already.
    pub fn ready_line(&mut self) -> Option<Bytes> {
        self.lines.try_recv().ok()
    }

    /// How many lines it missed since it was last asked.
    pub fn take_missed(&self) -> u64 {
        self.seat.missed.swap(0, Relaxed)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tail.leave(&self.seat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call<'a>(route: &'a str, caller: &'a str, outcome: RequestOutcome) -> Traits<'a> {
        Traits { route: Some(route), caller: Some(caller), outcome }
    }

    fn offer(tail: &Tail, call: Traits<'_>) {
        tail.offer(call, |out| out.extend_from_slice(call.route.unwrap_or("-").as_bytes()));
    }

    fn seen(reader: &mut Reader) -> Vec<Bytes> {
        std::iter::from_fn(|| reader.ready_line()).collect()
    }

    #[test]
    fn a_reader_sees_only_what_it_asked_for() {
        let tail = Arc::new(Tail::default());
        let mut all = tail.follow(Filter::default()).unwrap();
        let mut one = tail
            .follow(Filter {
                route: Some("chat".to_owned()),
                caller: Some("shop".to_owned()),
                outcomes: vec![RequestOutcome::Shed, RequestOutcome::Timeout],
            })
            .unwrap();
        for route in ["chat", "summary"] {
            for caller in ["shop", "office"] {
                for outcome in [RequestOutcome::Ok, RequestOutcome::Shed, RequestOutcome::Timeout] {
                    offer(&tail, call(route, caller, outcome));
                }
            }
        }
        offer(&tail, Traits { route: None, caller: None, outcome: RequestOutcome::Shed });
        assert_eq!(seen(&mut all).len(), 13);
        assert_eq!(seen(&mut one), ["chat", "chat"]);
    }

    #[test]
    fn a_reader_that_is_too_slow_misses_lines_and_is_told_how_many_and_nobody_else_does() {
        let tail = Arc::new(Tail::default());
        let mut slow = tail.follow(Filter::default()).unwrap();
        let mut quick = tail.follow(Filter::default()).unwrap();
        let mut by_quick = 0;
        for _ in 0..QUEUE + 44 {
            offer(&tail, call("chat", "shop", RequestOutcome::Ok));
            by_quick += seen(&mut quick).len();
        }
        assert_eq!((by_quick, quick.take_missed()), (QUEUE + 44, 0));
        assert_eq!((seen(&mut slow).len(), slow.take_missed(), slow.take_missed()), (QUEUE, 44, 0));
    }

    #[test]
    fn seats_are_few_and_given_back() {
        let tail = Arc::new(Tail::default());
        assert!(!tail.is_read());
        let mut readers: Vec<_> = (0..MOST_READERS).map(|_| tail.follow(Filter::default()).unwrap()).collect();
        assert_eq!(tail.follow(Filter::default()).err(), Some(Crowded));
        readers.pop();
        assert!(tail.follow(Filter::default()).is_ok());
        readers.clear();
        assert!(!tail.is_read(), "and a call is free of it again");
    }

    #[test]
    fn a_line_of_absurd_length_is_missed() {
        let tail = Arc::new(Tail::default());
        let mut reader = tail.follow(Filter::default()).unwrap();
        tail.offer(call("chat", "shop", RequestOutcome::Ok), |out| out.resize(LONGEST_LINE + 1, b'x'));
        assert_eq!((seen(&mut reader).len(), reader.take_missed()), (0, 1));
    }
}
