//! Who is calling: the key's full SHA-256 digest, looked up in memory. Every unknown key costs the same and gets the same
//! answer; a store that is down cannot turn a good key into a 401, because there is none. A key may count only together with
//! a client certificate, which is part of the connection and not of the request.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use tower::{Layer, Service};

use crate::config::table::Caller;
use crate::domain::operation::{Dialect, Operation, TrafficClass};
use crate::flight::arrival::{Arrival, LiveCaller, Pinned, Secured};
use crate::flight::error::CallError;
use crate::layer::always_ready;
use crate::layer::answering::Gated;

/// Where Anthropic's clients may put theirs.
pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Longest key looked at.
const LONGEST_KEY: usize = 512;

/// Makes [`Identify`].
#[derive(Clone, Copy)]
pub struct IdentifyLayer;

/// Finds the caller or refuses.
#[derive(Clone)]
pub struct Identify<S>(S);

impl<S> Layer<S> for IdentifyLayer {
    type Service = Identify<S>;

    fn layer(&self, inner: S) -> Identify<S> {
        Identify(inner)
    }
}

impl<S, P, B> Service<Arrival<P, B>> for Identify<S>
where
    S: Service<Arrival<P, B>, Error = CallError>,
    P: Pinned,
{
    type Response = S::Response;
    type Error = CallError;
    type Future = Gated<S::Future, CallError>;

    always_ready!();

    fn call(&mut self, mut arrival: Arrival<P, B>) -> Self::Future {
        match identify(&arrival) {
            Ok(caller) => {
                {
                    let mut story = arrival.trail.lock();
                    story.caller = Some(caller.caller.id.clone());
                    story.tenant = Some(caller.caller.tenant.clone());
                }
                // The risk route is known from the path alone: refuse before a body byte is read.
                if arrival.operation.map(Operation::class) == Some(TrafficClass::Risk) && !caller.caller.may_use("risk")
                {
                    return Gated::shut(CallError::NotAllowed("risk".to_owned()));
                }
                arrival.caller = Some(caller);
                Gated::open(self.0.call(arrival))
            }
            Err(error) => Gated::shut(error),
        }
    }
}

fn identify<P: Pinned, B>(arrival: &Arrival<P, B>) -> Result<Arc<LiveCaller>, CallError> {
    let headers = &arrival.head.headers;
    let key = arrival.operation.map_or_else(|| bearer(headers), |operation| presented_key(operation, headers));
    let key = key.ok_or(CallError::BadKey)?;
    let digest: [u8; 32] = Sha256::digest(key).into();
    let caller = arrival.pinned.caller(&digest).filter(|live| is_bound_here(&live.caller, arrival));
    Ok(Arc::clone(caller.ok_or(CallError::BadKey)?))
}

/// True unless the key counts only with a client certificate, and this connection has not shown it (G1: the answer is that
/// of an unknown key, so that a stolen key cannot even be told from a wrong one).
fn is_bound_here<P, B>(caller: &Caller, arrival: &Arrival<P, B>) -> bool {
    let shown = || Secured::of(&arrival.head).and_then(|secured| secured.client_certificate);
    caller.client_certs.is_empty() || shown().is_some_and(|shown| caller.client_certs.contains(&shown))
}

/// The caller key as it was sent: what a caller's signature covers as its token.
pub(crate) fn presented_key(operation: Operation, headers: &HeaderMap) -> Option<&[u8]> {
    if operation.dialect() == Dialect::Anthropic { either_key(headers) } else { bearer(headers) }
}

/// The Anthropic SDKs send the one or the other; both at once must be the same key.
fn either_key(headers: &HeaderMap) -> Option<&[u8]> {
    let mut keys = headers.get_all(&API_KEY).iter();
    let (Some(only), None) = (keys.next(), keys.next()) else {
        return if headers.contains_key(&API_KEY) { None } else { bearer(headers) };
    };
    let key = Some(only.as_bytes()).filter(|key| !key.is_empty() && key.len() <= LONGEST_KEY);
    if headers.contains_key(AUTHORIZATION) { key.filter(|key| bearer(headers) == Some(key)) } else { key }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (only, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, key) = only.split_at_checked(7)?;
    let fits = scheme.eq_ignore_ascii_case(b"bearer ") && !key.is_empty() && key.len() <= LONGEST_KEY;
    fits.then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g1_only_one_well_formed_bearer_key_is_looked_up() {
        let key = |values: &[&str]| {
            let headers: HeaderMap = values.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect();
            bearer(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(key(&["Bearer abc"]), Some(b"abc".to_vec()));
        assert_eq!(key(&["bearer abc"]), Some(b"abc".to_vec()));
        for bad in [&[][..], &["Bearer "], &["Basic abc"], &["Bearer"], &["Bearer a", "Bearer b"]] {
            assert_eq!(key(bad), None, "{bad:?}");
        }
        assert_eq!(key(&[&format!("Bearer {}", "x".repeat(513))]), None);
    }
}
