//! Who may speak to the admin plane: whoever is on this machine, and elsewhere only who has the token.
//!
//! The `Host` allow-list stops a web page from reaching a loopback port through a name that resolves to it.

use std::net::{IpAddr, SocketAddr};

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use subtle::ConstantTimeEq;

use crate::domain::secret::Secret;

/// The rule of one admin listener.
pub struct Guard {
    token: Option<Secret>,
}

/// Why a request is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The host is a name that could be anybody's.
    Host,
    /// The token is missing or wrong.
    Token,
    /// A page of another origin asks for something to be done.
    Origin,
}

/// An admin listener that everybody could reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an admin listener that is not on loopback needs a token of at least 16 characters in WEIGHBRIDGE_ADMIN_TOKEN")]
pub struct Unguarded;

impl Guard {
    /// The rule for a listener at `address`.
    ///
    /// # Errors
    /// [`Unguarded`] if it is reachable from elsewhere and has no token.
    pub fn new(address: SocketAddr, token: Option<Secret>) -> Result<Self, Unguarded> {
        let token = token.filter(|token| token.expose().len() >= 16);
        if address.ip().is_loopback() || token.is_some() { Ok(Self { token }) } else { Err(Unguarded) }
    }

    /// What lets operators in.
    pub fn means(&self) -> &'static str {
        if self.token.is_some() { "token" } else { "loopback" }
    }

    /// Checks host and token.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        if let Some(token) = &self.token {
            let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
            let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
            return if given.ct_eq(token.expose()).into() { Ok(()) } else { Err(Refusal::Token) };
        }
        let host = match (headers.get(HOST), uri.authority()) {
            (Some(host), _) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
            (None, authority) => authority.cloned(),
        };
        if host.is_some_and(|host| is_this_machine(host.host())) { Ok(()) } else { Err(Refusal::Host) }
    }
}

/// Checks that a request that does something does not come from somebody else's page. Browsers say whose page it is, and
/// everything else says nothing.
///
/// # Errors
/// [`Refusal::Origin`].
pub fn check_origin(uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let foreign = |site: &HeaderValue| !matches!(site.as_bytes(), b"same-origin" | b"none");
    if headers.get("sec-fetch-site").is_some_and(foreign) {
        return Err(Refusal::Origin);
    }
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let own = headers.get(HOST).map(HeaderValue::as_bytes).or(uri.authority().map(|own| own.as_str().as_bytes()));
    let named = origin.as_bytes().splitn(2, |byte| *byte == b'/').last().and_then(|rest| rest.strip_prefix(b"/"));
    if named.is_some() && named == own { Ok(()) } else { Err(Refusal::Origin) }
}

fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

impl Refusal {
    /// The status to answer with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::Token => StatusCode::UNAUTHORIZED,
            Self::Origin => StatusCode::FORBIDDEN,
        }
    }

    /// What to say.
    pub fn message(self) -> &'static str {
        match self {
            Self::Host => "use localhost or a loopback address as host\n",
            Self::Origin => "no page of another origin may ask for this\n",
            Self::Token => "send the admin token as authorization: Bearer\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(guard: &Guard, fields: &[(&'static str, &str)]) -> Result<(), Refusal> {
        let headers = fields.iter().map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        guard.check(&Uri::from_static("/metrics"), &headers)
    }

    #[test]
    fn s14_a_foreign_name_cannot_reach_a_loopback_admin() {
        let guard = Guard::new("127.0.0.1:9090".parse().unwrap(), None).unwrap();
        for host in ["127.0.0.1:9090", "localhost:9090", "[::1]:9090", "LOCALHOST"] {
            assert_eq!(check(&guard, &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil", "evil:9090", "127.0.0.1.evil", "localhost.evil", "10.0.0.1", ""] {
            assert_eq!(check(&guard, &[("host", host)]), Err(Refusal::Host), "{host}");
        }
        assert_eq!(check(&guard, &[]), Err(Refusal::Host));
    }

    #[test]
    fn s14_a_page_of_another_origin_makes_nothing_happen() {
        let check = |fields: &[(&'static str, &str)]| {
            let headers = fields.iter().map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            check_origin(&Uri::from_static("/-/reload"), &headers)
        };
        let host = ("host", "127.0.0.1:9090");
        assert_eq!(check(&[host]), Ok(()));
        assert_eq!(check(&[host, ("origin", "http://127.0.0.1:9090"), ("sec-fetch-site", "same-origin")]), Ok(()));
        for origin in
            ["http://evil.example", "null", "http://127.0.0.1:3000", "http://127.0.0.1:9090.evil.example", "", "/"]
        {
            assert_eq!(check(&[host, ("origin", origin)]), Err(Refusal::Origin), "{origin}");
        }
        for site in ["cross-site", "same-site", "else"] {
            assert_eq!(check(&[host, ("sec-fetch-site", site)]), Err(Refusal::Origin), "{site}");
        }
    }

    #[test]
    fn s14_an_admin_that_others_can_reach_needs_a_token() {
        let everywhere = "0.0.0.0:9090".parse().unwrap();
        assert!(Guard::new(everywhere, None).is_err());
        assert!(Guard::new(everywhere, Some(Secret::new(b"short".to_vec()))).is_err());
        let guard = Guard::new(everywhere, Some(Secret::new(b"a-long-enough-token".to_vec()))).unwrap();
        assert_eq!(check(&guard, &[("authorization", "Bearer a-long-enough-token")]), Ok(()));
        assert_eq!(check(&guard, &[("authorization", "Bearer a-long-enough-toke")]), Err(Refusal::Token));
        assert_eq!(check(&guard, &[("host", "localhost")]), Err(Refusal::Token));
    }
}
