//! Puts a configuration back that the one in force does worse than, and remembers the text that was no good.
//!
//! A text that was rolled back is not loaded again by itself, also if it comes back after another one. Whoever asks for a
//! reload asks for that text, and gets another trial of it.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Fate, Moment, Reloader};
use crate::config::error::{Code, ConfigError};
use crate::domain::clock;
use crate::flight::showing::Counted;
use crate::gateway::build;
use crate::gateway::snapshot::Snapshot;
use crate::gateway::trial::{Before, Verdict};
use crate::telemetry::labels::ReloadResult;

/// A text that was rolled back: its hash, and why.
pub(super) type RolledBack = ([u8; 32], ConfigError);

impl Reloader {
    /// Puts the snapshot in force, on trial if the configuration says so.
    pub(super) fn swap(&mut self, before: Arc<Snapshot>, after: Snapshot) {
        let after = Arc::new(after);
        let proven = self.trial.swapped(before, &after, Instant::now());
        self.live.store(Arc::clone(&after));
        self.rolled_back = None;
        if let Some(files) = proven {
            self.keep(&files);
        }
        if let Some(terms) = after.table().roll_back() {
            if self.trial.is_on() {
                tracing::info!(within = ?terms.within, "the new configuration is on trial");
            } else {
                tracing::info!("the new configuration is not on trial, nothing was counted before it");
            }
        }
    }

    /// Looks at how the configuration on trial does.
    pub(super) fn judge(&mut self) {
        let in_force = self.live.load_full();
        match self.trial.look(&in_force, Instant::now()) {
            Verdict::Open => {}
            Verdict::Stays(files) => {
                tracing::info!(config.version = %in_force.table().version(), "the new configuration has stood its trial");
                if let Some(files) = files {
                    self.keep(&files);
                }
            }
            Verdict::Worse { before, counted } => self.put_back(&before, &in_force, counted),
        }
    }

    /// True if this is the text that was rolled back: it is refused for the reason it was refused then.
    pub(super) fn refuses_again(&self, content: &[u8; 32]) -> bool {
        let known = self.rolled_back.as_ref().filter(|(hash, _)| hash == content);
        let Some((_, why)) = known else { return false };
        tracing::error!("this configuration was rolled back before, POST /-/reload tries it again");
        self.shared.metrics.config_reload(ReloadResult::Failure);
        self.shared.metrics.config_not_in_force(true);
        self.last.rolled_back(why.clone());
        self.watched(Moment::Ended(Fate::RolledBack));
        true
    }

    /// Requests in flight finish on the table they began with.
    fn put_back(&mut self, Before { snapshot, counted: before }: &Before, in_force: &Snapshot, counted: Counted) {
        let again = build::put_back(snapshot, in_force, &self.shared);
        let (version, failed) = (again.table().version().to_string(), in_force.table().version());
        self.live.store(Arc::new(again));
        let metrics = &self.shared.metrics;
        metrics.config_in_use(&version, clock::unix_seconds());
        metrics.config_reload(ReloadResult::RolledBack);
        metrics.config_not_in_force(true);
        let why = self.why(*before, counted);
        tracing::error!(config.version = %version, config.rolled_back = %failed, "configuration {}", why.message);
        self.rolled_back = Some((self.seen, why.clone()));
        self.last.rolled_back(why);
        self.watched(Moment::Ended(Fate::RolledBack));
    }

    fn why(&self, before: Counted, counted: Counted) -> ConfigError {
        let message = format!(
            "rolled back: {} of {} requests failed with it, and {} of {} in the minute before",
            counted.failed, counted.ended, before.failed, before.ended
        );
        let hint = "change the file; POST /-/reload tries it again as it is".to_owned();
        let mut why = ConfigError::of_file(self.origin.routes.display().to_string(), message, Some(hint));
        why.code = Code::RolledBack;
        why
    }
}
