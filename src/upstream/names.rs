//! The addresses of a provider's name: what the resolver says, and what it said last while it says nothing.
//!
//! A name service that fails, hangs or says that a name which worked a minute ago does not exist must not take known
//! providers away. So the last good answer is kept for an hour, and used when there is no better one. It is never used
//! in place of a better one: each connection asks, and follows a name that moves. Which addresses may be connected to is
//! not decided here but when connecting, for old and new answers alike.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Shared;
use tokio::time::{Instant, timeout_at};

/// How long the last good answer may be used.
const KEPT: Duration = Duration::from_secs(3600);
/// How long the resolver is waited for while there is a last good answer.
const PATIENCE: Duration = Duration::from_millis(100);
/// A question unanswered for so long is asked once more. Each may hold a thread, so that they must be rare.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Names come from configuration, so that only many reloads could bring so many.
const MOST_NAMES: usize = 1_024;

/// An answer on its way.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Asks a name service.
pub trait Resolve: Send + Sync {
    /// All addresses of `name`, in the order they should be tried. May take as long as it likes.
    fn resolve(&self, name: &str) -> Resolving;
}

/// The operating system's resolver, on threads of the runtime made for blocking.
pub struct System;

impl Resolve for System {
    fn resolve(&self, name: &str) -> Resolving {
        let name = name.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
    }
}

type Addresses = Arc<[IpAddr]>;
type Question = Shared<Pin<Box<dyn Future<Output = Result<Addresses, io::ErrorKind>> + Send>>>;

#[derive(Clone)]
struct Asked {
    question: Question,
    at: Instant,
}

#[derive(Default)]
struct Known {
    /// One question at a time for each name, shared by all who wait for it.
    asked: Option<Asked>,
    good: Option<(Addresses, Instant)>,
    /// The last answer was no good, and that was told.
    stale: bool,
}

/// Every name asked for.
pub struct Names {
    resolver: Box<dyn Resolve>,
    /// A `std` mutex held for one look-up and never across an await.
    known: Mutex<HashMap<String, Known>>,
}

impl Names {
    /// Knows nothing yet.
    pub fn new(resolver: impl Resolve + 'static) -> Self {
        Self { resolver: Box::new(resolver), known: Mutex::default() }
    }

    /// The addresses of `host`, which may be an address itself. Never empty.
    ///
    /// # Errors
    /// The resolver's, or [`io::ErrorKind::NotFound`] if the name has no address, unless an earlier answer still serves.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the question to whoever asks next.
    pub async fn addresses(&self, host: &str) -> io::Result<Addresses> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Arc::from([address]));
        }
        let (asked, last) = self.ask(host);
        let answer = match last {
            Some(_) => timeout_at(asked.at + PATIENCE, asked.question).await.unwrap_or(Err(io::ErrorKind::TimedOut)),
            None => asked.question.await,
        };
        match (answer, last) {
            (Ok(addresses), _) => {
                self.note_good(host, &addresses);
                Ok(addresses)
            }
            (Err(kind), Some(addresses)) => {
                self.note_stale(host, kind);
                Ok(addresses)
            }
            (Err(kind), None) => Err(kind.into()),
        }
    }

    /// The question to wait for, and what serves if it is not answered well.
    fn ask(&self, host: &str) -> (Asked, Option<Addresses>) {
        let now = Instant::now();
        let mut known = self.lock();
        if known.len() >= MOST_NAMES && !known.contains_key(host) {
            known.clear();
        }
        let known = known.entry(host.to_owned()).or_default();
        let open = |asked: &&Asked| asked.question.peek().is_none() && now < asked.at + ASK_AGAIN;
        let asked = known.asked.as_ref().filter(open).cloned();
        let asked = asked.unwrap_or_else(|| Asked { question: self.question(host), at: now });
        known.asked = Some(asked.clone());
        let good = known.good.as_ref().filter(|(_, since)| now < *since + KEPT);
        (asked, good.map(|(addresses, _)| Arc::clone(addresses)))
    }

    fn question(&self, host: &str) -> Question {
        let resolving = self.resolver.resolve(host);
        let answer = async move {
            let addresses = resolving.await.map_err(|error| error.kind())?;
            if addresses.is_empty() { Err(io::ErrorKind::NotFound) } else { Ok(Arc::from(addresses)) }
        };
        (Box::pin(answer) as Pin<Box<dyn Future<Output = _> + Send>>).shared()
    }

    fn note_good(&self, host: &str, addresses: &Addresses) {
        if let Some(known) = self.lock().get_mut(host) {
            known.good = Some((Arc::clone(addresses), Instant::now()));
            known.stale = false;
        }
    }

    fn note_stale(&self, host: &str, kind: io::ErrorKind) {
        let told = self.lock().get_mut(host).is_none_or(|known| std::mem::replace(&mut known.stale, true));
        if !told {
            tracing::warn!(name = host, error = %kind, "the name service has no answer, using its last one");
        }
    }

    /// A panic of another holder leaves whole entries behind, so the poison says nothing here.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const HOST: &str = "provider.example";

    enum Say {
        Address(u8),
        Nothing,
        Fail,
        Hang,
        After(Duration, u8),
    }

    /// Answers in this order and then never again.
    struct Scripted(Mutex<VecDeque<Say>>, Arc<AtomicUsize>);

    impl Resolve for Scripted {
        fn resolve(&self, _: &str) -> Resolving {
            self.1.fetch_add(1, Ordering::SeqCst);
            let say = self.0.lock().unwrap().pop_front().unwrap_or(Say::Hang);
            Box::pin(async move {
                match say {
                    Say::Address(last) => Ok(vec![ip(last)]),
                    Say::Nothing => Ok(Vec::new()),
                    Say::Fail => Err(io::Error::other("SERVFAIL")),
                    Say::Hang => pending().await,
                    Say::After(time, last) => {
                        tokio::time::sleep(time).await;
                        Ok(vec![ip(last)])
                    }
                }
            })
        }
    }

    fn ip(last: u8) -> IpAddr {
        [203, 0, 114, last].into()
    }

    fn names(script: impl IntoIterator<Item = Say>) -> (Names, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let script = Scripted(Mutex::new(script.into_iter().collect()), Arc::clone(&asked));
        (Names::new(script), asked)
    }

    async fn first(names: &Names) -> Option<IpAddr> {
        names.addresses(HOST).await.ok().and_then(|addresses| addresses.first().copied())
    }

    #[tokio::test(start_paused = true)]
    async fn f20_each_connection_asks_and_follows_a_name_that_moves() {
        let (names, asked) = names([Say::Address(1), Say::Address(2), Say::Address(1)]);
        for (number, last) in [1, 2, 1].into_iter().enumerate() {
            assert_eq!((first(&names).await, asked.load(Ordering::SeqCst)), (Some(ip(last)), number + 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn f20_a_name_that_was_never_known_fails_as_the_resolver_says() {
        let (names, _) = names([Say::Nothing, Say::Fail, Say::Address(1)]);
        assert_eq!(names.addresses(HOST).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(names.addresses(HOST).await.unwrap_err().kind(), io::ErrorKind::Other);
        assert_eq!(first(&names).await, Some(ip(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn f20_the_last_good_answer_serves_for_an_hour_and_no_longer() {
        let (names, _) = names([Say::Address(1), Say::Fail, Say::Nothing, Say::Fail]);
        assert_eq!(first(&names).await, Some(ip(1)));
        assert_eq!(first(&names).await, Some(ip(1)));
        tokio::time::sleep(KEPT - Duration::from_secs(1)).await;
        assert_eq!(first(&names).await, Some(ip(1)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(first(&names).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn f20_a_resolver_that_hangs_costs_the_first_one_a_moment_and_one_thread_a_minute() {
        let (names, asked) = names([Say::Address(1)]);
        assert_eq!(first(&names).await, Some(ip(1)));
        let started = Instant::now();
        for _ in 0..100 {
            assert_eq!(first(&names).await, Some(ip(1)));
        }
        assert_eq!((started.elapsed(), asked.load(Ordering::SeqCst)), (PATIENCE, 2));
        tokio::time::sleep(ASK_AGAIN).await;
        assert_eq!((first(&names).await, asked.load(Ordering::SeqCst)), (Some(ip(1)), 3));
    }

    #[tokio::test(start_paused = true)]
    async fn f20_an_answer_that_comes_late_is_taken_by_whoever_asks_next() {
        let (names, asked) = names([Say::Address(1), Say::After(Duration::from_secs(1), 2)]);
        assert_eq!(first(&names).await, Some(ip(1)));
        assert_eq!(first(&names).await, Some(ip(1)));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((first(&names).await, asked.load(Ordering::SeqCst)), (Some(ip(2)), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_for_a_name_share_one_question_and_any_may_leave() {
        let (names, asked) = names([Say::After(Duration::from_secs(1), 1)]);
        let left = tokio::time::timeout(Duration::from_millis(500), first(&names));
        let (left, one, two) = tokio::join!(left, first(&names), first(&names));
        assert!(left.is_err());
        assert_eq!((one, two, asked.load(Ordering::SeqCst)), (Some(ip(1)), Some(ip(1)), 1));
    }

    #[tokio::test]
    async fn an_address_is_its_own_answer() {
        let (names, asked) = names([]);
        for host in ["127.0.0.1", "::1"] {
            assert_eq!(names.addresses(host).await.unwrap()[..], [host.parse::<IpAddr>().unwrap()]);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 0);
    }
}
