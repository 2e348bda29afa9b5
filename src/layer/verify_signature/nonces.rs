//! Nonces that were used. None is forgotten before its request would be too old anyway; when there is no room for
//! another one, another request is refused instead.
//!
//! One process remembers for itself: of several instances behind one name each would accept a request once, so a caller
//! that signs must always reach the same one. The exception is a hand-over: while it lasts, each of the two processes writes
//! a nonce down and then looks whether the other one has too, so that both may refuse a request but never both accept it.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::journal::Journal;
use crate::domain::clock;
use crate::sign::di::WINDOW_MS;

/// A signature may be from 300 s ahead and be shown again until it is 300 s old, and 30 s more for clocks that move.
pub(super) const LIFE: Duration = Duration::from_millis(2 * WINDOW_MS + 30_000);
/// 2,000 signed requests a second for the whole of [`LIFE`], which takes about 100 MB.
const ROOM: usize = 1_260_000;

/// What is remembered of a nonce.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Nonce(pub(super) [u8; 16]);

impl Nonce {
    /// Half a digest: enough that no two are ever the same, and nothing of a caller goes to disk.
    pub(super) fn of(caller: &str, key_id: &str, nonce: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [caller, key_id, nonce] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let mut short = [0; 16];
        short.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Self(short)
    }
}

/// What became of a nonce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// It is used from now on.
    Fresh,
    /// It was used before.
    Before,
    /// There is no room to remember it.
    NoRoom,
}

/// The nonces of one process; clones are the same ones.
#[derive(Clone)]
pub struct Nonces {
    shared: Arc<Shared>,
}

struct Shared {
    room: usize,
    /// No request signed earlier is accepted, milliseconds since 1970.
    oldest_ms: AtomicU64,
    /// Held for a look-up, an insertion and a write of a few bytes, never across an await.
    used: Mutex<Used>,
}

struct Used {
    known: HashSet<Nonce>,
    /// In the order in which they came, which is also the order in which they may be forgotten.
    order: VecDeque<(Instant, Nonce)>,
    journal: Option<Journal>,
    /// True while another process takes nonces too.
    shared: bool,
}

impl Nonces {
    /// None yet. What an earlier process accepted is not known, so nothing signed before now is accepted.
    pub fn in_memory() -> Self {
        Self::with_room(ROOM)
    }

    /// As [`Nonces::in_memory`], with room for this many.
    pub fn with_room(room: usize) -> Self {
        let used = Used { known: HashSet::new(), order: VecDeque::new(), journal: None, shared: false };
        Self { shared: Arc::new(Shared { room, oldest_ms: clock::unix_ms().into(), used: Mutex::new(used) }) }
    }

    /// Those that an earlier process wrote into this folder, and from now on kept there. If there are none, or they
    /// cannot be read, nothing signed before now is accepted.
    pub fn kept(folder: &Path) -> Self {
        let now_ms = clock::unix_ms();
        let mut journal = Journal::open(folder);
        let found = journal.read(now_ms).unwrap_or_else(|error| {
            let folder = folder.display();
            tracing::error!(%error, %folder, "the nonces used before this start cannot be read: requests signed before it are refused");
            None
        });
        let mut used = Used { known: HashSet::new(), order: VecDeque::new(), journal: Some(journal), shared: false };
        let now = Instant::now();
        for &(age, nonce) in found.iter().flatten().take(ROOM) {
            if used.known.insert(nonce) {
                used.order.push_back((now.checked_sub(age).unwrap_or(now), nonce));
            }
        }
        let oldest_ms = if found.is_some() { 0 } else { now_ms };
        Self { shared: Arc::new(Shared { room: ROOM, oldest_ms: oldest_ms.into(), used: Mutex::new(used) }) }
    }

    /// No request signed earlier may be accepted, milliseconds since 1970.
    pub(super) fn oldest_ms(&self) -> u64 {
        self.shared.oldest_ms.load(Ordering::Relaxed)
    }

    /// From here on another process takes nonces of the same folder too. Tells since when (milliseconds since 1970) all that
    /// were taken are on disk; `None` if they are not.
    pub fn share(&self) -> Option<u64> {
        let mut used = self.used();
        used.shared = used.journal.is_some();
        used.learn(None);
        used.journal.as_ref().filter(|journal| journal.is_sound()).map(|_| self.oldest_ms())
    }

    /// As [`Nonces::share`], where the other process was there first and told this of its own.
    pub fn continue_from(&self, since_ms: Option<u64>) {
        if self.share().is_some()
            && let Some(since_ms) = since_ms
        {
            self.shared.oldest_ms.store(since_ms, Ordering::Relaxed);
        }
    }

    /// The other process is gone.
    pub fn share_no_more(&self) {
        let mut used = self.used();
        used.learn(None);
        used.shared = false;
    }

    /// Uses a nonce of an authentic request.
    pub(super) fn take(&self, nonce: Nonce, now_ms: u64) -> Taken {
        let mut used = self.used();
        let now = Instant::now();
        used.forget(now);
        if used.known.contains(&nonce) {
            return Taken::Before;
        }
        if used.known.len() >= self.shared.room {
            return Taken::NoRoom;
        }
        used.known.insert(nonce);
        used.order.push_back((now, nonce));
        if let Some(journal) = &mut used.journal {
            journal.write(nonce, now_ms);
        }
        // Written down before it is looked for: of two processes at least the later one sees it twice.
        if used.shared && used.learn(Some(nonce)) > 1 {
            return Taken::Before;
        }
        Taken::Fresh
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.shared.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    /// Reads what was written since the last time, and counts how often it is this one.
    fn learn(&mut self, wanted: Option<Nonce>) -> usize {
        let added = self.journal.as_mut().map_or(Ok(Vec::new()), Journal::added).unwrap_or_else(|error| {
            tracing::error!(%error, "nonces that another process used cannot be read");
            Vec::new()
        });
        let now = Instant::now();
        for &nonce in &added {
            if self.known.insert(nonce) {
                self.order.push_back((now, nonce));
            }
        }
        added.iter().filter(|nonce| Some(**nonce) == wanted).count()
    }

    fn forget(&mut self, now: Instant) {
        while let Some((came, oldest)) = self.order.front() {
            if now.saturating_duration_since(*came) < LIFE {
                break;
            }
            self.known.remove(oldest);
            self.order.pop_front();
        }
    }
}
