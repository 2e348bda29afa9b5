//! A provider's address, read so that no two readers can disagree about where it leads (S7).
//!
//! Everything is refused on which parsers are known to differ: user information, query, fragment, escapes, backslashes,
//! IPv4 in hex, octal or short form, zones, trailing dots, port 0, punycode. What is left has one meaning.
//!
//! It does not resolve names: whether the connected address is private is checked when connecting.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::table::BaseUrl;

/// Why a text is not an address we would connect to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum AddressError {
    #[error("the address must begin with https:// or http://")]
    Scheme,
    #[error("the address must not contain a user name or password")]
    UserInfo,
    #[error("the address must not contain a query or a fragment")]
    Query,
    #[error("the address contains characters that are not allowed in it")]
    Characters,
    #[error("the address has no host")]
    NoHost,
    #[error("the host is not a plain name: letters, digits and inner hyphens between dots, no dot at the end")]
    Host,
    #[error("write an internationalised host by a plain name, not in punycode")]
    Punycode,
    #[error("write an IPv4 address as four decimal numbers")]
    Ipv4,
    #[error("write an IPv6 address in brackets, without a zone")]
    Ipv6,
    #[error("the port must be a number between 1 and 65535")]
    Port,
    #[error("the path must not contain empty, \".\" or \"..\" segments")]
    Path,
}

/// Takes an address apart.
pub(super) fn parse(text: &str) -> Result<BaseUrl, AddressError> {
    let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => return Err(AddressError::Scheme),
    };
    if rest.contains(['?', '#']) {
        return Err(AddressError::Query);
    }
    if rest.contains('@') {
        return Err(AddressError::UserInfo);
    }
    let (authority, path) = rest.find('/').and_then(|at| rest.split_at_checked(at)).unwrap_or((rest, ""));
    let (host, port) = split_port(authority)?;
    let host = read_host(host)?;
    let port = port.map_or(Ok(if tls { 443 } else { 80 }), read_port)?;
    Ok(BaseUrl { tls, host, port, path: read_path(path)? })
}

/// Where an address leads, as far as its spelling tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    /// This machine or a private network.
    Private,
    /// Anywhere else, or a name that cannot be judged before it is resolved.
    Public,
}

/// Judges a host that [`parse`] accepted.
pub(super) fn reach(host: &str) -> Reach {
    const PRIVATE_ENDINGS: [&str; 10] =
        ["localhost", "local", "internal", "lan", "home", "corp", "intranet", "private", "svc", "test"];
    let private = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => is_private_v4(address),
        Ok(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
            Some(mapped) => is_private_v4(mapped),
            None => address.is_loopback() || address.is_unspecified() || is_local_v6(address),
        },
        // A name without a dot exists only on this machine or network.
        Err(_) => host.rsplit_once('.').is_none_or(|(_, last)| PRIVATE_ENDINGS.contains(&last)),
    };
    if private { Reach::Private } else { Reach::Public }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    let carrier = first == 100 && (64..128).contains(&second);
    address.is_loopback() || address.is_private() || address.is_link_local() || first == 0 || carrier
}

fn is_local_v6(address: Ipv6Addr) -> bool {
    let [first, ..] = address.segments();
    first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), AddressError> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (_, after) = rest.split_once(']').ok_or(AddressError::Ipv6)?;
        let host = authority.strip_suffix(after).ok_or(AddressError::Ipv6)?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(AddressError::Ipv6),
        };
    }
    match authority.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(AddressError::Ipv6),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((authority, None)),
    }
}

fn read_host(host: &str) -> Result<String, AddressError> {
    if host.is_empty() {
        return Err(AddressError::NoHost);
    }
    if let Some(address) = host.strip_prefix('[') {
        let address = address.strip_suffix(']').ok_or(AddressError::Ipv6)?;
        return address.parse::<Ipv6Addr>().map(|address| address.to_string()).map_err(|_| AddressError::Ipv6);
    }
    if !host.is_ascii() || host.contains(['%', '\\']) || host.bytes().any(|b| b.is_ascii_control() || b == b' ') {
        return Err(AddressError::Characters);
    }
    let host = host.to_ascii_lowercase();
    let label_is_plain = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.len() > 253 || !host.split('.').all(label_is_plain) {
        return Err(AddressError::Host);
    }
    if host.split('.').any(|label| label.starts_with("xn--")) {
        return Err(AddressError::Punycode);
    }
    let last = host.rsplit('.').next().unwrap_or_default();
    let numeric = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
    // `Ipv4Addr` reads exactly four decimal numbers without leading zeros.
    if numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err(AddressError::Ipv4);
    }
    Ok(host)
}

fn read_port(port: &str) -> Result<u16, AddressError> {
    let plain = !port.is_empty() && !port.starts_with('0') && port.bytes().all(|b| b.is_ascii_digit());
    if !plain {
        return Err(AddressError::Port);
    }
    port.parse().map_err(|_| AddressError::Port)
}

fn read_path(path: &str) -> Result<String, AddressError> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
    if !path.bytes().all(allowed) {
        return Err(AddressError::Characters);
    }
    let mut segments = path.split('/').skip(1);
    if segments.any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(AddressError::Path);
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_taken_apart_with_defaults_filled_in() {
        let url = parse("https://API.openai.com/v1/").unwrap();
        assert_eq!((url.tls, url.host.as_str(), url.port, url.path.as_str()), (true, "api.openai.com", 443, "/v1"));
        let url = parse("http://[::1]:4000").unwrap();
        assert_eq!((url.tls, url.host.as_str(), url.port, url.path.as_str()), (false, "::1", 4000, ""));
        assert_eq!(url.authority(), "[::1]:4000");
        assert_eq!(parse("https://openrouter.ai/api/v1").unwrap().path, "/api/v1");
    }

    #[test]
    fn s7_addresses_that_parsers_disagree_on_are_refused() {
        let cases = [
            ("ftp://a", AddressError::Scheme),
            ("HTTPS://a", AddressError::Scheme),
            ("//a", AddressError::Scheme),
            ("https://", AddressError::NoHost),
            ("https:///v1", AddressError::NoHost),
            ("http://a@b", AddressError::UserInfo),
            ("https://a:b@c/v1", AddressError::UserInfo),
            ("https://a/v1?x=1", AddressError::Query),
            ("https://a#b", AddressError::Query),
            ("http://127.1", AddressError::Ipv4),
            ("http://0x7f000001", AddressError::Ipv4),
            ("http://0x7f.0.0.1", AddressError::Ipv4),
            ("http://2130706433", AddressError::Ipv4),
            ("http://0177.0.0.1", AddressError::Ipv4),
            ("http://1.2.3.4.5", AddressError::Ipv4),
            ("https://a.example.", AddressError::Host),
            ("https://a..example", AddressError::Host),
            ("https://-a.example", AddressError::Host),
            ("https://a_b.example", AddressError::Host),
            ("https://xn--bcher-kva.example", AddressError::Punycode),
            ("https://bücher.example", AddressError::Characters),
            ("https://a%2eb", AddressError::Characters),
            ("https://a\\b", AddressError::Characters),
            ("https://a b", AddressError::Characters),
            ("http://[fe80::1%25eth0]", AddressError::Ipv6),
            ("http://[::1", AddressError::Ipv6),
            ("http://[::1]x", AddressError::Ipv6),
            ("http://::1", AddressError::Ipv6),
            ("https://a:0", AddressError::Port),
            ("https://a:65536", AddressError::Port),
            ("https://a:", AddressError::Port),
            ("https://a:+1", AddressError::Port),
            ("https://a/../b", AddressError::Path),
            ("https://a//b", AddressError::Path),
            ("https://a/%2e%2e/b", AddressError::Characters),
            ("https://a/b c", AddressError::Characters),
        ];
        for (text, why) in cases {
            assert_eq!(parse(text), Err(why), "{text:?}");
        }
    }

    #[test]
    fn private_and_public_hosts_are_told_apart() {
        for host in [
            "localhost",
            "127.0.0.1",
            "10.1.2.3",
            "::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "litellm",
            "a.svc.cluster.local",
            "100.64.0.1",
        ] {
            assert_eq!(reach(host), Reach::Private, "{host}");
        }
        for host in ["api.openai.com", "8.8.8.8", "2001:4860:4860::8888", "localhost.example.com"] {
            assert_eq!(reach(host), Reach::Public, "{host}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(https?://)?\\PC{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_accepted_reads_the_same_again(text in "https?://[a-zA-Z0-9.:\\[\\]-]{1,20}(/[a-z./]{0,10})?") {
            if let Ok(url) = parse(&text) {
                let scheme = if url.tls { "https" } else { "http" };
                let again = format!("{scheme}://{}{}", url.authority(), url.path);
                prop_assert_eq!(parse(&again), Ok(url));
            }
        }
    }
}
