//! What the machine withholds. Where a test asserts a limit of real time, the limit is of the time that the machine left to
//! the product: what its threads spent ready to run, waiting for a core that somebody else had, is no slowness of theirs.
//! On a machine that nobody else uses that is nothing, and the clock alone counts.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A clock that stands still while there is no core for whom it watches.
pub struct Stopwatch {
    since: Instant,
    before: u64,
    watched: Arc<(AtomicU64, AtomicBool)>,
}

impl Stopwatch {
    /// For what this thread does: a whole in-memory world.
    pub fn of_this_thread() -> Self {
        Self { since: Instant::now(), before: own(), watched: Arc::default() }
    }

    /// For what this process and this thread do together. The process may end meanwhile.
    pub fn of(process: u32) -> Self {
        let (since, before, watched) = (Instant::now(), own(), Arc::<(AtomicU64, AtomicBool)>::default());
        let (first, into) = (threads(process), Arc::clone(&watched));
        thread::spawn(move || {
            while !into.1.load(Ordering::Relaxed) {
                into.0.fetch_max(longest(&first, &threads(process)), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        });
        Self { since, before, watched }
    }

    /// Time since the start, without what the machine withheld.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed().saturating_sub(self.withheld())
    }

    /// What the machine withheld since the start.
    pub fn withheld(&self) -> Duration {
        Duration::from_nanos(own().saturating_sub(self.before) + self.watched.0.load(Ordering::Relaxed))
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.watched.1.store(true, Ordering::Relaxed);
    }
}

fn own() -> u64 {
    waited(PathBuf::from("/proc/thread-self")).unwrap_or(0)
}

/// What each thread has waited.
fn threads(process: u32) -> HashMap<OsString, u64> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| Some((task.file_name(), waited(task.path())?))).collect()
}

/// The wait of the thread that waited longest: threads wait at the same time, and all their waits together would excuse more
/// than the clock shows.
fn longest(before: &HashMap<OsString, u64>, now: &HashMap<OsString, u64>) -> u64 {
    now.iter().map(|(thread, wait)| wait.saturating_sub(before.get(thread).copied().unwrap_or(0))).max().unwrap_or(0)
}

/// Nanoseconds in the queue for a core; `None` where there is no `/proc`.
fn waited(thread: PathBuf) -> Option<u64> {
    fs::read_to_string(thread.join("schedstat")).ok()?.split(' ').nth(1)?.parse().ok()
}
