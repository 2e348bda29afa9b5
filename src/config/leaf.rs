//! When a certificate counts, read from its bytes.
//!
//! rustls checks the other side's certificates and never looks at our own, and its parser does not tell. So this walks the
//! few nested fields in front of the validity (RFC 5280, section 4.1) and reads nothing else. It judges nothing either:
//! bytes that are not a certificate give `None`.

use time::{Date, Month, PrimitiveDateTime, Time};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Seconds since 1970, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// From when on.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
}

/// Reads the validity of a certificate in DER.
pub fn validity(certificate: &[u8]) -> Option<Validity> {
    let (certificate, _) = field(certificate, SEQUENCE)?;
    let (mut fields, _) = field(certificate, SEQUENCE)?;
    if let Some((_, rest)) = field(fields, VERSION) {
        fields = rest;
    }
    // Serial number, signature algorithm, issuer.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, fields) = field(fields, tag)?;
    }
    let (validity, _) = field(fields, SEQUENCE)?;
    let (not_before, rest) = moment(validity)?;
    let (not_after, _) = moment(rest)?;
    Some(Validity { not_before, not_after })
}

/// The content of the field at the front, if it has this tag, and what follows it.
fn field(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, bytes) = bytes.split_first()?;
    let (&first, bytes) = bytes.split_first()?;
    let (length, bytes) = match first {
        0..=0x7f => (usize::from(first), bytes),
        // Certificates have at most two bytes of length; four are room enough.
        0x81..=0x84 => {
            let (length, bytes) = bytes.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)), bytes)
        }
        _ => return None,
    };
    if found == tag { bytes.split_at_checked(length) } else { None }
}

fn moment(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let utc = field(bytes, UTC_TIME).map(|(text, rest)| (text, rest, 2));
    let (text, rest, year_digits) =
        utc.or_else(|| field(bytes, GENERALIZED_TIME).map(|(text, rest)| (text, rest, 4)))?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, text) = text.split_at_checked(year_digits)?;
    let mut year: i32 = digits(year)?;
    if year_digits == 2 {
        // RFC 5280: two digits mean 1950 to 2049.
        year += if year < 50 { 2000 } else { 1900 };
    }
    let mut parts = [0u8; 5];
    let mut left = text;
    for part in &mut parts {
        let (two, rest) = left.split_at_checked(2)?;
        (*part, left) = (digits(two)?, rest);
    }
    let [month, day, hour, minute, second] = parts;
    let date = Date::from_calendar_date(year, Month::try_from(month).ok()?, day).ok()?;
    let time = Time::from_hms(hour, minute, second).ok()?;
    left.is_empty().then(|| (PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp(), rest))
}

fn digits<N: std::str::FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequence(content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![SEQUENCE, 0x82];
        bytes.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        bytes.extend(content);
        bytes
    }

    fn certificate(not_before: &[u8], not_after: &[u8]) -> Vec<u8> {
        let names = sequence(&[0; 300]);
        let validity = sequence(&[not_before, not_after].concat());
        let fields = [&[VERSION, 3, INTEGER, 1, 2][..], &[INTEGER, 1, 9], &sequence(&[]), &names, &validity].concat();
        sequence(&[sequence(&fields), sequence(&[])].concat())
    }

    #[test]
    fn both_spellings_of_a_moment_are_read() {
        let read = validity(&certificate(b"\x17\x0d700101000001Z", b"\x18\x0f20500101000000Z")).unwrap();
        assert_eq!(read, Validity { not_before: 1, not_after: 2_524_608_000 });
        let read = validity(&certificate(b"\x17\x0d491231235959Z", b"\x17\x0d500101000000Z")).unwrap();
        assert_eq!(read, Validity { not_before: 2_524_607_999, not_after: -631_152_000 });
    }

    #[test]
    fn what_is_no_moment_is_not_read_as_one() {
        for bad in [
            &b"\x17\x0d701301000001Z"[..],
            b"\x17\x0c700101000001",
            b"\x17\x0d7001+1000001Z",
            b"\x17\x7fZ",
            b"",
            b"\x17",
        ] {
            assert_eq!(validity(&certificate(bad, bad)), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..400, byte: u8) {
            let _ = validity(&bytes);
            let mut real = certificate(b"\x17\x0d700101000001Z", b"\x18\x0f20500101000000Z");
            if let Some(place) = real.get_mut(at) { *place = byte }
            let _ = validity(&real);
            let _ = validity(real.get(..at).unwrap_or_default());
        }
    }
}
