//! Model names that fail on purpose, so that failover can be seen without a configuration of faults.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::sandbox::fault::Fault;

/// Upstream model names with the fault they show and what a user of the proxy sees. Any other name answers as `steady`.
pub const MAGIC_MODELS: &[(&str, Option<&str>, &str)] = &[
    ("steady", None, "an answer, always"),
    ("slow", Some("delay:8s"), "an answer from the next candidate, if first_content is under 8 s; else a late one"),
    ("fail-503", Some("status:503"), "an answer from the next candidate"),
    ("fail-503-once", Some("status:503"), "an answer from the retry: of every two requests the first fails"),
    (
        "fail-429",
        Some("status:429;retry-after=2;retry-after-ms=2000"),
        "an answer from the next candidate, and this one left alone for 2 s",
    ),
    ("fail-empty", Some("empty"), "an answer from the next candidate: a 200 without content is a failure"),
    ("fail-error-in-200", Some("error-in-200:503"), "an answer from the next candidate: an error dressed as a 200"),
    ("fail-cut", Some("cut:3"), "three words and one error event: after the first word nothing can be replaced"),
    ("fail-stall", Some("stall:3"), "three words and, once the idle limit passes, one error event"),
    ("fail-refuse", Some("refuse"), "an answer from the next candidate: the connection closed without a byte"),
];

/// Providers for which a turn is remembered.
const MAX_TURNS: usize = 256;

/// Whose turn it is with the names that fail every other time.
#[derive(Default)]
pub(super) struct Magic {
    // A blocking lock: held for one set access and never across an await.
    failed: Mutex<HashSet<String>>,
}

impl Magic {
    /// The fault `model` stands for, if it is one of the names.
    pub(super) fn fault(&self, provider: &str, model: &str) -> Option<Fault> {
        let (name, text, _) = MAGIC_MODELS.iter().find(|(name, ..)| *name == model)?;
        let fault = Fault::parse((*text)?).ok()?;
        (!name.ends_with("-once") || self.is_first_of_pair(provider)).then_some(fault)
    }

    fn is_first_of_pair(&self, provider: &str) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.remove(provider) {
            return false;
        }
        if failed.len() < MAX_TURNS {
            failed.insert(provider.to_owned());
        }
        true
    }
}
