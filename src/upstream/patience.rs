//! Waiting with a limit for what is mostly there already.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::error::Elapsed;
use tokio::time::timeout;

/// As [`timeout`], but the clock is looked at only if there is anything to wait for: most bodies arrive with their head.
///
/// # Errors
/// [`Elapsed`] after `limit`.
///
/// # Cancel safety
/// Dropping it drops `future`.
pub async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut future = pin!(future);
    if let Poll::Ready(there) = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        return Ok(there);
    }
    timeout(limit, future).await
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_there_is_taken_what_comes_is_awaited_and_what_does_not_is_given_up() {
        let limit = Duration::from_secs(2);
        assert_eq!(within(limit, async { 1 }).await.ok(), Some(1));
        assert!(within(limit, sleep(Duration::from_secs(1))).await.is_ok());
        let started = Instant::now();
        assert!(within(limit, std::future::pending::<()>()).await.is_err());
        assert_eq!(started.elapsed(), limit);
    }
}
