//! The one-way road from serving to stopped, and how everybody learns where on it the process is.
//!
//! One [`Shutdown`] belongs to whoever stops a listener; its signals go to connections, to response bodies and to tests.
//! It deliberately knows no durations: [`super::Server::drain`] does.

use std::sync::Arc;

use tokio::sync::watch;

/// Where on the road a listener is. Later stages are greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// Everything is welcome.
    Serving,
    /// Another process accepts in our place; connections close after their next answer.
    Leaving,
    /// Nothing new is accepted; idle connections close, requests in flight finish.
    Draining,
    /// Requests in flight should end now, streams with one in-band error.
    Ending,
    /// Whatever is left is dropped.
    Stopped,
}

/// Moves a listener along the road. Clones move the same listener.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<Senders>);

#[derive(Debug)]
struct Senders {
    stage: watch::Sender<Stage>,
    ending: watch::Sender<bool>,
    queue_is_kept: bool,
}

/// Tells where a listener is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ShutdownSignal {
    stage: watch::Receiver<Stage>,
    ending: watch::Receiver<bool>,
    queue_is_kept: bool,
}

impl Shutdown {
    /// A listener that serves.
    pub fn new() -> Self {
        Self::of(false)
    }

    /// A listener whose socket somebody else holds, too: who waits in its queue is left to the next process, however long
    /// that takes, instead of being taken by one that has a moment left.
    pub fn of_a_kept_queue() -> Self {
        Self::of(true)
    }

    fn of(queue_is_kept: bool) -> Self {
        let (stage, ending) = (watch::Sender::new(Stage::Serving), watch::Sender::new(false));
        Self(Arc::new(Senders { stage, ending, queue_is_kept }))
    }

    /// Moves on to `stage`; does nothing if the listener is there or further already.
    pub fn advance(&self, stage: Stage) {
        self.0.stage.send_if_modified(|current| {
            let later = stage > *current;
            *current = stage.max(*current);
            later
        });
        // Not when everything is dropped at once: then some streams would still get their error event and others not.
        if stage == Stage::Ending {
            self.0.ending.send_replace(true);
        }
    }

    /// Where the listener is.
    pub fn stage(&self) -> Stage {
        *self.0.stage.borrow()
    }

    /// A signal to hand out.
    pub fn signal(&self) -> ShutdownSignal {
        let Senders { stage, ending, queue_is_kept } = &*self.0;
        ShutdownSignal { stage: stage.subscribe(), ending: ending.subscribe(), queue_is_kept: *queue_is_kept }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl ShutdownSignal {
    /// A signal that never comes, for connections nobody drains.
    pub fn never() -> Self {
        Shutdown::new().signal()
    }

    /// Where the listener is.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// True if the listener's queue outlives the process.
    pub fn queue_is_kept(&self) -> bool {
        self.queue_is_kept
    }

    /// Resolves once the listener is at `stage` or further; never, if whoever could move it is gone.
    ///
    /// # Cancel safety
    /// Yes: nothing is consumed.
    pub async fn reached(&self, stage: Stage) {
        let mut receiver = self.stage.clone();
        let reached = receiver.wait_for(|current| *current >= stage).await.is_ok();
        if !reached {
            std::future::pending::<()>().await;
        }
    }

    /// Becomes true at [`Stage::Ending`]. For response bodies, which live on a lower floor and cannot name this type.
    pub fn ending(&self) -> watch::Receiver<bool> {
        self.ending.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn there_is_no_way_back() {
        let shutdown = Shutdown::new();
        let signal = shutdown.signal();
        shutdown.advance(Stage::Ending);
        shutdown.advance(Stage::Draining);
        assert_eq!((signal.stage(), *signal.ending().borrow()), (Stage::Ending, true));
        signal.reached(Stage::Draining).await;
    }

    #[test]
    fn streams_are_told_to_end_only_where_they_are_given_the_time() {
        let shutdown = Shutdown::new();
        let signal = shutdown.signal();
        shutdown.advance(Stage::Stopped);
        assert_eq!((signal.stage(), *signal.ending().borrow()), (Stage::Stopped, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_nobody_can_give_never_comes() {
        let signal = ShutdownSignal::never();
        let waited = tokio::time::timeout(std::time::Duration::from_secs(9), signal.reached(Stage::Draining));
        assert!(waited.await.is_err());
    }
}
