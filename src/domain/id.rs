//! Names of things, so that a route can never be passed where a provider is meant.
//!
//! All of them are cheap to clone. None of them is a secret: they appear in logs, metrics and headers.

use std::fmt;
use std::sync::Arc;

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Wraps a name that configuration has already validated.
            pub fn new(name: impl Into<Arc<str>>) -> Self {
                Self(name.into())
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A route's public name: what applications write in `model`, or `risk`.
    RouteId
);
name!(
    /// One company's API, as described by one file in `providers/`.
    ProviderId
);
name!(
    /// A provider with a model (`tokenmix/deepseek-chat`), or a provider alone on the risk side (`alipay`).
    UpstreamId
);
name!(
    /// Who calls, as named in `routes.toml`.
    CallerId
);
name!(
    /// Whose data it is; part of every cache key.
    TenantId
);

/// The identity of one call: ours, or the caller's own `x-request-id` when it is well formed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

/// Longest id accepted from a caller.
const LONGEST_REQUEST_ID: usize = 128;

impl RequestId {
    /// Makes a fresh, time-ordered id.
    pub fn fresh() -> Self {
        Self(fresh("req_"))
    }

    /// Accepts a caller's id if it is 1 to 128 characters of `[0-9A-Za-z._:-]`, so that it is safe in a log and a header.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.len() <= LONGEST_REQUEST_ID;
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'));
        (fits && plain).then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `prefix` and 32 hex digits, ordered by time and never the same twice.
fn fresh(prefix: &str) -> Arc<str> {
    // On the stack, so that the only allocation is the name's own.
    let mut text = [0u8; 40];
    let (front, rest) = text.split_at_mut(prefix.len());
    front.copy_from_slice(prefix.as_bytes());
    let end = prefix.len() + uuid::Uuid::now_v7().simple().encode_lower(rest).len();
    text.get(..end).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default().into()
}

name!(
    /// The name of one risk decision.
    DecisionId
);

impl DecisionId {
    /// Makes a fresh, time-ordered id.
    pub fn fresh() -> Self {
        Self(fresh("ra_"))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_id_is_well_formed_and_unique() {
        let (a, b) = (RequestId::fresh(), RequestId::fresh());
        assert_ne!(a, b);
        assert_eq!(RequestId::parse(a.as_str()), Some(a));
    }

    #[test]
    fn s1_an_id_that_could_inject_a_header_or_a_log_line_is_refused() {
        for bad in ["", "a b", "a\r\nX-Evil: 1", "é", "a\"b", &"x".repeat(129)] {
            assert_eq!(RequestId::parse(bad), None, "{bad:?}");
        }
    }
}
