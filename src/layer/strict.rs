//! Refuses what a lenient HTTP parser lets through and a second reader might understand differently.
//!
//! It needs no raw bytes: bodies are collected and every upstream request is built anew, so the client's framing never
//! reaches a provider. What remains dangerous is a request whose *meaning* is ambiguous.

use http::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Method, Version};
use tower::{Layer, Service};

use crate::flight::arrival::Arrival;
use crate::flight::error::CallError;
use crate::layer::always_ready;
use crate::layer::answering::Gated;

/// Makes [`Strict`].
#[derive(Clone, Copy)]
pub struct StrictLayer;

/// Lets only unambiguous requests through.
#[derive(Clone)]
pub struct Strict<S>(S);

impl<S> Layer<S> for StrictLayer {
    type Service = Strict<S>;

    fn layer(&self, inner: S) -> Strict<S> {
        Strict(inner)
    }
}

impl<S, P, B> Service<Arrival<P, B>> for Strict<S>
where
    S: Service<Arrival<P, B>, Error = CallError>,
{
    type Response = S::Response;
    type Error = CallError;
    type Future = Gated<S::Future, CallError>;

    always_ready!();

    fn call(&mut self, arrival: Arrival<P, B>) -> Self::Future {
        match check(&arrival.head) {
            Ok(()) => Gated::open(self.0.call(arrival)),
            Err(error) => Gated::shut(error),
        }
    }
}

/// What of a head decides where a request ends and whom it is for, found in one pass.
#[derive(Default)]
struct Framing<'h> {
    hosts: usize,
    host: Option<&'h [u8]>,
    codings: usize,
    chunked: bool,
    length: Option<&'h [u8]>,
    upgrade: bool,
    odd_expectation: bool,
}

impl<'h> Framing<'h> {
    fn of(headers: &'h HeaderMap) -> Self {
        let mut framing = Self::default();
        for (name, value) in headers {
            let value = value.as_bytes();
            if name == HOST {
                framing.hosts += 1;
                framing.host = Some(value);
            } else if name == CONTENT_LENGTH {
                framing.length = framing.length.or(Some(value));
            } else if name == TRANSFER_ENCODING {
                framing.codings += 1;
                framing.chunked = value.eq_ignore_ascii_case(b"chunked");
            } else if name == UPGRADE {
                framing.upgrade = true;
            } else if name == EXPECT {
                framing.odd_expectation |= !value.eq_ignore_ascii_case(b"100-continue");
            }
        }
        framing
    }
}

fn check(head: &Parts) -> Result<(), CallError> {
    if head.method == Method::CONNECT {
        return Err(CallError::Tunnel);
    }
    let framing = Framing::of(&head.headers);
    check_host(head, &framing)?;
    check_framing(head, &framing)?;
    if framing.upgrade {
        return Err(CallError::Framing("upgrades are not supported"));
    }
    if framing.odd_expectation { Err(CallError::Expectation) } else { Ok(()) }
}

fn check_host(head: &Parts, framing: &Framing<'_>) -> Result<(), CallError> {
    match framing.hosts {
        0 if head.version == Version::HTTP_2 => {}
        0 => return Err(CallError::Framing("the host header is missing")),
        1 => {}
        _ => return Err(CallError::Framing("send exactly one host header")),
    }
    if framing.host.is_some_and(|host| !is_host(host)) {
        return Err(CallError::Framing("the host header is malformed"));
    }
    // Over HTTP/2 this is the host, and it must not bring a user's name or a path along (RFC 9113, 8.3.1).
    if head.uri.authority().is_some_and(|authority| !is_host(authority.as_str().as_bytes())) {
        return Err(CallError::Framing("the authority is malformed"));
    }
    match (framing.host, head.uri.authority()) {
        (Some(host), Some(authority)) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host) => {
            Err(CallError::Framing("the host header differs from the request's authority"))
        }
        (None, None) => Err(CallError::Framing("the authority is missing")),
        _ => Ok(()),
    }
}

fn is_host(host: &[u8]) -> bool {
    !host.is_empty() && host.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(byte))
}

fn check_framing(head: &Parts, framing: &Framing<'_>) -> Result<(), CallError> {
    let Framing { codings, chunked, length, .. } = *framing;
    if codings > 1 || codings == 1 && !chunked {
        return Err(CallError::Framing("the only transfer-encoding understood is chunked"));
    }
    if chunked && length.is_some() {
        return Err(CallError::Framing("send content-length or transfer-encoding, not both"));
    }
    let has_body = chunked || length.is_some_and(|length| length != b"0");
    if has_body && matches!(head.method, Method::GET | Method::HEAD) {
        return Err(CallError::Framing("this method takes no body"));
    }
    if head.version == Version::HTTP_10 && head.method == Method::POST && length.is_none() {
        return Err(CallError::Framing("send a content-length"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn checked(method: &str, uri: &str, version: Version, headers: &[(&str, &str)]) -> Result<(), CallError> {
        let mut request = Request::builder().method(method).uri(uri).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn g3_a_host_that_could_be_read_two_ways_is_refused() {
        let host = |headers: &[(&str, &str)]| checked("GET", "/v1/models", Version::HTTP_11, headers);
        assert!(host(&[("host", "127.0.0.1:8080")]).is_ok());
        assert!(host(&[("host", "[::1]:8080")]).is_ok());
        for bad in [&[][..], &[("host", "a"), ("host", "a")], &[("host", "x/#@y")], &[("host", "x?")], &[("host", "")]]
        {
            assert!(matches!(host(bad), Err(CallError::Framing(_))), "{bad:?}");
        }
        let absolute = |host| checked("GET", "http://a:1/v1/models", Version::HTTP_11, &[("host", host)]);
        assert!(absolute("a:1").is_ok());
        assert!(absolute("b:1").is_err());
    }

    #[test]
    fn framing_that_two_readers_might_cut_differently_is_refused() {
        let post = |extra: &[(&str, &str)]| {
            let headers = [&[("host", "a")][..], extra].concat();
            checked("POST", "/v1/chat/completions", Version::HTTP_11, &headers)
        };
        assert!(post(&[("transfer-encoding", "chunked")]).is_ok());
        for coding in ["identity, chunked", "gzip, chunked", "chunked, chunked", "xchunked"] {
            assert!(post(&[("transfer-encoding", coding)]).is_err(), "{coding}");
        }
        assert!(post(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]).is_err());
        assert!(post(&[("transfer-encoding", "chunked"), ("content-length", "3")]).is_err());
        assert!(post(&[("upgrade", "websocket")]).is_err());
        assert!(matches!(post(&[("expect", "y 100-continue")]), Err(CallError::Expectation)));
        assert!(post(&[("expect", "100-continue")]).is_ok());
        assert!(checked("GET", "/v1/models", Version::HTTP_11, &[("host", "a"), ("content-length", "3")]).is_err());
        assert!(checked("POST", "/", Version::HTTP_10, &[("host", "a")]).is_err());
        let tunnel = checked("CONNECT", "evil.test:80", Version::HTTP_11, &[("host", "evil.test:80")]);
        assert!(matches!(tunnel, Err(CallError::Tunnel)));
    }
}
