//! Access tokens: one fetch at a time, renewed early, dropped when refused.
//!
//! The fetch runs in a task of its own: the caller that started it may give up without taking the token away from the
//! others who wait for it. At 80 % of a token's life, give or take a tenth, the next caller starts a renewal and goes on
//! with the token at hand.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::domain::jitter;
use crate::domain::outcome::{FailureClass, Sent};
use crate::domain::secret::Secret;
use crate::flight::error::AttemptError;

/// No fetch may take longer.
const FETCH_LIMIT: Duration = Duration::from_secs(3);

/// After a renewal failed, for as long as the token at hand serves.
const RENEWAL_PAUSE: Duration = Duration::from_secs(5);

/// What a fetch yields: the token and its life.
pub type Fetched = Result<(Secret, Duration), AttemptError>;

/// One provider's access token.
#[derive(Default)]
pub struct TokenSource {
    /// Held for a few assignments, never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    flight: Option<watch::Receiver<Option<Result<Secret, AttemptError>>>>,
}

struct Token {
    secret: Secret,
    renew_at: Instant,
    expires_at: Instant,
}

impl TokenSource {
    /// A token that is valid now.
    ///
    /// # Errors
    /// The fetch's error, as an attempt's failure with nothing of the call itself sent.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a running fetch to its other waiters and to the next caller.
    pub async fn get<F>(self: &Arc<Self>, fetch: impl FnOnce() -> F) -> Result<Secret, AttemptError>
    where
        F: Future<Output = Fetched> + Send + 'static,
    {
        let mut flight = {
            let mut state = self.lock();
            let now = Instant::now();
            let usable = state.token.as_ref().filter(|token| now < token.expires_at);
            let renew = usable.is_none_or(|token| now >= token.renew_at);
            let usable = usable.map(|token| token.secret.clone());
            // A fetch that ended without a word, which only a bug can cause, must not be waited for for ever.
            let flying = state.flight.as_ref().is_some_and(|flight| flight.has_changed().is_ok());
            if renew && !flying {
                state.flight = Some(self.start(fetch()));
            }
            match (usable, &state.flight) {
                (Some(secret), _) => return Ok(secret),
                (None, Some(flight)) => flight.clone(),
                (None, None) => return Err(unavailable()),
            }
        };
        let landed = flight.wait_for(Option::is_some).await.map_err(|_| unavailable())?;
        landed.clone().unwrap_or_else(|| Err(unavailable()))
    }

    /// Forgets `refused`, unless it was replaced already.
    pub fn drop_token(&self, refused: &Secret) {
        let mut state = self.lock();
        if state.token.as_ref().is_some_and(|token| token.secret == *refused) {
            state.token = None;
        }
    }

    fn start(
        self: &Arc<Self>,
        fetch: impl Future<Output = Fetched> + Send + 'static,
    ) -> watch::Receiver<Option<Result<Secret, AttemptError>>> {
        let (landed, flight) = watch::channel(None);
        let source = Arc::clone(self);
        tokio::spawn(async move {
            let fetched = timeout(FETCH_LIMIT, fetch).await.unwrap_or_else(|_| Err(unavailable()));
            let result = source.land(fetched);
            let _ = landed.send(Some(result));
        });
        flight
    }

    fn land(&self, fetched: Fetched) -> Result<Secret, AttemptError> {
        let mut state = self.lock();
        state.flight = None;
        let now = Instant::now();
        let (secret, life) = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                // The token at hand still serves: whoever cannot renew it now is not asked again by every call.
                if let Some(token) = &mut state.token {
                    token.renew_at = now + jitter::longer(RENEWAL_PAUSE);
                }
                return Err(error);
            }
        };
        // 72 % to 88 % of its life, so that a fleet does not renew in step.
        let share = 72 + u32::try_from(crate::domain::clock::unix_ms() % 17).unwrap_or(8);
        state.token =
            Some(Token { secret: secret.clone(), renew_at: now + life * share / 100, expires_at: now + life });
        Ok(secret)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable() -> AttemptError {
    AttemptError::new(FailureClass::Unauthorised, Sent::No, "no access token could be had")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn fetch(count: &Arc<AtomicU32>, life: Duration) -> impl Future<Output = Fetched> + Send + 'static {
        let count = Arc::clone(count);
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            Ok((Secret::new(format!("token-{number}").into_bytes()), life))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_callers_at_once_cause_one_fetch() {
        let (source, count) = (Arc::new(TokenSource::default()), Arc::new(AtomicU32::new(0)));
        let calls = (0..100).map(|_| source.get(|| fetch(&count, Duration::from_secs(3600))));
        for token in futures_util::future::join_all(calls).await {
            assert_eq!(token.unwrap().expose(), b"token-1");
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_early_and_nobody_waits_for_that() {
        let (source, count) = (Arc::new(TokenSource::default()), Arc::new(AtomicU32::new(0)));
        let life = Duration::from_secs(1000);
        source.get(|| fetch(&count, life)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(900)).await;
        let asked = Instant::now();
        assert_eq!(source.get(|| fetch(&count, life)).await.unwrap().expose(), b"token-1");
        assert_eq!(asked.elapsed(), Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(source.get(|| fetch(&count, life)).await.unwrap().expose(), b"token-2");
    }

    #[tokio::test(start_paused = true)]
    async fn the_caller_that_started_a_fetch_may_leave_without_taking_it_along() {
        let (source, count) = (Arc::new(TokenSource::default()), Arc::new(AtomicU32::new(0)));
        let life = Duration::from_secs(3600);
        let leader = timeout(Duration::from_millis(10), source.get(|| fetch(&count, life))).await;
        assert!(leader.is_err());
        assert_eq!(source.get(|| fetch(&count, life)).await.unwrap().expose(), b"token-1");
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_fetch_is_told_to_all_and_tried_again_by_the_next() {
        let source = Arc::new(TokenSource::default());
        let failed = source.get(|| async { Err(unavailable()) }).await;
        assert!(failed.is_err());
        let count = Arc::new(AtomicU32::new(0));
        assert!(source.get(|| fetch(&count, Duration::from_secs(60))).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_failed_is_not_tried_again_by_every_call_while_the_token_serves() {
        let (source, count) = (Arc::new(TokenSource::default()), Arc::new(AtomicU32::new(0)));
        source.get(|| fetch(&count, Duration::from_secs(1000))).await.unwrap();
        tokio::time::sleep(Duration::from_secs(900)).await;
        let tries = Arc::new(AtomicU32::new(0));
        let fails = || {
            let tries = Arc::clone(&tries);
            async move {
                tries.fetch_add(1, Ordering::SeqCst);
                Err(unavailable())
            }
        };
        for _ in 0..50 {
            assert_eq!(source.get(fails).await.unwrap().expose(), b"token-1");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(tries.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_between_72_and_88_percent_of_its_life() {
        for _ in 0..40 {
            let (source, count) = (Arc::new(TokenSource::default()), Arc::new(AtomicU32::new(0)));
            let life = Duration::from_secs(1000);
            source.get(|| fetch(&count, life)).await.unwrap();
            let (share, landed) = (source.lock().token.as_ref().unwrap().renew_at, Instant::now());
            assert!((720..=880).contains(&(share - landed).as_secs()), "{:?}", share - landed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn f33_a_fetch_that_panicked_is_not_waited_for_by_the_next() {
        let source = Arc::new(TokenSource::default());
        assert!(source.get(|| async { panic!("a bug") }).await.is_err());
        let count = Arc::new(AtomicU32::new(0));
        assert_eq!(source.get(|| fetch(&count, Duration::from_secs(60))).await.unwrap().expose(), b"token-1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_token_is_dropped_only_while_it_is_the_current_one() {
        let (source, count) = (Arc::new(TokenSource::default()), Arc::new(AtomicU32::new(0)));
        let life = Duration::from_secs(3600);
        let first = source.get(|| fetch(&count, life)).await.unwrap();
        source.drop_token(&first);
        let second = source.get(|| fetch(&count, life)).await.unwrap();
        source.drop_token(&first);
        assert_eq!(source.get(|| fetch(&count, life)).await.unwrap(), second);
    }
}
