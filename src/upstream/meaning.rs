//! What an OpenAI-compatible provider's refusal means, whether it comes as a status or inside a 200.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::table::Auth;
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
        cause: None,
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
        // And some say with 400 that our key is at fault: the caller's request is not, and another provider may answer.
        400 if said.is_some_and(EmbeddedError::is_about_credentials) => FailureClass::Unauthorised,
        429 => FailureClass::RateLimited,
        // Some refuse content with 403: that is about the request and not about our key.
        403 if said.is_some_and(EmbeddedError::is_content_policy) => FailureClass::Refused,
        401 | 403 => FailureClass::Unauthorised,
        503 | 529 => FailureClass::Overloaded,
        408 | 425 => FailureClass::ProviderFault,
        400..500 => FailureClass::Refused,
        _ => FailureClass::ProviderFault,
    }
}

/// Another class for an error whose code or type has one in the provider's file. The status alone says less.
pub(super) fn recoded(error: AttemptError, codes: &BTreeMap<String, FailureClass>) -> AttemptError {
    if codes.is_empty() {
        return error;
    }
    let class = error.said.as_deref().and_then(|said| {
        let words = [said.code.as_deref(), said.kind.as_deref()];
        words.into_iter().flatten().find_map(|word| codes.get(word)).copied()
    });
    AttemptError { class: class.unwrap_or(error.class), ..error }
}

/// Some providers repeat the key in their error, and what they say of a request reaches the caller.
pub(super) fn without_secret(error: AttemptError, auth: &Auth) -> AttemptError {
    // What signs is never sent, so only a credential that travels can come back.
    let secret = match auth {
        Auth::Bearer { secret } | Auth::Header { secret, .. } => secret.expose(),
        Auth::None | Auth::DiHmac { .. } => return error,
    };
    let (Ok(secret), Some(said)) = (std::str::from_utf8(secret), error.said.as_deref()) else { return error };
    let hide = |text: &str| {
        let whole = text.replace(secret, "***");
        // What they say is cut to a length, and that may have been in the middle of the key.
        let ends_in_part = |part: &usize| secret.get(..*part).is_some_and(|part| whole.ends_with(part));
        let part = (4..secret.len()).rev().find(ends_in_part).unwrap_or_default();
        whole.get(..whole.len() - part).unwrap_or_default().to_owned()
    };
    let said = EmbeddedError {
        status: said.status,
        code: said.code.as_deref().map(hide),
        kind: said.kind.as_deref().map(hide),
        param: said.param.as_deref().map(hide),
        message: hide(&said.message),
    };
    AttemptError { said: Some(Arc::new(said)), ..error }
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
        let litellm = EmbeddedError { kind: Some("no_db_connection".to_owned()), ..EmbeddedError::default() };
        assert_eq!(classify(400, Some(&litellm)), FailureClass::Unauthorised);
    }
}
