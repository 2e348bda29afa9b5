//! How long a wrong tag or a wrong secret takes, wherever it begins to be wrong.
//!
//! Welch's t over interleaved samples of two classes: wrong from the first byte on, and wrong in the last byte alone. The
//! slowest tenth is left out, which is the machine's. A comparison that stops at the first difference is beyond 4.5 by far
//! (the second test shows that this one would see it); what is measured once too often is measured again.

use std::hint::black_box;
use std::time::Instant;

use weighbridge::domain::secret::Secret;
use weighbridge::sign::hmac::{mac, verify};

const SAMPLES: usize = 20_000;
const BEYOND: f64 = 4.5;
/// Calls of one sample: one alone is shorter than the clock's tick.
const CALLS: usize = 8;

/// The t of what `compare` takes for the two.
fn t(early: &[u8], late: &[u8], compare: impl Fn(&[u8]) -> bool) -> f64 {
    let mut took: [Vec<f64>; 2] = [Vec::with_capacity(SAMPLES), Vec::with_capacity(SAMPLES)];
    // One place for both: which cache line a class happens to lie in is no property of the comparison.
    let mut bytes = early.to_vec();
    let mut dice: u32 = 1;
    while took.iter().any(|class| class.len() < SAMPLES) {
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let class = (dice >> 31) as usize;
        bytes.copy_from_slice(if class == 0 { early } else { late });
        let begun = Instant::now();
        for _ in 0..CALLS {
            assert!(!black_box(compare(black_box(&bytes))));
        }
        took[class].push(begun.elapsed().as_nanos() as f64);
    }
    // One limit for both: each its own would hide a difference.
    let mut all: Vec<f64> = took.concat();
    all.sort_unstable_by(f64::total_cmp);
    let limit = all[all.len() * 9 / 10];
    let [early, late] = took.map(|class| {
        let kept: Vec<f64> = class.into_iter().filter(|nanos| *nanos <= limit).collect();
        let count = kept.len() as f64;
        let mean = kept.iter().sum::<f64>() / count;
        let spread = kept.iter().map(|nanos| (nanos - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, spread / count)
    });
    (late.0 - early.0) / (early.1 + late.1).sqrt()
}

fn assert_even(what: &str, early: &[u8], late: &[u8], compare: impl Fn(&[u8]) -> bool) {
    let mut seen = Vec::new();
    for _ in 0..4 {
        let t = t(early, late, &compare);
        seen.push(t);
        if t.abs() < BEYOND {
            return;
        }
    }
    panic!("{what}: t of {seen:?}, beyond {BEYOND} each time");
}

fn wrong(right: &[u8]) -> [Vec<u8>; 2] {
    let [mut early, mut late] = [right.to_vec(), right.to_vec()];
    early.iter_mut().for_each(|byte| *byte ^= 0x55);
    *late.last_mut().unwrap() ^= 1;
    [early, late]
}

#[test]
fn c1_a_wrong_tag_or_secret_takes_as_long_wherever_it_begins_to_be_wrong() {
    let (key, message) = ([7; 32], b"the string to sign");
    let [early, late] = wrong(&mac(&key, &[message]));
    assert_even("a tag", &early, &late, |tag| verify(&key, message, tag));

    let secret = Secret::new((0..32).collect());
    let [early, late] = wrong(secret.expose());
    assert_even("a secret", &early, &late, |bytes| secret == Secret::new(bytes.to_vec()));
}

#[test]
fn c1_a_comparison_that_stops_early_would_be_seen() {
    let right: Vec<u8> = (0..32).collect();
    let [early, late] = wrong(&right);
    let stops = |bytes: &[u8]| right.iter().zip(bytes).all(|(a, b)| black_box(a) == black_box(b));
    let t = t(&early, &late, stops);
    assert!(t > BEYOND, "{t}");
}
