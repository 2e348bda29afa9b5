//! The one spelling of a query string that both sides sign.
//!
//! Proxies between the two may re-order or re-encode a query; this undoes exactly that and nothing more. It does not
//! know form encoding: `+` is a plus, not a space.

/// Pairs re-encoded by RFC 3986 and sorted by name, then value, both encoded; empty if there are none.
pub fn canonical(raw: &str) -> String {
    let mut pairs: Vec<(String, String)> = raw
        .split('&')
        .filter(|piece| !piece.is_empty())
        .map(|piece| piece.split_once('=').unwrap_or((piece, "")))
        .map(|(name, value)| (encode(&decode(name)), encode(&decode(value))))
        .collect();
    pairs.sort();
    let written: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    written.join("&")
}

/// Decodes `%XX`. A percent sign that no two hex digits follow stands for itself.
pub fn decode(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if let (b'%', Some((&[high, low], tail))) = (byte, after.split_first_chunk())
            && let (Some(high), Some(low)) = (hex_value(high), hex_value(low))
        {
            decoded.push(high << 4 | low);
            rest = tail;
        } else {
            decoded.push(byte);
            rest = after;
        }
    }
    decoded
}

fn encode(bytes: &[u8]) -> String {
    let mut encoded = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(['%', hex_digit(byte >> 4), hex_digit(byte & 15)]);
        }
    }
    encoded
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0').to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn c5_the_edges_of_a_query_have_one_spelling() {
        let cases = [
            ("", ""),
            ("&&", ""),
            ("a", "a="),
            ("a=", "a="),
            ("=v", "=v"),
            ("=", "="),
            ("b=2&a=1", "a=1&b=2"),
            ("a=2&a=1", "a=1&a=2"),
            ("a=1&&b=2&", "a=1&b=2"),
            ("a=b=c", "a=b%3Dc"),
            ("a+b=c+d", "a%2Bb=c%2Bd"),
            ("a=%2f%7e", "a=%2F~"),
            ("a=%zz&b=%4", "a=%25zz&b=%254"),
            ("a=%%41", "a=%25A"),
            ("q=%E6%94%AF&q=支", "q=%E6%94%AF&q=%E6%94%AF"),
            ("a=%FF", "a=%FF"),
            // By name first: as whole texts "a-b=1" would come before "a=1".
            ("a-b=1&a=1", "a=1&a-b=1"),
            // By *encoded* name: '[' becomes %5B, which sorts before letters.
            ("a=1&[=1", "%5B=1&a=1"),
            ("a=%0A", "a=%0A"),
        ];
        for (raw, expected) in cases {
            assert_eq!(canonical(raw), expected, "{raw:?}");
        }
    }

    proptest! {
        #[test]
        fn c5_canonicalising_twice_changes_nothing(raw in "\\PC{0,40}") {
            let once = canonical(&raw);
            prop_assert_eq!(canonical(&once), once);
        }

        #[test]
        fn c6_a_canonical_query_never_breaks_the_line(raw in "(?s).{0,40}") {
            prop_assert!(!canonical(&raw).contains('\n'));
        }
    }
}
