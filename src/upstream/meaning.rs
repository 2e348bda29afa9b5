//! What an OpenAI-compatible provider's refusal means, whether it comes as a status or inside a 200.

use std::sync::Arc;

use crate::domain::outcome::{FailureClass, Sent};
use crate::flight::error::AttemptError;
use crate::wire::openai::EmbeddedError;

/// What an error inside a 200 means.
pub(super) fn embedded(error: EmbeddedError) -> AttemptError {
    let class = error.status.map_or(FailureClass::NoContent, |status| classify(status, Some(&error)));
    AttemptError {
        class,
        sent: Sent::Yes,
        status: error.status,
        retry_after: None,
        said: Some(Arc::new(error)),
        detail: "the provider reported an error inside a 200",
    }
}

/// The class of a status, and of what was said with it.
pub(super) fn classify(status: u16, said: Option<&EmbeddedError>) -> FailureClass {
    match status {
        402 => FailureClass::QuotaExhausted,
        // Some say with 400 or 403 that the account is empty: no other request would fare better.
        400..500 if said.is_some_and(EmbeddedError::is_quota) => FailureClass::QuotaExhausted,
        429 => FailureClass::RateLimited,
        401 | 403 => FailureClass::Unauthorised,
        503 | 529 => FailureClass::Overloaded,
        408 | 425 => FailureClass::ProviderFault,
        400..500 => FailureClass::Refused,
        _ => FailureClass::ProviderFault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_class_and_only_the_callers_faults_are_refusals() {
        for status in [400, 404, 413, 422] {
            assert_eq!(classify(status, None), FailureClass::Refused, "{status}");
        }
        for status in [301, 302, 307, 500, 502, 504, 408, 599] {
            assert_eq!(classify(status, None), FailureClass::ProviderFault, "{status}");
        }
        assert_eq!(classify(401, None), FailureClass::Unauthorised);
        assert_eq!(classify(403, None), FailureClass::Unauthorised);
        assert_eq!(classify(402, None), FailureClass::QuotaExhausted);
        assert_eq!(classify(429, None), FailureClass::RateLimited);
        assert_eq!(classify(529, None), FailureClass::Overloaded);
    }
}
