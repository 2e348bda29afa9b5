//! Whether a configuration does worse than the one before it, for as long as it is on trial.
//!
//! Off unless `[reload] roll_back` is set. It counts nothing itself: snapshots do, one addition a request, and this looks at
//! their counts now and then. It compares with the last configuration that was not on trial itself, so that two bad ones
//! in a row lead back to the good one. It puts nothing back: that is `reload`'s, which asks it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::reload::RollBack;
use crate::config::source::Sources;
use crate::flight::showing::{Counted, Showing};
use crate::gateway::snapshot::Snapshot;

/// What the time before a change is.
const BEFORE: Duration = Duration::from_secs(60);
/// Least time between two looks that are kept, so that there are at most 60.
const APART: Duration = Duration::from_secs(1);

/// What is known of the configuration in force.
#[derive(Default)]
pub struct Trial {
    /// Looks of the last minute, oldest first.
    looks: VecDeque<(Instant, Counted)>,
    on: Option<OnTrial>,
}

struct OnTrial {
    before: Before,
    terms: RollBack,
    since: Instant,
    files: Option<Sources>,
}

/// What would be put back.
#[derive(Clone)]
pub struct Before {
    /// It.
    pub snapshot: Arc<Snapshot>,
    /// How it did in its last minute.
    pub counted: Counted,
}

/// What a look at a trial says.
pub enum Verdict {
    /// Nothing yet, or there is none.
    Open,
    /// It is over, and the configuration stays. What it was made of, to be kept.
    Stays(Option<Sources>),
    /// It is worse than the one before.
    Worse {
        /// The one before.
        before: Before,
        /// How it did itself.
        counted: Counted,
    },
}

impl Trial {
    /// True while the configuration in force may be put back.
    pub fn is_on(&self) -> bool {
        self.on.is_some()
    }

    /// Another configuration takes the place of `before` now. Returns what `before` was made of, if it was on trial and
    /// that is over: it is to be kept.
    pub fn swapped(&mut self, before: Arc<Snapshot>, after: &Snapshot, now: Instant) -> Option<Sources> {
        let counted = self.last_minute(&before, now);
        self.looks.clear();
        let known = counted.filter(|counted| counted.ended > 0).map(|counted| Before { snapshot: before, counted });
        let (proven, files) = match self.on.take() {
            // Itself on trial, and nothing can be said for it.
            Some(on) if !on.is_proven(known.as_ref()) => (Some(on.before), None),
            Some(on) => (known, on.files),
            None => (known, None),
        };
        let is_another = |before: &Before| before.snapshot.table().version() != after.table().version();
        let terms = after.table().roll_back().filter(|_| after.showing().is_some());
        let on = terms.zip(proven.filter(is_another));
        self.on = on.map(|(terms, before)| OnTrial { before, terms, since: now, files: None });
        self.note(after, now);
        files
    }

    /// What the configuration on trial was made of: to be kept once it stays.
    pub fn of(&mut self, files: Sources) {
        if let Some(on) = &mut self.on {
            on.files = Some(files);
        }
    }

    /// Looks at how the configuration in force does.
    pub fn look(&mut self, in_force: &Snapshot, now: Instant) -> Verdict {
        self.note(in_force, now);
        let Some(on) = &self.on else { return Verdict::Open };
        let Some(counted) = in_force.showing().map(Showing::counted) else { return Verdict::Open };
        if on.is_worse(counted) {
            let before = on.before.clone();
            (self.on, self.looks) = (None, VecDeque::new());
            return Verdict::Worse { before, counted };
        }
        if now.saturating_duration_since(on.since) < on.terms.within {
            return Verdict::Open;
        }
        Verdict::Stays(self.on.take().and_then(|on| on.files))
    }

    fn note(&mut self, in_force: &Snapshot, now: Instant) {
        let Some(showing) = in_force.showing() else { return };
        let last = self.looks.back().map(|(at, _)| *at);
        if last.is_some_and(|last| now.saturating_duration_since(last) < APART) {
            return;
        }
        while self.looks.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > BEFORE) {
            self.looks.pop_front();
        }
        self.looks.push_back((now, showing.counted()));
    }

    /// What ended in the last minute of a configuration, as far back as there were looks at it.
    fn last_minute(&self, of: &Snapshot, now: Instant) -> Option<Counted> {
        let counted = of.showing()?.counted();
        let fits = |(at, _): &&(Instant, Counted)| now.saturating_duration_since(*at) <= BEFORE;
        let earlier = self.looks.iter().find(fits).map_or(counted, |(_, counted)| *counted);
        Some(counted.since(earlier))
    }
}

impl OnTrial {
    fn is_worse(&self, counted: Counted) -> bool {
        let enough = counted.ended >= u64::from(self.terms.least);
        enough && counted.is_worse(self.before.counted, self.terms.worse_than)
    }

    /// True if enough was seen of the configuration on trial, and nothing bad.
    fn is_proven(&self, itself: Option<&Before>) -> bool {
        itself
            .is_some_and(|itself| itself.counted.ended >= u64::from(self.terms.least) && !self.is_worse(itself.counted))
    }
}
