//! What the last reload said; for the status page.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::error::ConfigError;
use crate::domain::clock;

/// What the last reload said.
#[derive(Default)]
pub struct LastReload(Mutex<Told>);

/// One reload's result.
#[derive(Clone, Default)]
pub struct Told {
    /// Mistakes, empty if it went well.
    pub errors: Vec<ConfigError>,
    /// When, milliseconds since 1970; 0 if there was none since the start.
    pub at_ms: u64,
    /// What became of it.
    pub fate: Fate,
}

/// What became of what is on disk.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Fate {
    /// It is in force.
    #[default]
    Taken,
    /// It never was: it has mistakes.
    Refused,
    /// It was, and did worse than the one before.
    RolledBack,
}

impl Fate {
    /// As the status page says it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Refused => "refused",
            Self::RolledBack => "rolled_back",
        }
    }
}

impl Told {
    /// True if what is on disk is not in force.
    pub fn refused(&self) -> bool {
        self.fate != Fate::Taken
    }
}

impl LastReload {
    /// What it said.
    pub fn get(&self) -> Told {
        self.lock().clone()
    }

    /// What is on disk is in force.
    pub(super) fn accepted(&self) {
        self.say(Fate::Taken, Vec::new());
    }

    /// What is on disk is not in force, for these mistakes.
    pub fn refused(&self, errors: Vec<ConfigError>) {
        self.say(Fate::Refused, errors);
    }

    /// What is on disk is in force no more, for this.
    pub(super) fn rolled_back(&self, why: ConfigError) {
        self.say(Fate::RolledBack, vec![why]);
    }

    /// What became of it, without what was said.
    pub(super) fn fate(&self) -> Fate {
        self.lock().fate
    }

    fn say(&self, fate: Fate, errors: Vec<ConfigError>) {
        *self.lock() = Told { errors, at_ms: clock::unix_ms(), fate };
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
