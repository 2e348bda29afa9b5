//! The courier: sends the notices of the outbox that nobody sends, those an earlier process left first of all.
//!
//! It looks into the outbox every few seconds and goes by the configuration in force: a notice whose tenant has no webhook
//! waits for one. What an operator revives or drops with `weighbridge audit notices` is found here, so nobody needs to
//! restart anything. It runs on a thread of its own, where a look at the disk keeps nobody waiting but notices, and ends when
//! told to: what is under way then stays in the outbox.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::config::table::Webhook;
use crate::domain::clock;
use crate::domain::id::TenantId;
use crate::gateway::notify::{Event, MOST_DEAD, MOST_PENDING, Notices, Parcel, Pending, Post};
use crate::gateway::snapshot::{Live, Shared};
use crate::layer::BoxFuture;
use crate::store::db::StoreError;
use crate::store::outbox::{Kept, State};
use crate::store::query::Reader;

/// Between two looks.
const SWEEP: Duration = Duration::from_secs(5);
/// Younger ones of this process are left to whoever posted them.
const YOUNG_MS: u64 = 30_000;

/// Sends what was left.
pub struct Courier {
    live: Live,
    reader: Arc<Reader>,
    notices: Arc<Notices>,
    post: Post,
    started_ms: u64,
    failing: bool,
}

impl Courier {
    /// `None` where there is no outbox.
    pub fn new(live: &Live, shared: &Shared) -> Option<Self> {
        let records = shared.clerk.as_ref()?.records();
        Some(Self {
            live: Arc::clone(live),
            reader: Arc::clone(records.reader()?),
            notices: Arc::clone(&shared.notices),
            post: Post::new(&shared.dial, &shared.notices, &shared.metrics, Some(records)),
            started_ms: clock::unix_ms(),
            failing: false,
        })
    }

    /// Sends until `stop` says so or is gone.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut under_way = FuturesUnordered::new();
        loop {
            under_way.extend(self.sweep());
            let mut pause = std::pin::pin!(sleep(SWEEP));
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    _ = &mut stop => return,
                    Some(()) = under_way.next() => {}
                }
            }
        }
    }

    fn sweep(&mut self) -> Vec<BoxFuture<()>> {
        match self.look() {
            Ok(begun) => {
                self.failing = false;
                begun
            }
            Err(error) if !self.failing => {
                self.failing = true;
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "the outbox cannot be read, notices that were left are not sent");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }

    fn look(&self) -> Result<Vec<BoxFuture<()>>, StoreError> {
        let dead = self.reader.notices(State::Dead, MOST_DEAD)?;
        let pending = self.reader.notices(State::Pending, MOST_PENDING)?;
        let (snapshot, now) = (self.live.load(), clock::unix_ms());
        let (mut begun, mut waiting) = (Vec::new(), 0);
        let oldest = pending.iter().map(|kept| kept.created_ms).min();
        for kept in pending {
            let Kept { created_ms, changed_ms, .. } = kept;
            let own = created_ms == changed_ms && created_ms >= self.started_ms;
            if own && now.saturating_sub(created_ms) < YOUNG_MS || self.notices.has(kept.notice.id()) {
                continue;
            }
            let hook = snapshot.table().webhooks().get(&TenantId::new(kept.notice.tenant()));
            match hook.and_then(|hook| Some((hook, self.post.place(&kept.notice)?))) {
                Some((hook, place)) => begun.extend(self.begin(Arc::clone(hook), kept, place)?),
                None => waiting += 1,
            }
        }
        self.notices.seen(dead, waiting, oldest);
        Ok(begun)
    }

    fn begin(&self, hook: Arc<Webhook>, kept: Kept, place: Pending) -> Result<Option<BoxFuture<()>>, StoreError> {
        let Kept { notice: letter, tries, .. } = kept;
        // Once more, with its place taken: whoever had the place may have settled it since.
        if !self.reader.is_pending(letter.id())? {
            return Ok(None);
        }
        let stored = match self.reader.decision(letter.tenant(), letter.decision()) {
            // One that cannot be read must not stand in the way of the others.
            Err(StoreError::Row(_)) => None,
            stored => stored?,
        };
        let spelled = stored.and_then(|stored| Some((stored.decision().ok()?, stored.body.out_trade_no)));
        let event = spelled.and_then(|(decision, number)| Event::of(&letter, &number, &decision));
        let (post, parcel) = (self.post.clone(), Parcel { letter, tries, kept: true });
        Ok(Some(Box::pin(async move {
            let _place = place;
            match event {
                Some(event) => post.deliver(&hook, &parcel, &event).await,
                None => post.give_up(&parcel, tries, "its decision is no longer on record").await,
            }
        })))
    }
}
