//! The last requests that somebody may ask about: those that failed, moved on, were answered by something else than a
//! provider's verdict, or took long. `weighbridge explain --request-id` reads it.
//!
//! Plain requests are not kept: the access log has their lines, and each would cost what a plain request must not. What is
//! kept holds no body, no header and no name of a person.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::table::ConfigVersion;
use crate::domain::decision::{Action, DecisionSource};
use crate::domain::id::{CallerId, RequestId, RouteId};
use crate::domain::operation::Operation;
use crate::domain::outcome::End;
use crate::flight::trail::{AttemptNote, CacheNote, Story, UpstreamNames};
use crate::telemetry::labels::RequestOutcome;

/// Requests kept.
pub const MOST_KEPT: usize = 1_024;
/// From here on a call to a model took long.
const LONG: Duration = Duration::from_secs(10);
/// And a decision.
const LONG_FOR_A_DECISION: Duration = Duration::from_millis(500);

/// One request that is over.
pub struct Past {
    /// Its id.
    pub id: RequestId,
    /// When it came.
    pub arrived: Instant,
    /// Until its answer's last byte.
    pub duration: Duration,
    /// Of it, what was spent in this process.
    pub overhead: Duration,
    /// The status of its answer; 499 if nobody waited for it.
    pub status: u16,
    /// What became of it.
    pub outcome: RequestOutcome,
    /// The error the caller got.
    pub error: Option<&'static str>,
    /// How its stream ended; `None` if it was none.
    pub stream_end: Option<End>,
    /// The configuration it was led by.
    pub config: ConfigVersion,
    /// What was asked.
    pub operation: Option<Operation>,
    /// Where.
    pub route: Option<RouteId>,
    /// By whom.
    pub caller: Option<CallerId>,
    /// Every attempt, in order.
    pub attempts: Vec<AttemptNote>,
    /// Attempts nobody waited for in the end.
    pub dropped: Vec<Arc<UpstreamNames>>,
    /// Who answered.
    pub served: Option<Arc<UpstreamNames>>,
    /// What the cache did.
    pub cache: CacheNote,
    /// What was decided, and by what.
    pub decision: Option<(Action, DecisionSource)>,
}

/// The last of them. One lock, taken only for requests that are kept.
#[derive(Default)]
pub struct Recent(Mutex<VecDeque<Arc<Past>>>);

impl Recent {
    /// Keeps one and forgets the oldest.
    pub fn keep(&self, past: Past) {
        let mut kept = self.kept();
        let oldest = if kept.len() >= MOST_KEPT { kept.pop_front() } else { None };
        kept.push_back(Arc::new(past));
        drop(kept);
        drop(oldest);
    }

    /// The newest with this id: ids are the callers' own where they give some.
    pub fn find(&self, id: &str) -> Option<Arc<Past>> {
        self.kept().iter().rev().find(|past| past.id.as_str() == id).cloned()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Past>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// True if somebody may ask why.
pub fn is_telling(story: &Story, outcome: RequestOutcome, duration: Duration) -> bool {
    let stood_in = matches!(story.decision, Some((_, DecisionSource::Fallback(_) | DecisionSource::Cached)));
    let long = if story.decision.is_some() { LONG_FOR_A_DECISION } else { LONG };
    outcome != RequestOutcome::Ok
        || story.attempts.len() > 1
        || story.flying.is_some()
        || stood_in
        || matches!(story.cache, CacheNote::StaleError { .. })
        || duration >= long
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(id: &str) -> Past {
        Past {
            id: RequestId::parse(id).unwrap(),
            arrived: Instant::now(),
            duration: Duration::ZERO,
            overhead: Duration::ZERO,
            status: 503,
            outcome: RequestOutcome::UpstreamError,
            error: Some("connect"),
            stream_end: None,
            config: ConfigVersion([0; 32]),
            operation: None,
            route: None,
            caller: None,
            attempts: Vec::new(),
            dropped: Vec::new(),
            served: None,
            cache: CacheNote::Bypass,
            decision: None,
        }
    }

    #[test]
    fn the_oldest_goes_when_there_is_no_more_room() {
        let recent = Recent::default();
        (0..=MOST_KEPT).for_each(|number| recent.keep(past(&format!("req_{number}"))));
        assert!(recent.find("req_0").is_none());
        assert!(recent.find("req_1").is_some() && recent.find(&format!("req_{MOST_KEPT}")).is_some());
        assert_eq!(recent.kept().len(), MOST_KEPT);
    }

    #[test]
    fn a_plain_request_is_not_kept_and_whatever_was_not_plain_is() {
        let telling = |story: &Story, outcome, ms| is_telling(story, outcome, Duration::from_millis(ms));
        let plain = Story::default();
        assert!(!telling(&plain, RequestOutcome::Ok, 9_000));
        assert!(telling(&plain, RequestOutcome::Ok, 10_000));
        assert!(telling(&plain, RequestOutcome::RateLimited, 1));
        let decided = |source| Story { decision: Some((Action::Review, source)), ..Story::default() };
        assert!(!telling(&decided(DecisionSource::Live), RequestOutcome::Ok, 100));
        assert!(telling(&decided(DecisionSource::Live), RequestOutcome::Ok, 500));
        let late = DecisionSource::Fallback(crate::domain::decision::FallbackReason::Deadline);
        assert!(telling(&decided(late), RequestOutcome::Ok, 100));
    }
}
