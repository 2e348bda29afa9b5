//! `audit` of the risk route: what an answer is worth that is not on record.

/// What to do with a decision that could not be made durable in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnUnrecorded {
    /// It is withheld: 503, and the caller may ask again.
    #[default]
    Refuse,
    /// It is given all the same, counted and told in the log.
    Continue,
}

impl OnUnrecorded {
    /// The word in `routes.toml`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Continue => "continue",
        }
    }
}
