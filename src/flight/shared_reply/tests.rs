//! Every seat sees exactly the leader's events, whoever comes, goes or dawdles.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Wake;

use futures_util::StreamExt;
use proptest::prelude::*;

use super::hub::{AHEAD_BYTES, LAG_BYTES};
use super::*;
use crate::domain::operation::Dialect;
use crate::domain::outcome::Sent;
use crate::flight::error::AttemptError;
use crate::flight::reply::ReplyBody;

/// What the provider says next, in the test's hands.
#[derive(Clone, Default)]
struct Provider(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    waiting: VecDeque<Result<Event, FailureClass>>,
    waker: Option<Waker>,
    dropped: bool,
    read: usize,
}

struct Telling(Provider);

impl Provider {
    fn say(&self, event: Result<Event, FailureClass>) {
        let waker = {
            let mut said = self.0.lock().unwrap();
            said.waiting.push_back(event);
            said.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    fn is_dropped(&self) -> bool {
        self.0.lock().unwrap().dropped
    }

    fn read(&self) -> usize {
        self.0.lock().unwrap().read
    }
}

impl Stream for Telling {
    type Item = Result<Event, FailureClass>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut said = self.0.0.lock().unwrap();
        let Some(event) = said.waiting.pop_front() else {
            said.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        said.read += 1;
        Poll::Ready(Some(event))
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().dropped = true;
    }
}

#[derive(Default)]
struct Rang(AtomicBool);

impl Wake for Rang {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Rang {
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

/// Something that is polled again only when it was woken, as a runtime would.
struct Polled<F> {
    future: Option<Pin<Box<F>>>,
    rang: Arc<Rang>,
}

impl<F: Future> Polled<F> {
    fn new(future: F) -> Self {
        let rang = Arc::new(Rang(AtomicBool::new(true)));
        Self { future: Some(Box::pin(future)), rang }
    }

    fn turn(&mut self) -> Option<F::Output> {
        let waker = Waker::from(Arc::clone(&self.rang));
        let future = self.future.as_mut()?;
        if !self.rang.take() {
            return None;
        }
        let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) else { return None };
        self.future = None;
        Some(output)
    }
}

fn reply(body: ReplyBody) -> Reply {
    let (headers, usage) = (HeaderMap::new(), UsageSlot::default());
    Reply { status: StatusCode::OK, headers, body, usage, complete: true, decision: None }
}

fn stream_of(provider: &Provider) -> Asking {
    let body = ReplyBody::events(Box::pin(Telling(provider.clone())), Dialect::OpenAi);
    Box::pin(std::future::ready(Ok(reply(body))))
}

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Option<Option<usize>>>>);

impl Heard {
    /// Notes how many events there were, if all are known.
    fn done(&self) -> Done {
        let heard = self.clone();
        Box::new(move |landing| {
            let events = if let Landing::Events(_, events) = landing { Some(events.len()) } else { None };
            assert!(heard.0.lock().unwrap().replace(events).is_none(), "told twice");
            events.is_some()
        })
    }

    fn get(&self) -> Option<Option<usize>> {
        *self.0.lock().unwrap()
    }
}

fn event(number: usize) -> Event {
    Event::from_data(format!(r#"{{"n":{number}}}"#).as_bytes())
}

fn events_of(answered: Answered) -> Seat {
    let Content::Events(seat) = answered.content else { panic!("a stream") };
    seat
}

/// Everything a seat is told, run by hand until it waits.
struct Reader {
    seat: Seat,
    rang: Arc<Rang>,
    told: Vec<Event>,
    end: Option<Option<FailureClass>>,
}

impl Reader {
    fn new(seat: Seat) -> Self {
        Self { seat, rang: Arc::new(Rang(AtomicBool::new(true))), told: Vec::new(), end: None }
    }

    /// Reads at most `most` events, if it was woken since it last found nothing.
    fn read(&mut self, most: usize) {
        for _ in 0..most {
            if self.end.is_some() || !self.rang.take() {
                return;
            }
            let waker = Waker::from(Arc::clone(&self.rang));
            match self.seat.poll_next_unpin(&mut Context::from_waker(&waker)) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(event))) => {
                    self.told.push(event);
                    self.rang.0.store(true, Ordering::SeqCst);
                }
                Poll::Ready(Some(Err(class))) => self.end = Some(Some(class)),
                Poll::Ready(None) => self.end = Some(None),
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Deed {
    Say,
    Pump,
    Join,
    Read(usize, usize),
    Leave(usize),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        4 => Just(Deed::Say),
        4 => Just(Deed::Pump),
        2 => Just(Deed::Join),
        6 => (0usize..8, 1usize..6).prop_map(|(who, most)| Deed::Read(who, most)),
        1 => (0usize..8).prop_map(Deed::Leave),
    ];
    prop::collection::vec(deed, 1..120)
}

proptest! {
    #[test]
    fn any_interleaving_of_seats_sees_exactly_the_leaders_events_in_order(deeds in deeds(), ends_well: bool) {
        let (provider, heard, room) = (Provider::default(), Heard::default(), Room::new(1 << 20, 1 << 20));
        let (shared, seat, pump) = share(stream_of(&provider), Arc::clone(&room), heard.done());
        let mut pump = Polled::new(pump.run());
        let mut readers = vec![Reader::new(seat)];
        let mut said: Vec<Event> = Vec::new();
        for deed in deeds {
            match deed {
                Deed::Say => {
                    said.push(event(said.len()));
                    provider.say(Ok(event(said.len() - 1)));
                }
                Deed::Pump => drop(pump.turn()),
                Deed::Join => readers.extend(shared.join().map(Reader::new)),
                Deed::Read(who, most) => {
                    if let Some(reader) = readers.get_mut(who) {
                        reader.read(most);
                    }
                }
                Deed::Leave(who) if who < readers.len() => drop(readers.remove(who)),
                Deed::Leave(_) => {}
            }
            for reader in &readers {
                prop_assert!(reader.told.len() <= said.len() && reader.told[..] == said[..reader.told.len()]);
            }
        }
        let last = if ends_well { said.push(Event::done()); Ok(Event::done()) } else { Err(FailureClass::NoContent) };
        provider.say(last);
        for _ in 0..said.len() * 2 + 4 {
            pump.turn();
            readers.iter_mut().for_each(|reader| reader.read(usize::MAX));
        }
        for reader in &readers {
            prop_assert_eq!(&reader.told, &said);
            prop_assert_eq!(reader.end, Some(if ends_well { None } else { Some(FailureClass::NoContent) }));
        }
        prop_assert!(provider.is_dropped());
        prop_assert_eq!(heard.get(), Some((ends_well && !readers.is_empty()).then_some(said.len())));
        prop_assert!(shared.join().is_none());
        drop((readers, shared, pump));
        prop_assert_eq!(room.used(), 0);
    }
}

#[test]
fn whoever_waits_is_woken_by_what_comes_and_by_nothing_else() {
    let (provider, heard) = (Provider::default(), Heard::default());
    let (shared, seat, pump) = share(stream_of(&provider), Room::new(1 << 20, 1 << 20), heard.done());
    let mut pump = Polled::new(pump.run());
    let (mut one, mut two) = (Reader::new(seat), Reader::new(shared.join().unwrap()));
    one.read(1);
    two.read(1);
    pump.turn();
    assert!(one.rang.take() && two.rang.take(), "the head is here");
    one.rang.0.store(true, Ordering::SeqCst);
    one.read(1);
    assert!(!one.rang.take());
    provider.say(Ok(event(0)));
    assert!(!one.rang.0.load(Ordering::SeqCst), "nobody has read it yet");
    pump.turn();
    assert!(one.rang.0.load(Ordering::SeqCst));
    one.read(1);
    assert_eq!(one.told.len(), 1);
}

#[tokio::test]
async fn a_whole_answer_is_the_same_for_all_and_the_hooks_of_its_body_run_once() {
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ended);
    let mut body = ReplyBody::whole(Bytes::from_static(b"{}"));
    body.on_end(move |ended| {
        assert_eq!((ended.end, ended.bytes), (End::Complete, 2));
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let asking: Asking = Box::pin(std::future::ready(Ok(reply(body))));
    let done: Done = Box::new(|landing| matches!(landing, Landing::Whole(_, bytes) if &bytes[..] == b"{}"));
    let (shared, seat, pump) = share(asking, Room::new(0, 0), done);
    let other = shared.join().unwrap();
    tokio::spawn(pump.run());
    for seat in [seat, other] {
        let answered = seat.answer().await.unwrap();
        assert!(answered.shown.kept && matches!(answered.content, Content::Whole(bytes) if &bytes[..] == b"{}"));
    }
    assert_eq!(ended.load(Ordering::SeqCst), 1);
    assert!(shared.join().is_none());
}

#[tokio::test]
async fn a_failure_is_told_to_all() {
    let error = AttemptError::new(FailureClass::Overloaded, Sent::Yes, "test");
    let error = CallError::Exhausted { last: error, retry_after: None };
    let heard = Heard::default();
    let asking: Asking = Box::pin(std::future::ready(Err(error)));
    let (shared, seat, pump) = share(asking, Room::new(0, 0), heard.done());
    let other = shared.join().unwrap();
    tokio::spawn(pump.run());
    for seat in [seat, other] {
        assert_eq!(seat.answer().await.err().map(|error| error.label()), Some("overloaded"));
    }
    assert_eq!(heard.get(), Some(None));
}

#[test]
fn when_the_last_seat_is_given_up_the_provider_is_let_go_and_nobody_may_come() {
    let (provider, heard) = (Provider::default(), Heard::default());
    let (shared, seat, pump) = share(stream_of(&provider), Room::new(1 << 20, 1 << 20), heard.done());
    let mut pump = Polled::new(pump.run());
    let other = shared.join().unwrap();
    pump.turn();
    drop(seat);
    assert!(pump.turn().is_none() && !provider.is_dropped(), "one is left");
    drop(other);
    assert!(pump.turn().is_some(), "the pump was woken and has ended");
    assert!(provider.is_dropped() && shared.join().is_none());
    assert_eq!(heard.get(), Some(None));
}

#[test]
fn a_seat_given_up_before_there_is_an_answer_ends_the_asking() {
    let heard = Heard::default();
    let (shared, seat, pump) = share(Box::pin(std::future::pending()), Room::new(0, 0), heard.done());
    let mut pump = Polled::new(pump.run());
    assert!(pump.turn().is_none());
    drop(seat);
    assert!(pump.turn().is_some() && shared.join().is_none());
    assert_eq!(heard.get(), Some(None));
}

#[tokio::test]
async fn a_pump_that_is_lost_is_a_failure_before_the_answer_and_a_cut_after_it() {
    let (_, seat, pump) = share(Box::pin(std::future::pending()), Room::new(0, 0), Heard::default().done());
    drop(pump);
    assert!(matches!(seat.answer().await, Err(CallError::Internal)));
    let provider = Provider::default();
    let (_, seat, pump) = share(stream_of(&provider), Room::new(1 << 20, 1 << 20), Heard::default().done());
    let mut pump = Polled::new(pump.run());
    provider.say(Ok(event(0)));
    pump.turn();
    drop(pump);
    let mut seat = events_of(seat.answer().await.unwrap());
    assert!(matches!(seat.next().await, Some(Ok(_))));
    assert!(matches!(seat.next().await, Some(Err(FailureClass::StreamCut))));
}

fn large(number: usize) -> Event {
    Event::from_data(format!(r#"{{"n":{number},"text":"{}"}}"#, "x".repeat(16 * 1024)).as_bytes())
}

#[test]
fn the_pump_goes_only_a_little_ahead_of_the_fastest_reader() {
    let provider = Provider::default();
    let (_, seat, pump) = share(stream_of(&provider), Room::new(1 << 30, 1 << 30), Heard::default().done());
    let mut pump = Polled::new(pump.run());
    (0..100).for_each(|number| provider.say(Ok(large(number))));
    pump.turn();
    let ahead = provider.read();
    assert!((3..=6).contains(&ahead), "{ahead}");
    let mut reader = Reader::new(seat);
    reader.read(1);
    pump.turn();
    assert_eq!(provider.read(), ahead + 1);
}

#[test]
fn beyond_what_is_remembered_nobody_joins_nothing_is_kept_and_memory_is_given_back() {
    let (provider, heard, room) = (Provider::default(), Heard::default(), Room::new(1 << 20, 100 * 1024));
    let (shared, seat, pump) = share(stream_of(&provider), Arc::clone(&room), heard.done());
    let mut pump = Polled::new(pump.run());
    let mut reader = Reader::new(seat);
    for number in 0..20 {
        provider.say(Ok(large(number)));
        pump.turn();
        reader.read(usize::MAX);
        assert_eq!(shared.0.lock().recording, number < 6, "{number}");
    }
    assert!(shared.join().is_none() && room.used() == 0);
    assert!(shared.0.lock().events.is_empty());
    provider.say(Ok(Event::done()));
    pump.turn();
    reader.read(usize::MAX);
    assert_eq!((reader.told.len(), reader.end, heard.get()), (21, Some(None), Some(None)));
}

#[test]
fn who_falls_too_far_behind_is_let_go_and_slows_nobody() {
    let provider = Provider::default();
    let (shared, seat, pump) = share(stream_of(&provider), Room::new(1 << 20, 100 * 1024), Heard::default().done());
    let mut pump = Polled::new(pump.run());
    let (mut fast, mut slow) = (Reader::new(seat), Reader::new(shared.join().unwrap()));
    pump.turn();
    slow.read(1);
    let mut behind = Box::pin(slow.seat.falls_behind());
    let mut is_behind = || behind.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    for number in 0..100 {
        provider.say(Ok(large(number)));
        pump.turn();
        fast.read(usize::MAX);
        let remembered: usize = shared.0.lock().events.iter().map(|event| event.raw().len()).sum();
        assert!(remembered <= LAG_BYTES + AHEAD_BYTES, "{remembered}");
    }
    assert_eq!(fast.told.len(), 100);
    assert!(is_behind());
    slow.read(usize::MAX);
    assert!(slow.told.is_empty() && slow.end.is_none(), "its body ends itself");
}

#[test]
fn all_that_is_remembered_together_has_a_bound() {
    let room = Room::new(100 * 1024, 1 << 20);
    let provider = Provider::default();
    let (one, seat, pump) = share(stream_of(&provider), Arc::clone(&room), Heard::default().done());
    let (mut pump_one, mut reader) = (Polled::new(pump.run()), Reader::new(seat));
    for number in 0..5 {
        provider.say(Ok(large(number)));
        pump_one.turn();
        reader.read(usize::MAX);
    }
    assert!(room.used() > 80 * 1024 && one.join().is_some());
    let other = Provider::default();
    let (two, seat, pump) = share(stream_of(&other), Arc::clone(&room), Heard::default().done());
    let (mut pump_two, mut reader_two) = (Polled::new(pump.run()), Reader::new(seat));
    for number in 0..5 {
        other.say(Ok(large(number)));
        pump_two.turn();
        reader_two.read(usize::MAX);
    }
    assert!(two.join().is_none() && reader_two.told.len() == 5);
    assert!(room.used() <= 100 * 1024);
    drop((one, reader, pump_one));
    assert_eq!(room.used(), 0);
}

#[test]
fn seats_on_other_cores_miss_nothing_and_wait_for_nothing_that_came() {
    const EVENTS: usize = 3_000;
    let provider = Provider::default();
    let heard = Heard::default();
    let (shared, seat, pump) = share(stream_of(&provider), Room::new(8 << 20, 8 << 20), heard.done());
    let on_its_own = || tokio::runtime::Builder::new_current_thread().build().unwrap();
    let read = |seat: Seat| async move {
        let mut seat = events_of(seat.answer().await.unwrap());
        let mut told = Vec::new();
        while let Some(event) = seat.next().await {
            told.push(event.unwrap());
        }
        told
    };
    let expected: Vec<Event> = (0..EVENTS).map(event).chain([Event::done()]).collect();
    std::thread::scope(|threads| {
        threads.spawn(move || on_its_own().block_on(pump.run()));
        let mut readers = vec![threads.spawn(move || on_its_own().block_on(read(seat)))];
        for event in &expected {
            provider.say(Ok(event.clone()));
            if readers.len() < 6 {
                readers.extend(shared.join().map(|seat| threads.spawn(move || on_its_own().block_on(read(seat)))));
            }
        }
        for reader in readers {
            assert!(reader.join().unwrap() == expected);
        }
    });
    assert_eq!(heard.get(), Some(Some(EVENTS + 1)));
}
