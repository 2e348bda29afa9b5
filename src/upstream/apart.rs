//! Work on large bodies, away from the thread that serves connections.
//!
//! Reading a body takes about a millisecond for each megabyte, and telling a Responses or Messages call as chat about ten
//! (measured on two cores, Nov 2026): with a prompt of some megabytes every other connection of that core would stand
//! still for as long. At most [`AT_ONCE`] such works run at a time, so that they leave the serving threads their share;
//! the others wait their turn, within what the process admits of bodies. Small bodies are not worth the way.

use tokio::sync::Semaphore;

/// From here on it is worth the way: below, the slowest of these works takes two or three milliseconds.
pub const LARGE: usize = 256 * 1024;
/// The same for a look at a few members, which takes a quarter of a millisecond for each megabyte of what people write.
pub const LARGE_TO_PEEK: usize = 1024 * 1024;
/// How many run at a time, in the whole process.
pub const AT_ONCE: usize = 2;

static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// Does `work` on another thread. `None` if it panicked, or the runtime is going down.
///
/// # Cancel safety
/// Dropped while it waits for its turn, nothing was done; dropped later, the work is done for nobody.
pub async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let place = PLACES.acquire().await.ok()?;
    tokio::task::spawn_blocking(move || {
        let done = work();
        drop(place);
        done
    })
    .await
    .ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn only_so_many_work_at_a_time_and_a_panic_gives_its_place_back() {
        static NOW: AtomicUsize = AtomicUsize::new(0);
        let works = (0..12).map(|number| {
            apart(move || {
                assert!(NOW.fetch_add(1, Ordering::SeqCst) < AT_ONCE);
                std::thread::sleep(Duration::from_millis(2));
                NOW.fetch_sub(1, Ordering::SeqCst);
                assert!(number != 3, "one of them fails");
                number
            })
        });
        let done = futures_util::future::join_all(works).await;
        assert_eq!(done.iter().flatten().count(), 11);
        assert_eq!(PLACES.available_permits(), AT_ONCE);
    }
}
