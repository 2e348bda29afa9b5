//! Whom a certificate is for, so that a page can show it beside the day on which it ends.
//!
//! Clients compare names, we do not: what cannot be read is left out, and a certificate without names is not refused here.

use std::net::IpAddr;

use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Names shown; some certificates have a hundred.
const MOST: usize = 20;

/// The host names and addresses of a certificate in DER, in its order.
pub(super) fn names(certificate: &[u8]) -> Vec<String> {
    let Ok(certificate) = Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some((_, names))) = certificate.tbs_certificate().get_extension::<SubjectAltName>() else {
        return Vec::new();
    };
    names.0.iter().filter_map(spelled).take(MOST).collect()
}

fn spelled(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(bytes) => address(bytes.as_bytes()).map(|address| address.to_string()),
        _ => None,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_addresses_are_named_and_other_names_are_not() {
        let hosts = [
            GeneralName::from(IpAddr::from([192, 0, 2, 7])),
            GeneralName::from("2001:db8::7".parse::<IpAddr>().unwrap()),
        ];
        assert_eq!(hosts.iter().filter_map(spelled).collect::<Vec<_>>(), ["192.0.2.7", "2001:db8::7"]);
        assert_eq!(address(&[1, 2, 3]), None);
    }

    #[test]
    fn what_is_no_certificate_has_no_names() {
        assert!(names(b"").is_empty() && names(&[0x30, 0x82, 0xff, 0xff]).is_empty());
    }
}
