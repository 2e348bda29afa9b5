//! HMAC-SHA256 and SHA-256, the only primitives our own signatures use.
//!
//! It exists so that tags are made and compared in one place, always in constant time. It does not decide *what* is
//! signed: that is one file per dialect beside this one.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// The tag of the parts, one after the other. Nothing is put between them: whoever signs more than one part brings
/// its own separators.
pub fn mac(secret: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = keyed(secret);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// True if `tag` is the whole tag of `message`. Takes the same time wherever the first difference is.
pub fn verify(secret: &[u8], message: &[u8], tag: &[u8]) -> bool {
    let mut mac = keyed(secret);
    mac.update(message);
    mac.verify_slice(tag).is_ok()
}

/// SHA-256 as 64 lower-case hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().map_or('0', char::from);
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        hex.push(digit(byte >> 4));
        hex.push(digit(byte & 15));
    }
    hex
}

fn keyed(secret: &[u8]) -> Hmac<Sha256> {
    #[expect(
        clippy::expect_used,
        reason = "HMAC is defined for keys of every length; the error type belongs to the trait"
    )]
    Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of every length")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 4231 section 4.3, <https://www.rfc-editor.org/rfc/rfc4231#section-4.3> (read 2026-11-22).
    #[test]
    fn the_tag_is_the_one_of_rfc_4231() {
        let tag = mac(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        let hex: String = tag.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn the_digest_of_nothing_is_the_well_known_one() {
        assert_eq!(sha256_hex(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn c7_a_shortened_or_lengthened_tag_is_refused() {
        let tag = mac(b"secret", &[b"message"]);
        assert!(verify(b"secret", b"message", &tag));
        assert!(!verify(b"secret", b"message", &tag[..31]));
        assert!(!verify(b"secret", b"message", &[&tag[..], &[0]].concat()));
        assert!(!verify(b"secret", b"message", b""));
    }

    proptest! {
        #[test]
        fn c1_every_single_bit_flip_of_a_tag_is_refused(secret: Vec<u8>, message: Vec<u8>, bit in 0usize..256) {
            let mut tag = mac(&secret, &[&message]);
            prop_assert!(verify(&secret, &message, &tag));
            tag[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!verify(&secret, &message, &tag));
        }

        #[test]
        fn parts_are_joined_without_separators(a: Vec<u8>, b: Vec<u8>) {
            prop_assert_eq!(mac(b"k", &[&a, &b]), mac(b"k", &[&[a.clone(), b.clone()].concat()]));
        }
    }
}
