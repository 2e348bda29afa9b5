//! What the next process is told: how well each merchant's reused decisions agreed, and whose are given no more.
//!
//! Decisions themselves are not carried over. A process that hands over still hears late verdicts and reported outcomes
//! after it has, and each of them may be what forbids a decision to the next one; asking the provider once more for each
//! payer costs a call, and nothing else. A merchant who was switched off must not be on again for no better reason than a
//! restart.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{DecisionCache, MOST_MERCHANTS};
use crate::domain::agreement::Standing;
use crate::domain::reuse::Mark;

/// The largest text that is read.
pub(in crate::layer) const MOST_BYTES: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    pepper: [u8; 32],
    merchants: Vec<Merchant>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Merchant {
    mark: Mark,
    compared: u32,
    disagreed: u32,
    off: bool,
}

impl DecisionCache {
    /// The most bytes that [`Self::carried`] writes.
    pub const MOST_CARRIED: u64 = MOST_BYTES;

    /// What was found out, as a text; `None` if nothing was.
    pub fn carried(&self) -> Option<String> {
        let standings = self.standings();
        if standings.is_empty() {
            return None;
        }
        let merchant = |(mark, standing): (&Mark, &Standing)| {
            let (compared, disagreed, off) = standing.told();
            Merchant { mark: *mark, compared, disagreed, off }
        };
        let kept = Kept { pepper: *self.pepper(), merchants: standings.iter().map(merchant).collect() };
        serde_json::to_string(&kept).ok()
    }

    /// Goes on from what another process found out; of how many merchants, and how many of them are off. `None` if the text
    /// is none of ours. Call it before anybody is asked: all hashes are other ones from here on.
    pub fn go_on(&self, text: &[u8]) -> Option<(usize, usize)> {
        let kept: Kept = serde_json::from_slice(text).ok()?;
        if kept.merchants.len() > MOST_MERCHANTS + 1 {
            return None;
        }
        let each = kept.merchants.iter().map(|merchant| {
            let standing = Standing::of((merchant.compared, merchant.disagreed, merchant.off))?;
            Some((merchant.mark, standing))
        });
        let read: HashMap<Mark, Standing> = each.collect::<Option<_>>()?;
        self.inherited.set(kept.pepper).ok()?;
        let told = (read.len(), read.values().filter(|standing| standing.is_off()).count());
        *self.standings() = read;
        Some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::agreement::Agreed;

    const LIMIT: u32 = 20_000;

    #[test]
    fn a_merchant_who_is_off_is_off_in_the_next_process_too() {
        let first = DecisionCache::new([1; 32]);
        assert!(first.carried().is_none() && first.go_on(b"").is_none());
        let [good, bad] = ["good", "bad"].map(|name| first.merchant("shop", name));
        first.standings().entry(good).or_default().note(Agreed::Yes, LIMIT);
        for _ in 0..2 {
            first.standings().entry(bad).or_default().note(Agreed::No, LIMIT);
        }
        let text = first.carried().unwrap();
        assert!(!text.contains("bad"));

        let second = DecisionCache::new([2; 32]);
        assert_eq!(second.go_on(text.as_bytes()), Some((2, 1)));
        assert_eq!(second.merchant("shop", "bad"), bad);
        assert!(second.standings()[&bad].is_off() && !second.standings()[&good].is_off());
        assert_eq!(second.standings()[&good].told(), (1, 0, false));
        assert_eq!(second.go_on(text.as_bytes()), None, "once");
        // And the one after it.
        assert_eq!(DecisionCache::new([3; 32]).go_on(second.carried().unwrap().as_bytes()), Some((2, 1)));
    }

    #[test]
    fn as_many_merchants_as_there_can_be_fit() {
        let first = DecisionCache::new([255; 32]);
        for number in 0..=MOST_MERCHANTS {
            let mark = first.merchant("shop", &number.to_string());
            first.standings().insert(mark, Standing::of((u32::MAX, u32::MAX, true)).unwrap());
        }
        let text = first.carried().unwrap();
        assert!((text.len() as u64) < MOST_BYTES, "{}", text.len());
        assert!(DecisionCache::new([0; 32]).go_on(text.as_bytes()).is_some());
    }

    #[test]
    fn a_text_of_somebody_else_changes_nothing() {
        let memory = DecisionCache::new([1; 32]);
        let before = memory.merchant("shop", "m");
        let pepper = format!("{:?}", [9; 32]);
        let more = |merchants: &str| format!("{{\"pepper\":{pepper},\"merchants\":[{merchants}]}}");
        let impossible = format!("{{\"mark\":{:?},\"compared\":1,\"disagreed\":2,\"off\":true}}", [0; 16]);
        for text in ["", "{}", "null", &more("1"), &more(&impossible)] {
            assert_eq!(memory.go_on(text.as_bytes()), None, "{text}");
            assert_eq!(memory.merchant("shop", "m"), before);
        }
    }
}
